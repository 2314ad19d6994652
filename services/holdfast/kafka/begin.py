"""Where a partition begins that has no committed offset.

Kafka's own answer, "earliest" or "latest", is wrong for a gate: the first judges again what was approved before, and
the second leaves out what came in between. No offset means one of four things:

- **A new installation**: nothing was judged yet. `guard.start_from` says where to begin. The worker that has partition
  0 fixes it for all partitions in one commit, before anything is judged, so that what arrives during the start, or
  before a crash, belongs to what is checked.
- **A partition that was added later**: the others have offsets. It begins at its first record, whatever `start_from`.
- **The group lost its offsets**: verdicts exist. The worker that has partition 0 puts every partition behind its last
  verdict (evidence.py), again in one commit.
- **The same, and it cannot be told how far the verdicts went**: the partition stops, and a person decides.

The switch writes beside each model's state up to which record of `holdfast.control` it has come.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from holdfast.core.progress import Committed
from holdfast.core.record import time_of
from holdfast.core.verdict_headers import SOURCE_TOPIC_ID
from holdfast.kafka.errors import PartitionStopped
from holdfast.kafka.evidence import Evidence, Judged
from holdfast.kafka.group import TransactionalLoop
from holdfast.kafka.offsets import committed_offset
from holdfast.kafka.reading import bounds, read_to_end
from holdfast.kafka.topic_ids import is_another
from holdfast.kafka.topics import partitions_of, topic_id_of
from holdfast.settings import Settings
from holdfast_schemas import Header

log = structlog.get_logger("holdfast.begin")

WAIT_FOR_FIRST = 10.0
"""Seconds that a worker waits for the one that has partition 0, before it says why a partition stands still."""

LOOK_AGAIN_AFTER = 60.0
"""Seconds after which a partition that waits for a person looks whether it can be told after all."""


def set_offset(service: str, partition: int) -> str:
    """The command that says where a partition goes on."""
    return f"holdfast offsets set {service} --partition {partition} --to OFFSET"


class GuardBegin:
    """Where the partitions of predictions begin."""

    def __init__(self, settings: Settings, loop: TransactionalLoop) -> None:
        self._settings, self._loop, self._topic = settings, loop, settings.topics.predictions
        # By partition: why it is stopped, and when to look again. A look may read a whole topic.
        self._refused: dict[TopicPartition, tuple[PartitionStopped, float]] = {}

    async def of(self, tp: TopicPartition) -> int:
        """Decide and commit. Raises PartitionStopped, KafkaError and KafkaUnavailable."""
        if (refused := self._refused.get(tp)) is not None and time.monotonic() < refused[1]:
            raise refused[0]
        try:
            return await self._of(tp)
        except PartitionStopped as error:
            self._refused[tp] = error, time.monotonic() + LOOK_AGAIN_AFTER
            raise

    async def _of(self, tp: TopicPartition) -> int:
        began = time.monotonic()
        while True:
            committed = await self._committed(range(await partitions_of(self._settings.kafka, self._topic)))
            if (offset := committed.get(tp.partition)) is not None:
                return offset
            if any(offset is not None for offset in committed.values()):
                return await self._alone(tp)
            if tp.partition == 0:
                await self._all(len(committed))
                continue
            if time.monotonic() - began > WAIT_FOR_FIRST:
                self._behind_verdicts(tp, await Evidence(self._settings).of(tp.partition), 0, None)
                began = time.monotonic()
            await asyncio.sleep(0.5)

    async def _committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        return {
            number: await committed_offset(self._loop.consumer, TopicPartition(self._topic, number))
            for number in partitions
        }

    async def _alone(self, tp: TopicPartition) -> int:
        """Other partitions have offsets, this one has none."""
        first, end = (bound[tp] for bound in await self._bounds([tp]))
        judged = await Evidence(self._settings).of(tp.partition)
        begin = self._behind_verdicts(tp, judged, first, end) if judged.ever else first
        await self._loop.commit_begin({tp: Committed(begin, is_position=not judged.ever)})
        if judged.ever:
            log.warning("offset lost, checking goes on behind the last verdict", partition=tp.partition, offset=begin)
        else:
            log.info("a partition without offset begins at its first record", partition=tp.partition, offset=begin)
        return begin

    async def _all(self, partitions: int) -> None:
        """No partition has an offset."""
        tps = [TopicPartition(self._topic, number) for number in range(partitions)]
        evidence = Evidence(self._settings)
        judged = {tp: await evidence.of(tp.partition) for tp in tps}
        if not any(one.ever for one in judged.values()):
            await self._first_start(tps)
            return
        firsts, ends = await self._bounds(tps)
        begins: dict[TopicPartition, int] = {}
        refused: PartitionStopped | None = None
        for tp, one in judged.items():
            try:
                if one.ever:
                    begins[tp] = self._behind_verdicts(tp, one, firsts[tp], ends[tp])
                else:
                    begins[tp] = await self._never_judged(tp, evidence, firsts[tp], ends[tp])
            except PartitionStopped as error:
                refused = error if tp.partition == 0 else refused
        if begins:
            positions = {tp: Committed(begin, is_position=not judged[tp].ever) for tp, begin in begins.items()}
            await self._loop.commit_begin(positions)
            log.warning(
                "all offsets of the group were lost, checking goes on behind the last verdicts",
                group=self._loop.group,
                offsets=_by_partition(begins),
            )
        if refused is not None:
            raise refused

    async def _first_start(self, tps: Sequence[TopicPartition]) -> None:
        start_from = self._settings.guard.start_from
        firsts, ends = await self._bounds(tps)
        begins = await self._place(tps, start_from, firsts, ends)
        await self._loop.commit_begin({tp: Committed(begin, is_position=True) for tp, begin in begins.items()})
        before = sum(begins[tp] - firsts[tp] for tp in tps)
        said: dict[str, Any] = {"start_from": start_from, "offsets": _by_partition(begins)}
        if before:
            log.warning(
                "first start: what is in predictions before these offsets stays without a verdict",
                records=before,
                advice="To check it too: holdfast offsets set guard --to earliest",
                **said,
            )
        else:
            log.info("first start: checking begins at these offsets", **said)

    async def _place(
        self,
        tps: Sequence[TopicPartition],
        start_from: str,
        firsts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        if start_from == "earliest":
            return {tp: firsts[tp] for tp in tps}
        if start_from == "latest":
            return {tp: ends[tp] for tp in tps}
        since = datetime.fromisoformat(start_from)
        return (await bounds(self._settings.kafka, tps, since, "read_committed"))[0]

    async def _never_judged(self, tp: TopicPartition, evidence: Evidence, first: int, end: int) -> int:
        """The group has lost its offsets, and this partition has no verdict: was it passed over at the first start?"""
        start_from = self._settings.guard.start_from
        if start_from == "latest" and first < end:
            # What came after the first verdicts would have been checked if it had been there.
            first_at = (await evidence.tallies()).first_at
            if first_at is None:
                raise PartitionStopped(
                    f"Partition {tp.partition} of {self._topic} has no committed offset and no verdict, and it cannot "
                    "be told whether its records were passed over at the first start. Say where checking begins: "
                    f"{set_offset('guard', tp.partition)}"
                )
            start_from = time_of(first_at).astimezone(UTC).isoformat()
        return (await self._place([tp], start_from, {tp: first}, {tp: end}))[tp]

    def _behind_verdicts(self, tp: TopicPartition, judged: Judged, first: int, end: int | None) -> int:
        if not judged.complete:
            known = "" if judged.last is None else f"The last one that is known is of offset {judged.last}. "
            raise PartitionStopped(
                f"Partition {tp.partition} of {self._topic} has no committed offset in the group {self._loop.group}, "
                f"and the verdicts that would tell how far it was checked were removed. {known}Say where checking "
                f"goes on: {set_offset('guard', tp.partition)}"
            )
        begin = first if judged.last is None else judged.last + 1
        if end is not None and begin > end:
            raise PartitionStopped(
                f"Partition {tp.partition} of {self._topic} ends at offset {end}, and has verdicts up to offset "
                f"{judged.last}: the topic was deleted and made again. Say where checking begins: "
                f"{set_offset('guard', tp.partition)} --force"
            )
        if self._settings.guard.delivery == "at_least_once":
            # The last batch may have got a part of its verdicts only.
            begin -= self._settings.guard.max_batch_records
        return max(begin, first)

    async def _bounds(
        self, tps: Sequence[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        return await bounds(self._settings.kafka, tps, None, "read_committed")


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[str, int]:
    return {str(tp.partition): offset for tp, offset in sorted(offsets.items())}


class TakenIn(NamedTuple):
    """What the states of a partition tell of the switch's progress in the control topic."""

    states: int
    handled: int
    """The last offset that a state has taken in; -1 where none says it."""
    made_again: bool
    """Some are of another topic that had the name before. They do not count."""


