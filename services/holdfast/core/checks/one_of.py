"""`one_of`: a field has one of the listed values."""

from datetime import datetime
from itertools import repeat
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StrictBool, field_validator

from holdfast.core.arrays import jsonable, mask_of
from holdfast.core.checks.base import Check, CheckResult, known_field
from holdfast.core.columns import Columns
from holdfast.core.memory import Memory


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
        return known_field(name)

    def model_post_init(self, context: Any) -> None:
        self._allowed = frozenset(self.values)
        # Python holds True equal to 1.
        self._pairs = frozenset((type(value) is bool, value) for value in self.values)

    def anything(self) -> tuple[str, ...]:
        return (self.field,)

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
        seen = columns.values(self.field)
        if _TEXTS.issuperset(map(type, seen)):
            wrong = set(seen) - self._allowed
            failed = [i for i, v in enumerate(seen) if v in wrong] if wrong else []
        else:
            pairs = self._pairs
            failed = [i for i, v in enumerate(seen) if isinstance(v, list | dict) or (type(v) is bool, v) not in pairs]
        unknown = mask_of([i for i, v in enumerate(seen) if v is None], len(seen)) if None in seen else None
        return CheckResult(
            mask_of(failed, len(seen)),
            unknown,
            lambda rows: (repeat(self.field), [jsonable(_flat(seen[i])) for i in rows], repeat(jsonable(self.values))),
        )


_TEXTS = frozenset((str, type(None)))


def _flat(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict) else value
