"""`required`: listed fields are present."""

from datetime import datetime
from itertools import repeat
from typing import Annotated, Literal

from pydantic import Field, field_validator

from holdfast.core.arrays import mask_of, no_rows
from holdfast.core.checks.base import Check, CheckResult, known_field
from holdfast.core.columns import Columns
from holdfast.core.memory import Memory


class RequiredCheck(Check):
    """Every listed field is there, and is neither null nor empty text."""

    kind: Literal["required"]
    fields: Annotated[list[str], Field(min_length=1)]

    @field_validator("fields")
    @classmethod
    def _fields_exist(cls, names: list[str]) -> list[str]:
        return [known_field(name) for name in names]

    def anything(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
        given = {name: columns.values(name) for name in self.fields}
        size = len(columns)
        failed = no_rows(size)
        for column in given.values():
            failed |= mask_of([i for i, value in enumerate(column) if value is None or value == ""], size)
        return CheckResult(
            failed,
            None,
            lambda rows: (
                (next(n for n, c in given.items() if c[i] is None or c[i] == "") for i in rows),
                [None] * len(rows),
                repeat("a value"),
            ),
        )
