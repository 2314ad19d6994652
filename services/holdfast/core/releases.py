"""What a guard answers to a person who asks for releases: each prediction is judged again, by the policies in force.

A prediction is released once at most, not when it is too old, and not when a newer output of its key was approved,
unless the person says so. What fails a check is released only by force.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from holdfast.core.accepted import References
from holdfast.core.approvals import ASKED_FOR, Asked
from holdfast.core.duration import format_duration
from holdfast.core.forced_wishes import ForcedWishes
from holdfast.core.grouping import Batch, decode_by_model
from holdfast.core.judge import judge
from holdfast.core.malformed import CHECK as MALFORMED
from holdfast.core.malformed import too_long
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicySet
from holdfast.core.record import Record, produced_at, time_of
from holdfast.core.record_keys import Keys
from holdfast_schemas import Finding, ReleaseCommand, Route, Severity

RELEASE = "release"
RETRY = "retry"
"""The action for what was malformed first, and can be decoded now."""
CLOCK_MARGIN = timedelta(hours=1)
"""How far ahead a producer's clock may be; Kafka refuses records beyond that by default."""


class Answer(StrEnum):
    """What became of one prediction that waits for its release."""

    RELEASED = "released"
    WOULD_BE_RELEASED = "would_be_released"
    STILL_FAILS = "still_fails"
    STILL_MALFORMED = "still_malformed"
    SUPERSEDED = "superseded"
    """A newer output for the same key was approved: downstream would go back to an older one."""
    ALREADY_RELEASED = "already_released"
    TOO_OLD = "too_old"
    NOT_FOUND = "not_found"
    """It was named, and is not among what waits and is meant."""
    UNCLEAR = "unclear"
    """An audit record that cannot be read names it, so it may have been released before."""
    NOT_WRITTEN = "not_written"
    """The approved topic refuses the record."""
    NEEDS_SECOND_PERSON = "needs_second_person"
    """It fails the policy, and nobody else has asked to force it yet."""
    WOULD_NEED_SECOND_PERSON = "would_need_second_person"


@dataclass(frozen=True, slots=True)
class Rules:
    """How the guard that judges is configured."""

    policies: PolicySet
    max_age: timedelta
    approve_without_policy: bool = False
    max_record_bytes: int = 1_000_000
    partition: int = 0
    approvals: int = 1
    """How many people must ask for what is released by force."""
    partitions: int = 0
    """Of the predictions; 0 where keys say nothing about the partition."""


@dataclass(slots=True)
class Known:
    """What the predictions of one partition are judged by."""

    memory: Memory = field(default_factory=Memory)
    routes: Mapping[str, Route] = field(default_factory=dict)
    references: References = field(default_factory=References)
    newest: dict[bytes, int] = field(default_factory=dict)
    """The producer's time (ms) of the newest approved output by key."""
    released: set[str] = field(default_factory=set)
    """The sources that were released before."""
    unclear: set[str] = field(default_factory=set)
    """The sources of which nobody can say it."""
    refused: dict[str, str] = field(default_factory=dict)
    """By source, why the approved topic does not take the record."""
    asked: ForcedWishes = field(default_factory=ForcedWishes)
    """Who has asked for a release by force before."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record of a guard that has no approval yet: `source` is where its prediction came from.

    `cut` says why the record is not whole any more; empty where it is.
    """

    source: str
    record: Record
    cut: str = ""

    @property
    def produced_ms(self) -> int:
        """The producer's time, in ms since the epoch."""
        return produced_at(self.record)


