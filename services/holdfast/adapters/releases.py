"""The guards' answers to people who ask for releases.

A command stands in `holdfast.releases`, in the partition of the predictions that it names, so one worker at a time
answers for a partition. In one transaction with the command's offset it writes (1) the approved records, with the
verdict `released`, (2) what they teach, (3) an audit record for each of them and one that answers the command. What was
released before is known from the approved topic itself, and from the audit; the audit also says which commands were
answered, so that one that comes twice is carried out once.

It runs inside the guard, beside its judging: the policies in force, the routes and mostly the memory are at hand there,
and nothing else has to be deployed. Whatever fails here does not stop the judging.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple, Protocol

import msgspec
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError
from pydantic_core import to_json

from holdfast import metrics
from holdfast.adapters.blocked import Blocked
from holdfast.adapters.malformed import MalformedRecord
from holdfast.adapters.memory import RELEASED, restore_memory
from holdfast.core.accepted import References
from holdfast.core.actors import actor_name
from holdfast.core.command_signature import Through
from holdfast.core.errors import HoldfastError, describe, first_flaw
from holdfast.core.forced_wishes import ForcedWishes
from holdfast.core.malformed import MalformedKind
from holdfast.core.memory import Memory
from holdfast.core.policy import EMPTY, PolicySet
from holdfast.core.progress import Committed
from holdfast.core.record import Record, UnreadableBatch, produced_at, time_of, writable
from holdfast.core.releases import (
    CLOCK_MARGIN,
    RELEASE,
    RETRY,
    Answer,
    Judged,
    Known,
    Rules,
    Waiting,
    in_words,
    is_too_old,
    judge_releases,
)
from holdfast.core.verdict_headers import (
    error_headers,
    findings_header,
    release_headers,
    source_header,
    verdict_headers,
    with_theirs,
)
from holdfast.kafka.batches import Out
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.group import TransactionalLoop
from holdfast.kafka.login import explain
from holdfast.kafka.partitioner import partition_for
from holdfast.kafka.pick import TooManyBytesError, pick
from holdfast.kafka.reading import bounds, read_to_end
from holdfast.kafka.refusals import Refusal
from holdfast.kafka.topics import describe_topics
from holdfast.kafka.transaction import Write
from holdfast.settings import Settings
from holdfast_schemas import (
    MAX_VALUE_BYTES,
    AuditRecord,
    Finding,
    Header,
    Outcome,
    Reference,
    ReleaseAnswer,
    ReleaseCommand,
    Route,
    Verdict,
    utc_now,
)

log = structlog.get_logger("holdfast.releases")

ROLES = ("releases", "approved", "blocked", "malformed", "references", "audit")
LOOK_WITHIN = 120.0
"""Seconds in which what a command is judged by must have been read; else it is refused, and the next one follows."""
MOST_BYTES = 12 * 1024 * 1024
"""Of the records of one command, which are held at once; the command line asks for 8 MiB at most."""
MOST_KEYS = 200_000
"""Keys whose newest output is remembered from one command to the next; beyond it only those of the command are."""
ANSWER_BYTES = 600_000
"""Of the record that answers a command; beyond it the findings are given by their names alone."""
MOST_FINDINGS = 10
KEEP_FOR = 600.0
"""Seconds that what was read for one command is kept for the next."""
TRY_AGAIN_AFTER = 5.0
"""Seconds after which the worker tries again where it cannot answer at all."""
PREPARE_WITHIN = 3600.0
"""Seconds that a command may wait for those of the worker's other partitions."""
POLL_MS = 15_000
"""How long a partition waits for a command before it looks at the clock: it wakes at once when there is one."""
FETCH_WAIT_MS = 5000
"""Commands are rare: a broker may keep a fetch for as long. It answers at once when there is a command."""
_SOURCE = Header.SOURCE.value
_SOURCES = re.compile(rb"[A-Za-z0-9._-]+/[0-9]+/[0-9]+")


