"""What a prediction costs, and what the guard holds in memory, as one thing grows and the others stay."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib
import workload
from contenders import Contender, guard_command
from matplotlib import pyplot
from report import RESULTS, Part, Row, markdown, median
from throughput import compare, warm_up
from workload import CHECKS, Traffic

AXES: dict[str, tuple[float, ...]] = {
    "checks": (1, 4, 8, 16, 32),
    "models": (1, 10, 100, 1000),
    "entities": (1_000, 10_000, 100_000, 1_000_000),
    "size": (250, 1_000, 16_000, 64_000),
    "blocked": (0.0, 0.1, 0.5, 1.0),
}
LABELS = {"size": "bytes of an event", "blocked": "share blocked"}
USUAL: dict[str, Any] = {"checks": len(CHECKS), **asdict(Traffic())}
RECORDS = 800_000
BYTES = 400_000_000
"""At most so many in one run."""


def setting(axis: str, at: float) -> dict[str, Any]:
    """All as usual but for one thing."""
    return USUAL | {axis: at}


async def _run(bootstrap: str, rounds: int, directory: Path) -> list[Row]:
    settings: list[dict[str, Any]] = []
    for axis, values in AXES.items():
        settings += [setting(axis, at) for at in values if setting(axis, at) not in settings]
    rows: list[Row] = []
    await warm_up(bootstrap, directory)
    for number, chosen in enumerate(settings):
        traffic = Traffic(**{name: value for name, value in chosen.items() if name != "checks"})
        policies = f"policies-{number}"
        # The eight kinds of check, and again.
        workload.write_policies(directory / policies, traffic, islice(cycle(CHECKS), chosen["checks"]))
        name = ", ".join(f"{value:,} {name}" for name, value in chosen.items() if value != USUAL[name])
        guard = Contender(name or "as usual", guard_command("exactly_once", policies))
        # So many that every entity has its turn.
        records = min(max(RECORDS, traffic.entities * 3 // 2), BYTES // traffic.size)
        measured = await compare((guard,), traffic, records, bootstrap, rounds, directory)
        rows += [{**row, "setting": chosen} for row in measured]
    return rows


def _show(rows: Sequence[Row]) -> str:
    """The table; the picture is drawn beside the report."""
    matplotlib.use("agg")
    drawing, plots = pyplot.subplots(2, len(AXES), figsize=(4 * len(AXES), 7), sharey="row", layout="constrained")
    lines: list[list[str]] = []
    for column, (axis, values) in enumerate(AXES.items()):
        runs = [[row for row in rows if row["setting"] == setting(axis, at)] for at in values]
        costs = [median(some, "cpu_s_per_100k") * 10 for some in runs]
        memory = [median(some, "rss_mb") for some in runs]
        ticks = [f"{at:.0%}" if axis == "blocked" else f"{at:,}" for at in values]
        label = LABELS.get(axis, axis)
        lines += [
            [label, tick, f"{cost:.1f}", f"{mb:,.0f}"] for tick, cost, mb in zip(ticks, costs, memory, strict=True)
        ]
        for plot, figures in zip(plots[:, column], (costs, memory), strict=True):
            plot.plot(values, figures, marker="o")
            plot.set_xscale("linear" if axis == "blocked" else "log")
            plot.set_xticks(values, ticks, rotation=45)
            plot.minorticks_off()
            plot.set_xlabel(label)
            plot.grid(alpha=0.3)
    plots[0, 0].set(ylabel="CPU µs a prediction", yscale="log")
    plots[1, 0].set(ylabel="MB resident", ylim=(0, None))
    RESULTS.mkdir(exist_ok=True)
    drawing.savefig(RESULTS / "growth.png", dpi=80)
    pyplot.close(drawing)
    headings = ("what grows", "to", "CPU µs a prediction", "MB resident")
    return f"![CPU and memory as one thing grows](growth.png)\n\n{markdown(headings, lines)}"


GROWTH = Part(
    "Growth",
    """\
The guard, exactly once. What does not grow stays at eight checks, one model, 100,000 entities (each with a floor of its
own and, once seen, a last value), 250 bytes, and nothing blocked. More checks than eight are the same eight again.""",
    lambda rounds: 2.7 + 1.6 * rounds,
    _run,
    _show,
)
