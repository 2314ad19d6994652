"""Reading `holdfast.audit` as far back as its latest decisions are.

One release writes a record for each prediction, which may be millions. The decisions of people and of Holdfast that
are older are still wanted, so how far to read back is counted in decisions, not in records.
"""

from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import structlog
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from holdfast.core.policy_events import AT_START
from holdfast.core.record import Record
from holdfast.kafka.reading import bounds, read_to_end
from holdfast.settings import KafkaSettings

log = structlog.get_logger("holdfast.decisions")

NUMEROUS = frozenset(("release", "retry", AT_START))
"""The actions of which there may be thousands at once: one for each released prediction, and one for each policy of a
guard that starts."""
STRETCH = 100_000
"""Offsets that are read at once, the latest ones first; each further stretch is twice as long."""
FURTHEST = 10_000_000
"""Offsets of a partition that are read at most: about a minute."""
_NAMED = tuple(f'"{action}"'.encode() for action in NUMEROUS)


class _Action(msgspec.Struct):
    action: str


_action_of = msgspec.json.Decoder(_Action).decode


def is_numerous(value: bytes | None) -> bool:
    """Whether an audit record is one of thousands, such as that of a released prediction."""
    if value is None or not any(name in value for name in _NAMED):
        return False
    try:
        return _action_of(value).action in NUMEROUS
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


async def read_decisions(
    kafka: KafkaSettings,
    partitions: Sequence[TopicPartition],
    take: Callable[[Sequence[ConsumerRecord]], None],
    *,
    keep: int,
) -> dict[TopicPartition, int]:
    """Give `take` the latest `keep` decisions of each partition, and the latest `keep` records that are numerous.

    They come in the order of the partition. Returns the offset after the last one. Raises KafkaError.
    """
    firsts, ends = await bounds(kafka, partitions, None, "read_committed")
    for tp in partitions:
        found, start, stretch = _Latest(tp, keep), ends[tp], STRETCH
        while start > firsts[tp] and not found.enough and ends[tp] - start < FURTHEST:
            stop, start = start, max(firsts[tp], start - stretch)
            stretch *= 2
            found.begin(stop)
            await read_to_end(kafka, [tp], found.take, start=start, stop=stop, plain=True)
            found.end()
        if start > firsts[tp] and not found.enough:
            log.warning(
                "older decisions are not looked for, released predictions take up too much of the topic",
                topic=tp.topic,
                partition=tp.partition,
                offsets=ends[tp] - start,
            )
        if records := found.records():
            take(records)
    return ends


class _Latest:
    """What is kept of a partition that is read backwards, a stretch at a time."""

    def __init__(self, tp: TopicPartition, keep: int) -> None:
        self._tp, self._keep = tp, keep
        self._decisions, self._releases = list[Record](), list[Record]()
        self._stop = 0
        self._earlier: tuple[deque[Record], deque[Record]] = (deque(), deque())

    @property
    def enough(self) -> bool:
        return len(self._decisions) >= self._keep

    def begin(self, stop: int) -> None:
        """A stretch that ends before the offset `stop`, where the one before began."""
        self._stop = stop
        self._earlier = (
            deque(maxlen=self._keep - len(self._decisions)),
            deque(maxlen=max(0, self._keep - len(self._releases))),
        )

    def take(self, records: Sequence[Record]) -> None:
        decisions, releases = self._earlier
        for record in records:
            if record.offset < self._stop:
                (releases if is_numerous(record.value) else decisions).append(record)

    def end(self) -> None:
        decisions, releases = self._earlier
        self._decisions, self._releases = [*decisions, *self._decisions], [*releases, *self._releases]

    def records(self) -> list[ConsumerRecord]:
        """As a consumer gives them."""
        return [
            ConsumerRecord(*self._tp, r.offset, r.timestamp, 0, r.key, r.value, None, -1, -1, tuple(r.headers))
            for r in sorted([*self._decisions, *self._releases], key=lambda record: record.offset)
        ]
