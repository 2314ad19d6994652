"""Follow topics: everything that is there, then everything that comes."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from holdfast.kafka.fetch_by_id import Ids, fetch_by_id
from holdfast.kafka.reading import close, end_offsets, read_to_end, reader
from holdfast.kafka.topic_ids import topic_ids
from holdfast.settings import KafkaSettings

log = structlog.get_logger("holdfast.follow")

PROBE_EVERY = 1.0
"""Seconds between questions to a broker that has nothing to tell."""
PROBE_WITHIN = 2.0
METADATA_EVERY = 5.0
"""Seconds within which partitions are found that a topic was given meanwhile."""


ReadWhatIsThere = Callable[
    [KafkaSettings, Sequence[TopicPartition], Callable[[Sequence[ConsumerRecord]], None]],
    Awaitable[dict[TopicPartition, int]],
]
"""Gives records of some partitions, and answers the offset after the last one, by partition."""


class Follower:
    """Gives committed records of some topics to `take`, each call with those of one partition.

    What was there at the start has been taken once `caught_up` is set. With `behind_transactions` what lies behind
    an open transaction counts as there, although it is not given yet: `silent_for` tells of it.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        take: Callable[[Sequence[ConsumerRecord]], None],
        *,
        behind_transactions: bool = False,
    ) -> None:
        self._kafka, self._take, self._behind_transactions = kafka, take, behind_transactions
        self.caught_up = asyncio.Event()
        # By partition: its leader may be away while the others' are not.
        self._heard_at: dict[TopicPartition, float] = {}
        self._began_at = time.monotonic()
        self._consumer: AIOKafkaConsumer | None = None
        self._ids = Ids({})

    @property
    def silent_for(self) -> float:
        """Seconds since Kafka last gave a record, or said that there is no other, in the partition silent longest."""
        return time.monotonic() - min(self._heard_at.values(), default=self._began_at)

    async def catch_up(self) -> None:
        """Wait until everything that is there by now has been taken, not only what was there at the start."""
        await self.caught_up.wait()
        assert self._consumer is not None  # noqa: S101  follow() made it
        asked_at, partitions = time.monotonic(), list(self._consumer.assignment())
        ids = await topic_ids(self._consumer, {tp.topic for tp in partitions})
        for tp, end in (await end_offsets(self._kafka, partitions)).items():
            # follow() moves it.
            while not self._reads(tp, ids) or await self._consumer.position(tp) < end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            self._heard(tp, asked_at)

    def _reads(self, tp: TopicPartition, ids: Mapping[str, str | None]) -> bool:
        """Whether the topic that is followed is the one that has this id, and not one of before."""
        topic_id = ids.get(tp.topic)
        return topic_id is None or self._ids.by_name.get(tp.topic, topic_id) == topic_id

    def _heard(self, tp: TopicPartition, at: float) -> None:
        self._heard_at[tp] = max(at, self._heard_at.get(tp, at))

    async def follow(
        self,
        partitions: Mapping[str, int],
        tails: Mapping[str, int] | None = None,
        readers: Mapping[str, ReadWhatIsThere] | None = None,
    ) -> None:
        """Runs until cancelled. Raises what reading raised, and what `take` raised.

        `partitions` is the number of them by topic; those that a topic is given later are read from their first
        record. `tails` bounds how many offsets of each partition of a topic are read of what is there, from its end;
        a topic of `readers` has its own way of reading what is there.
        """
        tails, readers = tails or {}, readers or {}
        ends: dict[TopicPartition, int] = {}
        for topic, count in partitions.items():
            tps = [TopicPartition(topic, number) for number in range(count)]
            read = readers.get(topic) or partial(read_to_end, tail=tails.get(topic))
            ends |= await read(self._kafka, tps, self._take)
        self._heard_at = dict.fromkeys(ends, time.monotonic())
        consumer = self._consumer = reader(
            self._kafka,
            auto_offset_reset="none",
            fetch_max_wait_ms=100,
            metadata_max_age_ms=int(METADATA_EVERY * 1000),
        )
        prober = reader(self._kafka, isolation_level="read_uncommitted") if self._behind_transactions else consumer
        probing: asyncio.Task[None] | None = None
        try:
            for client in {consumer, prober}:
                await client.start()
            self._ids = fetch_by_id(consumer, await topic_ids(consumer, partitions))
            _assign(consumer, ends)
            self.caught_up.set()
            while True:
                if added := _added(consumer, partitions, ends):
                    ends = {tp: await consumer.position(tp) for tp in ends}
                    for tp in added:
                        log.info("a topic has grown, its partition is followed", topic=tp.topic, partition=tp.partition)
                        ends[tp] = 0
                        self._heard(tp, time.monotonic())
                    _assign(consumer, ends)
                try:
                    batches = await consumer.getmany(timeout_ms=1000)
                except OffsetOutOfRangeError as error:
                    await self._find_place(consumer, error.args[0])
                    continue
                for tp, records in batches.items():
                    self._take(records)
                    self._heard(tp, time.monotonic())
                # A consumer reconnects in silence: that nothing came does not mean that nothing happened.
                if self.silent_for > PROBE_EVERY and (probing is None or probing.done()):
                    probing = asyncio.create_task(self._probe(consumer, prober, list(ends)))
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.wait([probing])
            for client in {consumer, prober}:
                await close(client)

    async def _find_place(self, consumer: AIOKafkaConsumer, lost: Collection[TopicPartition]) -> None:
        """Go on at the first record of what the topic is by now: some were removed, or it was made again."""
        try:
            async with asyncio.timeout(PROBE_WITHIN):
                refused = set(self._ids.refused)
                ids = await topic_ids(consumer, refused) if refused else {}
                for topic, topic_id in ids.items():
                    log.warning(
                        "the topic was deleted and made again, it is followed from its first record", topic=topic
                    )
                    self._ids.update(topic, topic_id)
                places = [tp for tp in consumer.assignment() if tp.topic in refused or tp in lost]
                for tp, first in (await consumer.beginning_offsets(places)).items():
                    consumer.seek(tp, first)
        except (KafkaError, TimeoutError, AssertionError):  # as in `_probe`
            # It is not there now; the next fetch finds that out again.
            await asyncio.sleep(0.5)

    async def _probe(
        self, consumer: AIOKafkaConsumer, prober: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
    ) -> None:
        # aiokafka asserts that it knows a broker, and one that has just restarted names none.
        with contextlib.suppress(KafkaError, TimeoutError, AssertionError):
            asked_at = time.monotonic()
            ids = await asyncio.wait_for(topic_ids(consumer, {tp.topic for tp in partitions}), PROBE_WITHIN)
            for tp, end in (await asyncio.wait_for(prober.end_offsets(partitions), PROBE_WITHIN)).items():
                if self._reads(tp, ids) and await consumer.position(tp) >= end:
                    self._heard(tp, asked_at)


def _assign(consumer: AIOKafkaConsumer, positions: Mapping[TopicPartition, int]) -> None:
    consumer.assign(list(positions))
    for tp, position in positions.items():
        consumer.seek(tp, position)


def _added(
    consumer: AIOKafkaConsumer, topics: Iterable[str], known: Collection[TopicPartition]
) -> list[TopicPartition]:
    """The partitions of these topics that the cluster has by now and that are not known yet."""
    there = (TopicPartition(topic, number) for topic in topics for number in consumer.partitions_for_topic(topic) or ())
    return [tp for tp in there if tp not in known]
