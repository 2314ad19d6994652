"""The transactional loop: consume, process, produce and commit offsets, all or nothing, by partition.

Each assigned partition has a lane of its own: one task, one producer. The producer's transactional id is made
of the group and the partition, so that whoever is assigned the partition next fences the one before: aiokafka
sends no group generation with the offsets, hence the group alone would not.

A lane opens by (1) starting its producer, which ends whatever transaction its predecessor left, (2) reading
the committed offset, only now, and seeking there, (3) letting its work restore what it remembers. Then, batch
by batch: fetch, process, write, offsets, await every acknowledgement, commit. On any error the producer is
thrown away, since the outcome of its transaction may be unknown, and the lane opens again from the committed
offset.

What is committed is a position: it goes behind transaction markers and aborted records too, also in a turn without
records. Where records were removed unseen the lane stops, says so, and looks again from time to time; the other lanes
go on.

The group's consumer only says which partitions are ours, and fetches nothing: a lane has a consumer of its own, for
aiokafka has one fetch on its way to a broker, and would let all partitions wait for the one that is slowest.
"""

import asyncio
import contextlib
import gc
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    IllegalOperation,
    InvalidConfigurationError,
    KafkaError,
    LeaderNotAvailableError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer import sender
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from holdfast import metrics
from holdfast.core.errors import HoldfastError, describe
from holdfast.core.progress import Committed, Reason, Removed, where_to_go_on
from holdfast.core.record import Record
from holdfast.kafka.batches import Out, Outs, RecordBatch, batches_of
from holdfast.kafka.budget import Budget
from holdfast.kafka.codecs import unpacked_bytes
from holdfast.kafka.fetch_by_id import Ids, fetch_by_id
from holdfast.kafka.held_back import HeldBack
from holdfast.kafka.login import explain, renew_logins
from holdfast.kafka.no_topic_creation import forbid_topic_creation
from holdfast.kafka.offsets import committed_progress
from holdfast.kafka.records import StoredBatch, in_batches, records_of, replace_readers
from holdfast.kafka.refusals import (
    LIST_TOO_LARGE,
    TOO_LARGE,
    BatchRefused,
    RecordsRefused,
    Refusal,
    replace_produce_handler,
)
from holdfast.kafka.topic_ids import topic_ids
from holdfast.settings import KafkaSettings, Settings
from holdfast_schemas import TOPICS
from holdfast_schemas.topics import NO_TIME_LIMIT, TIME_LIMITS

replace_readers()
replace_produce_handler()
renew_logins()
forbid_topic_creation()
# How long a transaction waits that follows closely on another; the library's 20 ms are more than the markers take.
sender.BACKOFF_OVERRIDE = 0.002
log = structlog.get_logger("holdfast.kafka")

MAX_BATCH_BYTES = 900_000
"""Under the 1 MiB that brokers accept by default."""
MAX_REQUEST_BYTES = 8 * 1024 * 1024
FETCHED_BYTES = 8 * 1024 * 1024
"""Of stored batches that wait, packed, in one partition; with that much here no more is fetched."""
MAX_UNPACKED_BYTES = 32 * 1024 * 1024
"""Of the records that are judged together in one partition; the batch that reaches it is the last one."""
MAX_IN_FLIGHT_BYTES = 256 * 1024 * 1024
"""Of what the partitions of a process have unpacked and on its way to brokers; with that much none unpacks more."""
LEADER_WITHIN = 15.0
"""Seconds until a topic that was made must be known to the broker that is asked, with leaders."""
STOP_WITHIN = 5.0
"""Seconds that a lane gets to end its batch; supervisors kill after ten."""
PUBLISH_WITHIN = 15.0
"""Seconds for one transaction. Less than the client's request time-out: it would send the request that ends the
transaction again, and the first one, late, could end the next transaction."""
TRANSACTION_TIMEOUT = 20.0
"""Seconds until the broker aborts what a dead worker left open; who reads committed records waits that long."""
ANSWER_WITHIN = 3.0
"""Seconds without an answer after which Kafka counts as away."""
STOPPED_FOR = 5.0
"""Seconds after which a stopped partition looks whether it may go on."""


class KafkaUnavailable(HoldfastError):  # noqa: N818  it reads as the state it reports
    """Kafka cannot be used as configured."""


class PartitionStopped(KafkaUnavailable):
    """A partition cannot go on before a person says where; the others can."""


class TopicsMismatch(KafkaUnavailable):
    """The topics' partitions do not go together; only a person can mend it."""


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


