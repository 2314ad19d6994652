"""The transactional loop: consume, process, produce and commit offsets, all or nothing, by partition.

Each assigned partition has a worker of its own: one task, one producer. The producer's transactional id is made
of the group and the partition, so that the next worker of the partition fences the one before: aiokafka
sends no group generation with the offsets, hence the group alone would not.

A worker opens by (1) starting its producer, which ends whatever transaction its predecessor left, (2) reading
the committed offset, only now, and seeking there, (3) letting its work restore what it remembers. Then, batch
by batch: fetch, process, write, offsets, await every acknowledgement, commit. On any error the producer is
thrown away, since the outcome of its transaction may be unknown, and the worker opens again from the committed
offset.

What is committed is a position: it goes behind transaction markers and aborted records too, also in a turn without
records. Where records were removed unseen the worker stops, says so, and looks again from time to time; the others
go on.

The group's consumer only says which partitions are ours, and fetches nothing: a worker has a consumer of its own, for
aiokafka has one fetch on its way to a broker, and would let all partitions wait for the one that is slowest.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError, ProducerFenced, UnknownTopicOrPartitionError
from aiokafka.structs import OffsetAndMetadata

from holdfast import metrics
from holdfast.core.errors import describe
from holdfast.core.progress import Committed, Reason, Removed, where_to_go_on
from holdfast.core.record import Record
from holdfast.kafka.codecs import unpacked_bytes
from holdfast.kafka.errors import KafkaUnavailable, PartitionStopped, TopicsMismatch
from holdfast.kafka.fetch_by_id import Ids, fetch_by_id
from holdfast.kafka.held_back import HeldBack
from holdfast.kafka.offsets import committed_progress
from holdfast.kafka.reading import close
from holdfast.kafka.records import StoredBatch, records_of
from holdfast.kafka.refusals import RecordsRefused, Refusal
from holdfast.kafka.topic_ids import topic_ids
from holdfast.kafka.transaction import Packed, Write, pack, send_all, send_offsets, within

if TYPE_CHECKING:
    from holdfast.kafka.group import TransactionalLoop

log = structlog.get_logger("holdfast.kafka")
FETCHED_BYTES = 8 * 1024 * 1024
"""Of stored batches that wait, packed, in one partition; with that much here no more is fetched."""
MAX_UNPACKED_BYTES = 32 * 1024 * 1024
"""Of the records that are judged together in one partition; the batch that reaches it is the last one."""
STOP_WITHIN = 5.0
"""Seconds that a worker gets to end its batch; supervisors kill after ten."""
PUBLISH_WITHIN = 15.0
"""Seconds for one transaction. Less than the client's request time-out: it would send the request that ends the
transaction again, and the first one, late, could end the next transaction."""
STOPPED_FOR = 5.0
"""Seconds after which a stopped partition looks whether it may go on."""


class Work(Protocol):
    """What a worker does with its partition."""

    topic_id: str | None
    """Set before `restore`: Kafka's id of the topic; None where the broker tells none."""

    async def restore(self) -> None:
        """Called before the first batch, and again whenever the worker opens again."""

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


class Reopen(Exception):  # noqa: N818  a request, not a failure
    """Raised by `process` when the work must be restored before it can go on."""


class PrepareAgain(Exception):  # noqa: N818  a request, not a failure
    """Raised by `process` when `prepare` must read more before the same records can be judged."""


class State(StrEnum):
    """What a partition worker does."""

    OPENING = "opening"
    RUNNING = "running"
    FAILING = "failing"
    """It waits, and opens again."""
    STOPPED = "stopped"
    """It waits for a person, and looks from time to time whether it can go on."""


class _Retry:
    """Since when a partition has been failing, and the pause before the next attempt."""

    _FIRST, _LONGEST = 0.1, 5.0

    def __init__(self, give_up_after: timedelta) -> None:
        self._give_up_after = give_up_after.total_seconds()
        self._since: float | None = None
        self.delay = self._FIRST

    def succeeded(self) -> None:
        self._since, self.delay = None, self._FIRST

    def wait_for_a_person(self) -> None:
        self._since, self.delay = None, STOPPED_FOR

    def has_failed_too_long(self) -> bool:
        """Count a failure. Returns whether the failures have lasted longer than attempts are of use."""
        now = time.monotonic()
        self._since = self._since or now
        return now - self._since > self._give_up_after

    def pause(self) -> float:
        """Return the seconds until the next attempt; the pause after that one is twice as long."""
        delay, self.delay = self.delay, min(2 * self.delay, self._LONGEST)
        return delay


