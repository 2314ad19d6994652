"""`expression`: a condition over the output and the features."""

from datetime import datetime
from itertools import repeat
from typing import Any, Literal, Self

import numpy as np
from pydantic import PrivateAttr, model_validator

from holdfast.core.arrays import Mask, jsonable, plain
from holdfast.core.checks.base import Check, CheckResult, Explanations, Rows
from holdfast.core.columns import Columns
from holdfast.core.expression import compile_expression
from holdfast.core.memory import Memory


class ExpressionCheck(Check):
    """A numeric condition over `value`, `outputs.<name>` and features (by bare name), evaluated by numexpr."""

    kind: Literal["expression"]
    expression: str
    _compiled: Any = PrivateAttr()
    _names: tuple[str, ...] = PrivateAttr()

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        self._names, self._compiled = compile_expression(self.expression)
        return self

    def numbers(self) -> tuple[str, ...]:
        return self._names

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
        names, limit = self._names, jsonable(self.expression)
        inputs = [columns.numbers(name) for name in names]
        passed: Mask = np.asarray(self._compiled(*inputs), dtype=np.bool_)
        unknown = np.isnan(inputs[0])
        for column in inputs[1:]:
            unknown |= np.isnan(column)
        field = names[0] if len(names) == 1 else None

        def explain(rows: Rows) -> Explanations:
            seen = zip(*(plain(column[rows]) for column in inputs), strict=True)
            return repeat(field), [dict(zip(names, one, strict=True)) for one in seen], repeat(limit)

        return CheckResult(~passed, unknown, explain)
