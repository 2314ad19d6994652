"""The partitions that the group gives to this process, and a worker for each of them."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from holdfast.core.errors import describe
from holdfast.core.progress import Committed
from holdfast.kafka.budget import Budget
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.partition_worker import (
    MAX_UNPACKED_BYTES,
    PUBLISH_WITHIN,
    STOP_WITHIN,
    PartitionWorker,
    State,
    Work,
)
from holdfast.kafka.reading import close, reader
from holdfast.kafka.records import in_batches
from holdfast.kafka.topic_ids import topic_ids
from holdfast.kafka.transaction import MAX_BATCH_BYTES, transactional_id
from holdfast.settings import KafkaSettings

log = structlog.get_logger("holdfast.kafka")

MAX_REQUEST_BYTES = 8 * 1024 * 1024
MAX_IN_FLIGHT_BYTES = 256 * 1024 * 1024
"""Of what the partitions of a process have unpacked and on its way to brokers; with that much none unpacks more."""
TRANSACTION_TIMEOUT = 20.0
"""Seconds until the broker aborts what a dead worker left open; who reads committed records waits that long."""
ANSWER_WITHIN = 3.0
"""Seconds without an answer after which Kafka counts as away."""


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
        self.workers: dict[TopicPartition, PartitionWorker] = {}
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
            # Longer than the workers take to end when a rebalance revokes them.
            rebalance_timeout_ms=30_000,
            # The workers poll on their own; a slow batch must not throw the worker out of the group.
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
        topic_id = (await topic_ids(self.consumer, [self.topic])).get(self.topic)
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
        """Notice what no worker is told: that Kafka does not answer, or that the client's own tasks have died."""
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
            for worker in list(self.workers.values()):
                worker.look_for_open_transaction()
            # A consumer that stops polling is removed from the group.
            with contextlib.suppress(KafkaError):
                await self.consumer.getmany(timeout_ms=1000)

    async def run(self) -> None:
        """Return after stop(); raise the error that stopped a worker for good."""
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
        workers = sorted((tp.partition, worker) for tp, worker in list(self.workers.items()))
        if stopped := [f"{number} ({worker.stopped_because})" for number, worker in workers if worker.stopped_because]:
            return f"partitions stopped: {', '.join(stopped)}"
        idle = [(number, worker.state) for number, worker in workers if worker.state is not State.RUNNING]
        return f"partitions not running: {', '.join(f'{p} {state}' for p, state in idle)}" if idle else None

    def was_made_again(self, topic_id: str | None) -> bool:
        """Whether the topic is another one than that which this worker read first."""
        self.first_topic_id = self.first_topic_id or topic_id
        return topic_id is not None and topic_id != self.first_topic_id

    def others_run(self, worker: PartitionWorker) -> bool:
        """Whether another partition of this worker is judged."""
        return any(other.state is State.RUNNING for other in self.workers.values() if other is not worker)

    async def stop(self) -> None:
        """Finish the batches in flight and leave the group."""
        self._ended.set()
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.cancel()
        await self.close_workers(list(self.workers), STOP_WITHIN)
        await close(self.consumer, within=1.5)

    async def close_workers(self, partitions: Iterable[TopicPartition], within: float) -> None:
        closing = [worker for tp in partitions if (worker := self.workers.pop(tp, None)) is not None]
        if closing:
            await asyncio.gather(*(worker.stop(within) for worker in closing))
            if self._committing is not None:
                await asyncio.wait([self._committing], timeout=within)
            # A closed client is a cycle that holds what it had fetched, and services seldom look for cycles.
            gc.collect()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, loop: TransactionalLoop) -> None:
        self._loop = loop

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._loop.joined = False
        await self._loop.close_workers(list(self._loop.workers), STOP_WITHIN)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if self._loop._ended.is_set():
            return
        self._loop.consumer.pause(*assigned)
        for tp in assigned:
            self._loop.workers[tp] = PartitionWorker(self._loop, tp)
        self._loop.joined = True
        log.info("partitions assigned", topic=self._loop.topic, partitions=sorted(tp.partition for tp in assigned))


async def end_membership(consumer: AIOKafkaConsumer, worker: str) -> None:
    """Remove the member with this worker's name from the consumer's group: it was killed, and this one is in its place.

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
