"""The checker's book-keeping: does every prediction have exactly one verdict, and is it the right one?

A ledger follows one partition. It is given, each in the order of its topic, the predictions, the approved, blocked
and malformed records and the tallies, and says what does not add up.

Which prediction a verdict belongs to: blocked and malformed records name their source. Approved ones do not; they
are the prediction's own bytes, key and timestamp, and come in its order, so the first prediction of that identity
that has no other verdict is meant. Predictions are read only up to the guard's committed offset, which is always the
end of a batch, and verdicts up to where their topics ended after that offset was seen: what has no verdict then is
lost.

What was approved is judged again, batch by batch as the tallies tell them, with the policy whose id is in the header,
at the time that the tally gives, and with a memory of what was approved before. Where the guard may have known less
than the ledger (a reference further back than `restore_records`), a failure against the memory is not counted.
Released records are not judged again: they are approved in a person's name, and what they teach is a reference. Each
must have an audit record that names its prediction, and must be that prediction where this is known. An approved record
that was held against a reference that a person gave says so, with its value, in a header.

Memory is bounded by `LIMIT` records and `Rules.held_bytes` a partition, and by what the checks themselves remember.
Of a record no more is kept than is still needed: of a prediction its identity, of a blocked or malformed record our
headers, of an approved one its value and our headers, until it has been judged again. The bounds are kept by reading
less, not by forgetting: of verdicts nothing more is read than is needed to go on, and nothing but tallies while only a
tally is missing. What could not be compared all the same is counted in `uncompared`.
"""

import bisect
import hashlib
import itertools
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any

import msgspec
import numpy as np

from holdfast.core.accepted import Given, parse_header
from holdfast.core.arrays import Mask
from holdfast.core.audited_releases import ReleasedRecord, Releases
from holdfast.core.checks.max_change import MaxChangeCheck
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.columns import Columns
from holdfast.core.condemned import is_condemned
from holdfast.core.entity_key import EntityKey, entity_key
from holdfast.core.grouping import Batch, decode_by_model
from holdfast.core.judge import judge, remember
from holdfast.core.judgement import Found, Judgement
from holdfast.core.malformed import CHECK as MALFORMED
from holdfast.core.memory import Memory, fair_level
from holdfast.core.policy import Policy, PolicySet, Remembered
from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.recent import Segments
from holdfast.core.record import MAX_KEY_BYTES, Record, produced_at
from holdfast.core.record_keys import CHECK as OFF_KEY
from holdfast.core.record_keys import Keys
from holdfast.core.segments import UNREMEMBERED
from holdfast.core.verdict_headers import NO_POLICY
from holdfast_schemas import MAX_VALUE_BYTES, Header, Route, RouteState, Tally, Verdict
from holdfast_schemas.control import OTHERS
from holdfast_schemas.route import MAX_PROMOTED

LIMIT = 1000
"""Records of one stream held while the others catch up; what the checker needs at its peak follows from it."""
HELD_BYTES = 16 * 1024 * 1024
MISSING_LIMIT = 100_000
"""Predictions without a verdict that are waited for; beyond it the oldest are given up as lost."""
FIRST_AMONG = 500
"""Of so many predictions without another verdict one is approved, or all are lost: an approved record that is none of
theirs, before the first that is, came before them."""
RECENT = 20_000
"""Approved records remembered to tell a repetition from a forgery, and others that may be released."""
IDENTITY_BYTES = 16
GAPS_KEPT = 100_000
"""Stretches that compaction has left without a prediction; of what is before the oldest of them nothing is said."""
ROUTES_KEPT = 1000
"""Of a model, the latest."""
_FINDINGS = msgspec.json.Decoder(list[Found])
_READ = frozenset(
    header.value
    for header in (
        Header.VERDICT,
        Header.POLICY,
        Header.MODEL,
        Header.MODEL_VERSION,
        Header.FINDINGS,
        Header.SOURCE,
        Header.REFERENCE,
    )
)
"""The headers that are looked at after the record has been read."""
_NAMES = frozenset((Header.POLICY.value, Header.MODEL.value, Header.MODEL_VERSION.value))
"""How a record says by what it was checked."""


class Kind(StrEnum):
    """What can be wrong."""

    LOST = "lost"
    """A prediction has no verdict, although the guard's committed offset is past it."""
    REPEATED = "repeated"
    """A prediction has two verdicts."""
    OUT_OF_ORDER = "out_of_order"
    """A verdict came after that of a later prediction with the same key."""
    UNCHECKED = "unchecked"
    """A verdict belongs to no prediction, or does not say how it was reached, or is called released and no audit record
    names it: something else than a guard wrote it."""
    ALTERED = "altered"
    """A blocked, malformed or released record is not the prediction at its source."""
    WRONGLY_APPROVED = "wrongly_approved"
    """The policy that the record names blocks it."""
    AFTER_FENCE = "after_fence"
    """Approved although its version had been fenced, or its model held, for longer than a guard may take to know."""
    TALLY = "tally"
    """A tally does not add up to the verdicts, or there is none, or there are two."""


class Stream(StrEnum):
    PREDICTIONS = "predictions"
    APPROVED = "approved"
    BLOCKED = "blocked"
    MALFORMED = "malformed"


VERDICTS = (Stream.APPROVED, Stream.BLOCKED, Stream.MALFORMED)


@dataclass(frozen=True, slots=True)
class Violation:
    """`offset` is the prediction's, where it is known; `model` is empty where it is not."""

    kind: Kind
    partition: int
    offset: int | None
    model: str
    detail: str

    def describe(self) -> str:
        """In one line."""
        at = "" if self.offset is None else f"/{self.offset}"
        return f"partition {self.partition}{at}{f', {self.model}' if self.model else ''}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guards were configured with, as far as it matters here."""

    predictions_topic: str
    exactly_once: bool = True
    approve_without_policy: bool = False
    carries: Callable[[str], bool] = lambda _: True
    """Whether the topic may carry a model."""
    no_policy_until_ms: int | None = None
    """When that ends by itself."""
    fence_within_ms: int = 10_000
    """How long after a fence was written a guard may still judge without it."""
    restore_records: int = 2_000_000
    max_entities: int = 2_000_000
    """Of one partition and all models."""
    compacted: frozenset[Stream] = frozenset()
    """The topics from which records may be gone that are superseded."""
    held_bytes: int = HELD_BYTES
    """Bytes of keys, values and headers held of a partition; what one fetch brings of each stream comes on top."""
    ahead: int = 20_000
    """Offsets at a verdict topic's end that may be of predictions beyond the guard's committed offset: brokers show
    the two one after the other. More than two batches."""

    def may_approve_without_policy(self, produced_ms: int) -> bool:
        """Whether a guard may have approved a prediction of that time although its model has no policy.

        No tally says when it was judged: at the earliest when it was predicted.
        """
        until = self.no_policy_until_ms
        return self.approve_without_policy and (until is None or produced_ms < until)


