"""The kinds of check. Each is a frozen value from the policy file that judges a whole batch at once.

A check answers for each prediction pass, fail or *unknown* (not enough to tell); `unknown` in the policy says
whether that counts as a failure. Bounds are inclusive: a value at its limit passes, where the two are compared as
`tolerance` says. NaN stands for an absent number, and every comparison is written so that NaN never passes.
"""

import ast
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice, repeat
from typing import Annotated, Any, Literal, Protocol, Self
from weakref import WeakKeyDictionary

import numexpr
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, field_validator, model_validator

from holdfast.core.condemned import BLOCKING
from holdfast.core.decode import Columns, field_names_hint, is_field, is_number_field
from holdfast.core.duration import Duration, format_duration
from holdfast.core.entity_key import LONG, EntityKey, entity_key
from holdfast.core.newcomers import Span
from holdfast.core.recent import Segments, View
from holdfast.core.tolerance import RELATIVE, above, at_least, at_most, below, in_decimal
from holdfast_schemas import Severity

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Mode = Literal["enforce", "shadow", "off"]
Unknown = Literal["pass", "fail"]
Number = Annotated[float, Field(strict=True)]
"""As TOML writes numbers: `"1.5"` and `true` are none."""

MAX_TEXT = 500
"""Characters of one text in a finding."""

# One thread: batches are small, and the other cores belong to the other partitions.
numexpr.set_num_threads(1)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Table:
    """Bounds per entity: row i holds for the entity that `index` maps to i. NaN: no bound on that side."""

    index: Mapping[str, int]
    low: Numbers
    high: Numbers


