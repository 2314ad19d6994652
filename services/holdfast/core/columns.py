"""A decoded batch, column by column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.malformed import Malformed
from holdfast.core.one_event import NonFinite


@dataclass(slots=True)
class Decoded:
    """A decoded batch of n records, by field; what stands in the rows of `malformed` says nothing.

    `numbers` are the fields that are read as numbers only: (n,) each, NaN where there is none. `ambiguous` are the
    rows that another program may read in another way, and why.
    """

    columns: dict[str, list[Any]]
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    malformed: dict[int, Malformed] = field(default_factory=dict)
    non_finite: dict[int, tuple[NonFinite, ...]] = field(default_factory=dict)
    ambiguous: dict[int, Malformed] = field(default_factory=dict)


class Columns:
    """The rows of one model in one batch, read column by column; what is made of them is made once."""

    def __init__(self, decoded: Decoded) -> None:
        numbers = {_key_of_numbers(name): column for name, column in decoded.numbers.items()}
        self._made: dict[str, Any] = decoded.columns | numbers

    @classmethod
    def of(cls, decoded: Decoded, rows: Sequence[int]) -> "Columns":
        """Some rows of a decoded batch."""
        return cls(
            Decoded(
                {name: [column[row] for row in rows] for name, column in decoded.columns.items()},
                {name: column[rows] for name, column in decoded.numbers.items()},
            )
        )

    def __len__(self) -> int:
        return len(self._made["model"])

    def reads(self, name: str) -> bool:
        """Whether this field was decoded, because a check reads it."""
        return name in self._made

    def values(self, name: str) -> list[Any]:
        """(n,) the field as it was decoded; None where it is absent."""
        if name.startswith("outputs."):
            self._once(name, lambda: _outputs(self.values("outputs"), name.removeprefix("outputs.")))
        column: list[Any] = self._made[name]
        return column

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) float64; NaN where the field is absent or is not a single number."""
        made: NDArray[np.float64] = self._once(_key_of_numbers(name), lambda: as_numbers(self.values(name)))
        return made

    def has(self, name: str) -> bool:
        """Whether any row has the field: as a number where only numbers are read, else as anything."""
        if not name.startswith("outputs.") and name not in self._made:
            return not bool(np.isnan(self.numbers(name)).all())
        values = self.values(name)
        return values.count(None) < len(values)

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made when it is asked for the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _key_of_numbers(name: str) -> str:
    return f"{name} as numbers"


def _outputs(given: list[Any], name: str) -> list[Any]:
    return [None if outputs is None else outputs.get(name) for outputs in given]


def as_numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    if not _NUMBERS.issuperset(map(type, values)):
        values = [value if type(value) in _NUMBERS else None for value in values]
    return np.array(values, dtype=np.float64)


_NUMBERS = frozenset((float, int, type(None)))
"""Exactly these: True is not a number, and neither is a text that looks like one."""
