"""`outlier`: the robust z-score against recent approved values of the segment."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, StrictBool, model_validator

from holdfast.core.arrays import jsonable
from holdfast.core.checks.base import Number, OneFieldCheck, Unknown
from holdfast.core.recent import View
from holdfast.core.tolerance import RELATIVE, in_decimal


class OutlierCheck(OneFieldCheck):
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
