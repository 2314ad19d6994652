"""The command line. Exit codes: 0 done, 1 refused or failed, 2 usage."""

import asyncio
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from holdfast.adapters.kafka import KafkaUnavailable, check_topics, create_topics, describe
from holdfast.adapters.policies import load_policies
from holdfast.adapters.redis import RedisUnavailable
from holdfast.adapters.service import ServiceError, configure_logging
from holdfast.core.policy import PolicyError
from holdfast.settings import SettingsError, load_settings
from holdfast_schemas import TOPICS, Action, AuditRecord, Command, Outcome, utc_now

app = typer.Typer(
    help="Checks every live model prediction, blocks the bad ones, and switches back to the last good version.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
route_app = typer.Typer(help="See and change which version of a model serves.", no_args_is_help=True)
topics_app = typer.Typer(help="The topics in Kafka.", no_args_is_help=True)
app.add_typer(route_app, name="route")
app.add_typer(topics_app, name="topics")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The configuration file; holdfast.toml, or HOLDFAST_CONFIG.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_REFUSALS = (KafkaUnavailable, PolicyError, RedisUnavailable, ServiceError, SettingsError)


class Refused(Exception):  # noqa: N818  an answer, not a failure of the program
    """What was asked for was not done; the message says why."""


def _fail(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)
    raise typer.Exit(1)


def _perform(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (*_REFUSALS, Refused) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _run(main: Awaitable[Any]) -> Any:
    async def entry() -> Any:
        return await main

    if sys.platform == "win32":
        return asyncio.run(entry())
    import uvloop

    return uvloop.run(entry())


def _print(as_json: bool, facts: Any, show: Callable[[Console], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        show(Console(soft_wrap=True, highlight=False))


def _serve(service: str, config: Path | None) -> None:
    def action() -> None:
        settings = load_settings(config)
        configure_logging(settings.log_format)
        # Each service brings its own libraries: import only the one that runs.
        serve = importlib.import_module(f"holdfast.{service}").serve
        try:
            _run(serve(settings))
        except (*_REFUSALS, typer.Exit):
            raise
        except Exception as error:
            raise ServiceError(
                f"The {service} stopped: {describe(error)}. "
                "Nothing was approved unchecked; see its log, then start it again."
            ) from None

    _perform(action)


@app.command()
def guard(config: ConfigOption = None) -> None:
    """Check predictions and publish verdicts; run as many as there are partitions to share."""
    _serve("guard", config)


@app.command()
def switch(config: ConfigOption = None) -> None:
    """Decide routes from tallies and commands, and keep Redis in line."""
    _serve("switch", config)


@app.command()
def up(config: ConfigOption = None) -> None:
    """Run guard and switch together; one ending ends the other."""

    def action() -> None:
        settings = load_settings(config)
        load_policies(settings.policies)
        _run(create_topics(settings))
        arguments = ["--config", str(config)] if config else []
        services = [
            subprocess.Popen([sys.executable, "-m", "holdfast.cli", name, *arguments])  # noqa: S603  our own command
            for name in ("guard", "switch")
        ]

        def stop(*_: object) -> None:
            for service in services:
                with contextlib.suppress(ProcessLookupError):
                    service.terminate()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        pid, status = os.wait()
        stop()
        codes = [service.wait() for service in services if service.pid != pid]
        worst = max(os.waitstatus_to_exitcode(status), *codes)
        if worst:
            raise Refused("A service ended with an error, so the other was stopped too; its message is above.")

    _perform(action)


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Validate configuration and policies, and print them with every default filled in."""

    def action() -> dict[str, Any]:
        settings = load_settings(config)
        policies = load_policies(settings.policies).policies
        return {
            "settings": settings.model_dump(mode="json"),
            "policies": {p.id: p.model_dump(mode="json", exclude_none=True) for p in policies.values()},
        }

    facts = _perform(action)
    _print(as_json, facts, lambda console: console.print_json(data=facts))


@topics_app.command("create")
def topics_create(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Create the topics that are missing, with the settings that Holdfast needs."""

    def action() -> dict[str, str]:
        settings = load_settings(config)
        result: dict[str, str] = _run(create_topics(settings))
        _run(check_topics(settings, TOPICS))
        return result

    facts = _perform(action)

    def show(console: Console) -> None:
        table = Table("topic", "")
        for name, outcome in facts.items():
            table.add_row(name, outcome)
        console.print(table)

    _print(as_json, facts, show)


@app.command()
def schemas(
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")] = Path("schemas/v1"),
    config: ConfigOption = None,
) -> None:
    """Write the JSON Schema of every message, and the AsyncAPI document."""
    from holdfast.adapters import asyncapi

    def action() -> None:
        for name, content in asyncapi.files(load_settings(config)).items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")

    _perform(action)


@route_app.command("show")
def route_show(
    model: Annotated[str | None, typer.Argument(help="One model; all without it.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version of each model serves, from Kafka."""
    from holdfast.adapters.commands import read_routes

    def action() -> list[dict[str, Any]]:
        routes = _run(read_routes(load_settings(config)))
        if model is not None and model not in routes:
            known = ", ".join(sorted(routes)) or "none yet"
            raise Refused(f"There is no route for the model {model!r}. Models with a route: {known}.")
        return [r.model_dump(mode="json") for name, r in sorted(routes.items()) if model in (None, name)]

    facts = _perform(action)

    def show(console: Console) -> None:
        table = Table("model", "version", "state", "epoch", "last good", "fenced", "since", "reason", "actor")
        for r in facts:
            table.add_row(
                r["model"],
                r["version"] or "-",
                r["state"],
                str(r["epoch"]),
                r["last_good"] or "-",
                ", ".join(r["fenced"]) or "-",
                r["since"],
                r["reason"],
                r["actor"],
            )
        console.print(table)

    _print(as_json, facts, show)


def _command(action: Action, help_text: str, *, version: bool | None, ends: bool = False) -> None:
    """Add one command of `holdfast route`; `version`: needed, optional (False) or none."""

    def send(
        model: str,
        wanted: str | None,
        reason: str,
        actor: str | None,
        lasts: str | None,
        config: Path | None,
        as_json: bool,
    ) -> None:
        from holdfast.adapters.commands import send_command

        def perform() -> AuditRecord:
            settings = load_settings(config)
            try:
                command = Command(
                    command_id=os.urandom(12).hex(),
                    model=model,
                    action=action,
                    version=wanted,
                    actor=actor or os.environ.get("USER") or "unknown",
                    reason=reason,
                    expires_at=None if lasts is None else utc_now() + _duration(lasts),
                )
            except ValidationError as error:
                first = error.errors()[0]
                raise Refused(f"{first['loc'][0]}: {first['msg']}. Nothing was sent.") from None
            audit: AuditRecord = _run(send_command(settings, command))
            return audit

        audit = _perform(perform)
        _print(
            as_json,
            audit.model_dump(mode="json", exclude_none=True),
            lambda console: console.print(f"{audit.outcome.value}: {audit.detail}", markup=False),
        )
        if audit.outcome is Outcome.REFUSED:
            raise typer.Exit(1)

    ModelArg = Annotated[str, typer.Argument(help="The model.")]  # noqa: N806
    Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept in the audit.")]  # noqa: N806
    Actor = Annotated[str | None, typer.Option("--actor", help="Who; the login name without it.")]  # noqa: N806
    Ends = Annotated[str | None, typer.Option("--for", help="End by itself after, say, 30m or 2h.")]  # noqa: N806

    if version is None:

        def command(
            model: ModelArg,
            reason: Reason,
            actor: Actor = None,
            lasts: Ends = None,
            config: ConfigOption = None,
            as_json: JsonOption = False,
        ) -> None:
            send(model, None, reason, actor, lasts, config, as_json)
    elif version:

        def command(  # type: ignore[misc]
            model: ModelArg,
            version: Annotated[str, typer.Argument(help="The version.")],
            reason: Reason,
            actor: Actor = None,
            lasts: Ends = None,
            config: ConfigOption = None,
            as_json: JsonOption = False,
        ) -> None:
            send(model, version, reason, actor, lasts, config, as_json)
    else:

        def command(  # type: ignore[misc]
            model: ModelArg,
            reason: Reason,
            version: Annotated[str | None, typer.Argument(help="The version.")] = None,
            actor: Actor = None,
            lasts: Ends = None,
            config: ConfigOption = None,
            as_json: JsonOption = False,
        ) -> None:
            send(model, version, reason, actor, lasts, config, as_json)

    route_app.command(action.value, help=help_text)(command)


def _duration(text: str) -> timedelta:
    from pydantic import TypeAdapter

    from holdfast.core.duration import Duration

    try:
        parsed: timedelta = TypeAdapter(Duration).validate_python(text)
    except ValidationError as error:
        raise Refused(f"--for: {error.errors()[0]['msg'].removeprefix('Value error, ')}. Nothing was sent.") from None
    return parsed


_command(Action.PROMOTE, "Let a version serve.", version=True)
_command(Action.PIN, "Fix the version; automatic switching is off until unpin.", version=False)
_command(Action.UNPIN, "Let Holdfast switch automatically again.", version=None)
_command(Action.ROLLBACK, "Leave the active version, fence it, and go back to the last good one.", version=False)
_command(Action.HOLD, "Let no version serve; everything is blocked.", version=None)
_command(Action.RESUME, "End a hold.", version=False)
_command(Action.FENCE, "Block every output of a version.", version=True)
_command(Action.UNFENCE, "Let a fenced version be a candidate again.", version=True)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
