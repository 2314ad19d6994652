"""Durations as people write them in configuration: `30s`, `10m`, `1h`, `7d`."""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = timedelta(days=3650)
"""Ten years: no time of today minus this falls out of the calendar."""


def _parse(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value)
        if match is None:
            raise ValueError(f"{value!r} is not a duration: write a number and one of ms, s, m, h, d, as in '30s'")
        seconds = float(match[1]) * _UNITS[match[2]]
        if seconds > _LONGEST.total_seconds():
            raise ValueError(f"{value!r} is longer than {_LONGEST.days} days")
        return timedelta(seconds=seconds)
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"a duration needs its unit: write '{value}s', or one of ms, m, h, d")
    return value


def format_duration(value: timedelta) -> str:
    """The largest unit that gives a whole number: `90s`, `10m`, `250ms`."""
    ms = round(value.total_seconds() * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


Duration = Annotated[
    timedelta,
    Field(gt=timedelta(0), le=_LONGEST),
    BeforeValidator(_parse),
    PlainSerializer(format_duration, return_type=str),
]
