"""The verdict on a batch of one model's predictions. Pure: no clock, no I/O, nothing changed but what is returned."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice, repeat
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from holdfast.core.accepted import ByField, Given, WithGiven, pending, used_by
from holdfast.core.checks import (
    Check,
    Entities,
    Explanations,
    FreshnessCheck,
    Known,
    Mask,
    MaxChangeCheck,
    Memory,
    Numbers,
    Outcome,
    OutlierCheck,
    jsonable,
    judge_changes,
)
from holdfast.core.condemned import BLOCKING
from holdfast.core.decode import Columns, Decoded, NonFinite, Shape
from holdfast.core.findings import deviation
from holdfast.core.in_order import are_doubtful, judge_in_order
from holdfast.core.malformed import CHECK as MALFORMED
from holdfast.core.malformed import Malformed, MalformedKind, malformed
from holdfast.core.policy import Policy, PolicySet
from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.promoted import PROMOTED, accepted_versions, others, wanted
from holdfast.core.recent import MAX_SEGMENTS, Segments, learn_recent
from holdfast.core.record import Record, time_of
from holdfast.core.record_keys import CHECK as OFF_KEY
from holdfast.core.record_keys import Keys
from holdfast.core.segments import UNLISTED, UNREMEMBERED, unlisted
from holdfast.core.short_names import short
from holdfast.core.version_budget import GUARD_BUDGET, counted_one_by_one, named_by, with_others
from holdfast_schemas import Finding, Route, RouteState, Sample, Severity, ShadowTally, Tally
from holdfast_schemas._base import NAME_PATTERN
from holdfast_schemas.control import MAX_TALLY_ENTITIES, OTHERS

MAX_SAMPLES = 5
MAX_SAMPLE_BYTES = 4096
SHADOW_SAMPLES = 2
SHADOW_LOOKED_AT = 16
"""Rows of a batch among which the worst are sought."""
MAX_NAMED = 200
"""Characters of an entity or a prediction's id in a sample."""


