"""Arrays of one element per record, and values as a finding can hold them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]
MAX_TEXT = 500
"""Characters of one text in a finding."""


def plain(numbers: Numbers) -> list[Any]:
    """As JSON can hold them; None for NaN."""
    plain: list[Any] = numbers.tolist()
    if np.isfinite(numbers).all():
        return plain
    return [None if number != number else jsonable(number) for number in plain]


def no_rows(size: int) -> Mask:
    return np.zeros(size, dtype=np.bool_)


def mask_of(positions: Sequence[int], size: int) -> Mask:
    mask = no_rows(size)
    mask[list(positions)] = True
    return mask


def jsonable(value: Any) -> Any:
    """`value` with what JSON cannot hold given as text, and long texts cut: findings must fit into a header."""
    # First what most are: there are some for each finding.
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if value is None or isinstance(value, int):
        # Beyond 64 bits few programs read a number as it was written.
        return value if value is None or -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
