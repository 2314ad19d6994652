"""Releasing: predictions that were blocked are judged again, and approved in the name of a person.

A release is one Kafka transaction: (1) the approved records, with the verdict `released`, (2) one audit record for
each of them. The audit is also the ledger: what it names as released is never released again. The transactional id
is the same for everybody, so of two who release at once one is fenced and publishes nothing.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.structs import ConsumerRecord
from pydantic import TypeAdapter
from pydantic_core import to_json

from holdfast.adapters.commands import read_routes
from holdfast.adapters.kafka import (
    Headers,
    KafkaUnavailable,
    Write,
    check_topics,
    partition_for,
    read_to_end,
    send_all,
    utc_now,
)
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.memory import restore_memory
from holdfast.adapters.policies import load_policies
from holdfast.core.checks import Memory
from holdfast.core.judge import decode_by_model, judge
from holdfast.core.policy import PolicySet
from holdfast.settings import Settings
from holdfast_schemas import AuditRecord, Finding, Header, Outcome, Route, Severity, Verdict

ACTION = "release"
_FINDINGS = TypeAdapter(tuple[Finding, ...])


class Answer(StrEnum):
    """What became of one blocked prediction."""

    RELEASED = "released"
    WOULD_BE_RELEASED = "would be released"
    STILL_FAILS = "still fails"
    ALREADY_RELEASED = "already released"
    TOO_OLD = "too old"


@dataclass(frozen=True, slots=True)
class Blocked:
    """A record of the blocked topic; `source` is where the prediction came from, `at` when it was written."""

    source: str
    at: datetime
    model: str
    version: str
    partition: int
    findings: tuple[Finding, ...]
    record: ConsumerRecord

    def facts(self) -> dict[str, Any]:
        """For printing: JSON values."""
        try:
            prediction: Any = json.loads(self.record.value)
        except ValueError:
            prediction = self.record.value.decode("utf-8", "replace")
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
    blocked: Blocked
    answer: Answer
    findings: tuple[Finding, ...] = ()
    """What fails today's policy."""


async def find_blocked(
    settings: Settings,
    model: str,
    *,
    within: timedelta,
    version: str | None = None,
    check: str | None = None,
    sources: Sequence[str] = (),
) -> list[Blocked]:
    """The blocked predictions of a model that were written in that time, oldest first. Raises KafkaUnavailable."""
    since = utc_now() - within
    found: list[Blocked] = []

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            headers = dict(record.headers)
            one = Blocked(
                headers.get(Header.SOURCE.value, b"").decode(),
                datetime.fromtimestamp(record.timestamp / 1000, since.tzinfo),
                headers.get(Header.MODEL.value, b"").decode(),
                headers.get(Header.MODEL_VERSION.value, b"").decode(),
                record.partition,
                _FINDINGS.validate_json(headers.get(Header.FINDINGS.value, b"[]")),
                record,
            )
            if (
                one.model == model
                and one.at >= since
                and version in (None, one.version)
                and (check is None or any(check == finding.check for finding in one.findings))
                and (not sources or one.source in sources)
            ):
                found.append(one)

    try:
        counts = await check_topics(settings, ["blocked"])
        tps = [TopicPartition(settings.topics.blocked, number) for number in range(counts["blocked"])]
        await read_to_end(settings.kafka, tps, take, since=since)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return sorted(found, key=lambda one: (one.at, one.source))


async def release(
    settings: Settings,
    blocked: Sequence[Blocked],
    *,
    actor: str,
    reason: str,
    force: bool = False,
    dry_run: bool = False,
) -> list[Released]:
    """Judge `blocked` against today's policies, routes and memory, and publish what passes, or everything with `force`.

    What is older than `release.max_age`, or was released before, is never published. All or nothing: raises
    KafkaUnavailable, also when somebody else released at the same time, and PolicyError.
    """
    policies = load_policies(settings.policies)
    try:
        counts = await check_topics(settings, ["predictions", "approved", "audit", "routes"])
        routes = await read_routes(settings)
        memories = {
            partition: await restore_memory(settings, policies, partition)
            for partition in sorted({one.partition for one in blocked})
        }
        producer = AIOKafkaProducer(
            transactional_id=f"{settings.guard.group}-release",
            enable_idempotence=True,
            acks="all",
            **settings.kafka.client_options(),
        )
        # Whoever began before is fenced from here on, so the ledger that is read next is complete.
        await producer.start()
        try:
            done = await _released_before(settings, counts["audit"])
            results = [_answer(settings, one, done, policies, routes, memories, force) for one in blocked]
            chosen = [result for result in results if result.answer is Answer.WOULD_BE_RELEASED]
            if dry_run or not chosen:
                return results
            await producer.begin_transaction()
            await send_all(producer, _writes(settings, counts, chosen, policies, routes, actor, reason))
            await producer.commit_transaction()
        finally:
            await producer.stop()
    except ProducerFenced:
        raise KafkaUnavailable(
            "Somebody else released at the same time, so nothing was published. See what they did, then do it again."
        ) from None
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return [
        replace(result, answer=Answer.RELEASED) if result.answer is Answer.WOULD_BE_RELEASED else result
        for result in results
    ]


