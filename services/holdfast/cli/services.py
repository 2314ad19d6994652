"""The commands that run a service."""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from holdfast.cli.terminal import ConfigOption, InputOption, JsonOption, perform, run, show_line
from holdfast.core.errors import HoldfastError, describe
from holdfast.settings import load_settings

_SERVICES = {
    "guard": "holdfast.guard",
    "switch": "holdfast.switch",
    "notify": "holdfast.notify",
    "api": "holdfast.api.app",
    "audit": "holdfast.verify.service",
}
"""The module of each service, imported when it runs."""


def start(service: str, config: Path | None, input_name: str | None = None) -> None:
    """Run a service until it is told to stop, and end with a sentence where it fails."""
    # What only services need is imported where one runs: the other commands start sooner.
    from holdfast.adapters.service import ServiceError, configure_logging

    def action() -> None:
        settings = load_settings(config, input_name=input_name)
        configure_logging(settings.log_format)
        structlog.contextvars.bind_contextvars(service=service)
        serve = importlib.import_module(_SERVICES[service]).serve
        try:
            run(serve(settings))
        except (HoldfastError, typer.Exit):
            raise
        except Exception as error:
            raise ServiceError(
                f"The {service} stopped: {describe(error)}. "
                "Nothing was approved unchecked; see its log, then start it again."
            ) from None

    perform(action)


def guard(config: ConfigOption = None, input_name: InputOption = None) -> None:
    """Check predictions and publish verdicts; run as many as there are partitions to share.

    A guard works on one input: each of [[inputs]] needs guards of its own.
    """
    start("guard", config, input_name)


def switch(config: ConfigOption = None) -> None:
    """Decide routes from tallies and commands, and keep Redis in line."""
    start("switch", config)


def notify(config: ConfigOption = None) -> None:
    """Tell Alertmanager of every open incident, until it is resolved; two may run at once."""
    start("notify", config)


def up(
    config: ConfigOption = None,
    embedded: Annotated[
        bool,
        typer.Option("--embedded", help="On a Kafka and a Redis of its own, which forget everything in the end."),
    ] = False,
    browser: Annotated[
        bool | None,
        typer.Option("--browser/--no-browser", help="Open the console in a browser; at a terminal without it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run guard, switch, notify and api together on this machine; one ending ends the others."""
    from holdfast.cli.up import run_all

    opened = browser if browser is not None else sys.stdout.isatty() and not as_json

    def announce(facts: dict[str, Any]) -> None:
        lines = [f"Everything runs. Console: {facts['login'] or facts['console']}"]
        lines += [f"export {name}={value}" for name, value in facts["environment"].items()]
        show_line(as_json, facts, "\n".join(lines))

    perform(lambda: run_all(config, embedded=embedded, announce=announce, browser=opened))