class FollowedRoutes(Protocol):
    """The routes and references as they are by now."""

    routes: dict[str, Route]
    references: References

    async def catch_up(self) -> None: ...


class _Answered(msgspec.Struct):
    source: str
    answer: str


class _Entry(msgspec.Struct):
    """What is read of an audit record."""

    action: str
    outcome: str
    at: datetime | None = None
    actor: str = ""
    source: str | None = None
    command_id: str | None = None
    answers: list["_Answered"] | None = None


_ENTRY = msgspec.json.Decoder(_Entry)


@dataclass(slots=True)
class Ledger:
    """What the audit says of releases: commands that were answered, sources that were released in one partition, those
    of which it cannot be told, because a record that names them cannot be read, and what waits for a second person."""

    place: str
    """`topic/partition/` of the predictions."""
    answered: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    unclear: set[str] = field(default_factory=set)
    asked: ForcedWishes = field(default_factory=ForcedWishes)

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            value = record.value or b""
            # Cheap first: most audit records are of other things.
            if b'"release"' not in value and b'"retry"' not in value:
                continue
            try:
                entry = _ENTRY.decode(value)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                # It must not stop what it does not name.
                found = {source.decode() for source in _SOURCES.findall(value)}
                self.unclear |= {source for source in found if source.startswith(self.place)}
                log.warning(
                    "an audit record that speaks of a release cannot be read, what it names is not released",
                    record=f"{record.topic}/{record.partition}/{record.offset}",
                )
                continue
            if entry.action not in (RELEASE, RETRY):
                continue
            if entry.source is None and entry.command_id is not None:
                self.answered.add(entry.command_id)
                for one in entry.answers or ():
                    waits = one.answer == Answer.NEEDS_SECOND_PERSON and one.source.startswith(self.place)
                    if waits and entry.at is not None:
                        self.asked.add(one.source, entry.actor, entry.at)
            elif entry.outcome == Outcome.APPLIED and entry.source is not None and entry.source.startswith(self.place):
                self.released.add(entry.source)


