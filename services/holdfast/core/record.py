"""A Kafka record, however it was read."""

from collections.abc import Sequence
from typing import Protocol

from holdfast_schemas import MAX_VALUE_BYTES


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


MAX_KEY_BYTES = MAX_HEADERS_BYTES = 256 * 1024


def writable(record: Record) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Key, value and headers of a record that is put aside, as far as every topic takes them.

    Of a key or value that is too long the beginning, and of headers that are too long none.
    """
    size = sum(len(name) + len(value or b"") for name, value in record.headers)
    headers = list(record.headers) if size <= MAX_HEADERS_BYTES else []
    return record.key and record.key[:MAX_KEY_BYTES], record.value and record.value[:MAX_VALUE_BYTES], headers
