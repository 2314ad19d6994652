"""How records are read from what a fetch brought, where aiokafka's own way does not serve.

Two things are changed for every consumer of this process. Header names that are not UTF-8, which Kafka forbids and no
broker refuses, make aiokafka raise for a whole batch, again and again: one such record would stop its partition for
ever. Here such a batch, and only such a one, is read a second time, with U+FFFD for each byte that is no text, as
Java's clients do. And a consumer made with `value_deserializer=in_batches` hands out stored batches whole: a Python
object for each record, made by Python code, would cost as much as judging it.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from crc32c import crc32c

from holdfast.core.record import Record

_PREFIX = struct.Struct(">qi")
"""The base offset of a batch, and how many bytes follow."""
_VERSION_AT, _SUMMED_WITH_CRC32C, _SUMMED_FROM = 16, 2, 21
"""Where the version of a batch stands, the first one that is summed up so, and the byte from which on."""


class StoredBatch(NamedTuple):
    """What a producer wrote in one batch: the last offset, how many records at most, and they when they are called."""

    offset: int
    size: int
    unpack: Callable[[], list[Record]]


def in_batches(value: bytes) -> bytes:
    """Marks a consumer that hands out stored batches in place of records."""
    return value


def records_of(batches: Iterable[StoredBatch], start: int) -> list[Record]:
    """The records from offset `start` on, which may lie within the first batch."""
    records = [record for batch in batches for record in batch.unpack()]
    return records if not records or records[0].offset >= start else [r for r in records if r.offset >= start]


def replace_readers() -> None:
    """Let every consumer of this process read that way."""
    fetcher.MemoryRecords = _Records
    fetcher.PartitionRecords = _PartitionRecords


class _Records:
    """What a fetch brought of one partition."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0
        self._records = MemoryRecords(data)
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes
        self.whole = False

    def next_batch(self) -> "_Batch":
        start = self._position
        self._position += _PREFIX.size + _PREFIX.unpack_from(self._data, start)[1]
        return _Batch(self._records.next_batch(), memoryview(self._data)[start : self._position], self.whole)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: _Records, *others: Any) -> None:
        super().__init__(tp, records, *others)
        records.whole = self._value_deserializer is in_batches

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record if type(record) is StoredBatch else super()._consumer_record(tp, record)


class _Batch:
    def __init__(self, batch: Any, raw: memoryview, whole: bool) -> None:
        self._batch, self._raw, self._whole = batch, raw, whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        if self._raw[_VERSION_AT] < _SUMMED_WITH_CRC32C:
            return bool(self._batch.validate_crc())
        # With the processor's instruction: aiokafka's own takes ten times as long.
        return bool(crc32c(self._raw[_SUMMED_FROM:]) == self._batch.crc)

    def __iter__(self) -> Iterator[Any]:
        if self._whole:
            return iter((StoredBatch(self.next_offset - 1, self.last_offset_delta + 1, self._unpack),))
        return iter(self._unpack())

    def _unpack(self) -> list[Any]:
        try:
            return list(self._batch)
        except UnicodeDecodeError:
            return list(_TolerantBatch(self._raw))

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