@dataclass(slots=True)
class _Approved:
    """What the approved topic says since a time: the newest output of each key of a model, and what was released.

    `keys` are those that are looked at; None: all of them.
    """

    model: str
    since_ms: int
    keys: frozenset[bytes] | None = None
    newest: dict[bytes, int] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    end: int = 0
    too_many: bool = False

    def take(self, records: Sequence[Record]) -> None:
        model = (Header.MODEL.value, self.model.encode())
        for record in records:
            if RELEASED in record.headers:
                self.released |= {(v or b"").decode("utf-8", "replace") for n, v in record.headers if n == _SOURCE}
            key = record.key
            if key is None or (self.keys is not None and key not in self.keys):
                continue
            # A deletion names no model, and must not be followed by an older output of its key.
            if record.value is None or model in record.headers:
                self.newest[key] = max(produced_at(record), self.newest.get(key, 0))
        if self.keys is None and len(self.newest) > MOST_KEYS:
            self.too_many, self.newest = True, {}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A command, and all that it needs to be answered; or why it is not answered, or is no command."""

    command: ReleaseCommand | None = None
    flaw: str = ""
    refusal: str = ""
    rules: Rules | None = None
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    through: Through | None = None


class _Written(NamedTuple):
    """The command at that offset, and what it is answered."""

    offset: int
    command: ReleaseCommand
    told: str


class ReleaseWork:
    """One partition of the commands."""

    def __init__(self, releases: "Releases", partition: int) -> None:
        self._releases, self._partition = releases, partition
        self._settings = releases.settings
        self._topics = self._settings.topics
        self._ledger: Ledger | None = None
        self._approved: _Approved | None = None
        self._memory: tuple[str, Memory, int] | None = None
        self._used_at = time.monotonic()
        self._prepared: dict[int, _Prepared] = {}
        # Of the last `process`: what becomes known once it stands.
        self._judged: list[Judged] = []
        self._written: _Written | None = None
        # By source, and by the command's offset, why a topic does not take what was to be written.
        self._refused: dict[str, str] = {}
        self._refused_commands: dict[int, str] = {}
        self.topic_id: str | None = None

    async def restore(self) -> None:
        """Forget what another worker may have overtaken. It is read with the next command, not before."""
        self._ledger, self._approved, self._prepared = None, None, {}

    async def prepare(self, records: Sequence[Record]) -> None:
        """Read what the commands name, and what they are judged by."""
        self._prepared = {
            record.offset: replace(await self._look_at(record), through=self._through(record)) for record in records
        }

    def _through(self, record: Record) -> Through | None:
        """How the command came; None: commands are not signed here."""
        verifier = self._releases.verifier
        if verifier is None or isinstance(record, UnreadableBatch):
            return None
        return verifier.through(self._topics.releases, record.value or b"", record.timestamp, record.headers)

    async def _look_at(self, record: Record) -> _Prepared:
        if isinstance(record, UnreadableBatch):
            return _Prepared(flaw=record.reason)
        try:
            command = ReleaseCommand.model_validate_json(record.value or b"")
        except ValidationError as error:
            return _Prepared(flaw=f"not a request for releases: {first_flaw(error)}")
        self._used_at = time.monotonic()
        if self._ledger is None:
            async with self._releases.reading, asyncio.timeout(LOOK_WITHIN):
                self._ledger = await self._read_ledger()
        if command.command_id in self._ledger.answered:
            return _Prepared(command)
        try:
            command = command.model_copy(update={"actor": actor_name(command.actor)})
        except ValueError as error:
            return _Prepared(command, refusal=str(error))
        if not self._settings.carries(command.model):
            return _Prepared(command, refusal=f"{self._topics.predictions} may not carry {command.model}")
        if (reason := self._refused_commands.get(record.offset)) is not None:
            return _Prepared(command, refusal=reason)
        try:
            async with self._releases.reading, asyncio.timeout(LOOK_WITHIN):
                return await self._gather(command, self._ledger)
        except TimeoutError:
            reason = f"what it is judged by could not be read within {LOOK_WITHIN:g} s; ask for fewer or newer ones"
        except TooManyBytesError as error:
            reason = str(error)
        except (KafkaError, KafkaUnavailable, OSError, AssertionError):
            raise  # aiokafka asserts that it knows a broker. Kafka is back some time, and the command is still there.
        except Exception as error:
            reason = f"what it is judged by cannot be read: {describe(error)}"
        log.warning("a command cannot be judged", command_id=command.command_id, reason=reason)
        self._approved, self._memory = None, None
        return _Prepared(command, refusal=reason)

    async def _read_ledger(self) -> Ledger:
        ledger = Ledger(f"{self._topics.predictions}/{self._partition}/")
        tps = [TopicPartition(self._topics.audit, number) for number in range(self._releases.counts["audit"])]
        # As far back as anything can still be released. A switch's open transaction must not hide a release behind it.
        since = utc_now() - self._settings.release_max_age - 2 * CLOCK_MARGIN
        await read_to_end(self._settings.kafka, tps, ledger.take, since=since, complete=True)
        return ledger

    async def _gather(self, command: ReleaseCommand, ledger: Ledger) -> _Prepared:
        policies, guard = self._releases.policies(), self._settings.guard
        rules = Rules(
            policies,
            self._settings.release_max_age,
            guard.approves_without_policy(utc_now()),
            max_record_bytes=guard.max_record_bytes,
            partition=self._partition,
            partitions=self._releases.partitions_by_key(),
            approvals=self._settings.switch.approvals,
        )
        waiting = await self._find(command)
        known = Known(released=set(ledger.released), unclear=ledger.unclear, refused=self._refused, asked=ledger.asked)
        now = utc_now()
        young = [one for one in waiting.values() if not is_too_old(one.produced_ms, now, rules.max_age)]
        if young:
            approved = await self._read_approved(command.model, young)
            known.newest = approved.newest
            known.released |= approved.released
            known.memory = await self._memory_of(policies, command.model)
        await self._releases.follower.catch_up()
        known.routes, known.references = self._releases.follower.routes, self._releases.follower.references
        return _Prepared(command, rules=rules, waiting=waiting, known=known)

    async def _find(self, command: ReleaseCommand) -> dict[str, Waiting]:
        """The records that the command names, as far as a guard wrote them, by source."""
        retry = command.action == RETRY
        tp = TopicPartition(self._topics.malformed if retry else self._topics.blocked, self._partition)
        named = {one.offset: one.source for one in command.predictions}
        records = await pick(self._settings.kafka, tp, named, most_bytes=MOST_BYTES)
        found: dict[str, Waiting] = {}
        for offset, record in records.items():
            if isinstance(record, UnreadableBatch):
                continue
            try:
                one = self._malformed(record) if retry else _blocked(record, command.model)
            except ValueError:
                continue  # What no guard wrote is nobody's prediction.
            # The verdict on a prediction stands in the partition of its number, so no other worker releases it.
            place = f"{self._topics.predictions}/{self._partition}/"
            if one.source == named[offset] and one.source.startswith(place):
                found[one.source] = one
        return found

    def _malformed(self, record: ConsumerRecord) -> Waiting:
        one = MalformedRecord.of(record, self._topics.predictions)
        cut = one.kind in (MalformedKind.KEY_TOO_LONG, MalformedKind.HEADERS_TOO_LONG) or (
            len(record.value or b"") >= MAX_VALUE_BYTES
        )
        why = f"{one.reason}, so only a part of the record was kept; let the model predict again" if cut else ""
        return Waiting(one.source, record, why)

    async def _read_approved(self, model: str, waiting: Sequence[Waiting]) -> _Approved:
        """Read what was approved since the oldest of these was predicted, or what is missing of it."""
        tp, kafka = TopicPartition(self._topics.approved, self._partition), self._settings.kafka
        since_ms = min(one.produced_ms for one in waiting)
        approved = self._approved
        if approved is not None and approved.model == model and approved.since_ms <= since_ms:
            # It is no longer what is known, unless everything that is missing was read.
            self._approved = None
            ends = await read_to_end(kafka, [tp], approved.take, start=approved.end, complete=True, plain=True)
        else:
            self._approved, approved = None, _Approved(model, since_ms)
            since = time_of(since_ms)
            ends = await read_to_end(kafka, [tp], approved.take, since=since, complete=True, plain=True)
            if approved.too_many:
                keys = frozenset(one.record.key for one in waiting if one.record.key is not None)
                approved = _Approved(model, since_ms, keys)
                await read_to_end(kafka, [tp], approved.take, since=since, complete=True, plain=True)
                return approved
        approved.end = ends[tp]
        self._approved = None if approved.too_many else approved
        return await self._read_approved(model, waiting) if approved.too_many else approved

    async def _memory_of(self, policies: PolicySet, model: str) -> Memory:
        """What the checks compare with: the guard's own memory where it judges this partition, else read back."""
        if (memory := self._releases.memory_of(self._partition)) is not None:
            return memory
        policy = policies.policies.get(model)
        alone = PolicySet.of([policy]) if policy is not None else EMPTY
        name = policy.id if policy is not None else ""
        known = self._memory[1:] if self._memory is not None and self._memory[0] == name else None
        self._memory = None
        most = self._settings.guard.entities_of_partition(self._releases.counts["approved"])
        memory, end = await restore_memory(self._settings, alone, self._partition, known, max_entities=most)
        self._memory = name, memory, end
        return memory

    def process(self, records: Sequence[Record]) -> list[Write]:
        self._judged, self._written = [], None
        if not records and time.monotonic() - self._used_at > KEEP_FOR:
            self._ledger, self._approved, self._memory = None, None, None
        return [write for record in records for write in self._answer(record) if write.records]

    def _answer(self, record: Record) -> list[Write]:
        prepared = self._prepared[record.offset]
        command = prepared.command
        if command is None:
            return [Write(self._topics.malformed, self._partition, [self._dead_letter(record, prepared.flaw)])]
        if prepared.refusal:
            return self._refuse(record, command, prepared.refusal)
        if prepared.rules is None or (self._ledger is not None and command.command_id in self._ledger.answered):
            log.info("a command that was answered came again", command_id=command.command_id)
            return []
        judged = judge_releases(command, prepared.waiting, prepared.known, prepared.rules, utc_now())
        told = in_words(judged, dry_run=command.dry_run)
        self._judged, self._written = judged, _Written(record.offset, command, told)
        released = [one for one in judged if one.answer is Answer.RELEASED and one.waiting is not None]
        policy = prepared.rules.policies.policies.get(command.model)
        route, policy_id = prepared.known.routes.get(command.model), policy.id if policy is not None else "none"
        epoch, now = route.epoch if route is not None else 0, utc_now()
        audits = [_audit_of(command, one, epoch, now) for one in released]
        done = bool(released) or command.dry_run
        audits.append(_closing(command, Outcome.APPLIED if done else Outcome.REFUSED, told, epoch, now, judged))
        return [
            Write(self._topics.approved, self._partition, [_approved(command, one, policy_id) for one in released]),
            Write(
                self._topics.references,
                partition_for(command.model, self._releases.counts["references"]),
                [_reference(command, one, taught, now) for one in released for taught in one.taught],
            ),
            self._audits(audits, prepared.through),
        ]

    def _refuse(self, record: Record, command: ReleaseCommand, reason: str) -> list[Write]:
        self._judged, self._written = [], _Written(record.offset, command, reason)
        route = self._releases.follower.routes.get(command.model)
        epoch = route.epoch if route is not None else 0
        closing = _closing(command, Outcome.REFUSED, reason, epoch, utc_now(), None)
        return [self._audits([closing], self._prepared[record.offset].through)]

    def _audits(self, audits: Sequence[AuditRecord], through: Through | None) -> Write:
        to = partition_for(audits[0].model, self._releases.counts["audit"])
        if through is not None:
            audits = [one.model_copy(update={"through": through.value}) for one in audits]
        return Write(self._topics.audit, to, [Out.now(one.model.encode(), one.to_json()) for one in audits])

    def _dead_letter(self, record: Record, reason: str) -> Out:
        log.warning("not a request for releases", reason=reason, offset=record.offset, partition=self._partition)
        source = f"{self._topics.releases}/{self._partition}/{record.offset}"
        key, value, theirs = writable(record)
        return Out(record.timestamp, key, value, [*theirs, *error_headers(reason), source_header(source)])

    def refused(self, refusals: Sequence[Refusal]) -> bool:
        """Remember what the approved topic does not take; what else is refused ends the command."""
        if self._written is None:
            return False
        offset = self._written.offset
        released = [one.source for one in self._judged if one.answer is Answer.RELEASED]
        learned = False
        for topic, place, reason in refusals:
            if topic == self._topics.approved and place < len(released):
                learned |= released[place] not in self._refused
                self._refused[released[place]] = f"the topic {topic} does not take it: {reason}"
            elif topic != self._topics.approved:
                learned |= offset not in self._refused_commands
                self._refused_commands[offset] = f"the topic {topic} does not take its records: {reason}"
        return learned

    def poison(self, record: Record, error: Exception) -> list[Write]:
        metrics.POISON.inc()
        reason = f"could not be processed in three attempts: {describe(error)}"
        command = self._prepared[record.offset].command
        if command is not None:
            return self._refuse(record, command, reason)
        self._judged, self._written = [], None
        return [Write(self._topics.malformed, self._partition, [self._dead_letter(record, reason)])]

    async def committed(self, _: Mapping[TopicPartition, int]) -> None:
        if self._written is None:
            return
        command = self._written.command
        if self._ledger is not None:
            self._ledger.answered.add(command.command_id)
            self._ledger.released |= {one.source for one in self._judged if one.answer is Answer.RELEASED}
            for one in self._judged:
                if one.answer is Answer.NEEDS_SECOND_PERSON:
                    self._ledger.asked.add(one.source, command.actor, utc_now())
        for one in self._judged:
            self._refused.pop(one.source, None)
        self._refused_commands.pop(self._written.offset, None)
        log.info(
            "command answered",
            action=command.action,
            model=command.model,
            actor=command.actor,
            reason=command.reason,
            command_id=command.command_id,
            answer=self._written.told,
        )
        self._judged, self._written, self._prepared = [], None, {}

    def closed(self) -> None:
        """The partition is another worker's now."""


