"""Ask a person before a command that does more than its name says; warn a script."""

import sys
from typing import Annotated

import typer

from holdfast.cli.terminal import Refused, Terminal
from holdfast.core.consequences import Consequence

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask, also where the command does more than its name says.")
]


def confirm(what: Consequence | None, *, yes: bool) -> None:
    """Return where the command may be sent. Raises Refused where a person says no.

    Only somebody at a terminal is asked. Others get the sentence on standard error, and the command is sent.
    """
    if what is None:
        return
    Terminal(stderr=True, soft_wrap=True).print(f"Warning: {what.text}")
    at_a_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if what.ask and at_a_terminal and not yes and not typer.confirm("Go on?", err=True):
        raise Refused("Nothing was done.")
