"""How many records a second, at how much processor time.

Every contender reads one topic, filled beforehand, in a group of its own; its progress is what the group has
committed, and its processor time is what the operating system says of its processes. The first half of the
records warms it up and does not count. Contenders take turns, so that each round compares what was measured in the
same minutes.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import workload
from aiokafka import ConsumerRecord, TopicPartition
from contenders import (
    GUARD,
    GUARD_AT_LEAST_ONCE,
    GUARD_OF_FIVE,
    PARTITIONS,
    PASSTHROUGH,
    PLAIN_PASSTHROUGH,
    TWO_GUARDS,
    TWO_GUARDS_OF_FIVE,
    Case,
    Contender,
    admin,
    committed,
    create,
    remove,
    running,
)
from peers import KAFKA_STREAMS, PEERS, THROUGHPUT_COMMIT_MS
from report import Part, Row, markdown, median
from workload import Traffic

from holdfast.kafka.reading import read_to_end
from holdfast.settings import KafkaSettings

RECORDS = 2_000_000
MIXED_RECORDS = 600_000
SHARES = (0.0, 0.01, 0.1, 1.0)
"""Of blocked events, in mixed traffic."""
WARM_UP = 0.5
PROOF_RECORDS = 10_000
PROOF_TRAFFIC = Traffic(blocked=0.1, defects=0.08)
PROOF_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Measured:
    """One run of one contender."""

    contender: str
    records: int
    per_second: float
    """Records a second, warmed up."""
    cold_per_second: float
    """Records a second, from the start of the process."""
    cpu_s_per_100k: float
    """Processor seconds for 100,000 records, warmed up."""
    rss_mb: float
    """At the end."""


async def measure(contender: Contender, case: Case, records: int) -> Measured:
    """Run until the group has committed so many records. Raises SystemExit when the process ends before."""
    warm: tuple[float, int, float] | None = None
    async with admin(case.bootstrap) as client, running(contender, case) as process:
        while True:
            # Seldom, for looking takes processor time too.
            await asyncio.sleep(0.2)
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
    await remove(case.bootstrap, case.approved, case.blocked)
    return Measured(
        contender.name,
        records,
        (done - warm[1]) / (now - warm[0]),
        done / (now - process.started),
        (cpu - warm[2]) / (done - warm[1]) * 100_000,
        rss,
    )


async def compare(
    contenders: Sequence[Contender], traffic: Traffic, records: int, bootstrap: str, rounds: int, directory: Path
) -> list[Row]:
    """Every contender in every round, in turn."""
    stamp = f"bench{int(time.time())}"
    source = f"{stamp}.source"
    await create(bootstrap, source)
    await workload.fill(bootstrap, source, PARTITIONS, records, traffic)
    rows: list[Row] = []
    for number in range(rounds):
        for position, contender in enumerate(contenders):
            case = Case(bootstrap, source, f"{stamp}.{number}.{position}", directory)
            measured = await measure(contender, case, min(records, contender.most or records))
            rows.append({"round": f"{stamp}.{number}", "blocked": traffic.blocked, **asdict(measured)})
            print(f"round {number + 1}: {contender.name}: {measured.per_second:,.0f}/s", file=sys.stderr)
    await remove(bootstrap, source)
    return rows


async def warm_up(bootstrap: str, directory: Path) -> None:
    """Of the broker: whoever comes first would pay for it."""
    await compare((PASSTHROUGH,), Traffic(), MIXED_RECORDS, bootstrap, 1, directory)


async def prove(contenders: Sequence[Contender], bootstrap: str, directory: Path) -> None:
    """See that all give each event the same verdict. Raises SystemExit where two differ: there is no comparison."""
    stamp = f"proof{int(time.time())}"
    source = f"{stamp}.source"
    await create(bootstrap, source)
    await workload.fill(bootstrap, source, PARTITIONS, PROOF_RECORDS, PROOF_TRAFFIC)
    first: dict[str, list[int]] = {}
    for position, contender in enumerate(contenders):
        verdicts = await _verdicts(contender, Case(bootstrap, source, f"{stamp}.{position}", directory))
        first = first or verdicts
        for verdict, numbers in verdicts.items():
            if numbers != first[verdict]:
                odd = sorted(set(numbers) ^ set(first[verdict]))
                what = f"event {odd[0]} and {len(odd) - 1} others" if odd else "the same events, some more than once"
                raise SystemExit(
                    f"{contender.name} and {contenders[0].name} differ in what is {verdict}: {what}. No comparison."
                )
    counts = ", ".join(f"{len(numbers):,} {verdict}" for verdict, numbers in first.items())
    print(f"all {len(contenders)} agree on {PROOF_RECORDS:,} events: {counts}", file=sys.stderr)


async def _verdicts(contender: Contender, case: Case) -> dict[str, list[int]]:
    """The numbers of the events that it approved and blocked, in order, once it is through with them."""
    async with admin(case.bootstrap) as client, running(contender, case) as process:
        while await committed(client, case) < PROOF_RECORDS:
            process.must_run()
            await asyncio.sleep(0.2)
        # What it has committed may become visible a little later.
        deadline = time.monotonic() + PROOF_PATIENCE_S
        while True:
            approved, blocked = (
                await _numbers(case.bootstrap, case.approved),
                await _numbers(case.bootstrap, case.blocked),
            )
            if len(approved) + len(blocked) >= PROOF_RECORDS or time.monotonic() > deadline:
                return {"approved": approved, "blocked": blocked}


async def _numbers(bootstrap: str, topic: str) -> list[int]:
    found: list[int] = []

    def add(records: Sequence[ConsumerRecord]) -> None:
        found.extend(workload.number_of(record.value) for record in records)

    await read_to_end(
        KafkaSettings(bootstrap_servers=bootstrap), [TopicPartition(topic, p) for p in range(PARTITIONS)], add
    )
    return sorted(found)


async def _run_throughput(bootstrap: str, rounds: int, directory: Path) -> list[Row]:
    workload.write_policies(directory / "policies", Traffic())
    workload.write_policies(directory / "five-checks", Traffic(), workload.FIVE)
    await warm_up(bootstrap, directory)
    await prove((GUARD_OF_FIVE, *PEERS), bootstrap, directory)
    guards = (GUARD, TWO_GUARDS, GUARD_AT_LEAST_ONCE, GUARD_OF_FIVE, TWO_GUARDS_OF_FIVE)
    contenders = (PASSTHROUGH, PLAIN_PASSTHROUGH, *guards, *PEERS)
    return await compare(contenders, Traffic(), RECORDS, bootstrap, rounds, directory)


async def _run_mixed(bootstrap: str, rounds: int, directory: Path) -> list[Row]:
    workload.write_policies(directory / "policies", Traffic())
    await warm_up(bootstrap, directory)
    rows: list[Row] = []
    for blocked in SHARES:
        traffic = Traffic(blocked=blocked)
        rows += await compare((PASSTHROUGH, GUARD), traffic, MIXED_RECORDS, bootstrap, rounds, directory)
    return rows


def _ratio(rows: Sequence[Row], figure: str, name: str, other: Contender) -> float:
    """The median of the ratios of two contenders in each round."""
    by = {(row["round"], row["contender"]): float(row[figure]) for row in rows}
    return float(np.median([by[key] / by[key[0], other.name] for key in by if key[1] == name]))


def _show_throughput(rows: Sequence[Row]) -> str:
    lines: list[list[Any]] = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        lines.append(
            [
                name,
                f"{median(mine, 'records'):,.0f}",
                f"{median(mine, 'per_second'):,.0f}",
                f"{_ratio(rows, 'per_second', name, PASSTHROUGH):.2f}",
                f"{_ratio(rows, 'per_second', name, PLAIN_PASSTHROUGH):.2f}",
                f"{_ratio(rows, 'per_second', name, KAFKA_STREAMS):.2f}",
                f"{median(mine, 'cold_per_second'):,.0f}",
                f"{median(mine, 'cpu_s_per_100k'):.2f}",
                f"{_ratio(rows, 'cpu_s_per_100k', name, KAFKA_STREAMS):.2f}",
                f"{median(mine, 'rss_mb'):,.0f}",
            ]
        )
    headings = (
        *("contender", "records", "records/s", "of pass-through", "of the plain one", "of Kafka Streams", "from cold"),
        *("CPU s / 100,000", "CPU, of Kafka Streams", "MB"),
    )
    return markdown(headings, lines)


def _show_mixed(rows: Sequence[Row]) -> str:
    lines: list[list[Any]] = []
    for blocked in sorted({row["blocked"] for row in rows}):
        these = [row for row in rows if row["blocked"] == blocked]
        guard, passed = ([row for row in these if row["contender"] == one.name] for one in (GUARD, PASSTHROUGH))
        clean = [row for row in rows if row["contender"] == GUARD.name and row["blocked"] == 0]
        lines.append(
            [
                f"{blocked:.0%}",
                f"{median(guard, 'per_second'):,.0f}",
                f"{median(passed, 'per_second'):,.0f}",
                f"{_ratio(these, 'per_second', GUARD.name, PASSTHROUGH):.2f}",
                f"{median(guard, 'per_second') / median(clean, 'per_second'):.2f}",
                f"{median(guard, 'cpu_s_per_100k'):.2f}",
            ]
        )
    headings = ("blocked", "guard, records/s", "pass-through, records/s", "ratio", "of 0 % blocked", "CPU s / 100,000")
    return markdown(headings, lines)


THROUGHPUT = Part(
    "Throughput",
    f"""\
