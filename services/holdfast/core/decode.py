"""From the bytes of an event to the columns that checks read.

The fast way is msgspec with a struct that names only the fields that policies use, and the second places that an event
may hold them at. Four things that it lets pass are looked for over the joined bytes of the whole batch: a key that
stands twice, in one case or in two, an escape that could hide one, bytes that are not UTF-8, and a number that no
double holds. A record that may have any of them, and each record that msgspec refuses, goes the strict way: the
standard library's parser, one record at a time, which says what is wrong with it. Both ways give the same answer, so a
record's verdict does not hang on its neighbours.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from holdfast.core.entity_ids import with_unclear_ends
from holdfast.core.malformed import (
    Identity,
    Malformed,
    MalformedKind,
    identity_text,
    malformed,
    seen_in_short,
    short,
)
from holdfast.core.mapping import Mapped, Path, Reading, converter, format_path, look, path_of, reading_of
from holdfast.core.second_places import ODD_LETTERS, OUTPUTS, Place, apart, second_place

REQUIRED = ("prediction_id", "model", "model_version", "entity_id")
OPTIONAL = ("value", "outputs", "currency", "predicted_at", "segment")
FIELD_NAMES = (*REQUIRED, *OPTIONAL)

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
_Aware = Annotated[datetime, msgspec.Meta(tz=True)]
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


def field_names_hint() -> str:
    return ", ".join((*FIELD_NAMES, "outputs.<name>", "features.<name>"))


def is_field(name: str) -> bool:
    """Whether a policy may read `name`."""
    return name in FIELD_NAMES or is_number_field(name)


def is_number_field(name: str) -> bool:
    """Whether `name` may be a number."""
    return name == "value" or (name.startswith(("outputs.", "features.")) and not name.endswith("."))


class Shape:
    """How one kind of event is read: the path of each field, how it is written, and the decoders made from them.

    `fields` maps a field's name to where it stands, where that is not the contract's place; `numbers`, `texts` and
    `anything` are the fields that policies read, by the type that they need. `second` are places where other programs
    could read another value. Raises ValueError when a path is at once a value and the parent of another.
    """

    def __init__(
        self,
        fields: Mapping[str, Mapped] | None = None,
        *,
        numbers: Iterable[str] = (),
        texts: Iterable[str] = (),
        anything: Iterable[str] = (),
        second: Iterable[Place] = (),
    ) -> None:
        self._mapped = dict(fields or {})
        self._types: dict[str, Any] = dict.fromkeys(REQUIRED, _Text)
        numbers, texts, anything = (*numbers,), (*texts,), (*anything,)
        for name in ("value", "outputs", *texts, *numbers, *anything):
            if name in ("value", "outputs") or not name.startswith("outputs."):
                self._types.setdefault(name, self._type(name))
        self.names = (*self._types,)
        tree: dict[str, Any] = {}
        for name in self.names:
            *parents, leaf = self.keys(name)
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
                if not isinstance(node, dict):
                    raise ValueError(f"path {self.path(name)!r} of field {name!r} runs through another field")
            if leaf in node:
                raise ValueError(f"path {self.path(name)!r} of field {name!r} is taken by another field")
            node[leaf] = name
        self._paths = tuple(
            dict.fromkeys(
                self.keys(name)
                for name in (
                    *FIELD_NAMES,
                    *(one for one in (*texts, *numbers, *anything) if one.startswith("outputs.")),
                )
            )
        )
        self._second = apart(second, map(self.keys, self.names))
        self._watched = self._watch(tree)
        # The output that no policy reads, beside one that is mapped.
        mapped = [name for name in OUTPUTS if name in self._mapped]
        read = {name.partition(".")[0] for name in (*texts, *numbers, *anything)}
        self._unread = [name for name in OUTPUTS if mapped and name not in mapped and name not in read]
        self._second += tuple(
            Place((name,), name, f"beside the {mapped[0]} that the policy maps, and no check reads it")
            for name in self._unread
        )
        struct, self._layout = self._struct(tree, self._types)
        # An integer is an identity too. Most producers write texts, and those are not looked at again.
        self._types |= dict.fromkeys(REQUIRED, _Text | int)
        self._struct_type, _ = self._struct(tree, self._types)
        self._decode = msgspec.json.Decoder(struct).decode
        self._decode_with_integers = msgspec.json.Decoder(self._struct_type).decode
        self._nothing = _blank(self._struct_type)
        as_they_are = {*texts, *anything}
        self._numbers = {name for name in ("value", *numbers) if name in self.names and name not in as_they_are}
        self._kept = {*self.names} - self._numbers
        self._converters = {
            name: converter(name, reading)
            for name in self.names
            if (reading := self.reading(name)) is not None
            # Of `features` as a whole, what is read as a number.
            and (name in self._mapped or name in self._numbers)
        }

    def _watch(self, tree: dict[str, Any]) -> dict[str, list[Path]]:
        """Let the decoder keep what stands at second places: by the name of the column the rests of the paths."""
        watched: dict[str, list[Path]] = {}
        for place in self._second:
            node = tree
            for depth, key in enumerate(place.path):
                if key not in node:
                    # Only down to here: on the way there may be no object.
                    node[key] = f"#{len(watched)}"
                    self._types[node[key]] = Any
                if not isinstance(node[key], dict):
                    watched.setdefault(node[key], []).append(place.path[depth + 1 :])
                    break
                node = node[key]
        return watched

    def keys(self, name: str) -> Path:
        """The path of a field in the event, as its keys."""
        if name in self._mapped:
            return path_of(self._mapped[name])
        parent, _, leaf = name.partition(".")
        if leaf and parent in self._mapped:
            return (*path_of(self._mapped[parent]), *leaf.split("."))
        return tuple(name.split("."))

    def path(self, name: str) -> str:
        """The path of a field in the event, as a policy writes it."""
        return format_path(self.keys(name))

    def reading(self, name: str) -> Reading | None:
        """How the field is written, where that is not the contract's way."""
        mapped = self._mapped.get(name, self._mapped.get(name.partition(".")[0]))
        return None if mapped is None else reading_of(mapped)

    def _type(self, name: str) -> Any:
        reading = self.reading(name)
        if name == "value":
            return float | str | None if reading is Reading.DECIMAL_TEXT else float | None
        if name == "outputs":
            one = float | str if reading is Reading.DECIMAL_TEXT else float
            return dict[str, one | list[one]] | None  # type: ignore[valid-type]
        if name == "predicted_at":
            if reading in (Reading.EPOCH_S, Reading.EPOCH_MS):
                return int | float | None
            return datetime | None if reading is Reading.UTC else _Aware | None
        # What is no field of the contract may be of any type: a feature that is a number for one model may be a text
        # for another whose events have this shape too. `Columns.numbers` tells them apart.
        return str | None if name in FIELD_NAMES else Any

    def _struct(self, tree: Mapping[str, Any], types: Mapping[str, Any]) -> tuple[type[msgspec.Struct], "_Layout"]:
        """A struct for a node of the event, and what its fields hold."""
        fields: list[Any] = []
        layout: list[Any] = []
        for position, (key, node) in enumerate(tree.items()):
            held: Any
            if isinstance(node, dict):
                kind, held = self._struct(node, types)
                needed = any(f.required for f in msgspec.structs.fields(kind))
                default = msgspec.field(name=key) if needed else msgspec.field(name=key, default_factory=kind)
            else:
                held, kind = node, types[node]
                default = msgspec.field(name=key) if held in REQUIRED else msgspec.field(name=key, default=None)
            fields.append((f"f{position}", kind, default))
            layout.append(held)
        return msgspec.defstruct("Event", fields, kw_only=True, gc=False), tuple(layout)

    def decode(self, raws: Sequence[bytes | None], *, approved: bool = False) -> "Decoded":
        """Decode a batch; each record becomes a row, or is malformed, or holds a number that is not finite.

        What was approved before has been looked at for what msgspec lets pass.
        """
        decoded = Decoded(
            {name: [] for name in self._kept}, {name: np.empty(len(raws), dtype=np.float64) for name in self._numbers}
        )
        # In pieces that stay in the processor's cache.
        size = max(1, sum(map(len, filter(None, raws))) // max(1, len(raws)))
        piece = min(_PIECE, _PIECE_BYTES // size + 1)
        for start in range(0, len(raws), piece):
            some = raws[start : start + piece]
            rows, has_integers = self._decode_piece(some, start, decoded, approved)
            columns = _transposed(rows, self._layout)
            if not approved and (odd := self._odd_rows(some, columns)):
                for position in odd:
                    self._read_strictly(some[position], position, rows, start, decoded)
                columns, has_integers = _transposed(rows, self._layout), True
            if has_integers:
                for name in REQUIRED:
                    columns[name] = tuple(str(one) if type(one) is int else one for one in columns[name])
            for name, convert in self._converters.items():
                columns[name] = self._convert(name, convert, columns[name], some, start, decoded)
            self._demand_an_output(columns, some, start, decoded)
            if not approved:
                self._refuse_unclear_entities(columns["entity_id"], some, start, decoded)
            for name in self._kept:
                decoded.columns[name] += _share(columns[name])
            for name in self._numbers:
                decoded.numbers[name][start : start + piece] = _numbers(columns[name])
        return decoded

    def _odd_rows(self, raws: Sequence[bytes | None], columns: Mapping[str, Sequence[Any]]) -> list[int]:
        """The rows to read strictly for what their columns hold."""
        # msgspec reads the integer -0 as 0.
        odd = _negative_zeros(raws, columns["value"], columns["outputs"])
        looked_at: dict[str, list[Path]] = self._watched | {name: [()] for name in self._unread}
        for name, rests in looked_at.items():
            column = columns[name]
            if column.count(None) < len(column):
                odd += [
                    row for row, seen in enumerate(column) if any(look(seen, rest)[1] is not None for rest in rests)
                ]
        return sorted(set(odd))

    def _decode_piece(
        self, raws: Sequence[bytes | None], start: int, decoded: "Decoded", approved: bool
    ) -> tuple[list[Any], bool]:
        """The rows, and whether an identity among them may be an integer."""
        suspects: list[int] = []
        rows: list[Any] = []
        has_integers = False
        try:
            rows = [*map(self._decode, raws)]  # type: ignore[arg-type]
        except _REFUSALS:
            decode, has_integers = self._decode_with_integers, True
            try:
                rows = [*map(decode, raws)]  # type: ignore[arg-type]
            except _REFUSALS:
                rows = []
                for position, raw in enumerate(raws):
                    try:
                        rows.append(decode(raw))  # type: ignore[arg-type]
                    except _REFUSALS:
                        rows.append(self._nothing)
                        suspects.append(position)
        if not approved:
            suspects += _suspects(raws, refused=suspects)
        has_integers = has_integers or bool(suspects)
        for position in suspects:
            self._read_strictly(raws[position], position, rows, start, decoded)
        return rows, has_integers

    def _read_strictly(self, raw: bytes | None, position: int, rows: list[Any], start: int, decoded: "Decoded") -> None:
        try:
            rows[position], non_finite, ambiguous = self._decode_strictly(raw)
            if non_finite:
                decoded.non_finite[start + position] = non_finite
            if ambiguous is not None:
                decoded.ambiguous[start + position] = ambiguous
        except MalformedError as error:
            rows[position] = self._nothing
            decoded.malformed[start + position] = error.malformed

    def _convert(
        self,
        name: str,
        convert: Callable[[Any], Any],
        column: Sequence[Any],
        raws: Sequence[bytes | None],
        start: int,
        decoded: "Decoded",
    ) -> tuple[Any, ...]:
        """A column in the contract's types; a row that cannot be converted is malformed."""
        result: list[Any] = []
        for position, seen in enumerate(column, start):
            one = None
            if seen is not None and position not in decoded.malformed:
                try:
                    one = convert(seen)
                except ValueError:
                    event = read_leniently(raws[position - start])
                    decoded.malformed[position] = self._wrong_type(name, self.keys(name), seen, event)
                else:
                    if (found := _find_non_finite(one, name)) is not None:
                        known = decoded.non_finite.get(position, ())
                        decoded.non_finite[position] = (*known, NonFinite(found.field, found.seen, name))
            result.append(one)
        return tuple(result)

    def _demand_an_output(
        self, columns: Mapping[str, Sequence[Any]], raws: Sequence[bytes | None], start: int, decoded: "Decoded"
    ) -> None:
        # Truth is told much faster than equality with None.
        if all(columns["value"]) or None not in columns["value"]:
            return
        for position, (value, outputs) in enumerate(zip(columns["value"], columns["outputs"], strict=True), start):
            if value is None and not outputs and position not in decoded.malformed:
                event = read_leniently(raws[position - start])
                decoded.malformed[position] = malformed(
                    f"neither value nor outputs is given: {self._what_stands_at('value', event)}, and "
                    f"{self._what_stands_at('outputs', event)}",
                    MalformedKind.NO_OUTPUT,
                    field="value",
                    wanted="a number",
                    identity=self.identity(event),
                )

    def _refuse_unclear_entities(
        self, entities: Sequence[str | None], raws: Sequence[bytes | None], start: int, decoded: "Decoded"
    ) -> None:
        for row, character in with_unclear_ends(entities).items():
            if start + row not in decoded.malformed:
                entity = entities[row] or ""
                decoded.malformed[start + row] = malformed(
                    f"the entity_id, {short(entity)}, begins or ends with a blank or invisible character "
                    f"(U+{ord(character):04X}): it would be another entity than the one without it",
                    MalformedKind.BAD_ENTITY,
                    field="entity_id",
                    seen=seen_in_short(entity),
                    wanted="an id that begins and ends with a visible character",
                    identity=self.identity(read_leniently(raws[row])),
                )

    def _decode_strictly(self, raw: bytes | None) -> tuple[Any, tuple[NonFinite, ...], Malformed | None]:
        """The row, its numbers that are not finite, and why it may be read in another way. Raises MalformedError."""
        if raw is None:
            raise MalformedError("the record has no value", MalformedKind.EMPTY)
        try:
            event = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_bounded_int)
        except UnicodeDecodeError as error:
            if _is_framed(raw):
                raise _framed(raw) from None
            reason = f"the value is not UTF-8: byte {error.start} is {raw[error.start]:#04x}"
            raise self._unreadable(reason, MalformedKind.NOT_UTF8, raw) from None
        except _RepeatedKey as error:
            reason = f"the key {error.key[:100]!r} stands twice"
            raise self._unreadable(reason, MalformedKind.REPEATED_KEY, raw) from None
        except RecursionError:
            raise MalformedError("the value is nested too deeply", MalformedKind.TOO_DEEP) from None
        except json.JSONDecodeError as error:
            if _is_framed(raw):
                raise _framed(raw) from None
            reason = f"the value is not JSON: {error.msg} at byte {error.pos}"
            raise self._unreadable(reason, MalformedKind.NOT_JSON, raw) from None
        if not isinstance(event, dict):
            raise MalformedError(
                f"the value is a JSON {type(event).__name__}, not an object", MalformedKind.NOT_AN_OBJECT
            )
        try:
            if b"\\u" in raw:
                json.dumps(event, ensure_ascii=False).encode()
            non_finite = self._non_finite(event)
            row = msgspec.convert(_without_nulls(event), self._struct_type)
            return row, non_finite, second_place(event, self._second, self._paths, self.identity(event))
        except UnicodeEncodeError:
            raise MalformedError(
                "a text holds half of a surrogate pair, which is no character",
                MalformedKind.BROKEN_TEXT,
                identity=self.identity(event),
            ) from None
        except RecursionError:
            raise MalformedError("the value is nested too deeply", MalformedKind.TOO_DEEP) from None
        except msgspec.ValidationError as error:
            found = MalformedError(_explain(str(error)), MalformedKind.WRONG_TYPE, identity=self.identity(event))
            found.malformed = self._flaw(event) or found.malformed
            raise found from None

    def _non_finite(self, event: Mapping[str, Any]) -> tuple[NonFinite, ...]:
        """The numbers of an event that are not finite: of each field of the shape the first, else the first of all."""
        first = _find_non_finite(event, "")
        if first is None:
            return ()
        found: list[NonFinite] = []
        for name in self.names:
            one = _find_non_finite(look(event, self.keys(name))[1], name)
            if one is not None:
                found.append(NonFinite(one.field, one.seen, name))
        return tuple(found) or (first,)

    # Why an event is malformed.

    def identity(self, event: Any) -> Identity:
        """What an event says of itself, as far as it can be read."""
        return Identity(*(identity_text(look(event, self.keys(name))[1]) if event else None for name in _IDENTITY))

    def identity_of(self, raw: bytes | None) -> Identity:
        """What the bytes of an event say of it, as far as they can be read."""
        return self.identity(read_leniently(raw))

    def _unreadable(self, reason: str, kind: MalformedKind, raw: bytes) -> MalformedError:
        return MalformedError(reason, kind, identity=self.identity(read_leniently(raw)))

    def _flaw(self, event: Mapping[str, Any]) -> Malformed | None:
        """The first field that is missing or of a wrong type."""
        for name in self.names:
            keys = self.keys(name)
            at, seen, found = look(event, keys)
            if found and seen is not None:
                try:
                    msgspec.convert(_without_nulls(seen), self._types[name])
                except msgspec.ValidationError:
                    return self._wrong_type(name, keys, seen, event)
            elif len(at) < len(keys) and seen is not None:
                # Something stands where a parent should be.
                return self._wrong_type(name, at, seen, event)
            elif name in REQUIRED:
                return malformed(
                    f"it lacks the required field `{name}`: {self._what_stands_at(name, event)}",
                    MalformedKind.MISSING_FIELD,
                    field=name,
                    wanted=self._wanted(name),
                    identity=self.identity(event),
                )
        return None

    def _wrong_type(self, name: str, at: Path, seen: Any, event: Any) -> Malformed:
        wanted = self._wanted(name)
        where, found, _ = look(event, at)
        # As it came, where that can still be read.
        seen = seen if found is None or where != at else found
        if at != self.keys(name):
            reason = f"expected an object at `{format_path(at)}`, on the way to `{self.path(name)}` of `{name}`"
        else:
            mapped = f"`{name}`" + ("" if self.path(name) == name else f" at `{self.path(name)}`")
            reason = f"expected {wanted} for {mapped}"
        hint = self._hint(name, seen) if at == self.keys(name) else ""
        return malformed(
            f"{reason}, got {short(seen)}{hint}",
            MalformedKind.WRONG_TYPE,
            field=name,
            seen=seen_in_short(seen),
            wanted=wanted,
            identity=self.identity(event),
        )

    def _what_stands_at(self, name: str, event: Any) -> str:
        at, seen, found = look(event, self.keys(name))
        if found or seen is not None:
            return f"at `{format_path(at)}` stands {short(seen)}"
        missing = "" if at == self.keys(name) else f" (there is no `{format_path(at)}`)"
        return f"nothing stands at `{self.path(name)}`{missing}"

    def _wanted(self, name: str) -> str:
        if name in REQUIRED:
            return "a text of 1 to 1000 characters or an integer"
        reading = self.reading(name)
        number = "a number, or a text that holds one" if reading is Reading.DECIMAL_TEXT else "a number"
        if name == "value":
            return number
        if name == "outputs":
            return f"an object, each member {number} or a list of those"
        if name == "predicted_at":
            return {
                None: "a time with a zone, as 2026-11-24T10:00:00Z,",
                Reading.UTC: "a time, as 2026-11-24T10:00:00,",
                Reading.EPOCH_S: "a number of seconds since 1970",
                Reading.EPOCH_MS: "a number of milliseconds since 1970",
            }[reading]
        return "a text"

    def _hint(self, name: str, seen: Any) -> str:
        """Which reading of the policy would take it."""
        if self.reading(name) is not None:
            return ""
        reading = None
        if name == "value" and isinstance(seen, str):
            try:
                converter(name, Reading.DECIMAL_TEXT)(seen)
                reading = Reading.DECIMAL_TEXT
            except ValueError:
                pass
        elif name == "predicted_at" and isinstance(seen, int | float) and not isinstance(seen, bool):
            reading = Reading.EPOCH_MS if abs(seen) >= 1e11 else Reading.EPOCH_S
        elif name == "predicted_at" and isinstance(seen, str):
            try:
                msgspec.convert(seen, datetime)
                reading = Reading.UTC
            except msgspec.ValidationError:
                pass
        if reading is None:
            return ""
        line = f'{name} = {{ path = {_quoted(self.path(name))}, as = "{reading}" }}'
        return f"; if that is right, write `{line}` in [fields]"


_IDENTITY = ("model", "model_version", "entity_id", "prediction_id")


def _quoted(path: str) -> str:
    return f"'{path}'" if '"' in path else f'"{path}"'


def _is_framed(raw: bytes) -> bool:
    """Whether a value that is not JSON begins as the serializers of a schema registry write it."""
    return len(raw) >= 5 and raw[0] == 0


def _framed(raw: bytes) -> MalformedError:
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
            return json.loads(attempt, object_pairs_hook=_distinct_keys, parse_int=_bounded_int)
        except (ValueError, RecursionError):
            continue
    return None


_BARE_WORDS = re.compile(
    r"([:\[,]\s*)[-+]?(?:nan(?:\([a-z0-9]*\))?|inf(?:inity)?|1\.#[a-z0-9]+|none|undefined|na|n/a)(?=\s*[,}\]])",
    re.IGNORECASE,
)


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
    if not joined.isascii() and any(letter in joined for letter in ODD_LETTERS):
        found += [i for i, value in zip(positions, values, strict=True) if _ODD_KEY.search(value)]
    if values:
        found += [positions[row] for row in _ambiguous(joined, list(map(len, values)))]
    return found


def _negative_zeros(raws: Sequence[bytes | None], values: Sequence[Any], outputs: Sequence[Any]) -> list[int]:
    """The positions of records that may hold the integer -0 as an output."""
    found: list[int] = []
    if 0.0 in values:
        found = [i for i, value in enumerate(values) if value == 0.0]
    if any(outputs):
        found += [i for i, given in enumerate(outputs) if given]
    return sorted({i for i in found if (raw := raws[i]) is not None and b"-0" in raw and _NEGATIVE_ZERO.search(raw)})


_ODD_KEY = re.compile(rb'"[^"]*(?:%s)[^"]*"\s*:' % b"|".join(ODD_LETTERS))
_NEGATIVE_ZERO = re.compile(rb"-0[,\]}\s]")


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
    """Whether all records plainly have as many keys as the first, in its order, and no two of them alike but for case.

    A key is told by its last eight bytes, which of a shorter one begin with the quote before it. Keys with other
    letters than those of ASCII are not plain.
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
    if not (keys == keys[0]).all() or (keys[0] & _HIGH_BITS).any():
        return False
    # Two keys that may differ only in case are looked at, too.
    return len(set((keys[0] | _SMALL_LETTERS).tolist())) == each


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
    """The rows in which a key may stand twice, in one case or in two.

    Keys are told by their length and their first and last eight bytes.
    """
    quotes, words = _quotes(letters), _words(text)
    opens, closes = quotes[0::2] + 1, quotes[1::2]
    after = closes + 1
    while (white := (following := letters[after]) <= ord(" ")).any():
        after = after + white
    keys = np.flatnonzero(following == ord(":"))
    opens, closes = opens[keys], closes[keys]
    lengths = closes - opens
    signs = (words[opens] | _SMALL_LETTERS) & _FIRST_BYTES.take(lengths, mode="clip")
    signs ^= lengths.view(np.uint64) * _ODDER
    signs ^= np.where(lengths > 8, words[closes - 8] | _SMALL_LETTERS, 0) * _ODD
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
_HIGH_BITS, _SMALL_LETTERS = np.uint64(0x8080808080808080), np.uint64(0x2020202020202020)
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


class _RepeatedKey(Exception):  # noqa: N818  it is a finding
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        raise _RepeatedKey(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return result


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        result = {key: seen for key, seen in pairs if counts[key] == 1}
    return result


def _bounded_int(text: str) -> int | float:
    if text == "-0":
        return -0.0
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

    `numbers` are the fields that are read as numbers only: (n,) each, NaN where there is none. `ambiguous` are the
    rows that another program may read in another way, and why.
    """

    columns: dict[str, list[Any]]
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    malformed: dict[int, Malformed] = field(default_factory=dict)
    non_finite: dict[int, tuple[NonFinite, ...]] = field(default_factory=dict)
    ambiguous: dict[int, Malformed] = field(default_factory=dict)


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

    def reads(self, name: str) -> bool:
        """Whether this field was decoded, because a check reads it."""
        return name in self._made

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

    def has(self, name: str) -> bool:
        """Whether any row has the field: as a number where only numbers are read, else as anything."""
        if not name.startswith("outputs.") and name not in self._made:
            return not bool(np.isnan(self.numbers(name)).all())
        values = self.values(name)
        return values.count(None) < len(values)

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
