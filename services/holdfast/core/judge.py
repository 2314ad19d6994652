"""The verdict on a batch of one model's predictions. Pure: no clock, no I/O, nothing changed but what is returned."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import repeat
from typing import Any

import msgspec
import numpy as np

from holdfast.core.checks import (
    Check,
    Entities,
    Mask,
    MaxChangeCheck,
    Memory,
    Outcome,
    OutlierCheck,
    jsonable,
    judge_changes,
)
from holdfast.core.decode import Columns, Decoded, NonFinite
from holdfast.core.policy import Policy, PolicySet
from holdfast.core.record import Record, time_of
from holdfast_schemas import Finding, Route, RouteState, Sample, Severity, Tally
from holdfast_schemas._base import NAME_PATTERN
from holdfast_schemas.control import MAX_TALLY_ENTITIES

MAX_SAMPLES = 5
MAX_SAMPLE_BYTES = 4096
MAX_SEGMENTS = 2000
"""Of one field, whose recent values are remembered; beyond it those approved least recently are forgotten."""


@dataclass(frozen=True, slots=True)
class Batch:
    """n decoded predictions of one model, in the order of their partition.

    `positions` are their places in the batch that was fetched; `non_finite` is keyed by the row here.
    """

    columns: Columns
    positions: Sequence[int]
    non_finite: Mapping[int, NonFinite]


class Found(msgspec.Struct, omit_defaults=True, gc=False):
    """A Finding while it is one of thousands: made and written in a tenth of the time."""

    check: str
    severity: Severity
    enforced: bool
    field: str | None = None
    seen: Any = None
    limit: Any = None
    unit: str | None = None

    def finding(self) -> Finding:
        return Finding(**msgspec.structs.asdict(self))


@dataclass(slots=True)
class Judgement:
    """(n,) `approved`, and what was found on the rows that failed anything.

    `counts` are the findings by check and whether it is enforced.

    `failed` are the blocked rows that the breaker counts, `critical` those of them that a critical check failed.
    `last`, the rows by field, and `recent` are what the memory shall learn once the verdicts stand.
    """

    approved: Mask
    findings: dict[int, list[Found]] = field(default_factory=dict)
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    failed: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    critical: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    unknown: dict[str, Mask] = field(default_factory=dict)
    last: dict[str, Mask] = field(default_factory=dict)
    recent: dict[str, dict[str | None, list[float]]] = field(default_factory=dict)


def judge(
    batch: Batch,
    policy: Policy | None,
    memory: Memory,
    route: Route | None,
    now: datetime,
    *,
    model: str,
    approve_without_policy: bool = False,
) -> Judgement:
    """Check every prediction of `batch` and say which may pass.

    `route` carries the fences. With no policy everything is blocked (`no_policy`), unless told otherwise.
    """
    columns, size = batch.columns, len(batch.columns)
    result = Judgement(np.ones(size, dtype=np.bool_))
    result.failed = np.zeros(size, dtype=np.bool_)
    result.critical = np.zeros(size, dtype=np.bool_)
    _block_numbers_that_are_none(batch, result)
    # The rows that the checks count against their version: all but those of a version fenced before.
    countable = ~_block_by_route(columns, route, result)
    result.failed &= countable
    if policy is None:
        if not approve_without_policy:
            for row in range(size):
                _block(result, row, "no_policy", "model", model, "a policy for this model")
            result.approved[:] = False
        return result

    relative: list[MaxChangeCheck] = []
    for check in policy.active_checks():
        if isinstance(check, MaxChangeCheck):
            relative.append(check)
        else:
            _apply(
                result,
                check,
                policy.enforces(check),
                check.run(columns, memory, policy.model, now),
                countable,
            )
    if relative:
        # Last, because only what every other check lets pass may become an entity's reference.
        enforced = [policy.enforces(check) for check in relative]
        outcomes, result.last = judge_changes(relative, enforced, columns, memory.of(policy.model), result.approved)
        for check, enforces, outcome in zip(relative, enforced, outcomes, strict=True):
            _apply(result, check, enforces, outcome, countable)
    for check in policy.active_checks():
        if isinstance(check, OutlierCheck):
            result.recent[check.field] = _approved_by_segment(columns, check, result.approved)
    return result


def _block_numbers_that_are_none(batch: Batch, result: Judgement) -> None:
    for row, what in batch.non_finite.items():
        _block(result, row, "non_finite", what.field, what.seen, "a finite number")
        result.approved[row] = False
        result.failed[row] = True
    values = batch.columns.numbers("value")
    zero = values == 0.0
    if zero.any():
        for row in np.flatnonzero(zero & np.signbit(values)).tolist():
            _block_negative_zero(result, row, "value")
    given = batch.columns.values("outputs")
    for row, outputs in enumerate(given if given.count(None) < len(given) else ()):
        for name, output in (outputs or {}).items():
            parts = output if isinstance(output, list) else (output,)
            if 0.0 in parts and any(part == 0.0 and math.copysign(1.0, part) < 0 for part in parts):
                _block_negative_zero(result, row, f"outputs.{name}")
                break  # one is enough: an event may hold thousands, and a record has no room for as many findings


def _block_negative_zero(result: Judgement, row: int, field_name: str) -> None:
    _block(result, row, "negative_zero", field_name, "-0.0", "a number that is not negative zero")
    result.approved[row] = False
    result.failed[row] = True


def _block_by_route(columns: Columns, route: Route | None, result: Judgement) -> Mask:
    """Block what no version, or no fenced version, may say; returns the rows of fenced versions."""
    fenced_rows = np.zeros(len(columns), dtype=np.bool_)
    if route is None:
        return fenced_rows
    if route.state is RouteState.HELD:
        for row in range(len(columns)):
            _block(result, row, "held", "model", route.model, f"no version may serve: {route.reason}")
        result.approved[:] = False
    fenced = frozenset(route.fenced)
    versions = columns.values("model_version")
    if not fenced.isdisjoint(versions):
        for row, version in enumerate(versions):
            if version in fenced:
                _block(result, row, "fenced", "model_version", version, f"fenced at epoch {route.epoch}")
                fenced_rows[row] = True
        result.approved &= ~fenced_rows
    return fenced_rows


def _block(result: Judgement, row: int, check: str, field_name: str, seen: Any, limit: Any) -> None:
    found = Found(check, Severity.ERROR, True, jsonable(field_name), jsonable(seen), jsonable(limit))
    result.findings.setdefault(row, []).append(found)
    result.counts[check, True] += 1


def _apply(result: Judgement, check: Check, enforced: bool, outcome: Outcome, countable: Mask) -> None:
    failed = outcome.failed
    if outcome.unknown is not None and outcome.unknown.any():
        result.unknown[check.name] = outcome.unknown
        # A comparison with an absent value says nothing: the policy says what unknown means.
        failed = failed | outcome.unknown if check.unknown == "fail" else failed & ~outcome.unknown
    if not failed.any():
        return
    name, severity, unit, findings = check.name, check.severity, check.unit, result.findings
    rows = np.flatnonzero(failed).tolist()
    result.counts[name, enforced] += len(rows)
    found = map(Found, repeat(name), repeat(severity), repeat(enforced), *outcome.explain(rows), repeat(unit))
    for row, one in zip(rows, found, strict=True):
        if row in findings:
            findings[row].append(one)
        else:
            findings[row] = [one]
    if enforced:
        result.approved &= ~failed
        result.failed |= failed & countable
        if check.severity is Severity.CRITICAL:
            result.critical |= failed & countable


def _approved_by_segment(columns: Columns, check: OutlierCheck, approved: Mask) -> dict[str | None, list[float]]:
    learned: dict[str | None, list[float]] = {}
    values = columns.numbers(check.field)
    segments = columns.values("segment")
    for row in np.flatnonzero(approved & ~np.isnan(values)).tolist():
        # In the order of their last appearance: in that they are forgotten.
        so_far = learned.pop(segments[row], [])
        so_far.append(float(values[row]))
        learned[segments[row]] = so_far
    return learned


def learn(memory: Memory, policy: Policy, columns: Columns, judgement: Judgement) -> None:
    """Let the memory take in what was approved of one model's batch."""
    for name, rows in judgement.last.items():
        memory.entities.setdefault(policy.model, Entities()).learn(name, columns, rows)
    windows = policy.windows() if judgement.recent else {}
    for name, segments in judgement.recent.items():
        known = memory.recent.setdefault((policy.model, name), {})
        for segment, values in segments.items():
            known[segment] = (known.pop(segment, []) + values)[-windows[name] :]
        while len(known) > MAX_SEGMENTS:
            del known[next(iter(known))]


