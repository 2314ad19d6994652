"""How a policy's `[fields]` says where a field stands in an event, and how it is written there.

A mapping is a path (`"price.amount"`), or a table of a path and a reading (`{ path = "ts", as = "epoch_ms" }`). A path
is a row of keys with dots between them, as a dotted key of TOML: a key with a dot or a quote in it stands in quotes,
`'"meta.data".price'`.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Path = tuple[str, ...]


class Reading(StrEnum):
    """How a field is written where that is not the contract's way; nothing is guessed."""

    EPOCH_S = "epoch_s"
    """A time: seconds since 1970-01-01 UTC, a number."""
    EPOCH_MS = "epoch_ms"
    """A time: milliseconds since 1970-01-01 UTC, a number."""
    UTC = "utc"
    """A time: RFC 3339; without a zone it is UTC."""
    DECIMAL_TEXT = "decimal_text"
    """A number: a JSON number, or a text that holds one, such as `"12.50"`."""


TIMES = (Reading.EPOCH_S, Reading.EPOCH_MS, Reading.UTC)


class FieldMapping(BaseModel):
    """Where a field stands, and how it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    path: str
    reading: Reading | None = Field(default=None, alias="as")

    @field_validator("path")
    @classmethod
    def _path_is_one(cls, path: str) -> str:
        parse_path(path)
        return path


Mapped = str | FieldMapping
"""A path alone, or with a reading."""


def path_of(mapped: Mapped) -> Path:
    return parse_path(mapped if isinstance(mapped, str) else mapped.path)


def reading_of(mapped: Mapped) -> Reading | None:
    return None if isinstance(mapped, str) else mapped.reading


def parse_path(text: str) -> Path:
    """The keys of a dotted path. Raises ValueError."""
    keys: list[str] = []
    place = 0
    while True:
        found = _KEY.match(text, place)
        if found is None:
            raise ValueError(
                f"{text!r} is not a dotted path: write keys with dots between them, and a key with a dot or a quote "
                """in double quotes, as in '"meta.data".price'"""
            )
        quoted, bare = found.groups()
        keys.append(bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        place = found.end()
        if place == len(text):
            return tuple(keys)
        place += 1


_KEY = re.compile(r'(?:"((?:[^"\\]|\\["\\])+)"|([^."]+))(?:(?=\.)|\Z)')


def format_path(path: Path) -> str:
    """The path as a policy writes it."""
    return ".".join(
        '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' if "." in key or '"' in key or not key else key
        for key in path
    )


def look(event: Any, path: Path) -> tuple[Path, Any, bool]:
    """What stands at a path: how far it could be followed, what stands there, and whether all of it was there."""
    for depth, key in enumerate(path):
        if not isinstance(event, Mapping):
            return path[:depth], event, False
        if key not in event:
            return path[: depth + 1], None, False
        event = event[key]
    return path, event, True


_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def decimal(seen: Any) -> float:
    """A number, or a text that is one as JSON writes it. Raises ValueError."""
    if isinstance(seen, str):
        if len(seen) > 1000 or not _DECIMAL.fullmatch(seen):
            raise ValueError(seen)
        return float(seen)
    return float(seen)


def decimal_output(seen: Any) -> Any:
    """An output, which may be a list. Raises ValueError."""
    return [decimal(part) for part in seen] if isinstance(seen, list) else decimal(seen)


def decimal_outputs(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError."""
    return {name: decimal_output(seen) for name, seen in outputs.items()}


def decimal_feature(seen: Any) -> Any:
    """A feature: a text that holds no number stays what it is, for a feature may be of any type."""
    return float(seen) if isinstance(seen, str) and len(seen) <= 1000 and _DECIMAL.fullmatch(seen) else seen


def _epoch(units: float) -> Callable[[Any], datetime]:
    def convert(seen: Any) -> datetime:
        if not math.isfinite(seen):
            raise ValueError(seen)
        try:
            return datetime.fromtimestamp(seen / units, UTC)
        except (OverflowError, OSError):
            raise ValueError(seen) from None

    return convert


def _utc(seen: datetime) -> datetime:
    return seen if seen.tzinfo is not None else seen.replace(tzinfo=UTC)


def converter(name: str, reading: Reading) -> Callable[[Any], Any]:
    """What turns a field's value, which is there, into the contract's; it raises ValueError."""
    if reading is Reading.DECIMAL_TEXT:
        return {"value": decimal, "outputs": decimal_outputs}.get(name, decimal_feature)
    return {Reading.EPOCH_S: _epoch(1), Reading.EPOCH_MS: _epoch(1000), Reading.UTC: _utc}[reading]
