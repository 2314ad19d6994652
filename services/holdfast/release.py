"""Releasing: predictions that were blocked are judged again, and approved in the name of a person.

Page by page of the blocked topic: judge, then one Kafka transaction of (1) the approved records, with the verdict
`released`, (2) one audit record for each of them. The audit is also the ledger: what it names as released is never
released again. The transactional id is the same for everybody, so of two who release at once the one who began
first is fenced and publishes nothing more.
"""

import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.structs import ConsumerRecord
from pydantic import TypeAdapter
from pydantic_core import to_json

from holdfast.adapters.batches import Headers, Out
from holdfast.adapters.commands import parse_stored
from holdfast.adapters.kafka import (
    MAX_BATCH_BYTES,
    MAX_REQUEST_BYTES,
    KafkaUnavailable,
    Write,
    check_topics,
    pack,
    partition_for,
    read_latest,
    read_to_end,
    send_all,
)
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.memory import restore_memory
from holdfast.adapters.policies import load_policies
from holdfast.core.accepted import References
from holdfast.core.checks import Memory
from holdfast.core.duration import format_duration
from holdfast.core.judge import decode_by_model, judge, strict_json
from holdfast.core.malformed import Identity
from holdfast.core.policy import EMPTY, PolicyError, PolicySet
from holdfast.core.record import produced_at, time_of
from holdfast.settings import Settings
from holdfast_schemas import AuditRecord, Finding, Header, Outcome, Reference, Route, Severity, Verdict, utc_now

ACTION = "release"
RETRY = "retry"
"""The action of what was malformed first, and can be decoded now."""
MAX_IN_TRANSACTION = 500
"""Predictions: a page of the blocked topic, some megabytes, may hold tens of thousands."""
TRANSACTION_TIMEOUT = timedelta(seconds=10)
"""Downstream consumers wait for as long when a release is cut off within its transaction."""
CLOCK_MARGIN = timedelta(hours=1)
"""How far ahead a producer's clock may be; Kafka refuses records beyond that by default."""
_FINDINGS = TypeAdapter(tuple[Finding, ...])
_OURS = frozenset(header.value for header in Header)


class _Decision(msgspec.Struct):
    """What is read of an audit record."""

    action: str
    outcome: str
    source: str | None = None


_AUDIT = msgspec.json.Decoder(_Decision)


class Answer(StrEnum):
    """What became of one blocked prediction."""

    RELEASED = "released"
    WOULD_BE_RELEASED = "would_be_released"
    STILL_FAILS = "still_fails"
    STILL_MALFORMED = "still_malformed"
    SUPERSEDED = "superseded"
    """A newer output for the same key was approved: downstream would go back to an older one."""
    ALREADY_RELEASED = "already_released"
    TOO_OLD = "too_old"
    NOT_FOUND = "not_found"
    """It was named, and is not among what was blocked and is meant."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which blocked predictions are meant; `since` is about when the prediction was written."""

    model: str
    since: datetime
    version: str | None = None
    check: str | None = None
    sources: frozenset[str] = frozenset()

    def fits(self, one: "Blocked") -> bool:
        return (
            one.model == self.model
            and one.at >= self.since
            and self.version in (None, one.version)
            and (self.check is None or any(self.check == finding.check for finding in one.findings))
            and (not self.sources or one.source in self.sources)
        )


@dataclass(frozen=True, slots=True)
class Blocked:
    """A record of the blocked topic; `source` is where the prediction came from, `at` when it was written."""

    source: str
    at: datetime
    model: str
    version: str
    findings: tuple[Finding, ...]
    record: ConsumerRecord

    @classmethod
    def of(cls, record: ConsumerRecord) -> "Blocked":
        """Raises ValueError for a record that no guard wrote."""
        # Kafka knows headers without a value.
        headers = {name: value or b"" for name, value in record.headers}
        return cls(
            headers.get(Header.SOURCE.value, b"").decode(),
            time_of(produced_at(record)),
            headers.get(Header.MODEL.value, b"").decode(),
            headers.get(Header.MODEL_VERSION.value, b"").decode(),
            _FINDINGS.validate_json(headers.get(Header.FINDINGS.value, b"[]")),
            record,
        )

    def facts(self) -> dict[str, Any]:
        """For printing: JSON values."""
        value = self.record.value or b""
        try:
            prediction = strict_json(value)
        except (ValueError, RecursionError):
            prediction = value.decode("utf-8", "replace")
        return {
            "source": self.source,
            "at": self.at.isoformat(),
            "model": self.model,
            "model_version": self.version,
            "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in self.findings],
            "prediction": prediction,
        }


