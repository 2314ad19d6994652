"""What checks in shadow would have done: counted by the guard in its tallies, put together for a report.

The report replays the breaker over the tallies as if those checks were enforced, and so says when it would have
tripped.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from holdfast.core.breaker import BreakerPolicy, Window
from holdfast.core.findings import worst_first
from holdfast_schemas import Sample, Tally
from holdfast_schemas.control import MAX_TALLY_ENTITIES

MOST_SAMPLES = 5


def as_if_enforced(tally: Tally) -> Tally:
    """The tally that the guard would have written."""
    shadow = tally.shadow
    if shadow is None:
        return tally
    entities = tuple(dict.fromkeys((*tally.entities, *shadow.entities)))[:MAX_TALLY_ENTITIES]
    return tally.model_copy(
        update={
            "approved": tally.approved - shadow.failed,
            "blocked": tally.blocked + shadow.failed,
            "failed": tally.failed + shadow.failed,
            "critical": tally.critical + shadow.critical,
            "blocked_by_check": dict(Counter(tally.blocked_by_check) + Counter(tally.shadow_by_check)),
            "entities": entities,
        }
    )


@dataclass(slots=True)
class VersionInShadow:
    """Of one version; `by_check` are failures in shadow, those that only warn included."""

    seen: int = 0
    approved: int = 0
    would_block: int = 0
    by_check: Counter[str] = field(default_factory=Counter)
    by_segment: dict[str, Counter[str]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    would_trip_at: datetime | None = None
    would_trip: str = ""
    """Why, in words."""
    window: Window = field(default_factory=Window)

    def add(self, tally: Tally, at: datetime, policy: BreakerPolicy) -> None:
        self.seen += tally.seen
        self.approved += tally.approved
        self.by_check.update(tally.shadow_by_check)
        if tally.shadow is not None:
            self.would_block += tally.shadow.failed
            for check, counts in tally.shadow.by_segment.items():
                self.by_segment.setdefault(check, Counter()).update(counts)
            self.samples = worst_first([*self.samples, *tally.shadow.samples])[:MOST_SAMPLES]
        if self.would_trip_at is None:
            self.window = self.window.add(as_if_enforced(tally), at, policy)
            if (why := self.window.trips(policy)) is not None:
                self.would_trip_at, self.would_trip = at, why


def report(tallies: Iterable[tuple[datetime, Tally]], policy: BreakerPolicy) -> dict[str, VersionInShadow]:
    """What shadow found, by version; each tally comes with its time, in their order."""
    found: dict[str, VersionInShadow] = {}
    for at, tally in tallies:
        found.setdefault(tally.model_version, VersionInShadow()).add(tally, at, policy)
    return found
