"""Whether a record's key is the one that its entity must have.

The checks with memory hold an output against the earlier ones of the same partition. Kafka chooses the partition by
the key, so the outputs of an entity come together only if all their records have the same key, and each record is in
the partition of its key. A record without that key, or in another partition, would escape the comparison: a producer
may send the same entity under ten keys, and halve its price ten times.

A policy says what the key is: the entity's id, or another field that goes with the entity, and how it is written.
Only one way of writing is right, because two ways are two partitions.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from holdfast.core.murmur2 import partitions_of

CHECK = "off_key"
"""The name under which findings say it."""
OffKey = Literal["unknown", "block", "pass"]
MAX_SHOWN = 200
"""Bytes of a key that are shown."""
Mask = NDArray[np.bool_]


class KeyForm(StrEnum):
    """How the key of a record is written; nothing is guessed."""

    TEXT = "text"
    """UTF-8, as it stands in the event."""
    JSON = "json"
    """A JSON text, in quotes."""
    INT32 = "int32"
    """A whole number of four bytes, the highest first."""
    INT64 = "int64"
    """The same of eight bytes."""


class RecordKey(BaseModel):
    """Which field of the event is the key of its record, and how it is written there."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    field: str = "entity_id"
    form: KeyForm = Field(default=KeyForm.TEXT, alias="as")

    def __str__(self) -> str:
        return self.field if self.form is KeyForm.TEXT else f"{self.field} as {self.form}"

    def written(self, value: Any) -> bytes | None:
        """The key of a record with this value; None where the value cannot be written so."""
        text = _text(value)
        if text is None:
            return None
        if self.form is KeyForm.TEXT:
            return text.encode()
        if self.form is KeyForm.JSON:
            return json.dumps(text, ensure_ascii=False).encode()
        size = 4 if self.form is KeyForm.INT32 else 8
        try:
            return int(text).to_bytes(size, "big", signed=True) if str(int(text)) == text else None
        except (ValueError, OverflowError):
            return None


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int | float) and value != "" else None


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of some records of one partition.

    `form` is what the keys were turned into, where they are not kept as they are: a digest, for example. `partitions`
    is how many the topic has; 0 where keys say nothing about the partition.
    """

    keys: Sequence[Hashable]
    partition: int = 0
    partitions: int = 0
    form: Callable[[bytes], Hashable] | None = None

    def off(self, key: RecordKey, values: Sequence[Any]) -> Mask:
        """(n,) the rows whose key is not the one that the field's `values` demand."""
        if self.form is None and key.form is KeyForm.TEXT and _are_the_same(values, self.keys):
            return np.zeros(len(values), dtype=np.bool_)
        off = np.zeros(len(values), dtype=np.bool_)
        for row, (value, given) in enumerate(zip(values, self.keys, strict=True)):
            wanted = key.written(value)
            if wanted is None:
                off[row] = True
            else:
                off[row] = given != (wanted if self.form is None else self.form(wanted))
        return off

    def words(self, row: int, key: RecordKey, value: Any) -> tuple[str | None, str]:
        """What is wrong with the key of a row that is off: what was seen, and what was expected."""
        given, wanted = self.keys[row], key.written(value)
        seen = given[:MAX_SHOWN].decode("utf-8", "backslashreplace") if isinstance(given, bytes) else None
        if wanted is not None and given == wanted:
            return f"{seen} in partition {self.partition}", "a record in the partition of its key"
        how = "" if key.form is KeyForm.TEXT else f" as {key.form}"
        return seen, f"the {key.field} of the event{how} as the key of its record"

    def elsewhere(self, rows: Mask) -> Mask:
        """(n,) those of `rows`, all of which have a key, whose key belongs in another partition than theirs."""
        found = np.zeros(len(rows), dtype=np.bool_)
        places = np.flatnonzero(rows)
        if self.partitions > self.partition and self.form is None and len(places):
            keys: list[Any] = [self.keys[row] for row in places.tolist()]
            found[places] = partitions_of(keys, self.partitions) != self.partition
        return found


def _are_the_same(values: Sequence[Any], keys: Sequence[Any]) -> bool:
    """Whether each key is plainly the text of its value: all of them are compared in one step."""
    try:
        joined = "\n".join(values).encode()
        return joined == b"\n".join(keys) and joined.count(b"\n") == len(values) - 1
    except (TypeError, UnicodeEncodeError):
        return False
