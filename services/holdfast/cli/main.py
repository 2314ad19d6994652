"""The command line. Exit codes: 0 done, 1 refused or failed, 2 usage.

A command is imported when it runs: its line of help stands in `COMMANDS`, so that `--help` imports nothing else.
"""

import contextlib
import importlib
import sys
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from holdfast.interrupts import forgiving_output, leave, leave_in_order, on_interrupt


class Place(NamedTuple):
    """Where a command is: a function, or a `Typer` of several commands."""

    module: str
    name: str
    summary: str
    """The first line of its help."""


COMMANDS = {
    "guard": Place(
        "holdfast.cli.services",
        "guard",
        "Check predictions and publish verdicts; run as many as there are partitions to share.",
    ),
    "switch": Place(
        "holdfast.cli.services", "switch", "Decide routes from tallies and commands, and keep Redis in line."
    ),
    "audit": Place(
        "holdfast.cli.audit",
        "audit",
        "Compare every prediction with its verdict, and judge what was approved again, independently of the guards.",
    ),
    "notify": Place(
        "holdfast.cli.services",
        "notify",
        "Tell Alertmanager of every open incident, until it is resolved; two may run at once.",
    ),
    "up": Place(
        "holdfast.cli.services",
        "up",
        "Run guard, switch, notify and api together on this machine; one ending ends the others.",
    ),
    "demo": Place(
        "holdfast.cli.demo.command",
        "demo",
        "See it work on real prices: a bad version is promoted, blocked, and switched back from. Takes half a minute.",
    ),
    "check": Place(
        "holdfast.cli.check",
        "check",
        "Validate configuration and policies, and print them with every default filled in.",
    ),
    "doctor": Place(
        "holdfast.cli.doctor_command",
        "doctor",
        "Look at the whole installation, and say what to do about each thing that is wrong.",
    ),
    "schemas": Place(
        "holdfast.cli.schemas", "schemas", "Write the JSON Schema of every message, and the AsyncAPI document."
    ),
    "api": Place("holdfast.cli.tokens", "api_app", "Serve the HTTP API and the console page; make its tokens."),
    "route": Place("holdfast.cli.route", "route_app", "See and change which version of a model serves."),
    "incidents": Place("holdfast.cli.route", "incidents_app", "See, acknowledge and resolve incidents."),
    "blocked": Place(
        "holdfast.cli.route", "blocked_app", "See what was blocked, and release what should not have been."
    ),
    "policy": Place("holdfast.cli.policies", "policy_app", "Undo what a wrong policy did."),
    "shadow": Place("holdfast.cli.shadow", "shadow_app", "See what checks in shadow would have done."),
    "reference": Place(
        "holdfast.cli.references", "reference_app", "See and set what entities' outputs are held against."
    ),
    "malformed": Place(
        "holdfast.cli.malformed",
        "malformed_app",
        "See records that could not be decoded, and judge them again once their mapping is right.",
    ),
    "topics": Place("holdfast.cli.topics", "topics_app", "The topics in Kafka."),
    "offsets": Place("holdfast.cli.offsets", "offsets_app", "See and set where the guard and the switch go on."),
    "acls": Place("holdfast.cli.acls", "acls_app", "Print what each service and its users must be allowed to do."),
}


class LazyGroup(TyperGroup):
    """Imports a command when it is run, and not to list it."""

    _lists = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        if self._lists:
            return TyperCommand(cmd_name, help=place.summary)
        found = getattr(importlib.import_module(place.module), place.name)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            single = typer.Typer(add_completion=False)
            single.command()(found)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command

    def format_help(self, *arguments: Any) -> None:
        self._lists = True
        try:
            super().format_help(*arguments)
        finally:
            self._lists = False


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"holdfast {version('holdfast-guard')}\n")
        raise typer.Exit


@app.callback()
def everything(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Checks every live model prediction, blocks the bad ones, and switches back to the last good version."""


def main() -> None:
    on_interrupt(leave_in_order)
    forgiving_output()
    try:
        app()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        on_interrupt(leave)  # What is left is the end of the interpreter.