@dataclass(frozen=True, slots=True)
class Batch:
    """n decoded predictions of one model, in the order of their partition.

    `positions` are their places in the batch that was fetched; `non_finite` is keyed by the row here.
    """

    columns: Columns
    positions: Sequence[int]
    non_finite: Mapping[int, Sequence[NonFinite]]


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
    `condemned` are the rows that a check in shadow would block: they are no references.
    `off_key` are the rows whose record has not the key that the policy demands: they are no references either.
    `unpromoted` are the rows of versions that the policy does not let serve: neither are they.
    `used` are the references that approved rows were the first to be held against.
    `last` are the rows by field that the memory must learn once the verdicts stand, `recent` is what it then holds.
    """

    approved: Mask
    findings: dict[int, list[Found]] = field(default_factory=dict)
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    failed: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    critical: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    condemned: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    unknown: dict[str, Mask] = field(default_factory=dict)
    off_key: Mask | None = None
    unpromoted: Mask | None = None
    last: dict[str, Mask] = field(default_factory=dict)
    recent: dict[str, Segments] = field(default_factory=dict)
    used: dict[int, list[tuple[str, Given]]] = field(default_factory=dict)


def judge(
    batch: Batch,
    policy: Policy | None,
    memory: Memory,
    route: Route | None,
    now: datetime,
    *,
    model: str,
    approve_without_policy: bool = False,
    arrived: Callable[[], Numbers] | None = None,
    given: ByField | None = None,
    keys: Callable[[], Keys] | None = None,
) -> Judgement:
    """Check every prediction of `batch` and say which may pass.

    `route` carries the fences. With no policy everything is blocked (`no_policy`), unless told otherwise. `arrived`
    gives (n,) Unix milliseconds, the Kafka timestamps of the records; without it they arrived just now. `given` are the
    references that people gave for this model. `keys` gives the (n,) keys of the records; without it nothing is said
    about them.
    """
    policy = policy.at(now) if policy is not None else None
    columns, size = batch.columns, len(batch.columns)
    result = Judgement(np.ones(size, dtype=np.bool_))
    result.failed = np.zeros(size, dtype=np.bool_)
    result.critical = np.zeros(size, dtype=np.bool_)
    result.condemned = np.zeros(size, dtype=np.bool_)
    _block_numbers_that_are_none(batch, result, policy)
    # The rows that the checks count against their version: all but those of a version fenced before.
    countable = ~_block_by_route(columns, route, result)
    result.failed &= countable
    if policy is None:
        if not approve_without_policy:
            for row in range(size):
                _block(result, row, "no_policy", "model", model, "a policy for this model")
            result.approved[:] = False
        return result

    if policy.mode != "off":
        _note_unpromoted(columns, route, policy, result)
    listed = policy.listed_segments()
    if listed is not None and policy.unlisted_segment == "block":
        _block_unlisted(columns, listed, policy, result, countable)
    changes: list[tuple[MaxChangeCheck, bool]] = []
    outliers: list[tuple[OutlierCheck, bool]] = []
    for check in policy.active_checks():
        enforces = policy.enforces(check)
        if isinstance(check, MaxChangeCheck):
            changes.append((check, check.would_block))
        elif isinstance(check, OutlierCheck):
            outliers.append((check, check.would_block))
        else:
            outcome = check.run(columns, memory, policy.model, now)
            counts = countable
            if isinstance(check, FreshnessCheck) and arrived is not None and outcome.failed.any():
                counts = countable & ~check.grew_old_here(columns, outcome.failed, arrived(), now)
            _apply(result, check, enforces, outcome, counts)
    # Last, because only what every other check lets pass may become part of a reference.
    known: Known = memory.of(policy.model)
    given_keys = keys() if keys is not None and policy.reads_keys() else None
    off = result.off_key = None if given_keys is None else _off_key(given_keys, columns, policy, known)
    explain_keys = partial(_explain_keys, given_keys, columns, policy)
    if off is not None and policy.off_key == "block":
        # It is not the version's fault: the breaker does not count it.
        nowhere = np.zeros(size, dtype=np.bool_)
        _apply(result, _BuiltIn(OFF_KEY), policy.mode == "enforce", Outcome(off, None, explain_keys), nowhere)
    doubted = off if policy.off_key == "unknown" else None
    teaches = result.approved & ~result.condemned
    if off is not None:
        teaches &= ~off
    if result.unpromoted is not None:
        teaches &= ~result.unpromoted
    waiting = pending(given, {check.field for check, _ in changes}, memory.used, columns) if given else {}
    if waiting:
        known = WithGiven(memory.of(policy.model), waiting)
    outcomes: list[Outcome] = []
    if changes and not outliers:
        outcomes, result.last = judge_changes(changes, columns, known, teaches)
    if outliers or are_doubtful(changes, outcomes, columns, known):
        windows = policy.windows()
        recent = {name: memory.recent.get((policy.model, name), Segments()) for name in windows}
        both = judge_in_order(changes, outliers, columns, known, recent, windows, teaches, listed)
        result.last, result.recent = both.last, both.recent
        for (outlier, _), outcome in zip(outliers, both.outliers, strict=True):
            if doubted is not None:
                _doubt(outlier, outcome, doubted, explain_keys)
            _apply(result, outlier, policy.enforces(outlier), outcome, countable)
        outcomes = both.changes
        for row in both.unremembered:
            segment = columns.values("segment")[row]
            _find(result, row, UNREMEMBERED, Severity.WARNING, False, "segment", segment, _ENOUGH_SEGMENTS)
    for (change, _), outcome in zip(changes, outcomes, strict=True):
        if doubted is not None:
            _doubt(change, outcome, doubted, explain_keys)
        _apply(result, change, policy.enforces(change), outcome, countable)
    if off is not None:
        for row in np.flatnonzero(off & result.approved).tolist():
            # A guard that reads the record back knows by this that it is no reference.
            (seen,), (limit,) = explain_keys([row])[1:]
            if all(one.check != OFF_KEY for one in result.findings.get(row, ())):
                _find(result, row, OFF_KEY, Severity.WARNING, False, "key", seen, limit)
    if result.unpromoted is not None and policy.versions == "any" and policy.checks_with_memory():
        for row in np.flatnonzero(result.unpromoted & result.approved).tolist():
            # As with a key: who reads the record back knows by this that it is no reference.
            version = columns.values("model_version")[row]
            _find(result, row, NOT_PROMOTED, Severity.WARNING, False, "model_version", version, PROMOTED)
    if waiting:
        result.used = used_by(waiting, result.last, columns)
    return result


def _block_numbers_that_are_none(batch: Batch, result: Judgement, policy: Policy | None) -> None:
    if batch.non_finite:
        decides = _fields_that_decide(policy)
        for row, found in batch.non_finite.items():
            worst = next((one for one in found if decides is None or one.name in decides), None)
            if worst is None:
                # Nothing reads it, so it says nothing about the output.
                _find(result, row, "non_finite", Severity.WARNING, False, found[0].field, found[0].seen, _FINITE)
                continue
            _block(result, row, "non_finite", worst.field, worst.seen, _FINITE)
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


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """A check that no policy lists, and that blocks as one of severity `error`."""

    name: str
    severity: Severity = Severity.ERROR
    unit: None = None
    unknown: Literal["pass", "fail", "auto"] = "fail"
    would_block: bool = True


_ENOUGH_SEGMENTS = f"one of the {MAX_SEGMENTS:,} segments whose values are remembered"


def _note_unpromoted(columns: Columns, route: Route | None, policy: Policy, result: Judgement) -> None:
    """Find the rows of versions that may not serve; block them, unless the policy takes any version."""
    versions = columns.values("model_version")
    found = result.unpromoted = others(versions, accepted_versions(route, policy.versions))
    if found is None or route is None or policy.versions == "any":
        return

    def explain(rows: list[int]) -> Explanations:
        return repeat("model_version"), [versions[row] for row in rows], repeat(wanted(route, policy.versions))

    # That nobody promoted it is no failure of the version: its breaker counts what its checks find.
    nowhere = np.zeros(len(columns), dtype=np.bool_)
    _apply(result, _BuiltIn(NOT_PROMOTED), policy.mode == "enforce", Outcome(found, None, explain), nowhere)


def _block_unlisted(
    columns: Columns, listed: frozenset[str], policy: Policy, result: Judgement, countable: Mask
) -> None:
    segments = columns.values("segment")
    found = unlisted(segments, listed)
    if found is None:
        return

    def explain(rows: list[int]) -> Explanations:
        return repeat("segment"), [jsonable(segments[row]) for row in rows], repeat([*map(jsonable, policy.segments)])

    _apply(result, _BuiltIn(UNLISTED), policy.mode == "enforce", Outcome(found, None, explain), countable)


def _off_key(keys: Keys, columns: Columns, policy: Policy, known: Known) -> Mask | None:
    """The rows whose record has another key than the policy demands, or is in another partition than its key's."""
    found = keys.off(policy.key, columns.values(policy.key.field))
    if keys.partitions:
        # An entity that is known here is held against what is known; another one may be known elsewhere.
        strangers = ~found
        if not policy.windows():
            for name in policy.changing_fields():
                strangers &= np.isnan(known.remembered(name, columns))
        found |= keys.elsewhere(strangers)
    return found if found.any() else None