class RouteHistory:
    """Which version was forbidden when, as `holdfast.routes` tells it."""

    def __init__(self) -> None:
        self._records: dict[str, list[tuple[int, Route | None]]] = {}

    def add(self, model: str, route: Route | None, at_ms: int) -> None:
        """`route` None: it was removed. In any order of time: a topic that has grown is read in none."""
        records = self._records.setdefault(model, [])
        bisect.insort(records, (at_ms, route), key=lambda record: record[0])
        del records[:-ROUTES_KEPT]

    def forbidden_since(self, model: str, version: str, at_ms: int) -> int | None:
        """From when on `version` was fenced or `model` held without a break up to `at_ms`; None if it was neither."""
        since: int | None = None
        for written_ms, route in self._records.get(model, ()):
            if written_ms > at_ms:
                break
            forbidden = route is not None and (route.state is RouteState.HELD or version in route.fenced)
            since = (written_ms if since is None else since) if forbidden else None
        return since

    def accepts(self, model: str, version: str, policy: Policy, from_ms: int, to_ms: int) -> bool:
        """Whether, by a route in force at some time from `from_ms` to `to_ms`, `policy` let the version be approved."""
        in_force: Route | None = None
        for written_ms, route in self._records.get(model, ()):
            if written_ms > to_ms:
                break
            if written_ms > from_ms and policy.accepts(version, in_force):
                return True
            in_force = route
        return policy.accepts(version, in_force)


@dataclass(slots=True, eq=False)
class _Prediction:
    offset: int
    key: int
    identity: bytes
    stream: Stream | None = None
    verdict: "_VerdictRecord | None" = None


@dataclass(slots=True, eq=False)
class _VerdictRecord:
    """What is kept of a record with a verdict; what is read off it is read once."""

    offset: int
    key: int
    value: bytes | None
    """Of an approved one; the value of another is in its identity."""
    headers: Mapping[str, bytes]
    """Those of `_READ`."""
    identity: bytes
    size: int
    """Bytes that are kept."""
    read_at: float
    names: int
    """The offset of the prediction that a blocked or malformed one names; -1 where that is none of this partition,
    and for an approved one."""
    produced_ms: int
    """The producer's time."""


@dataclass(slots=True)
class _OpenTally:
    """A tally, and what the verdicts in its range come to so far."""

    tally: Tally
    written_ms: int
    seen: int = 0
    approved: int = 0
    blocked: int = 0
    blocked_by: Counter[str] = field(default_factory=Counter)
    shadow_by: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Group:
    """Approved records of one model and one batch of the guard, to be judged together."""

    policy_id: str
    tally: Tally
    values: list[bytes] = field(default_factory=list)
    used: dict[int, list[tuple[str, Given]]] = field(default_factory=dict)
    """By place in `values`, the references that the record names."""
    offsets: list[int] = field(default_factory=list)
    approved_offsets: list[int] = field(default_factory=list)
    condemned: list[bool] = field(default_factory=list)
    keys: list[int | None] = field(default_factory=list)
    unremembered: set[int] = field(default_factory=set)
    """Places in `values` of records whose guard did not remember their segment."""
    unpromoted: set[str] = field(default_factory=set)
    """Versions that were approved although they were not promoted."""
    size: int = 0
    """Bytes of the values."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """The guard's committed offset, and where the verdicts' topics ended after it was seen."""

    committed: int
    ends: Mapping[Stream, int]
    covered: int = 0
    """Approved records before this offset are of predictions before `committed`."""


def without_samples(tally: Tally) -> Tally:
    """As much of a tally as is compared."""
    return tally.model_copy(update={"samples": (), "entities": ()})


def identity(record: Record, timestamp: int) -> bytes:
    """What a prediction and its verdict have in common; `timestamp` is the producer's, in ms since the epoch."""
    digest = hashlib.blake2b(digest_size=IDENTITY_BYTES)
    # As far as every topic takes them.
    key, value = (record.key or b"")[:MAX_KEY_BYTES], (record.value or b"")[:MAX_VALUE_BYTES]
    digest.update(f"{timestamp} {-1 if record.key is None else len(key)} {record.value is None} ".encode())
    digest.update(key)
    digest.update(value)
    return digest.digest()


