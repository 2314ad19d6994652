"""From the bytes of an event to the columns that checks read.

The fast way is msgspec with a struct that names only the fields that policies use, and the second places that an event
may hold them at. Four things that it lets pass are looked for over the joined bytes of the whole batch: a key that
stands twice, in one case or in two, an escape that could hide one, bytes that are not UTF-8, and a number that no
double holds. A record that may have any of them, and each record that msgspec refuses, goes the strict way: the
standard library's parser, one record at a time, which says what is wrong with it. Both ways give the same answer, so a
record's verdict does not hang on its neighbours.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import numpy as np

from holdfast.core.byte_scans import negative_zeros, suspect_rows
from holdfast.core.columns import Decoded, as_numbers
from holdfast.core.entity_ids import with_unclear_ends
from holdfast.core.field_names import FIELD_NAMES, REQUIRED
from holdfast.core.malformed import Identity, Malformed, MalformedKind, identity_text, malformed, seen_in_short, short
from holdfast.core.mapping import Mapped, Path, Reading, converter, format_path, look, path_of, reading_of
from holdfast.core.one_event import (
    MalformedError,
    NonFinite,
    RepeatedKeyError,
    bounded_int,
    find_non_finite,
    framed,
    is_framed,
    read_leniently,
    unique_keys,
    without_nulls,
)
from holdfast.core.second_places import OUTPUTS, Place, apart, second_place

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


_Aware = Annotated[datetime, msgspec.Meta(tz=True)]


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
                decoded.numbers[name][start : start + piece] = as_numbers(columns[name])
        return decoded

    def _odd_rows(self, raws: Sequence[bytes | None], columns: Mapping[str, Sequence[Any]]) -> list[int]:
        """The rows to read strictly for what their columns hold."""
        # msgspec reads the integer -0 as 0.
        odd = negative_zeros(raws, columns["value"], columns["outputs"])
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
            suspects += suspect_rows(raws, refused=suspects)
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
                    if (found := find_non_finite(one, name)) is not None:
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
            event = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys, parse_int=bounded_int)
        except UnicodeDecodeError as error:
            if is_framed(raw):
                raise framed(raw) from None
            reason = f"the value is not UTF-8: byte {error.start} is {raw[error.start]:#04x}"
            raise self._unreadable(reason, MalformedKind.NOT_UTF8, raw) from None
        except RepeatedKeyError as error:
            reason = f"the key {error.key[:100]!r} stands twice"
            raise self._unreadable(reason, MalformedKind.REPEATED_KEY, raw) from None
        except RecursionError:
            raise MalformedError("the value is nested too deeply", MalformedKind.TOO_DEEP) from None
        except json.JSONDecodeError as error:
            if is_framed(raw):
                raise framed(raw) from None
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
            row = msgspec.convert(without_nulls(event), self._struct_type)
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
        first = find_non_finite(event, "")
        if first is None:
            return ()
        found: list[NonFinite] = []
        for name in self.names:
            one = find_non_finite(look(event, self.keys(name))[1], name)
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
                    msgspec.convert(without_nulls(seen), self._types[name])
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


_PIECE, _PIECE_BYTES = 500, 200_000
"""At most so many records, and about so many bytes."""


def _explain(message: str) -> str:
    """Reword msgspec's message, in the terms of the event."""
    message = message.replace(" | null", "").replace("`$.", "`").replace("Object missing", "it lacks the")
    return message[0].lower() + message[1:].replace(" - at ", " at ")