class Entities:
    """What is known of one model's entities: each has a slot, and is found once for each prediction.

    All arrays have one element more than there are slots: it belongs to the slot -1 of whoever is not known.
    """

    def __init__(self) -> None:
        self._slots: dict[EntityKey, int] = {}
        self._names: list[EntityKey] = []
        # How many of them are known by a hash.
        self._hashed = 0
        self._last: dict[str, Numbers] = {}
        self._spans: dict[str, Span] = {}
        self._learned = np.zeros(1, dtype=np.int64)
        self._turn = 0
        self._free: list[int] = []
        self._rows: WeakKeyDictionary[Table, NDArray[np.int32]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, columns: Columns) -> NDArray[np.intp]:
        """(n,) the slot of each row's entity; -1: not known."""
        entities = columns.values("entity_id")
        slots: NDArray[np.intp] = columns.once("slots", lambda: self._find(entities))
        return slots

    def _find(self, entities: Sequence[str]) -> NDArray[np.intp]:
        find = self._slots.get
        slots = np.fromiter(map(find, entities, repeat(-1)), dtype=np.intp, count=len(entities))
        if self._hashed:
            for row in np.flatnonzero(slots < 0).tolist():
                if len(entities[row]) > LONG:
                    slots[row] = find(entity_key(entities[row]), -1)
        return slots

    def last(self, field: str, columns: Columns) -> Numbers:
        """(n,) the last approved value of each row's entity; NaN: none."""
        slots = self.find(columns)
        known = self._last.get(field)
        return np.full(len(slots), np.nan) if known is None else known[slots]

    remembered = last

    def span(self, field: str) -> Span:
        """The values of one field that were approved so far."""
        return self._spans.get(field) or Span()

    def rows_in(self, table: Table, columns: Columns) -> NDArray[np.int32]:
        """(n,) the row of each row's entity in `table`; -1: it has none."""
        slots, entities, find = self.find(columns), columns.values("entity_id"), table.index.get
        if table not in self._rows:
            by_hash = {entity_key(name): row for name, row in table.index.items() if len(name) > LONG}
            self._rows[table] = np.full(len(self._learned), -1, dtype=np.int32)
            self._rows[table][: len(self._names)] = [
                find(name, -1) if isinstance(name, str) else by_hash.get(name, -1) for name in self._names
            ]
        rows: NDArray[np.int32] = self._rows[table][slots]
        for row in np.flatnonzero(slots < 0).tolist():
            rows[row] = find(entities[row], -1)
        return rows

    def learn(self, field: str, columns: Columns, rows: Mask) -> None:
        """Take in the values of `rows`, a (n,) mask; of an entity's values the last one stays."""
        slots, values, entities = self.find(columns), columns.numbers(field), columns.values("entity_id")
        new = np.flatnonzero(rows & (slots < 0))
        if len(new):
            slots = slots.copy()
            names = [entities[row] for row in new.tolist()]
            slots[new] = [self._slot_of(name) for name in names]
            for table, own in self._rows.items():
                own[slots[new]] = [table.index.get(name, -1) for name in names]
        if field not in self._last:
            self._last[field] = np.full(len(self._learned), np.nan)
        self._turn += 1
        slots, values = slots[rows], values[rows]
        if len(slots):
            last = self._last[field]
            fresh = np.isnan(last[slots])
            newcomers = len(set(slots[fresh].tolist())) if fresh.any() else 0
            self._spans[field] = self.span(field).with_values(newcomers, values)
            last[slots] = values
            self._learned[slots] = self._turn

    def _slot_of(self, entity: str) -> int:
        name = entity if len(entity) <= LONG else entity_key(entity)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._names)
            if slot == len(self._names):
                self._names.append(name)
                if slot + 1 == len(self._learned):
                    self._grow()
            else:
                self._names[slot] = name
            self._slots[name] = slot
            self._hashed += name is not entity
        return slot

    def _grow(self) -> None:
        more = max(1000, len(self._learned) // 2)
        self._learned = np.append(self._learned, np.zeros(more, dtype=np.int64))
        for name, last in self._last.items():
            self._last[name] = np.append(last, np.full(more, np.nan))
        for table, rows in self._rows.items():
            self._rows[table] = np.append(rows, np.full(more, -1, dtype=np.int32))

    def forget(self, limit: int) -> None:
        """Beyond `limit` entities, forget those approved least recently, and a few more at once."""
        if len(self._slots) > limit:
            self.keep(limit - limit // 100)

    def keep(self, limit: int) -> None:
        """Forget those approved least recently, until no more than `limit` are left."""
        if len(self._slots) <= limit:
            return
        names = self._names
        taken = np.fromiter(self._slots.values(), dtype=np.intp, count=len(self._slots))
        order = np.argsort(self._learned[taken], kind="stable")
        gone = taken[order[: len(taken) - limit]]
        for slot in gone.tolist():
            del self._slots[names[slot]]
            self._hashed -= isinstance(names[slot], bytes)
            names[slot] = ""
        self._free += gone.tolist()
        for last in self._last.values():
            last[gone] = np.nan

    def items(self, field: str) -> dict[EntityKey, float]:
        """The last approved values of one field, by what stands for the entity."""
        last = self._last.get(field)
        if last is None:
            return {}
        return {entity: float(last[slot]) for entity, slot in self._slots.items() if last[slot] == last[slot]}


def fair_level(sizes: Sequence[int], room: int) -> int:
    """How many each may keep, so that all together keep no more than `room`: who has fewer than that loses none.

    A producer that invents entities of one model pushes out only entities of the model that has most.
    """
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > room:
            return max(0, room) // left
        room -= size
        left -= 1
    return max(sizes, default=0)


@dataclass(slots=True)
class Memory:
    """What was approved before, for one partition. Only approved values enter.

    `entities[model]` has the last approved values, `recent[model, field]` those of the segments. `used` are the ids of
    the references that an approved output was held against.
    """

    entities: dict[str, Entities] = field(default_factory=dict)
    recent: dict[tuple[str, str], Segments] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        """How many entities are remembered."""
        return sum(map(len, self.entities.values()))

    def forget(self, limit: int) -> None:
        """Beyond `limit` entities of all models, forget some of the models that have most, and a few more at once."""
        sizes = [len(of_model) for of_model in self.entities.values()]
        if sum(sizes) > limit:
            level = fair_level(sizes, limit - limit // 100)
            for of_model in self.entities.values():
                of_model.keep(level)

    def of(self, model: str) -> Entities:
        """What is known of the model's entities, be it nothing."""
        return self.entities.get(model) or _NOBODY


_NOBODY = Entities()


class Known(Protocol):
    """What an entity's outputs are held against."""

    def last(self, field: str, columns: Columns) -> Numbers:
        """(n,) the value for each row's entity; NaN: none."""

    def remembered(self, field: str, columns: Columns) -> Numbers:
        """(n,) the last approved value of each row's entity; NaN: none."""

    def span(self, field: str) -> Span:
        """The values of one field that were approved so far."""


Rows = list[int]
Explanations = tuple[Iterable[str | None], Iterable[Any], Iterable[Any]]
"""Columns, as JSON can hold them: field, seen, limit. What is the same in all rows may be repeated without end."""


@dataclass(slots=True)
class Outcome:
    """A check's answer for n predictions: (n,) masks, and what to say about each of some rows that failed.

    `doubtful` are the unknown rows that fail under `unknown = "auto"`.
    """

    failed: Mask
    unknown: Mask | None
    explain: Callable[[Rows], Explanations]
    doubtful: Mask | None = None


class Check(BaseModel):
    """What every kind has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    kind: str
    mode: Mode = "enforce"
    severity: Severity = Severity.ERROR
    unknown: Unknown = "fail"
    unit: str | None = None

    def numbers(self) -> tuple[str, ...]:
        """The fields that must decode as numbers."""
        return ()

    def texts(self) -> tuple[str, ...]:
        """The fields that must decode as text."""
        return ()

    def anything(self) -> tuple[str, ...]:
        """The fields whose type is up to the producer."""
        return ()

    def reads(self) -> tuple[str, ...]:
        """All fields that it reads."""
        return (*self.numbers(), *self.texts(), *self.anything())

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
        """Judge a batch; the checks that hold a record against those before it are run by `judge` in another way."""
        raise NotImplementedError

    @property
    def blocks(self) -> bool:
        return self.mode == "enforce" and self.would_block

    @property
    def would_block(self) -> bool:
        """Whether a failure blocks where the check is enforced."""
        return self.severity in BLOCKING


def _known_field(name: str) -> str:
    if not is_field(name):
        raise ValueError(f"there is no field {name!r}; the fields are {field_names_hint()}")
    return name


class _OneField(Check):
    field: str = "value"

    @field_validator("field")
    @classmethod
    def _field_is_a_number(cls, name: str) -> str:
        if not is_number_field(_known_field(name)):
            raise ValueError(f"the field {name!r} is no number; value, outputs.<name> and features.<name> are")
        return name

    def numbers(self) -> tuple[str, ...]:
        return (self.field,)


class Bounds(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class RangeCheck(_OneField):
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
        # Those by currency follow; -1 is no currency, and -2 one without bounds.
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

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
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
        return Outcome(failed, unknown, explain)

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
        bounds = [*zip(_plain(lows), _plain(highs), strict=True)]
        limits = {pair: _limit(*pair) for pair in set(bounds)}
        return repeat(self.field), _plain(seen), map(limits.__getitem__, bounds)


def _limit(low: Any, high: Any) -> dict[str, Any] | str:
    """None: open on that side."""
    sides = {name: side for name, side in (("min", low), ("max", high)) if side is not None}
    return sides or "a row in the table"


def _merged(check: RangeCheck, bounds: Bounds, where: str) -> None:
    low = bounds.min if bounds.min is not None else check.min
    high = bounds.max if bounds.max is not None else check.max
    if low is not None and high is not None and low > high:
        raise ValueError(f"for {where} min {low:g} is above max {high:g}")


class MaxChangeCheck(_OneField):
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
) -> tuple[list[Outcome], dict[str, Mask]]:
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
        Outcome(
            fails,
            unknowns if unknowns.any() else None,
            partial(explain_changes, check, values[check.field], reference),
        )
        for (check, _), fails, unknowns, reference in zip(changes, failed, unknown, references, strict=True)
    ]
    return outcomes, {name: kept & ~np.isnan(column) for name, column in values.items()}


def explain_changes(check: MaxChangeCheck, values: Numbers, references: Numbers, rows: Rows) -> Explanations:
    known = (None if reference != reference else reference for reference in references[rows].tolist())
    return repeat(check.field), _plain(values[rows]), map(check.limit, known)


class ExpressionCheck(Check):
    """A numeric condition over `value`, `outputs.<name>` and features (by bare name), evaluated by numexpr."""

    kind: Literal["expression"]
    expression: str
    _compiled: Any = PrivateAttr()
    _names: tuple[str, ...] = PrivateAttr()

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        self._names, self._compiled = _compile_expression(self.expression)
        return self

    def numbers(self) -> tuple[str, ...]:
        return self._names

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
        names, limit = self._names, jsonable(self.expression)
        inputs = [columns.numbers(name) for name in names]
        passed: Mask = np.asarray(self._compiled(*inputs), dtype=np.bool_)
        unknown = np.isnan(inputs[0])
        for column in inputs[1:]:
            unknown |= np.isnan(column)
        field = names[0] if len(names) == 1 else None

        def explain(rows: Rows) -> Explanations:
            seen = zip(*(_plain(column[rows]) for column in inputs), strict=True)
            return repeat(field), [dict(zip(names, one, strict=True)) for one in seen], repeat(limit)

        return Outcome(~passed, unknown, explain)


_LONGEST_EXPRESSION = 2000
_LONGEST_COMPARISON = 20_000
_FUNCTIONS = frozenset(
    [
        "abs",
        "arccos",
        "arcsin",
        "arctan",
        "arctan2",
        "ceil",
        "cos",
        "cosh",
        "exp",
        "expm1",
        "floor",
        "log",
        "log10",
        "log1p",
        "sin",
        "sinh",
        "sqrt",
        "tan",
        "tanh",
        "where",
    ]
)


class _ToNumexpr(ast.NodeTransformer):
    """Python's `and`, `or`, `not` and chained comparisons, in numexpr's terms.

    A comparison also demands that what it compares is finite: NaN and infinity made on the way (0/0, log of a
    negative, an overflow) must not pass through a `!=` or a `not`.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.computed: list[ast.expr] = []

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        parts: list[ast.expr] = [self.visit(value) for value in node.values]
        result = parts[0]
        for part in parts[1:]:
            result = ast.BinOp(result, operator, part)
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.visit(node.operand)
        return ast.UnaryOp(ast.Invert() if isinstance(node.op, ast.Not) else node.op, operand)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        sides: list[ast.expr] = [self.visit(side) for side in (node.left, *node.comparators)]
        self.computed += [side for side in sides if not isinstance(side, ast.Name | ast.Constant)]
        result: ast.expr | None = None
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if not isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.Eq | ast.NotEq):
                raise ValueError(f"{ast.unparse(node)!r} is not a numeric comparison")
            link = _link(left, op, right)
            result = link if result is None else ast.BinOp(result, ast.BitAnd(), link)
        assert result is not None  # noqa: S101  a comparison has at least two sides
        return result

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._name(ast.unparse(node))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._name(node.id if node.id == "value" else f"features.{node.id}")

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise ValueError(
                f"{ast.unparse(node.func)!r} is no function here; there are {', '.join(sorted(_FUNCTIONS))}"
            )
        return ast.Call(node.func, [self.visit(argument) for argument in node.args], [])

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ValueError(f"{ast.unparse(node)} is not a number")
        try:
            return ast.Constant(float(node.value))
        except OverflowError:
            raise ValueError(f"{ast.unparse(node)} is larger than any number here") from None

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.Expression | ast.BinOp | ast.operator | ast.unaryop):
            raise ValueError(f"{ast.unparse(node)!r} is not a numeric expression")
        return super().generic_visit(node)

    def _name(self, field: str) -> ast.Name:
        if field != "value" and (field.count(".") != 1 or not field.startswith(("outputs.", "features."))):
            raise ValueError(f"there is no number {field!r}; there are value, outputs.<name> and feature names")
        return ast.Name(self.names.setdefault(field, f"x{len(self.names)}"))


def _link(left: ast.expr, op: ast.cmpop, right: ast.expr) -> ast.expr:
    """One comparison, in which two numbers that differ by a billionth are equal: `<=` and `>=` hold for them, `<`, `>`
    and `!=` do not."""
    a, b = ast.unparse(left), ast.unparse(right)
    if len(a) + len(b) > _LONGEST_COMPARISON:
        # Each side is written several times, and so are comparisons within it.
        raise ValueError("comparisons are nested too deeply")
    # Half of each: their sum might be too large for a double.
    near = f"({RELATIVE / 2} * abs({a}) + {RELATIVE / 2} * abs({b}))"
    less, more = f"(({a}) - ({b}) < -{near})", f"(({a}) - ({b}) > {near})"
    texts = {
        ast.Lt: less,
        ast.Gt: more,
        ast.LtE: f"(({a}) - ({b}) <= {near})",
        ast.GtE: f"(({a}) - ({b}) >= -{near})",
        ast.Eq: f"(abs(({a}) - ({b})) <= {near})",
        ast.NotEq: f"({less} | {more})",
    }
    return ast.parse(texts[type(op)], mode="eval").body


def _compile_expression(text: str) -> tuple[tuple[str, ...], Any]:
    if len(text) > _LONGEST_EXPRESSION:
        raise ValueError(f"the expression has {len(text)} characters; at most {_LONGEST_EXPRESSION} are allowed")
    translate = _ToNumexpr()
    try:
        # What Python only warns of, such as `1if`, it will refuse one day.
        with warnings.catch_warnings(action="error", category=SyntaxWarning):
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is not an expression: {getattr(error, 'msg', error)}") from None
    try:
        condition = ast.unparse(translate.visit(tree))
    except RecursionError:
        raise ValueError(f"{text!r} is nested too deeply") from None
    if not translate.names:
        raise ValueError(f"{text!r} reads no field, so it says nothing about a prediction")
    for side in translate.computed:
        condition = f"({condition}) & ((({ast.unparse(side)}) * 0.0) == 0.0)"
    try:
        compiled = numexpr.NumExpr(condition, [(name, np.float64) for name in translate.names.values()])
        kind = compiled(*(np.ones(1) for _ in translate.names)).dtype
    except Exception as error:  # numexpr raises whatever its own parser raised
        raise ValueError(f"{text!r} cannot be evaluated: {error}") from None
    if kind != np.bool_:
        raise ValueError(f"{text!r} is a number, not a condition: compare it with something")
    return tuple(translate.names), compiled


class OneOfCheck(Check):
    """The field has one of the listed values."""

    kind: Literal["one_of"]
    field: str
    values: Annotated[list[str | StrictBool | float], Field(min_length=1)]
    _allowed: frozenset[Any] = PrivateAttr()
    _pairs: frozenset[tuple[bool, Any]] = PrivateAttr()

    @field_validator("field")
    @classmethod
    def _field_exists(cls, name: str) -> str:
        return _known_field(name)

    def model_post_init(self, context: Any) -> None:
        self._allowed = frozenset(self.values)
        # Python holds True equal to 1.
        self._pairs = frozenset((type(value) is bool, value) for value in self.values)

    def anything(self) -> tuple[str, ...]:
        return (self.field,)

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
        seen = columns.values(self.field)
        if _TEXTS.issuperset(map(type, seen)):
            wrong = set(seen) - self._allowed
            failed = [i for i, v in enumerate(seen) if v in wrong] if wrong else []
        else:
            pairs = self._pairs
            failed = [i for i, v in enumerate(seen) if isinstance(v, list | dict) or (type(v) is bool, v) not in pairs]
        unknown = _mask([i for i, v in enumerate(seen) if v is None], len(seen)) if None in seen else None
        return Outcome(
            _mask(failed, len(seen)),
            unknown,
            lambda rows: (repeat(self.field), [jsonable(_flat(seen[i])) for i in rows], repeat(jsonable(self.values))),
        )


_TEXTS = frozenset((str, type(None)))


def _flat(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict) else value


class FreshnessCheck(Check):
    """`predicted_at` lies at most `max_age` before now, and at most `max_ahead` after it.

    A prediction that was fresh when it arrived and grew old while it waited for a guard is blocked too, but that is
    not its version's fault: it does not count for the breaker.
    """

    kind: Literal["freshness"]
    max_age: Duration
    max_ahead: Duration = timedelta(seconds=5)

    def texts(self) -> tuple[str, ...]:
        return ("predicted_at",)

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
        seen: list[datetime | None] = columns.values("predicted_at")
        oldest, newest = now - self.max_age, now + self.max_ahead
        unknown = None
        given: Sequence[datetime] = seen  # type: ignore[assignment]
        if None in seen:
            unknown = _mask([i for i, at in enumerate(seen) if at is None], len(seen))
            given = [at for at in seen if at is not None]
        if given and oldest <= min(given) and max(given) <= newest:
            failed = _none(len(seen))
        else:
            failed = _mask([i for i, at in enumerate(seen) if at is not None and not oldest <= at <= newest], len(seen))
        return Outcome(
            failed,
            unknown,
            lambda rows: (repeat("predicted_at"), [_age(seen[i], now) for i in rows], repeat(self._limit())),
        )

    def grew_old_here(self, columns: Columns, failed: Mask, arrived: Numbers, now: datetime) -> Mask:
        """(n,) the rows of `failed` that are too old now, and were not when they arrived.

        `arrived` are Unix milliseconds by Kafka's timestamp; one that is negative or in the future says nothing.
        """
        seen, now_ms = columns.values("predicted_at"), now.timestamp() * 1000
        oldest, max_age_ms = now - self.max_age, self.max_age.total_seconds() * 1000
        rows: Rows = []
        for row in np.flatnonzero(failed).tolist():
            at, arrived_ms = seen[row], float(arrived[row])
            if at is not None and at < oldest and 0 <= arrived_ms < now_ms:
                age_ms = arrived_ms - at.timestamp() * 1000
                if age_ms <= max_age_ms:
                    rows.append(row)
        return _mask(rows, len(seen))

    def _limit(self) -> dict[str, str]:
        return {"max_age": format_duration(self.max_age), "max_ahead": format_duration(self.max_ahead)}


def _age(at: datetime | None, now: datetime) -> str | None:
    if at is None:
        return None
    seconds = (now - at).total_seconds()
    return f"{abs(seconds):.3f}s {'old' if seconds >= 0 else 'ahead'}"


class SimplexCheck(Check):
    """A probability vector: each part within [0, 1] and all together 1, both within `tolerance`.

    `field` is an output that is a list of numbers, or `outputs`: then the parts are all the single outputs.
    """

    kind: Literal["simplex"]
    field: str
    tolerance: Annotated[Number, Field(ge=0, lt=1)] = 1e-6
    length: Annotated[int, Field(strict=True, ge=1)] | None = None
    """How many parts there must be, where it is known."""

    @field_validator("field")
    @classmethod
    def _is_an_output(cls, name: str) -> str:
        if name != "outputs" and not (name.startswith("outputs.") and len(name) > len("outputs.")):
            raise ValueError(f"{name!r} is not an output; write outputs.<name>, or outputs for all of them")
        return name

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
        vectors = [_vector(value) for value in columns.values(self.field)]
        tolerance = self.tolerance
        low, high, lightest = -tolerance, 1 + tolerance, 1 - tolerance
        failed = [
            i
            for i, parts in enumerate(vectors)
            if parts is not None
            and not (
                parts
                and (self.length is None or len(parts) == self.length)
                and at_least(min(parts), low)
                and at_most(max(parts), high)
                and at_least(total := math.fsum(parts), lightest)
                and at_most(total, high)
            )
        ]
        unknown = [i for i, parts in enumerate(vectors) if parts is None]
        return Outcome(
            _mask(failed, len(vectors)),
            _mask(unknown, len(vectors)) if unknown else None,
            lambda rows: (
                repeat(self.field),
                [_seen_vector(vectors[i]) for i in rows],
                repeat({"sum": 1, "tolerance": self.tolerance}),
            ),
        )


def _vector(value: Any) -> list[float] | None:
    if isinstance(value, dict):
        value = [part for part in value.values() if isinstance(part, int | float)]
    return value if isinstance(value, list) else None


def _seen_vector(parts: list[float] | None) -> dict[str, Any] | None:
    if not parts:
        return None
    return {"sum": jsonable(sum(parts)), **jsonable({"min": min(parts), "max": max(parts)}), "length": len(parts)}


class OutlierCheck(_OneField):
    """The modified z-score against the recent approved values of the same segment is at most `max_score`.

    score = 0.6745 * |x - median| / MAD (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993, who
    advise 3.5). Fewer than `min_values`, or a MAD of zero: unknown. The values are the last `window` that were
    approved before this one, whatever batch they came in: it is judged in `in_order`.
    """

    kind: Literal["outlier"]
    max_score: Annotated[Number, Field(gt=0)] = 3.5
    window: Annotated[int, Field(strict=True, ge=10, le=100_000)] = 500
    """How many approved values of a segment are remembered."""
    min_values: Annotated[int, Field(strict=True, ge=3)] = 50
    log: StrictBool = False
    """Compare logarithms, for fields that spread over orders of magnitude; a value not above 0 fails."""
    unknown: Unknown = "pass"
    _listed: tuple[str, ...] = PrivateAttr(default=())

    def with_segments(self, segments: Sequence[str]) -> Self:
        """The same check that holds a value of any other segment against the recent ones of each of these."""
        copy = self.model_copy()
        copy._listed = tuple(segments)
        return copy

    def held_against(self, segment: str | None) -> tuple[str | None, ...]:
        """The segments whose recent values a value of `segment` is held against."""
        return self._listed if self._listed and segment not in self._listed else (segment,)

    @model_validator(mode="after")
    def _window_is_reachable(self) -> Self:
        if self.min_values > self.window:
            raise ValueError(f"min_values {self.min_values} can never be reached in a window of {self.window}")
        return self

    def texts(self) -> tuple[str, ...]:
        return ("segment",)

    @property
    def view(self) -> View:
        return self.window, self.log

    def compare_one(self, value: float, count: int, centre: float, spread: float) -> bool | None:
        """Whether one value passes, against the median and the MAD of `count` values; None: unknown."""
        if value != value:
            return None
        if self.log:
            if value <= 0:
                return False
            value = math.log(value)
        if count < self.min_values or not 0 < spread < math.inf:
            return None
        score = 0.6745 * abs(value - centre) / spread
        return score <= self.max_score * (1 + RELATIVE)

    def limit(self, centre: float, spread: float) -> dict[str, Any] | str:
        if not 0 < spread < math.inf:
            return "enough recent approved values"
        reach = self.max_score * spread / 0.6745
        sides = {"min": centre - reach, "max": centre + reach}
        if self.log:
            with np.errstate(over="ignore"):
                sides = {name: float(np.exp(side)) for name, side in sides.items()}
        return {name: jsonable(in_decimal(side)) for name, side in sides.items()}


class RequiredCheck(Check):
    """Every listed field is there, and is neither null nor empty text."""

    kind: Literal["required"]
    fields: Annotated[list[str], Field(min_length=1)]

    @field_validator("fields")
    @classmethod
    def _fields_exist(cls, names: list[str]) -> list[str]:
        return [_known_field(name) for name in names]

    def anything(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> Outcome:
        given = {name: columns.values(name) for name in self.fields}
        size = len(columns)
        failed = _none(size)
        for column in given.values():
            failed |= _mask([i for i, value in enumerate(column) if value is None or value == ""], size)
        return Outcome(
            failed,
            None,
            lambda rows: (
                (next(n for n, c in given.items() if c[i] is None or c[i] == "") for i in rows),
                [None] * len(rows),
                repeat("a value"),
            ),
        )


AnyCheck = Annotated[
    RangeCheck
    | MaxChangeCheck
    | ExpressionCheck
    | OneOfCheck
    | FreshnessCheck
    | SimplexCheck
    | OutlierCheck
    | RequiredCheck,
    Field(discriminator="kind"),
]


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


def _plain(numbers: Numbers) -> list[Any]:
    """As JSON can hold them; None for NaN."""
    plain: list[Any] = numbers.tolist()
    if np.isfinite(numbers).all():
        return plain
    return [None if number != number else jsonable(number) for number in plain]


def _none(size: int) -> Mask:
    return np.zeros(size, dtype=np.bool_)


def _mask(positions: Sequence[int], size: int) -> Mask:
    mask = _none(size)
    mask[list(positions)] = True
    return mask


def jsonable(value: Any) -> Any:
    """`value` with what JSON cannot hold given as text, and long texts cut: findings must fit into a header."""
    # First what most are: there are some for each finding.
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if value is None or isinstance(value, int):
        # Beyond 64 bits few programs read a number as it was written.
        return value if value is None or -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
