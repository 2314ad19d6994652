"""The checks that no policy lists: finite numbers, the route, promoted versions, segments and keys."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, Literal

import numpy as np

from holdfast.core.arrays import Mask, jsonable
from holdfast.core.checks.base import Check, CheckResult, Explanations
from holdfast.core.checks.max_change import MaxChangeCheck
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.columns import Columns
from holdfast.core.grouping import Batch
from holdfast.core.judgement import Found, Judgement
from holdfast.core.memory import Known
from holdfast.core.policy import Policy
from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.promoted import accepted_versions, others, wanted
from holdfast.core.recent import MAX_SEGMENTS
from holdfast.core.record_keys import Keys
from holdfast.core.segments import UNLISTED, unlisted
from holdfast_schemas import Route, RouteState, Severity


def block_non_finite(batch: Batch, result: Judgement, policy: Policy | None) -> None:
    """Block rows with numbers that are not finite where these decide, and rows with a negative zero as an output."""
    if batch.non_finite:
        decides = _fields_that_decide(policy)
        for row, found in batch.non_finite.items():
            worst = next((one for one in found if decides is None or one.name in decides), None)
            if worst is None:
                # Nothing reads it, so it says nothing about the output.
                warn_row(result, row, "non_finite", found[0].field, found[0].seen, _FINITE)
                continue
            _fail_row(result, row, "non_finite", worst.field, worst.seen, _FINITE)
    values = batch.columns.numbers("value")
    zero = values == 0.0
    if zero.any():
        for row in np.flatnonzero(zero & np.signbit(values)).tolist():
            _fail_row(result, row, "negative_zero", "value", "-0.0", _POSITIVE_ZERO)
    given = batch.columns.values("outputs")
    for row, outputs in enumerate(given if given.count(None) < len(given) else ()):
        for name, output in (outputs or {}).items():
            parts = output if isinstance(output, list) else (output,)
            if 0.0 in parts and any(part == 0.0 and math.copysign(1.0, part) < 0 for part in parts):
                _fail_row(result, row, "negative_zero", f"outputs.{name}", "-0.0", _POSITIVE_ZERO)
                break  # one is enough: an event may hold thousands, and a record has no room for as many findings


def block_by_route(columns: Columns, route: Route | None, result: Judgement) -> Mask:
    """Block what no version, or no fenced version, may say; returns the rows of fenced versions."""
    fenced_rows = np.zeros(len(columns), dtype=np.bool_)
    if route is None:
        return fenced_rows
    if route.state is RouteState.HELD:
        for row in range(len(columns)):
            block_row(result, row, "held", "model", route.model, f"no version may serve: {route.reason}")
        result.approved[:] = False
    fenced = frozenset(route.fenced)
    versions = columns.values("model_version")
    if not fenced.isdisjoint(versions):
        for row, version in enumerate(versions):
            if version in fenced:
                block_row(result, row, "fenced", "model_version", version, f"fenced at epoch {route.epoch}")
                fenced_rows[row] = True
        result.approved &= ~fenced_rows
    return fenced_rows


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A check that no policy lists, and that blocks as one of severity `error`."""

    name: str
    severity: Severity = Severity.ERROR
    unit: None = None
    unknown: Literal["pass", "fail", "auto"] = "fail"
    would_block: bool = True


ENOUGH_SEGMENTS = f"one of the {MAX_SEGMENTS:,} segments whose values are remembered"


def note_unpromoted(columns: Columns, route: Route | None, policy: Policy, result: Judgement) -> None:
    """Find the rows of versions that may not serve; block them, unless the policy takes any version."""
    versions = columns.values("model_version")
    found = result.unpromoted = others(versions, accepted_versions(route, policy.versions))
    if found is None or route is None or policy.versions == "any":
        return

    def explain(rows: list[int]) -> Explanations:
        return repeat("model_version"), [versions[row] for row in rows], repeat(wanted(route, policy.versions))

    # A version that nobody promoted has not failed by that: its breaker counts what its checks find.
    nowhere = np.zeros(len(columns), dtype=np.bool_)
    apply_result(result, BuiltIn(NOT_PROMOTED), policy.mode == "enforce", CheckResult(found, None, explain), nowhere)


def block_unlisted(
    columns: Columns, listed: frozenset[str], policy: Policy, result: Judgement, countable: Mask
) -> None:
    """Block rows of segments that the policy does not list."""
    segments = columns.values("segment")
    found = unlisted(segments, listed)
    if found is None:
        return

    def explain(rows: list[int]) -> Explanations:
        return repeat("segment"), [jsonable(segments[row]) for row in rows], repeat([*map(jsonable, policy.segments)])

    apply_result(result, BuiltIn(UNLISTED), policy.mode == "enforce", CheckResult(found, None, explain), countable)


def off_key_rows(keys: Keys, columns: Columns, policy: Policy, known: Known) -> Mask | None:
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


def explain_record_keys(keys: Keys | None, columns: Columns, policy: Policy, rows: list[int]) -> Explanations:
    """Say which key each of these records has, and which one it should have."""
    values = columns.values(policy.key.field)
    told = [keys.words(row, policy.key, values[row]) for row in rows] if keys is not None else []
    return repeat("key"), [jsonable(seen) for seen, _ in told], [limit for _, limit in told]


def doubt(
    check: MaxChangeCheck | OutlierCheck, outcome: CheckResult, off: Mask, explain: Callable[[list[int]], Explanations]
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
_POSITIVE_ZERO = "a number that is not negative zero"


def _fields_that_decide(policy: Policy | None) -> frozenset[str | None] | None:
    """The fields in which a number that is not finite blocks: the outputs, and what a check reads, in any mode; None:
    all, also those that nobody reads."""
    if policy is None:
        return frozenset(("value", "outputs"))
    if policy.non_finite == "all":
        return None
    read = (name for check in policy.active_checks() for name in check.reads())
    return frozenset(("value", "outputs", *read))


def _fail_row(result: Judgement, row: int, check: str, field_name: str, seen: Any, limit: Any) -> None:
    """Block one row, as a failure that the breaker counts."""
    block_row(result, row, check, field_name, seen, limit)
    result.approved[row] = False
    result.failed[row] = True


def block_row(result: Judgement, row: int, check: str, field_name: str, seen: Any, limit: Any) -> None:
    """Add the finding that blocks one row; the caller takes its approval away."""
    _add_finding(result, row, check, Severity.ERROR, True, field_name, seen, limit)


def warn_row(result: Judgement, row: int, check: str, field_name: str, seen: Any, limit: Any) -> None:
    """Add a finding that blocks nothing."""
    _add_finding(result, row, check, Severity.WARNING, False, field_name, seen, limit)


def _add_finding(
    result: Judgement, row: int, check: str, severity: Severity, enforced: bool, field_name: str, seen: Any, limit: Any
) -> None:
    found = Found(check, severity, enforced, jsonable(field_name), jsonable(seen), jsonable(limit))
    result.findings.setdefault(row, []).append(found)
    result.counts[check, enforced] += 1


def apply_result(
    result: Judgement, check: Check | BuiltIn, enforced: bool, outcome: CheckResult, countable: Mask
) -> None:
    """Take a check's answers into the judgement; `countable` are the rows that the breaker may count."""
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
