"""The checker: an independent process that reads with read_committed what came in and what became of it.

It compares by partition (ledger.py says how, and what it can find). It starts from `audit.look_back` before now
and goes on for good, or reads once to the end. A cycle: (1) the guard's committed offsets, then the ends of
the verdicts' topics, (2) the routes, (3) predictions, verdicts and tallies up to there, each only as far as needed,
so that memory stays bounded, (4) what is missing now is lost. It writes nothing to Kafka.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from holdfast import metrics
from holdfast.adapters.policies import PolicyStore
from holdfast.adapters.service import run_service
from holdfast.core.errors import describe
from holdfast.core.policy import PolicySet
from holdfast.core.record import Record, UnreadableBatch
from holdfast.core.releases import RELEASE, RETRY
from holdfast.kafka.counterparts import counterparts
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.fetch_by_id import Ids, fetch_by_id
from holdfast.kafka.login import explain
from holdfast.kafka.offsets import committed_offset
from holdfast.kafka.reading import close, offsets_since, read_to_end, reader
from holdfast.kafka.records import with_unreadable
from holdfast.kafka.topic_ids import is_another, topic_ids
from holdfast.kafka.topic_settings import FIX
from holdfast.kafka.topics_on_broker import told_settings
from holdfast.settings import Settings
from holdfast.verify.ledger import (
    VERDICTS,
    Frontier,
    Kind,
    Ledger,
    RouteHistory,
    Rules,
    Stream,
    Violation,
    without_samples,
)
from holdfast_schemas import MAX_INTEGER, TOPICS, Route, Tally, parse_control, utc_now

log = structlog.get_logger("holdfast.audit")

PATIENCE = 10.0
"""Seconds that a verdict may be visible before the guard's committed offset shows it; brokers write the two apart."""
MARGIN = timedelta(minutes=10)
"""How much earlier verdicts are read than predictions: producers' timestamps need not be in order."""
EXAMPLES = 20
"""Violations of a kind that are logged in a minute, and kept for printing."""
TELL_EVERY = 3.0
"""Seconds between two sentences on how far it is."""
AT_ONCE = 1000
FETCH_BYTES = 512 * 1024
"""Of one partition at a time: after an outage of the guards much waits in all of them."""
RETENTION = timedelta(milliseconds=min(TOPICS[role].retention_ms for role in (*VERDICTS, "predictions", "control")))
"""What is younger is in every topic."""
HELD_BYTES = 256 * 1024 * 1024
"""Bytes of records that are held at once, of all partitions; each may hold its share of it."""
LEAST_HELD_BYTES = 1024 * 1024
"""Of a partition, however many there are."""
UNCLAIMED = 1000
"""Tallies kept of partitions that are not followed yet."""
FORMER_POLICIES = 20
"""Policies that are kept beside twice those in force; what was judged by an older one is not judged again."""


_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]


class _TallyRange(msgspec.Struct):
    """As much of a control record as says whether a ledger needs it."""

    partition: _Number
    last_offset: _Number


_decode_range = msgspec.json.Decoder(_TallyRange).decode


class _Release(msgspec.Struct):
    """As much of an audit record as says whether a prediction was released."""

    action: str
    outcome: str
    source: str | None = None


_decode_release = msgspec.json.Decoder(_Release).decode


@dataclass(slots=True)
class Findings:
    """What has been found so far."""

    checked: int = 0
    unjudged: int = 0
    released: int = 0
    removed: int = 0
    """Verdicts on what compaction has removed from predictions since."""
    uncompared: int = 0
    """Verdicts and predictions that were given up because too many waited for each other."""
    violations: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, list[Violation]] = field(default_factory=dict)

    def rows(self) -> dict[str, tuple[int, str]]:
        """By kind: how many there are, and the first."""
        return {
            kind.value: (self.violations[kind], found[0].describe() if (found := self.examples.get(kind)) else "")
            for kind in Kind
        }

    def facts(self) -> dict[str, Any]:
        """For printing: JSON values."""
        return {
            "checked": self.checked,
            "not_judged_policy_unknown": self.unjudged,
            "released": self.released,
            "input_removed": self.removed,
            "not_compared": self.uncompared,
            "violations": {kind.value: self.violations[kind] for kind in Kind},
            "examples": [
                {
                    "kind": kind.value,
                    "partition": one.partition,
                    "offset": one.offset,
                    "model": one.model,
                    "detail": one.detail,
                }
                for kind, found in self.examples.items()
                for one in found
            ],
        }