def _blocked(record: ConsumerRecord, model: str) -> Waiting:
    """Raises ValueError for a record that no guard wrote, or of another model."""
    one = Blocked.of(record)
    if one.model != model:
        raise ValueError(f"it is of {one.model}")
    return Waiting(one.source, record)


def _approved(command: ReleaseCommand, one: Judged, policy_id: str) -> Out:
    assert one.waiting is not None  # noqa: S101  it is released
    record = one.waiting.record
    ours = [
        *verdict_headers(Verdict.RELEASED, policy_id, command.model, one.version),
        source_header(one.source),
        *release_headers(command.actor, command.reason),
    ]
    if one.findings:
        ours.append(findings_header(to_json(one.findings, exclude_none=True)))
    headers = with_theirs(record.headers, ours, keep=[Header.PRODUCED_AT])
    return Out(record.timestamp, record.key, record.value, headers)


def _reference(command: ReleaseCommand, one: Judged, taught: tuple[str, str, float], now: datetime) -> Out:
    entity, name, value = taught
    reference = Reference(
        reference_id=uuid.uuid4().hex,
        model=command.model,
        entity_id=entity,
        field=name,
        value=value,
        at=now,
        actor=command.actor,
        reason=command.reason,
        command_id=command.command_id,
        source=one.source,
    )
    return Out.now(reference.key, reference.to_json())


