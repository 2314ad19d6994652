"""How many bytes the partitions of one process may have unpacked or on their way at once.

Each partition unpacks, judges and writes one batch at a time, and is bounded in it. Many partitions whose batches wait
for their brokers together are not: so a partition unpacks nothing while too much is held.
"""

import asyncio
import contextlib
from collections.abc import Iterator


class Budget:
    """Counts the bytes that are held. The limit is for who asks for room; what is held already is never refused."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._freed = asyncio.Event()

    def is_full(self) -> bool:
        return self.held >= self.limit

    async def room(self) -> None:
        """Wait until less than the limit is held."""
        while self.is_full():
            self._freed.clear()
            await self._freed.wait()

    def change(self, by: int) -> None:
        """Hold so many bytes more, or fewer."""
        self.held += by
        if by < 0:
            self._freed.set()

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold `size` bytes until the block ends, however it ends."""
        self.change(size)
        try:
            yield
        finally:
            self.change(-size)
