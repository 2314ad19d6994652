"""The guard: every prediction gets a verdict, in one Kafka transaction with its offset.

A batch's way: fetch → decode by model → judge → write approved, blocked and malformed records and one tally for
each model version → commit. What was approved enters the memory only after the commit.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import NamedTuple

import structlog
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from holdfast import metrics
from holdfast.adapters.absent_fields import AbsentFields
from holdfast.adapters.memory import restore_memory
from holdfast.adapters.policies import PolicyStore
from holdfast.adapters.policy_log import PolicyLog
from holdfast.adapters.releases import Releases
from holdfast.adapters.service import run_service
from holdfast.core import not_allowed
from holdfast.core.accepted import References
from holdfast.core.columns import Columns
from holdfast.core.errors import describe
from holdfast.core.fit import fit_tally
from holdfast.core.grouping import Batch, decode_by_model
from holdfast.core.judge import judge, learn
from holdfast.core.judgement import Judgement
from holdfast.core.keyless import ADVICE, with_keyless, without_key
from holdfast.core.malformed import ATTRIBUTABLE, Malformed, MalformedKind, blamed, malformed, too_long
from holdfast.core.malformed import CHECK as MALFORMED
from holdfast.core.memory import Memory
from holdfast.core.misplaced import ADVICE as MISPLACED_ADVICE
from holdfast.core.misplaced import by_version, misplaced, with_misplaced
from holdfast.core.policy import BUILT_IN_CHECKS, Policy, PolicySet, Remembered
from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.record import Record, UnreadableBatch, writable
from holdfast.core.record_keys import CHECK as OFF_KEY
from holdfast.core.record_keys import Keys
from holdfast.core.samples import Source
from holdfast.core.segments import UNREMEMBERED
from holdfast.core.tallies import tally, with_malformed
from holdfast.core.verdict_headers import (
    NO_POLICY,
    Headers,
    error_headers,
    policy_headers,
    produced_at_header,
    source_header,
    with_theirs,
)
from holdfast.core.verdicts import Verdicts
from holdfast.kafka.batches import Out, Outs
from holdfast.kafka.begin import GuardBegin
from holdfast.kafka.counterparts import Held, counterparts
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.follow import Follower
from holdfast.kafka.group import TransactionalLoop
from holdfast.kafka.partition_worker import PrepareAgain, Reopen, State
from holdfast.kafka.partitioner import partition_for, partition_of_key
from holdfast.kafka.reading import KeyOrder, key_of
from holdfast.kafka.refusals import Refusal
from holdfast.kafka.retention import REFRESH_EVERY, Retention
from holdfast.kafka.topic_settings import refuse_uncompacted
from holdfast.kafka.transaction import Write
from holdfast.settings import Settings
from holdfast_schemas import Party, Reference, Route, Tally, Verdict, utc_now
from holdfast_schemas.control import OTHERS

log = structlog.get_logger("holdfast.guard")

ROLES = ("predictions", "approved", "blocked", "malformed", "control", "routes", "references", "audit")
"""What headers and metric labels say where a model has no policy; its name is not ours to trust."""
PARKED_FOR = 600.0
"""Seconds that the memory of a partition is kept that went to another worker: it may be back once a deployment ends."""
LOOK_AGAIN_AFTER = 10.0
"""Seconds between two times that a guard reads the routes to their end because of a version that nobody promoted."""
ROUTES_WITHIN = 5.0
"""Seconds: nothing is judged by routes that are known to be complete only up to an earlier time."""


class RouteFollower(Follower):
    """The routes as `holdfast.routes` tells them, and the references that people gave; both are complete once
    `catch_up` returns."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.kafka, self.take, behind_transactions=True)
        self.routes: dict[str, Route] = {}
        self.references = References()
        self._references = settings.topics.references
        self._order = KeyOrder()

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if self._order.is_outdated(record):
                continue
            if record.topic == self._references:
                self._take_reference(record)
            elif record.value is not None:
                try:
                    route = Route.model_validate_json(record.value)
                except ValidationError as error:
                    # It may carry a fence.
                    raise KafkaUnavailable(
                        f"The record {record.topic}/{record.partition}/{record.offset} is no route: "
                        f"{error.errors()[0]['msg']}. Only the switch may write there; remove that record, then start "
                        "the guard again."
                    ) from None
                self.routes[route.model] = route
                metrics.ROUTE_EPOCH.labels("guard", route.model).set(route.epoch)
            elif (model := key_of(record)) is not None:
                self.routes.pop(model, None)
                metrics.ROUTE_EPOCH.remove("guard", model)

    def _take_reference(self, record: ConsumerRecord) -> None:
        try:
            self.references.take(Reference.model_validate_json(record.value or b""))
        except ValidationError:
            # Without it outputs are blocked that could pass: that is the safe side.
            log.warning("this record is not a reference", topic=record.topic, offset=record.offset)