def _audit_of(command: ReleaseCommand, one: Judged, epoch: int, now: datetime) -> AuditRecord:
    """What the audit says of one released prediction."""
    forced = f", although it fails {', '.join(finding.check for finding in one.findings)}" if one.findings else ""
    if one.first is not None:
        forced += f"; {one.first.actor} had asked for it at {one.first.at:%Y-%m-%dT%H:%M:%SZ}"
    return AuditRecord(
        audit_id=uuid.uuid4().hex,
        at=now,
        model=command.model,
        actor=command.actor,
        action=command.action,
        version=one.version,
        outcome=Outcome.APPLIED,
        reason=command.reason,
        detail=f"the prediction at {one.source} was approved{forced}",
        command_id=command.command_id,
        source=one.source,
        epoch=epoch,
    )


def _closing(
    command: ReleaseCommand, outcome: Outcome, detail: str, epoch: int, now: datetime, judged: Sequence[Judged] | None
) -> AuditRecord:
    """What the audit says of the whole command; `judged` None: it was refused."""
    whole = AuditRecord(
        audit_id=uuid.uuid4().hex,
        at=now,
        model=command.model,
        actor=command.actor,
        action=command.action,
        outcome=outcome,
        reason=command.reason,
        detail=detail,
        command_id=command.command_id,
        answers=_answers(judged) if judged is not None else None,
        epoch=epoch,
    )
    if judged is None or len(whole.to_json()) <= ANSWER_BYTES:
        return whole
    return whole.model_copy(update={"answers": _answers(judged, by_name=True)})


