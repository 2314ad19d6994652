"""A Kafka record, however it was read."""

from collections.abc import Sequence
from typing import Protocol


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
