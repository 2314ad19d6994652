"""Holdfast under a steady load for long, with a rebalance every minute: nothing may grow.

    make soak ARGS="--minutes 60 --rate 3500"

A second guard joins, works for a minute, and leaves for the next. Of the guard, the switch and the checker that stay,
resident memory, open files, threads and the lag are sampled every few seconds. The slope of each is the median of the
slopes between all pairs of samples (Theil and Sen), so that neither a rebalance nor a collection of garbage decides it.
At the end the checker compares every prediction with its verdict. Exit code 1 when something grows, or the checker
finds anything.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

import backends  # noqa: E402  the broker that the tests use
from faults.campaign import Campaign, campaign  # noqa: E402

EVERY = 3.0
"""Seconds between two samples."""
GROWTH = {"rss_mb": 0.10, "open_files": 0.10, "threads": 0.10}
"""By how much of its median a figure may seem to grow in the whole run; an unbounded leak is far beyond it."""
NOISE = {"rss_mb": 5.0, "open_files": 3.0, "threads": 2.0}
"""And by how much in any case."""


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Growth a second."""
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(samples, 2))


async def sample(run: Campaign) -> dict[str, float]:
    """What each of the three that stay holds now, and how many predictions wait."""
    found: dict[str, float] = {}
    assert run.auditor is not None
    for worker in (run.guards[0], run.switches[0], run.auditor):
        process = psutil.Process(worker.pid)
        found[f"{worker.name} rss_mb"] = process.memory_info().rss / 2**20
        found[f"{worker.name} open_files"] = process.num_fds()
        found[f"{worker.name} threads"] = process.num_threads()
    ends, committed = await run._ends(), await run.stack.committed()
    found["lag"] = sum(ends.values()) - sum(committed.values())
    return found


async def soak(minutes: float, rate: int) -> dict[str, Any]:
    samples: list[tuple[float, dict[str, float]]] = []
    folder = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    with (
        backends.private_kafka({"group.min.session.timeout.ms": "1000"}) as kafka,
        backends.RedisServer() as redis,
    ):
        async with campaign(kafka, redis.url, folder, guards=2, rate=rate, calm=True) as run:
            await run.stack.command("pricing", "fence", "bad-0")
            # The first minute fills caches and memories.
            began, due = time.monotonic(), time.monotonic() + 60
            warm = began + min(60.0, minutes * 12)
            joined, rebalances = True, 0
            while time.monotonic() < began + minutes * 60:
                if time.monotonic() > due:
                    due += 60
                    rebalances += 1
                    await asyncio.to_thread(run.guards[1].stop if joined else run.guards[1].start)
                    joined = not joined
                if time.monotonic() > warm:
                    samples.append((time.monotonic() - began, await sample(run)))
                await asyncio.sleep(EVERY)
            sent = run.load.sent
        facts = run.facts
    return {"samples": samples, "seconds": minutes * 60, "rebalances": rebalances, "sent": sent, "facts": facts}


def judge(done: dict[str, Any], rate: int) -> tuple[list[str], list[str]]:
    """Rows of the report, and what is wrong."""
    rows, wrong = [], []
    samples = done["samples"]
    for name in samples[0][1]:
        series = [(at, values[name]) for at, values in samples]
        middle = statistics.median(value for _, value in series)
        grown = slope(series) * done["seconds"]
        third = max(1, len(series) // 3)
        first, last = (statistics.median(v for _, v in part) for part in (series[:third], series[-third:]))
        rows.append(f"| {name} | {first:,.1f} | {last:,.1f} | {max(v for _, v in series):,.1f} | {grown:+,.1f} |")
        figure = name.split()[-1]
        # A lag that grows never comes back below a few seconds' worth.
        limit = 10 * rate if name == "lag" else max(GROWTH[figure] * middle, NOISE[figure])
        if grown > limit:
            wrong.append(f"{name} grew by {grown:,.1f} in the run; up to {limit:,.1f} would be noise")
    return rows, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Run Holdfast for long, and see that nothing grows.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=1000, help="predictions a second: half of what the machine can do")
    given = parser.parse_args()
    done = asyncio.run(soak(given.minutes, given.rate))
    rows, wrong = judge(done, given.rate)
    report = [
        "# Soak",
        "",
        (
            f"Written by `make soak` on {datetime.now(UTC):%Y-%m-%d}: {given.minutes:g} minutes, "
            f"{done['sent']:,} predictions ({done['sent'] / done['seconds']:,.0f} a second; {given.rate:,} wanted), "
            f"{done['rebalances']} rebalances, load average {os.getloadavg()[1]:.1f} at the end."
        ),
        f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}, Apache Kafka 4.1.0.",
        "",
        "Medians of the first and the last third; growth by the median slope, over the whole run. Each time the second",
        "guard is a new process: while it reads its memory back, its partitions wait, and the lag is highest.",
        "",
        "| figure | first | last | highest | growth |",
        "|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"The checker compared {done['facts']['checked']:,} predictions: "
        + ", ".join(f"{count} {kind}" for kind, count in done["facts"]["violations"].items())
        + ".",
        "",
        f"Nothing grows: {'no; ' + '; '.join(wrong) if wrong else 'yes'}.",
        "",
    ]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "soak.md").write_text("\n".join(report))
    (results / "soak.json").write_text(json.dumps(done, indent=1) + "\n")
    print("\n".join(report))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