class Work(Protocol):
    """What a lane does with its partition."""

    topic_id: str | None
    """Set before `restore`: Kafka's id of the topic; None where the broker tells none."""

    async def restore(self) -> None:
        """Called before the first batch, and again whenever the lane opens anew."""

    async def prepare(self, records: Sequence[Record]) -> None:
        """Called before each batch: what it is judged by must be up to date. Raises where it cannot be."""

    def process(self, records: Sequence[Record]) -> list[Write]:
        """Decide what to write for these records; called with none on a tick. Changes nothing for good."""

    def poison(self, record: Record, error: Exception) -> list[Write]:
        """What to write for a record that `process` failed on three times."""

    def refused(self, refusals: Sequence[Refusal]) -> bool:
        """Topics refuse these records of the last `process`, by their places in its writes.

        Remember it for when the same records come again. False where nothing else can be written for one of them.
        """

    async def committed(self, written: Mapping[TopicPartition, int]) -> None:
        """The last `process` or `poison` stands: take over what it changed. `written` is as `send_all` returns it."""

    def closed(self) -> None:
        """The partition is no longer this worker's."""


class ReopenLane(Exception):  # noqa: N818  a request, not a failure
    """Raised by `process` when the work must be restored before it can go on."""


class PrepareAgain(Exception):  # noqa: N818  a request, not a failure
    """Raised by `process` when `prepare` must read more before the same records can be judged."""


