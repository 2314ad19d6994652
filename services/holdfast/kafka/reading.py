"""Reads of a topic from its beginning, or between two offsets, outside of a consumer group."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.fetch_by_id import Ids, fetch_by_id
from holdfast.kafka.records import in_batches, records_of
from holdfast.kafka.topic_ids import topic_ids
from holdfast.settings import KafkaSettings

log = structlog.get_logger("holdfast.kafka")


async def read_to_end(
    kafka: KafkaSettings,
    partitions: Sequence[TopicPartition],
    on_records: Callable[[Sequence[Any]], Awaitable[None] | None],
    *,
    start: int = 0,
    stop: int | None = None,
    tail: int | None = None,
    since: datetime | None = None,
    complete: bool = False,
    plain: bool = False,
) -> dict[TopicPartition, int]:
    """Read committed records up to the end as it is now; return the offset after it, per partition.

    `on_records` gets some records of one partition at a time, and is awaited where it is a coroutine. `start` is the
    first offset to read. Reading ends at the offset `stop`, though it may give some records behind it. `tail` bounds
    how many are read of each partition, from its end; `since` leaves out what is older, if the broker looks for times.
    Committed records are seen only up to the first transaction that is still open, also of somebody else; with
    `complete` the end is that of the whole partition, and transactions before it are waited for. The records are
    aiokafka's ConsumerRecord, or with `plain` some Record that costs less.
    """
    # A fetch of plain records is judged while it is in the processor's cache.
    options = {"value_deserializer": in_batches, "max_partition_fetch_bytes": 1024 * 1024} if plain else {}
    consumer = reader(kafka, auto_offset_reset="none", **options)
    await consumer.start()
    try:
        ids = fetch_by_id(consumer, await topic_ids(consumer, {tp.topic for tp in partitions}))
        consumer.assign(list(partitions))
        starts, ends = await bounds(kafka, partitions, since, "read_uncommitted" if complete else "read_committed")
        left = set()
        for tp in partitions:
            ends[tp] = ends[tp] if stop is None else min(stop, ends[tp])
            starts[tp] = max(start, starts[tp], ends[tp] - tail if tail is not None else 0)
            consumer.seek(tp, starts[tp])
            if starts[tp] < ends[tp]:
                left.add(tp)
        while left:
            try:
                batches = await consumer.getmany(*left, timeout_ms=200)
            except OffsetOutOfRangeError as error:
                await _behind_what_was_removed(consumer, ids, error)
                continue
            for tp, records in batches.items():
                if (working := on_records(records_of(records, starts[tp]) if plain else records)) is not None:
                    await working
            # A transaction's markers take offsets too, and may be the last thing in the partition.
            left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
        return ends
    finally:
        await close(consumer)


async def _behind_what_was_removed(consumer: AIOKafkaConsumer, ids: Ids, error: OffsetOutOfRangeError) -> None:
    """Go on at the first record that is left. Raises KafkaUnavailable where the topic is another one by now."""
    if ids.refused:
        raise KafkaUnavailable(
            f"The topic {min(ids.refused)} was deleted or made again while it was read. Try again, once it is there."
        )
    removed_at: dict[TopicPartition, int] = error.args[0]
    for tp, first in (await consumer.beginning_offsets(list(removed_at))).items():
        if first <= removed_at[tp]:
            raise KafkaUnavailable(
                f"The log of {tp.topic}/{tp.partition} ends before offset {removed_at[tp]}, which was there before. "
                "Try again, and see what the brokers' log says of unclean elections."
            )
        consumer.seek(tp, first)


def key_of(record: ConsumerRecord) -> str | None:
    """The record's key as text; None, and a line in the log, where it is none of ours."""
    try:
        if record.key:
            return str(record.key, "utf-8")
        reason = "it has no key"
    except UnicodeDecodeError:
        reason = "its key is not UTF-8"
    log.warning("record left out", source=f"{record.topic}/{record.partition}/{record.offset}", reason=reason)
    return None


