"""From the bytes of an event to the columns that checks read.

The fast way is msgspec with a struct that names only the fields that policies use. Four things that it lets
pass are looked for over the joined bytes of the whole batch: a key that stands twice, an escape that could
hide one, bytes that are not UTF-8, and a number that no double holds. A record that may have any of them, and each
record that msgspec refuses, goes the strict way: the standard library's parser, one record at a time, which says
what is wrong with it. Both ways give the same answer, so a record's verdict does not hang on its neighbours.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

REQUIRED = ("prediction_id", "model", "model_version", "entity_id")
OPTIONAL = ("value", "outputs", "currency", "predicted_at", "segment")
FIELD_NAMES = (*REQUIRED, *OPTIONAL)

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
_Aware = Annotated[datetime, msgspec.Meta(tz=True)]
_MAX_DIGITS = 308
"""Every whole number of so many digits is a finite double."""


_LONGEST_REASON = 1000
"""It names keys of the event, and goes into a header."""


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
    return name in FIELD_NAMES or is_number_field(name)


def is_number_field(name: str) -> bool:
    """Whether `name` may be a number."""
    return name == "value" or (name.startswith(("outputs.", "features.")) and not name.endswith("."))


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
        # What is no field of the contract may be of any type: a feature that is a number for one model may be a text
        # for another whose events have this shape too. `Columns.numbers` tells them apart.
        for name in (*texts, *numbers, *anything):
            if name == "predicted_at":
                types[name] = _Aware | None
            elif not name.startswith("outputs."):
                types.setdefault(name, str | None if name in FIELD_NAMES else Any)
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
        self._struct_type, self._layout = self._struct(tree)
        self._decode = msgspec.json.Decoder(self._struct_type).decode
        self._nothing = _blank(self._struct_type)
        as_they_are = {*texts, *anything}
        self._numbers = {name for name in ("value", *numbers) if name in self.names and name not in as_they_are}
        self._kept = {*self.names} - self._numbers - ({"prediction_id"} - as_they_are)

    def path(self, name: str) -> str:
        """The dotted path of a field in the event."""
        if name in self.paths:
            return self.paths[name]
        parent, _, leaf = name.partition(".")
        return f"{self.paths[parent]}.{leaf}" if leaf and parent in self.paths else name

    def _struct(self, tree: Mapping[str, Any]) -> tuple[type[msgspec.Struct], "_Layout"]:
        """A struct for a node of the event, and what its fields hold."""
        fields: list[Any] = []
        layout: list[Any] = []
        for position, (key, node) in enumerate(tree.items()):
            if isinstance(node, dict):
                kind, held = self._struct(node)
                needed = any(f.required for f in msgspec.structs.fields(kind))
                default = msgspec.field(name=key) if needed else msgspec.field(name=key, default_factory=kind)
            else:
                held, kind = node
                default = msgspec.field(name=key) if held in REQUIRED else msgspec.field(name=key, default=None)
            fields.append((f"f{position}", kind, default))
            layout.append(held)
        return msgspec.defstruct("Event", fields, kw_only=True, gc=False), tuple(layout)

    def decode(self, raws: Sequence[bytes | None], *, approved: bool = False) -> "Decoded":
        """Decode a batch; each record becomes a row, or is malformed, or holds a number that is none.

        What was approved before has been looked at for what msgspec lets pass.
        """
        decoded = Decoded(
            {name: [] for name in self._kept}, {name: np.empty(len(raws), dtype=np.float64) for name in self._numbers}
        )
        # In pieces that stay in the processor's cache.
        size = max(1, sum(map(len, filter(None, raws))) // max(1, len(raws)))
        piece = min(_PIECE, _PIECE_BYTES // size + 1)
        for start in range(0, len(raws), piece):
            rows = self._decode_piece(raws[start : start + piece], start, decoded, approved)
            columns = _transposed(rows, self._layout)
            self._demand_an_output(columns, start, decoded)
            for name in self._kept:
                decoded.columns[name] += _share(columns[name])
            for name in self._numbers:
                decoded.numbers[name][start : start + piece] = _numbers(columns[name])
        return decoded

    def _decode_piece(self, raws: Sequence[bytes | None], start: int, decoded: "Decoded", approved: bool) -> list[Any]:
        decode = self._decode
        suspects: list[int] = []
        rows: list[Any] = []
        try:
            rows = [*map(decode, raws)]  # type: ignore[arg-type]
        except _REFUSALS:
            for position, raw in enumerate(raws):
                try:
                    rows.append(decode(raw))  # type: ignore[arg-type]
                except _REFUSALS:
                    rows.append(self._nothing)
                    suspects.append(position)
        if not approved:
            suspects += _suspects(raws, refused=suspects)
        for position in suspects:
            try:
                rows[position], non_finite = self._decode_strictly(raws[position])
                if non_finite is not None:
                    decoded.non_finite[start + position] = non_finite
            except MalformedError as error:
                rows[position] = self._nothing
                decoded.malformed[start + position] = str(error)[:_LONGEST_REASON]
        return rows

    def _demand_an_output(self, columns: Mapping[str, Sequence[Any]], start: int, decoded: "Decoded") -> None:
        # Truth is told much faster than equality with None.
        if all(columns["value"]) or None not in columns["value"]:
            return
        for position, (value, outputs) in enumerate(zip(columns["value"], columns["outputs"], strict=True), start):
            if value is None and not outputs and position not in decoded.malformed:
                decoded.malformed[position] = f"neither {self.path('value')} nor {self.path('outputs')} is given"

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
            if b"\\u" in raw:
                json.dumps(event, ensure_ascii=False).encode()
            non_finite = _find_non_finite(event, "")
            return msgspec.convert(_without_nulls(event), self._struct_type), non_finite
        except UnicodeEncodeError:
            raise MalformedError("a text holds half of a surrogate pair, which is no character") from None
        except RecursionError:
            raise MalformedError("the value is nested too deeply") from None
        except msgspec.ValidationError as error:
            raise MalformedError(_explain(str(error))) from None


def _transposed(structs: Iterable[Any], layout: "_Layout") -> dict[str, tuple[Any, ...]]:
    """The columns of structs that all have this layout; there must be one."""
    columns: dict[str, tuple[Any, ...]] = {}
    for held, cells in zip(layout, zip(*map(msgspec.structs.astuple, structs), strict=True), strict=True):
        if isinstance(held, tuple):
            columns |= _transposed(cells, held)
        else:
            columns[held] = cells
    return columns


def _share(column: tuple[Any, ...]) -> Sequence[Any]:
    """The same column; one object where all its texts are equal, so that the memory of the others is used again."""
    first = column[0]
    # The last one tells most others in one step.
    alike = isinstance(first, str) and column[-1] == first and column.count(first) == len(column)
    return (first,) * len(column) if alike else column


_Layout = tuple[Any, ...]
"""What the fields of a struct hold, in their order: the name of a column, or the layout of a struct."""


def _blank(struct: Any) -> Any:
    """What stands in a row that could not be decoded; None for what is no struct."""
    if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)):
        return None
    return struct(**{field.name: _blank(field.type) for field in msgspec.structs.fields(struct)})


_REFUSALS = (msgspec.MsgspecError, RecursionError, TypeError, UnicodeDecodeError)


def _suspects(raws: Sequence[bytes | None], refused: Sequence[int]) -> list[int]:
    """The positions, but the `refused`, of records that may hold what msgspec overlooks."""
    positions: Sequence[int] = range(len(raws))
    values: Sequence[Any] = raws
    if refused:
        out = set(refused)
        positions = [i for i in positions if i not in out]
        values = [values[i] for i in positions]
    found: list[int] = []
    joined = b"\n".join(values)
    if b"\\" in joined or not _is_utf8(joined):
        odd = [b"\\" in value or not _is_utf8(value) for value in values]
        found = [i for i, is_odd in zip(positions, odd, strict=True) if is_odd]
        positions = [i for i, is_odd in zip(positions, odd, strict=True) if not is_odd]
        values = [value for value, is_odd in zip(values, odd, strict=True) if not is_odd]
        joined = b"\n".join(values)
    if values:
        found += [positions[row] for row in _ambiguous(joined, list(map(len, values)))]
    return found


def _ambiguous(joined: bytes, lengths: Sequence[int]) -> list[int]:
    """The rows of records that may hold a key twice in one object, or a number that no double holds.

    `joined` are lines of such `lengths`, valid JSON objects without escapes, so that quotes open and close in turn.
    """
    # Eight bytes around, so that a word can be read before and behind every place.
    text = bytes(8) + joined + bytes(8)
    letters = np.frombuffer(text, dtype=np.uint8)
    starts = np.full(len(lengths) + 1, 8, dtype=np.intp)
    starts[1:] += np.cumsum(np.array(lengths) + 1)
    rows = _NOWHERE if _all_have_the_keys_of_the_first(text, letters, starts) else _repeating(text, letters, starts)
    huge = _exponents(letters)
    if max(lengths) > _MAX_DIGITS:
        # A run of more digits covers one of these blocks whole.
        blocks = letters[: len(letters) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
        digits = np.flatnonzero((blocks - ord("0") < 10).all(axis=1))
        huge = np.concatenate((huge, digits * _BLOCK))
    if len(huge):
        rows = np.concatenate((rows, np.searchsorted(starts, huge, side="right") - 1))
    return sorted(set(rows.tolist()))


def _all_have_the_keys_of_the_first(text: bytes, letters: NDArray[np.uint8], starts: NDArray[np.intp]) -> bool:
    """Whether all records plainly have as many keys as the first, in its order, and no two of them alike.

    A key is told by its last eight bytes, which of a shorter one begin with the quote before it.
    """
    quotes, following = letters[:-1] == ord('"'), letters[1:]
    if (quotes & (following <= ord(" "))).any():
        return False  # A colon may stand behind the blank.
    # A text that begins with a colon passes for a key, and so differs from the first record or is one more key there.
    closes = np.flatnonzero(quotes & (following == ord(":")))
    count = len(starts) - 1
    each, odd = divmod(len(closes), count)
    if odd or not each or (closes[::each] < starts[:-1]).any() or (closes[each - 1 :: each] >= starts[1:]).any():
        return False
    sizes = [min(8, close - text.rfind(b'"', 0, close)) for close in closes[:each].tolist()]
    masks = np.array([_LAST_BYTES[size] for size in sizes], dtype=np.uint64)
    keys = _words(text)[closes - 8].reshape(count, each) & masks
    return bool((keys == keys[0]).all()) and len(set(keys[0].tolist())) == each


def _words(text: bytes) -> NDArray[np.uint64]:
    """The eight bytes from each place on, the first one lowest."""
    return np.ndarray((len(text) - 7,), dtype="<u8", buffer=text, strides=(1,))


def _exponents(letters: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The places of exponents without a minus, outside of texts."""
    after_digit = ((letters[1:] | 0x20) == ord("e")) & (letters[:-1] - ord("0") < 10)
    if not after_digit.any():
        return _NOWHERE
    places = np.flatnonzero(after_digit) + 1
    places = places[letters[places + 1] != ord("-")]
    outside: NDArray[np.intp] = places[np.searchsorted(_quotes(letters), places) % 2 == 0]
    return outside


