"""`make bench`: throughput and latency of the guard, as ratios to a raw pass-through measured in the same minutes.

Every contender is a process of its own that reads one topic, filled beforehand, in a group of its own; its progress
is what the group has committed, and its processor time is what the operating system says. The first quarter
of the records warms it up and does not count. Contenders take turns, and the medians of the rounds are compared.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from aiokafka import TopicPartition
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import latency  # noqa: E402
import workload  # noqa: E402
from contenders import CONTENDERS, PARTITIONS, Case, Contender, admin, committed, create, running  # noqa: E402

import backends  # noqa: E402  the broker that the tests use
from holdfast.adapters.kafka import read_to_end  # noqa: E402
from holdfast.settings import KafkaSettings  # noqa: E402

WARM_UP = 0.25


@dataclass(frozen=True)
class Measured:
    """One run of one contender."""

    contender: str
    records: int
    approved: int
    per_second: float
    """Records a second, warmed up."""
    cold_per_second: float
    """Records a second, from the start of the process."""
    cpu_s_per_100k: float
    """Processor seconds for 100,000 records, warmed up."""
    rss_mb: float


async def measure(contender: Contender, case: Case, records: int) -> Measured:
    """Run until the group has committed every record. Raises SystemExit when the process ends before."""
    warm: tuple[float, int, float] | None = None
    async with admin(case.bootstrap) as client, running(contender, case) as process:
        while True:
            await asyncio.sleep(0.05)
            process.must_run()
            done = await committed(client, case)
            now, cpu = time.monotonic(), process.cpu_seconds()
            if warm is None and done >= WARM_UP * records:
                warm = (now, done, cpu)
            if done >= records:
                rss = process.rss_mb()
                break
    assert warm is not None
    if done == warm[1]:
        raise SystemExit(f"{contender.name} finished between two looks; take more records.")
    return Measured(
        contender.name,
        records,
        await count(case.bootstrap, case.approved),
        (done - warm[1]) / (now - warm[0]),
        done / (now - process.started),
        (cpu - warm[2]) / (done - warm[1]) * 100_000,
        rss,
    )


async def count(bootstrap: str, topic: str) -> int:
    """How many committed records a topic has."""
    total = 0

    def add(records: object) -> None:
        nonlocal total
        total += len(records)  # type: ignore[arg-type]

    await read_to_end(
        KafkaSettings(bootstrap_servers=bootstrap), [TopicPartition(topic, p) for p in range(PARTITIONS)], add
    )
    return total


def chosen(args: argparse.Namespace) -> list[Contender]:
    return [contender for contender in CONTENDERS if not args.only or args.only in contender.name]


async def compare(bootstrap: str, args: argparse.Namespace, directory: Path) -> list[Measured]:
    workload.write_policy(directory / "policies")
    stamp = f"bench{int(time.time())}"
    source = f"{stamp}.source"
    await create(bootstrap, source)
    await workload.fill(bootstrap, source, PARTITIONS, args.records, size=args.size, blocked=args.blocked)
    results: list[Measured] = []
    expected: int | None = None
    for number in range(args.rounds):
        for position, contender in enumerate(chosen(args)):
            case = Case(bootstrap, source, f"{stamp}.{number}.{position}", directory)
            measured = await measure(contender, case, args.records)
            if contender.judges:
                expected = measured.approved if expected is None else expected
                if measured.approved != expected:
                    raise SystemExit(
                        f"{contender.name} approved {measured.approved}, another {expected}: no comparison."
                    )
            print(f"round {number + 1}: {measured.contender}: {measured.per_second:,.0f}/s", file=sys.stderr)
            results.append(measured)
    return results


async def compare_latency(bootstrap: str, args: argparse.Namespace, directory: Path) -> list[latency.Latency]:
    """Every contender at every rate, in turn."""
    results: list[latency.Latency] = []
    for rate in args.rates:
        for number in range(args.rounds):
            for position, contender in enumerate(chosen(args)):
                prefix = f"latency{int(time.time())}.{rate}.{number}.{position}"
                results.append(await latency.measure(contender, bootstrap, prefix, directory, rate))
                print(f"{rate}/s: {contender.name}: p50 {results[-1].p50:.1f} ms", file=sys.stderr)
    return results


def show_latency(rows: list[dict[str, float | str]], console: Console) -> None:
    table = Table("a second", "contender", title="From produce to a read_committed consumer; medians")
    for heading in ("p50 ms", "p99 ms", "of a core"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = f"{row['p50']:.1f}", f"{row['p99']:.1f}", f"{row['cpu_share']:.2f}"
        table.add_row(f"{row['rate']:,}", str(row["contender"]), *figures)
    console.print(table)


def summarise(results: list[Measured]) -> list[dict[str, float | str]]:
    """Medians over the rounds, and ratios to the first contender."""
    rows: list[dict[str, float | str]] = []
    for name in dict.fromkeys(result.contender for result in results):
        mine = [result for result in results if result.contender == name]
        numbers = {
            key: statistics.median(getattr(result, key) for result in mine)
            for key in ("per_second", "cold_per_second", "cpu_s_per_100k", "rss_mb", "approved")
        }
        rows.append({"contender": name, **numbers})
    for row in rows:
        row["ratio"] = float(row["per_second"]) / float(rows[0]["per_second"])
    return rows


def show(rows: list[dict[str, float | str]], console: Console) -> None:
    table = Table("contender", title="Throughput, warmed up; medians")
    for heading in ("records/s", "of pass-through", "from cold", "CPU s / 100k", "approved", "MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["contender"]),
            f"{row['per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['cold_per_second']:,.0f}",
            f"{row['cpu_s_per_100k']:.2f}",
            f"{row['approved']:,.0f}",
            f"{row['rss_mb']:.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--size", type=int, default=250, help="bytes of an event")
    parser.add_argument("--blocked", type=float, default=0.0, help="share of events that fail a check")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="contenders whose name has this")
    parser.add_argument("--rates", type=int, nargs="*", default=[500, 2000, 10_000], help="of the latency runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, backends.open_kafka() as broker:
        results = asyncio.run(compare(broker.bootstrap, args, Path(directory)))
        latencies = asyncio.run(compare_latency(broker.bootstrap, args, Path(directory)))
        kind = backends.choose_kafka().name
    rows = summarise(results)
    machine = {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "kafka": kind,
    }
    show(rows, Console())
    latency_rows = latency.summarise(latencies)
    show_latency(latency_rows, Console())
    report = {
        "machine": machine,
        "arguments": vars(args),
        "summary": rows,
        "runs": [asdict(result) for result in results],
        "latency": latency_rows,
        "latency_runs": [asdict(result) for result in latencies],
    }
    target = HERE / "results" / f"throughput-{args.size}b-{args.blocked:g}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {target.relative_to(HERE.parent)}.")


if __name__ == "__main__":
    main()