class PartitionWorker:
    """One partition: its producer, its consumer, and the work that decides what to write."""

    def __init__(self, loop: "TransactionalLoop", tp: TopicPartition) -> None:
        self.loop, self.tp = loop, tp
        self.state = State.OPENING
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
        self.task = asyncio.create_task(self._run(), name=f"worker-{tp.topic}-{tp.partition}")

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
        retry = _Retry(self.loop.give_up_after)
        try:
            while not self.stopping:
                at_once = await self._attempt(retry)
                if self.stopping:
                    break
                if not at_once:
                    self.state = State.STOPPED if self.stopped_because else State.FAILING
                await self._discard_clients()
                if not at_once:
                    self.waiting = True
                    await asyncio.sleep(retry.pause())
                    self.waiting = False
        except asyncio.CancelledError:
            if not self.stopping:
                self.loop.fail(RuntimeError(f"the task of partition {self.tp.partition} was cancelled"))
        except Exception as error:
            self.state = State.FAILING
            self.loop.fail(error)
        finally:
            self.work.closed()
            for gauge in (metrics.PARTITION_STOPPED, metrics.HELD_BACK):
                gauge.remove(self.loop.service, str(self.tp.partition))
            await self._discard_clients()

    async def _attempt(self, retry: "_Retry") -> bool:
        """Open, and work until that fails or is stopped. Returns whether to open again at once.

        Raises errors that no further attempt helps against.
        """
        partition = self.tp.partition
        try:
            await self._open()
            await self._work(retry)
        except Reopen:
            return True
        except RecordsRefused as error:
            if self._can_go_on_without(error):
                # The broker counts what it refused, so the producer is of no use any more.
                return True
            log.error("records are refused", partition=partition, error=str(error))
            if retry.has_failed_too_long():
                raise KafkaUnavailable(f"{error}. See that topic's settings: holdfast doctor") from None
        except ProducerFenced:
            # Another worker has the partition: its rebalance will reach this one too.
            log.warning("partition taken over by another worker", partition=partition)
        except OffsetOutOfRangeError as error:
            # The log has changed under the position: opening again finds out how.
            (offset,) = error.args[0].values()
            self._out_of_range = None if self._ids is not None and self._ids.refused else offset
            log.warning("partition is not where it was", partition=partition, offset=offset)
        except PartitionStopped as stop:
            retry.wait_for_a_person()
            self._stopped(str(stop))
        except TopicsMismatch:
            raise
        except Exception as error:
            log.warning(
                "partition failed, going back to what is committed",
                partition=partition,
                error=describe(error),
                retry_in_s=retry.delay,
            )
            if retry.has_failed_too_long():
                if not self.loop.others_run(self):
                    raise
                self._stopped(describe(error))
        return False

    async def _work(self, retry: "_Retry") -> None:
        while not self.stopping:
            self.state = State.RUNNING
            self._stopped(None)
            before = self.offset
            await self._turn()
            # An empty turn before the first answer says nothing.
            if self.offset > before or self.behind() is not None:
                retry.succeeded()

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
        self.state = State.OPENING
        self.waiting = True
        self.producer, self.consumer = self.loop.make_producer(self.tp), self.loop.make_consumer(self.tp)
        async with within(PUBLISH_WITHIN, "let a producer in"):
            await self.producer.start()
            await self.loop.committed_all()
            committed = await committed_progress(self.loop.consumer, self.tp)
            await self.consumer.start()
            ids = await topic_ids(self.consumer, [self.tp.topic])
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
        except Reopen:
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
            # While this is on its way, the other workers work in the memory that it had.
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
        async with within(self.loop.prepare_within, "tell what a batch is judged by"):
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
        highwater = (
            self.consumer.highwater(self.tp) if self.state is State.RUNNING and self.consumer is not None else None
        )
        return None if highwater is None else max(0, highwater - self.offset)

    def _highwater(self) -> int | None:
        if self.state is not State.RUNNING or self.consumer is None:
            return None
        highwater: int | None = self.consumer.highwater(self.tp)
        return highwater

    def look_for_open_transaction(self) -> None:
        """Show for how long one open transaction has held the partition."""
        consumer, seconds = self.consumer, 0.0
        if (
            self.state is State.RUNNING
            and consumer is not None
            and (highwater := consumer.highwater(self.tp)) is not None
        ):
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
                except Reopen:
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
            async with within(PUBLISH_WITHIN, "take the batch"):
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
        sending = asyncio.ensure_future(send_offsets(producer, offsets, self.loop.group))
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