def _explain_keys(keys: Keys | None, columns: Columns, policy: Policy, rows: list[int]) -> Explanations:
    """What is said of records that have not the key that they must have."""
    values = columns.values(policy.key.field)
    told = [keys.words(row, policy.key, values[row]) for row in rows] if keys is not None else []
    return repeat("key"), [jsonable(seen) for seen, _ in told], [limit for _, limit in told]


def _doubt(
    check: MaxChangeCheck | OutlierCheck, outcome: Outcome, off: Mask, explain: Callable[[list[int]], Explanations]
) -> None:
    """Where a record's key is off, a check with memory cannot say that the output passes."""
    doubted = off & ~outcome.failed
    if not doubted.any():
        return
    outcome.unknown = doubted if outcome.unknown is None else outcome.unknown | doubted
    if check.unknown == "auto":
        # It is not new: its entity may be known in another partition.
        outcome.doubtful = doubted if outcome.doubtful is None else outcome.doubtful | doubted
    before = outcome.explain

    def explained(rows: list[int]) -> Explanations:
        told = zip(*(islice(column, len(rows)) for column in before(rows)), strict=True)
        of_keys = zip(*(islice(column, len(rows)) for column in explain(rows)), strict=True)
        chosen = [key if doubted[row] else one for row, one, key in zip(rows, told, of_keys, strict=True)]
        fields, seen, limits = zip(*chosen, strict=True)
        return fields, seen, limits

    outcome.explain = explained


