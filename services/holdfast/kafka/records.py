"""How records are read from what a fetch brought, where aiokafka's own way does not serve.

Two things are changed for every consumer of this process. Header names that are not UTF-8, which Kafka forbids and no
broker refuses, make aiokafka raise for a whole batch, again and again: one such record would stop its partition for
ever. Here such a batch, and only such a one, is read a second time, with U+FFFD for each byte that is no text, as
Java's clients do. And a consumer made with `value_deserializer=in_batches` hands out stored batches whole: a Python
object for each record, made by Python code, would cost as much as judging it.

A batch whose checksum is right and that still cannot be read (it unpacks to more than is allowed, or not at all) can
never be read. For consumers made with `value_deserializer=in_batches` or `=with_unreadable` one `UnreadableBatch`
stands for the batch, so that its owner can write it to malformed with the reason; for all others it is an error.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from crc32c import crc32c

from holdfast.core.record import Record, UnreadableBatch
from holdfast.kafka.codecs import UnreadableError, replace_decoders

MAX_RECORDS = 500_000
"""In one batch: more than a batch of real events unpacks to, and as Python objects they need hundreds of bytes each."""
AT_ONCE_BYTES = 16 * 1024 * 1024
"""Of values that a consumer is handed of one partition at a time; the record that reaches it is the last one."""
_PREFIX = struct.Struct(">qi")
"""The base offset of a batch, and how many bytes follow."""
_VERSION_AT, _SUMMED_WITH_CRC32C, _SUMMED_FROM = 16, 2, 21
"""Where the version of a batch stands, the first one that is summed up so, and the byte from which on."""

_LATEST, _LATEST_AT = struct.Struct(">q"), 35
"""The latest timestamp of a batch, and where it stands."""


class StoredBatch(NamedTuple):
    """What a producer wrote in one batch: the last offset, how many records at most, and they when they are called.

    `packed` are the bytes that it takes as it is stored. `unpack` raises UnreadableError, and `placeholder` is what
    stands for the records then.
    """

    offset: int
    size: int
    packed: int
    unpack: Callable[[], list[Record]]
    placeholder: Callable[[UnreadableError], UnreadableBatch]

    def records(self) -> list[Record]:
        """The records, or what stands for them."""
        try:
            return self.unpack()
        except UnreadableError as error:
            return [self.placeholder(error)]


def in_batches(value: bytes) -> bytes:
    """Marks a consumer that hands out stored batches in place of records."""
    return value


def with_unreadable(value: bytes) -> bytes:
    """Marks a consumer that gets an UnreadableBatch in place of the records that cannot be read."""
    return value


def records_of(batches: Iterable[StoredBatch], start: int, *, tolerant: bool = False) -> list[Record]:
    """The records from offset `start` on, which may lie within the first batch.

    Raises UnreadableError for a batch that cannot be read, unless `tolerant`: then an UnreadableBatch stands for it.
    """
    records = [record for batch in batches for record in (batch.records() if tolerant else batch.unpack())]
    return records if not records or records[0].offset >= start else [r for r in records if r.offset >= start]


def replace_readers() -> None:
    """Let every consumer of this process read that way."""
    replace_decoders()
    fetcher.MemoryRecords = _Records
    fetcher.PartitionRecords = _PartitionRecords
    fetcher.FetchResult = _FetchResult


class _Records:
    """What a fetch brought of one partition."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0
        self._records = MemoryRecords(data)
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes
        self.whole, self.tolerant = False, False

    def next_batch(self) -> "_Batch":
        start = self._position
        self._position += _PREFIX.size + _PREFIX.unpack_from(self._data, start)[1]
        raw = memoryview(self._data)[start : self._position]
        return _Batch(self._records.next_batch(), raw, whole=self.whole, tolerant=self.tolerant)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: _Records, *others: Any) -> None:
        super().__init__(tp, records, *others)
        records.whole = self._value_deserializer is in_batches
        records.tolerant = self._value_deserializer is with_unreadable

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record if type(record) in (StoredBatch, UnreadableBatch) else super()._consumer_record(tp, record)


class _FetchResult(fetcher.FetchResult):  # type: ignore[misc]
    """Hands out the records of a fetch in several turns where they are large: what is not handed out stays packed."""

    def getall(self, max_records: int | None = None) -> list[Any]:
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        found: list[Any] = []
        room, records = AT_ONCE_BYTES, self._partition_records
        for record in records:
            found.append(record)
            if type(record) is not StoredBatch:
                room -= len(record.value or b"")
            if room <= 0 or len(found) == max_records:
                self._update_position()
                return found
        self._update_position()
        self._partition_records: Any = None
        return found


class _Batch:
    def __init__(self, batch: Any, raw: memoryview, *, whole: bool, tolerant: bool) -> None:
        self._batch, self._raw, self._whole, self._tolerant = batch, raw, whole, tolerant

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    @property
    def _is_current(self) -> bool:
        return self._raw[_VERSION_AT] >= _SUMMED_WITH_CRC32C

    def validate_crc(self) -> bool:
        if not self._is_current:
            return bool(self._batch.validate_crc())
        # With the processor's instruction: aiokafka's own takes ten times as long.
        return bool(crc32c(self._raw[_SUMMED_FROM:]) == self._batch.crc)

    def __iter__(self) -> Iterator[Any]:
        if self._whole:
            return iter((self._stored(),))
        return iter(self._stored().records() if self._tolerant else self._unpack())

    def _stored(self) -> StoredBatch:
        # The format before Kafka 0.11 does not say how many records a compressed batch holds.
        size = self.last_offset_delta + 1 if self._is_current else 1
        return StoredBatch(self.next_offset - 1, size, len(self._raw), self._unpack, self._placeholder)

    def _unpack(self) -> list[Any]:
        try:
            try:
                return _some(self._batch)
            except UnicodeDecodeError:
                return _some(_TolerantBatch(self._raw))
        except UnreadableError:
            raise
        except (CorruptRecordException, ValueError, IndexError, OverflowError) as error:
            raise UnreadableError(f"its records are broken: {error}") from None

    def _placeholder(self, error: UnreadableError) -> UnreadableBatch:
        last, timestamp = self.next_offset - 1, 0
        if self._is_current:
            (timestamp,) = _LATEST.unpack_from(self._raw, _LATEST_AT)
        first = self.base_offset if self._is_current else last
        return UnreadableBatch(first, last, timestamp, " ".join(map(str, error.args)))

    def __next__(self) -> Any:
        return next(self._batch)


def _some(batch: Iterable[Any]) -> list[Any]:
    records = list(islice(batch, MAX_RECORDS + 1))
    if len(records) > MAX_RECORDS:
        raise UnreadableError(f"it has more than {MAX_RECORDS} records")
    return records


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
