"""What all kinds of check have in common."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from holdfast.core.arrays import Mask
from holdfast.core.columns import Columns
from holdfast.core.condemned import BLOCKING
from holdfast.core.field_names import field_names_hint, is_field, is_number_field
from holdfast.core.memory import Memory
from holdfast_schemas import Severity

Mode = Literal["enforce", "shadow", "off"]
Unknown = Literal["pass", "fail"]
Number = Annotated[float, Field(strict=True)]
"""A number as TOML writes it; `"1.5"` and `true` are not numbers."""
Rows = list[int]
Explanations = tuple[Iterable[str | None], Iterable[Any], Iterable[Any]]
"""Columns, as JSON can hold them: field, seen, limit. What is the same in all rows may be repeated without end."""


@dataclass(slots=True)
class CheckResult:
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

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
        """Judge a batch; the checks that hold a record against those before it are run by `judge` in another way."""
        raise NotImplementedError

    @property
    def blocks(self) -> bool:
        return self.mode == "enforce" and self.would_block

    @property
    def would_block(self) -> bool:
        """Whether a failure blocks where the check is enforced."""
        return self.severity in BLOCKING


def known_field(name: str) -> str:
    """Return the name of a field. Raises ValueError where there is no such field."""
    if not is_field(name):
        raise ValueError(f"there is no field {name!r}; the fields are {field_names_hint()}")
    return name


class OneFieldCheck(Check):
    field: str = "value"

    @field_validator("field")
    @classmethod
    def _field_is_a_number(cls, name: str) -> str:
        if not is_number_field(known_field(name)):
            raise ValueError(f"the field {name!r} is not a number; value, outputs.<name> and features.<name> are")
        return name

    def numbers(self) -> tuple[str, ...]:
        return (self.field,)
