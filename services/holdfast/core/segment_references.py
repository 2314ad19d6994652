"""References for a whole segment: the latest values of its entities that `max_change` blocked.

After a real repricing every output of a segment is blocked, for each is held against the last approved one. A person
who accepts it accepts, for each entity, the latest output that was blocked. An entity is left out where something else
than its change speaks against that output: another check fails, its version is fenced, or a newer output was approved
meanwhile.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.core.condemned import BLOCKING
from holdfast.core.findings import cut
from holdfast_schemas import Finding

ABOUT_THE_VERSION = frozenset(("fenced", "held"))
"""Built-in checks that block whatever the value is."""
MOST_SEGMENTS = 1000
"""Other segments that are remembered by name."""


@dataclass(frozen=True, slots=True)
class BlockedOutput:
    """An output that was blocked. `order` tells which of two is later; `at_ms` is the producer's time."""

    version: str
    value: float
    at_ms: int
    order: tuple[int, ...]
    findings: Sequence[Finding]


@dataclass(slots=True)
class OfSegment:
    """By entity, its latest blocked output in the segment, and the time of its newest approved output."""

    segment: str
    blocked: dict[str, BlockedOutput] = field(default_factory=dict)
    approved: dict[str, int] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    """Other segments that had blocked outputs."""

    def take_blocked(self, segment: str | None, entity: str, output: BlockedOutput) -> None:
        """Take note of one blocked output of the model."""
        if segment != self.segment:
            if segment is not None and len(self.others) < MOST_SEGMENTS:
                self.others.add(segment)
        elif (known := self.blocked.get(entity)) is None or output.order > known.order:
            self.blocked[entity] = output

    def take_approved(self, entity: str, at_ms: int) -> None:
        """Take note of one approved output of the model."""
        if entity in self.blocked:
            self.approved[entity] = max(at_ms, self.approved.get(entity, at_ms))


@dataclass(frozen=True, slots=True)
class Changed:
    """The value that becomes an entity's reference, and the last approved one, where the finding names it."""

    entity: str
    value: float
    last: float | None

    @property
    def ratio(self) -> float | None:
        return self.value / self.last if self.last else None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What would be accepted, and by reason how many entities are left out."""

    segment: str
    field: str
    changes: Sequence[Changed]
    left_out: Mapping[str, int]

    def in_words(self) -> str:
        """What accepting it does, as sentences."""
        entities = _entities(len(self.changes))
        said = (
            f"The next {self.field} of {entities} of the segment {cut(self.segment)} is held against the latest "
            f"one that was blocked{self._ratios()}."
        )
        return " ".join([said, *self._farthest(), *self._left_out()])

    def nothing(self) -> str:
        """Why there is nothing to accept."""
        said = f"No blocked {self.field} of the segment {cut(self.segment)} can be accepted."
        return " ".join([said, *self._left_out()])

    def _ratios(self) -> str:
        ratios = sorted(one.ratio for one in self.changes if one.ratio is not None)
        if not ratios:
            return "; none of them has a last approved one"
        without = len(self.changes) - len(ratios)
        middle = f", {statistics.median(ratios):.3g} in the middle" if len(ratios) > 1 else ""
        reach = f"{ratios[0]:.3g} to {ratios[-1]:.3g}" if len(ratios) > 1 else f"{ratios[0]:.3g}"
        more = f"; {without:,} without a last approved one" if without else ""
        return f": {reach} times the last approved one{middle}{more}"

    def _farthest(self) -> list[str]:
        found = [(abs(math.log(ratio)), one) for one in self.changes if (ratio := one.ratio) is not None and ratio > 0]
        if not found:
            return []
        one = max(found, key=lambda pair: pair[0])[1]
        return [f"Farthest: {cut(one.entity)}, from {one.last:g} to {one.value:g}."]

    def _left_out(self) -> list[str]:
        if not self.left_out:
            return []
        told = ", ".join(f"{_entities(count)} {reason}" for reason, count in self.left_out.items())
        return [f"Left out: {told}."]


def choose(found: OfSegment, field_name: str, checks: Iterable[str], fenced: Iterable[str]) -> Chosen:
    """Which blocked values become references; `checks` are the `max_change` checks that read that field."""
    names, condemned = frozenset(checks), frozenset(fenced)
    changes: list[Changed] = []
    left_out: Counter[str] = Counter()
    for entity, output in sorted(found.blocked.items()):
        reason = _why_not(output, names, condemned, found.approved.get(entity))
        if reason is None:
            changes.append(Changed(entity, output.value, _last(output.findings, names)))
        else:
            left_out[reason] += 1
    return Chosen(found.segment, field_name, changes, dict(left_out.most_common()))


def _why_not(
    output: BlockedOutput, names: frozenset[str], fenced: frozenset[str], approved_ms: int | None
) -> str | None:
    blocking = {one.check for one in output.findings if one.severity in BLOCKING}
    if approved_ms is not None and approved_ms > output.at_ms:
        return "with a newer output that was approved"
    if output.version in fenced:
        return f"of the fenced version {output.version} (unfence it first if its outputs are right)"
    if others := blocking - names - ABOUT_THE_VERSION:
        return f"whose latest output fails {' and '.join(sorted(others))} too"
    if not blocking & names:
        return "that no max_change check of this field blocked"
    if not math.isfinite(output.value):
        return "without a number there"
    return None


def _last(findings: Iterable[Finding], names: frozenset[str]) -> float | None:
    for one in findings:
        limit = one.limit
        if one.check in names and isinstance(limit, Mapping):
            last = limit.get("last")
            if isinstance(last, int | float) and not isinstance(last, bool):
                return float(last)
    return None


def _entities(count: int) -> str:
    return f"{count:,} {'entity' if count == 1 else 'entities'}"
