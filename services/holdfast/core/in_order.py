"""The checks that hold a prediction against what was approved before it, record by record.

Whether a record may become part of a reference depends on all checks, and what a record is held against depends on
all records before it. So where a policy has an `outlier`, or a newcomer may be out of reach, the checks of both kinds
step together through the rows. Else `judge_changes` gives the same answers for whole columns at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from holdfast.core.arrays import Mask
from holdfast.core.checks.base import CheckResult, Explanations, Rows
from holdfast.core.checks.max_change import MaxChangeCheck, explain_changes
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.columns import Columns
from holdfast.core.memory import Known
from holdfast.core.newcomers import ENOUGH, Span
from holdfast.core.recent import Draft, Segments


@dataclass(slots=True)
class InOrder:
    """The answers by check, in the order of `changes` and then of `outliers`; and what is to be learnt."""

    changes: list[CheckResult]
    outliers: list[CheckResult]
    last: dict[str, Mask]
    recent: dict[str, Segments]
    unremembered: list[int]
    """Approved rows whose value an outlier check does not remember: there are too many segments."""


@dataclass(slots=True, eq=False)
class _Change:
    """A max_change check at work; `newest` are the values of this batch by entity, shared by the checks of a field."""

    check: MaxChangeCheck
    blocks: bool
    values: list[float]
    references: list[float]
    newest: dict[str, float]
    spans: dict[str, Span]
    failed: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    doubtful: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Outlier:
    """An outlier check at work; `centre` and `spread` are of the rows that it could not let pass."""

    check: OutlierCheck
    blocks: bool
    values: list[float]
    draft: Draft
    failed: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    reference: dict[int, tuple[float, float]] = field(default_factory=dict)


def are_doubtful(
    changes: Sequence[tuple[MaxChangeCheck, bool]], outcomes: Sequence[CheckResult], columns: Columns, known: Known
) -> bool:
    """Whether a row without a reference may be out of reach of the other entities, under `unknown = "auto"`."""
    for (check, _), outcome in zip(changes, outcomes, strict=True):
        if check.unknown == "auto" and outcome.unknown is not None:
            span = known.span(check.field)
            if span.entities < ENOUGH:
                return True
            low, high = span.reach()
            values = columns.numbers(check.field)
            if (outcome.unknown & ((values < low) | (values > high))).any():
                return True
    return False


def judge_in_order(
    changes: Sequence[tuple[MaxChangeCheck, bool]],
    outliers: Sequence[tuple[OutlierCheck, bool]],
    columns: Columns,
    known: Known,
    recent: Mapping[str, Segments],
    windows: Mapping[str, int],
    approvable: Mask,
    listed: frozenset[str] | None = None,
) -> InOrder:
    """Judge row by row. Each check comes with whether it would block; `approvable[i]`: every other one lets row i pass.

    `listed` are the segments whose values are remembered; None: any. `recent` and `windows`, by field: the recent
    values so far, and how many of them are kept.
    """
    size = len(columns)
    newest: dict[str, dict[str, float]] = {check.field: {} for check, _ in changes}
    drafts = {check.field: Draft(recent.get(check.field, Segments()), windows[check.field]) for check, _ in outliers}
    numbers = {name: columns.numbers(name).tolist() for name in {*newest, *drafts}}
    spans = {name: known.span(name) for name in newest}
    stored = {name: known.last(name, columns).tolist() for name in newest}
    remembered = {name: known.remembered(name, columns).tolist() for name in newest}
    changing = [
        _Change(check, blocks, numbers[check.field], stored[check.field].copy(), newest[check.field], spans)
        for check, blocks in changes
    ]
    outlying = [_Outlier(check, blocks, numbers[check.field], drafts[check.field]) for check, blocks in outliers]
    entities: Sequence[str] = columns.values("entity_id") if changes else ()
    segments: Sequence[str | None] = columns.values("segment") if outliers else ()
    learnt: dict[str, list[int]] = {name: [] for name in newest}
    unremembered: dict[int, None] = {}
    for row, keeps in enumerate(approvable.tolist()):
        for change in changing:
            keeps &= _passes_change(change, row, entities[row])
        for outlier in outlying:
            keeps &= _passes_outlier(outlier, row, segments[row])
        if keeps:
            for name, of_field in newest.items():
                value = numbers[name][row]
                if value == value:
                    entity = entities[row]
                    before = remembered[name][row]
                    is_new = entity not in of_field and before != before
                    spans[name] = spans[name].with_value(value, is_new=is_new)
                    of_field[entity] = value
                    learnt[name].append(row)
            if listed is not None and drafts and segments[row] not in listed:
                continue
            for name, draft in drafts.items():
                value = numbers[name][row]
                if value == value and not draft.push(segments[row], value):
                    unremembered[row] = None
    return InOrder(
        [
            CheckResult(
                _mask(change.failed, size),
                _mask(change.unknown, size) if change.unknown else None,
                partial(_explain_changes, change),
                _mask([*change.doubtful], size) if change.doubtful else None,
            )
            for change in changing
        ],
        [
            CheckResult(
                _mask(outlier.failed, size),
                _mask(outlier.unknown, size) if outlier.unknown else None,
                partial(_explain_outliers, outlier),
            )
            for outlier in outlying
        ],
        {name: _mask(rows, size) for name, rows in learnt.items()},
        {name: draft.segments for name, draft in drafts.items()},
        [*unremembered],
    )


def _passes_change(change: _Change, row: int, entity: str) -> bool:
    """Enter the answer for one row; whether the check lets it be approved."""
    reference = change.newest.get(entity)
    if reference is None:
        reference = change.references[row]
    else:
        change.references[row] = reference
    passed = change.check.compare_one(change.values[row], reference)
    if passed:
        return True
    if passed is None:
        change.unknown.append(row)
        if change.check.unknown != "auto":
            return not change.blocks or change.check.unknown == "pass"
        value, span = change.values[row], change.spans[change.check.field]
        low, high = span.reach()
        # An absent value passes.
        if value < low or value > high:
            change.doubtful[row] = span.words()
            return not change.blocks
        return True
    change.failed.append(row)
    return not change.blocks


def _explain_changes(change: _Change, rows: Rows) -> Explanations:
    fields, seen, limits = explain_changes(change.check, np.array(change.values), np.array(change.references), rows)
    return fields, seen, [change.doubtful.get(row, limit) for row, limit in zip(rows, limits, strict=True)]


def _passes_outlier(outlier: _Outlier, row: int, segment: str | None) -> bool:
    """Enter the answer for one row; whether the check lets it be approved."""
    check, value, segments = outlier.check, outlier.values[row], outlier.draft.segments
    answers: list[bool | None] = []
    # One segment, or each listed one for a segment that is not listed.
    for one in check.held_against(segment):
        recent = segments.get(one)
        count, centre, spread = recent.reference(check.view) if recent is not None else (0, np.nan, np.nan)
        answers.append(check.compare_one(value, count, centre, spread))
        if not answers[-1] and (row not in outlier.reference or answers[-1] is False):
            outlier.reference[row] = (centre, spread) if count >= check.min_values else (np.nan, np.nan)
        if answers[-1] is False:
            outlier.failed.append(row)
            return not outlier.blocks
    if None not in answers:
        return True
    outlier.unknown.append(row)
    return not outlier.blocks or check.unknown == "pass"


def _explain_outliers(outlier: _Outlier, rows: Rows) -> Explanations:
    seen: list[Any] = [None if (value := outlier.values[row]) != value else value for row in rows]
    limits = [outlier.check.limit(*outlier.reference[row]) for row in rows]
    return repeat(outlier.check.field), seen, limits


def _mask(rows: Sequence[int], size: int) -> Mask:
    mask = np.zeros(size, dtype=np.bool_)
    mask[list(rows)] = True
    return mask
