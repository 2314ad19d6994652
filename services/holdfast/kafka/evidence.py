"""How far a partition of predictions was judged, as the verdicts and tallies that exist tell.

A group's committed offset says it, as long as the group has one: brokers forget offsets of a group that was away for
a week, and people delete groups. Every judged record has one verdict in one of three topics, so the last verdict of
each tells how far checking came:

- blocked and malformed records name their source,
- an approved record does not: it is the prediction's own bytes, so its prediction is looked up by time and compared,
- tallies say of which topic they are: where the topic was made again since, only those of this one count,
- where a topic has lost its last verdict (retention, a quiet week), the last tally tells, provided that none after it
  can have been removed: the tallies of all partitions of `holdfast.control` are there from some time on, and it is
  younger than that.

What cannot be proven so is told as not complete, and a person decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from holdfast.core.record import Record, produced_at, time_of
from holdfast.kafka.reading import bounds, read_to_end
from holdfast.kafka.topic_ids import is_another
from holdfast.kafka.topics import describe_topics, partitions_of, topic_id_of
from holdfast.kafka.topics_on_broker import told_settings
from holdfast.settings import Settings
from holdfast_schemas import MAX_INTEGER, Header, Verdict

TAILS = (200, 20_000, None)
"""Offsets at the end of a topic that are searched for its last verdict, one after the other; None: all."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of the verdicts on one partition of predictions."""

    ever: bool = False
    """Something of it was judged."""
    last: int | None = None
    """The last offset that is known to have a verdict."""
    complete: bool = True
    """Nothing beyond `last` has one."""

    def up_to(self, committed: int | None) -> int:
        """The offset before which records have verdicts, or may have them: those that told it were removed.

        `committed` is where the group stands; it does not count where the verdicts tell all.
        """
        known = 0 if self.last is None else self.last + 1
        return known if self.complete else max(known, committed or 0)


@dataclass(frozen=True, slots=True)
class Tallies:
    """What the control topic tells; times are in ms since the epoch."""

    last: Mapping[int, tuple[int, int]]
    """By partition of predictions, the highest offset that a tally covers, and when that tally was written."""
    first_at: int | None
    """When the first tally that still exists was written."""
    complete_since: float
    """Every tally that was written since then still exists."""
    made_again: bool = False
    """Some are of another topic that had the name of the predictions' before. They do not count."""


_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]


class _Tally(msgspec.Struct):
    type: str = ""
    model: str = ""
    partition: _Number = -1
    last_offset: _Number = -1
    topic_id: str | None = None


_TALLY = msgspec.json.Decoder(_Tally)