def _quotes(letters: NDArray[np.uint8]) -> NDArray[np.intp]:
    return np.flatnonzero(letters == ord('"'))


def _repeating(text: bytes, letters: NDArray[np.uint8], starts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The rows in which a key stands twice; keys are told by their length and their first and last eight bytes."""
    quotes, words = _quotes(letters), _words(text)
    opens, closes = quotes[0::2] + 1, quotes[1::2]
    after = closes + 1
    while (white := (following := letters[after]) <= ord(" ")).any():
        after = after + white
    keys = np.flatnonzero(following == ord(":"))
    opens, closes = opens[keys], closes[keys]
    lengths = closes - opens
    signs = words[opens] & _FIRST_BYTES.take(lengths, mode="clip")
    signs ^= lengths.view(np.uint64) * _ODDER
    signs ^= np.where(lengths > 8, words[closes - 8], 0) * _ODD
    rows = np.searchsorted(starts, opens, side="right") - 1
    order = np.lexsort((signs, rows))
    rows, signs = rows[order], signs[order]
    repeated: NDArray[np.intp] = rows[1:][(rows[1:] == rows[:-1]) & (signs[1:] == signs[:-1])]
    return repeated


_PIECE, _PIECE_BYTES = 500, 200_000
"""At most so many records, and about so many bytes."""
_NOWHERE = np.zeros(0, dtype=np.intp)
_BLOCK = 128
_FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], dtype=np.uint64)
_LAST_BYTES = [((1 << 8 * size) - 1) << 8 * (8 - size) for size in range(9)]
_ODD, _ODDER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


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
        raise MalformedError(f"the key {twice[:100]!r} stands twice")
    return result


def _bounded_int(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_DIGITS else float(text)


def _find_non_finite(node: Any, path: str) -> NonFinite | None:
    if isinstance(node, float) and not math.isfinite(node):
        return NonFinite(path, str(node))
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
    """A decoded batch of n records, by field; what stands in the rows of `malformed` says nothing.

    `numbers` are the fields that are read as numbers only: (n,) each, NaN where there is none.
    """

    columns: dict[str, list[Any]]
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    malformed: dict[int, str] = field(default_factory=dict)
    non_finite: dict[int, NonFinite] = field(default_factory=dict)


class Columns:
    """The rows of one model in one batch, read column by column; what is made of them is made once."""

    def __init__(self, decoded: Decoded) -> None:
        self._made: dict[str, Any] = decoded.columns | {_as_numbers(name): it for name, it in decoded.numbers.items()}

    @classmethod
    def of(cls, decoded: Decoded, rows: Sequence[int]) -> "Columns":
        """Some rows of a decoded batch."""
        return cls(
            Decoded(
                {name: [column[row] for row in rows] for name, column in decoded.columns.items()},
                {name: column[rows] for name, column in decoded.numbers.items()},
            )
        )

    def __len__(self) -> int:
        return len(self._made["model"])

    def values(self, name: str) -> list[Any]:
        """(n,) the field as it was decoded; None where it is absent."""
        if name.startswith("outputs."):
            self.once(name, lambda: _outputs(self.values("outputs"), name.removeprefix("outputs.")))
        column: list[Any] = self._made[name]
        return column

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) float64; NaN where the field is absent or is no single number."""
        made: NDArray[np.float64] = self.once(_as_numbers(name), lambda: _numbers(self.values(name)))
        return made

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made when it is asked for the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _as_numbers(name: str) -> str:
    return f"{name} as numbers"


def _outputs(given: list[Any], name: str) -> list[Any]:
    return [None if outputs is None else outputs.get(name) for outputs in given]


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    if not _NUMBERS.issuperset(map(type, values)):
        values = [value if type(value) in _NUMBERS else None for value in values]
    return np.array(values, dtype=np.float64)


_NUMBERS = frozenset((float, int, type(None)))
"""Exactly these: True is no number, and neither is a text that looks like one."""
