"""What was approved before, for the checks that hold an output against it."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from holdfast.core.arrays import Mask, Numbers
from holdfast.core.columns import Columns
from holdfast.core.entity_key import LONG, EntityKey, entity_key
from holdfast.core.newcomers import Span
from holdfast.core.recent import Segments


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Table:
    """Bounds per entity: row i holds for the entity that `index` maps to i. NaN: no bound on that side."""

    index: Mapping[str, int]
    low: Numbers
    high: Numbers


class Entities:
    """What is known of one model's entities: each has a slot, and is found once for each prediction.

    All arrays have one element more than there are slots: it belongs to the slot -1, that of unknown entities.
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
        # The slots of the batch that was looked at last: each check with a memory asks for them.
        self._found_in: weakref.ref[Columns] | None = None
        self._found = np.zeros(0, dtype=np.intp)
        self._rows: WeakKeyDictionary[Table, NDArray[np.int32]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, columns: Columns) -> NDArray[np.intp]:
        """(n,) the slot of each row's entity; -1: not known."""
        entities = columns.values("entity_id")
        if self._found_in is None or self._found_in() is not columns:
            self._found_in, self._found = weakref.ref(columns), self._find(entities)
        return self._found

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
        """What is known of the model's entities; an empty memory for an unknown model."""
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
