"""The verifier's book-keeping of releases: is each released record of one partition an audited release, and once?

A guard writes a released record and its audit record in one transaction, and nobody but guards and the switch may write
the audit. So a record that calls itself released, and that no audit record names, was written by somebody else.
"""

from collections import OrderedDict
from typing import NamedTuple

KEPT = 200_000
"""Releases that are remembered: of each the offset of its prediction."""


class ReleasedRecord(NamedTuple):
    """A record of the approved topic that calls itself released. `names` is the offset of its prediction."""

    offset: int
    names: int
    model: str
    produced_ms: int
    read_at: float


class Releases:
    """One partition of the predictions."""

    def __init__(self) -> None:
        self.complete_from_ms: int | None = None
        """Of what was predicted before, the audit may have been removed; None: of nothing."""
        # By offset of the prediction: audited, and not seen as released; and both.
        self._audited: OrderedDict[int, None] = OrderedDict()
        self._done: OrderedDict[int, None] = OrderedDict()
        self._waiting: list[ReleasedRecord] = []
        self._forgotten = False

    def add_audited(self, names: int) -> None:
        """An audit record names the prediction of that offset as released."""
        if names not in self._done:
            self._audited[names] = None
        if len(self._audited) > KEPT:
            self._audited.popitem(last=False)
            self._forgotten = True

    def add(self, record: ReleasedRecord) -> bool:
        """Whether that is the first released record of its prediction."""
        if record.names in self._done or any(one.names == record.names for one in self._waiting):
            return False
        self._waiting.append(record)
        return True

    def waits(self, end: int) -> bool:
        """Whether a record before that offset has no audit record yet."""
        self._match()
        return any(one.offset < end for one in self._waiting)

    def unaudited(self, stale: float) -> list[ReleasedRecord]:
        """Those that were read before that time and have no audit record yet."""
        self._match()
        return [one for one in self._waiting if one.read_at < stale]

    def give_up(self, stale: float) -> tuple[list[ReleasedRecord], int]:
        """Take out what was read before that time and is not audited; and how many of which it cannot be told."""
        found = self.unaudited(stale)
        self._waiting = [one for one in self._waiting if one.read_at >= stale]
        forged = [one for one in found if not self._may_be_forgotten(one)]
        return forged, len(found) - len(forged)

    def _may_be_forgotten(self, one: ReleasedRecord) -> bool:
        before = self.complete_from_ms is not None and one.produced_ms < self.complete_from_ms
        return before or self._forgotten

    def _match(self) -> None:
        left: list[ReleasedRecord] = []
        for one in self._waiting:
            if one.names in self._audited:
                del self._audited[one.names]
                self._done[one.names] = None
            else:
                left.append(one)
        self._waiting = left
        while len(self._done) > KEPT:
            self._done.popitem(last=False)
