"""What all commands share: how they fail, print, and run."""

import asyncio
import getpass
import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from holdfast.core.actors import actor_name
from holdfast.core.duration import Duration
from holdfast.core.errors import HoldfastError, describe
from holdfast.core.visible import ESCAPES, visible
from holdfast.interrupts import INTERRUPTED, interruptible
from holdfast.settings import Settings
from holdfast_schemas import Name, Said

T = TypeVar("T")
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The configuration file; holdfast.toml, or HOLDFAST_CONFIG.")
]
InputOption = Annotated[
    str | None,
    typer.Option("--input", help="Of this one of [[inputs]]; without it, of the topics of [topics].", metavar="NAME"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", "-r", help="Why; it is kept in the audit.", parser=lambda text: _said(text))
]
ActorOption = Annotated[
    str | None, typer.Option("--actor", help="Who; the login name without it.", parser=lambda text: _said(text))
]


class Refused(HoldfastError):  # noqa: N818  an answer, not a failure of the program
    """What was asked for was not done; the message says why."""


_CONTROLS = dict.fromkeys([*range(10), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}") | ESCAPES
"""But for the line feed."""


class Terminal(Console):
    """Prints texts as they are: what producers and other people wrote cannot colour, move or command it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        # Before it is laid out: an escape takes more room than what it stands for.
        super().print(*map(_laid_out, objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(segment.text.translate(_CONTROLS), segment.style)


def _laid_out(shown: Any) -> Any:
    """The same with escapes for what nobody sees."""
    if isinstance(shown, str):
        return visible(shown)
    if isinstance(shown, Text) and shown.plain != visible(shown.plain):
        return Text(visible(shown.plain), style=shown.style)
    if isinstance(shown, Table):
        for column in shown.columns:
            column._cells = [_laid_out(cell) for cell in column._cells]
    return shown


def fail(message: str) -> None:
    """Print one sentence and end with exit code 1."""
    Terminal(stderr=True, soft_wrap=True).print(message)
    raise typer.Exit(1)


def warn(message: str) -> None:
    """Say on standard error what is left out of the answer."""
    Terminal(stderr=True, soft_wrap=True).print(f"Left out: {message}")


def tell(message: str) -> None:
    """Say on standard error how far a command is."""
    Terminal(stderr=True, soft_wrap=True).print(message)


def perform(action: Callable[[], T]) -> T:
    """Run a command's body; what people should read of an error is printed, without a traceback."""
    # The clients log what their exceptions say again.
    for name in ("aiokafka", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with interruptible():
            return action()
    except HoldfastError as error:
        fail(str(error))
        raise
    except (KeyboardInterrupt, typer.Abort):
        raise typer.Exit(INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:
        try:
            with tempfile.NamedTemporaryFile("w", prefix="holdfast-", suffix=".log", delete=False) as log:
                traceback.print_exc(file=log)
            kept = f"with what is in {log.name}"
        except OSError as full:
            kept = f"and make room first: where it arose could not be written down ({describe(full)})"
        fail(f"Unexpected failure: {describe(error)}. Please report it, {kept}.")
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
        display(Terminal())


def table(*columns: str) -> Table:
    """A table without lines, whose cells are folded where the terminal is narrow."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def show_line(as_json: bool, facts: Any, text: str) -> None:
    """Print one line at once, also into a pipe: an event of a command that goes on."""
    sys.stdout.write((json.dumps(facts) if as_json else text.translate(_CONTROLS)) + "\n")
    sys.stdout.flush()


def login_name(given: str | None) -> str:
    """Return who acts, in one form. Raises Refused without a login name, and for a name that nobody may have."""
    try:
        name = given or getpass.getuser()
    except (OSError, KeyError):
        raise Refused("There is no login name here; say who acts with --actor.") from None
    try:
        return actor_name(name)
    except ValueError as error:
        message = str(error)
        raise Refused(f"{message[0].upper()}{message[1:]}. Use --actor to name the person or the pipeline.") from None


def who_acts(settings: Settings, given: str | None) -> str:
    """The actor of a command. Raises Refused for one that is given where the token of `api.url` says it."""
    if settings.api.url is None:
        return login_name(given)
    if given is not None:
        raise Refused("The token of api.url says who acts. Leave out --actor, or use the token of who acts.")
    return "whose token it is"  # The API puts its name there.


def duration(text: str | timedelta) -> timedelta:
    """An option's parser, which takes its default too. Raises typer.BadParameter, which is a matter of usage."""
    try:
        return TypeAdapter[timedelta](Duration).validate_python(text)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(message if "duration" in message else f"{text!r} is no time to wait") from None


def name(text: str) -> str:
    """The parser of a model's or version's name. Raises typer.BadParameter."""
    try:
        return TypeAdapter[str](Name).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(
            f"{text!r} is no name: up to 200 letters, digits and . _ : @ + / - with a letter or digit first"
        ) from None


def _said(text: str) -> str:
    try:
        return TypeAdapter[str](Said).validate_python(text)
    except ValidationError:
        raise typer.BadParameter("it is blank, or longer than 1,000 characters; say it in a sentence") from None
