"""The recent approved values of a segment, and what they say: median and median absolute deviation.

A value is held against the `window` values that were approved before it, whatever batch they came in. Therefore the
window moves with each approved value. It is kept twice, by arrival and by size, so that a step costs a few searches:
the median stands in the middle, and the values nearest to it, half of the window, are a stretch of the sorted ones
that moves little from step to step.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

MAX_SEGMENTS = 2000
"""Segments of one field whose recent values are remembered."""
ESTABLISHED = 3
"""Values from which on a segment is established: an outlier check may judge by so many."""
MAX_SEGMENT_NAME = 1000
"""Characters of a segment's name, beyond which its values are not remembered."""

View = tuple[int, bool]
"""How a check looks at the values: its window, and whether it compares logarithms."""


class _Sorted:
    """The last `window` values, or the logarithms of those above zero, in order of size."""

    __slots__ = ("_log", "_nearest", "_reference", "_values", "_window")

    def __init__(self, values: Sequence[float], view: View) -> None:
        self._window, self._log = view
        tail = values[-self._window :]
        self._values = sorted([math.log(one) for one in tail if one > 0] if self._log else tail)
        self._nearest = 0
        self._reference: tuple[int, float, float] | None = None

    def copy(self) -> "_Sorted":
        other = _Sorted((), (self._window, self._log))
        other._values, other._nearest, other._reference = self._values.copy(), self._nearest, self._reference
        return other

    def move(self, value: float, leaving: float | None) -> None:
        """Take in `value`; `leaving` is the one that falls out of the window."""
        values = self._values
        if leaving is not None and (not self._log or leaving > 0):
            del values[bisect_left(values, math.log(leaving) if self._log else leaving)]
        if not self._log or value > 0:
            insort(values, math.log(value) if self._log else value)
        self._reference = None

    def reference(self) -> tuple[int, float, float]:
        """How many values there are, their median and their median absolute deviation; NaN where there are none."""
        if self._reference is None:
            self._reference = self._look()
        return self._reference

    def _look(self) -> tuple[int, float, float]:
        values = self._values
        size = len(values)
        if not size:
            return 0, math.nan, math.nan
        half, odd = divmod(size, 2)
        centre = values[half] if odd else (values[half - 1] + values[half]) / 2
        # The `count` values nearest to the centre are `values[low : low + count]`.
        count = half + odd
        low, last = min(self._nearest, size - count), size - count
        while low < last and centre - values[low] > values[low + count] - centre:
            low += 1
        while low and values[low + count - 1] - centre > centre - values[low - 1]:
            low -= 1
        self._nearest = low
        spread = max(centre - values[low], values[low + count - 1] - centre)
        if not odd:
            following = min(
                centre - values[low - 1] if low else math.inf,
                values[low + count] - centre if low < last else math.inf,
            )
            spread = (spread + following) / 2
        return size, centre, spread


class Recent:
    """The last values of one segment, oldest first, as far as the longest window reaches."""

    __slots__ = ("_keep", "_sorted", "_values")

    def __init__(self, keep: int, values: Iterable[float] = ()) -> None:
        self._keep = keep
        self._values = list(values)[-keep:]
        self._sorted: dict[View, _Sorted] = {}

    def __len__(self) -> int:
        return min(len(self._values), self._keep)

    def values(self) -> list[float]:
        return self._values[-self._keep :]

    def copy(self, keep: int) -> "Recent":
        other = Recent(keep)
        other._values = self._values.copy()
        other._sorted = {view: one.copy() for view, one in self._sorted.items()}
        return other

    def push(self, value: float) -> None:
        values = self._values
        for (window, _), one in self._sorted.items():
            one.move(value, values[-window] if len(values) >= window else None)
        values.append(value)
        # A list forgets its front slowly: seldom, and much at once.
        if len(values) > 2 * self._keep:
            del values[: -self._keep]

    def extend(self, keep: int, values: Iterable[float]) -> None:
        """Take in many values, oldest first, without a look between them; from now on `keep` values count."""
        self._keep = keep
        self._values = (self._values + list(values))[-self._keep :]
        self._sorted = {}

    def reference(self, view: View) -> tuple[int, float, float]:
        """How many values count, their median and their median absolute deviation; NaN where there are none."""
        one = self._sorted.get(view)
        if one is None:
            one = self._sorted[view] = _Sorted(self._values, view)
        return one.reference()


