"""What one transaction writes: batches of records, and the offsets that they stand for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, OutOfOrderSequenceNumber
from aiokafka.structs import OffsetAndMetadata

from holdfast.kafka.batches import Out, Outs, RecordBatch, batches_of
from holdfast.kafka.refusals import LIST_TOO_LARGE, TOO_LARGE, BatchRefused, RecordsRefused, Refusal

MAX_BATCH_BYTES = 900_000
"""Under the 1 MiB that brokers accept by default."""


class Write(NamedTuple):
    topic: str
    partition: int
    records: Sequence[Out] | Outs


class Packed(NamedTuple):
    """Records that go out together."""

    topic: str
    partition: int
    batch: RecordBatch
    first: int = 0
    """How many records of that partition go out in batches before it."""


@contextlib.asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"Kafka did not {what} within {seconds:g} s") from None


async def send_offsets(
    producer: AIOKafkaProducer, offsets: dict[TopicPartition, OffsetAndMetadata], group: str
) -> Exception | None:
    """Returns what failed, for nobody may be there to see it raised."""
    try:
        if offsets:
            await producer.send_offsets_to_transaction(offsets, group)
    except Exception as error:
        return error
    return None


def pack(
    producer: AIOKafkaProducer, writes: Iterable[Write], max_bytes: Mapping[str, int] | None = None
) -> list[Packed]:
    """Put all records into batches; those of one partition stay in their order, and go out together.

    `max_bytes` are the sizes of batches for topics that take smaller ones only.
    """
    by_partition: dict[tuple[str, int], list[Sequence[Out] | Outs]] = {}
    for write in writes:
        by_partition.setdefault((write.topic, write.partition), []).append(write.records)
    transactions = producer._txn_manager
    transactional = transactions is not None and transactions.transactional_id is not None
    # A partition takes one batch at a time: those with few records must not wait for the others.
    groups = sorted(
        (
            _numbered(
                *place,
                batches_of(
                    Outs.of(records),
                    max_bytes=(max_bytes or {}).get(place[0], MAX_BATCH_BYTES),
                    transactional=transactional,
                ),
            )
            for place, records in by_partition.items()
        ),
        key=len,
    )
    return [packed for group in groups for packed in group]


def _numbered(topic: str, partition: int, batches: Iterable[RecordBatch]) -> list[Packed]:
    packed: list[Packed] = []
    first = 0
    for batch in batches:
        packed.append(Packed(topic, partition, batch, first))
        first += batch.record_count()
    return packed


async def send_all(producer: AIOKafkaProducer, packed: Iterable[Packed]) -> dict[TopicPartition, int]:
    """Send all batches and wait until the broker has every one. Raises what the first failed one raised.

    Raises RecordsRefused where brokers have only refused records for what these are. Returns the offset after the
    last record of each partition; -1 where the broker did not tell it.
    """
    futures: list[asyncio.Future[Any]] = []
    sent: list[Packed] = []
    refusal: IllegalOperation | None = None
    for one in packed:
        try:
            futures.append(await producer.send_batch(one.batch, one.topic, partition=one.partition))
            sent.append(one)
        except IllegalOperation as error:
            # The transaction has failed meanwhile; what was sent before says why.
            refusal = error
            break
    written: dict[TopicPartition, int] = {}
    # commit_transaction() would return normally although a batch failed.
    if futures:
        await asyncio.wait(futures)
        failed = [(one, future.exception()) for one, future in zip(sent, futures, strict=True)]
        if refused := [(one, error) for one, error in failed if isinstance(error, BatchRefused)]:
            # A batch behind one that was refused has a number that the broker does not expect.
            consequences = BatchRefused | OutOfOrderSequenceNumber
            other = next((e for _, e in failed if e is not None and not isinstance(e, consequences)), None)
            raise other or _records_refused(refused)
        for future, one in zip(futures, sent, strict=True):
            stored = future.result()
            end = stored.offset + one.batch.record_count()
            written[stored.topic_partition] = end if stored.offset >= 0 else -1
    if refusal is not None:
        raise refusal
    return written


def _records_refused(refused: Sequence[tuple[Packed, BatchRefused]]) -> RecordsRefused:
    refusals: list[Refusal] = []
    too_large: list[tuple[str, int]] = []
    for one, error in refused:
        alone = one.batch.record_count() == 1
        for index, said in [(0, None)] if alone and not error.records else error.records:
            refusals.append(Refusal(one.topic, one.first + index, error.reason(said)))
        if not alone and error.code in (TOO_LARGE, LIST_TOO_LARGE):
            too_large.append((one.topic, one.batch.size()))
    return RecordsRefused(refusals, too_large, "; ".join(sorted({str(error) for _, error in refused})))


def transactional_id(group: str, tp: TopicPartition) -> str:
    """The id under which only one worker at a time writes what becomes of a partition."""
    return f"{group}-{tp.topic}-{tp.partition}"
