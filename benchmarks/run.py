"""`make bench`: what the guard costs, as ratios to a raw pass-through measured in the same minutes.

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import workload  # noqa: E402

import backends  # noqa: E402  the broker that the tests use
from holdfast.adapters.kafka import read_to_end  # noqa: E402
from holdfast.settings import KafkaSettings  # noqa: E402

PARTITIONS = 4
WARM_UP = 0.25
PATIENCE_S = 300


@dataclass(frozen=True)
class Case:
    """One run: names that no other run uses."""

    bootstrap: str
    source: str
    prefix: str
    directory: Path

    @property
    def group(self) -> str:
        return f"{self.prefix}-group"

    @property
    def approved(self) -> str:
        return f"{self.prefix}.approved"


@dataclass(frozen=True)
class Contender:
    name: str
    command: Callable[[Case], list[str]]
    judges: bool


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


def guard_command(delivery: str) -> Callable[[Case], list[str]]:
    def command(case: Case) -> list[str]:
        config = case.directory / f"{case.prefix}.toml"
        names = "\n".join(
            f'{role} = "{case.prefix}.{role}"'
            for role in ("approved", "blocked", "malformed", "control", "state", "routes", "incidents", "audit")
        )
        config.write_text(
            f'policies = "{case.directory / "policies"}"\n'
            f'[kafka]\nbootstrap_servers = "{case.bootstrap}"\n'
            f'[topics]\npredictions = "{case.source}"\n{names}\n'
            f"[topic_settings]\npartitions = {PARTITIONS}\ncontrol_partitions = 1\n"
            f'[guard]\ngroup = "{case.group}"\ndelivery = "{delivery}"\nhealth_port = 0\n'
        )
        holdfast = [sys.executable, "-m", "holdfast.cli"]
        subprocess.run([*holdfast, "topics", "create", "--config", str(config)], check=True, capture_output=True)
        return [*holdfast, "guard", "--config", str(config)]

    return command


def passthrough_command(case: Case) -> list[str]:
    return [sys.executable, str(HERE / "passthrough.py"), case.bootstrap, case.group, case.source, case.approved]


CONTENDERS = (
    Contender("raw aiokafka pass-through", passthrough_command, judges=False),
    Contender("holdfast guard, exactly once", guard_command("exactly_once"), judges=True),
    Contender("holdfast guard, at least once", guard_command("at_least_once"), judges=True),
)


async def create(bootstrap: str, *topics: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
    finally:
        await admin.close()


async def measure(contender: Contender, case: Case, records: int) -> Measured:
    """Run until the group has committed every record. Raises SystemExit when the process ends before."""
    await create(case.bootstrap, case.approved)
    command = contender.command(case)
    log = case.directory / f"{case.prefix}.log"
    admin = AIOKafkaAdminClient(bootstrap_servers=case.bootstrap)
    await admin.start()
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)  # noqa: ASYNC220  nothing else runs meanwhile
    tree = psutil.Process(process.pid)
    warm: tuple[float, int, float] | None = None
    rss = 0
    try:
        while True:
            await asyncio.sleep(0.05)
            if process.poll() is not None or time.monotonic() - started > PATIENCE_S:
                raise SystemExit(f"{contender.name} did not finish; the end of its log:\n{log.read_text()[-2000:]}")
            done = await committed(admin, case)
            now, cpu = time.monotonic(), sum(tree.cpu_times()[:2])
            if warm is None and done >= WARM_UP * records:
                warm = (now, done, cpu)
            if done >= records:
                rss = tree.memory_info().rss
                break
    finally:
        process.kill()
        process.wait()
        await admin.close()
    assert warm is not None
    if done == warm[1]:
        raise SystemExit(f"{contender.name} finished between two looks; take more records.")
    return Measured(
        contender.name,
        records,
        await count(case.bootstrap, case.approved),
        (done - warm[1]) / (now - warm[0]),
        done / (now - started),
        (cpu - warm[2]) / (done - warm[1]) * 100_000,
        rss / 1e6,
    )


async def committed(admin: AIOKafkaAdminClient, case: Case) -> int:
    """How many records of the source the group is through with."""
    try:
        offsets = await admin.list_consumer_group_offsets(case.group)
    except GroupCoordinatorNotAvailableError:
        return 0  # a fresh broker is still making the topic of offsets
    return sum(known.offset for tp, known in offsets.items() if tp.topic == case.source and known.offset > 0)


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


async def compare(bootstrap: str, args: argparse.Namespace, directory: Path) -> list[Measured]:
    workload.write_policy(directory / "policies")
    stamp = f"bench{int(time.time())}"
    source = f"{stamp}.source"
    await create(bootstrap, source)
    await workload.fill(bootstrap, source, PARTITIONS, args.records, size=args.size, blocked=args.blocked)
    results: list[Measured] = []
    expected: int | None = None
    for number in range(args.rounds):
        for position, contender in enumerate(c for c in CONTENDERS if not args.only or args.only in c.name):
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, backends.open_kafka() as broker:
        results = asyncio.run(compare(broker.bootstrap, args, Path(directory)))
        kind = backends.choose_kafka().name
    rows = summarise(results)
    machine = {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "kafka": kind,
    }
    show(rows, Console())
    report = {
        "machine": machine,
        "arguments": vars(args),
        "summary": rows,
        "runs": [asdict(result) for result in results],
    }
    target = HERE / "results" / f"throughput-{args.size}b-{args.blocked:g}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {target.relative_to(HERE.parent)}.")


if __name__ == "__main__":
    main()
