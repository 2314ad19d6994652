"""Transactions of other producers that hold a partition: a committed reader sees nothing behind their first record.

Such a partition ends for it at the last stable offset, which is where the first open transaction begins. That one is
open for long shows in that this offset stays; where producers write transactions all the time it moves.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from holdfast.core.record import time_of
from holdfast.kafka.reading import bounds, close, reader
from holdfast.settings import KafkaSettings

LOOK_AGAIN = 1.0
"""Seconds in which a healthy transaction ends."""
READ_WITHIN = 3.0


@dataclass(frozen=True, slots=True)
class Held:
    """Everything from the offset `first` to `last` waits for the transaction that begins at `first`.

    `since`: the time of its first record; None where it may not be read.
    """

    topic: str
    partition: int
    first: int
    last: int
    since: datetime | None

    def describe(self) -> str:
        """In one sentence."""
        since = "" if self.since is None else f" since {self.since:%Y-%m-%d %H:%M:%S} UTC"
        return (
            f"a transaction of another producer holds {self.topic}/{self.partition}{since}: everything from offset "
            f"{self.first} up to {self.last} waits for its end"
        )

    def advice(self, bootstrap_servers: str) -> str:
        """How to end it."""
        return (
            "It ends when its producer commits or aborts, or by the producer's transaction.timeout.ms. If the producer "
            f"is gone for good: kafka-transactions.sh --bootstrap-server {bootstrap_servers} abort --topic "
            f"{self.topic} --partition {self.partition} --start-offset {self.first}"
        )


async def held_partitions(kafka: KafkaSettings, partitions: Sequence[TopicPartition]) -> list[Held]:
    """Find the partitions that an open transaction holds and has held for a moment. Raises KafkaError."""
    suspects = await _open(kafka, partitions)
    if not suspects:
        return []
    await asyncio.sleep(LOOK_AGAIN)
    held = {tp: ends for tp, ends in (await _open(kafka, list(suspects))).items() if ends[0] == suspects[tp][0]}
    times = await _times_at(kafka, {tp: first for tp, (first, _) in held.items()})
    return [Held(tp.topic, tp.partition, first, end - 1, times.get(tp)) for tp, (first, end) in held.items()]


async def _open(kafka: KafkaSettings, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
    """By partition whose committed end is before its end: both."""
    # In this order: what ends in between does not look open.
    _, ends = await bounds(kafka, partitions, None, "read_uncommitted")
    _, stable = await bounds(kafka, partitions, None, "read_committed")
    return {tp: (stable[tp], ends[tp]) for tp in partitions if stable[tp] < ends[tp]}


async def _times_at(kafka: KafkaSettings, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, datetime]:
    """The time of the record at each offset, as far as it can be read."""
    found: dict[TopicPartition, datetime] = {}
    if not offsets:
        return found
    consumer: AIOKafkaConsumer = reader(kafka, isolation_level="read_uncommitted")
    try:
        async with asyncio.timeout(READ_WITHIN):
            await consumer.start()
            consumer.assign(list(offsets))
            for tp, offset in offsets.items():
                consumer.seek(tp, offset)
            while missing := offsets.keys() - found.keys():
                for tp, records in (await consumer.getmany(*missing, timeout_ms=200, max_records=1)).items():
                    found[tp] = time_of(records[0].timestamp)
    except (KafkaError, TimeoutError):
        pass
    finally:
        await close(consumer)
    return found
