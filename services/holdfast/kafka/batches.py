"""Record batches as they go to the broker, uncompressed: https://kafka.apache.org/documentation/#recordbatch.

Byte by byte what aiokafka's builder makes, in half the time: that one takes a call for each record, encodes headers
anew that thousands of records share, and has its checksum without the processor's instruction.
"""

import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from holdfast.core.verdict_headers import Headers


class Out(NamedTuple):
    """One record to write."""

    timestamp: int | None
    """Milliseconds since the epoch; None: now."""
    key: bytes | None
    value: bytes | None
    headers: Headers

    @classmethod
    def now(cls, key: bytes | None, value: bytes, headers: Headers | None = None) -> "Out":
        """Make a record of the time when it is written."""
        return cls(None, key, value, headers or [])


@dataclass(frozen=True, slots=True)
class Outs:
    """Records to write, column by column: where there are thousands, a tuple for each takes longer than they do."""

    timestamps: Sequence[int | None]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]

    @classmethod
    def of(cls, some: Iterable["Sequence[Out] | Outs"]) -> "Outs":
        """All of them, one after the other."""
        parts = [one if isinstance(one, Outs) else cls(*zip(*one, strict=True)) for one in some if len(one)]
        if len(parts) == 1:
            return parts[0]
        joined = zip(*((one.timestamps, one.keys, one.values, one.headers) for one in parts), strict=True)
        return cls(*(tuple(chain.from_iterable(column)) for column in joined)) if parts else cls((), (), (), ())

    def __len__(self) -> int:
        return len(self.timestamps)


_HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, checksum, attributes, last offset, first and latest timestamp, the
producer's id, epoch and sequence, count."""
_LENGTH_FROM, _CHECKSUM_AT, _SUMMED_FROM = 12, 17, 21
_MAGIC, _TRANSACTIONAL = 2, 0x10
_SMALL_NUMBERS = 40
"""Bytes that the numbers of one record take at most, and its attributes."""

LONG_NAME = 100
"""Characters of a header's name, beyond which it is not remembered."""
_WIDEST = 10
"""Bytes of a varint of 64 bits."""

Numbers = NDArray[np.int64]


class RecordBatch:
    """To aiokafka's producer it is one of its own `BatchBuilder`."""

    def __init__(self, records: bytes, count: int, first: int, latest: int, *, transactional: bool) -> None:
        self._records, self._count, self._first, self._latest = records, count, first, latest
        self._size = _HEADER.size + len(records)
        self._attributes = _TRANSACTIONAL if transactional else 0
        self._producer = (-1, -1, 0)
        self._built: bytes | None = None

    def record_count(self) -> int:
        return self._count

    def close(self) -> None:
        """It is: nothing is added."""

    def closed(self) -> bool:
        return True

    def size(self) -> int:
        return self._size

    def _set_producer_state(self, producer_id: int, epoch: int, sequence: int) -> None:
        self._producer = (producer_id, epoch, sequence)

    def _build(self) -> bytes:
        """Once: what is sent again must be the same."""
        if self._built is None:
            length, last = self.size() - _LENGTH_FROM, self._count - 1
            times = self._first, self._latest
            header = bytearray(
                _HEADER.pack(0, length, -1, _MAGIC, 0, self._attributes, last, *times, *self._producer, self._count)
            )
            checksum = crc32c(self._records, crc32c(header[_SUMMED_FROM:]))
            struct.pack_into(">I", header, _CHECKSUM_AT, checksum)
            self._built = b"".join((header, self._records))
            self._records = b""  # Not twice in memory while it is on its way.
        return self._built


def batches_of(outs: Outs, *, max_bytes: int, transactional: bool) -> Iterator[RecordBatch]:
    """The records in their order, in batches of at most so many bytes; a larger record has one of its own."""
    if not len(outs):
        return
    keys, values, tails = outs.keys, outs.values, _tails(outs.headers)
    try:
        times = np.array(outs.timestamps, dtype=np.int64)
    except TypeError:
        now = int(time.time() * 1000)
        times = np.array([now if stamp is None else stamp for stamp in outs.timestamps], dtype=np.int64)
    key_sizes, value_sizes = _sizes(keys), _sizes(values)
    bodies = np.maximum(key_sizes, 0) + np.maximum(value_sizes, 0) + _sizes(tails)
    ends = np.cumsum(bodies + _SMALL_NUMBERS)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + max_bytes - _HEADER.size, side="right"))
        some = slice(start, max(fitting, start + 1))
        first, latest = int(times[start]), int(times[some].max())
        heads = _heads(times[some] - first, key_sizes[some], value_sizes[some], bodies[some])
        pieces: list[bytes | None] = [b""] * (5 * len(heads))
        pieces[0::5], pieces[1::5] = heads, keys[some]
        pieces[2::5] = map(_VARINTS.__getitem__, value_sizes[some].tolist())
        pieces[3::5], pieces[4::5] = values[some], tails[some]
        try:
            records = b"".join(pieces)  # type: ignore[arg-type]
        except TypeError:
            records = b"".join(filter(None, pieces))
        yield RecordBatch(records, len(heads), first, latest, transactional=transactional)
        start = some.stop


