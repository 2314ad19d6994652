"""References that people gave, and how they stand beside what was approved.

A reference holds for its entity and field in place of the last approved value, until an output that was held against it
is approved. That output names the reference in a header, so a memory that is read back from the approved topic, and the
verifier, know from where on the approved values count again: it needs no clock.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter

from holdfast.core.arrays import Mask, Numbers
from holdfast.core.columns import Columns
from holdfast.core.memory import Entities
from holdfast.core.newcomers import Span
from holdfast_schemas import Reference, UsedReference

_USED = TypeAdapter(tuple[UsedReference, ...])


class Given(NamedTuple):
    """The value of a reference, and its id."""

    reference_id: str
    value: float


ByField = Mapping[str, Mapping[str, Given]]
"""The references of one model by field and entity."""


class References:
    """The latest reference of each model, field and entity."""

    def __init__(self) -> None:
        self._by_model: dict[str, dict[str, dict[str, Given]]] = {}

    def take(self, reference: Reference) -> None:
        of_field = self._by_model.setdefault(reference.model, {}).setdefault(reference.field, {})
        of_field[reference.entity_id] = Given(reference.reference_id, reference.value)

    def of(self, model: str) -> ByField:
        return self._by_model.get(model, {})


class WithGiven:
    """The last approved values, and in front of them the references that no approved output was held against yet."""

    def __init__(self, entities: Entities, given: ByField) -> None:
        self._entities, self._given = entities, given

    def last(self, field: str, columns: Columns) -> Numbers:
        values, given = self._entities.last(field, columns), self._given.get(field)
        if given:
            for row, entity in enumerate(columns.values("entity_id")):
                if entity in given:
                    values[row] = given[entity].value
        return values

    def remembered(self, field: str, columns: Columns) -> Numbers:
        return self._entities.last(field, columns)

    def span(self, field: str) -> Span:
        return self._entities.span(field)


def pending(given: ByField, fields: Iterable[str], used: set[str], columns: Columns) -> ByField:
    """The references that count for this batch: of its entities and of these fields, and not used before."""
    found: dict[str, dict[str, Given]] = {}
    entities: set[str] | None = None
    for field in fields:
        if of_field := given.get(field):
            entities = set(columns.values("entity_id")) if entities is None else entities
            there = {e: of_field[e] for e in of_field.keys() & entities if of_field[e].reference_id not in used}
            if there:
                found[field] = there
    return found


def used_by(given: ByField, learnt: Mapping[str, Mask], columns: Columns) -> dict[int, list[tuple[str, Given]]]:
    """By row, the references that an approved output was the first to be held against.

    `learnt` are the approved rows by field.
    """
    used: dict[int, list[tuple[str, Given]]] = {}
    entities = columns.values("entity_id")
    for field, of_field in given.items():
        left = dict(of_field)
        for row in np.flatnonzero(learnt[field]).tolist():
            if (one := left.pop(entities[row], None)) is not None:
                used.setdefault(row, []).append((field, one))
    return used


def header_value(used: Iterable[tuple[str, Given]]) -> bytes:
    """What the header of such an output says."""
    return _USED.dump_json(
        tuple(UsedReference(reference_id=one.reference_id, field=field, value=one.value) for field, one in used)
    )


def parse_header(value: bytes) -> list[tuple[str, Given]]:
    """The inverse; nothing where it cannot be read."""
    try:
        return [(one.field, Given(one.reference_id, one.value)) for one in _USED.validate_json(value)]
    except ValueError:
        return []
