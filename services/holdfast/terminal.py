"""What all commands share: how they fail, print, and run."""

import asyncio
import getpass
import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from holdfast.adapters.embedded import EmbeddedUnavailable
from holdfast.adapters.kafka import KafkaUnavailable, describe
from holdfast.adapters.redis import RedisUnavailable
from holdfast.adapters.service import ServiceError
from holdfast.core.duration import Duration
from holdfast.core.policy import PolicyError
from holdfast.settings import SettingsError

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The configuration file; holdfast.toml, or HOLDFAST_CONFIG.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept in the audit.")]
ActorOption = Annotated[str | None, typer.Option("--actor", help="Who; the login name without it.")]

EXPECTED = (EmbeddedUnavailable, KafkaUnavailable, PolicyError, RedisUnavailable, ServiceError, SettingsError)
"""Errors whose message is meant for people."""


class Refused(Exception):  # noqa: N818  an answer, not a failure of the program
    """What was asked for was not done; the message says why."""


def fail(message: str) -> None:
    """Print one sentence and end with exit code 1."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)
    raise typer.Exit(1)


def perform(action: Callable[[], T]) -> T:
    """Run a command's body; what people should read of an error is printed, without a traceback."""
    # The clients log what their exceptions say again.
    for name in ("aiokafka", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return action()
    except (*EXPECTED, Refused) as error:
        fail(str(error))
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="holdfast-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        fail(f"Unexpected failure: {describe(error)}. Please report it, with what is in {log.name}.")
        raise


def run(main: Coroutine[Any, Any, T]) -> T:
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


def show(as_json: bool, facts: Any, display: Callable[[Console], None]) -> None:
    """Print `facts` as JSON, or let `display` print them for people."""
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        display(Console(highlight=False))


def login_name(given: str | None) -> str:
    """Who acts. Raises Refused where nobody can be named."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise Refused("There is no login name here; say who acts with --actor.") from None


def duration(text: str, option: str) -> timedelta:
    """Raises Refused when `text` is no duration."""
    try:
        return TypeAdapter[timedelta](Duration).validate_python(text)
    except ValidationError as error:
        raise Refused(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