def _answers(judged: Sequence[Judged], *, by_name: bool = False) -> tuple[ReleaseAnswer, ...]:
    def told(finding: Finding) -> Finding:
        return finding.model_copy(update={"seen": None, "limit": None}) if by_name else finding

    return tuple(
        ReleaseAnswer(
            source=one.source,
            answer=one.answer.value,
            findings=tuple(told(finding) for finding in one.findings[:MOST_FINDINGS]),
        )
        for one in judged
    )


class Releases:
    """Answers commands as long as the guard runs. What goes wrong here is logged, and tried again."""

    def __init__(
        self,
        settings: Settings,
        policies: Callable[[], PolicySet],
        follower: FollowedRoutes,
        memory_of: Callable[[int], Memory | None],
        partitions_by_key: Callable[[], int],
    ) -> None:
        """`policies` are those in force; `memory_of` gives the guard's memory of a partition that it judges.

        `partitions_by_key`: how many partitions of predictions keys are held against; 0: none. Raises SettingsError
        for a key of commands that cannot be used.
        """
        self.verifier = settings.api.command_verifier()
        self.settings, self.policies, self.follower, self.memory_of = settings, policies, follower, memory_of
        self.partitions_by_key = partitions_by_key
        self.counts: dict[str, int] = {}
        # One partition after the other: it is work for the processor, which predictions wait for.
        self.reading = asyncio.Lock()
        self._loop: TransactionalLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        metrics.READY.labels("releases").set_function(lambda: float(self._not_ready() is None))
        self._task = asyncio.create_task(self._run(), name="releases")

    async def _run(self) -> None:
        told = ""
        while True:
            try:
                await self._serve()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                reason = await self._in_words(error)
                if reason != told:
                    log.error("releases are not answered by this guard, it goes on judging", reason=reason)
                told = reason
            finally:
                await self._close()
            await asyncio.sleep(TRY_AGAIN_AFTER)

    def _not_ready(self) -> str | None:
        return "starting" if self._loop is None else self._loop.not_ready()

    async def _in_words(self, error: Exception) -> str:
        if isinstance(error, HoldfastError):
            return str(error)
        return await explain(self.settings.kafka, error) if isinstance(error, KafkaError) else describe(error)

    async def _serve(self) -> None:
        topics, kafka = self.settings.topics, self.settings.kafka
        names = {role: str(getattr(topics, role)) for role in ROLES}
        counts = await describe_topics(kafka, list(names.values()))
        self.counts = {role: counts[name] for role, name in names.items()}
        self._loop = loop = TransactionalLoop(
            kafka,
            service="release",
            topic=topics.releases,
            group=self.settings.release_group,
            worker=self.settings.worker,
            open_work=lambda partition: ReleaseWork(self, partition),
            poll_ms=POLL_MS,
            # A transaction for each command.
            max_records=1,
            give_up_after=self.settings.guard.give_up_after,
            begin=self._begin,
            # Each thing that is read has a limit of its own.
            prepare_within=PREPARE_WITHIN,
            fetch_wait_ms=FETCH_WAIT_MS,
            may_skip=True,
        )
        await loop.start()
        await loop.run()

    async def _begin(self, tp: TopicPartition) -> int:
        """Where a partition begins that has no committed offset: what is older names nothing that is still released."""
        assert self._loop is not None  # noqa: S101  its partition workers ask
        since = utc_now() - self.settings.release_max_age - CLOCK_MARGIN
        first = (await bounds(self.settings.kafka, [tp], since, "read_committed"))[0][tp]
        await self._loop.commit_begin({tp: Committed(first, is_position=True)})
        return first

    async def _close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            await loop.stop()

    async def stop(self) -> None:
        """Finish the command in flight."""
        await self._close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
