"""Second places: where a program could read another value than the one that is checked.

A policy says where the fields of its events stand. An event may hold the same field at the contract's place too, or
the output of another policy's events, or a key that differs only in case, which many JSON libraries do not tell apart.
A program that reads such an event in its own way gets a value that nobody has checked, so the event is malformed. A
second place that holds the same value is harmless.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.core.malformed import NOBODY, Identity, Malformed, MalformedKind, identity_text, malformed, short
from holdfast.core.mapping import Mapped, Path, decimal, format_path, look, path_of

OUTPUTS = ("value", "outputs")
SAID_TWICE = ("prediction_id", "model", "model_version", "entity_id", *OUTPUTS, "currency", "segment")
"""The fields of the contract that programs act on."""


@dataclass(frozen=True, slots=True)
class Place:
    """A second place for a field of an event, and what may stand there: nothing, or what stands at the first one.

    With `models` only the name of one of these may not stand there.
    """

    path: Path
    field: str
    words: str
    first: Path | None = None
    models: frozenset[str] = frozenset()

    def holds(self, event: Any) -> str | None:
        """What is wrong with the event, in words; None: nothing."""
        _, seen, found = look(event, self.path)
        if not found or not _may_be(self.field, seen):
            return None
        at = format_path(self.path)
        if self.models:
            return f"`{at}` names {short(seen)}, {self.words}" if identity_text(seen) in self.models else None
        if self.first is None:
            return f"`{at}` holds {short(seen)}, {self.words}"
        first = look(event, self.first)[1]
        if _is_same(seen, first):
            return None
        return f"`{format_path(self.first)}` holds {short(first)}, and `{at}`, {self.words}, holds {short(seen)}"


def _may_be(field: str, seen: Any) -> bool:
    """Whether a program may take what it sees for the field: a text that holds no number is no value."""
    if field == "outputs":
        return isinstance(seen, Mapping) and len(seen) > 0
    if field != "value":
        return isinstance(seen, str | int)
    try:
        return isinstance(seen, str | int | float) and float(seen) is not None
    except (ValueError, OverflowError):
        return isinstance(seen, int)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values say the same: an integer is its decimal text, and a number may be written as a text."""
    if one == other and isinstance(one, bool) == isinstance(other, bool):
        return True
    if isinstance(one, bool | Mapping | list) or isinstance(other, bool | Mapping | list) or other is None:
        return False
    if str(one) == str(other):
        return True
    try:
        return decimal(one) == decimal(other)
    except (ValueError, OverflowError):
        return False


Fields = Mapping[str, Mapped]


def places_of(fields: Fields, others: Iterable[tuple[Fields, Sequence[str]]]) -> tuple[Place, ...]:
    """The second places of events with this mapping; `others` are the other mappings in force, with their models."""
    found = [
        Place((name,), name, "the contract's place", path_of(fields[name])) for name in SAID_TWICE if name in fields
    ]
    for theirs, models in others:
        whose = f"the policy of {', '.join(sorted(models)[:3])}"
        found += [
            Place(path_of(theirs[name]), name, f"which is the {name} of events that {whose} maps")
            for name in OUTPUTS
            if name in theirs
        ]
        if "model" in theirs:
            words = f"whose events have their model there, as {whose} maps it"
            found.append(Place(path_of(theirs["model"]), "model", words, models=frozenset(models)))
    return tuple(found)


def apart(places: Iterable[Place], paths: Iterable[Path]) -> tuple[Place, ...]:
    """Those of the places that are not read anyway, at one of `paths`, and are not a part of what is read."""
    own = [*paths]
    return tuple(
        place for place in places if not any(path[: len(place.path)] == place.path[: len(path)] for path in own)
    )


_FOLDS = str.maketrans({"\u017f": "s", "\u212a": "k", "\u0131": "i", "\u0130": "i"})
"""The letters outside of ASCII that some programs take for one of ASCII when they do not look at case."""
ODD_LETTERS = tuple(chr(letter).encode() for letter in _FOLDS)


def fold(key: str) -> str:
    """The key, as programs read it that do not look at case."""
    return key.translate(_FOLDS).lower()


def differing_in_case(event: Any, paths: Iterable[Path]) -> tuple[str, str] | None:
    """Two keys of one object that differ only in case, and either of which may be on one of the paths."""
    for path in paths:
        node = event
        for key in path:
            if not isinstance(node, Mapping):
                break
            wanted = fold(key)
            alike = [one for one in node if len(one) <= 2 * len(key) and fold(one) == wanted]
            if len(alike) > 1:
                return alike[0], alike[1]
            node = node.get(key)
    return None


def second_place(event: Any, places: Iterable[Place], paths: Iterable[Path], identity: Identity) -> Malformed | None:
    """Why a program may read the event in another way, if it may. `paths` are those at which fields are read."""
    for place in places:
        if (found := place.holds(event)) is not None:
            # If it has two models or versions, nobody can say which of them is to blame.
            whose = NOBODY if place.field in ("model", "model_version") else identity
            return malformed(
                f"the event can be read in two ways: {found}",
                MalformedKind.AMBIGUOUS,
                field=place.field,
                wanted="one place for each field",
                identity=whose,
            )
    if (keys := differing_in_case(event, paths)) is not None:
        return malformed(
            f"the event can be read in two ways: the keys {keys[0][:100]!r} and {keys[1][:100]!r} differ only in case",
            MalformedKind.AMBIGUOUS,
            wanted="one place for each field",
            identity=identity,
        )
    return None