@dataclass(slots=True)
class Known:
    """What a guard remembers of one partition: `fields` of what was approved there before the offset `until`.

    `until` is None while nobody can say.
    """

    memory: Memory = field(default_factory=Memory)
    fields: frozenset[Remembered] = frozenset()
    until: int | None = None
    parked_at: float = 0.0


MOST_TRIES = 3
"""1: into malformed; 2: with the time of now; 3: cut."""
CUT_BYTES = 200


class _Refused(NamedTuple):
    reason: str
    tries: int


_NOT_REFUSED = _Refused("", 0)


@dataclass(slots=True)
class _Said:
    """What became of each record of a batch, by its position: enough to find the one that a topic refuses."""

    offsets: Sequence[int] = ()
    approved: Sequence[Headers | None] = ()
    blocked: Sequence[Headers | None] = ()
    malformed: Sequence[int] = ()

    def positions(self, role: str | None) -> Sequence[int]:
        """Of the records that went to a topic, in its order."""
        if role in ("approved", "blocked"):
            headers = self.approved if role == "approved" else self.blocked
            return [position for position, ours in enumerate(headers) if ours is not None]
        return self.malformed if role == "malformed" else ()


def _offsets(records: Sequence[Record]) -> Sequence[int]:
    first, last = records[0].offset, records[-1].offset
    # Markers and compaction leave holes.
    return range(first, last + 1) if last - first + 1 == len(records) else [record.offset for record in records]