def _sizes(column: Sequence[bytes | None]) -> Numbers:
    """(n,) the length of each; -1 where there is none."""
    try:
        return np.fromiter(map(len, column), dtype=np.int64, count=len(column))  # type: ignore[arg-type]
    except TypeError:
        return np.array([-1 if one is None else len(one) for one in column], dtype=np.int64)


def _tails(headers: Sequence[Headers]) -> Sequence[bytes]:
    """What stands behind the value of each record: most share one list of headers, or all but the last of them."""
    if headers.count(headers[0]) == len(headers):
        return (_tail(headers[0]),) * len(headers)
    if len(set(map(len, headers))) > 1:
        known = {id(one): _tail(one) for one in {id(one): one for one in headers}.values()}
        return [known[id(one)] for one in headers]
    pieces: list[Iterable[bytes]] = [repeat(_VARINTS[len(headers[0])])]
    for column in zip(*headers, strict=True):
        if column.count(column[0]) == len(column):
            pieces.append(repeat(_tail([column[0]])[1:]))
            continue
        names, values = zip(*column, strict=True)
        pieces += (
            map(_named, names),
            map(_VARINTS.__getitem__, _sizes(values).tolist()),
            values if None not in values else [value or b"" for value in values],
        )
    return [*map(b"".join, zip(*pieces, strict=False))]


def _tail(headers: Headers) -> bytes:
    pieces = [_VARINTS[len(headers)]]
    for name, value in headers:
        pieces += (_named(name), _VARINTS[-1 if value is None else len(value)], value or b"")
    return b"".join(pieces)


def _named(name: str) -> bytes:
    # Names as long as a producer likes would fill the memory.
    return _known_name(name) if len(name) <= LONG_NAME else _name(name)


def _name(name: str) -> bytes:
    raw = name.encode()
    return _VARINTS[len(raw)] + raw


_known_name = lru_cache(1000)(_name)


def _heads(deltas: Numbers, key_sizes: Numbers, value_sizes: Numbers, bodies: Numbers) -> list[bytes]:
    """What stands before the key of each record: length, attributes, time and offset from the first, key's length."""
    offsets = np.arange(len(deltas), dtype=np.int64)
    attributes = np.zeros((len(deltas), 1), dtype=np.uint8), np.ones(len(deltas), dtype=np.intp)
    inner = [attributes, *map(_varints, (deltas, offsets, key_sizes))]
    lengths = bodies + sum(sizes for _, sizes in inner) + _varint_sizes(_zigzag(value_sizes))
    varints = [_varints(lengths), *inner]
    block = np.concatenate([places for places, _ in varints], axis=1)
    # Few ways of how many bytes each number takes; the heads of each such way are of one width.
    ways = np.zeros(len(deltas), dtype=np.intp)
    for _, sizes in varints:
        ways = ways * (_WIDEST + 1) + sizes
    heads: list[bytes] = []
    order: list[NDArray[np.intp]] = []
    for way in np.unique(ways):
        rows = np.flatnonzero(ways == way)
        taken = np.concatenate([np.arange(places.shape[1]) < sizes[rows[0]] for places, sizes in varints])
        alike = block[rows].compress(taken, axis=1)
        heads += alike.view(f"V{alike.shape[1]}").ravel().tolist()
        order.append(rows)
    if len(order) == 1:
        return heads
    back = np.argsort(np.concatenate(order), kind="stable")
    return [heads[row] for row in back.tolist()]


def _zigzag(numbers: Numbers) -> NDArray[np.uint64]:
    return ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)


def _varint_sizes(zigzag: NDArray[np.uint64]) -> NDArray[np.intp]:
    sizes = np.ones(len(zigzag), dtype=np.intp)
    for place in range(1, _width(zigzag)):
        sizes += zigzag >= np.uint64(1 << 7 * place)
    return sizes


def _width(zigzag: NDArray[np.uint64]) -> int:
    """Bytes of the longest varint."""
    return max(1, -(-int(zigzag.max()).bit_length() // 7))


def _varints(numbers: Numbers) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """(n, width) the bytes of each zigzag varint, and (n,) how many of them there are."""
    left = _zigzag(numbers)
    sizes = _varint_sizes(left)
    places = np.empty((len(numbers), _width(left)), dtype=np.uint8)
    for place in range(places.shape[1]):
        np.bitwise_or(left & 127, (left > 127) * np.uint64(128), out=places[:, place], casting="unsafe")
        left = left >> np.uint64(7)
    return places, sizes


class _Varints(dict[int, bytes]):
    """A number's varint, by the number."""

    def __missing__(self, number: int) -> bytes:
        places, _ = _varints(np.array([number], dtype=np.int64))
        varint = places.tobytes()
        if len(self) < 10_000:
            self[number] = varint
        return varint


_VARINTS = _Varints()
