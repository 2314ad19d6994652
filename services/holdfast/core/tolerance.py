"""Comparisons at a bound, as people mean them: in decimal, and inclusive.

115 is 1.15 times 100, but in binary 1.15 * 100 is a little less. Therefore a number that differs from its bound by at
most a billionth of the bound counts as equal to it. A bound of zero is exact.
"""

import numpy as np
from numpy.typing import NDArray

RELATIVE = 1e-9


def below(values: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether a value is less than its bound, and not equal to it; False for NaN."""
    less: NDArray[np.bool_] = values < bounds
    if less.any():
        less &= np.abs(values - bounds) > RELATIVE * np.abs(bounds)
    return less


def above(values: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether a value is greater than its bound, and not equal to it; False for NaN."""
    more: NDArray[np.bool_] = values > bounds
    if more.any():
        more &= np.abs(values - bounds) > RELATIVE * np.abs(bounds)
    return more


def at_least(value: float, bound: float) -> bool:
    """Whether a value is greater than its bound or equal to it; False for NaN."""
    return value >= bound or bound - value <= RELATIVE * abs(bound)


def at_most(value: float, bound: float) -> bool:
    """Whether a value is less than its bound or equal to it; False for NaN."""
    return value <= bound or value - bound <= RELATIVE * abs(bound)


def in_decimal(bound: float) -> float:
    """A computed bound as people write it: 115.0 for 114.99999999999999."""
    return float(f"{bound:.15g}")
