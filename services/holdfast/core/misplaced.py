"""Predictions whose record is not in the partition that its key belongs in.

Values are remembered by partition. If one producer sends the outputs of an entity to one partition, and another
producer with another partitioner sends them to a second one, each partition knows only half of them, and a check
against the last values passes what it would fail. All clients can be told to use murmur2, Java's default, so keys are
held against that. Only some keys of each batch are looked at: that is enough to tell that a producer does otherwise,
and costs little.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence, Set
from datetime import datetime, timedelta

from holdfast.core.grouping import Batch
from holdfast.core.record import Record
from holdfast.core.version_budget import shared
from holdfast_schemas import Tally

LOOKED_AT = 16
"""Keys of one batch that are looked at."""
LONGEST = 64
"""Bytes of a key, beyond which it is not looked at: its hash takes time for each byte."""
TOLD_FOR = timedelta(days=1)
"""How long after the last of them people are told of them."""
ADVICE = (
    "Set the partitioner of every producer to murmur2 (docs/operations.md, Keys and partitioners). If all of them use "
    "one other partitioner, set guard.partitioner = 'other'"
)


def misplaced(records: Sequence[Record], partition: int, partition_of: Callable[[bytes], int]) -> frozenset[int]:
    """The positions of the records that were looked at and whose key belongs in another partition than this one."""
    if not records:
        return frozenset()
    step = -(-len(records) // LOOKED_AT)
    # Not the same places in each batch.
    start = records[0].offset % step
    return frozenset(
        position
        for position in range(start, len(records), step)
        if (key := records[position].key) and len(key) <= LONGEST and partition_of(key) != partition
    )


def by_version(batch: Batch, positions: Set[int]) -> Counter[str]:
    """How many of these positions are of the batch of a model, by version."""
    versions, rows = batch.columns.values("model_version"), batch.positions
    # They are in order, and few are looked for.
    found = ((at, bisect_left(rows, at)) for at in positions)
    return Counter(versions[row] for at, row in found if row < len(rows) and rows[row] == at)


def with_misplaced(tallies: Sequence[Tally], count: Counter[str]) -> list[Tally]:
    """The tallies of a model's batch, each with how many of its predictions were found in a partition not theirs."""
    share = shared(count, tallies)
    return [one.model_copy(update={"misplaced": share[one.model_version]}) for one in tallies]


def is_told(last: datetime | None, now: datetime) -> bool:
    return last is not None and now - last < TOLD_FOR