_FINITE = "a finite number"


def _fields_that_decide(policy: Policy | None) -> frozenset[str | None] | None:
    """The fields in which a number that is not finite blocks: the outputs, and what a check reads, in any mode; None:
    all, also those that nobody reads."""
    if policy is None:
        return frozenset(("value", "outputs"))
    if policy.non_finite == "all":
        return None
    read = (name for check in policy.active_checks() for name in check.reads())
    return frozenset(("value", "outputs", *read))


def _block(result: Judgement, row: int, check: str, field_name: str, seen: Any, limit: Any) -> None:
    _find(result, row, check, Severity.ERROR, True, field_name, seen, limit)


def _find(
    result: Judgement, row: int, check: str, severity: Severity, enforced: bool, field_name: str, seen: Any, limit: Any
) -> None:
    found = Found(check, severity, enforced, jsonable(field_name), jsonable(seen), jsonable(limit))
    result.findings.setdefault(row, []).append(found)
    result.counts[check, enforced] += 1


def _apply(result: Judgement, check: Check | _BuiltIn, enforced: bool, outcome: Outcome, countable: Mask) -> None:
    failed = outcome.failed
    if outcome.unknown is not None and outcome.unknown.any():
        result.unknown[check.name] = outcome.unknown
        # A comparison with an absent value says nothing: the policy says what unknown means.
        failed = failed | outcome.unknown if check.unknown == "fail" else failed & ~outcome.unknown
        if outcome.doubtful is not None:
            # That nothing is remembered of an entity is not the fault of the version.
            failed |= outcome.doubtful
            countable = countable & ~outcome.doubtful
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
    if not enforced and check.would_block:
        result.condemned |= failed
    if enforced:
        result.approved &= ~failed
        result.failed |= failed & countable
        if check.severity is Severity.CRITICAL:
            result.critical |= failed & countable


def learn(memory: Memory, policy: Policy, columns: Columns, judgement: Judgement) -> None:
    """Let the memory take in what was approved of one model's batch."""
    for name, rows in judgement.last.items():
        memory.entities.setdefault(policy.model, Entities()).learn(name, columns, rows)
    for name, segments in judgement.recent.items():
        memory.recent[policy.model, name] = segments
    memory.used.update(one.reference_id for some in judgement.used.values() for _, one in some)


def remember(memory: Memory, columns: Columns, policy: Policy, teaches: Mask | None = None) -> None:
    """Take in predictions of one model that were approved before, oldest first.

    `teaches[i]`: whether row i may become a reference; without it all of them.
    """
    everything = np.ones(len(columns), dtype=np.bool_) if teaches is None else teaches
    listed = policy.listed_segments()
    changing = dict.fromkeys(check.field for check in policy.active_checks() if isinstance(check, MaxChangeCheck))
    for name in changing:
        rows = everything & ~np.isnan(columns.numbers(name))
        memory.entities.setdefault(policy.model, Entities()).learn(name, columns, rows)
    for name, keep in policy.windows().items():
        values, segments = columns.numbers(name), columns.values("segment")
        rows = everything & ~np.isnan(values)
        if listed is not None and (others := unlisted(segments, listed)) is not None:
            rows &= ~others
        if not rows.all():
            segments = [segments[row] for row in np.flatnonzero(rows).tolist()]
        learn_recent(memory.recent.setdefault((policy.model, name), Segments()), keep, segments, values[rows].tolist())


