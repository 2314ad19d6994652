"""Read one event: strictly, or as far as it can be read to find which version is to blame."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from holdfast.core.malformed import MalformedKind, malformed

_MAX_DIGITS = 308
"""Every whole number of so many digits is a finite double."""


class MalformedError(ValueError):
    """The record cannot be decoded, or lacks a required field."""

    def __init__(self, reason: str, kind: MalformedKind, **more: Any) -> None:
        super().__init__(reason)
        self.malformed = malformed(reason, kind, **more)


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A number that is not finite: where it stood, what it was, and the field of the shape that it is in, if any."""

    field: str
    seen: str
    name: str | None = None


def is_framed(raw: bytes) -> bool:
    """Whether a value that is not JSON begins as the serializers of a schema registry write it."""
    return len(raw) >= 5 and raw[0] == 0


def framed(raw: bytes) -> MalformedError:
    then = raw[5:6]
    what = "JSON" if then in (b"{", b"[") else "Avro, Protobuf or something else"
    return MalformedError(
        f"the value begins with the framing of a schema registry (byte 0, then the schema's id "
        f"{int.from_bytes(raw[1:5], 'big')}), and {what} behind it: Holdfast reads plain JSON; let the producer write "
        "JSON without a registry's serializer, or put a converter before Holdfast",
        MalformedKind.SCHEMA_REGISTRY,
    )


def read_leniently(raw: bytes | None) -> Any:
    """What can be read of an event that cannot be decoded, to find who is to blame; None where that is nothing.

    Keys that stand twice are left out, and what other languages write for "not a number" or "nothing" counts as null.
    """
    if raw is None:
        return None
    text = raw.decode("utf-8", "replace")
    for attempt in (text, _BARE_WORDS.sub(r"\1null", text)):
        try:
            return json.loads(attempt, object_pairs_hook=_distinct_keys, parse_int=bounded_int)
        except (ValueError, RecursionError):
            continue
    return None


_BARE_WORDS = re.compile(
    r"([:\[,]\s*)[-+]?(?:nan(?:\([a-z0-9]*\))?|inf(?:inity)?|1\.#[a-z0-9]+|none|undefined|na|n/a)(?=\s*[,}\]])",
    re.IGNORECASE,
)


class RepeatedKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        raise RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return result


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        result = {key: seen for key, seen in pairs if counts[key] == 1}
    return result


def bounded_int(text: str) -> int | float:
    if text == "-0":
        return -0.0
    return int(text) if len(text) <= _MAX_DIGITS else float(text)


def find_non_finite(node: Any, path: str) -> NonFinite | None:
    if isinstance(node, float) and not math.isfinite(node):
        return NonFinite(path, str(node))
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    for key, child in children:
        found = find_non_finite(child, f"{path}.{key}" if path else str(key))
        if found is not None:
            return found
    return None


def without_nulls(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: without_nulls(child) for key, child in node.items() if child is not None}
    return node
