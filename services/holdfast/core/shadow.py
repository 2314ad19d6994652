"""What checks in shadow would have done: counted by the guard in its tallies, put together for a report.

The report replays the breaker over the tallies as if those checks were enforced, and so says when it would have
tripped.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel, Field

from holdfast.core.breaker import BreakerPolicy, Window
from holdfast.core.findings import worst_first
from holdfast_schemas import Sample, Tally, UtcTime
from holdfast_schemas.control import MAX_TALLY_ENTITIES

MOST_SAMPLES = 5
MOST_SEGMENTS = 200
"""Of one check and version: those with most failures."""
MOST_VERSIONS = 200
"""The latest."""


class VersionFacts(BaseModel):
    """What checks in shadow found of one version, for reading."""

    version: str
    seen: int = Field(description="Outputs that were judged.")
    approved: int
    would_block: int = Field(description="Approved outputs that checks in shadow would have blocked.")
    by_check: dict[str, int] = Field(description="Failures in shadow, those of checks that only warn included.")
    by_segment: dict[str, dict[str, int]] = Field(description="By check and segment, where a check reads the segment.")
    would_trip_at: UtcTime | None = Field(None, description="When the version would have tripped.")
    would_trip: str | None = Field(None, description="Why it would have tripped.")
    samples: list[Sample] = Field(description="The worst outputs that would have been blocked.")


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
                known = self.by_segment.setdefault(check, Counter())
                known.update(counts)
                if len(known) > 2 * MOST_SEGMENTS:
                    self.by_segment[check] = Counter(dict(known.most_common(MOST_SEGMENTS)))
            self.samples = worst_first([*self.samples, *tally.shadow.samples])[:MOST_SAMPLES]
        if self.would_trip_at is None:
            self.window = self.window.add(as_if_enforced(tally), at, policy)
            if (why := self.window.trips(policy)) is not None:
                self.would_trip_at, self.would_trip = at, why

    def facts(self, version: str) -> VersionFacts:
        return VersionFacts(
            version=version,
            seen=self.seen,
            approved=self.approved,
            would_block=self.would_block,
            by_check=dict(self.by_check.most_common()),
            by_segment={check: dict(counts.most_common(MOST_SEGMENTS)) for check, counts in self.by_segment.items()},
            would_trip_at=self.would_trip_at,
            would_trip=self.would_trip or None,
            samples=self.samples,
        )


@dataclass(slots=True)
class Report:
    """What shadow found, by version, those seen last at the end; bounded, however many tallies it is made of."""

    policy: BreakerPolicy
    versions: dict[str, VersionInShadow] = field(default_factory=dict)
    first: datetime | None = None
    """The time of the first tally."""

    def add(self, at: datetime, tally: Tally) -> None:
        """Count a tally in; they come in their order."""
        self.first = self.first or at
        version = self.versions.pop(tally.model_version, None) or VersionInShadow()
        self.versions[tally.model_version] = version
        version.add(tally, at, self.policy)
        if len(self.versions) > MOST_VERSIONS:
            del self.versions[next(iter(self.versions))]

    def facts(self) -> list[VersionFacts]:
        return [one.facts(name) for name, one in self.versions.items()]


def report(tallies: Iterable[tuple[datetime, Tally]], policy: BreakerPolicy) -> dict[str, VersionInShadow]:
    """What shadow found, by version; each tally comes with its time, in their order."""
    found = Report(policy)
    for at, tally in tallies:
        found.add(at, tally)
    return found.versions
