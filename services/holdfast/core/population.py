"""How many entities a model has, as far as its breaker must know.

`min_entities` keeps one product that is retried fifty times from tripping a version. A model of four countries could
never trip by that rule. So the breaker asks for all entities of the model where these are fewer. They are told by what
was approved: within the current day, or within the last day that had traffic.
"""

from datetime import datetime, timedelta
from typing import Self

from holdfast.core.breaker import BreakerPolicy
from holdfast.core.duration import format_duration
from holdfast.core.short_names import short
from holdfast_schemas import Contract, Count, Tally, UtcTime

DAY = timedelta(days=1)


class Population(Contract):
    """The entities with approved outputs, of all versions; part of a model's state."""

    since: UtcTime | None = None
    """When the current day began; it begins with a tally."""
    entities: frozenset[str] = frozenset()
    """Of the current day; no more than `min_entities`."""
    approved: Count = 0
    """Outputs of the current day."""
    before: Count = 0
    """How many entities there were in the last day that had enough outputs to tell."""

    def add(self, tally: Tally, now: datetime, policy: BreakerPolicy) -> Self:
        known = self
        if self.since is None or not timedelta(0) <= now - self.since < DAY:
            known = type(self)(since=now, before=self._counted(policy) or self.before)
        entities = known.entities
        if len(entities) < policy.min_entities:
            entities = frozenset(sorted(entities.union(map(short, tally.approved_entities)))[: policy.min_entities])
        return known.model_copy(update={"entities": entities, "approved": known.approved + tally.approved})

    def _counted(self, policy: BreakerPolicy) -> int:
        """The entities of the current day; 0 where too few outputs were approved to tell."""
        return len(self.entities) if self.approved >= policy.min_seen else 0

    def needed(self, policy: BreakerPolicy) -> int:
        """From how many entities failures must come."""
        known = max(self.before, self._counted(policy))
        return min(policy.min_entities, known) if known else policy.min_entities

    def why_it_may_not_trip(self, now: datetime, policy: BreakerPolicy) -> str | None:
        """Why this traffic is too little for the breaker, in words; None: it is enough, or it is too early to tell."""
        for_so_long = now - self.since if self.since is not None else timedelta(0)
        if for_so_long < max(policy.window * 10, timedelta(minutes=10)):
            return None
        in_window = self.approved * (policy.window / for_so_long)
        if in_window >= policy.min_seen:
            return None
        return (
            f"about {in_window:.0f} outputs pass within {format_duration(policy.window)}, and the breaker needs "
            f"{policy.min_seen} to judge a version: lower breaker.min_seen, or lengthen breaker.window"
        )