class Ledger:
    """One partition. Times are milliseconds where a name says so, else seconds of the caller's clock.

    `start` is the first prediction's offset, at most what the guard had committed when it was chosen. `older` is None
    where every topic is read from its first record ever. Else it is where the approved topic ended then: records
    before it and before the first that matches are of predictions before `start`. It is 0 where every topic is read
    from its first record, and checking may have begun later than there.
    """

    def __init__(
        self,
        partition: int,
        start: int,
        *,
        older: int | None,
        rules: Rules,
        routes: RouteHistory,
        policy: Callable[[str], PolicySet | None],
    ) -> None:
        self.partition = partition
        self.checked = 0
        self.unjudged = 0
        self.released = 0
        self.releases = Releases()
        self.removed = 0
        """Verdicts on predictions that compaction has removed since."""
        self.uncompared = 0
        """Verdicts and predictions that were given up because too many waited: whether they fit is not known."""
        self.starved = False
        self._start, self._next, self._settled = start, start, start
        # Stretches without a prediction, as compaction leaves them, the latest ones; and where the next may begin.
        self._gaps: deque[tuple[int, int]] = deque(maxlen=GAPS_KEPT)
        self._admitted = start
        # By key, before which offset the last approved prediction was that is gone.
        self._removed_keys: OrderedDict[int, int] = OrderedDict()
        # From here on a missing verdict means something; None until it is known.
        self._exact_from: int | None = start if older is None else None
        self._older = older
        self._rules, self._routes, self._policy = rules, routes, policy
        self._frontiers: deque[Frontier] = deque()
        self._last = Frontier(0, dict.fromkeys(VERDICTS, 0))
        self._ahead: deque[_Prediction] = deque()
        self._window: OrderedDict[int, _Prediction] = OrderedDict()
        self._missing: OrderedDict[int, _Prediction] = OrderedDict()
        self._waiting: dict[bytes, list[_Prediction]] = {}
        self._early: dict[Stream, list[_VerdictRecord]] = {stream: [] for stream in VERDICTS}
        # What was known when all that is held of a stream was last tried.
        self._tried: dict[Stream, tuple[int, int, int]] = {}
        self._early_bytes, self._window_bytes = 0, 0
        # Of predictions before this offset verdicts were given up that may have been theirs.
        self._uncompared_before = -1
        self._last_approved = -1
        # The approved offset of the first match.
        self._first_match = sys.maxsize
        self._last_of_key: dict[Stream, OrderedDict[int, int]] = {stream: OrderedDict() for stream in VERDICTS}
        # A ring in one piece: as objects of their own they would hold a burst's memory in pieces.
        self._recent, self._recent_at = bytearray(RECENT * IDENTITY_BYTES), 0
        self._tallies: dict[tuple[str, str], deque[_OpenTally]] = {}
        self._groups: dict[str, _Group] = {}
        self._group_bytes = 0
        # By offset, of the latest predictions that were not approved.
        self._releasable: OrderedDict[int, bytes] = OrderedDict()
        self._memory = Memory()
        self._guards = _GuardsKnowledge(rules, complete=older is None)
        # By model, what the last policy remembered.
        self._fields: dict[str, frozenset[Remembered]] = {}
        # By model, what was approved before the start and is not in the memory yet: policy and records.
        self._to_learn: dict[str, tuple[str, list[_VerdictRecord]]] = {}
        self._found: list[Violation] = []

    def bound_memory(self, max_entities: int) -> None:
        """Guards remember so many entities of a partition from now on."""
        self._rules = replace(self._rules, max_entities=max_entities)

    # What it is given.

    def expect(self, frontier: Frontier) -> None:
        """The next stretch to follow: read predictions up to `committed`, and the others up to their ends."""
        self._last = frontier
        self._frontiers.append(frontier)
        self._admit()

    def add(self, stream: Stream, records: Sequence[Record], now: float) -> None:
        if stream is not Stream.PREDICTIONS:
            read = [self._read(stream, record, now) for record in records]
            self._early[stream] += read
            self._tried.pop(stream, None)
            self._early_bytes += sum(one.size for one in read)
            return
        self._ahead += [
            _Prediction(record.offset, hash(record.key), identity(record, record.timestamp)) for record in records
        ]
        self._admit()

    def _read(self, stream: Stream, record: Record, now: float) -> _VerdictRecord:
        value = record.value if stream is Stream.APPROVED else None
        headers, size, names = dict[str, bytes](), len(value or b""), -1
        for name, text in record.headers:
            if name in _READ:
                headers[name] = text or b""  # Kafka knows headers without a value.
                size += len(name) + len(headers[name])
        # A released record names its source too, and belongs to no prediction here.
        if stream is not Stream.APPROVED:
            source = _source(headers)
            if source is not None and source[:2] == (self._rules.predictions_topic, self.partition):
                names = source[2]
        at = produced_at(record)
        digest = identity(record, at)
        return _VerdictRecord(record.offset, hash(record.key), value, headers, digest, size, now, names, at)

    def _admit(self) -> None:
        """Look at the predictions below the committed offset; those read beyond it wait for the next stretch."""
        end = self.target(Stream.PREDICTIONS)
        while self._ahead and self._ahead[0].offset < end:
            prediction = self._ahead.popleft()
            if prediction.offset > self._admitted and Stream.PREDICTIONS in self._rules.compacted:
                self._gaps.append((self._admitted, prediction.offset))
            self._admitted = prediction.offset + 1
            self._window[prediction.offset] = prediction
            self._waiting.setdefault(prediction.identity, []).append(prediction)

    def is_past(self, offset: int) -> bool:
        """Whether a tally up to that offset is of no prediction that is compared."""
        return offset < self._start

    def add_tally(self, tally: Tally, written_ms: int) -> None:
        if self.is_past(tally.last_offset):
            return
        queue = self._tallies.setdefault((tally.model, tally.model_version), deque())
        # Mostly the last one; a control topic that has grown has them in two partitions, which are read in no order.
        place = bisect.bisect(queue, tally.first_offset, key=lambda known: known.tally.first_offset)
        before, after = place > 0 and queue[place - 1], place < len(queue) and queue[place]
        if (before and tally.first_offset <= before.tally.last_offset) or (
            after and after.tally.first_offset <= tally.last_offset
        ):
            if self._rules.exactly_once:
                self._report(
                    Kind.TALLY, tally.first_offset, tally.model, f"a second tally from {tally.worker} covers it"
                )
            return
        queue.insert(place, _OpenTally(without_samples(tally), written_ms))

    def wants(self, stream: Stream, position: int) -> bool:
        """Whether records of `stream` from `position` on are needed now."""
        if position >= self.target(stream):
            return False
        held = self._early_bytes + self._window_bytes
        if self.starved and held >= self._rules.held_bytes:
            return False  # What is held waits for a tally, and for nothing else.
        if stream is Stream.PREDICTIONS:
            # Approved records that match nothing here may belong to predictions far behind a long row of lost ones.
            stuck = not self.starved and not self.wants(Stream.APPROVED, -1)
            return len(self._window) < (MISSING_LIMIT if stuck and not self._is_full() else LIMIT)
        full = len(self._early[stream]) >= LIMIT or held >= self._rules.held_bytes
        return not full or not self._early[stream]

    def _is_full(self) -> bool:
        return self._window_bytes >= self._rules.held_bytes

    def target(self, stream: Stream) -> int:
        """Up to which offset `stream` is to be read by now."""
        last = self._last
        return last.committed if stream is Stream.PREDICTIONS else last.ends[stream]

    # What it makes of it.

    def advance(self, positions: Mapping[Stream, int], *, tallies_read: bool) -> list[Violation]:
        """Match and judge what can be; `tallies_read`: all tallies of the stretch have been given."""
        self._next = max(self._next, min(positions[Stream.PREDICTIONS], self.target(Stream.PREDICTIONS)))
        self.starved = False
        explicit_read = True
        for stream in (Stream.BLOCKED, Stream.MALFORMED):
            self._match(stream, self._match_named)
            explicit_read &= positions[stream] >= self.target(stream) or bool(self._early[stream])
        if explicit_read:
            # Only now: what a blocked record claims must not be taken for approved.
            self._match(Stream.APPROVED, self._match_approved)
            if self._older is not None and self._last_approved >= 0:
                self._pass_over_older()
            self._learn_older()
            read = positions[Stream.APPROVED] >= self.target(Stream.APPROVED)
            self._settle(approved_read=read, tallies_read=tallies_read)
        return self._take_found()

    def finish(self, positions: Mapping[Stream, int], stale: float) -> list[Violation]:
        """At the end of a stretch: what is lost, what belongs to nothing, and tallies that nothing more can fill.

        Verdicts that were read before the time `stale` and have found no prediction since belong to none.
        """
        while self._frontiers and all(positions[stream] >= self._frontiers[0].ends[stream] for stream in VERDICTS):
            committed = self._frontiers[0].committed
            if positions[Stream.PREDICTIONS] < committed or any(offset < committed for offset in self._window):
                break
            self._frontiers.popleft()
            for offset in [offset for offset in self._missing if offset < committed]:
                self._lose(self._missing.pop(offset))
            self._exact_from = max(committed, self._start) if self._exact_from is None else self._exact_from
            self._settled = max(self._settled, committed)
            for (model, version), queue in self._tallies.items():
                while queue and queue[0].tally.last_offset < committed:
                    self._close(model, version, queue.popleft())
            self._tallies = {key: queue for key, queue in self._tallies.items() if queue}
        if not self._window:
            for model in list(self._groups):
                self._judge_group(model)
        for stream in VERDICTS:
            self._give_up_strays(stream, stale)
        forged, unknown = self.releases.give_up(stale)
        self.uncompared += unknown
        for one in forged:
            detail = f"approved offset {one.offset} is called released, and no audit record names it"
            self._report(Kind.UNCHECKED, one.names, one.model, detail)
        self._learn_older()
        return self._take_found()

    def settled(self) -> int:
        """Up to which offset every prediction has been accounted for."""
        return self._settled

    def undecided(self, ends: Mapping[Stream, int]) -> bool:
        """Whether a verdict below `ends` has found no prediction yet."""
        strays = any(early.offset < ends[stream] for stream in VERDICTS for early in self._early[stream])
        return strays or self.releases.waits(ends[Stream.APPROVED])

    # Matching.

    def _match(self, stream: Stream, match: Callable[[Stream, _VerdictRecord], bool]) -> None:
        """Give what is held of `stream` to its predictions, as far as these have been read."""
        known = (self._next, self._last.committed, self._last.covered)
        if self._tried.get(stream) == known:
            return
        self._tried[stream] = known
        left: list[_VerdictRecord] = []
        for early in self._early[stream]:
            last = self._last_approved
            if early.names >= self._next or not match(stream, early):
                left.append(early)
                continue
            self._early_bytes -= early.size
            if stream is Stream.APPROVED and Stream.PREDICTIONS in self._rules.compacted and self._last_approved > last:
                # Approved records come in the order of the predictions: those before it are of predictions before it.
                for gone in left:
                    self._early_bytes -= gone.size
                    self._remove(gone, self._last_approved)
                left = []
        self._early[stream] = left

    def _match_named(self, stream: Stream, early: _VerdictRecord) -> bool:
        """Give a blocked or malformed record to the prediction that it names, which has been read."""
        headers, offset = early.headers, early.names
        if offset < 0:
            # The switch puts malformed control records there too.
            source = _source(headers)
            if stream is not Stream.MALFORMED or source is None or source[0] == self._rules.predictions_topic:
                self._report(
                    Kind.UNCHECKED, None, "", f"{stream} offset {early.offset} names no prediction of its partition"
                )
            return True
        if offset < self._start:
            return True
        prediction = self._window.get(offset) or self._missing.get(offset)
        if prediction is None and self._is_gone(offset):
            self.removed += 1
            return True
        if prediction is None or prediction.stream is not None:
            if self._rules.exactly_once:
                self._report(Kind.REPEATED, offset, _text(headers, Header.MODEL), f"{stream} offset {early.offset}")
            return True
        if early.identity != prediction.identity:
            self._report(Kind.ALTERED, offset, _text(headers, Header.MODEL), f"{stream} offset {early.offset}")
        self._waiting[prediction.identity].remove(prediction)
        self._assign(prediction, stream, early)
        return True

    def _is_gone(self, offset: int) -> bool:
        """Whether compaction may have removed the prediction of that offset."""
        place = bisect.bisect(self._gaps, offset, key=lambda gap: gap[0])
        in_gap = place > 0 and offset < self._gaps[place - 1][1]
        forgotten = len(self._gaps) == GAPS_KEPT and offset < self._gaps[0][0]
        behind_the_last = self._admitted <= offset < self._next
        return Stream.PREDICTIONS in self._rules.compacted and (in_gap or forgotten or behind_the_last)

    def _match_approved(self, stream: Stream, early: _VerdictRecord) -> bool:
        headers, digest = early.headers, early.identity
        verdict = _text(headers, Header.VERDICT)
        if verdict == Verdict.RELEASED:
            self.released += 1
            self._take_released(early)
            return True
        if verdict == Verdict.DELETED and early.value is not None:
            self._report(
                Kind.UNCHECKED, None, "", f"approved offset {early.offset} is called a deletion and has a value"
            )
            return True
        named = verdict == Verdict.DELETED or _NAMES.issubset(headers)
        if verdict not in (Verdict.APPROVED, Verdict.DELETED) or not named:
            self._report(Kind.UNCHECKED, None, "", f"approved offset {early.offset} does not say how it was checked")
            return True
        waiting = self._waiting.get(digest)
        if waiting:
            prediction = waiting.pop(0)
            if self._exact_from is None:
                self._exact_from = prediction.offset
            if self._last_approved < 0:
                self._first_match = early.offset
            self._last_approved = max(self._last_approved, prediction.offset)
            self._recent[self._recent_at : self._recent_at + IDENTITY_BYTES] = digest
            self._recent_at = (self._recent_at + IDENTITY_BYTES) % len(self._recent)
            self._assign(prediction, stream, early)
            return True
        begun = self._next > self._start or self.target(Stream.PREDICTIONS) <= self._start
        long_before = begun and early.offset < (self._older or 0) - self._rules.ahead
        # Every prediction that it may be of has been read, and it is of none.
        covered = self._next >= self._last.committed and early.offset < self._last.covered
        if self._is_older(early) and (long_before or covered or len(self._waiting) >= FIRST_AMONG):
            self._remember_older(early)
            return True
        return False

    def _take_released(self, early: _VerdictRecord) -> None:
        """Hold a released record against its prediction; the audit may come later."""
        source, model = _source(early.headers), _text(early.headers, Header.MODEL)
        if source is None or source[:2] != (self._rules.predictions_topic, self.partition):
            detail = f"approved offset {early.offset} is called released, and names no prediction of its partition"
            self._report(Kind.UNCHECKED, None, model, detail)
            return
        names = source[2]
        if self._releasable.get(names, early.identity) != early.identity:
            self._report(Kind.ALTERED, names, model, f"approved offset {early.offset}, which is called released")
        if not self.releases.add(ReleasedRecord(early.offset, names, model, early.produced_ms, early.read_at)):
            self._report(
                Kind.REPEATED, names, model, f"approved offset {early.offset} is called released a second time"
            )

    def _remove(self, early: _VerdictRecord, before: int) -> None:
        """Pass over an approved record whose prediction, which was before that offset, compaction has removed."""
        self.removed += 1
        self._leave_out(early, before)

    def _leave_out(self, early: _VerdictRecord, before: int) -> None:
        """Pass over an approved record of a prediction before that offset, which is then missed by nobody."""
        self._removed_keys[early.key] = before
        while len(self._removed_keys) > RECENT:
            self._removed_keys.popitem(last=False)
        # What the guards had learnt from it is not known here.
        self._guards.unread[_text(early.headers, Header.MODEL)] = early.offset

    def _is_older(self, early: _VerdictRecord) -> bool:
        """Whether an approved record that matches nothing may be of a prediction before the start."""
        return self._older is not None and early.offset < min(self._older, self._first_match)

    def _pass_over_older(self) -> None:
        """What came before the first match is of predictions before the start; it is older than all that match."""
        left: list[_VerdictRecord] = []
        # 0: everything is read from the first record on, so nothing is older.
        limit = self._first_match if self._older else 0
        for early in self._early[Stream.APPROVED]:
            if early.offset < limit:
                self._early_bytes -= early.size
                self._remember_older(early)
            else:
                left.append(early)
        self._early[Stream.APPROVED] = left
        self._older = None

    def _assign(self, prediction: _Prediction, stream: Stream, verdict: _VerdictRecord) -> None:
        if not self._waiting[prediction.identity]:
            del self._waiting[prediction.identity]
        prediction.stream, prediction.verdict = stream, verdict
        last_of_key = self._last_of_key[stream]
        if last_of_key.pop(prediction.key, -1) > prediction.offset:
            model = _text(verdict.headers, Header.MODEL)
            self._report(Kind.OUT_OF_ORDER, prediction.offset, model, f"{stream} offset {verdict.offset}")
        last_of_key[prediction.key] = prediction.offset
        if self._missing.pop(prediction.offset, None) is not None:
            self.checked += 1  # late, and its tally is closed: only its order could be checked
        else:
            self._window_bytes += verdict.size

    def _give_up_strays(self, stream: Stream, stale: float) -> None:
        left: list[_VerdictRecord] = []
        recent = self._recent_identities() if any(early.read_at < stale for early in self._early[stream]) else set()
        for early in self._early[stream]:
            if early.read_at >= stale:
                left.append(early)
                continue
            self._early_bytes -= early.size
            if stream is Stream.APPROVED and self._is_older(early):
                self._remember_older(early)
                continue
            repeated = early.identity in recent
            if not repeated and stream is Stream.APPROVED and Stream.PREDICTIONS in self._rules.compacted:
                self._remove(early, self._last.committed)
                continue
            if repeated and not self._rules.exactly_once:
                continue
            if not repeated and self._may_be_further_on(stream):
                self.uncompared += 1
                self._uncompared_before = self._last.committed
                self._leave_out(early, self._last.committed)
                continue
            model = _text(early.headers, Header.MODEL)
            what = "repeats an approved record" if repeated else "belongs to no prediction"
            kind = Kind.REPEATED if repeated else Kind.UNCHECKED
            self._report(kind, None, model, f"{stream} offset {early.offset} {what}")
        self._early[stream] = left

    def _may_be_further_on(self, stream: Stream) -> bool:
        """Whether a verdict may be of a prediction that is not read because too many before it wait for theirs."""
        too_many = len(self._window) >= MISSING_LIMIT and stream in self._rules.compacted
        return self._next < self._last.committed and (too_many or self._is_full())

    def _recent_identities(self) -> set[bytes]:
        ring = bytes(self._recent)
        return {ring[at : at + IDENTITY_BYTES] for at in range(0, len(ring), IDENTITY_BYTES)}

    # Settling: in the order of the predictions, once nothing more can be said about one.

    def _settle(self, *, approved_read: bool, tallies_read: bool) -> None:
        while self._window:
            prediction = next(iter(self._window.values()))
            verdict = prediction.verdict
            if verdict is None:
                if not approved_read and prediction.offset > self._last_approved:
                    break
                self._missing[prediction.offset] = prediction
                if len(self._missing) > MISSING_LIMIT:
                    # A later verdict of the same key, which is not read yet, may have superseded its own.
                    self._lose(self._missing.popitem(last=False)[1], certain=approved_read)
            elif self._count(prediction, verdict, tallies_read):
                self.checked += 1
                self._window_bytes -= verdict.size
            else:
                self.starved = True
                break
            if prediction.stream in (Stream.BLOCKED, Stream.MALFORMED):
                self._releasable[prediction.offset] = prediction.identity
                if len(self._releasable) > RECENT:
                    self._releasable.popitem(last=False)
            del self._window[prediction.offset]
            self._settled = prediction.offset + 1
        oldest = next(iter(self._missing), next(iter(self._window), self._next))
        for offsets in self._last_of_key.values():
            while offsets and next(iter(offsets.values())) < oldest:
                offsets.popitem(last=False)

    def _count(self, prediction: _Prediction, verdict: _VerdictRecord, tallies_read: bool) -> bool:
        """Enter a verdict into its tally, and check it; False where the tally has not been read yet."""
        headers, offset = verdict.headers, prediction.offset
        is_malformed = prediction.stream is Stream.MALFORMED
        if _text(headers, Header.VERDICT) == Verdict.DELETED:
            return True  # It names no version, and no tally counts it.
        if is_malformed and Header.POLICY not in headers:
            return True  # No version is to blame, and no tally counts it.
        model, version = _text(headers, Header.MODEL), _text(headers, Header.MODEL_VERSION)
        policy_id = _text(headers, Header.POLICY)
        approved = prediction.stream is Stream.APPROVED
        if policy_id == NO_POLICY:
            if approved and not self._rules.carries(model):
                self._report(Kind.WRONGLY_APPROVED, offset, model, "its topic may not carry this model")
            elif approved and not self._rules.may_approve_without_policy(verdict.produced_ms):
                self._report(Kind.WRONGLY_APPROVED, offset, model, "no policy, and the configuration says block")
            return True
        # Beyond the budget of versions several are counted together.
        found = self._tally_of(model, version, offset) or self._tally_of(model, OTHERS, offset)
        if found is None:
            if tallies_read:
                self.unjudged += approved
                if self._rules.exactly_once and self._is_exact(offset):
                    self._report(Kind.TALLY, offset, model, f"no tally of {version} covers it")
            return tallies_read
        found.seen += 1
        found.approved += approved
        found.blocked += not approved
        if is_malformed:
            found.blocked_by[MALFORMED] += 1
        findings = self._findings(headers, offset, model)
        for finding in findings:
            (found.blocked_by if finding.enforced else found.shadow_by)[finding.check] += 1
        if approved:
            self._check_fence(model, version, offset, found)
            self._enter_group(offset, verdict, model, policy_id, found.tally, {one.check for one in findings})
        return True

    def _findings(self, headers: Mapping[str, bytes], offset: int, model: str) -> Sequence[Found]:
        try:
            return _FINDINGS.decode(headers.get(Header.FINDINGS, b"[]"))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._report(Kind.UNCHECKED, offset, model, "its findings cannot be read")
            return ()

    def _tally_of(self, model: str, version: str, offset: int) -> _OpenTally | None:
        queue = self._tallies.get((model, version), deque())
        while queue and queue[0].tally.last_offset < offset:
            self._close(model, version, queue.popleft())
        return queue[0] if queue and queue[0].tally.first_offset <= offset else None

    def _close(self, model: str, version: str, done: _OpenTally) -> None:
        told = done.tally
        if not self._rules.exactly_once or not self._is_exact(told.first_offset):
            return
        may_lack = bool(self._rules.compacted) or told.first_offset < self._uncompared_before
        counted: dict[str, int | dict[str, int]] = {
            "seen": done.seen,
            "approved": done.approved,
            "blocked": done.blocked,
            "blocked_by_check": dict(done.blocked_by),
            "shadow_by_check": dict(done.shadow_by),
        }
        wrong = [
            f"{name} is {getattr(told, name)}, counted {value}"
            for name, value in counted.items()
            if getattr(told, name) != value and not (may_lack and _is_part(value, getattr(told, name)))
        ]
        if wrong:
            self._report(
                Kind.TALLY, told.first_offset, model, f"{version} up to {told.last_offset}: {'; '.join(wrong)}"
            )

    def _is_exact(self, offset: int) -> bool:
        return self._exact_from is not None and offset >= self._exact_from

    def _is_superseded(self, prediction: _Prediction) -> bool:
        """Whether its verdict may have been passed over, or removed because there is a later one of the same key."""
        return self._removed_keys.get(prediction.key, -1) > prediction.offset or any(
            self._last_of_key[stream].get(prediction.key, -1) > prediction.offset
            or any(early.key == prediction.key for early in self._early[stream])
            for stream in VERDICTS
            if stream in self._rules.compacted
        )

    def _lose(self, prediction: _Prediction, *, certain: bool = True) -> None:
        waiting = self._waiting[prediction.identity]
        waiting.remove(prediction)
        if not waiting:
            del self._waiting[prediction.identity]
        if self._is_exact(prediction.offset) and not self._is_superseded(prediction):
            if not certain and self._rules.compacted.intersection(VERDICTS):
                self.uncompared += 1
                return
            self._report(Kind.LOST, prediction.offset, "", "the guard's committed offset is past it")

    def _check_fence(self, model: str, version: str, offset: int, found: _OpenTally) -> None:
        # Both clocks must agree that it was late: the guard's may have jumped, and the broker may have been frozen.
        judged_ms = min(int(found.tally.at.timestamp() * 1000), found.written_ms)
        since = self._routes.forbidden_since(model, version, judged_ms)
        if since is not None and judged_ms - since > self._rules.fence_within_ms:
            late = (judged_ms - since) / 1000
            self._report(Kind.AFTER_FENCE, offset, model, f"{version} had been forbidden for {late:.1f} s")
        policies, within = self._policy(found.tally.policy), self._rules.fence_within_ms
        policy = policies.policies.get(model) if policies is not None else None
        if policy is not None and not self._routes.accepts(
            model, version, policy, judged_ms - within, judged_ms + within
        ):
            self._report(Kind.WRONGLY_APPROVED, offset, model, f"{policy.id} blocks it: {NOT_PROMOTED}")

    # Judging again.

    def _enter_group(
        self, offset: int, verdict: _VerdictRecord, model: str, policy_id: str, tally: Tally, found: Set[str]
    ) -> None:
        """`found` are the checks that its findings name."""
        group = self._groups.get(model)
        batch = (tally.worker, tally.at)
        if group is not None and ((group.tally.worker, group.tally.at) != batch or group.policy_id != policy_id):
            self._judge_group(model)
            group = None
        if group is None:
            group = self._groups[model] = _Group(policy_id, tally)
        if Header.REFERENCE.value in verdict.headers:
            group.used[len(group.values)] = parse_header(verdict.headers[Header.REFERENCE.value])
        if UNREMEMBERED in found:
            group.unremembered.add(len(group.values))
        if NOT_PROMOTED in found:
            group.unpromoted.add(_text(verdict.headers, Header.MODEL_VERSION))
        group.values.append(verdict.value or b"")
        group.offsets.append(offset)
        group.approved_offsets.append(verdict.offset)
        group.condemned.append(is_condemned(verdict.headers))
        # By its partition too a key may be off, which only the guard could tell.
        group.keys.append(None if OFF_KEY in found else verdict.key)
        group.size += len(verdict.value or b"")
        self._group_bytes += len(verdict.value or b"")
        if self._group_bytes >= self._rules.held_bytes // 2:
            # A verdict does not depend on where a batch ends, so a part of one can be judged; the largest frees most.
            self._judge_group(max(self._groups, key=lambda one: self._groups[one].size))

    def _judge_group(self, model: str) -> None:
        group = self._groups.pop(model)
        self._group_bytes -= group.size
        self._judge(model, group)

    def _judge(self, model: str, group: _Group) -> None:
        policies = self._policy(group.policy_id)
        if policies is None:
            self.unjudged += len(group.values)
            self._guards.unread[model] = group.approved_offsets[-1]
            return
        policies = policies.at(group.tally.at)
        policy = policies.policies.get(model)
        if policy is None:
            for offset in group.offsets:
                self._report(Kind.WRONGLY_APPROVED, offset, model, f"the policy {group.policy_id} is not for its model")
            return
        if self._fields.setdefault(model, fields := policy.remembered_fields()) != fields:
            # The guard has read back by the new policy what was learnt here by the old one.
            self._fields[model], self._guards.unread[model] = fields, group.approved_offsets[0] - 1
        batches, malformed = decode_by_model(policies, group.values)
        strangers = [p for name, batch in batches if name != model for p in batch.positions]
        for position in sorted([*malformed, *strangers]):
            reason = malformed[position].reason if position in malformed else "it is of another model"
            self._report(Kind.WRONGLY_APPROVED, group.offsets[position], model, f"{group.policy_id}: {reason}")
        for name, batch in batches:
            if name != model:
                continue
            given: dict[str, dict[str, Given]] = {}
            entities = batch.columns.values("entity_id") if group.used else ()
            for row, position in enumerate(batch.positions if group.used else ()):
                for field_name, one in group.used.get(position, ()):
                    given.setdefault(field_name, {}).setdefault(entities[row], one)
            keys = partial(Keys, [group.keys[position] for position in batch.positions], form=hash)
            route = _route_of(group, batch, model)
            judgement = judge(batch, policy, self._memory, route, group.tally.at, model=model, given=given, keys=keys)
            for row in np.flatnonzero(~judgement.approved).tolist():
                position = batch.positions[row]
                at = group.approved_offsets[position]
                knew = self._guards.knew(
                    model, batch, judgement, row, at, segment_remembered=position not in group.unremembered
                )
                checks = _failed_checks(policy, judgement, row, knew)
                if checks:
                    detail = f"{group.policy_id} blocks it: {', '.join(checks)}"
                    self._report(Kind.WRONGLY_APPROVED, group.offsets[position], model, detail)
            off = judgement.off_key
            condemned = [
                one or (off is not None and bool(off[row]))
                for row, one in enumerate(group.condemned[position] for position in batch.positions)
            ]
            self._learn(model, policy, batch, group.approved_offsets, condemned)

    def _learn(
        self,
        model: str,
        policy: Policy,
        batch: Batch,
        approved_offsets: Sequence[int],
        condemned: Sequence[bool],
    ) -> None:
        """Take in approved records; `approved_offsets` are by place in the group, `condemned` by row of the batch."""
        teaches = ~np.array(condemned, dtype=np.bool_)
        remember(self._memory, batch.columns, policy, teaches)
        offsets = [approved_offsets[position] for position in batch.positions]
        self._guards.note(model, policy, batch.columns, offsets, teaches)
        self._memory.forget(self._rules.max_entities)
        self._guards.forget(self._memory, self._rules)

    def _remember_older(self, early: _VerdictRecord) -> None:
        """Approved before the start: what the memory then held. It is learnt with the next `_learn_older`."""
        model, policy_id = _text(early.headers, Header.MODEL), _text(early.headers, Header.POLICY)
        known, records = self._to_learn.setdefault(model, (policy_id, []))
        if known != policy_id:
            self._learn_older()
            self._to_learn[model] = policy_id, records = policy_id, []
        records.append(early)

    def _learn_older(self) -> None:
        to_learn, self._to_learn = self._to_learn, {}
        for model, (policy_id, records) in to_learn.items():
            policies = self._policy(policy_id)
            policy = policies.policies.get(model) if policies is not None else None
            # No tally says when these were judged.
            policy = policy.eventually() if policy is not None else None
            if policies is None or policy is None:
                self._guards.unread[model] = records[-1].offset
                continue
            if not policy.remembered_fields():
                continue
            for name, batch in decode_by_model(policies, [record.value for record in records])[0]:
                if name == model:
                    offsets = [record.offset for record in records]
                    condemned = [is_condemned(records[position].headers) for position in batch.positions]
                    self._learn(model, policy, batch, offsets, condemned)

    def _report(self, kind: Kind, offset: int | None, model: str, detail: str) -> None:
        self._found.append(Violation(kind, self.partition, offset, model, detail))

    def _take_found(self) -> list[Violation]:
        found, self._found = self._found, []
        return found


