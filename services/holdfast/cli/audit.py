"""`holdfast audit`: compare every prediction with its verdict."""

import time
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.services import start
from holdfast.cli.terminal import ConfigOption, InputOption, JsonOption, duration, perform, run, show, tell
from holdfast.settings import load_settings


def audit(
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Read to the end, print what was found, and end.")] = False,
    since: Annotated[
        timedelta | None,
        typer.Option(help="With --once: only what came in that time, such as 1h.", metavar="TIME", parser=duration),
    ] = None,
    input_name: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every prediction with its verdict, and judge what was approved again, independently of the guards.

    With --once the exit code is 1 when anything is wrong.
    """
    if not once:
        if since or as_json:
            raise typer.BadParameter("--since and --json go with --once")
        start("audit", config, input_name)
        return
    from holdfast.adapters.service import configure_logging
    from holdfast.verify.service import Findings, audit_once

    def action() -> Findings:
        settings = load_settings(config, input_name=input_name)
        configure_logging(settings.log_format)
        return run(audit_once(settings, since, tell))

    began = time.monotonic()
    found = perform(action)
    seconds = time.monotonic() - began

    def display(console: Console) -> None:
        table = Table("violation", "count", "for instance")
        for kind, (count, example) in found.rows().items():
            table.add_row(kind, Text(str(count), style="bold red" if count else "green"), Text(example))
        console.print(table)
        console.print(f"{found.checked} predictions compared in {seconds:.0f} s; {found.released} released by people.")
        if found.unjudged:
            console.print(f"{found.unjudged} not judged again: their policy, or their tally, is not known here.")
        if found.uncompared:
            console.print(f"{found.uncompared} not compared: too many predictions and verdicts waited for each other.")

    show(as_json, found.facts(), display)
    if found.violations.total():
        raise typer.Exit(1)
