"""Predictions whose record has no key.

Kafka keeps the order of the records of one key, and every output of an entity comes to one partition by it. Without
a key both are lost: outputs of one entity are judged in any order, and its last values are remembered per partition.
They are counted, and people are told. What a check with memory makes of them, `record_keys` says.
"""

from collections import Counter
from collections.abc import Sequence, Set
from datetime import datetime, timedelta
from operator import attrgetter

from holdfast.core.grouping import Batch
from holdfast.core.record import Record
from holdfast.core.version_budget import shared
from holdfast_schemas import Tally

TOLD_FOR = timedelta(days=1)
"""How long after the last of them people are told of them."""
ADVICE = "Have the producer set each record's key to its entity id: order and remembered values depend on it"

_KEY = attrgetter("key")


def without_key(records: Sequence[Record]) -> frozenset[int]:
    """The positions of records without a key; an empty one is as good as none."""
    if all(map(_KEY, records)):
        return frozenset()
    return frozenset(position for position, record in enumerate(records) if not record.key)


def with_keyless(tallies: Sequence[Tally], batch: Batch, keyless: Set[int]) -> list[Tally]:
    """The tallies of a model's batch, each with how many of its predictions had no key."""
    if not keyless:
        return list(tallies)
    versions = batch.columns.values("model_version")
    count = Counter(version for version, at in zip(versions, batch.positions, strict=True) if at in keyless)
    share = shared(count, tallies)
    return [one.model_copy(update={"keyless": share[one.model_version]}) for one in tallies]


def is_told(last: datetime | None, now: datetime) -> bool:
    return last is not None and now - last < TOLD_FOR