def decode_by_model(
    policies: PolicySet, raws: Sequence[bytes | None], *, approved: bool = False
) -> tuple[list[tuple[str, Batch]], dict[int, Malformed]]:
    """Decode a fetched batch: one Batch for each model in it, and by position why a record is malformed.

    An event belongs to the shape that its model's policy reads; the contract's own shape is tried first. `approved`:
    all of it was judged before, and let through.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    flaws: dict[int, Malformed] = {}
    told: dict[int, int] = {}
    decodings: list[Decoded] = []
    left: Sequence[int] = range(len(raws))
    places: list[dict[int, int]] = []
    for number, shape in enumerate(policies.shapes):
        decoded = shape.decode(raws if number == 0 else [raws[position] for position in left], approved=approved)
        decodings.append(decoded)
        places.append({} if number == 0 else {position: row for row, position in enumerate(left)})
        models = decoded.columns["model"]
        plain = not decoded.malformed and not decoded.ambiguous
        if len(policies.shapes) == 1 and plain and models and models.count(models[0]) == len(models):
            columns = Columns(decoded)
            if models[0] not in policies.policies or not _misnamed(columns):
                return [(models[0], Batch(columns, range(len(raws)), decoded.non_finite))], {}
        undecided: list[int] = []
        for row, position in enumerate(left):
            if row in decoded.malformed:
                found = decoded.malformed[row]
            else:
                model = models[row]
                if policies.shape_of_model.get(model, 0) == number:
                    flaws.pop(position, None)
                    if row in decoded.ambiguous and policies.refuses_ambiguous(model):
                        flaws[position] = decoded.ambiguous[row]
                        continue
                    groups.setdefault((number, model), []).append(position)
                    continue
                found = _of_another_shape(policies, shape, model, raws[position])
            undecided.append(position)
            # Of several reasons the one of the shape that the event is most likely of.
            rank = _rank(policies, number, found)
            if rank > told.get(position, -1):
                told[position], flaws[position] = rank, found
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
            flaws |= {positions[i]: found for i, found in misnamed.items()}
            positions, rows = [positions[i] for i in kept], [rows[i] for i in kept]
            columns = Columns.of(decoded, rows)
            if not rows:
                continue
        non_finite = {i: decoded.non_finite[row] for i, row in enumerate(rows) if row in decoded.non_finite}
        result.append((model, Batch(columns, positions, non_finite)))
    return result, flaws


def _rank(policies: PolicySet, number: int, found: Malformed) -> int:
    """How well the reason of a shape fits the event: best where the model's policy reads that shape."""
    model = found.identity.model
    known = model is not None and model in policies.policies
    if known and policies.shape_of_model[model or ""] == number:
        return 20
    if found.kind is MalformedKind.OTHER_SHAPE:
        return 15
    # Then the shape of which most can be read; of equal ones, one that a policy maps.
    return 2 * found.identity.readable() + (number in policies.shape_of_model.values())


def _of_another_shape(policies: PolicySet, shape: Shape, model: str, raw: bytes | None) -> Malformed:
    """Why an event that names its model here is not what the model's policy maps."""
    wanted = policies.shapes[policies.shape_of_model[model]] if model in policies.shape_of_model else None
    why = wanted.decode([raw]).malformed.get(0) if wanted is not None else None
    return malformed(
        f"the event is not of the shape that the policy of {model!r} maps" + (f": {why.reason}" if why else ""),
        MalformedKind.OTHER_SHAPE,
        field=why.field if why else "model",
        seen=why.seen if why else None,
        wanted=why.wanted if why else None,
        identity=shape.identity_of(raw),
    )