def remember(memory: Memory, columns: Columns, policy: Policy) -> None:
    """Take in predictions of one model that were approved before, oldest first."""
    everything = np.ones(len(columns), dtype=np.bool_)
    past = Judgement(everything)
    for check in policy.active_checks():
        if isinstance(check, MaxChangeCheck):
            past.last[check.field] = ~np.isnan(columns.numbers(check.field))
        elif isinstance(check, OutlierCheck):
            past.recent[check.field] = _approved_by_segment(columns, check, everything)
    learn(memory, policy, columns, past)


def decode_by_model(
    policies: PolicySet, raws: Sequence[bytes | None], *, approved: bool = False
) -> tuple[list[tuple[str, Batch]], dict[int, str]]:
    """Decode a fetched batch: one Batch for each model in it, and the reason for each malformed position.

    An event belongs to the shape that its model's policy reads; the contract's own shape is tried first. `approved`:
    all of it was judged before, and let through.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    malformed: dict[int, str] = {}
    decodings: list[Decoded] = []
    left: Sequence[int] = range(len(raws))
    places: list[dict[int, int]] = []
    for number, shape in enumerate(policies.shapes):
        decoded = shape.decode(raws if number == 0 else [raws[position] for position in left], approved=approved)
        decodings.append(decoded)
        places.append({} if number == 0 else {position: row for row, position in enumerate(left)})
        models = decoded.columns["model"]
        if len(policies.shapes) == 1 and not decoded.malformed and models and models.count(models[0]) == len(models):
            columns = Columns(decoded)
            if models[0] not in policies.policies or not _misnamed(columns):
                return [(models[0], Batch(columns, range(len(raws)), decoded.non_finite))], {}
        undecided: list[int] = []
        for row, position in enumerate(left):
            if row in decoded.malformed:
                malformed.setdefault(position, decoded.malformed[row])
                undecided.append(position)
                continue
            model = models[row]
            wanted = policies.shape_of_model.get(model, 0)
            if wanted == number:
                malformed.pop(position, None)
                groups.setdefault((number, model), []).append(position)
            else:
                malformed[position] = f"the event is not of the shape that the policy of {model!r} maps"
                undecided.append(position)
        left = undecided
        if not left:
            break
    result: list[tuple[str, Batch]] = []
    for (number, model), positions in groups.items():
        decoded, place = decodings[number], places[number]
        rows = [place.get(position, position) for position in positions]
        columns = Columns.of(decoded, rows)
        if model in policies.policies and (misnamed := _misnamed(columns)):
            # Routes and tallies could not name them.
            kept = [i for i in range(len(rows)) if i not in misnamed]
            malformed |= {positions[i]: reason for i, reason in misnamed.items()}
            positions, rows = [positions[i] for i in kept], [rows[i] for i in kept]
            columns = Columns.of(decoded, rows)
            if not rows:
                continue
        non_finite = {i: decoded.non_finite[row] for i, row in enumerate(rows) if row in decoded.non_finite}
        result.append((model, Batch(columns, positions, non_finite)))
    return result, malformed


def _misnamed(columns: Columns) -> dict[int, str]:
    """The rows whose version has no name that a route could carry, and the reason."""
    versions = columns.values("model_version")
    if all(map(_is_name, set(versions))):
        return {}
    return {
        row: f"model_version {version!r} is no name: letters, digits and . _ : @ + / -, at most 200"
        for row, version in enumerate(versions)
        if not _is_name(version)
    }


_is_name = re.compile(NAME_PATTERN).fullmatch


@dataclass(frozen=True, slots=True)
class Source:
    """Where a batch came from: what tallies and samples say about it."""

    topic: str
    partition: int
    records: Sequence[Record]
    worker: str

    def of(self, position: int) -> str:
        return f"{self.topic}/{self.partition}/{self.records[position].offset}"


def tally(batch: Batch, judgement: Judgement, policy: Policy, source: Source, now: datetime) -> list[Tally]:
    """One tally for each model version in the batch."""
    versions = batch.columns.values("model_version")
    rows_of: dict[str, Any] = {versions[0]: slice(None)}
    if versions.count(versions[0]) != len(versions):
        grouped: dict[str, list[int]] = {}
        for row, version in enumerate(versions):
            grouped.setdefault(version, []).append(row)
        rows_of = dict(grouped)
    return [_tally(version, rows, batch, judgement, policy, source, now) for version, rows in rows_of.items()]


def _tally(
    version: str, rows: Any, batch: Batch, judgement: Judgement, policy: Policy, source: Source, now: datetime
) -> Tally:
    numbers = np.arange(len(batch.columns)) if isinstance(rows, slice) else np.array(rows, dtype=np.intp)
    approved = int(np.count_nonzero(judgement.approved[rows]))
    blocked_rows = numbers[~judgement.approved[rows]].tolist()
    found, counts = judgement.findings, judgement.counts
    if not isinstance(rows, slice):
        # A batch may hold as many versions as predictions: each looks at its own rows only.
        counts = Counter((one.check, one.enforced) for row in rows if row in found for one in found[row])
    entities: dict[str, None] = {}
    if judgement.failed[rows].any():
        ids = batch.columns.values("entity_id")
        for row in numbers[judgement.failed[rows]].tolist():
            entities[ids[row]] = None
            if len(entities) == MAX_TALLY_ENTITIES:
                break
    positions = [batch.positions[row] for row in blocked_rows[:MAX_SAMPLES]]
    first_blocked = min((source.records[batch.positions[row]].timestamp for row in blocked_rows), default=None)
    return Tally(
        model=policy.model,
        model_version=version,
        policy=policy.id,
        at=now,
        worker=source.worker,
        partition=source.partition,
        first_offset=source.records[batch.positions[int(numbers[0])]].offset,
        last_offset=source.records[batch.positions[int(numbers[-1])]].offset,
        seen=len(numbers),
        approved=approved,
        blocked=len(blocked_rows),
        failed=int(np.count_nonzero(judgement.failed[rows])),
        critical=int(np.count_nonzero(judgement.critical[rows])),
        blocked_by_check={check: count for (check, enforced), count in counts.items() if enforced},
        shadow_by_check={check: count for (check, enforced), count in counts.items() if not enforced},
        unknown_by_check={
            name: count for name, mask in judgement.unknown.items() if (count := int(np.count_nonzero(mask[rows])))
        },
        entities=tuple(entities),
        first_blocked_at=None if first_blocked is None else time_of(first_blocked),
        samples=tuple(
            Sample(
                source=source.of(position),
                prediction=_readable(source.records[position].value),
                findings=tuple(found.finding() for found in judgement.findings[row]),
            )
            for row, position in zip(blocked_rows, positions, strict=False)
        ),
    )


def _readable(raw: bytes | None) -> Any:
    """A prediction as evidence: its JSON where it is some, else its text; cut where it is long."""
    raw = raw or b""
    if len(raw) <= MAX_SAMPLE_BYTES and raw.count(b"[") + raw.count(b"{") < 100:
        try:
            return strict_json(raw)
        except (ValueError, RecursionError):
            pass
    return raw[:MAX_SAMPLE_BYTES].decode("utf-8", "replace")


def strict_json(raw: bytes) -> Any:
    """What JSON can hold, and so can be printed as JSON again. Raises ValueError and RecursionError."""
    return json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite_float)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
