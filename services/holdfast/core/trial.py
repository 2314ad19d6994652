"""Real events judged as a guard would judge them, to see what a policy makes of them before it is in force.

Each partition is judged in its order, one event at a time, at the time when it was written, from an empty memory: the
checks that compare with what was approved before know only these events. No route is known, so nothing is fenced.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from holdfast.core.decode import Shape
from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import judge, learn
from holdfast.core.malformed import Malformed, too_long
from holdfast.core.mapping import Reading, converter, look
from holdfast.core.memory import Memory
from holdfast.core.one_event import read_leniently
from holdfast.core.policy import Policy, PolicySet
from holdfast.core.record import Record, time_of
from holdfast.core.record_keys import Keys
from holdfast_schemas import Finding


@dataclass(frozen=True, slots=True)
class Event:
    """A record and where it came from; `at` where it is not judged at the record's own time."""

    source: str
    partition: int
    record: Record
    at: datetime | None = None
    has_key: bool = True
    """Whether the record's key says anything: what comes from a file has none."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What was said of one event: `malformed`, or whether it is approved and why."""

    source: str
    malformed: Malformed | None = None
    model: str = ""
    version: str = ""
    entity: str = ""
    approved: bool = False
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Absent:
    """A field that the policy reads and no event of its model had as it must be."""

    model: str
    field: str
    path: str
    checks: tuple[str, ...]
    events: int
    instead: str
    """What stood there in every event: nothing, or something of another type."""
    similar: tuple[str, ...]
    """Fields beside it in the events, of a similar name."""


@dataclass(slots=True)
class Trial:
    """What became of all events; `answers` are the checks' by model and name: pass, fail, unknown."""

    tried: list[Tried] = field(default_factory=list)
    answers: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)

    @property
    def decoded(self) -> int:
        return sum(one.malformed is None for one in self.tried)

    @property
    def approved(self) -> int:
        return sum(one.approved for one in self.tried)

    def reasons(self) -> dict[str, tuple[int, str]]:
        """By kind, how many could not be decoded, and the reason of the first."""
        result: dict[str, tuple[int, str]] = {}
        for one in self.tried:
            if one.malformed is not None:
                count, first = result.get(one.malformed.kind, (0, one.malformed.reason))
                result[one.malformed.kind] = count + 1, first
        return result


def try_events(
    policies: PolicySet, events: Iterable[Event], *, max_record_bytes: int, approve_without_policy: bool = False
) -> Trial:
    """Decode and judge the events in their order."""
    trial = Trial()
    memories: dict[int, Memory] = defaultdict(Memory)
    read: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        record = event.record
        groups, flaws = decode_by_model(policies, [record.value])
        flaws |= too_long([record], [record.value], max_record_bytes)
        if flaws:
            trial.tried.append(Tried(event.source, flaws[0]))
            continue
        ((model, batch),) = groups
        at = event.at or time_of(record.timestamp)
        policy, memory = policies.at(at).policies.get(model), memories[event.partition]
        judgement = judge(
            batch,
            policy,
            memory,
            None,
            at,
            model=model,
            approve_without_policy=approve_without_policy,
            keys=partial(Keys, [record.key]) if event.has_key else None,
        )
        findings = tuple(found.finding() for found in judgement.findings.get(0, ()))
        columns = batch.columns
        trial.tried.append(
            Tried(
                event.source,
                None,
                model,
                columns.values("model_version")[0],
                columns.values("entity_id")[0],
                bool(judgement.approved[0]),
                findings,
            )
        )
        if policy is None:
            continue
        learn(memory, policy, columns, judgement)
        failed = {finding.check for finding in findings}
        answers = trial.answers.setdefault(model, {check.name: Counter() for check in policy.active_checks()})
        for check in policy.active_checks():
            mask = judgement.unknown.get(check.name)
            unknown = mask is not None and bool(mask[0])
            answers[check.name]["unknown" if unknown else "fail" if check.name in failed else "pass"] += 1
        read[model].append(read_leniently(record.value))
    for model, bodies in sorted(read.items()):
        shape = policies.shapes[policies.shape_of_model[model]]
        trial.absent += _absent(policies.policies[model], shape, bodies)
    return trial


def _absent(policy: Policy, shape: Shape, bodies: Sequence[Any]) -> list[Absent]:
    readers: dict[str, list[str]] = {}
    numbers = {name for check in policy.active_checks() for name in check.numbers()}
    for check in policy.active_checks():
        for name in check.reads():
            readers.setdefault(name, []).append(check.name)
    found: list[Absent] = []
    for name, checks in readers.items():
        seen = [look(body, shape.keys(name))[1] for body in bodies]
        there = [one for one in seen if one is not None]
        if there and (name not in numbers or any(_is_number(shape, name, one) for one in there)):
            continue
        instead = _KINDS.get(type(there[0]), "of another type") if there else "nothing"
        similar = () if there else _similar(shape, name, bodies)
        found.append(Absent(policy.model, name, shape.path(name), tuple(checks), len(bodies), instead, similar))
    return found


_KINDS = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


def _is_number(shape: Shape, name: str, seen: Any) -> bool:
    if shape.reading(name) is Reading.DECIMAL_TEXT and isinstance(seen, str):
        try:
            seen = converter(name, Reading.DECIMAL_TEXT)(seen)
        except ValueError:
            return False
    return isinstance(seen, int | float) and not isinstance(seen, bool)


def _similar(shape: Shape, name: str, bodies: Sequence[Any]) -> tuple[str, ...]:
    *parents, leaf = shape.keys(name)
    beside: Counter[str] = Counter()
    for body in bodies:
        parent = look(body, tuple(parents))[1]
        if isinstance(parent, Mapping):
            beside.update(list(parent)[:1000])
    del beside[leaf]
    return tuple(difflib.get_close_matches(leaf, list(beside)[:5000], n=3, cutoff=0.6))
