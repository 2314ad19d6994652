"""What the person who watches the demo sees: one screen while it runs, and a summary that stays."""

import asyncio
import contextlib
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.cli.demo.run import BAD, GOOD, Watch

_ROUTE_STYLE = {GOOD: "bold green", BAD: "bold red"}


async def watch_live(watch: Watch, console: Console) -> None:
    """Show `watch` until cancelled: redrawn on a terminal, else a line for each thing that happens."""
    if not console.is_terminal:
        await _print_lines(watch, console)
        return
    with Live(_screen(watch), console=console, refresh_per_second=10, transient=True) as live:
        while True:
            live.update(_screen(watch))
            await asyncio.sleep(0.1)


async def _print_lines(watch: Watch, console: Console) -> None:
    stage, shown = "", 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            if watch.stage != stage:
                stage = watch.stage
                console.print(f"[{stage}]", markup=False)
            for seconds, text in watch.timeline[shown:]:
                console.print(f"{seconds:6.1f} s  {text}", markup=False)
            shown = len(watch.timeline)
            await asyncio.sleep(0.1)


def _screen(watch: Watch) -> Panel:
    route = Text.assemble(
        "route in Redis  ", (watch.version or "nothing", _ROUTE_STYLE.get(watch.version or "", "bold yellow"))
    )
    return Panel(
        Group(
            Text(watch.stage, style="bold"),
            Text(""),
            route,
            Text(""),
            _counts(watch),
            Text(""),
            _timeline(watch),
        ),
        title="Holdfast: diamond prices, live",
        subtitle=watch.servers,
        border_style="cyan",
        padding=(1, 2),
    )


def _counts(watch: Watch) -> Table:
    table = Table("version", box=box.SIMPLE_HEAD, padding=(0, 2))
    for heading in ("served", "approved", "blocked"):
        table.add_column(heading, justify="right")
    for version in (GOOD, BAD):
        table.add_row(
            Text(version, style=_ROUTE_STYLE[version]),
            f"{watch.produced[version]:,}",
            Text(f"{watch.approved[version]:,}", style="green" if version == GOOD else ""),
            Text(f"{watch.blocked[version]:,}", style="red" if watch.blocked[version] else "dim"),
        )
    return table


def _timeline(watch: Watch) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for seconds, text in watch.timeline[-8:]:
        table.add_row(f"{seconds:.1f} s", Text(text))
    return table


def summarise(watch: Watch, failures: Sequence[str], console: Console) -> None:
    """What stays on the screen at the end."""
    parts: list[Text | Table] = [_counts(watch)]
    if watch.evidence:
        evidence = Table(
            "stone", "sold for", "offered for", "failed", box=box.SIMPLE_HEAD, title="Evidence", title_justify="left"
        )
        for one in watch.evidence:
            evidence.add_row(
                one["stone"],
                f"${one['sold_for_usd']:,.0f}",
                Text(f"${one['offered_for_usd']:,.2f}", style="red"),
                ", ".join(one["failed"]),
            )
        parts += [evidence, Text("")]
    line = Table.grid(padding=(0, 2))
    line.add_column(style="dim")
    line.add_column()
    block, switch = watch.milliseconds(watch.first_block_seen_at), watch.milliseconds(watch.switched_at)
    if block is not None:
        line.add_row("first bad price in Kafka → blocked", f"{block:,.0f} ms, as a consumer saw it")
    if switch is not None:
        line.add_row(
            f"first bad price in Kafka → {GOOD} serves", f"{switch:,.0f} ms, as the model server saw it in Redis"
        )
    line.add_row(f"outputs of {BAD} that were approved", Text(f"{watch.approved[BAD]:,}", style="bold"))
    line.add_row("the blocked offers would have cost", Text(f"${watch.saved:,.0f}", style="bold"))
    if watch.incident is not None:
        incident = watch.incident
        checks = ", ".join(f"{check} {count:,}" for check, count in incident.blocked_by_check.items())
        line.add_row("incident", f"{incident.dedup_key}: {incident.action.value} to {incident.routed_to}")
        line.add_row("its evidence", f"{incident.blocked:,} of {incident.seen:,} blocked ({checks})")
    parts.append(line)
    if failures:
        parts += [Text(""), *(Text(failure, style="bold red") for failure in failures)]
    console.print(
        Panel(
            Group(*parts),
            title=Text("Holdfast failed", style="bold red") if failures else Text("Holdfast held", style="bold green"),
            subtitle=watch.servers,
            border_style="red" if failures else "green",
            padding=(1, 2),
        )
    )