class _GuardsKnowledge:
    """Which values of the memory a guard is sure to have had: by the approved offsets that they are of.

    A guard that starts reads the last `restore_records` back, and one that has run for longer than the ledger has
    more: of a segment's recent values it is sure where the ledger has a whole window, or everything (`complete`).
    """

    def __init__(self, rules: Rules, *, complete: bool) -> None:
        self._rules, self._complete = rules, complete
        # By model, then by field and entity, those approved least recently first.
        self._last: dict[str, OrderedDict[tuple[str, EntityKey], int]] = {}
        self._recent: dict[tuple[str, str], dict[str | None, deque[int]]] = {}
        self.unread: dict[str, int] = {}
        """By model, the offset of what could not be read last: what the memory holds from before it is doubtful."""

    def note(self, model: str, policy: Policy, columns: Columns, offsets: Sequence[int], teaches: Mask) -> None:
        """What the memory has learnt of these rows."""
        windows, last = policy.windows(), self._last.setdefault(model, OrderedDict())
        for field_name in {check.field for check in policy.active_checks() if isinstance(check, MaxChangeCheck)}:
            entities = columns.values("entity_id")
            for row in np.flatnonzero(teaches & ~np.isnan(columns.numbers(field_name))).tolist():
                # The key that is there stays: new ones at every record would hold a burst's memory in pieces.
                key = (field_name, entity_key(entities[row]))
                last[key] = offsets[row]
                last.move_to_end(key)
        for field_name, window in windows.items():
            of_field, segments = self._recent.setdefault((model, field_name), {}), columns.values("segment")
            for row in np.flatnonzero(teaches & ~np.isnan(columns.numbers(field_name))).tolist():
                known = of_field.get(segments[row])
                if known is None or known.maxlen != window:
                    known = of_field[segments[row]] = deque(known or (), maxlen=window)
                known.append(offsets[row])

    def forget(self, memory: Memory, rules: Rules) -> None:
        """What a guard may have forgotten: it does so a few at a time, and began at another one.

        A guard counts an entity once, and here it counts once for each field: so no more is taken for known than is.
        """
        a_batch_each = len(self._last) * (rules.ahead // 4)
        limit = max(0, rules.max_entities - rules.max_entities // 100 - a_batch_each)
        sizes = [len(last) for last in self._last.values()]
        if sum(sizes) > limit:
            level = fair_level(sizes, limit)
            for last in self._last.values():
                while len(last) > level:
                    last.popitem(last=False)
        for key, of_field in self._recent.items():
            kept = memory.recent.get(key, Segments())
            # All that is kept has been noted.
            if len(of_field) > len(kept):
                for segment in of_field.keys() - kept.keys():
                    del of_field[segment]

    def knew(
        self,
        model: str,
        batch: Batch,
        judgement: Judgement,
        row: int,
        approved_offset: int,
        *,
        segment_remembered: bool,
    ) -> Callable[[MaxChangeCheck | OutlierCheck], bool]:
        """Whether the reference of that row is one that a guard is sure to have had."""
        entities = batch.columns.values("entity_id")

        def is_sure(offset: int | None) -> bool:
            return (
                offset is not None
                and offset > self.unread.get(model, -1)
                and approved_offset - offset <= self._rules.restore_records
            )

        def knows(check: MaxChangeCheck | OutlierCheck) -> bool:
            if Stream.APPROVED in self._rules.compacted:
                return False  # The guards have seen values that are gone.
            if isinstance(check, MaxChangeCheck):
                taught = judgement.approved & ~judgement.condemned
                if judgement.off_key is not None:
                    taught &= ~judgement.off_key
                there = taught & ~np.isnan(batch.columns.numbers(check.field))
                in_batch = entities[row] in itertools.compress(entities[:row], there)
                last = self._last.get(model)
                return in_batch or is_sure(last.get((check.field, entity_key(entities[row]))) if last else None)
            if not segment_remembered:
                return False
            segment = batch.columns.values("segment")[row]
            offsets = self._recent.get((model, check.field), {}).get(segment, ())
            whole = self._complete or len(offsets) >= check.window
            return whole and is_sure(offsets[-min(len(offsets), check.window)] if offsets else None)

        return knows


def _route_of(group: _Group, batch: Batch, model: str) -> Route | None:
    """The route that the guard judged by, as far as findings tell it; None: they tell nothing of it."""
    if not group.unpromoted:
        return None
    accepted = sorted(set(batch.columns.values("model_version")) - group.unpromoted)
    return Route(
        model=model,
        version=accepted[0] if len(accepted) == 1 else None,
        epoch=0,
        state=RouteState.AUTO,
        reason="as the findings tell",
        actor="verifier",
        since=group.tally.at,
        promoted=(*accepted[:MAX_PROMOTED],) or (OTHERS,),
    )


def _failed_checks(
    policy: Policy, judgement: Judgement, row: int, knew: Callable[[MaxChangeCheck | OutlierCheck], bool]
) -> list[str]:
    """The names of the checks that block `row`, without those whose reference a guard may not have had."""
    kinds: dict[str, Any] = {check.name: check for check in policy.active_checks()}
    names: list[str] = []
    for finding in judgement.findings.get(row, []):
        check = kinds.get(finding.check)
        if isinstance(check, MaxChangeCheck | OutlierCheck):
            unknown = judgement.unknown.get(finding.check)
            is_off = judgement.off_key is not None and judgement.off_key[row]
            if is_off and finding.enforced and unknown is not None and unknown[row]:
                names.append(f"{finding.check}, because its key is not that of its entity")
                continue
            if not knew(check) or (unknown is not None and unknown[row]):
                continue
        if finding.enforced:
            names.append(finding.check)
    return names


def _is_part(counted: int | dict[str, int], told: int | dict[str, int]) -> bool:
    """Whether what is counted is a part of what was told."""
    if isinstance(counted, int) or isinstance(told, int):
        return isinstance(counted, int) and isinstance(told, int) and counted <= told
    return all(number <= told.get(check, 0) for check, number in counted.items())


def _text(headers: Mapping[str, bytes], header: Header) -> str:
    return headers.get(header, b"").decode("utf-8", "replace")


def _source(headers: Mapping[str, bytes]) -> tuple[str, int, int] | None:
    """(topic, partition, offset) of the prediction, where the header says so."""
    topic, _, rest = _text(headers, Header.SOURCE).rpartition("/")[0].rpartition("/")
    offset = _text(headers, Header.SOURCE).rpartition("/")[2]
    return (topic, int(rest), int(offset)) if topic and rest.isdecimal() and offset.isdecimal() else None
