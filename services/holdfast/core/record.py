"""A Kafka record, however it was read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from holdfast_schemas import MAX_VALUE_BYTES, Header


class Record(Protocol):
    """`timestamp` is in ms since the epoch."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True)
class UnreadableBatch:
    """Stands for all records of a stored batch that cannot be read, at the offset of the last one."""

    first_offset: int
    offset: int
    timestamp: int
    flaw: str
    """Why, as in `it unpacks to more than 64 MiB`."""
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = field(default=())

    @property
    def reason(self) -> str:
        return f"the batch of the offsets {self.first_offset} to {self.offset} cannot be read: {self.flaw}"


MAX_KEY_BYTES = MAX_HEADERS_BYTES = 256 * 1024
# A day within what datetime holds.
_FIRST_MS, _LAST_MS = -62_135_510_400_000, 253_402_214_400_000


_PRODUCED_AT = Header.PRODUCED_AT.value


def produced_at(record: Record) -> int:
    """The producer's time of a record with a verdict, in ms since the epoch.

    It is the record's own, unless the topic would have deleted it too soon: a header says it then.
    """
    for name, value in record.headers:
        if name == _PRODUCED_AT:
            try:
                return round(datetime.fromisoformat((value or b"").decode()).timestamp() * 1000)
            except ValueError:
                break
    return record.timestamp


def headers_size(record: Record) -> int:
    """Bytes."""
    return sum(len(name) + len(value or b"") for name, value in record.headers)


def time_of(timestamp: int) -> datetime:
    """A record's time; the nearest that a datetime holds, for producers may write any."""
    return datetime.fromtimestamp(min(max(timestamp, _FIRST_MS), _LAST_MS) / 1000, UTC)


def writable(record: Record) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Key, value and headers of a record for the malformed topic, as far as every topic takes them.

    Of a key or value that is too long the beginning, and of headers that are too long none.
    """
    headers = list(record.headers) if headers_size(record) <= MAX_HEADERS_BYTES else []
    return record.key and record.key[:MAX_KEY_BYTES], record.value and record.value[:MAX_VALUE_BYTES], headers