@dataclass(frozen=True, slots=True)
class Released:
    source: str
    answer: Answer
    findings: tuple[Finding, ...] = ()
    """What fails today's policy."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where predictions without an approval wait: a topic's role, what releasing them is called, and how a record is
    read. `read` answers a prediction, or why it cannot be one yet, and raises ValueError for what no guard wrote."""

    role: str
    action: str
    read: Callable[[ConsumerRecord], "Blocked | Released"]


async def _each_page(
    settings: Settings,
    wanted: Wanted,
    partitions: Sequence[int],
    on_page: Callable[[list[Blocked]], Awaitable[None] | None],
    origin: Origin,
    refused: Callable[["Released"], None] = lambda _: None,
) -> None:
    """Hand over what is wanted, in the order of each partition, as much at a time as a fetch brings."""

    def take(records: Sequence[ConsumerRecord]) -> Awaitable[None] | None:
        page: list[Blocked] = []
        for record in records:
            try:
                one = origin.read(record)
            except ValueError:
                continue  # What no guard wrote is nobody's prediction.
            if isinstance(one, Released):
                if time_of(record.timestamp) >= wanted.since and (not wanted.sources or one.source in wanted.sources):
                    refused(one)
            elif wanted.fits(one):
                page.append(one)
        return on_page(page) if page else None

    topic = getattr(settings.topics, origin.role)
    tps = [TopicPartition(topic, number) for number in partitions]
    await read_to_end(settings.kafka, tps, take, since=wanted.since)


def reader_of(settings: Settings, model: str) -> Callable[[Blocked], Identity]:
    """What reads who a blocked prediction is, by the policy's mapping, or the contract's where there is no policy."""
    try:
        policies = load_policies(settings.policies)
    except PolicyError:  # A person's machine need not have the policies.
        policies = EMPTY
    shape = policies.shapes[policies.shape_of_model.get(model, 0)]
    return lambda one: shape.identity_of(one.record.value)


BLOCKED = Origin("blocked", ACTION, Blocked.of)


async def find_blocked(settings: Settings, wanted: Wanted, *, limit: int) -> tuple[int, list[Blocked]]:
    """How many blocked predictions are wanted, and the latest `limit` of them, oldest first.

    Raises KafkaUnavailable.
    """
    count, latest = 0, list[Blocked]()

    def keep(page: list[Blocked]) -> None:
        nonlocal count, latest
        count += len(page)
        latest = sorted([*latest, *page], key=lambda one: (one.at, one.record.partition, one.record.offset))[-limit:]

    try:
        counts = await check_topics(settings, ["blocked"])
        await _each_page(settings, wanted, range(counts["blocked"]), keep, BLOCKED)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return count, latest


async def release(
    settings: Settings,
    wanted: Wanted,
    *,
    actor: str,
    reason: str,
    force: bool = False,
    superseded: bool = False,
    dry_run: bool = False,
    origin: Origin = BLOCKED,
) -> list[Released]:
    """Judge what is wanted against today's policies, routes and memory, and publish what passes.

    `force` publishes what fails too, `superseded` what a newer approved output of the same key has overtaken. What
    is older than `release.max_age`, or was released before, is never published. Where something is found, every other
    source that was named is answered too. Raises PolicyError, and
    KafkaUnavailable, also when somebody else releases at the same time: it says how much had been released by then.
    """
    policies = load_policies(settings.policies)
    run = _Run(settings, wanted, policies, actor, reason, force, superseded, origin)
    try:
        # Where predictions have grown alone, nothing of the new partitions was blocked yet.
        run.counts = await check_topics(settings, ["approved", origin.role, "audit", "routes", "references"])
        if not dry_run:
            run.producer = AIOKafkaProducer(
                transactional_id=f"{settings.guard.group}-release",
                transaction_timeout_ms=round(TRANSACTION_TIMEOUT.total_seconds() * 1000),
                enable_idempotence=True,
                max_batch_size=MAX_BATCH_BYTES,
                max_request_size=MAX_REQUEST_BYTES,
                acks="all",
                **settings.kafka.client_options(),
            )
            # Whoever began before is fenced from here on, so the ledger that is read next is complete.
            await run.producer.start()
        try:
            run.done = await _released_before(settings, run.counts["audit"])
            for partition in range(run.counts[origin.role]):
                run.known = None
                await _each_page(settings, wanted, [partition], run.page, origin, run.results.append)
        finally:
            if run.producer is not None:
                await run.producer.stop()
    except ProducerFenced:
        raise KafkaUnavailable(
            f"Somebody else releases at the same time, so this one ended{run.so_far()}. "
            "See what they did, then do it again: nothing is released twice."
        ) from None
    except KafkaError as error:
        raise KafkaUnavailable(
            f"{await explain(settings.kafka, error)} The release ended{run.so_far()}; "
            "do it again then: nothing is released twice."
        ) from None
    if run.results:
        missing = wanted.sources - {result.source for result in run.results}
        run.results += [Released(source, Answer.NOT_FOUND) for source in sorted(missing)]
    return run.results