class Evidence:
    """Reads once what is asked for; make a new one for each look. Raises KafkaError and KafkaUnavailable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tallies: Tallies | None = None
        self._sizes: dict[str, int] = {}

    async def of(self, partition: int) -> Judged:
        """How far that partition of predictions was judged."""
        topics = self._settings.topics
        if (tallies := await self.tallies()).made_again:
            # Verdicts do not say of which topic they are.
            judged_last = tallies.last.get(partition)
            return Judged(ever=True, last=None if judged_last is None else judged_last[0])
        # A partition that predictions alone was given has no verdicts yet.
        sizes = await self._sizes_of((topics.approved, topics.blocked, topics.malformed))
        places = [TopicPartition(name, partition) for name, size in sizes.items() if partition < size]
        firsts, ends = await bounds(self._settings.kafka, places, None, "read_uncommitted")
        ever, complete, last = False, True, list[int]()
        for tp in places:
            if not ends[tp]:
                continue
            found = await self._last_of(tp)
            last += found.offsets
            ever |= found.told is not Told.NOTHING or bool(found.offsets) or firsts[tp] > 0
            complete &= found.told is Told.OFFSET or (found.told is Told.NOTHING and firsts[tp] == 0)
        tally = (await self.tallies()).last.get(partition)
        if tally is not None:
            ever = True
            last.append(tally[0])
            complete |= tally[1] >= (await self.tallies()).complete_since
        return Judged(ever, max(last, default=None), complete)

    async def tallies(self) -> Tallies:
        """What the control topic tells, of all partitions."""
        if self._tallies is None:
            self._tallies = await _read_tallies(self._settings)
        return self._tallies

    async def _sizes_of(self, names: Sequence[str]) -> dict[str, int]:
        """How many partitions the topics have."""
        if not self._sizes:
            self._sizes = await describe_topics(self._settings.kafka, names)
        return self._sizes

    async def _last_of(self, tp: TopicPartition) -> "_Last":
        is_approved = tp.topic == self._settings.topics.approved
        found = _Last()
        for tail in TAILS:
            search = _Search(self._settings.topics.predictions, tp.partition, is_approved=is_approved)
            await read_to_end(self._settings.kafka, [tp], search.take, tail=tail, complete=True)
            offsets = [] if search.last is None else [search.last]
            if search.approved is not None:
                return await self._looked_up(search.approved, tp.partition, offsets)
            # A released record only shows that its prediction was judged some time.
            found = _Last(offsets, Told.OFFSET if offsets and not is_approved else Told.NOTHING)
            if found.told is Told.OFFSET:
                break
        return found

    async def _looked_up(self, approved: ConsumerRecord, partition: int, offsets: list[int]) -> "_Last":
        """The offset of the prediction that was approved last."""
        found: list[int] = []

        def take(records: Sequence[Record]) -> None:
            found.extend(
                record.offset
                for record in records
                if record.timestamp == stamp and record.value == approved.value and record.key == approved.key
            )

        stamp = produced_at(approved)
        kafka, tp = self._settings.kafka, TopicPartition(self._settings.topics.predictions, partition)
        await read_to_end(kafka, [tp], take, since=time_of(stamp) if stamp >= 0 else None, plain=True)
        if len(found) == 1:
            return _Last([*offsets, *found], Told.OFFSET)
        if found:
            # The same was written twice, and may have been judged once.
            return _Last([*offsets, found[-1]], Told.UNKNOWN)
        first = (await bounds(kafka, [tp], None, "read_uncommitted"))[0][tp]
        cleanup = (await told_settings(kafka, [tp.topic])).get(tp.topic, {}).get("cleanup.policy")
        # Retention removes from the beginning: all that is left came later. Compaction removes anywhere.
        removed_before = first > 0 and cleanup == "delete"
        return _Last(offsets, Told.OFFSET if removed_before else Told.UNKNOWN)


class Told(Enum):
    """What one topic tells about its last verdict."""

    NOTHING = "there is none"
    OFFSET = "it is of an offset that is known, or of one that was removed"
    UNKNOWN = "it cannot be said which prediction it is of"


@dataclass(frozen=True, slots=True)
class _Last:
    offsets: list[int] = field(default_factory=list)
    """Of predictions that are known to have a verdict."""
    told: Told = Told.NOTHING


class _Search:
    """The last verdict among the records of one partition of a topic of verdicts."""

    def __init__(self, predictions: str, partition: int, *, is_approved: bool) -> None:
        self._place, self._is_approved = f"{predictions}/{partition}/", is_approved
        self.last: int | None = None
        self.approved: ConsumerRecord | None = None

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            headers: dict[str, Any] = dict(record.headers)
            if self._is_approved and headers.get(Header.VERDICT) == Verdict.APPROVED.value.encode():
                self.approved = record
                continue
            place, slash, offset = (headers.get(Header.SOURCE) or b"").decode("utf-8", "replace").rpartition("/")
            # The switch writes to malformed too, of another topic.
            if place + slash == self._place and offset.isdecimal():
                self.last = max(int(offset), -1 if self.last is None else self.last)


async def _read_tallies(settings: Settings) -> Tallies:
    control = settings.topics.control
    tps = [TopicPartition(control, number) for number in range(await partitions_of(settings.kafka, control))]
    last: dict[int, tuple[int, int]] = {}
    last_of_this: dict[int, tuple[int, int]] = {}
    topic_id, made_again = await topic_id_of(settings.kafka, settings.topics.predictions), False
    firsts, ends = await bounds(settings.kafka, tps, None, "read_uncommitted")
    first_at: int | None = None
    complete_since = float("-inf")
    for tp in tps:
        oldest: int | None = None

        def take(records: Sequence[Record]) -> None:
            nonlocal oldest, first_at, made_again
            for record in records:
                oldest = record.timestamp if oldest is None else min(oldest, record.timestamp)
                try:
                    tally = _TALLY.decode(record.value or b"")
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    continue  # The switch says what is wrong with it.
                if tally.type != "tally" or tally.last_offset < 0 or not settings.carries(tally.model):
                    continue
                first_at = record.timestamp if first_at is None else min(first_at, record.timestamp)
                if is_another(tally.topic_id, topic_id):
                    made_again = True
                    continue
                for known in (last, last_of_this) if tally.topic_id is not None else (last,):
                    if tally.last_offset >= known.get(tally.partition, (-1, 0))[0]:
                        known[tally.partition] = tally.last_offset, record.timestamp

        if firsts[tp] < ends[tp]:
            await read_to_end(settings.kafka, [tp], take, complete=True, plain=True)
        if firsts[tp] > 0:
            complete_since = max(complete_since, float("inf") if oldest is None else oldest)
    return Tallies(last_of_this if made_again else last, first_at, complete_since, made_again)