class Segments(dict[str | None, Recent]):
    """The recent values of one field by segment, of at most `MAX_SEGMENTS`.

    Where there are more, an established segment keeps its place: the producer chooses the names, and new ones must not
    make a guard forget what it knows. A new segment takes the place of the one approved least recently among those
    that are not established. If all are established, the new segment is not remembered.
    """

    __slots__ = ("young",)

    def __init__(self, known: Mapping[str | None, Recent] = MappingProxyType({})) -> None:
        super().__init__(known)
        # Those that are not established; the segment approved last stands last.
        self.young: dict[str | None, None] = (
            known.young.copy()
            if isinstance(known, Segments)
            else {segment: None for segment, recent in known.items() if len(recent) < ESTABLISHED}
        )

    def has_room_for(self, segment: str | None) -> bool:
        """Whether the next value of `segment` is remembered."""
        if segment in self:
            return True
        return (len(self) < MAX_SEGMENTS or bool(self.young)) and len(segment or "") <= MAX_SEGMENT_NAME

    def make_room(self) -> None:
        """Forget the young segment approved least recently, if no more segments may be remembered."""
        if len(self) >= MAX_SEGMENTS:
            oldest = next(iter(self.young))
            del self.young[oldest], self[oldest]

    def approved(self, segment: str | None) -> None:
        """Note that the latest approved value is of `segment`, which is remembered."""
        self.young.pop(segment, None)
        if len(self[segment]) < ESTABLISHED:
            self.young[segment] = None


def learn_recent(known: Segments, keep: int, segments: Sequence[str | None], values: Sequence[float]) -> None:
    """Take in approved values, oldest first, as if they came one by one."""
    grouped: dict[str | None, list[float]] = {}
    for segment, value in zip(segments, values, strict=True):
        if segment in grouped:
            grouped[segment].append(value)
        else:
            grouped[segment] = [value]
    newcomers = grouped.keys() - known.keys()
    if len(known) + len(newcomers) > MAX_SEGMENTS or not all(map(known.has_room_for, newcomers)):
        for segment, value in zip(segments, values, strict=True):
            learn_one(known, keep, segment, value)
        return
    for segment, of_segment in grouped.items():
        known.setdefault(segment, Recent(keep)).extend(keep, of_segment)
    for segment in reversed(dict.fromkeys(reversed(segments))):
        known.approved(segment)


def learn_one(known: Segments, keep: int, segment: str | None, value: float) -> None:
    """Take in one approved value, if its segment is remembered."""
    if segment not in known:
        if not known.has_room_for(segment):
            return
        known.make_room()
        known[segment] = Recent(keep)
    known[segment].push(value)
    known.approved(segment)


class Draft:
    """The recent values of one field while a batch is judged: the memory's own stay as they are."""

    def __init__(self, known: Segments, keep: int) -> None:
        self._keep = keep
        self.segments = Segments(known)
        # By segment, those that this batch may change.
        self._own: dict[str | None, Recent] = {}

    def push(self, segment: str | None, value: float) -> bool:
        """Take in an approved value; returns whether its segment is remembered."""
        segments = self.segments
        known = segments.get(segment)
        if known is None:
            if not segments.has_room_for(segment):
                return False
            segments.make_room()
        own = self._own.get(segment)
        if own is None or own is not known:
            own = self._own[segment] = Recent(self._keep) if known is None else known.copy(self._keep)
            segments[segment] = own
        own.push(value)
        segments.approved(segment)
        return True


def as_recent(keep: int, values: Mapping[str | None, Iterable[float]]) -> Segments:
    """Recent values of several segments, in the order of their last approval."""
    return Segments({segment: Recent(keep, of_segment) for segment, of_segment in values.items()})