async def _released_before(settings: Settings, partitions: int) -> set[str]:
    """The sources that the audit names as released, as far back as anything can still be released."""
    sources: set[str] = set()

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            # Cheap first: most audit records are of other things.
            value = record.value or b""
            if b'"release"' in value or b'"retry"' in value:
                try:
                    audit = _AUDIT.decode(record.value)
                except msgspec.MsgspecError:
                    raise KafkaUnavailable(
                        f"The record {record.topic}/{record.partition}/{record.offset} speaks of a release and cannot "
                        "be read, so that something could be released twice. Only Holdfast may write there; release "
                        f"again once it is older than {format_duration(settings.release.max_age + 2 * CLOCK_MARGIN)}, "
                        "or remove it."
                    ) from None
                applied = audit.action in (ACTION, RETRY) and audit.outcome == Outcome.APPLIED
                if applied and audit.source is not None:
                    sources.add(audit.source)

    tps = [TopicPartition(settings.topics.audit, number) for number in range(partitions)]
    since = utc_now() - settings.release.max_age - 2 * CLOCK_MARGIN
    # A switch's open transaction must not hide a release behind it.
    await read_to_end(settings.kafka, tps, take, since=since, complete=True)
    return sources


@dataclass(slots=True)
class _Judge:
    """What one partition's predictions are judged by."""

    memory: Memory
    memory_end: int
    """The offset in the approved topic before which the memory knows everything."""
    newest: dict[bytes, int]
    """Kafka's timestamp (ms) of the newest approved output by key."""
    newest_end: int
    routes: dict[str, Route]
    references: References


