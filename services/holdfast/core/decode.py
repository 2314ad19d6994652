"""From the bytes of an event to the columns that checks read.

The fast way is msgspec with a struct that names only the fields that policies use. Three things that it lets
pass are looked for over the joined bytes of the whole batch: a key that stands twice, an escape that could
hide one, and bytes that are not UTF-8. A record that shows any of them, and each record that msgspec refuses,
goes the strict way: the standard library's parser, one record at a time, which says what is wrong with it.
"""

import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import compress
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

REQUIRED = ("prediction_id", "model", "model_version", "entity_id")
OPTIONAL = ("value", "outputs", "currency", "predicted_at", "segment")
FIELD_NAMES = (*REQUIRED, *OPTIONAL)

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Aware = Annotated[datetime, msgspec.Meta(tz=True)]
_MAX_DIGITS = 400
"""No double has more digits before the point than 309."""


class MalformedError(ValueError):
    """The record cannot be decoded, or lacks a required field; the message is the reason."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A number that is no number: where it stood, and what it was."""

    field: str
    seen: str


def field_names_hint() -> str:
    return ", ".join((*FIELD_NAMES, "outputs.<name>", "features.<name>"))


def is_field(name: str) -> bool:
    """Whether a policy may read `name`."""
    return name in FIELD_NAMES or (name.startswith(("outputs.", "features.")) and not name.endswith("."))