class GuardWork:
    """One partition of predictions."""

    def __init__(self, guard: "Guard", partition: int) -> None:
        self._guard, self._partition = guard, partition
        self._settings = guard.settings
        self._approved = TopicPartition(self._settings.topics.approved, partition)
        self._known = guard.parked.pop(partition, Known())
        self._pending: list[tuple[Policy | None, Columns, Judgement]] = []
        self._malformed: Counter[tuple[str, MalformedKind]] = Counter()
        self._keyless: Counter[str] = Counter()
        self._misplaced: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._oldest_ms: int | None = None
        self._deleted = 0
        self._not_allowed = 0
        self._said = _Said()
        # By offset, what a topic does not take as it is.
        self._refused: dict[int, _Refused] = {}
        self._restamped: Counter[str] = Counter()
        self._told_of_policies: Sequence[str] = ()
        self._wants_routes = False
        self._progress = metrics.PROGRESS.labels("guard", str(partition))
        self._progress.set_to_current_time()
        self.topic_id: str | None = None

    async def restore(self) -> None:
        """Rebuild the memory from the tail of the same partition of the approved topic, or what is missing of it.

        The routes are read to their end as it is now: a worker that slept through a fence must not judge with what
        it knew before.
        """
        await self._guard.check_partition(self._partition)
        await self._guard.follower.catch_up()
        started, known = time.monotonic(), self._known
        async with self._guard.restoring:
            policies = self._guard.policies.current.at(utc_now())
            fields, until = policies.remembered_fields(), known.until
            # What is read back halfway is of no use.
            known.until = None
            known.memory, known.until = await restore_memory(
                self._settings,
                policies,
                self._partition,
                (known.memory, until) if until is not None and fields <= known.fields else None,
                max_entities=self._guard.max_entities,
            )
        known.fields = fields
        metrics.REMEMBERED.labels(str(self._partition)).set(len(known.memory))
        log.info(
            "memory rebuilt",
            partition=self._partition,
            entities=len(self._known.memory),
            seconds=round(time.monotonic() - started, 3),
        )

    @property
    def memory(self) -> Memory | None:
        """What the checks remember of the partition; None where that is not what the policies in force look at."""
        known, fields = self._known, self._guard.policies.current.at(utc_now()).remembered_fields()
        return known.memory if known.fields == fields else None

    async def prepare(self, records: Sequence[Record]) -> None:
        """Read the routes to their end where Kafka has long said nothing about them: a fence may be among them.

        And where a version seems not to be promoted: it may be since a moment ago.
        """
        if self._wants_routes or self._guard.follower.silent_for > ROUTES_WITHIN:
            await self._guard.follower.catch_up()
            self._wants_routes = False

    def process(self, records: Sequence[Record]) -> list[Write]:
        if not records:
            self._progress.set_to_current_time()
            self._oldest_ms = None
            return self._of_policies(idle=True)
        now = utc_now()
        policies = self._guard.policies.current.at(now)
        if policies.remembered_fields() != self._known.fields:
            # A new policy looks at what was not remembered so far, or no more: that is not learnt meanwhile.
            raise Reopen
        with metrics.BATCH_SECONDS.time():
            return [*self._judge(policies, records, now), *self._of_policies()]

    def _of_policies(self, *, idle: bool = False) -> list[Write]:
        """The audit records of policies that must be committed before, or with, what is judged by them."""
        routes = self._guard.follower.routes
        audits = self._guard.policy_log.waiting(
            lambda model: route.epoch if (route := routes.get(model)) is not None else 0, idle=idle
        )
        self._told_of_policies = [audit.audit_id for audit in audits]
        return [
            Write(
                self._settings.topics.audit,
                partition_for(audit.model, self._guard.audit_partitions),
                [Out.now(audit.model.encode(), audit.to_json())],
            )
            for audit in audits
        ]

    def _judge(self, policies: PolicySet, records: Sequence[Record], now: datetime) -> list[Write]:
        topics, limit = self._settings.topics, self._settings.guard.max_record_bytes
        self._pending, self._oldest_ms = [], records[0].timestamp
        self._restamped.clear()
        raws: list[bytes | None] = [record.value for record in records]
        reasons = too_long(records, raws, limit)
        if self._refused:
            reasons |= self._reasons_of_refused(records)
        for position in reasons:
            raws[position] = None
        if not all(raws):
            reasons |= _unreadable(records)
        groups, flaws = decode_by_model(policies, raws)
        flaws |= reasons
        deleted = self._deletions(records, flaws)
        source = Source(topics.predictions, self._partition, records, self._settings.worker, self.topic_id)
        verdicts = Verdicts(source)
        told: dict[str, list[Tally]] = {}
        keyless, self._keyless = without_key(records), Counter()
        elsewhere, self._misplaced = self._guard.misplaced(records, self._partition), Counter()
        self._not_allowed = 0
        for model, batch in groups:
            if not self._settings.carries(model):
                refused = not_allowed.block(batch, model, topics.predictions)
                verdicts.add(batch, refused, None, model)
                self._not_allowed += len(batch.positions)
                continue
            policy = policies.policies.get(model)
            judgement = judge(
                batch,
                policy,
                self._known.memory,
                self._guard.follower.routes.get(model),
                now,
                model=model,
                approve_without_policy=self._settings.guard.approves_without_policy(now),
                arrived=partial(source.arrived, batch.positions),
                given=self._guard.follower.references.of(model),
                keys=partial(self._keys, records, batch),
            )
            if judgement.unpromoted is not None and policy is not None and self._guard.may_look_again(policy):
                self._wants_routes = True
                raise PrepareAgain
            self._pending.append((policy, batch.columns, judgement))
            verdicts.add(batch, judgement, policy.id if policy is not None else None, model)
            if policy is not None:
                route = self._guard.follower.routes.get(model)
                told[model] = with_keyless(tally(batch, judgement, policy, source, now, route), batch, keyless)
            if keyless:
                label = policy.model if policy is not None else NO_POLICY
                self._keyless[label] += len(keyless.intersection(batch.positions))
            if elsewhere:
                of_version = by_version(batch, elsewhere)
                told |= {model: with_misplaced(told[model], of_version)} if model in told else {}
                self._misplaced[policy.model if policy is not None else NO_POLICY] += of_version.total()
        for position in deleted:
            verdicts.pass_on_deletion(position)
        self._deleted = len(deleted)
        to_blame: dict[int, Headers] = {}
        for model, versions in blamed(flaws, policies.policies).items():
            policy, route = policies.policies[model], self._guard.follower.routes.get(model)
            told[model] = with_malformed(told.get(model, []), versions, flaws, policy, route, source, now)
            for version, positions in versions.items():
                to_blame |= dict.fromkeys(positions, policy_headers(policy.id, model, version))
        self._others = Counter(
            {model: one.seen for model, tallies in told.items() for one in tallies if one.model_version == OTHERS}
        )
        approved, blocked = verdicts.approved, verdicts.blocked
        self._said = _Said(_offsets(records), approved, blocked, sorted(flaws))
        self._malformed = Counter(
            (whose[0] if (whose := flaw.blames(policies.policies)) else NO_POLICY, flaw.kind) for flaw in flaws.values()
        )
        return [
            Write(topics.approved, self._partition, self._kept("approved", _with_headers(records, approved), now)),
            Write(topics.blocked, self._partition, self._kept("blocked", _with_headers(records, blocked), now)),
            Write(
                topics.malformed,
                self._partition,
                [self._dead_letter(records[i], flaw, to_blame.get(i, []), now) for i, flaw in sorted(flaws.items())],
            ),
            *(
                Write(
                    topics.control,
                    partition_for(model, self._guard.control_partitions),
                    [Out.now(model.encode(), fit_tally(one))],
                )
                for model, tallies in told.items()
                for one in tallies
            ),
        ]

    def _keys(self, records: Sequence[Record], batch: Batch) -> Keys:
        """The keys of the batch of a model."""
        some = records if len(batch.positions) == len(records) else [records[at] for at in batch.positions]
        keys = [record.key for record in some]
        return Keys(keys, self._partition, self._guard.partitions_by_key())

    def _deletions(self, records: Sequence[Record], flaws: dict[int, Malformed]) -> list[int]:
        """The positions of deletions to pass on; `flaws` loses them."""
        if self._settings.guard.tombstones != "pass":
            return []
        found = [
            position
            for position, flaw in flaws.items()
            if flaw.kind is MalformedKind.EMPTY
            and records[position].value is None
            and records[position].key is not None
        ]
        for position in found:
            del flaws[position]
        return found

    def _kept(self, role: str, outs: Outs, now: datetime) -> Outs:
        """The same, with the time of the verdict where the topic would delete a record too soon by its own."""
        now_ms = round(now.timestamp() * 1000)
        oldest = self._guard.retention.oldest(role, now_ms)
        times: Sequence[int] = outs.timestamps  # type: ignore[assignment]  # records that were read have one
        if oldest is None or not times or min(times) >= oldest:
            return outs
        old = [stamp < oldest for stamp in times]
        self._restamped[role] += sum(old)
        return Outs(
            [now_ms if is_old else stamp for is_old, stamp in zip(old, times, strict=True)],
            outs.keys,
            outs.values,
            [
                [*ours, produced_at_header(stamp)] if is_old else ours
                for is_old, stamp, ours in zip(old, times, outs.headers, strict=True)
            ],
        )

    def _dead_letter(self, record: Record, flaw: Malformed, to_blame: Headers, now: datetime) -> Out:
        ours = [*error_headers(flaw.reason, flaw.kind.value), *to_blame, source_header(self._source(record))]
        key, value, theirs = writable(record)
        stamp, tries = record.timestamp, self._refused.get(record.offset, _NOT_REFUSED).tries
        now_ms = round(now.timestamp() * 1000)
        oldest = self._guard.retention.oldest("malformed", now_ms)
        if tries > 1 or (oldest is not None and stamp < oldest):
            ours.append(produced_at_header(stamp))
            self._restamped["malformed"] += 1
            stamp = now_ms
        if tries > 2:
            # Where even this is refused, the reason and the place are what is left.
            key, value, theirs = key and key[:CUT_BYTES], value and value[:CUT_BYTES], []
        return Out(stamp, key, value, with_theirs(theirs, ours))

    def _reasons_of_refused(self, records: Sequence[Record]) -> dict[int, Malformed]:
        return {
            position: malformed(refused.reason, MalformedKind.REFUSED)
            for position, record in enumerate(records)
            if (refused := self._refused.get(record.offset)) is not None and refused.reason
        }

    def refused(self, refusals: Sequence[Refusal]) -> bool:
        """Remember which records a topic refuses: they go to malformed, and from there in a form that it takes."""
        topics, learned = self._settings.topics, False
        for topic, index, reason in refusals:
            positions = self._said.positions(
                {topics.approved: "approved", topics.blocked: "blocked", topics.malformed: "malformed"}.get(topic)
            )
            if index >= len(positions):
                continue
            offset = self._said.offsets[positions[index]]
            known = self._refused.get(offset, _NOT_REFUSED)
            if topic == topics.malformed:
                tries = max(2, known.tries + 1)
                # What cannot be decoded has a reason of its own.
                because = known.reason
            else:
                tries, because = 1, f"the topic {topic} does not take it: {reason}"
            if tries > known.tries and tries <= MOST_TRIES:
                self._refused[offset] = _Refused(because, tries)
                learned = True
        return learned

    def _source(self, record: Record) -> str:
        return f"{self._settings.topics.predictions}/{self._partition}/{record.offset}"

    def poison(self, record: Record, error: Exception) -> list[Write]:
        metrics.POISON.inc()
        flaw = malformed(f"could not be processed in three attempts: {describe(error)}", MalformedKind.NOT_PROCESSED)
        self._pending, self._malformed = [], Counter({(NO_POLICY, flaw.kind): 1})
        self._keyless, self._misplaced, self._others = Counter(), Counter(), Counter()
        self._told_of_policies = ()
        self._said, self._deleted, self._not_allowed = _Said([record.offset], [None], [None], [0]), 0, 0
        out = self._dead_letter(record, flaw, [], utc_now())
        return [Write(self._settings.topics.malformed, self._partition, [out])]

    async def committed(self, written: Mapping[TopicPartition, int]) -> None:
        self._guard.policy_log.written(self._told_of_policies)
        self._told_of_policies = ()
        until, self._known.until = self._known.until, None
        for policy, columns, judgement in self._pending:
            if policy is not None:
                learn(self._known.memory, policy, columns, judgement)
                self._guard.absent.look(policy, columns)
            model = policy.model if policy is not None else NO_POLICY
            count = len(judgement.approved)
            passed = int(judgement.approved.sum())
            metrics.PREDICTIONS.labels(model, Verdict.APPROVED.value).inc(passed)
            metrics.PREDICTIONS.labels(model, Verdict.BLOCKED.value).inc(count - passed)
            if passed and (unchecked := _why_unchecked(policy)) is not None:
                metrics.UNCHECKED.labels(model, unchecked).inc(passed)
            for (check, enforced), number in judgement.counts.items():
                metrics.FINDINGS.labels(model, check, str(enforced).lower()).inc(number)
            for check, mask in judgement.unknown.items():
                metrics.UNKNOWN.labels(model, check).inc(int(mask.sum()))
        for (model, kind), number in self._malformed.items():
            metrics.MALFORMED.labels(model, kind.value).inc(number)
        for model, number in self._keyless.items():
            metrics.KEYLESS.labels(model).inc(number)
            self._guard.warn_of_keyless(model)
        for model, number in self._misplaced.items():
            metrics.MISPLACED.labels(model).inc(number)
            self._guard.warn_of_misplaced(model)
        for model, number in self._others.items():
            metrics.COUNTED_TOGETHER.labels(model).inc(number)
        if self._refused and self._said.offsets:
            done = self._said.offsets[-1]
            self._refused = {offset: refused for offset, refused in self._refused.items() if offset > done}
        self._pending, self._malformed, self._keyless, self._misplaced = [], Counter(), Counter(), Counter()
        self._others, self._said = Counter(), _Said()
        if self._deleted:
            metrics.PREDICTIONS.labels(NO_POLICY, Verdict.DELETED.value).inc(self._deleted)
            self._deleted = 0
        if self._not_allowed:
            metrics.NOT_ALLOWED_HERE.labels(self._settings.topics.predictions).inc(self._not_allowed)
            self._not_allowed = 0
        for role, number in self._restamped.items():
            metrics.RESTAMPED.labels(role).inc(number)
        self._restamped.clear()
        self._known.memory.forget(self._guard.max_entities)
        if until is not None and (until := written.get(self._approved, until)) >= 0:
            self._known.until = until
        if self._oldest_ms is not None:
            metrics.DELAY_SECONDS.observe(max(0.0, time.time() - self._oldest_ms / 1000))
        metrics.REMEMBERED.labels(str(self._partition)).set(len(self._known.memory))
        self._progress.set_to_current_time()

    def closed(self) -> None:
        """The partition is another worker's now. It may come back soon, and then little is missing."""
        if self._known.until is not None:
            self._known.parked_at = time.monotonic()
            self._guard.parked[self._partition] = self._known
        metrics.REMEMBERED.remove(str(self._partition))
        metrics.LAG.remove(str(self._partition))
        metrics.PROGRESS.remove("guard", str(self._partition))