async def taken_in(settings: Settings, partition: int) -> TakenIn:
    """How far the switch has come in that partition of the control topic. Raises KafkaError and KafkaUnavailable."""
    topics, kafka = settings.topics, settings.kafka
    states, handled, made_again = 0, -1, False
    place = f"{topics.control}/{partition}/"
    topic_id = await topic_id_of(kafka, topics.control)

    def take(records: Sequence[ConsumerRecord]) -> None:
        nonlocal states, handled, made_again
        for record in records:
            states += record.value is not None
            headers: dict[str, Any] = dict(record.headers)
            source = (headers.get(Header.SOURCE) or b"").decode("utf-8", "replace")
            of_topic = (headers.get(SOURCE_TOPIC_ID) or b"").decode("utf-8", "replace") or None
            if is_another(of_topic, topic_id):
                # Of the topic of before, from which nothing is left.
                handled, made_again = -1, True
            elif source.startswith(place) and (offset := source.removeprefix(place)).isdecimal():
                handled = max(handled, int(offset))

    await read_to_end(kafka, [TopicPartition(topics.state, partition)], take, complete=True)
    return TakenIn(states, handled, made_again)


class SwitchBegin:
    """Where the partitions of the control topic begin: behind the last record that a state has taken in."""

    def __init__(self, settings: Settings, loop: TransactionalLoop) -> None:
        self._settings, self._loop = settings, loop

    async def of(self, tp: TopicPartition) -> int:
        """Decide and commit. Raises PartitionStopped, KafkaError and KafkaUnavailable."""
        kafka = self._settings.kafka
        states, handled, made_again = await taken_in(self._settings, tp.partition)
        first, end = (bound[tp] for bound in await bounds(kafka, [tp], None, "read_uncommitted"))
        if states and handled < 0 and first < end and not made_again:
            raise PartitionStopped(
                f"Partition {tp.partition} of {tp.topic} has no committed offset in the group {self._loop.group}, and "
                "the states of its models do not say how far the switch has come. Say where it goes on: "
                f"{set_offset('switch', tp.partition)}"
            )
        if handled + 1 > end:
            raise PartitionStopped(
                f"Partition {tp.partition} of {tp.topic} ends at offset {end}, and the switch has taken in offset "
                f"{handled}: the topic was deleted and made again. Say where it goes on: "
                f"{set_offset('switch', tp.partition)} --force"
            )
        begin = max(first, handled + 1)
        await self._loop.commit_begin({tp: Committed(begin, is_position=handled < 0)})
        if states:
            log.warning("offset lost, the switch goes on behind its state", partition=tp.partition, offset=begin)
        return begin