def _misnamed(columns: Columns) -> dict[int, Malformed]:
    """The rows whose version has no name that a route could carry, and the reason."""
    versions = columns.values("model_version")
    names = set(versions)
    if OTHERS not in names and all(map(_is_name, names)):
        return {}
    return {
        row: malformed(
            f"model_version {version!r} is a name that Holdfast uses itself"
            if version == OTHERS
            else f"model_version {version!r} cannot name a version: letters, digits and . _ : @ + / -, at most 200",
            MalformedKind.BAD_VERSION,
            field="model_version",
        )
        for row, version in enumerate(versions)
        if version == OTHERS or not _is_name(version)
    }


_is_name = re.compile(NAME_PATTERN).fullmatch


@dataclass(frozen=True, slots=True)
class Source:
    """Where a batch came from: what tallies and samples say about it."""

    topic: str
    partition: int
    records: Sequence[Record]
    worker: str
    topic_id: str | None = None

    def arrived(self, positions: Sequence[int]) -> Numbers:
        """Kafka's timestamps of these records, in Unix milliseconds."""
        return np.array([self.records[position].timestamp for position in positions], dtype=np.float64)

    def of(self, position: int) -> str:
        return f"{self.topic}/{self.partition}/{self.records[position].offset}"


def tally(
    batch: Batch, judgement: Judgement, policy: Policy, source: Source, now: datetime, route: Route | None = None
) -> list[Tally]:
    """One tally for each model version in the batch, and one for all that are beyond the budget of versions."""
    versions = batch.columns.values("model_version")
    rows_of: dict[str, Any] = {versions[0]: slice(None)}
    others = 0
    if versions.count(versions[0]) != len(versions):
        grouped: dict[str, list[int]] = {}
        for row, version in enumerate(versions):
            grouped.setdefault(version, []).append(row)
        own = counted_one_by_one({version: len(rows) for version, rows in grouped.items()}, route, GUARD_BUDGET)
        rows_of, others = with_others(grouped, own)
    found = [_tally(version, rows, batch, judgement, policy, source, now, route) for version, rows in rows_of.items()]
    return [*found[:-1], _of_others(found[-1], others)] if others else found


def _of_others(one: Tally, versions: int) -> Tally:
    """The tally of several versions together: what is known of single ones is left out."""
    return one.model_copy(
        update={"versions": versions, "entities": (), "approved_entities": (), "samples": (), "shadow": None}
    )


def _some_distinct(ids: Sequence[str], rows: NDArray[np.intp]) -> tuple[str, ...]:
    """The first distinct entities of these rows, as many as a tally names."""
    found: dict[str, None] = {}
    # Most batches have enough of them in their first rows.
    for some in (rows[: 2 * MAX_TALLY_ENTITIES], rows[2 * MAX_TALLY_ENTITIES :]):
        if len(found) < MAX_TALLY_ENTITIES and len(some):
            found |= dict.fromkeys([ids[row] for row in some.tolist()])
    return tuple(map(short, islice(found, MAX_TALLY_ENTITIES)))


