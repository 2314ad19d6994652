"""Reading some records of a partition by their offsets."""

from collections.abc import Iterable

from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from holdfast.kafka.reading import close, reader
from holdfast.kafka.records import with_unreadable
from holdfast.settings import KafkaSettings

FETCH_BYTES = 1024 * 1024
NEAR = 1000
"""Offsets that are read rather than jumped over: a jump drops what is fetched."""


class TooManyBytesError(ValueError):
    """The records are too large together."""


async def pick(
    kafka: KafkaSettings, tp: TopicPartition, offsets: Iterable[int], *, most_bytes: int
) -> dict[int, ConsumerRecord]:
    """The committed records at these offsets, by offset; those that are not there are left out.

    Raises TooManyBytesError where their keys, values and headers have more than `most_bytes`, and KafkaError.
    """
    consumer = reader(
        kafka, auto_offset_reset="none", max_partition_fetch_bytes=FETCH_BYTES, value_deserializer=with_unreadable
    )
    await consumer.start()
    found: dict[int, ConsumerRecord] = {}
    try:
        consumer.assign([tp])
        first = (await consumer.beginning_offsets([tp]))[tp]
        # Up to the first transaction that is still open: what is behind it is not there yet.
        end = (await consumer.end_offsets([tp]))[tp]
        wanted = {offset for offset in offsets if first <= offset < end}
        left, at, size = sorted(wanted, reverse=True), -NEAR - 1, 0
        while left:
            if left[-1] - at > NEAR:
                consumer.seek(tp, left[-1])
            for record in (await consumer.getmany(tp, timeout_ms=200)).get(tp, []):
                if record.offset in wanted:
                    found[record.offset] = record
                    size += _size(record)
            if size > most_bytes:
                raise TooManyBytesError(
                    f"its predictions have more than {most_bytes // 1024**2} MiB together; name fewer"
                )
            # Markers and aborted records take offsets too.
            at = await consumer.position(tp)
            while left and left[-1] < at:
                left.pop()
    except OffsetOutOfRangeError:
        pass  # The oldest were removed meanwhile.
    finally:
        await close(consumer)
    return found


def _size(record: ConsumerRecord) -> int:
    return len(record.key or b"") + len(record.value or b"") + sum(len(value or b"") for _, value in record.headers)