class _Lane:
    def __init__(self, loop: "TransactionalLoop", tp: TopicPartition) -> None:
        self.loop, self.tp = loop, tp
        self.state = "opening"  # then `running`, or `failing` until it opens again
        self.work = loop.open_work(tp.partition)
        self.producer: AIOKafkaProducer | None = None
        self.consumer: AIOKafkaConsumer | None = None
        self.stored: list[StoredBatch] = []
        """Fetched, in order."""
        self.records: list[Record] = []
        """Unpacked, before those that are stored."""
        # Of the batches in `stored`, and of the records in `records`, as their batches were unpacked.
        self._packed_bytes = self._unpacked_bytes = 0
        self.stopping = False
        self.waiting = False
        self.stopped_because: str | None = None
        """What a person must know, while the partition cannot go on."""
        self.offset = 0
        """The position that is committed."""
        self._fetched_to = 0
        # Less than everything, for a while, after a topic has refused records.
        self._at_once = loop.max_records
        self._max_bytes: dict[str, int] = {}
        self._out_of_range: int | None = None
        self._topic_id: str | None = None
        self._ids: Ids | None = None
        self.held = HeldBack()
        metrics.PARTITION_STOPPED.labels(loop.service, str(tp.partition)).set(0)
        self.task = asyncio.create_task(self._run(), name=f"lane-{tp.topic}-{tp.partition}")

    async def stop(self, within: float) -> None:
        """End after the batch in flight; cut it off after `within` seconds, which aborts its transaction."""
        self.stopping = True
        if self.waiting:
            self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=within)
        if not done:
            self.task.cancel()
            await asyncio.wait([self.task], timeout=1)

    async def _run(self) -> None:
        failing_since: float | None = None
        delay = 0.1
        try:
            while not self.stopping:
                try:
                    await self._open()
                    while not self.stopping:
                        self.state = "running"
                        self._stopped(None)
                        before = self.offset
                        await self._turn()
                        # An empty turn before the first answer says nothing.
                        if self.offset > before or self.behind() is not None:
                            failing_since, delay = None, 0.1
                except ReopenLane:
                    await self._discard_clients()
                    continue
                except RecordsRefused as error:
                    if self._can_go_on_without(error):
                        # The broker counts what it refused, so the producer is of no use any more.
                        await self._discard_clients()
                        continue
                    failing_since = failing_since or time.monotonic()
                    log.error("records are refused", partition=self.tp.partition, error=str(error))
                    if time.monotonic() - failing_since > self.loop.give_up_after.total_seconds():
                        raise KafkaUnavailable(f"{error}. See that topic's settings: holdfast doctor") from None
                except ProducerFenced:
                    # Another worker has the partition: its rebalance will reach this one too.
                    log.warning("partition taken over by another worker", partition=self.tp.partition)
                except OffsetOutOfRangeError as error:
                    # The log has changed under the position: opening again finds out how.
                    (offset,) = error.args[0].values()
                    self._out_of_range = None if self._ids is not None and self._ids.refused else offset
                    log.warning("partition is not where it was", partition=self.tp.partition, offset=offset)
                except PartitionStopped as stop:
                    failing_since, delay = None, STOPPED_FOR
                    self._stopped(str(stop))
                except TopicsMismatch:
                    raise
                except Exception as error:
                    now = time.monotonic()
                    failing_since = failing_since or now
                    log.warning(
                        "partition failed, going back to what is committed",
                        partition=self.tp.partition,
                        error=describe(error),
                        retry_in_s=delay,
                    )
                    if now - failing_since > self.loop.give_up_after.total_seconds():
                        if not self.loop.others_run(self):
                            raise
                        self._stopped(describe(error))
                if self.stopping:
                    break
                self.state = "stopped" if self.stopped_because else "failing"
                await self._discard_clients()
                self.waiting = True
                await asyncio.sleep(delay)
                self.waiting = False
                delay = min(delay * 2, 5.0)
        except asyncio.CancelledError:
            if not self.stopping:
                self.loop.fail(RuntimeError(f"the task of partition {self.tp.partition} was cancelled"))
        except Exception as error:
            self.state = "failing"
            self.loop.fail(error)
        finally:
            self.work.closed()
            for gauge in (metrics.PARTITION_STOPPED, metrics.HELD_BACK):
                gauge.remove(self.loop.service, str(self.tp.partition))
            await self._discard_clients()

    def _stopped(self, because: str | None) -> None:
        """Take note of why the partition cannot go on, or that it does."""
        if because == self.stopped_because:
            return
        if because is not None:
            log.error("partition stopped, the others go on", partition=self.tp.partition, reason=because)
        else:
            log.info("partition goes on", partition=self.tp.partition, offset=self.offset)
        self.stopped_because = because
        metrics.PARTITION_STOPPED.labels(self.loop.service, str(self.tp.partition)).set(float(because is not None))

    async def _open(self) -> None:
        self.state = "opening"
        self.waiting = True
        self.producer, self.consumer = self.loop.make_producer(self.tp), self.loop.make_consumer(self.tp)
        async with _within(PUBLISH_WITHIN, "let a producer in"):
            await self.producer.start()
            await self.loop.committed_all()
            committed = await committed_progress(self.loop.consumer, self.tp)
            await self.consumer.start()
            ids = await topic_ids(self.consumer._client, [self.tp.topic])
            if self.tp.topic not in ids:
                raise UnknownTopicOrPartitionError(self.tp.topic)
            self._topic_id, self._ids = ids[self.tp.topic], fetch_by_id(self.consumer, ids)
            self.consumer.assign([self.tp])
            first = (await self.consumer.beginning_offsets([self.tp]))[self.tp]
            made_again = self.loop.was_made_again(self._topic_id)
        if committed is None and made_again:
            # A broker forgets what was committed of a topic that is deleted.
            committed = Committed(0, is_position=True, topic_id=self.loop.first_topic_id)
        position = await self.loop.begin(self.tp) if committed is None else self._where_to_go_on(committed, first)
        if made_again and committed is not None and committed.topic_id != self._topic_id:
            # At once, so that no other worker takes the verdicts on the topic of before for verdicts on this one.
            await self.loop.commit_begin({self.tp: Committed(position, is_position=True, topic_id=self._topic_id)})
        self.consumer.seek(self.tp, position)
        self.offset = self._fetched_to = position
        self._out_of_range = None
        self.work.topic_id = self._topic_id
        await self.work.restore()

    def _where_to_go_on(self, committed: Committed, first: int) -> int:
        """Compare what is committed with what is there. Raises PartitionStopped."""
        found, place = where_to_go_on(committed, first, self._topic_id), f"{self.tp.topic}/{self.tp.partition}"
        command = f"holdfast offsets set {self.loop.service} --partition {self.tp.partition} --to"
        if self.loop.may_skip and (isinstance(found, Removed) or found.offset == self._out_of_range):
            log.warning("records are gone that nobody has read, the first that is left is next", place=place)
            return first
        if isinstance(found, Removed):
            raise PartitionStopped(
                f"{place}: the records from offset {found.first} to {found.last} were removed before they were "
                f"checked. Lengthen the topic's retention, then say where to go on: {command} earliest"
            )
        if found.offset == self._out_of_range:
            raise PartitionStopped(
                f"{place}: the log ends before offset {found.offset}, up to which it was checked, so records were "
                "lost and others may be in their place. See what the brokers' log says of unclean elections, then "
                "say where to go on (earliest needs --force, for it judges what is left of them again): "
                f"{command} OFFSET"
            )
        if found.reason is Reason.MADE_AGAIN:
            log.warning(
                "the topic was deleted and made again, its records are checked from the first on",
                topic=self.tp.topic,
                partition=self.tp.partition,
                offset=first,
            )
        elif found.reason is Reason.MARKERS_REMOVED:
            log.warning(
                "offsets are gone behind the last record that an earlier version checked; they are taken for "
                "transaction markers",
                topic=self.tp.topic,
                partition=self.tp.partition,
                offsets=first - committed.offset,
            )
        return found.offset

    def _can_go_on_without(self, error: RecordsRefused) -> bool:
        """Whether the same records, tried again, will not fail in the same way."""
        for topic, size in error.too_large:
            self._max_bytes[topic] = min(self._max_bytes.get(topic, size), max(1, size // 2))
        if error.refusals:
            return self.work.refused(error.refusals)
        if not error.too_large:
            # An older broker does not say which one it means.
            self._at_once = max(1, self._at_once // 2)
        return True

    async def _turn(self) -> None:
        if self._left() < self.loop.max_records and self._packed_bytes < FETCHED_BYTES:
            self.waiting = True
            if self.stopping:
                return
            await self._fetch()
            self.waiting = False
        if self.stored and not self.records:
            self.waiting = True
            await self.loop.budget.room()
            self.waiting = False
        records = self._unpack()
        if records:
            await self._prepare(records)
        try:
            writes = self.work.process(records)
        except ReopenLane:
            raise
        except PrepareAgain:
            self.records[:0] = records
            return
        except Exception as error:
            log.exception("processing failed, going record by record", partition=self.tp.partition)
            await self._one_by_one(records, error)
            return
        position = self._position_after(records)
        if records or writes:
            assert self.producer is not None  # noqa: S101  _open ran
            packed = pack(self.producer, writes, self._max_bytes)
            # While this is on its way, the other lanes work in the memory that it had.
            del records, writes
            await self.work.committed(await self._publish(packed, position))
            self._at_once = min(self.loop.max_records, 2 * self._at_once)
        elif position > self.offset:
            await self._publish((), position)

    def _position_after(self, records: Sequence[Record]) -> int:
        """The position once these are judged: behind what follows them too, unless there are more records here."""
        if not self._left():
            return max(self._fetched_to, self.offset)
        return records[-1].offset + 1 if records else self.offset

    async def _prepare(self, records: Sequence[Record]) -> None:
        async with _within(self.loop.prepare_within, "tell what a batch is judged by"):
            await self.work.prepare(records)

    def _left(self) -> int:
        """How many records are here and not judged."""
        return len(self.records) + sum(batch.size for batch in self.stored)

    async def _fetch(self) -> None:
        assert self.consumer is not None  # noqa: S101  _open ran
        self.consumer.resume(self.tp)
        fetched = await self.consumer.getmany(self.tp, timeout_ms=0 if self._left() else self.loop.poll_ms)
        for batch in fetched.get(self.tp, ()):
            self.stored.append(batch)
            self._packed_bytes += batch.packed
        # A transaction's markers take offsets too, and may be all that there was.
        self._fetched_to = await self.consumer.position(self.tp)
        if self._left() < self.loop.max_records:
            # All that there is: what came beside this batch would be old when it is looked at, and hide what is newer.
            self.consumer.pause(self.tp)

    def _unpack(self) -> list[Record]:
        """The next records to judge; no more are unpacked than that takes, for they need much memory."""
        budget, most = self.loop.budget, self.loop.max_unpacked_bytes
        while self.stored and len(self.records) < self._at_once and self._unpacked_bytes < most:
            if self.records and budget.is_full():
                break
            batch, before = self.stored.pop(0), unpacked_bytes()
            self.records += records_of([batch], self.offset, tolerant=True)
            self._packed_bytes -= batch.packed
            self._hold(self._unpacked_bytes + max(batch.packed, unpacked_bytes() - before))
        records = self.records[: self._at_once]
        del self.records[: self._at_once]
        # The records that are handed out are gone before another partition unpacks any.
        left = len(self.records)
        self._hold(self._unpacked_bytes * left // (len(records) + left) if left else 0)
        return records

    def _hold(self, size: int) -> None:
        """So many bytes are unpacked and wait here."""
        self.loop.budget.change(size - self._unpacked_bytes)
        self._unpacked_bytes = size

    def behind(self) -> int | None:
        """How many offsets wait, as far as the last fetch told; None before the first."""
        highwater = self.consumer.highwater(self.tp) if self.state == "running" and self.consumer is not None else None
        return None if highwater is None else max(0, highwater - self.offset)

    def look_for_open_transaction(self) -> None:
        """Show for how long one open transaction has held the partition."""
        consumer, seconds = self.consumer, 0.0
        if self.state == "running" and consumer is not None and (highwater := consumer.highwater(self.tp)) is not None:
            seconds = self.held.seconds(consumer.last_stable_offset(self.tp), highwater, time.monotonic())
        metrics.HELD_BACK.labels(self.loop.service, str(self.tp.partition)).set(seconds)

    async def _one_by_one(self, records: Sequence[Record], error: Exception) -> None:
        """Find the record that cannot be processed, and put it aside after three attempts."""
        if not records:
            raise error
        for record in records:
            writes = None
            await self._prepare([record])
            for _ in range(3):
                try:
                    writes = self.work.process([record])
                    break
                except ReopenLane:
                    raise
                except PrepareAgain:
                    await self._prepare([record])
                except Exception as failure:
                    error = failure
            if writes is None:
                writes = self.work.poison(record, error)
            await self.work.committed(
                await self._publish(pack(self.producer, writes, self._max_bytes), record.offset + 1)
            )
            if self.stopping:
                return

    async def _publish(self, packed: Sequence[Packed], position: int) -> dict[TopicPartition, int]:
        producer = self.producer
        assert producer is not None  # noqa: S101  _open ran
        metadata = Committed(position, is_position=True, topic_id=self._topic_id).metadata()
        offsets = {self.tp: OffsetAndMetadata(position, metadata)} if position > self.offset else {}
        size = sum(one.batch.size() for one in packed)
        with self.loop.budget.holding(size):
            async with _within(PUBLISH_WITHIN, "take the batch"):
                written = await self._send(producer, packed, offsets)
        self.offset = position
        return written

    async def _send(
        self, producer: AIOKafkaProducer, packed: Sequence[Packed], offsets: dict[TopicPartition, OffsetAndMetadata]
    ) -> dict[TopicPartition, int]:
        if not self.loop.exactly_once:
            written = await send_all(producer, packed)
            self.loop.commit_soon(offsets)
            return written
        await producer.begin_transaction()
        # While the records are on their way, and after their partitions are known to the transaction.
        sending = asyncio.ensure_future(_send_offsets(producer, offsets, self.loop.group))
        try:
            written = await send_all(producer, packed)
            if (failure := await sending) is not None:
                raise failure
        finally:
            sending.cancel()
        await producer.commit_transaction()
        return written

    async def _discard_clients(self) -> None:
        self.stored, self.records = [], []
        self._packed_bytes = 0
        self._hold(0)
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            await close(consumer, within=1.0)
        producer, self.producer = self.producer, None
        if producer is None:
            return
        with contextlib.suppress(Exception):
            # Only where the transaction is known to be open and healthy; else the next init ends it.
            if self.loop.exactly_once and producer._txn_manager.is_in_transaction():
                await asyncio.wait_for(producer.abort_transaction(), 1.0)
        await close(producer, within=1.0)


@contextlib.asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"Kafka did not {what} within {seconds:g} s") from None


async def _send_offsets(
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


class TransactionalLoop:
    """Runs `open_work(partition)` for each partition of `topic` that the group assigns to this process."""

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        service: str,
        topic: str,
        group: str,
        worker: str,
        open_work: Callable[[int], Work],
        exactly_once: bool = True,
        poll_ms: int = 200,
        max_records: int = 10_000,
        max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
        give_up_after: timedelta = timedelta(minutes=5),
        begin: Callable[[TopicPartition], Awaitable[int]] | None = None,
        prepare_within: float = PUBLISH_WITHIN,
        fetch_wait_ms: int = 500,
        may_skip: bool = False,
    ) -> None:
        """`begin` says, and commits, where a partition begins that has no committed offset; without it, at its
        first record.

        `prepare_within`: seconds for what the work does before a batch. `fetch_wait_ms`: how long a broker may keep a
        fetch that finds nothing. `may_skip`: records that were removed before they were read do not stop a partition.
        """
        self.kafka, self.service, self.topic, self.group, self.worker = kafka, service, topic, group, worker
        self.open_work, self.exactly_once = open_work, exactly_once
        self.poll_ms, self.max_records, self.give_up_after = poll_ms, max_records, give_up_after
        self.max_unpacked_bytes, self.budget = max_unpacked_bytes, Budget(max_in_flight_bytes)
        self.begin = begin or self._begin_at_first
        self.prepare_within, self.fetch_wait_ms, self.may_skip = prepare_within, fetch_wait_ms, may_skip
        self.lanes: dict[TopicPartition, _Lane] = {}
        self.first_topic_id: str | None = None
        self.error: BaseException | None = None
        self.joined = False
        self.answered = True
        self._ended = asyncio.Event()
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._committing: asyncio.Task[None] | None = None
        session_ms = int(kafka.session_timeout.total_seconds() * 1000)
        self.consumer = AIOKafkaConsumer(
            group_id=group,
            client_id=worker,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 10,
            # Longer than the lanes take to end when a rebalance revokes them.
            rebalance_timeout_ms=30_000,
            # The lanes poll on their own; a slow batch must not throw the worker out of the group.
            max_poll_interval_ms=600_000,
            # Partitions that were added are taken up within that time.
            metadata_max_age_ms=10_000,
            **kafka.client_options(),
        )

    def make_consumer(self, tp: TopicPartition) -> AIOKafkaConsumer:
        return reader(
            self.kafka,
            client_id=f"{self.worker}-{tp.partition}",
            auto_offset_reset="none",
            max_partition_fetch_bytes=4 * 1024 * 1024,
            fetch_max_wait_ms=self.fetch_wait_ms,
            value_deserializer=in_batches,
        )

    def make_producer(self, tp: TopicPartition) -> AIOKafkaProducer:
        options: dict[str, Any] = {"enable_idempotence": True}
        if self.exactly_once:
            options = {
                "transactional_id": transactional_id(self.group, tp),
                "transaction_timeout_ms": int(TRANSACTION_TIMEOUT * 1000),
            }
        return AIOKafkaProducer(
            client_id=f"{self.worker}-{tp.partition}",
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            linger_ms=0,
            acks="all",
            retry_backoff_ms=10,
            **options,
            **self.kafka.client_options(),
        )

    def commit_soon(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit at least once, of all partitions together: aiokafka has one commit of a group on its way."""
        self._uncommitted |= offsets
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit())

    async def commit_begin(self, begins: Mapping[TopicPartition, Committed]) -> None:
        """Commit where partitions of the topic begin, all or none; also of partitions that others are assigned."""
        topic_id = (await topic_ids(self.consumer._client, [self.topic])).get(self.topic)
        offsets = {
            tp: OffsetAndMetadata(begin.offset, begin._replace(topic_id=topic_id).metadata())
            for tp, begin in begins.items()
        }
        # The consumer's own `commit` takes only what it is assigned. The group's generation goes with it: a worker
        # that was taken for dead commits nothing.
        await self.consumer._coordinator.commit_offsets(None, offsets)

    async def _begin_at_first(self, tp: TopicPartition) -> int:
        first = int((await self.consumer.beginning_offsets([tp]))[tp])
        await self.commit_begin({tp: Committed(first, is_position=True)})
        return first

    async def committed_all(self) -> None:
        """Wait until what was given to `commit_soon` is committed, or was refused."""
        if self._committing is not None:
            await asyncio.wait([self._committing])

    async def _commit(self) -> None:
        while self._uncommitted:
            offsets, self._uncommitted = self._uncommitted, {}
            try:
                await self.consumer.commit(offsets)
            except (KafkaError, AssertionError) as error:  # as in `_watch_kafka`
                # What is not committed is judged once more.
                log.warning("offsets not committed", error=describe(error))

    async def start(self) -> None:
        """Join the group. Raises KafkaUnavailable."""
        try:
            await self.consumer.start()
        except KafkaError as error:
            raise KafkaUnavailable(await explain(self.kafka, error)) from None
        await end_membership(self.consumer, self.worker)
        self.consumer.subscribe([self.topic], listener=_Listener(self))
        self._watch = asyncio.create_task(self._watch_kafka())

    async def _watch_kafka(self) -> None:
        """Notice what no lane is told: that Kafka does not answer, or that the client's own tasks have died."""
        while not self._ended.is_set():
            try:
                async with asyncio.timeout(ANSWER_WITHIN):
                    await self.consumer.committed(TopicPartition(self.topic, 0))
                self.answered = True
            except (KafkaError, TimeoutError, AssertionError):
                # aiokafka asserts that it knows a broker, and one that has just restarted names none.
                self.answered = False
            # Errors of the group (no access, a deleted topic) would surface only through a fetch.
            for task in (self.consumer._coordinator._coordination_task, self.consumer._fetcher.error_future):
                if task.done() and not task.cancelled() and (failure := task.exception()) is not None:
                    self.fail(failure)
            for lane in list(self.lanes.values()):
                lane.look_for_open_transaction()
            # Whoever polls no more is thrown out of the group.
            with contextlib.suppress(KafkaError):
                await self.consumer.getmany(timeout_ms=1000)

    async def run(self) -> None:
        """Return after stop(); raise the error that stopped a lane for good."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error

    async def must_run(self, beside: Awaitable[None]) -> None:
        """Run what the work cannot do without; an error of it stops the worker."""
        try:
            await beside
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        log.error("stopped on an error", error=describe(error))
        self.error = self.error or error
        self._ended.set()

    def not_ready(self) -> str | None:
        """Why this worker does not do its work, or None when it does."""
        if self.error is not None:
            return f"stopped on an error: {describe(self.error)}"
        if not self.answered:
            return "Kafka does not answer"
        if not self.joined:
            return "waiting for the group to assign partitions"
        lanes = sorted((tp.partition, lane) for tp, lane in list(self.lanes.items()))
        if stopped := [f"{number} ({lane.stopped_because})" for number, lane in lanes if lane.stopped_because]:
            return f"partitions stopped: {', '.join(stopped)}"
        idle = [(number, lane.state) for number, lane in lanes if lane.state != "running"]
        return f"partitions not running: {', '.join(f'{p} {state}' for p, state in idle)}" if idle else None

    def was_made_again(self, topic_id: str | None) -> bool:
        """Whether the topic is another one than that which this worker read first."""
        self.first_topic_id = self.first_topic_id or topic_id
        return topic_id is not None and topic_id != self.first_topic_id

    def others_run(self, lane: _Lane) -> bool:
        """Whether another partition of this worker is judged."""
        return any(other.state == "running" for other in self.lanes.values() if other is not lane)

    async def stop(self) -> None:
        """Finish the batches in flight and leave the group."""
        self._ended.set()
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.cancel()
        await self.close_lanes(list(self.lanes), STOP_WITHIN)
        await close(self.consumer, within=1.5)

    async def close_lanes(self, partitions: Iterable[TopicPartition], within: float) -> None:
        closing = [lane for tp in partitions if (lane := self.lanes.pop(tp, None)) is not None]
        if closing:
            await asyncio.gather(*(lane.stop(within) for lane in closing))
            if self._committing is not None:
                await asyncio.wait([self._committing], timeout=within)
            # A closed client is a cycle that holds what it had fetched, and services seldom look for cycles.
            gc.collect()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, loop: TransactionalLoop) -> None:
        self._loop = loop

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._loop.joined = False
        await self._loop.close_lanes(list(self._loop.lanes), STOP_WITHIN)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if self._loop._ended.is_set():
            return
        self._loop.consumer.pause(*assigned)
        for tp in assigned:
            self._loop.lanes[tp] = _Lane(self._loop, tp)
        self._loop.joined = True
        log.info("partitions assigned", topic=self._loop.topic, partitions=sorted(tp.partition for tp in assigned))


def transactional_id(group: str, tp: TopicPartition) -> str:
    """The id under which only one worker at a time writes what becomes of a partition."""
    return f"{group}-{tp.topic}-{tp.partition}"


def partition_for(key: str, partitions: int) -> int:
    """The partition that Java's default partitioner (murmur2) gives `key`, and what other clients can be told to do."""
    return partition_of_key(key.encode(), partitions)


@lru_cache(16_384)
def partition_of_key(key: bytes, partitions: int) -> int:
    """The same for a key in bytes; remembered, since its hash is computed byte by byte in Python."""
    everyone = list(range(partitions))
    return int(DefaultPartitioner()(key, everyone, everyone))


async def end_membership(consumer: AIOKafkaConsumer, worker: str) -> None:
    """Take out of the consumer's group whoever has this worker's name: it was killed, and this one is in its place.

    Else the group would wait until its session is over before anybody gets its partitions. A living one of the same
    name, which nobody should have started, joins again. Where the group cannot be asked, it waits.
    """
    coordinator = consumer._coordinator
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(ANSWER_WITHIN):
            await coordinator.ensure_coordinator_known()
            answer = await coordinator._send_req(DescribeGroupsRequest([coordinator.group_id]))
            ((_, _, _, _, _, members, *_),) = answer.groups
            for member_id, client_id, *_ in members:
                if client_id == worker:
                    await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, member_id))


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
        ids = fetch_by_id(consumer, await topic_ids(consumer._client, {tp.topic for tp in partitions}))
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


async def topic_id_of(kafka: KafkaSettings, topic: str) -> str | None:
    """Kafka's id of a topic; None where the broker tells none, or the topic is not there. Raises KafkaError."""
    consumer = reader(kafka)
    await consumer.start()
    try:
        return (await topic_ids(consumer._client, [topic])).get(topic)
    finally:
        await close(consumer)


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


async def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions a topic has. Raises KafkaUnavailable."""
    return (await describe_topics(kafka, [topic]))[topic]


async def describe_topics(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """Partition count by topic. Raises KafkaUnavailable when Kafka cannot be reached or a topic is missing."""
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **kafka.client_options())
    try:
        await admin.start()
        found = {t["topic"]: t for t in await admin.describe_topics(list(topics))}
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(kafka, error)) from None
    finally:
        await admin.close()
    counts: dict[str, int] = {}
    for topic in topics:
        entry = found.get(topic)
        if entry is None or entry["error_code"]:
            if entry is not None and entry["error_code"] == TopicAuthorizationFailedError.errno:
                raise KafkaUnavailable(await explain(kafka, TopicAuthorizationFailedError(topic)))
            missing = entry is None or entry["error_code"] == UnknownTopicOrPartitionError.errno
            reason = (
                "does not exist" if entry is None or missing else f"answers {for_code(entry['error_code']).__name__}"
            )
            raise KafkaUnavailable(f"The topic {topic} {reason}. Create the topics with: holdfast topics create")
        counts[topic] = len(entry["partitions"])
    return counts


async def check_topics(settings: Settings, roles: Iterable[str]) -> dict[str, int]:
    """Partition count by role, once every needed topic is there and the counts fit. Raises KafkaUnavailable.

    A topic may have more partitions than it needs: so those of the verdicts are grown first, then predictions.
    """
    names = {role: getattr(settings.topics, role) for role in roles}
    counts = await describe_topics(settings.kafka, list(names.values()))
    by_role = {role: counts[name] for role, name in names.items()}
    for role in names:
        base = TOPICS[role].partitions
        if isinstance(base, str) and base in by_role and by_role[role] < by_role[base]:
            raise TopicsMismatch(
                f"The topic {names[role]} has {by_role[role]} partitions and {names[base]} has {by_role[base]}. "
                f"Give {names[role]} {by_role[base]} too: order per key depends on equal numbers."
            )
    return by_role


async def create_topics(settings: Settings) -> dict[str, str]:
    """Create what is missing, with the settings of the table. Returns `created` or `exists` by topic name."""
    admin = AIOKafkaAdminClient(request_timeout_ms=30_000, **settings.kafka.client_options())
    names = {role: getattr(settings.topics, role) for role in TOPICS}
    try:
        await admin.start()
        sizes = {
            "predictions": settings.topic_settings.partitions,
            "control": settings.topic_settings.control_partitions,
        }
        existing = set(await admin.list_topics())
        if settings.topics.predictions in existing:
            described = await admin.describe_topics([settings.topics.predictions])
            sizes["predictions"] = len(described[0]["partitions"])
        made = await create_all(
            admin,
            [
                NewTopic(
                    names[role],
                    sizes[topic.partitions] if isinstance(topic.partitions, str) else topic.partitions,
                    settings.topic_settings.replication_factor,
                    topic_configs=topic.settings,
                )
                for role, topic in TOPICS.items()
                if names[role] not in existing
            ],
        )
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await admin.close()
    return {name: made.get(name, "exists") for name in names.values()}


async def create_all(admin: AIOKafkaAdminClient, new: Sequence[NewTopic]) -> dict[str, str]:
    """Create topics, and wait until their leaders are known. Returns `created` or `exists` by name.

    Raises the broker's error of the first one that it refused.
    """
    if not new:
        return {}
    result: dict[str, str] = {}
    answers = list((await admin.create_topics(list(new))).topic_errors)
    # Brokers before 3.6 know one limit of timestamps instead of two.
    refused = {name for name, code, *_ in answers if code == InvalidConfigurationError.errno}
    if older := [_with_one_time_limit(topic) for topic in new if topic.name in refused]:
        answers = [answer for answer in answers if answer[0] not in refused]
        answers += (await admin.create_topics(older)).topic_errors
    for name, code, *message in answers:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise for_code(code)(*message)
        result[name] = "exists" if code else "created"
    deadline = time.monotonic() + LEADER_WITHIN
    while without := [topic for topic in await admin.describe_topics(list(result)) if _has_no_leader(topic)]:
        if time.monotonic() > deadline:
            raise for_code(without[0]["error_code"] or LeaderNotAvailableError.errno)(without[0]["topic"])
        await asyncio.sleep(0.05)
    return result


def _with_one_time_limit(topic: NewTopic) -> NewTopic:
    configs = {key: value for key, value in topic.topic_configs.items() if key not in TIME_LIMITS}
    if len(configs) < len(topic.topic_configs):
        configs["message.timestamp.difference.max.ms"] = NO_TIME_LIMIT
    return NewTopic(topic.name, topic.num_partitions, topic.replication_factor, topic_configs=configs)


def _has_no_leader(topic: Mapping[str, Any]) -> bool:
    return bool(topic["error_code"] or any(partition["error_code"] for partition in topic["partitions"]))