class Shape:
    """How one kind of event is read: the dotted path of each field, and the decoder made from them.

    `paths` maps a field's name to its dotted path where it differs; `numbers`, `texts` and `anything` are the
    fields that policies read, by the type that they need. Raises ValueError when a path is at once a value
    and the parent of another.
    """

    def __init__(
        self,
        paths: Mapping[str, str] | None = None,
        *,
        numbers: Iterable[str] = (),
        texts: Iterable[str] = (),
        anything: Iterable[str] = (),
    ) -> None:
        self.paths = dict(paths or {})
        types: dict[str, Any] = dict.fromkeys(REQUIRED, _Text)
        types["value"] = float | None
        types["outputs"] = dict[str, float | list[float]] | None
        # A field read in two ways takes the type that admits both; the number check then sees the wrong ones.
        for name in anything:
            types.setdefault(name, Any)
        for name in texts:
            types.setdefault(name, _Aware | None if name == "predicted_at" else str | None)
        for name in numbers:
            if not name.startswith("outputs."):
                types[name] = float | None
        if "predicted_at" in types:
            types["predicted_at"] = _Aware | None
        self.names = tuple(name for name in types if not name.startswith("outputs."))
        tree: dict[str, Any] = {}
        for name in self.names:
            *parents, leaf = self.path(name).split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
                if not isinstance(node, dict):
                    raise ValueError(f"path {self.path(name)!r} of field {name!r} runs through another field")
            if leaf in node:
                raise ValueError(f"path {self.path(name)!r} of field {name!r} is taken by another field")
            node[leaf] = (name, types[name])
        self._attributes: dict[str, str] = {}
        struct = self._struct(tree, "")
        self._struct_type = struct
        self._decode = msgspec.json.Decoder(struct).decode
        self.getters: dict[str, Callable[[Any], Any]] = {
            name: operator.attrgetter(path) for name, path in self._attributes.items()
        }
        self._nodes: list[tuple[bytes, tuple[str, ...]]] = list(_nodes(tree))
        # The columns that tell how often each key was decoded; the others are made when they are asked for.
        self._early = ("model", *(name for name in self.names if name not in REQUIRED))

    def path(self, name: str) -> str:
        """The dotted path of a field in the event."""
        if name in self.paths:
            return self.paths[name]
        parent, _, leaf = name.partition(".")
        return f"{self.paths[parent]}.{leaf}" if leaf and parent in self.paths else name

    def _struct(self, tree: Mapping[str, Any], prefix: str) -> type[msgspec.Struct]:
        fields: list[Any] = []
        for position, (key, node) in enumerate(tree.items()):
            attribute = f"f{position}"
            if isinstance(node, dict):
                inner = self._struct(node, f"{prefix}{attribute}.")
                required = any(f.required for f in msgspec.structs.fields(inner))
                default = msgspec.field(name=key) if required else msgspec.field(name=key, default_factory=inner)
                fields.append((attribute, inner, default))
            else:
                name, kind = node
                self._attributes[name] = prefix + attribute
                default = msgspec.field(name=key) if name in REQUIRED else msgspec.field(name=key, default=None)
                fields.append((attribute, kind, default))
        return msgspec.defstruct("Event", fields, kw_only=True, gc=False)

    def decode(self, raws: Sequence[bytes | None]) -> "Decoded":
        """Decode a batch; each record becomes a row, or is malformed, or holds a number that is none."""
        try:
            decode = self._decode
            decoded = Decoded([decode(raw) for raw in raws])  # type: ignore[arg-type]
            decoded.columns = {name: list(map(self.getters[name], decoded.rows)) for name in self._early}
            suspects = self._suspects(raws, decoded.columns)  # type: ignore[arg-type]
        except (msgspec.MsgspecError, RecursionError, TypeError, UnicodeDecodeError):
            decoded, suspects = Decoded([None] * len(raws)), range(len(raws))
        if suspects:
            decoded.columns = None
        for position in suspects:
            try:
                decoded.rows[position], non_finite = self._decode_strictly(raws[position])
                if non_finite is not None:
                    decoded.non_finite[position] = non_finite
            except MalformedError as error:
                decoded.rows[position] = None
                decoded.malformed[position] = str(error)
        self._demand_an_output(decoded)
        return decoded

    def _demand_an_output(self, decoded: "Decoded") -> None:
        if decoded.columns is not None and not _count_absent(decoded.columns["value"]):
            return
        value_of, outputs_of = self.getters["value"], self.getters["outputs"]
        for position, row in enumerate(decoded.rows):
            if row is not None and value_of(row) is None and not outputs_of(row):
                decoded.rows[position] = None
                decoded.columns = None
                decoded.malformed[position] = f"neither {self.path('value')} nor {self.path('outputs')} is given"

    def _suspects(self, raws: Sequence[bytes], columns: Mapping[str, list[Any]]) -> Sequence[int]:
        """The positions of records with an escape, bytes that are not UTF-8, or a key that may stand twice.

        Each record has every key that was decoded at least once, so equal totals mean exactly once.
        """
        joined = b"\n".join(raws)
        expected = Counter[bytes]()
        absent = {name: _count_absent(column) for name, column in columns.items()} | dict.fromkeys(REQUIRED, 0)
        for key, names in self._nodes:
            fewest = min(absent[name] for name in names)
            if fewest and len(names) > 1:
                fewest = sum(map(_all_none, zip(*(columns[name] for name in names), strict=True)))
            expected[key] += len(raws) - fewest
        if absent["outputs"] < len(raws):
            for outputs in filter(None, columns["outputs"]):
                expected.update(json.dumps(name, ensure_ascii=False).encode() for name in outputs)
        if b"\\" not in joined and _is_utf8(joined) and _each_stands_once(raws, expected):
            return ()
        return [
            position
            for position, raw in enumerate(raws)
            if b"\\" in raw or not _is_utf8(raw) or any(raw.count(key) > 1 for key in expected)
        ]

    def _decode_strictly(self, raw: bytes | None) -> tuple[Any, NonFinite | None]:
        if raw is None:
            raise MalformedError("the record has no value")
        try:
            event = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_bounded_int)
        except UnicodeDecodeError as error:
            raise MalformedError(f"the value is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None
        except RecursionError:
            raise MalformedError("the value is nested too deeply") from None
        except json.JSONDecodeError as error:
            raise MalformedError(f"the value is not JSON: {error.msg} at byte {error.pos}") from None
        if not isinstance(event, dict):
            raise MalformedError(f"the value is a JSON {type(event).__name__}, not an object")
        try:
            non_finite = _find_non_finite(event, "")
            return msgspec.convert(_without_nulls(event), self._struct_type), non_finite
        except RecursionError:
            raise MalformedError("the value is nested too deeply") from None
        except msgspec.ValidationError as error:
            raise MalformedError(_explain(str(error))) from None


def _nodes(tree: Mapping[str, Any]) -> Iterable[tuple[bytes, tuple[str, ...]]]:
    """Each key of the tree as it stands in JSON, with the fields at or below it."""
    for key, node in tree.items():
        below = list(_nodes(node)) if isinstance(node, dict) else []
        names = tuple(dict.fromkeys(name for _, inner in below for name in inner)) or (node[0],)
        yield json.dumps(key, ensure_ascii=False).encode(), names
        yield from below


def _each_stands_once(raws: Sequence[bytes], expected: Mapping[bytes, int]) -> bool:
    """Whether each quoted key stands in `raws` as often as expected.

    `raws` are valid JSON without escapes, so that quotes open and close in turn. A string is told by its length and
    its first eight bytes; where what only looks like a key disturbs the count, that key is counted in full.
    """
    heads = np.array([int.from_bytes(key[1:9].rstrip(b'"'), "little") for key in expected], dtype=np.uint64)
    wanted = list(_signatures(heads, np.array([len(key) - 2 for key in expected], dtype=np.int64)))
    counts = np.zeros(len(expected), dtype=np.int64)
    # In pieces that stay in the processor's cache.
    for start in range(0, len(raws), _PIECE):
        text = b"\n".join(raws[start : start + _PIECE]) + bytes(8)
        quotes = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord('"'))
        opens = quotes[0::2] + 1
        lengths = quotes[1::2] - opens
        words = np.ndarray((len(text) - 7,), dtype="<u8", buffer=text, strides=(1,))
        found = _signatures(words[opens] & _FIRST_BYTES.take(lengths, mode="clip"), lengths)
        counts += [np.count_nonzero(found == signature) for signature in wanted]
    return all(
        count == wanted_count or sum(raw.count(key) for raw in raws) == wanted_count
        for count, (key, wanted_count) in zip(counts.tolist(), expected.items(), strict=True)
    )


