"""`range`: bounds for all, by segment, by entity and by currency."""

from collections.abc import Sequence
from datetime import datetime
from itertools import islice, repeat
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from holdfast.core.arrays import Mask, Numbers, jsonable, plain
from holdfast.core.checks.base import CheckResult, Explanations, Number, OneFieldCheck, Rows, Unknown
from holdfast.core.columns import Columns
from holdfast.core.memory import Memory, Table
from holdfast.core.tolerance import above, below


class Bounds(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class RangeCheck(OneFieldCheck):
    """`min <= field <= max`: the entity's own bounds from `table`, else its segment's, else the global ones.

    A side that the more special bounds leave open is taken from the more general ones. A bound is a number in one
    currency: where the policy names it, a prediction in a currency without bounds fails, and one without a currency is
    unknown.
    """

    kind: Literal["range"]
    min: Number | None = None
    max: Number | None = None
    segment: dict[str, Bounds] = {}
    table: str | None = None
    """A CSV or Parquet file with the columns entity_id, min, max, relative to the policy file."""
    unlisted: Unknown = "pass"
    """What it means that an entity is not in the table and no other bound holds for it."""
    in_currency: str | None = None
    """The currency of all these bounds."""
    currency: dict[str, Bounds] = {}
    """The bounds in other currencies, which hold for all segments and entities."""
    _table: Table | None = PrivateAttr(default=None)
    _segments: dict[str | None, int] = PrivateAttr(default_factory=dict)
    # The row of the bounds of a segment that has none of its own.
    _other_segments: int = PrivateAttr(default=0)
    _currencies: dict[str | None, int] = PrivateAttr(default_factory=dict)
    _low: Numbers = PrivateAttr()
    _high: Numbers = PrivateAttr()

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        Bounds(min=self.min, max=self.max)
        general = self.min is not None or self.max is not None or bool(self.segment) or self.table is not None
        if not general and not self.currency:
            raise ValueError("a range needs min, max, segment bounds, bounds by currency or a table")
        if self.currency and general and self.in_currency is None:
            raise ValueError("bounds by currency stand beside others; say in_currency, the currency of those")
        if self.in_currency is not None and (not general or self.in_currency in self.currency):
            raise ValueError(f"in_currency {self.in_currency!r} is the currency of min, max, segment and table alone")
        for name, bounds in self.segment.items():
            _merged(self, bounds, f"segment {name!r}")
        return self

    def model_post_init(self, context: Any) -> None:
        # Row 0 of the bounds is the global one.
        rows = [(self.min, self.max)]
        for position, (name, bounds) in enumerate(self.segment.items(), start=1):
            self._segments[name] = position
            rows.append(
                (
                    bounds.min if bounds.min is not None else self.min,
                    bounds.max if bounds.max is not None else self.max,
                )
            )
        # Then the rows by currency; -1 stands for no currency, and -2 for a currency without bounds.
        if self.in_currency is not None:
            self._currencies[self.in_currency] = 0
        for name, bounds in self.currency.items():
            self._currencies[name] = len(rows)
            rows.append((bounds.min, bounds.max))
        table = np.array(rows, dtype=np.float64)
        self._low, self._high = table[:, 0].copy(), table[:, 1].copy()

    @property
    def table_rows(self) -> int | None:
        """How many entities its table lists; None: it has no table."""
        return len(self._table.index) if self._table is not None else None

    def with_table(self, table: Table) -> Self:
        """The same check with the rows of its table."""
        copy = self.model_copy()
        copy._table = table
        return copy

    def with_segments(self, segments: Sequence[str]) -> Self:
        """The same check that judges a segment not among these by the strictest bounds of all of them."""
        if not self.segment:
            return self
        copy = self.model_copy()
        rows = [self._segments.get(name, 0) for name in segments]
        strictest = np.fmax.reduce(self._low[rows]), np.fmin.reduce(self._high[rows])
        copy._segments = dict(zip(segments, rows, strict=True))
        copy._other_segments = len(self._low)
        copy._low, copy._high = np.append(self._low, strictest[0]), np.append(self._high, strictest[1])
        return copy

    def texts(self) -> tuple[str, ...]:
        segment = ("segment",) if self.segment else ()
        return (*segment, "currency") if self._currencies else segment

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
        seen = columns.numbers(self.field)
        low: Any = self._low[0]
        high: Any = self._high[0]
        if self._segments:
            found = map(self._segments.get, columns.values("segment"), repeat(self._other_segments))
            rows = np.fromiter(found, dtype=np.intp, count=len(columns))
            low, high = self._low[rows], self._high[rows]
        unlisted: Mask | None = None
        if self._table is not None:
            at = memory.of(model).rows_in(self._table, columns)
            own_low, own_high = self._table.low[at], self._table.high[at]
            missing = at < 0
            low = np.where(missing | np.isnan(own_low), low, own_low)
            high = np.where(missing | np.isnan(own_high), high, own_high)
            unlisted = missing & np.isnan(low) & np.isnan(high)
        refused: Mask | None = None
        unknown = np.isnan(seen)
        if self._currencies:
            names = columns.values("currency")
            codes = np.fromiter(map(self._currencies.get, names, repeat(-2)), dtype=np.intp, count=len(names))
            if None in names:
                codes[[row for row, name in enumerate(names) if name is None]] = -1
            own = codes > 0
            if own.any():
                low = np.where(own, self._low[codes], low)
                high = np.where(own, self._high[codes], high)
                unlisted = None if unlisted is None else unlisted & ~own
            refused = codes == -2
            unknown |= codes == -1
        # An open side is NaN and never violated; an absent value is NaN and unknown.
        failed = below(seen, low) | above(seen, high)
        if unlisted is not None and self.unlisted == "fail":
            failed |= unlisted
        lows, highs = np.broadcast_to(low, seen.shape), np.broadcast_to(high, seen.shape)

        def explain(rows: Rows) -> Explanations:
            explained = self._explain(seen[rows], lows[rows], highs[rows])
            return explained if refused is None else self._name_currencies(rows, codes, names, explained)

        if refused is not None:
            failed |= refused
            unknown &= ~refused
        return CheckResult(failed, unknown, explain)

    def _name_currencies(
        self, rows: Rows, codes: NDArray[np.intp], names: Sequence[str | None], explained: Explanations
    ) -> Explanations:
        """The same explanations, but of rows whose currency has no bounds, or that have none."""
        fields, seen, limits = (list(islice(column, len(rows))) for column in explained)
        for place, row in enumerate(rows):
            if codes[row] < 0:
                fields[place], seen[place] = "currency", jsonable(names[row])
                limits[place] = [jsonable(name) for name in self._currencies]
        return fields, seen, limits

    def _explain(self, seen: Numbers, lows: Numbers, highs: Numbers) -> Explanations:
        bounds = [*zip(plain(lows), plain(highs), strict=True)]
        limits = {pair: _limit(*pair) for pair in set(bounds)}
        return repeat(self.field), plain(seen), map(limits.__getitem__, bounds)


def _limit(low: Any, high: Any) -> dict[str, Any] | str:
    """None: open on that side."""
    sides = {name: side for name, side in (("min", low), ("max", high)) if side is not None}
    return sides or "a row in the table"


def _merged(check: RangeCheck, bounds: Bounds, where: str) -> None:
    low = bounds.min if bounds.min is not None else check.min
    high = bounds.max if bounds.max is not None else check.max
    if low is not None and high is not None and low > high:
        raise ValueError(f"for {where} min {low:g} is above max {high:g}")
