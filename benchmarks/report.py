"""The report: each part of it is run and stored by itself, and the whole is put together from what is stored."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LIMITS = HERE / "limits.md"

Row = dict[str, Any]
"""One run of one contender, as it is stored. `round` names the runs that were made in the same minutes."""


@dataclass(frozen=True)
class Part:
    """One section of the report."""

    heading: str
    text: str
    """What was run, for the reader of the table."""
    minutes: Callable[[int], float]
    """How long so many rounds take."""
    run: Callable[[str, int, Path], Awaitable[list[Row]]]
    """Given a bootstrap server, how many rounds, and an empty directory."""
    show: Callable[[Sequence[Row]], str]
    """Markdown, from all runs."""


def markdown(headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text, and the others numbers."""
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (headings, ruler, *lines))


def median(rows: Sequence[Row], figure: str) -> float:
    return statistics.median(row[figure] for row in rows)


def store(name: str, rows: list[Row], rounds: int, kafka: str, *, add: bool) -> None:
    """Keep the runs of a part; with `add` beside those that are there."""
    path = RESULTS / f"{name}.json"
    if add and path.exists():
        before = json.loads(path.read_text())
        rows, rounds = before["runs"] + rows, before["rounds"] + rounds
    machine = (
        f"{platform.system()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB; "
        f"Python {platform.python_version()}; {kafka}"
    )
    stored = {
        "machine": machine,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "rounds": rounds,
        "runs": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(stored, indent=1) + "\n")


def _commit() -> str:
    """What was measured; `-dirty` where it differs from its commit. The results themselves change with every part."""
    commit = _git("describe", "--always")
    return f"{commit}-dirty" if _git("status", "--porcelain", "--", ":/", f":(exclude){RESULTS.name}") else commit


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


def write(parts: Mapping[str, Part]) -> Path:
    """Put report.md together from the parts that are stored, and what limits.md says."""
    lines = ["# Benchmarks", "", "Written by `make bench`. Figures are medians over the rounds.", ""]
    for name, part in parts.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        stored = json.loads(path.read_text())
        rounds = "one round" if stored["rounds"] == 1 else f"{stored['rounds']} rounds"
        ran = f"{stored['date']}, commit {stored['commit'] or 'unknown'}, {rounds}. {stored['machine']}."
        lines += [f"## {part.heading}", "", part.text, "", part.show(stored["runs"]), "", ran, ""]
    if LIMITS.exists():
        lines += [LIMITS.read_text()]
    target = RESULTS / "report.md"
    target.write_text("\n".join(lines).rstrip() + "\n")
    return target