class Taught(NamedTuple):
    """What a released output teaches: the next reference of its entity."""

    entity_id: str
    field: str
    value: float


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer to one prediction. Of a released one, also what to write; `waiting` is None where none was found."""

    source: str
    answer: Answer
    findings: tuple[Finding, ...] = ()
    waiting: Waiting | None = None
    version: str = ""
    taught: tuple[Taught, ...] = ()
    first: Asked | None = None
    """Of one that two people have forced: the wish of the other one."""


def is_too_old(produced_ms: int, now: datetime, max_age: timedelta) -> bool:
    """Whether a prediction of that time is not released any more. A time in the future is no proof of youth."""
    return not -CLOCK_MARGIN <= now - time_of(produced_ms) <= max_age


def judge_releases(
    command: ReleaseCommand, waiting: Mapping[str, Waiting], known: Known, rules: Rules, now: datetime
) -> list[Judged]:
    """Answer each prediction that the command names, in its order.

    `waiting` are those that were found, by source. One that belongs to another model or version than the command's has
    no answer, unless it was blocked: then it is not found.
    """
    done: set[str] = set()
    newest: dict[bytes, int] = {}
    answers: list[Judged] = []
    teaching: dict[int, Batch] = {}
    for named in command.predictions:
        found = waiting.get(named.source)
        if found is None:
            answers.append(Judged(named.source, Answer.NOT_FOUND))
            continue
        one, batch = _judge_one(command, found, known, rules, now, done, newest)
        if one is None:
            continue
        if one.answer is Answer.WOULD_BE_RELEASED:
            # At-least-once delivery may have blocked it twice.
            done.add(found.source)
            if (key := found.record.key) is not None:
                newest[key] = max(found.produced_ms, newest.get(key, 0))
        if batch is not None:
            teaching[len(answers)] = batch
        answers.append(one)
    if command.dry_run:
        return answers
    return [
        Judged(
            one.source,
            Answer.RELEASED,
            one.findings,
            one.waiting,
            one.version,
            _taught(command, one, teaching.get(place), known, newest, rules),
            one.first,
        )
        if one.answer is Answer.WOULD_BE_RELEASED
        else one
        for place, one in enumerate(answers)
    ]


def _judge_one(
    command: ReleaseCommand,
    found: Waiting,
    known: Known,
    rules: Rules,
    now: datetime,
    done: set[str],
    newest: Mapping[bytes, int],
) -> tuple[Judged | None, Batch | None]:
    """The answer, None where there is nothing to say, and the decoded prediction of one that may teach."""
    source, record = found.source, found.record

    def say(answer: Answer, *findings: Finding) -> tuple[Judged, None]:
        return Judged(source, answer, findings, found), None

    retry = command.action == RETRY
    reasons = too_long([record], [record.value], rules.max_record_bytes) if retry else {}
    groups, flaws = decode_by_model(rules.policies, [record.value])
    flaws |= reasons
    if retry and (found.cut or flaws):
        if not found.cut and (flaws[0].identity.model or command.model) != command.model:
            return None, None
        return say(Answer.STILL_MALFORMED, _flaw(MALFORMED, found.cut or flaws[0].reason))
    # Cheapest first, and before what fails today: a repeated release must be told that it was done.
    if source in known.released or source in done:
        return say(Answer.ALREADY_RELEASED)
    if source in known.unclear:
        return say(Answer.UNCLEAR)
    if source in known.refused:
        return say(Answer.NOT_WRITTEN, _flaw("topic", known.refused[source]))
    if is_too_old(found.produced_ms, now, rules.max_age):
        return say(Answer.TOO_OLD)
    key = record.key
    newer = key is not None and max(known.newest.get(key, 0), newest.get(key, 0)) > found.produced_ms
    if newer and not command.superseded:
        return say(Answer.SUPERSEDED)
    if flaws:
        return say(Answer.STILL_FAILS, _flaw("decodable", flaws[0].reason))
    ((model, batch),) = groups
    version = batch.columns.values("model_version")[0]
    if model != command.model or command.version not in (None, version):
        return (None, None) if retry else say(Answer.NOT_FOUND)
    judgement = judge(
        batch,
        rules.policies.policies.get(model),
        known.memory,
        known.routes.get(model),
        now,
        model=model,
        approve_without_policy=rules.approve_without_policy,
        given=known.references.of(model),
        keys=partial(Keys, [record.key], rules.partition, rules.partitions),
    )
    findings = tuple(one.finding() for one in judgement.findings.get(0, []) if one.enforced)
    if not (command.force or judgement.approved[0]):
        return say(Answer.STILL_FAILS, *findings)
    first = None
    if rules.approvals > 1 and not judgement.approved[0]:
        first = known.asked.of_somebody_else(source, command.actor, now)
        if first is None:
            return say(Answer.WOULD_NEED_SECOND_PERSON if command.dry_run else Answer.NEEDS_SECOND_PERSON, *findings)
    # The key of a record that may teach is that of its entity.
    off = judgement.off_key is not None and bool(judgement.off_key[0])
    judged = Judged(source, Answer.WOULD_BE_RELEASED, findings, found, version, first=first)
    return judged, None if off else batch


def _flaw(check: str, reason: str) -> Finding:
    return Finding(check=check, severity=Severity.ERROR, enforced=True, seen=reason)


def _taught(
    command: ReleaseCommand, one: Judged, batch: Batch | None, known: Known, newest: Mapping[bytes, int], rules: Rules
) -> tuple[Taught, ...]:
    """What a released output teaches, as if a person had accepted its value.

    Nothing where a newer output of the same key was approved, or where its version is fenced.
    """
    policy, route = rules.policies.policies.get(command.model), known.routes.get(command.model)
    if policy is None or batch is None or one.waiting is None or (route is not None and one.version in route.fenced):
        return ()
    key, at = one.waiting.record.key, one.waiting.produced_ms
    if key is not None and max(known.newest.get(key, 0), newest.get(key, 0)) > at:
        return ()
    entity = batch.columns.values("entity_id")[0]
    values = {name: float(batch.columns.numbers(name)[0]) for name in policy.changing_fields()}
    return tuple(Taught(entity, name, value) for name, value in values.items() if math.isfinite(value))


def in_words(answers: Sequence[Judged], *, dry_run: bool) -> str:
    """What became of the predictions of a command, as a clause."""
    counts: dict[Answer, int] = {}
    for one in answers:
        counts[one.answer] = counts.get(one.answer, 0) + 1
    told = ", ".join(f"{count:,} {answer.value.replace('_', ' ')}" for answer, count in counts.items())
    if Answer.NEEDS_SECOND_PERSON in counts:
        told += f": somebody else must ask for the same by force within {format_duration(ASKED_FOR)}"
    return f"{'dry run: ' if dry_run else ''}{told or 'nothing of this model and version'}"
