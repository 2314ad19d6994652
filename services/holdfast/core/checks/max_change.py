"""`max_change`: the ratio to the last approved value of the same entity."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from holdfast.core.arrays import Mask, Numbers, jsonable, plain
from holdfast.core.checks.base import CheckResult, Explanations, Number, OneFieldCheck, Rows
from holdfast.core.columns import Columns
from holdfast.core.memory import Known
from holdfast.core.tolerance import above, at_least, at_most, below, in_decimal


class MaxChangeCheck(OneFieldCheck):
    """The ratio to the entity's last approved value stays within `[down, up]`.

    For a negative last value the same ratio holds, so the interval is mirrored. No last value, or zero: unknown.
    `unknown = "auto"` then holds the value against those of the other entities, as `newcomers` says.
    """

    kind: Literal["max_change"]
    down: Annotated[Number, Field(gt=0, le=1)] | None = None
    """0.5: at most halved."""
    up: Annotated[Number, Field(ge=1)] | None = None
    """3.0: at most tripled."""
    unknown: Literal["pass", "fail", "auto"] = "auto"  # type: ignore[assignment]

    @model_validator(mode="after")
    def _has_a_side(self) -> Self:
        if self.down is None and self.up is None:
            raise ValueError("max_change needs down, up or both")
        return self

    def compare(self, values: Numbers, references: Numbers) -> tuple[Mask, Mask]:
        """(n,) failed and unknown."""
        down = self.down if self.down is not None else 0.0
        up = self.up if self.up is not None else math.inf
        with np.errstate(over="ignore", invalid="ignore"):
            lower, upper = references * down, references * up
            outside = below(values, lower) | above(values, upper)
            negative = references < 0
            if negative.any():
                outside = np.where(negative, below(values, upper) | above(values, lower), outside)
        unknown = np.isnan(references) | (references == 0.0) | np.isnan(values)
        return outside & ~unknown, unknown

    def compare_one(self, value: float, reference: float) -> bool | None:
        """Whether one value passes; None: unknown."""
        if reference != reference or reference == 0.0 or value != value:
            return None
        lower = reference * (self.down if self.down is not None else 0.0)
        upper = reference * (self.up if self.up is not None else math.inf)
        if reference < 0:
            lower, upper = upper, lower
        return at_least(value, lower) and at_most(value, upper)

    def keeps(self, failed: Mask, unknown: Mask, enforced: bool) -> Mask:
        """(n,) whether this check lets the row be approved."""
        if not enforced:
            return np.ones(len(failed), dtype=np.bool_)
        return ~(failed | unknown) if self.unknown == "fail" else ~failed

    def limit(self, reference: float | None) -> dict[str, Any] | str:
        if reference is None:
            return "a last approved value to compare with"
        sides = {"last": jsonable(reference)}
        if self.down is not None:
            sides["min" if reference > 0 else "max"] = jsonable(in_decimal(reference * self.down))
        if self.up is not None:
            sides["max" if reference > 0 else "min"] = jsonable(in_decimal(reference * self.up))
        return sides


def judge_changes(
    changes: Sequence[tuple[MaxChangeCheck, bool]],
    columns: Columns,
    known: Known,
    approvable: Mask,
) -> tuple[list[CheckResult], dict[str, Mask]]:
    """Judge all max_change checks of a policy as if row by row: an entity's second value is held against its first.

    Each check comes with whether it would block; `approvable[i]` says whether every other check lets row i pass, those
    in shadow too. A value becomes the reference when it is finite and these checks let it pass too, all of them.
    Returns the outcomes, and for each field the rows to learn from.
    """
    entities = columns.values("entity_id")
    fields = dict.fromkeys(check.field for check, _ in changes)
    values = {name: columns.numbers(name) for name in fields}
    references, failed, unknown = [], [], []
    kept = approvable.copy()
    for check, enforces in changes:
        references.append(known.last(check.field, columns))
        fails, unknowns = check.compare(values[check.field], references[-1])
        failed.append(fails)
        unknown.append(unknowns)
        kept &= check.keeps(fails, unknowns, enforces)
    # An entity's later values are held against its earlier ones: all second values at once, then all third ones.
    newest = {name: known.last(name, columns) for name in fields}
    for rows, previous in _later_values(entities):
        for name, column in values.items():
            known_now = kept[previous] & ~np.isnan(column[previous])
            newest[name][rows] = np.where(known_now, column[previous], newest[name][previous])
        kept[rows] = approvable[rows]
        for position, (check, enforces) in enumerate(changes):
            references[position][rows] = newest[check.field][rows]
            fails, unknowns = check.compare(values[check.field][rows], references[position][rows])
            failed[position][rows], unknown[position][rows] = fails, unknowns
            kept[rows] &= check.keeps(fails, unknowns, enforces)
    outcomes = [
        CheckResult(
            fails,
            unknowns if unknowns.any() else None,
            partial(explain_changes, check, values[check.field], reference),
        )
        for (check, _), fails, unknowns, reference in zip(changes, failed, unknown, references, strict=True)
    ]
    return outcomes, {name: kept & ~np.isnan(column) for name, column in values.items()}


def explain_changes(check: MaxChangeCheck, values: Numbers, references: Numbers, rows: Rows) -> Explanations:
    known = (None if reference != reference else reference for reference in references[rows].tolist())
    return repeat(check.field), plain(values[rows]), map(check.limit, known)


def _later_values(entities: Sequence[str]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The rows that hold some entity's second value, with the rows of the values before; then the third ones; …"""
    if len(set(entities)) == len(entities):
        return
    codes: dict[str, int] = {}
    groups = np.array([codes.setdefault(entity, len(codes)) for entity in entities])
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    # How many values of the same entity come before, in the order of `order`.
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_rank = np.argsort(ranks, kind="stable")
    for places in np.split(by_rank, np.cumsum(np.bincount(ranks))[:-1])[1:]:
        yield order[places], order[places - 1]