ORDERED_KEYS = 100_000


class KeyOrder:
    """The order of each key's records: in a partition that of the offsets, and between two, as a topic that has grown
    may have them, that of the times.

    The keys met last are remembered, `remembered` of them: of incidents there may be more, of years.
    """

    def __init__(self, remembered: int = ORDERED_KEYS) -> None:
        # The partition and time of each key's last record; the key that was met last is the last one.
        self._latest: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._remembered = remembered

    def is_outdated(self, record: ConsumerRecord) -> bool:
        """Whether a later one of its key has been asked about before, in another partition."""
        if record.key is None:
            return False
        partition, at = self._latest.get(record.key, (record.partition, record.timestamp))
        if partition != record.partition and at > record.timestamp:
            return True
        self._latest[record.key] = record.partition, record.timestamp
        self._latest.move_to_end(record.key)
        if len(self._latest) > self._remembered:
            self._latest.popitem(last=False)
        return False


async def read_latest(
    kafka: KafkaSettings, topic: str, partitions: Iterable[int], *, complete: bool = False
) -> dict[str, bytes]:
    """The last value of each key, without those that were deleted; `complete` as in `read_to_end`.

    A record whose key names nothing, because there is none or it is not UTF-8, is left out: Holdfast writes no such.
    """
    latest: dict[str, bytes | None] = {}
    order = KeyOrder()

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if (key := key_of(record)) is not None and not order.is_outdated(record):
                latest[key] = record.value

    await read_to_end(kafka, [TopicPartition(topic, number) for number in partitions], take, complete=complete)
    return {key: value for key, value in latest.items() if value is not None}


async def close(client: AIOKafkaConsumer | AIOKafkaProducer, within: float = 2.0) -> None:
    """Stop a client, and wait at most `within` seconds for it. Raises nothing.

    A consumer that is stopped while Kafka is away ends with a CancelledError, which would pass for the caller's own.
    """
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait([stopping], timeout=within)
    if not stopping.done():
        stopping.cancel()
    elif not stopping.cancelled():
        stopping.exception()


async def end_offsets(kafka: KafkaSettings, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """The ends as they are on the broker, behind open transactions."""
    return (await bounds(kafka, partitions, None, "read_uncommitted"))[1]


async def bounds(
    kafka: KafkaSettings, partitions: Sequence[TopicPartition], since: datetime | None, isolation: str
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Where to start, and the end.

    To a committed reader a partition ends at its first open transaction, also when it looks for a time.
    """
    consumer = reader(kafka, isolation_level=isolation)
    await consumer.start()
    try:
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        if since is None:
            return await consumer.beginning_offsets(partitions), ends
        return await offsets_since(consumer, dict.fromkeys(partitions, since), ends), ends
    finally:
        await close(consumer)


async def offsets_since(
    consumer: AIOKafkaConsumer, times: Mapping[TopicPartition, datetime], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """The first offset of each time or later, or the end; the beginning where the broker looks for no times."""
    first = await consumer.offsets_for_times({tp: int(time.timestamp() * 1000) for tp, time in times.items()})
    anything = first if any(first.values()) else await consumer.offsets_for_times(dict.fromkeys(times, 0))
    if not any(anything.values()):
        # There is nothing at all, or it is the embedded one.
        beginnings: dict[TopicPartition, int] = await consumer.beginning_offsets(list(times))
        return beginnings
    return {tp: ends[tp] if found is None else found.offset for tp, found in first.items()}


def reader(kafka: KafkaSettings, **options: Any) -> AIOKafkaConsumer:
    """A consumer outside of any group that sees only committed records."""
    ours: dict[str, Any] = {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "max_partition_fetch_bytes": 4 * 1024 * 1024,
    }
    return AIOKafkaConsumer(**{**kafka.client_options(), **ours, **options})