_PIECE = 500
_FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], dtype=np.uint64)


def _signatures(heads: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    return heads ^ (lengths.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _count_absent(column: list[Any]) -> int:
    # Truth is told much faster than equality with None.
    return 0 if all(column) else column.count(None)


def _all_none(values: tuple[Any, ...]) -> bool:
    return all(value is None for value in values)


def _is_utf8(raw: bytes) -> bool:
    if not raw.isascii():
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True


def _explain(message: str) -> str:
    """Reword msgspec's message, in the terms of the event."""
    message = message.replace(" | null", "").replace("`$.", "`").replace("Object missing", "it lacks the")
    return message[0].lower() + message[1:].replace(" - at ", " at ")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise MalformedError(f"the key {twice!r} stands twice")
    return result


def _bounded_int(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_DIGITS else math.copysign(math.inf, -1 if text[0] == "-" else 1)


def _find_non_finite(node: Any, path: str) -> NonFinite | None:
    if isinstance(node, float) and not math.isfinite(node):
        return NonFinite(path, str(node))
    if isinstance(node, int) and not isinstance(node, bool) and abs(node) > 1.7976931348623157e308:
        return NonFinite(path, "inf" if node > 0 else "-inf")
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    for key, child in children:
        found = _find_non_finite(child, f"{path}.{key}" if path else str(key))
        if found is not None:
            return found
    return None


def _without_nulls(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nulls(child) for key, child in node.items() if child is not None}
    return node


@dataclass(slots=True)
class Decoded:
    """A decoded batch of n records: `rows[i]` is None exactly when `malformed` has i."""

    rows: list[Any]
    columns: dict[str, list[Any]] | None = None
    """All columns of the batch, where every row was decoded the fast way."""
    malformed: dict[int, str] = field(default_factory=dict)
    non_finite: dict[int, NonFinite] = field(default_factory=dict)


class Columns:
    """The rows of one model in one batch, read column by column; each column is made once, when asked for."""

    def __init__(self, shape: Shape, rows: Sequence[Any], made: Mapping[str, list[Any]] | None = None) -> None:
        self._shape = shape
        self._rows = rows
        self._made: dict[str, Any] = dict(made or {})

    def __len__(self) -> int:
        return len(self._rows)

    def values(self, name: str) -> list[Any]:
        """(n,) the field as it was decoded; None where it is absent."""
        made = self._made.get(name)
        if made is None:
            if name.startswith("outputs."):
                key = name.partition(".")[2]
                made = [None if outputs is None else outputs.get(key) for outputs in self.values("outputs")]
            else:
                made = list(map(self._shape.getters[name], self._rows))
            self._made[name] = made
        return made

    def by_entity(self, name: str, rows: NDArray[np.bool_]) -> dict[str, float]:
        """The last of each entity's numbers among `rows`, a (n,) mask."""
        entities, numbers = self.values("entity_id"), self.numbers(name)
        if rows.all():
            return dict(zip(entities, numbers.tolist(), strict=True))
        return dict(zip(compress(entities, rows.tolist()), numbers[rows].tolist(), strict=True))

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) float64; NaN where the field is absent or is no single number."""
        key = f"{name} as numbers"
        made = self._made.get(key)
        if made is None:
            try:
                made = np.array(self.values(name), dtype=np.float64)
            except (TypeError, ValueError):
                made = np.array([_number(value) for value in self.values(name)], dtype=np.float64)
            if made.ndim != 1:
                made = np.array([_number(value) for value in self.values(name)], dtype=np.float64)
            self._made[key] = made
        return made


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
