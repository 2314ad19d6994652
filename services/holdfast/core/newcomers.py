"""What to make of an entity that has no last approved value yet, by the other entities of its model.

A new product has none, and neither has one whose records came to another partition all at once because a producer's
partitioner was changed. Passing all of them would switch `max_change` off for the latter. So once three entities are
known, the value of a newcomer must lie within reach of all that was approved: between the least and the greatest value,
and beyond them by a factor of 30, or by their own ratio where it is larger. The reach only grows while values are
approved, so a newcomer within it stays within it whatever was approved meanwhile.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENOUGH = 3
"""Entities with a last approved value, from which on a newcomer is held against them."""
FACTOR = 30.0


@dataclass(frozen=True, slots=True)
class Span:
    """The approved values of one field in one partition: of how many entities, the least and the greatest but zero."""

    entities: int = 0
    low: float = math.inf
    high: float = -math.inf

    def reach(self) -> tuple[float, float]:
        """The least and the greatest value that a newcomer may have."""
        low, high = self.low, self.high
        if self.entities < ENOUGH or low > high:
            return -math.inf, math.inf
        if low > 0:
            factor = max(FACTOR, high / low)
            return low / factor, high * factor
        if high < 0:
            factor = max(FACTOR, low / high)
            return low * factor, high / factor
        widest = FACTOR * max(-low, high)
        return -widest, widest

    def with_values(self, newcomers: int, values: NDArray[np.float64]) -> "Span":
        """After these were approved too, `newcomers` entities among them; there is at least one value."""
        low, high = float(values.min()), float(values.max())
        if low <= 0 <= high:
            values = values[values != 0]
            low, high = (float(values.min()), float(values.max())) if len(values) else (math.inf, -math.inf)
        if not newcomers and low >= self.low and high <= self.high:
            return self
        return Span(self.entities + newcomers, min(self.low, low), max(self.high, high))

    def with_value(self, value: float, *, is_new: bool) -> "Span":
        low, high = (min(self.low, value), max(self.high, value)) if value else (self.low, self.high)
        return Span(self.entities + is_new, low, high)

    def words(self) -> str:
        low, high = self.reach()
        return (
            f"a last approved value of this entity, or a value from {low:.6g} to {high:.6g}, as the {self.entities} "
            "other entities suggest"
        )