def _unreadable(records: Sequence[Record]) -> dict[int, Malformed]:
    """By position, why the batch that a record stands for could not be read."""
    return {
        position: malformed(record.reason, MalformedKind.UNREADABLE_BATCH)
        for position, record in enumerate(records)
        if isinstance(record, UnreadableBatch)
    }


def _with_headers(records: Sequence[Record], headers: Sequence[Headers | None]) -> Outs:
    """The records that have headers here, with them."""
    if not all(headers):
        records = [record for record, ours in zip(records, headers, strict=True) if ours is not None]
    ours = [one for one in headers if one is not None]
    theirs = [record.headers for record in records]
    return Outs(
        [record.timestamp for record in records],
        [record.key for record in records],
        [record.value for record in records],
        [*map(with_theirs, theirs, ours)] if any(theirs) else ours,
    )


def _why_unchecked(policy: Policy | None) -> str | None:
    """Why what is approved was not checked; None: it was."""
    if policy is None:
        return "no_policy"
    if policy.mode == "off":
        return "mode_off"
    return None if policy.active_checks() else "no_checks"


def _policies_refused() -> None:
    metrics.POLICIES_REFUSED.inc()
    metrics.POLICIES_IN_FORCE.labels("guard").set(0)


def _policies_loaded(policies: PolicySet) -> None:
    metrics.POLICIES_IN_FORCE.labels("guard").set(1)
    for model in (*policies.policies, NO_POLICY):
        for verdict in (Verdict.APPROVED, Verdict.BLOCKED):
            metrics.PREDICTIONS.labels(model, verdict.value)
    metrics.FINDINGS.labels(NO_POLICY, "no_policy", "true")
    metrics.UNCHECKED.labels(NO_POLICY, "no_policy")
    for policy in policies.policies.values():
        if (unchecked := _why_unchecked(policy)) is not None:
            metrics.UNCHECKED.labels(policy.model, unchecked)
    for model in (*policies.policies, NO_POLICY):
        metrics.KEYLESS.labels(model)
        metrics.MISPLACED.labels(model)
        metrics.COUNTED_TOGETHER.labels(model)
    for kind in MalformedKind:
        metrics.MALFORMED.labels(NO_POLICY, kind.value)
    for policy in policies.policies.values():
        for kind in ATTRIBUTABLE:
            metrics.MALFORMED.labels(policy.model, kind.value)
        for name in BUILT_IN_CHECKS:
            # What is malformed has a metric of its own.
            if name not in ("no_policy", not_allowed.CHECK, MALFORMED, UNREMEMBERED):
                metrics.FINDINGS.labels(policy.model, name, "true")
        for name in ("non_finite", NOT_PROMOTED, OFF_KEY, UNREMEMBERED):
            metrics.FINDINGS.labels(policy.model, name, "false")
        for check in policy.active_checks():
            metrics.FINDINGS.labels(policy.model, check.name, str(policy.enforces(check)).lower())
            metrics.UNKNOWN.labels(policy.model, check.name)