async def _released_before(settings: Settings, partitions: int) -> set[str]:
    """The sources that the audit names as released, as far back as anything can still be released."""
    sources: set[str] = set()

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            # Cheap first: most audit records are of other things.
            if b'"release"' in record.value:
                audit = AuditRecord.model_validate_json(record.value)
                if audit.action == ACTION and audit.outcome is Outcome.APPLIED and audit.source is not None:
                    sources.add(audit.source)

    tps = [TopicPartition(settings.topics.audit, number) for number in range(partitions)]
    margin = timedelta(hours=1)
    await read_to_end(settings.kafka, tps, take, since=utc_now() - settings.release.max_age - margin)
    return sources


def _answer(
    settings: Settings,
    one: Blocked,
    done: set[str],
    policies: PolicySet,
    routes: dict[str, Route],
    memories: dict[int, Memory],
    force: bool,
) -> Released:
    now = utc_now()
    if one.source in done:
        return Released(one, Answer.ALREADY_RELEASED)
    if now - one.at > settings.release.max_age:
        return Released(one, Answer.TOO_OLD)
    groups, malformed = decode_by_model(policies, [one.record.value])
    if malformed:
        finding = Finding(check="decodable", severity=Severity.ERROR, enforced=True, seen=malformed[0])
        return Released(one, Answer.STILL_FAILS, (finding,))
    model, batch = groups[0]
    judgement = judge(
        batch,
        policies.policies.get(model),
        memories[one.partition],
        routes.get(model),
        now,
        model=model,
        approve_without_policy=settings.guard.no_policy == "approve",
    )
    findings = tuple(finding for finding in judgement.findings.get(0, []) if finding.enforced)
    passes = force or bool(judgement.approved[0])
    return Released(one, Answer.WOULD_BE_RELEASED if passes else Answer.STILL_FAILS, findings)


def _writes(
    settings: Settings,
    counts: dict[str, int],
    chosen: Sequence[Released],
    policies: PolicySet,
    routes: dict[str, Route],
    actor: str,
    reason: str,
) -> list[Write]:
    ours = {header.value for header in Header}
    writes: list[Write] = []
    for result in chosen:
        one, record = result.blocked, result.blocked.record
        policy = policies.policies.get(one.model)
        headers: Headers = [
            *(header for header in record.headers if header[0] not in ours),
            (Header.VERDICT.value, Verdict.RELEASED.value.encode()),
            (Header.POLICY.value, policy.id.encode() if policy is not None else b"none"),
            (Header.MODEL.value, one.model.encode()),
            (Header.MODEL_VERSION.value, one.version.encode()),
            (Header.SOURCE.value, one.source.encode()),
            (Header.RELEASED_BY.value, actor.encode()),
            (Header.RELEASE_REASON.value, reason.encode()),
        ]
        if result.findings:
            headers.append((Header.FINDINGS.value, to_json(result.findings, exclude_none=True)))
        writes.append(
            Write(settings.topics.approved, one.partition, [(record.timestamp, record.key, record.value, headers)])
        )
        forced = f", although it fails {', '.join(f.check for f in result.findings)}" if result.findings else ""
        audit = AuditRecord(
            audit_id=uuid.uuid4().hex,
            at=utc_now(),
            model=one.model,
            actor=actor,
            action=ACTION,
            version=one.version,
            outcome=Outcome.APPLIED,
            reason=reason,
            detail=f"the prediction at {one.source} was approved{forced}",
            source=one.source,
            epoch=routes[one.model].epoch if one.model in routes else 0,
        )
        to = partition_for(one.model, counts["audit"])
        writes.append(Write(settings.topics.audit, to, [(None, one.model.encode(), audit.to_json(), [])]))
    return writes
