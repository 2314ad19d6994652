"""Where a partition goes on: what its group has committed, against what the topic still has.

A commit holds a position: every offset before it was judged, or is a transaction's marker or an aborted record. So a
worker that is idle has committed the end of the log, and offsets that are gone behind a commit were never seen.
A commit says in its metadata that it is one of these, and of which topic: a name may be given to another topic later.

Earlier versions of Holdfast committed "last record + 1" without metadata. The markers of the transactions that were
open then follow such a commit, so a few offsets that are gone there are taken for markers.
"""

from enum import StrEnum
from typing import NamedTuple

import msgspec

MARKERS = 32
"""Offsets behind a commit without metadata that may be markers: one for each transaction that was open at once."""


class _Note(msgspec.Struct, omit_defaults=True):
    """The metadata of a commit. Members may be added; unknown ones are ignored."""

    position: bool = False
    topic_id: str | None = None


class Committed(NamedTuple):
    """What a group has committed for a partition.

    `is_position`: everything before `offset` was seen, markers too. `topic_id`: of the topic that was read then; None
    where the commit or the broker does not tell it.
    """

    offset: int
    is_position: bool = False
    topic_id: str | None = None

    @classmethod
    def read(cls, offset: int, metadata: str | None) -> "Committed":
        """Read a commit; metadata that is not ours says nothing."""
        try:
            note = msgspec.json.decode(metadata or "{}", type=_Note)
        except msgspec.MsgspecError:
            note = _Note()
        return cls(offset, note.position, note.topic_id)

    def metadata(self) -> str:
        """What to commit beside the offset."""
        return msgspec.json.encode(_Note(self.is_position, self.topic_id)).decode()


class Reason(StrEnum):
    COMMITTED = "committed"
    MARKERS_REMOVED = "markers_removed"
    """Only markers were removed behind a commit of an earlier version."""
    MADE_AGAIN = "made_again"
    """The topic was deleted and made again since: nothing of this one was judged."""


class GoOn(NamedTuple):
    """The next offset to judge."""

    offset: int
    reason: Reason


class Removed(NamedTuple):
    """Offsets `first` to `last` are gone, and nobody has seen what was there."""

    first: int
    last: int


def where_to_go_on(committed: Committed, first: int, topic_id: str | None) -> GoOn | Removed:
    """Decide it by the first offset that the topic still has, and by its id (None where the broker tells none)."""
    if committed.topic_id is not None and topic_id is not None and committed.topic_id != topic_id:
        return GoOn(first, Reason.MADE_AGAIN)
    if first <= committed.offset:
        return GoOn(committed.offset, Reason.COMMITTED)
    if not committed.is_position and first - committed.offset <= MARKERS:
        return GoOn(first, Reason.MARKERS_REMOVED)
    return Removed(committed.offset, first - 1)
