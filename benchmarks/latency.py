"""From produce to visible at a read_committed consumer, at a steady rate.

Producer and consumer are in this process, on one clock. Each event carries its number; its latency is the time
from the call of `send` to the record being handed out by the consumer.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import workload
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from contenders import GUARD, PARTITIONS, PASSTHROUGH, Case, Contender, create, remove, running
from peers import KAFKA_STREAMS_QUICK, LATENCY_COMMIT_MS
from report import Part, Row, markdown, median
from throughput import warm_up
from workload import Traffic

RATES = (500, 2000, 10_000)
CONTENDERS = (PASSTHROUGH, GUARD, KAFKA_STREAMS_QUICK)
WARM_UP_S = 4.0
MEASURED_S = 8.0
TICK_S = 0.002


@dataclass(frozen=True)
class Latency:
    """One run of one contender, in milliseconds."""

    contender: str
    rate: int
    records: int
    p50: float
    p99: float
    cpu_share: float
    """Of one core, while measured."""


async def measure(contender: Contender, bootstrap: str, prefix: str, directory: Path, rate: int) -> Latency:
    """Run at `rate` events a second. Raises SystemExit when the contender ends."""
    case = Case(bootstrap, f"{prefix}.source", prefix, directory)
    await create(bootstrap, case.source)
    sent: list[float] = []
    seen: dict[int, float] = {}
    async with running(contender, case) as process:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=0)
        await consumer.start()
        await producer.start()
        consumer.assign([TopicPartition(case.approved, p) for p in range(PARTITIONS)])
        reading = asyncio.create_task(_read(consumer, seen))
        try:
            # The first events show that it has started.
            while not seen:
                process.must_run()
                await _send(producer, case.source, sent, 1)
                await asyncio.sleep(0.2)
            await _drive(producer, case.source, sent, rate, WARM_UP_S)
            first, cpu, at = len(sent), process.cpu_seconds(), time.monotonic()
            await _drive(producer, case.source, sent, rate, MEASURED_S)
            cpu_share = (process.cpu_seconds() - cpu) / (time.monotonic() - at)
            last = len(sent)
            deadline = time.monotonic() + 30
            while len(seen) < last and time.monotonic() < deadline:
                process.must_run()
                await asyncio.sleep(0.05)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await producer.stop()
            await consumer.stop()
    await remove(bootstrap, case.source, case.approved, case.blocked)
    missing = [number for number in range(first, last) if number not in seen]
    if missing:
        raise SystemExit(f"{contender.name}: {len(missing)} of {last - first} events never came out.")
    taken = np.array([seen[number] - sent[number] for number in range(first, last)]) * 1000
    p50, p99 = np.percentile(taken, [50, 99])
    return Latency(contender.name, rate, last - first, float(p50), float(p99), cpu_share)


async def _send(producer: AIOKafkaProducer, topic: str, sent: list[float], count: int) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for _ in range(count):
        number = len(sent)
        key, value = workload.event(number, Traffic(), now=now)
        sent.append(time.monotonic())
        await producer.send(topic, value, key=key, partition=int(key[4:]) % PARTITIONS)


async def _drive(producer: AIOKafkaProducer, topic: str, sent: list[float], rate: int, seconds: float) -> None:
    started, before = time.monotonic(), len(sent)
    while (passed := time.monotonic() - started) < seconds:
        await _send(producer, topic, sent, int(passed * rate) - (len(sent) - before))
        await asyncio.sleep(TICK_S)


async def _read(consumer: AIOKafkaConsumer, seen: dict[int, float]) -> None:
    while True:
        batches = await consumer.getmany(timeout_ms=1000)
        now = time.monotonic()
        for records in batches.values():
            for record in records:
                seen.setdefault(workload.number_of(record.value), now)


async def _run(bootstrap: str, rounds: int, directory: Path) -> list[Row]:
    """Every contender at every rate, in turn."""
    workload.write_policies(directory / "policies", Traffic())
    workload.write_policies(directory / "five-checks", Traffic(), workload.FIVE)
    await warm_up(bootstrap, directory)
    rows: list[Row] = []
    stamp = f"latency{int(time.time())}"
    for number in range(rounds):
        for rate in RATES:
            for position, contender in enumerate(CONTENDERS):
                prefix = f"{stamp}.{rate}.{number}.{position}"
                measured = await measure(contender, bootstrap, prefix, directory, rate)
                rows.append({"round": f"{stamp}.{number}", **asdict(measured)})
                figures = f"p50 {measured.p50:.1f} ms, p99 {measured.p99:.1f} ms"
                print(f"round {number + 1}: {rate}/s: {contender.name}: {figures}", file=sys.stderr)
    return rows


def _show(rows: Sequence[Row]) -> str:
    lines = []
    for rate, name in dict.fromkeys((row["rate"], row["contender"]) for row in rows):
        mine = [row for row in rows if (row["rate"], row["contender"]) == (rate, name)]
        p50, p99, share = (median(mine, figure) for figure in ("p50", "p99", "cpu_share"))
        lines.append([name, f"{rate:,}", f"{p50:.1f}", f"{p99:.1f}", f"{share:.2f}"])
    return markdown(("contender", "events a second", "p50 ms", "p99 ms", "of a core"), lines)


LATENCY = Part(
    "Latency",
    f"""\
From the call of `send` to the record in the hands of a read_committed consumer, at a steady rate, over
{MEASURED_S:g} seconds after {WARM_UP_S:g} of warming up. The guard judges by eight checks; Kafka Streams does five, and
commits every {LATENCY_COMMIT_MS} ms here.""",
    lambda rounds: 0.6 + 2.2 * rounds,
    _run,
    _show,
)
