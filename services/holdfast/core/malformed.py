"""A record that cannot be decoded: why, and which model version is to blame.

Where the event says its model and version, its failure counts for them as that of any blocked prediction does: an
ordinary failure of severity `error` that needs as many predictions, entities and partitions to trip the breaker.
What names neither is in the malformed topic only, and in the metrics.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple

from holdfast.core.record import MAX_HEADERS_BYTES, MAX_KEY_BYTES, Record, headers_size
from holdfast_schemas._base import NAME_PATTERN

_LONGEST_REASON = 1000
"""It names keys of the event, and goes into a header."""
_LONGEST_SEEN = 60
CHECK = "malformed"
"""The name under which tallies count it."""


class MalformedKind(StrEnum):
    """The kinds of reason: few, so that they can be a metric's label."""

    EMPTY = "empty"
    """The record has no value."""
    VALUE_TOO_LONG = "value_too_long"
    KEY_TOO_LONG = "key_too_long"
    HEADERS_TOO_LONG = "headers_too_long"
    NOT_UTF8 = "not_utf8"
    SCHEMA_REGISTRY = "schema_registry"
    """The value begins with the framing of a schema registry."""
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    REPEATED_KEY = "repeated_key"
    TOO_DEEP = "too_deep"
    BROKEN_TEXT = "broken_text"
    """A text holds half of a surrogate pair."""
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NO_OUTPUT = "no_output"
    """Neither `value` nor `outputs` is given."""
    BAD_VERSION = "bad_version"
    """The version has no name that a route could carry."""
    BAD_ENTITY = "bad_entity"
    """The entity's id begins or ends with a blank or an invisible character."""
    AMBIGUOUS = "ambiguous"
    """A program could read another value, or another event, than the one that is checked."""
    OTHER_SHAPE = "other_shape"
    """The event is not of the shape that its model's policy maps."""
    REFUSED = "refused"
    """A topic of verdicts does not take the record as it is."""
    UNREADABLE_BATCH = "unreadable_batch"
    """The batch that the record came in cannot be unpacked."""
    NOT_PROCESSED = "not_processed"
    """Three attempts to judge the record failed."""


ATTRIBUTABLE = (
    MalformedKind.NOT_UTF8,
    MalformedKind.NOT_JSON,
    MalformedKind.REPEATED_KEY,
    MalformedKind.BROKEN_TEXT,
    MalformedKind.MISSING_FIELD,
    MalformedKind.WRONG_TYPE,
    MalformedKind.NO_OUTPUT,
    MalformedKind.OTHER_SHAPE,
    MalformedKind.BAD_ENTITY,
    MalformedKind.AMBIGUOUS,
)
"""The kinds of which the model and version may be known."""


class Identity(NamedTuple):
    """What an event says of itself; None where it cannot be read."""

    model: str | None = None
    model_version: str | None = None
    entity_id: str | None = None
    prediction_id: str | None = None

    def readable(self) -> int:
        """How many of the four can be read."""
        return sum(one is not None for one in self)


NOBODY = Identity()


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a record cannot be decoded. `field`, `seen` and `wanted` say it as a finding does, where one field is at
    fault."""

    reason: str
    kind: MalformedKind
    field: str | None = None
    seen: Any = None
    wanted: str | None = None
    identity: Identity = NOBODY

    def blames(self, models: Iterable[str]) -> tuple[str, str] | None:
        """The model, of those that have a policy, and the version to blame; None where the event does not say."""
        model, version = self.identity.model, self.identity.model_version
        if model is None or version is None or model not in models or not _is_name(version):
            return None
        return model, version


_is_name = re.compile(NAME_PATTERN).fullmatch


def malformed(reason: str, kind: MalformedKind, **more: Any) -> Malformed:
    """With the reason cut to what fits a header."""
    return Malformed(reason[:_LONGEST_REASON], kind, **more)


def identity_text(seen: Any) -> str | None:
    """A field of the identity as text: a text, or the decimal digits of an integer; None for anything else."""
    if isinstance(seen, int) and not isinstance(seen, bool):
        return str(seen)
    if not isinstance(seen, str) or not 1 <= len(seen) <= 1000:
        return None
    try:
        seen.encode()
    except UnicodeEncodeError:
        return None
    return seen


def short(seen: Any) -> str:
    """What stood somewhere, in words: its type and its value, cut."""
    if seen is None:
        return "null"
    if isinstance(seen, bool):
        return f"the JSON {str(seen).lower()}"
    if isinstance(seen, str):
        return f"the text {_cut(json.dumps(seen))}"
    if isinstance(seen, int | float):
        return f"the number {_cut(str(seen))}"
    if isinstance(seen, Sequence):
        return f"a list of {len(seen)}"
    if isinstance(seen, Mapping):
        return f"an object with {len(seen)} keys"
    return f"{type(seen).__name__} {_cut(str(seen))}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SEEN else text[:_LONGEST_SEEN] + "…"


def seen_in_short(seen: Any) -> Any:
    """What stood somewhere, as a finding can hold it: a text or a number, cut."""
    if isinstance(seen, bool) or seen is None:
        return seen
    if isinstance(seen, str):
        return _cut(seen.encode("utf-8", "replace").decode())
    if isinstance(seen, int) and abs(seen) < 2**53:
        return seen
    return _cut(short(seen) if isinstance(seen, Sequence | Mapping) else str(seen))


def blamed(found: Mapping[int, Malformed], models: Iterable[str]) -> dict[str, dict[str, list[int]]]:
    """By model and version, the positions of the malformed records that they are to blame for."""
    result: dict[str, dict[str, list[int]]] = {}
    for position in sorted(found):
        if (whose := found[position].blames(models)) is not None:
            result.setdefault(whose[0], {}).setdefault(whose[1], []).append(position)
    return result


def too_long(records: Sequence[Record], values: Sequence[bytes | None], limit: int) -> dict[int, Malformed]:
    """By position, why a record is not decoded: it is over the limit, or no topic takes it with our headers."""
    reasons: dict[int, Malformed] = {}
    keys = [record.key for record in records]
    for what, column, most, setting, kind in (
        ("value", values, limit, " (guard.max_record_bytes)", MalformedKind.VALUE_TOO_LONG),
        ("key", keys, MAX_KEY_BYTES, "", MalformedKind.KEY_TOO_LONG),
    ):
        if max(map(len, filter(None, column)), default=0) > most:
            for position, one in enumerate(column):
                if one is not None and len(one) > most:
                    reasons[position] = malformed(
                        f"the {what} has {len(one)} bytes, over the limit of {most}{setting}", kind
                    )
    # Most have none.
    if any(map(attrgetter("headers"), records)):
        for position, record in enumerate(records):
            if (size := headers_size(record)) > MAX_HEADERS_BYTES:
                reasons[position] = malformed(
                    f"the headers have {size} bytes, over the limit of {MAX_HEADERS_BYTES}",
                    MalformedKind.HEADERS_TOO_LONG,
                )
    return reasons
