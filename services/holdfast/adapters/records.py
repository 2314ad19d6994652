"""Records whose header names are not UTF-8, which Kafka forbids and no broker refuses.

aiokafka raises for a whole batch then, again and again: one such record would stop its partition for ever. Here such a
batch, and only such a one, is read a second time, with U+FFFD for each byte that is no text, as Java's clients do.
"""

import struct
from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_PREFIX = struct.Struct(">qi")
"""The base offset of a batch, and how many bytes follow."""


def tolerate_header_names() -> None:
    """Let every consumer of this process read such records."""
    fetcher.MemoryRecords = _Records


class _Records:
    """What a fetch brought of one partition."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0
        self._records = MemoryRecords(data)
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes

    def next_batch(self) -> "_Batch":
        start = self._position
        self._position += _PREFIX.size + _PREFIX.unpack_from(self._data, start)[1]
        return _Batch(self._records.next_batch(), memoryview(self._data)[start : self._position])


class _Batch:
    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch, self._raw = batch, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(list(_TolerantBatch(self._raw)))

    def __next__(self) -> Any:
        return next(self._batch)


class _TolerantBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Bytes(self._buffer)


class _Bytes(bytearray):
    """Header names are all that is decoded of it."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Bytes(found) if isinstance(at, slice) else found

    def decode(self, *_: str) -> str:
        return super().decode("utf-8", "replace")
