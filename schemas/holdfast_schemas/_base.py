"""What all contract models share: frozen, strict, and RFC 3339 UTC on the wire."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints


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