def _tally(
    version: str,
    rows: Any,
    batch: Batch,
    judgement: Judgement,
    policy: Policy,
    source: Source,
    now: datetime,
    route: Route | None,
) -> Tally:
    numbers = np.arange(len(batch.columns)) if isinstance(rows, slice) else np.array(rows, dtype=np.intp)
    approved = int(np.count_nonzero(judgement.approved[rows]))
    blocked_rows = numbers[~judgement.approved[rows]].tolist()
    found, counts = judgement.findings, judgement.counts
    if not isinstance(rows, slice):
        # A batch may hold as many versions as predictions: each looks at its own rows only.
        counts = Counter((one.check, one.enforced) for row in rows if row in found for one in found[row])
    ids = batch.columns.values("entity_id")
    entities = _some_distinct(ids, numbers[judgement.failed[rows]])
    approved_entities = _some_distinct(ids, numbers[judgement.approved[rows]])
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
        topic_id=source.topic_id,
        seen=len(numbers),
        approved=approved,
        blocked=len(blocked_rows),
        failed=int(np.count_nonzero(judgement.failed[rows])),
        critical=int(np.count_nonzero(judgement.critical[rows])),
        blocked_by_check={check: count for (check, enforced), count in counts.items() if enforced},
        shadow_by_check={check: count for (check, enforced), count in counts.items() if not enforced},
        shadow=_shadow(numbers[(judgement.approved & judgement.condemned)[rows]], batch, judgement, source),
        unknown_by_check={
            name: count for name, mask in judgement.unknown.items() if (count := int(np.count_nonzero(mask[rows])))
        },
        entities=entities,
        approved_entities=approved_entities,
        promoted=policy.accepts(version, route),
        first_blocked_at=None if first_blocked is None else time_of(first_blocked),
        samples=tuple(
            _sample(batch, row, source, position, tuple(found.finding() for found in judgement.findings[row]))
            for row, position in zip(blocked_rows, positions, strict=False)
        ),
    )


def _shadow(rows: NDArray[np.intp], batch: Batch, judgement: Judgement, source: Source) -> ShadowTally | None:
    """What checks in shadow would have blocked of these approved rows; None: nothing."""
    if not len(rows):
        return None
    condemning = {
        row: [one for one in judgement.findings[row] if one.severity in BLOCKING and not one.enforced]
        for row in rows.tolist()
    }
    by_segment: dict[str, Counter[str]] = {}
    if batch.columns.reads("segment"):
        segments = batch.columns.values("segment")
        for row, found in condemning.items():
            for one in found:
                if segments[row] is not None:
                    by_segment.setdefault(one.check, Counter())[_cut(segments[row]) or ""] += 1
    # The worst of the first ones: to look at all of a large batch would cost more than they tell.
    first = list(condemning)[:SHADOW_LOOKED_AT]
    worst = sorted(first, key=lambda row: max(deviation(one.finding()) for one in condemning[row]), reverse=True)
    return ShadowTally(
        failed=len(rows),
        critical=sum(any(one.severity is Severity.CRITICAL for one in found) for found in condemning.values()),
        by_segment={check: dict(sorted(counts.items())[:MAX_TALLY_ENTITIES]) for check, counts in by_segment.items()},
        entities=_some_distinct(batch.columns.values("entity_id"), rows),
        samples=tuple(
            _sample(batch, row, source, batch.positions[row], tuple(one.finding() for one in condemning[row]))
            for row in worst[:SHADOW_SAMPLES]
        ),
    )