Events of 250 bytes, none of them blocked, in {PARTITIONS} partitions. The guard judges by a policy of eight checks, and
where it says so by the five of them that the peers do: bounds of the value by segment, bounds of the cost, 100,000
floors by entity, an expression, a list. Before anything was timed, {PROOF_RECORDS:,} events, of which a tenth is
blocked by value and others break one check each, had the very same verdicts from the guard of five and from each peer.
A guard is one process that uses one core; two guards share the partitions. The pass-through is one process too, and is
tuned as the guard is: it fetches 4 MiB and puts 10,000 records into a transaction. The plain one fetches 1 MiB, as
aiokafka does by itself. Kafka Streams runs two threads and commits every {THROUGHPUT_COMMIT_MS} ms here. Quix Streams
and FastStream are slow, and therefore given fewer records. The peers add no headers. "Of Kafka Streams" compares the
same job only for the guards of five checks. Ratios are medians of the ratios of each round.""",
    lambda rounds: 1.3 + 2.0 * rounds,
    _run_throughput,
    _show_throughput,
)
MIXED = Part(
    "Mixed traffic",
    "The guard of eight checks, exactly once, when a share of the events is below every floor.",
    lambda rounds: 1.0 + 1.0 * rounds,
    _run_mixed,
    _show_mixed,
)
