"""What all contract models share: frozen, strict, and RFC 3339 UTC on the wire."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints


class Contract(BaseModel):
    """A frozen, strict value; readers ignore members that the contract does not name, so that it can grow."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def to_json(self) -> bytes:
        """The record's bytes: UTF-8 JSON, optional members left out when absent."""
        return self.model_dump_json(exclude_none=True, by_alias=True, round_trip=True).encode()


def _to_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is outside the years 1 to 9999 of UTC") from None


UtcTime = Annotated[AwareDatetime, AfterValidator(_to_utc)]
"""An aware time, normalised to UTC; `2026-11-24T10:00:00Z` on the wire."""

MAX_INTEGER = 2**63 - 1
"""Of every whole number in a contract: what other languages, Kafka and Prometheus hold too."""
MAX_IN_BATCH = 10**9
"""Of every count in a tally: so many tallies as would add up to MAX_INTEGER cannot be written."""

_MAX_DIGITS = 40
"""Of a number out of reach that is kept as text; people read a longer one as infinite."""

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
"""A total, an offset, an epoch or a partition."""

BatchCount = Annotated[int, Field(ge=0, le=MAX_IN_BATCH)]
"""How many of one batch."""


def _digits_of(value: int) -> str:
    if -(10**_MAX_DIGITS) < value < 10**_MAX_DIGITS:
        return str(value)
    return "inf" if value > 0 else "-inf"


def _with_numbers_in_reach(value: Any) -> Any:
    match value:
        case bool() | str() | None:
            return value
        case int():
            return value if -MAX_INTEGER <= value <= MAX_INTEGER else _digits_of(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {name: _with_numbers_in_reach(one) for name, one in value.items()}
        case list():
            return [_with_numbers_in_reach(one) for one in value]
        case tuple():
            return tuple(_with_numbers_in_reach(one) for one in value)
    return value


AnyJson = Annotated[Any, AfterValidator(_with_numbers_in_reach)]
"""Anything that JSON can hold. A number that is out of reach is read as its text: a producer may have written it, and
the record that shows it must not be lost."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A model or version name: it becomes part of Redis keys and metric labels, so braces and spaces are out."""

PolicyId = Annotated[str, StringConstraints(pattern=r"^(none|.+@[0-9a-f]{12})$")]
"""`pricing@<12 hex digits of the policy's content>`; `none` where the model has no policy."""

NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=1000)]

Said = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"\S")]
"""Words of a person: not blank."""


def utc_now() -> datetime:
    return datetime.now(UTC)