class RecordsGone(KafkaUnavailable):
    """Retention removed what had not been compared."""


class Auditor:
    """`since` None: from the first record that Kafka still has.

    `once`: nothing that comes later is compared, so of a partition in which nothing has come since then nothing older
    is read.
    """

    def __init__(self, settings: Settings, since: datetime | None, *, once: bool = False) -> None:
        self.findings = Findings()
        self._settings, self._since, self._once = settings, since, once
        self._policies = PolicyStore(settings.policies, metrics.POLICIES_REFUSED.inc, carries=settings.carries)
        self._known: OrderedDict[str, PolicySet] = OrderedDict()
        self._reload_at = 0.0
        self._routes = RouteHistory()
        self._ledgers: dict[int, Ledger] = {}
        self._control: dict[TopicPartition, int] = {}
        self._route_ends: dict[TopicPartition, int] = {}
        self._audit_ends: dict[TopicPartition, int] = {}
        # Whether the audit was read from its first record on.
        self._whole_audit = False
        self._began: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._approved_ends: dict[int, tuple[float, int]] = {}
        self._covered: dict[int, int] = {}
        # By partition: the guard's committed offset, and since when it is known; None while the group has lost it.
        self._committed: dict[int, tuple[int, float | None]] = {}
        self._position: dict[TopicPartition, int] = {}
        self._unclaimed: deque[tuple[Tally, int]] = deque(maxlen=UNCLAIMED)
        self._logged: dict[Kind, deque[float]] = {kind: deque(maxlen=EXAMPLES) for kind in Kind}
        self._restores = False
        self._reader: AIOKafkaConsumer | None = None
        self._surveyor: AIOKafkaConsumer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble: str | None = "starting"
        self._ids = Ids({})
        self._begin_again = False
        self._held = range(0)
        """Partitions that get no verdicts, as they were last looked at."""
        self._counted_before: Counter[str] = Counter()
        names = settings.topics
        self._streams = {
            Stream.PREDICTIONS: names.predictions,
            Stream.APPROVED: names.approved,
            Stream.BLOCKED: names.blocked,
            Stream.MALFORMED: names.malformed,
        }
        self._rules = Rules(
            predictions_topic=names.predictions,
            exactly_once=settings.guard.delivery == "exactly_once",
            approve_without_policy=settings.guard.no_policy == "approve",
            carries=settings.carries,
            no_policy_until_ms=int(until.timestamp() * 1000)
            if (until := settings.guard.no_policy_until) is not None
            else None,
            fence_within_ms=int(settings.audit.fence_within.total_seconds() * 1000),
            restore_records=settings.guard.restore_records,
            ahead=4 * settings.guard.max_batch_records,
        )
        for kind in Kind:
            metrics.AUDIT_VIOLATIONS.labels(kind.value)

    async def start(self) -> None:
        """Raises KafkaUnavailable."""
        kafka = self._settings.kafka
        # Not in the group, only asking for what it committed; and for ends that open transactions do not hold back.
        self._surveyor = AIOKafkaConsumer(
            group_id=self._settings.guard.group, enable_auto_commit=False, **kafka.client_options()
        )
        try:
            await self._surveyor.start()
            await self._open_reader()
            await self._look_for_compaction()
            await self._take_up_partitions()
        except KafkaError as error:
            raise KafkaUnavailable(await explain(kafka, error)) from None

    async def _look_for_compaction(self) -> None:
        """What compaction has removed must not be taken for what never was."""
        told = await told_settings(self._settings.kafka, self._streams.values())
        compacted = {
            stream
            for stream, name in self._streams.items()
            if "compact" in told.get(name, {}).get("cleanup.policy", "")
        }
        self._rules = replace(self._rules, compacted=frozenset(compacted))

    async def _open_reader(self) -> None:
        self._reader = reader(
            self._settings.kafka,
            auto_offset_reset="none",
            metadata_max_age_ms=30_000,
            max_partition_fetch_bytes=FETCH_BYTES,
            value_deserializer=with_unreadable,
        )
        await self._reader.start()
        topics = self._settings.topics
        names = [*self._streams.values(), topics.control, topics.routes, topics.audit]
        self._ids = fetch_by_id(self._reader, await topic_ids(self._reader, names))

    async def follow(self) -> None:
        """Compare for good; an outage, or records that are gone, only delay it."""
        self._tasks.append(asyncio.create_task(self._policies.follow()))
        while True:
            try:
                await self.cycle()
                self._trouble = None
            except RecordsGone as error:
                metrics.AUDIT_GAPS.inc()
                log.error("not everything can be compared, it begins again with what is there", reason=str(error))
                self._begin_again = True
            except (KafkaError, KafkaUnavailable, AssertionError) as error:
                # aiokafka asserts that it knows a broker, and one that has just restarted names none.
                self._trouble = f"Kafka does not answer: {describe(error)}"
                log.warning("cycle failed, it is done again", error=describe(error))
            await asyncio.sleep(1)

    async def once(self) -> Findings:
        """Compare everything that is committed now. Raises KafkaUnavailable."""
        try:
            first = await self.cycle()
            # What is visible may be ahead of the committed offset that shows where it belongs.
            while any(
                ledger.settled() < first[number].committed or ledger.undecided(first[number].ends)
                for number, ledger in self._ledgers.items()
                if number in first
            ):
                await asyncio.sleep(0.5)
                await self.cycle()
        except KafkaError as error:
            raise KafkaUnavailable(await explain(self._settings.kafka, error)) from None
        return self.findings

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for consumer in (self._reader, self._surveyor):
            if consumer is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(consumer.stop(), 2)

    def progress(self, seconds: float) -> str:
        """How far it has read, in words."""
        ends = {tp: max(end, self._position[tp]) for tp, end in self._ends.items() if tp in self._position}
        total = sum(end - self._began[tp] for tp, end in ends.items())
        if not total:
            return f"Waiting for Kafka ({seconds:.0f} s)"
        read = self.offsets_read()
        why = ", with what was approved before, for the checks that compare with it" if self._restores else ""
        return f"{read:,} of {total:,} records read{why} ({seconds:.0f} s)"

    def offsets_read(self) -> int:
        """How many offsets have been read of everything but the predictions."""
        predictions = self._settings.topics.predictions
        return sum(at - self._began[tp] for tp, at in self._position.items() if tp.topic != predictions)

    def not_ready(self) -> str | None:
        """Why nothing is being compared, or None."""
        return self._trouble

    async def cycle(self) -> dict[int, Frontier]:
        """Follow every partition up to where it is now; returns that."""
        if self._begin_again:
            await self._forget_everything()
        reader = self._consumer
        surveyed_at = time.monotonic()
        await self._take_up_partitions()
        frontiers = await self._survey()
        for ends in (self._route_ends, self._audit_ends):
            while any(self._position[tp] < end for tp, end in ends.items()):
                await self._read(reader, list(ends))
        while True:
            tallies_read = all(self._position[tp] >= end for tp, end in self._control.items())
            for number, ledger in self._ledgers.items():
                self._take_findings(ledger.advance(self._positions(number), tallies_read=tallies_read))
            wanted = [
                tp
                for number, ledger in self._ledgers.items()
                for stream in Stream
                if ledger.wants(stream, self._position[tp := self._tp(stream, number)])
            ]
            # Tallies as they are needed: they are everybody's, so nothing else bounds how many are held.
            if not tallies_read and (not wanted or any(ledger.starved for ledger in self._ledgers.values())):
                wanted += [tp for tp, end in self._control.items() if self._position[tp] < end]
            if not wanted:
                break
            await self._read(reader, wanted)
        for number, ledger in self._ledgers.items():
            _, known_since = self._committed[number]
            # Verdicts wait for an offset that shows where they belong, not while the group has lost its offsets.
            waits = known_since is None or known_since > surveyed_at - PATIENCE
            stale = -math.inf if waits else surveyed_at - PATIENCE
            if not self._whole_audit and ledger.releases.unaudited(math.inf if self._once else stale):
                await self._read_whole_audit()
            self._take_findings(ledger.finish(self._positions(number), stale))
            lag = frontiers[number].committed - ledger.settled()
            metrics.AUDIT_LAG.labels(str(number)).set(max(0, lag))
        self._count()
        return frontiers

    async def _forget_everything(self) -> None:
        """Begin as a process does that starts now; what was found stays."""
        if self._reader is not None:
            await close(self._reader)
        await self._open_reader()
        for ledger in self._ledgers.values():
            self._counted_before += Counter(
                checked=ledger.checked,
                unjudged=ledger.unjudged,
                released=ledger.released,
                removed=ledger.removed,
                uncompared=ledger.uncompared,
            )
        for known in (self._ledgers, self._control, self._route_ends, self._audit_ends, self._began, self._position):
            known.clear()
        self._unclaimed.clear()
        self._whole_audit = False
        self._approved_ends.clear()
        self._covered.clear()
        self._committed.clear()
        self._routes = RouteHistory()
        self._since = utc_now() - self._settings.audit.look_back
        self._begin_again = False

    # Where to read.

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        assert self._reader is not None  # noqa: S101  start() made it
        return self._reader

    def _tp(self, stream: Stream, partition: int) -> TopicPartition:
        return TopicPartition(self._streams[stream], partition)

    def _positions(self, number: int) -> dict[Stream, int]:
        return {stream: self._position[self._tp(stream, number)] for stream in Stream}

    async def _take_up_partitions(self) -> None:
        """Begin with every partition that is not followed yet and gets verdicts. Raises KafkaUnavailable."""
        roles = ("predictions", "approved", "blocked", "malformed", "control", "routes", "audit")
        found = await counterparts(self._settings, roles)
        counts, topics = found.counts, self._settings.topics
        if found.held and found.held != self._held:
            log.warning(found.sentence(found.held), to_do=FIX)
        self._held = found.held
        shared = [
            TopicPartition(name, number)
            for name, count in (
                (topics.control, counts["control"]),
                (topics.routes, counts["routes"]),
                (topics.audit, counts["audit"]),
            )
            for number in range(count)
        ]
        numbers = [number for number in range(found.judged) if number not in self._ledgers]
        fresh = [tp for tp in shared if tp not in self._position]
        fresh += [self._tp(stream, number) for number in numbers for stream in Stream]
        if not fresh:
            return
        starts, ends = await self._starts(fresh)
        reader = self._consumer
        reader.assign([*self._position, *fresh])
        for tp, position in [*self._position.items(), *starts.items()]:
            reader.seek(tp, position)
        self._position.update(starts)
        self._began.update(starts)
        ends_of = {topics.control: self._control, topics.routes: self._route_ends, topics.audit: self._audit_ends}
        for tp in shared:
            ends_of[tp.topic].setdefault(tp, 0)
        share = max(LEAST_HELD_BYTES, HELD_BYTES // counts["predictions"])
        remembered = self._settings.guard.entities_of_partition(found.judged)
        for ledger in self._ledgers.values():
            ledger.bound_memory(remembered)
        rules = replace(self._rules, held_bytes=min(share, self._rules.held_bytes), max_entities=remembered)
        self._whole_audit &= not numbers
        for number in numbers:
            whole = all(self._began[tp] == 0 for tp in [*self._control, *(self._tp(s, number) for s in Stream)])
            self._ledgers[number] = Ledger(
                number,
                starts[self._tp(Stream.PREDICTIONS, number)],
                older=self._older(whole, ends[self._tp(Stream.APPROVED, number)]),
                rules=rules,
                routes=self._routes,
                policy=self._policy,
            )
        for _ in range(len(self._unclaimed)):
            self._take_tally(*self._unclaimed.popleft())

    def _older(self, whole: bool, end: int) -> int | None:
        """As a ledger takes it: whether verdicts may be of predictions that it does not see, and up to which offset."""
        if not whole:
            return end
        # A first start at the latest offset leaves what was there before without a verdict.
        return None if self._settings.guard.start_from == "earliest" else 0

    async def _starts(
        self, partitions: Sequence[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Where to begin, and the ends as they are now."""
        surveyor = self._surveyor
        assert surveyor is not None  # noqa: S101  start() made it
        topics = self._settings.topics
        firsts: dict[TopicPartition, int] = await surveyor.beginning_offsets(partitions)
        # What is not judged yet is compared too, however old it is: verdicts then begin where the guard stands.
        judged = {
            tp: await committed_offset(surveyor, tp) or firsts[tp]
            for tp in partitions
            if tp.topic == topics.predictions
        }
        ends: dict[TopicPartition, int] = await surveyor.end_offsets(
            [tp for tp in partitions if tp.topic != topics.predictions]
        )
        ends |= await surveyor.end_offsets(list(judged))  # After the others, as in `_survey`.
        compared = {**firsts} if self._since is None else {}
        for tp in [tp for tp in compared if tp.topic in (topics.routes, topics.audit)]:
            del compared[tp]
        if any(first > 0 for first in compared.values()):
            # Of what is older, one topic may still have what another has removed.
            self._since = utc_now() - RETENTION + MARGIN
        if self._since is None:
            return firsts, ends
        starts = {**firsts}
        came = await offsets_since(surveyor, dict.fromkeys(judged, self._since), ends) if judged else {}
        for tp, offset in came.items():
            starts[tp] = max(firsts[tp], min(offset, judged[tp]))
        # Of these nothing is to be compared: the guard had judged everything before that time, and all of it is seen.
        quiet = {tp.partition for tp, at in judged.items() if self._once and came[tp] >= at == ends[tp]}
        all_quiet = bool(judged) and len(quiet) == len(judged)
        is_quiet = {
            tp: all_quiet if tp.topic in (topics.control, topics.audit) else tp.partition in quiet
            for tp in partitions
            if tp.topic not in (topics.routes, topics.predictions)
        }
        times = {tp: self._since if quietly else self._since - MARGIN for tp, quietly in is_quiet.items()}
        # What was approved before is needed too, as far as a guard would remember it.
        remembers = any(one.eventually().remembered_fields() for one in self._policies.current.policies.values())
        for tp, offset in (await offsets_since(surveyor, times, ends)).items():
            if not is_quiet[tp] and tp.topic != topics.audit:
                offset = min(offset, ends[tp] - self._rules.ahead)
                if tp.topic == topics.approved and remembers:
                    offset -= self._settings.guard.restore_records
                    self._restores = True
            starts[tp] = max(firsts[tp], offset)
        return starts, ends

    async def _survey(self) -> dict[int, Frontier]:
        """The committed offsets first, then the ends: what is below those offsets has its verdict below the ends."""
        surveyor, asked_at = self._surveyor, time.monotonic()
        assert surveyor is not None  # noqa: S101  start() made it
        committed = {number: await self._committed_of(number) for number in self._ledgers}
        tps = [tp for tp in self._position if tp.topic != self._settings.topics.predictions]
        ends: dict[TopicPartition, int] = await surveyor.end_offsets(tps)
        self._ends = ends
        for known in (self._control, self._route_ends, self._audit_ends):
            known.update({tp: ends[tp] for tp in known})
        came = await surveyor.end_offsets([self._tp(Stream.PREDICTIONS, number) for number in self._ledgers])
        for number in self._ledgers:
            # A verdict is of a prediction below the committed offset where every prediction is below it, or where the
            # verdict has been visible for long enough.
            seen_at, end = self._approved_ends.get(number, (asked_at, 0))
            if seen_at <= asked_at - PATIENCE:
                self._covered[number] = end
            if number not in self._approved_ends or seen_at <= asked_at - PATIENCE:
                self._approved_ends[number] = time.monotonic(), ends[self._tp(Stream.APPROVED, number)]
            if came[self._tp(Stream.PREDICTIONS, number)] == committed[number]:
                self._covered[number] = ends[self._tp(Stream.APPROVED, number)]
        frontiers = {
            number: Frontier(
                committed[number],
                {stream: ends[self._tp(stream, number)] for stream in VERDICTS},
                self._covered.get(number, 0),
            )
            for number in self._ledgers
        }
        for number, frontier in frontiers.items():
            self._ledgers[number].expect(frontier)
        return frontiers

    async def _committed_of(self, number: int) -> int:
        """The guard's committed offset; where the group has lost it, the last one that was seen."""
        assert self._surveyor is not None  # noqa: S101  start() made it
        offset = await committed_offset(self._surveyor, self._tp(Stream.PREDICTIONS, number))
        before, known_since = self._committed.get(number, (0, -math.inf))
        if offset is None:
            if before:
                known_since = None
        elif known_since is None:
            known_since = time.monotonic()
        self._committed[number] = max(before, offset or 0), known_since
        return self._committed[number][0]

    # What was read.

    async def _read(self, reader: AIOKafkaConsumer, wanted: Sequence[TopicPartition]) -> None:
        try:
            fetched = await reader.getmany(*wanted, timeout_ms=200, max_records=AT_ONCE)
        except OffsetOutOfRangeError as error:
            (tp, offset), *_ = error.args[0].items()
            if self._ids.refused:
                raise RecordsGone(
                    f"The topic {min(self._ids.refused)} was deleted or made again, so what was not compared of it "
                    "cannot be any more. Start the audit again, once it is there."
                ) from None
            raise RecordsGone(
                f"Records of {tp.topic}/{tp.partition} from offset {offset} on were removed before they were compared. "
                "Lengthen the topic's retention, and start the audit again."
            ) from None
        for tp, records in fetched.items():
            self._take(tp, records)
        for tp in wanted:
            # A transaction's markers take offsets too, and may be the last thing in the partition.
            self._position[tp] = await reader.position(tp)

    def _take(self, tp: TopicPartition, records: Sequence[ConsumerRecord]) -> None:
        topics = self._settings.topics
        if tp.topic == topics.control:
            for record in records:
                if self._is_past(record.value or b""):
                    continue
                # The switch has skipped records that are not control records; commands are not compared.
                with contextlib.suppress(ValidationError):
                    event = parse_control(record.value or b"")
                    if isinstance(event, Tally):
                        self._take_tally(event, record.timestamp)
        elif tp.topic == topics.audit:
            self._take_audit(records)
        elif tp.topic == topics.routes:
            for record in records:
                if isinstance(record, UnreadableBatch):
                    # There may be a fence in it.
                    raise KafkaUnavailable(
                        f"In {tp.topic}/{tp.partition} {record.reason}. Only the switch may write there; remove that "
                        "batch, then start the audit again."
                    )
                route = Route.model_validate_json(record.value) if record.value is not None else None
                model = route.model if route is not None else (record.key or b"").decode("utf-8", "replace")
                self._routes.add(model, route, record.timestamp)
        else:
            stream = next(stream for stream, name in self._streams.items() if name == tp.topic)
            self._ledgers[tp.partition].add(stream, records, time.monotonic())

    def _take_audit(self, records: Sequence[Record]) -> None:
        """Give each released prediction that an audit record names to the ledger of its partition."""
        for record in records:
            value = record.value or b""
            # Cheap first: most audit records are of other things. What cannot be read names nothing.
            if b'"release"' not in value and b'"retry"' not in value:
                continue
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, ValueError):
                one = _decode_release(value)
                place, _, offset = (one.source or "").rpartition("/")
                topic, _, partition = place.rpartition("/")
                if (
                    one.action not in (RELEASE, RETRY)
                    or one.outcome != "applied"
                    or topic != self._rules.predictions_topic
                ):
                    continue
                if (ledger := self._ledgers.get(int(partition))) is not None:
                    ledger.releases.add_audited(int(offset))

    async def _read_whole_audit(self) -> None:
        """Read the audit from its first record on: what is released is named there, or nowhere."""
        self._whole_audit = True
        assert self._surveyor is not None  # noqa: S101  start() made it
        firsts: dict[TopicPartition, int] = await self._surveyor.beginning_offsets(list(self._audit_ends))
        oldest_ms: list[int] = []
        for tp, first in firsts.items():
            times: list[int] = []

            def take(records: Sequence[ConsumerRecord], times: list[int] = times) -> None:
                times.append(records[0].timestamp)
                self._take_audit(records)

            await read_to_end(self._settings.kafka, [tp], take, start=first, stop=self._position[tp])
            if first > 0:
                # Older ones were removed, and may have named more.
                oldest_ms.append(times[0] if times else round(time.time() * 1000))
        for ledger in self._ledgers.values():
            ledger.releases.complete_from_ms = max(oldest_ms, default=None)

    def _is_past(self, value: bytes) -> bool:
        """Whether a tally is of predictions before the start: many are, and to read one whole takes long."""
        try:
            tally = _decode_range(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        ledger = self._ledgers.get(tally.partition)
        return ledger is not None and ledger.is_past(tally.last_offset)

    def _take_tally(self, tally: Tally, written_ms: int) -> None:
        if not self._settings.carries(tally.model):
            return  # Its predictions are in another topic.
        if is_another(tally.topic_id, self._ids.by_name.get(self._settings.topics.predictions)):
            # Of the topic that had this name before: its offsets are others.
            return
        ledger = self._ledgers.get(tally.partition)
        if ledger is not None:
            ledger.add_tally(tally, written_ms)
        else:
            # The topic may have grown meanwhile: the next cycle follows that partition.
            self._unclaimed.append((without_samples(tally), written_ms))

    def _policy(self, policy_id: str) -> PolicySet | None:
        """The policy of that id, as it is or was since this process started; None if it never was."""
        if policy_id not in self._known:
            if time.monotonic() >= self._reload_at:
                self._reload_at = time.monotonic() + 5
                self._policies.reload()
            for policy in self._policies.current.policies.values():
                self._known.setdefault(policy.id, PolicySet.of([policy]))
                self._known.move_to_end(policy.id)
            # Each may hold tables of a million rows.
            while len(self._known) > len(self._policies.current.policies) * 2 + FORMER_POLICIES:
                self._known.popitem(last=False)
        return self._known.get(policy_id)

    # What was found.

    def _take_findings(self, found: Sequence[Violation]) -> None:
        now = time.monotonic()
        for violation in found:
            kind = violation.kind
            self.findings.violations[kind] += 1
            metrics.AUDIT_VIOLATIONS.labels(kind.value).inc()
            examples = self.findings.examples.setdefault(kind, [])
            if len(examples) < EXAMPLES:
                examples.append(violation)
            logged = self._logged[kind]
            if len(logged) < EXAMPLES or now - logged[0] > 60:
                logged.append(now)
                log.error(
                    "violation",
                    kind=kind.value,
                    partition=violation.partition,
                    offset=violation.offset,
                    model=violation.model,
                    detail=violation.detail,
                )

    def _count(self) -> None:
        findings, ledgers = self.findings, self._ledgers.values()
        before = self._counted_before
        checked = before["checked"] + sum(ledger.checked for ledger in ledgers)
        unjudged = before["unjudged"] + sum(ledger.unjudged for ledger in ledgers)
        metrics.AUDIT_CHECKED.inc(checked - findings.checked)
        metrics.AUDIT_UNJUDGED.inc(unjudged - findings.unjudged)
        findings.checked, findings.unjudged = checked, unjudged
        findings.released = before["released"] + sum(ledger.released for ledger in ledgers)
        findings.removed = before["removed"] + sum(ledger.removed for ledger in ledgers)
        uncompared = before["uncompared"] + sum(ledger.uncompared for ledger in ledgers)
        if uncompared > findings.uncompared:
            metrics.AUDIT_GAPS.inc()
            log.error(
                "not everything can be compared, too many predictions and verdicts waited for each other",
                given_up=uncompared - findings.uncompared,
            )
        findings.uncompared = uncompared


async def audit_once(
    settings: Settings, within: timedelta | None, tell: Callable[[str], None] = lambda _: None
) -> Findings:
    """Compare what came in `within` that time, or everything. Raises KafkaUnavailable, PolicyError.

    `tell` gets a sentence every few seconds. A short time may need long where something came in it: what was approved
    before it is read too, as far as guards remember it.
    """
    auditor = Auditor(settings, None if within is None else utc_now() - within, once=True)
    began = time.monotonic()

    async def report() -> None:
        while True:
            await asyncio.sleep(TELL_EVERY)
            tell(auditor.progress(time.monotonic() - began))

    reporting = asyncio.create_task(report())
    try:
        await auditor.start()
        return await auditor.once()
    finally:
        reporting.cancel()
        await auditor.stop()


async def serve(settings: Settings) -> None:
    """Run the checker until it is told to stop. Raises KafkaUnavailable, PolicyError, ServiceError."""
    auditor = Auditor(settings, utc_now() - settings.audit.look_back)
    await run_service(
        "audit",
        settings,
        host=settings.audit.health_host,
        port=settings.audit.health_port,
        start=auditor.start,
        run=auditor.follow,
        stop=auditor.stop,
        ready=auditor.not_ready,
    )
