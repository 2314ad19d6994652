"""The breaker of one model version: a sliding window over what the guards report, and when it trips.

A version trips when enough predictions were seen, more than a share of them failed, and the failures come from
enough entities and partitions: one product retried fifty times, or one sick partition, is not a bad version.
A single failure of a `critical` check trips at once. The window runs on the switch's clock at arrival: the clocks
of the guards cannot stretch or empty it, and a backlog is weighed as it is read.
"""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from holdfast.core.duration import Duration, format_duration
from holdfast.core.short_names import short
from holdfast_schemas import Contract, Count, Sample, Tally, UtcTime
from holdfast_schemas.control import MAX_TALLY_ENTITIES

NEARLY_ALL = 0.9
"""The share of a version's outputs that fail in shadow, from which on it does not earn `good`."""
BUCKETS = 10
"""A window of 30 s forgets in steps of 3 s."""
MAX_SAMPLES = 5


class BreakerPolicy(BaseModel):
    """When a version is bad, when it is good, and when switching itself has become the trouble."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    window: Duration = timedelta(seconds=30)
    min_seen: Annotated[int, Field(ge=1)] = 50
    """Fewer predictions in the window: too few to tell."""
    min_entities: Annotated[int, Field(ge=1, le=MAX_TALLY_ENTITIES)] = 5
    """Distinct entities among the failures, or all that the model has where those are fewer; no more than one tally
    names."""
    min_partitions: Annotated[int, Field(ge=1)] = 2
    """Distinct partitions among the failures, or all that were seen where those are fewer."""
    max_blocked_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """A version trips above it, not at it."""
    good_after_seen: Annotated[int, Field(ge=1)] = 500
    """Approved outputs while active."""
    good_after: Duration = timedelta(minutes=10)
    """Time as the active version."""
    max_switches: Annotated[int, Field(ge=1)] = 3
    """Automatic switches; the next one within `max_switches_within` holds the route instead."""
    max_switches_within: Duration = timedelta(hours=1)


class Bucket(Contract):
    """What arrived within one step of the window."""

    start: UtcTime
    seen: Count = 0
    blocked: Count = 0
    failed: Count = 0
    critical: Count = 0
    shadow_failed: Count = 0
    """Approved outputs that checks in shadow would have blocked."""
    blocked_by_check: dict[str, Count] = {}
    entities: frozenset[str] = frozenset()
    partitions: frozenset[Count] = frozenset()
    failed_partitions: frozenset[Count] = frozenset()
    first_blocked_at: UtcTime | None = None
    samples: tuple[Sample, ...] = ()

    def add(self, tally: Tally, *, room: int, min_entities: int) -> Self:
        """With `tally` counted in, and at most `room` of its samples. No more entities are named than must be."""
        failed = frozenset({tally.partition}) if tally.failed else frozenset()
        return self.model_copy(
            update={
                "seen": self.seen + tally.seen,
                "blocked": self.blocked + tally.blocked,
                "failed": self.failed + tally.failed,
                "critical": self.critical + tally.critical,
                "shadow_failed": self.shadow_failed + (tally.shadow.failed if tally.shadow is not None else 0),
                "blocked_by_check": dict(Counter(self.blocked_by_check) + Counter(tally.blocked_by_check)),
                "entities": frozenset(sorted(self.entities.union(map(short, tally.entities)))[:min_entities]),
                "partitions": self.partitions | {tally.partition},
                "failed_partitions": self.failed_partitions | failed,
                "first_blocked_at": earliest((self.first_blocked_at, tally.first_blocked_at)),
                "samples": self.samples + tally.samples[: max(0, room)],
            }
        )


class Window(Contract):
    """The buckets within reach, oldest first."""

    buckets: tuple[Bucket, ...] = ()

    def add(self, tally: Tally, now: datetime, policy: BreakerPolicy) -> Self:
        buckets = list(self.at(now, policy).buckets)
        if not buckets or now - buckets[-1].start >= policy.window / BUCKETS:
            buckets.append(Bucket(start=now))
        room = MAX_SAMPLES - sum(len(bucket.samples) for bucket in buckets)
        buckets[-1] = buckets[-1].add(tally, room=room, min_entities=policy.min_entities)
        # An entity counts once, and the newest are forgotten last: older buckets need not name more than is missing.
        named = buckets[-1].entities
        for place in range(len(buckets) - 2, -1, -1):
            older = frozenset(sorted(buckets[place].entities - named)[: policy.min_entities - len(named)])
            named |= older
            if older != buckets[place].entities:
                buckets[place] = buckets[place].model_copy(update={"entities": older})
        return self.model_copy(update={"buckets": tuple(buckets)})

    def at(self, now: datetime, policy: BreakerPolicy) -> Self:
        """Without what is older than the window."""
        # A start in the future means that the clock went back: such a bucket counts from now.
        dated = (b if b.start <= now else b.model_copy(update={"start": now}) for b in self.buckets)
        return self.model_copy(update={"buckets": tuple(b for b in dated if now - b.start < policy.window)})

    def is_over(self, now: datetime, policy: BreakerPolicy) -> bool:
        """Whether it holds buckets, and all of them are older than the window."""
        return bool(self.buckets) and now - self.buckets[-1].start >= policy.window

    def without_samples(self) -> Self:
        return self.model_copy(
            update={"buckets": tuple(bucket.model_copy(update={"samples": ()}) for bucket in self.buckets)}
        )

    @property
    def seen(self) -> int:
        return sum(bucket.seen for bucket in self.buckets)

    @property
    def blocked(self) -> int:
        return sum(bucket.blocked for bucket in self.buckets)

    @property
    def failed(self) -> int:
        return sum(bucket.failed for bucket in self.buckets)

    @property
    def shadow_failed(self) -> int:
        return sum(bucket.shadow_failed for bucket in self.buckets)

    @property
    def nearly_all_fail_in_shadow(self) -> bool:
        """Whether the version only seems to be fine, because the checks that it fails do not block."""
        return self.shadow_failed > 0 and self.shadow_failed >= NEARLY_ALL * self.seen

    @property
    def blocked_by_check(self) -> dict[str, int]:
        return dict(sum((Counter(bucket.blocked_by_check) for bucket in self.buckets), Counter()))

    @property
    def first_blocked_at(self) -> datetime | None:
        return earliest(bucket.first_blocked_at for bucket in self.buckets)

    @property
    def has_samples(self) -> bool:
        return any(bucket.samples for bucket in self.buckets)

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(sample for bucket in self.buckets for sample in bucket.samples)[:MAX_SAMPLES]

    def too_many_failed(self, policy: BreakerPolicy) -> bool:
        """Whether the share of failures is above the limit, however few were seen."""
        return self.failed > policy.max_blocked_ratio * self.seen and not math.isclose(
            self.failed, policy.max_blocked_ratio * self.seen, rel_tol=1e-12
        )

    def trips(self, policy: BreakerPolicy, min_entities: int | None = None) -> str | None:
        """Why the version is bad, in words, or None: it is fine, or there is too little to tell.

        `min_entities`: the policy's, or fewer for a model that has fewer.
        """
        if critical := sum(bucket.critical for bucket in self.buckets):
            return f"{critical} of {self.seen} failed a critical check ({self._worst()})"
        seen_on = frozenset[int]().union(*(bucket.partitions for bucket in self.buckets))
        failed_on = frozenset[int]().union(*(bucket.failed_partitions for bucket in self.buckets))
        entities = frozenset[str]().union(*(bucket.entities for bucket in self.buckets))
        if (
            self.seen >= policy.min_seen
            and self.too_many_failed(policy)
            and len(entities) >= (policy.min_entities if min_entities is None else min_entities)
            and len(failed_on) >= min(policy.min_partitions, len(seen_on))
        ):
            return (
                f"{self.failed} of {self.seen} failed within {format_duration(policy.window)}, over the limit of "
                f"{policy.max_blocked_ratio:.2%} ({self._worst()})"
            )
        return None

    def _worst(self) -> str:
        counts = Counter(self.blocked_by_check).most_common(3)
        return ", ".join(f"{check} {count}" for check, count in counts)


def earliest(times: Iterable[datetime | None]) -> datetime | None:
    return min((time for time in times if time is not None), default=None)