def with_malformed(
    tallies: Sequence[Tally],
    versions: Mapping[str, Sequence[int]],
    found: Mapping[int, Malformed],
    policy: Policy,
    route: Route | None,
    source: Source,
    now: datetime,
) -> list[Tally]:
    """The tallies of a model's batch with the malformed records that its `versions` are to blame for.

    `versions` maps a version to the positions of its malformed records. They count as blocked, and as failed unless
    the version was fenced before or the policy's mode does not block.
    """
    result = {tally.model_version: tally for tally in tallies}
    before = OTHERS in result
    # There is always room for the versions that the route names.
    left = max(2, GUARD_BUDGET - len(result.keys() - {OTHERS}))
    new = {version: len(positions) for version, positions in versions.items() if version not in result}
    if before:
        # Any other version may be among those that are counted together, and each is counted in one place.
        new = {version: count for version, count in new.items() if version in named_by(route)}
    own = counted_one_by_one(new, route, left) | result.keys()
    grouped, others = with_others(versions, own - {OTHERS})
    for version, positions in grouped.items():
        counts = policy.mode == "enforce" and not (route is not None and version in route.fenced)
        told = result.get(version)
        entities = dict.fromkeys(told.entities if told is not None else ())
        if counts:
            for position in positions:
                if len(entities) == MAX_TALLY_ENTITIES:
                    break
                if (entity := _entity(found[position], source.records[position])) is not None:
                    entities[short(entity)] = None
        offsets = [source.records[position].offset for position in (positions[0], positions[-1])]
        first_blocked = time_of(min(source.records[position].timestamp for position in positions))
        samples = told.samples if told is not None else ()
        room = positions[: MAX_SAMPLES - len(samples)]
        base = told or Tally(
            model=policy.model,
            model_version=version,
            policy=policy.id,
            at=now,
            worker=source.worker,
            partition=source.partition,
            first_offset=offsets[0],
            last_offset=offsets[1],
            topic_id=source.topic_id,
            seen=0,
            approved=0,
            blocked=0,
            failed=0,
            promoted=policy.accepts(version, route),
        )
        result[version] = base.model_copy(
            update={
                "first_offset": min(base.first_offset, offsets[0]),
                "last_offset": max(base.last_offset, offsets[1]),
                "seen": base.seen + len(positions),
                "blocked": base.blocked + len(positions),
                "failed": base.failed + (len(positions) if counts else 0),
                "blocked_by_check": base.blocked_by_check | {MALFORMED: len(positions)},
                "entities": tuple(entities),
                "first_blocked_at": min(filter(None, (base.first_blocked_at, first_blocked))),
                "samples": (*samples, *(_malformed_sample(found[at], source, at) for at in room)),
            }
        )
    if others:
        result[OTHERS] = _of_others(result[OTHERS], others + (result[OTHERS].versions if before else 0))
    return [*result.values()]


def _entity(found: Malformed, record: Record) -> str | None:
    """What a malformed record is about: its entity, else the record's key, else the prediction itself."""
    if found.identity.entity_id is not None:
        return found.identity.entity_id
    if record.key:
        return record.key[:1000].decode("utf-8", "replace")[:1000]
    return found.identity.prediction_id


def _malformed_sample(found: Malformed, source: Source, position: int) -> Sample:
    finding = Finding(
        check=MALFORMED,
        severity=Severity.ERROR,
        enforced=True,
        field=found.field,
        seen=found.seen if found.field is not None else found.reason,
        limit=found.wanted,
    )
    return Sample(
        source=source.of(position),
        prediction=_readable(source.records[position].value),
        findings=(finding,),
        entity_id=_cut(found.identity.entity_id),
        prediction_id=_cut(found.identity.prediction_id),
    )


def _sample(batch: Batch, row: int, source: Source, position: int, findings: tuple[Finding, ...]) -> Sample:
    value = float(batch.columns.numbers("value")[row])
    return Sample(
        source=source.of(position),
        prediction=_readable(source.records[position].value),
        findings=findings,
        entity_id=_cut(batch.columns.values("entity_id")[row]),
        prediction_id=_cut(batch.columns.values("prediction_id")[row]),
        value=None if math.isnan(value) else jsonable(value),
    )


def _cut(text: str | None) -> str | None:
    """A name as evidence: what is kept of an incident is bounded."""
    return text if text is None or len(text) <= MAX_NAMED else text[: MAX_NAMED - 1] + "…"


def _readable(raw: bytes | None) -> Any:
    """A prediction as evidence: its JSON where it is some, else its text; cut where it is long."""
    raw = raw or b""
    if len(raw) <= MAX_SAMPLE_BYTES and raw.count(b"[") + raw.count(b"{") < 100:
        try:
            prediction = strict_json(raw)
            if b"\\u" in raw:
                # Half of a surrogate pair can be read, and not be written again. It raises a ValueError.
                json.dumps(prediction, ensure_ascii=False).encode()
            return prediction
        except (ValueError, RecursionError):
            pass
    return raw[:MAX_SAMPLE_BYTES].decode("utf-8", "replace")


def strict_json(raw: bytes) -> Any:
    """What JSON can hold, and so can be printed as JSON again. Raises ValueError and RecursionError."""
    return json.loads(raw.decode(), parse_constant=_refuse_constant, parse_float=_finite_float)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