class Guard:
    """The service: policies, fences, and one partition worker for each assigned partition."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.policy_log = PolicyLog(settings.worker)
        self.policies = PolicyStore(
            settings.policies, _policies_refused, _policies_loaded, self.policy_log.note, settings.carries
        )
        self.follower = RouteFollower(settings)
        self._partitions, self.control_partitions, self.audit_partitions = 0, 0, 0
        self.loop: TransactionalLoop | None = None
        # One partition after the other: it is work for the processor, and each brings its own megabytes.
        self.restoring = asyncio.Lock()
        self.absent = AbsentFields()
        # By partition, what was known of it when it went.
        self.parked: dict[int, Known] = {}
        self._told_of: set[str] = set()
        self._told_of_misplaced: set[str] = set()
        self._looked_at = float("-inf")
        self.retention = Retention(settings)
        self.releases = Releases(
            settings, lambda: self.policies.current.at(utc_now()), self.follower, self.memory_of, self.partitions_by_key
        )
        self._tasks: list[asyncio.Task[None]] = []

    def warn_of_keyless(self, model: str) -> None:
        """Once for each model."""
        if model not in self._told_of:
            self._told_of.add(model)
            log.warning("predictions without a key are judged", model=model, advice=ADVICE)

    def may_look_again(self, policy: Policy) -> bool:
        """Whether to read the routes to their end before outputs are blocked as not promoted; once in a while."""
        if policy.versions == "any" or time.monotonic() - self._looked_at < LOOK_AGAIN_AFTER:
            return False
        self._looked_at = time.monotonic()
        return True

    def partitions_by_key(self) -> int:
        """Among how many partitions murmur2 distributes the keys of predictions; 0 where producers do it otherwise."""
        if self.settings.guard.partitioner == "other" or self.loop is None:
            return 0
        # As many as the topic has by now: it may have grown.
        return len(self.loop.consumer.partitions_for_topic(self.settings.topics.predictions) or ())

    def misplaced(self, records: Sequence[Record], partition: int) -> frozenset[int]:
        """The positions of records that were looked at and belong in another partition by their key."""
        partitions = self.partitions_by_key()
        if partitions <= partition:
            return frozenset()
        return misplaced(records, partition, lambda key: partition_of_key(key, partitions))

    def warn_of_misplaced(self, model: str) -> None:
        """Once for each model."""
        if model not in self._told_of_misplaced:
            self._told_of_misplaced.add(model)
            log.warning("keys are not in their partition by murmur2", model=model, advice=MISPLACED_ADVICE)

    @property
    def max_entities(self) -> int:
        """How many entities each partition remembers."""
        return self.settings.guard.entities_of_partition(self._partitions)

    def memory_of(self, partition: int) -> Memory | None:
        """The memory of a partition that is judged here; None where it is another worker's, or not at hand."""
        tp = TopicPartition(self.settings.topics.predictions, partition)
        worker = self.loop.workers.get(tp) if self.loop is not None else None
        if worker is None or worker.state is not State.RUNNING or not isinstance(worker.work, GuardWork):
            return None
        return worker.work.memory

    async def check_partition(self, number: int) -> None:
        """Whether the topics of verdicts have that partition too: predictions may have grown alone. Raises Held."""
        if number >= self._partitions:
            found = await counterparts(self.settings, ROLES)
            self._partitions = found.judged
            if number >= found.judged:
                raise Held(found, number)

    async def _begin(self, tp: TopicPartition, where: GuardBegin) -> int:
        # Without counterparts it has no verdicts that could be looked at.
        await self.check_partition(tp.partition)
        return await where.of(tp)

    async def start(self) -> None:
        """Raises KafkaUnavailable."""
        found = await counterparts(self.settings, ROLES)
        await refuse_uncompacted(self.settings, Party.GUARD)
        counts = found.counts
        self._partitions, self.control_partitions = found.judged, counts["control"]
        self.audit_partitions = counts["audit"]
        await self.retention.refresh()
        guard = self.settings.guard
        self.loop = TransactionalLoop(
            self.settings.kafka,
            service="guard",
            topic=self.settings.topics.predictions,
            group=guard.group,
            worker=self.settings.worker,
            open_work=lambda partition: GuardWork(self, partition),
            exactly_once=guard.delivery == "exactly_once",
            max_records=guard.max_batch_records,
            max_unpacked_bytes=guard.max_batch_bytes,
            max_in_flight_bytes=guard.max_in_flight_bytes,
            give_up_after=guard.give_up_after,
            begin=lambda tp: self._begin(tp, begin),
        )
        begin = GuardBegin(self.settings, self.loop)
        metrics.NOT_ALLOWED_HERE.labels(self.settings.topics.predictions)
        # Without the fences nothing may be approved.
        beside = (
            self.follower.follow(
                {
                    self.settings.topics.routes: counts["routes"],
                    self.settings.topics.references: counts["references"],
                }
            ),
            self.policies.follow(),
            self._every_second(),
            self._follow_retention(),
        )
        self._tasks = [asyncio.create_task(self.loop.must_run(task)) for task in beside]
        await self.loop.start()
        self.releases.start()

    async def _follow_retention(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_EVERY)
            await self.retention.refresh()

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1)
            assert self.loop is not None  # noqa: S101
            for tp, worker in list(self.loop.workers.items()):
                if (behind := worker.behind()) is not None:
                    metrics.LAG.labels(str(tp.partition)).set(behind)
            for partition, known in list(self.parked.items()):
                if time.monotonic() - known.parked_at > PARKED_FOR:
                    del self.parked[partition]

    async def run(self) -> None:
        assert self.loop is not None  # noqa: S101  start() made it
        await self.loop.run()

    async def stop(self) -> None:
        if self.loop is not None:
            await asyncio.gather(self.loop.stop(), self.releases.stop())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def not_ready(self) -> str | None:
        """Why the guard is not ready, or None."""
        if self.loop is None:
            return "starting"
        if not self.follower.caught_up.is_set():
            return "reading the routes"
        return self.loop.not_ready()


async def serve(settings: Settings) -> None:
    """Run the guard until it is told to stop. Raises KafkaUnavailable, PolicyError, ServiceError."""
    guard = Guard(settings)
    await run_service(
        "guard",
        settings,
        host=settings.guard.health_host,
        port=settings.guard.health_port,
        start=guard.start,
        run=guard.run,
        stop=guard.stop,
        ready=guard.not_ready,
        keep_memory=True,
    )
