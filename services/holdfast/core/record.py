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


def writable(value: bytes | None) -> bytes | None:
    """What is written of a value that is put aside: the beginning of one that no topic takes whole."""
    return value and value[:MAX_VALUE_BYTES]