@dataclass(slots=True)
class _Run:
    """One release. Without a producer nothing is published."""

    settings: Settings
    wanted: Wanted
    policies: PolicySet
    actor: str
    reason: str
    force: bool
    superseded: bool
    origin: Origin
    counts: dict[str, int] = field(default_factory=dict)
    producer: AIOKafkaProducer | None = None
    known: _Judge | None = None
    """What the transaction before was judged by, in the same partition."""
    done: set[str] = field(default_factory=set)
    results: list[Released] = field(default_factory=list)

    def so_far(self) -> str:
        count = sum(result.answer is Answer.RELEASED for result in self.results)
        return f" after {count:,} had been released" if count else " and nothing was released"

    async def page(self, page: list[Blocked]) -> None:
        for start in range(0, len(page), MAX_IN_TRANSACTION):
            # A version may be fenced, and a newer output approved, while this goes on.
            self.known = await self._look(page[0].record.partition, self.known)
            await self._release(page[start : start + MAX_IN_TRANSACTION], self.known)

    async def _look(self, partition: int, known: _Judge | None) -> _Judge:
        newest = known.newest if known is not None else {}
        model = (Header.MODEL.value, self.wanted.model.encode())

        def take(records: Sequence[ConsumerRecord]) -> None:
            for record in records:
                # A deletion names no model, and must not be followed by an older output of its key.
                if record.key is not None and (record.value is None or model in record.headers):
                    newest[record.key] = max(produced_at(record), newest.get(record.key, 0))

        kafka, topics = self.settings.kafka, self.settings.topics
        tp = TopicPartition(topics.approved, partition)
        if known is None:
            ends = await read_to_end(kafka, [tp], take, since=self.wanted.since, complete=True)
        else:
            ends = await read_to_end(kafka, [tp], take, start=known.newest_end, complete=True)
        memory, memory_end = await restore_memory(
            self.settings, self.policies, partition, (known.memory, known.memory_end) if known is not None else None
        )
        routes = await read_latest(kafka, topics.routes, range(self.counts["routes"]), complete=True)
        references = References()
        told = await read_latest(kafka, topics.references, range(self.counts["references"]), complete=True)
        for reference in told.values():
            references.take(parse_stored(Reference, topics.references, self.wanted.model, reference))
        return _Judge(
            memory,
            memory_end,
            newest,
            ends[tp],
            {model: parse_stored(Route, topics.routes, model, route) for model, route in routes.items()},
            references,
        )

    async def _release(self, some: Sequence[Blocked], judge: _Judge) -> None:
        answers = [self._answer(one, judge) for one in some]
        chosen = [
            (one, answer.findings)
            for one, answer in zip(some, answers, strict=True)
            if answer.answer is Answer.WOULD_BE_RELEASED
        ]
        if self.producer is not None and chosen:
            await self.producer.begin_transaction()
            writes = self._writes(chosen, judge)
            await send_all(self.producer, pack(self.producer, writes))
            await self.producer.commit_transaction()
            answers = [
                Released(answer.source, Answer.RELEASED, answer.findings)
                if answer.answer is Answer.WOULD_BE_RELEASED
                else answer
                for answer in answers
            ]
        self.results += answers

    def _answer(self, one: Blocked, by: _Judge) -> Released:
        now = utc_now()
        if one.source in self.done:
            return Released(one.source, Answer.ALREADY_RELEASED)
        # A time in the future is no proof of youth.
        if not -CLOCK_MARGIN <= now - one.at <= self.settings.release.max_age:
            return Released(one.source, Answer.TOO_OLD)
        key = one.record.key
        if not self.superseded and key is not None and by.newest.get(key, 0) > produced_at(one.record):
            return Released(one.source, Answer.SUPERSEDED)
        groups, malformed = decode_by_model(self.policies, [one.record.value])
        if malformed:
            finding = Finding(check="decodable", severity=Severity.ERROR, enforced=True, seen=malformed[0].reason)
            return Released(one.source, Answer.STILL_FAILS, (finding,))
        model, batch = groups[0]
        judgement = judge(
            batch,
            self.policies.policies.get(model),
            by.memory,
            by.routes.get(model),
            now,
            model=model,
            approve_without_policy=self.settings.guard.no_policy == "approve",
            given=by.references.of(model),
        )
        findings = tuple(found.finding() for found in judgement.findings.get(0, []) if found.enforced)
        if not (self.force or judgement.approved[0]):
            return Released(one.source, Answer.STILL_FAILS, findings)
        # At-least-once delivery may have blocked it twice.
        self.done.add(one.source)
        if key is not None:
            by.newest[key] = max(produced_at(one.record), by.newest.get(key, 0))
        return Released(one.source, Answer.WOULD_BE_RELEASED, findings)

    def _taught(self, one: Blocked, by: _Judge) -> list[Reference]:
        """What a released output teaches: the next reference of its entity, as if a person had accepted its value.

        Not where a newer output of the same key was approved, or where its version is fenced.
        """
        policy, route = self.policies.policies.get(one.model), by.routes.get(one.model)
        key = one.record.key
        if policy is None or (route is not None and one.version in route.fenced):
            return []
        if key is not None and by.newest.get(key, 0) > produced_at(one.record):
            return []
        groups, _ = decode_by_model(self.policies, [one.record.value])
        taught: list[Reference] = []
        for _, batch in groups:
            for name in policy.changing_fields():
                value = float(batch.columns.numbers(name)[0])
                if math.isfinite(value):
                    taught.append(
                        Reference(
                            reference_id=uuid.uuid4().hex,
                            model=one.model,
                            entity_id=batch.columns.values("entity_id")[0],
                            field=name,
                            value=value,
                            at=utc_now(),
                            actor=self.actor,
                            reason=self.reason,
                            source=one.source,
                        )
                    )
        return taught

    def _writes(self, chosen: Sequence[tuple[Blocked, tuple[Finding, ...]]], judge: _Judge) -> list[Write]:
        policy = self.policies.policies.get(self.wanted.model)
        approved: list[Out] = []
        route = judge.routes.get(self.wanted.model)
        audits: list[Out] = []
        references: list[Out] = []
        for one, findings in chosen:
            record = one.record
            headers: Headers = [
                *(header for header in record.headers if header[0] not in _OURS or header[0] == Header.PRODUCED_AT),
                (Header.VERDICT.value, Verdict.RELEASED.value.encode()),
                (Header.POLICY.value, policy.id.encode() if policy is not None else b"none"),
                (Header.MODEL.value, one.model.encode()),
                (Header.MODEL_VERSION.value, one.version.encode()),
                (Header.SOURCE.value, one.source.encode()),
                (Header.RELEASED_BY.value, self.actor.encode()),
                (Header.RELEASE_REASON.value, self.reason.encode()),
            ]
            if findings:
                headers.append((Header.FINDINGS.value, to_json(findings, exclude_none=True)))
            approved.append((record.timestamp, record.key, record.value, headers))
            references += [(None, one.key, one.to_json(), []) for one in self._taught(one, judge)]
            forced = f", although it fails {', '.join(finding.check for finding in findings)}" if findings else ""
            audit = AuditRecord(
                audit_id=uuid.uuid4().hex,
                at=utc_now(),
                model=one.model,
                actor=self.actor,
                action=self.origin.action,
                version=one.version,
                outcome=Outcome.APPLIED,
                reason=self.reason,
                detail=f"the prediction at {one.source} was approved{forced}",
                source=one.source,
                epoch=route.epoch if route is not None else 0,
            )
            audits.append((None, one.model.encode(), audit.to_json(), []))
        to, count = partition_for(self.wanted.model, self.counts["audit"]), self.counts["references"]
        return [
            Write(self.settings.topics.approved, chosen[0][0].record.partition, approved),
            Write(self.settings.topics.audit, to, audits),
            *(
                [Write(self.settings.topics.references, partition_for(self.wanted.model, count), references)]
                if references
                else []
            ),
        ]
