"""`holdfast doctor`, as text or JSON."""

from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.terminal import ConfigOption, JsonOption, perform, run, show
from holdfast.settings import load_settings


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at the whole installation, and say what to do about each thing that is wrong.

    Exit code 1 when something has failed.
    """
    from holdfast.cli.doctor import Diagnosis, Health, diagnose

    async def look() -> list[Diagnosis]:
        return [diagnosis async for diagnosis in diagnose(load_settings(config))]

    found = perform(lambda: run(look()))

    def display(console: Console) -> None:
        marks = {
            Health.OK: Text("ok", style="green"),
            Health.WARNING: Text("look", style="yellow"),
            Health.FAILED: Text("bad", style="bold red"),
        }
        table = Table.grid(padding=(0, 2))
        for one in found:
            text = Text(one.finding + (f". {one.advice}" if one.advice else ""))
            table.add_row(marks[one.health], Text(one.area, style="bold"), text)
        console.print(table)

    show(as_json, [asdict(one) for one in found], display)
    if any(one.health is Health.FAILED for one in found):
        raise typer.Exit(1)
