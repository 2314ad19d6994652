"""`simplex`: probabilities that sum to one."""

import math
from datetime import datetime
from itertools import repeat
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from holdfast.core.arrays import jsonable, mask_of
from holdfast.core.checks.base import Check, CheckResult, Number
from holdfast.core.columns import Columns
from holdfast.core.memory import Memory
from holdfast.core.tolerance import at_least, at_most


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

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
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
        return CheckResult(
            mask_of(failed, len(vectors)),
            mask_of(unknown, len(vectors)) if unknown else None,
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
