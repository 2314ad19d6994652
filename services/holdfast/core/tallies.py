"""What a guard tells the switch about one batch: a tally for each version."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.condemned import BLOCKING
from holdfast.core.findings import deviation
from holdfast.core.grouping import Batch
from holdfast.core.judgement import Judgement
from holdfast.core.malformed import CHECK as MALFORMED
from holdfast.core.malformed import Malformed
from holdfast.core.policy import Policy
from holdfast.core.record import Record, time_of
from holdfast.core.samples import Source, cut, malformed_sample, sample_of
from holdfast.core.short_names import short
from holdfast.core.version_budget import GUARD_BUDGET, counted_one_by_one, named_by, with_others
from holdfast_schemas import Route, Severity, ShadowTally, Tally
from holdfast_schemas.control import MAX_TALLY_ENTITIES, OTHERS

MAX_SAMPLES = 5
SHADOW_SAMPLES = 2
SHADOW_LOOKED_AT = 16
"""Rows of a batch among which the worst are sought."""


def tally(
    batch: Batch, judgement: Judgement, policy: Policy, source: Source, now: datetime, route: Route | None = None
) -> list[Tally]:
    """One tally for each model version in the batch, and one for all that are beyond the budget of versions."""
    versions = batch.columns.values("model_version")
    rows_of: dict[str, Any] = {versions[0]: slice(None)}
    others = 0
    if versions.count(versions[0]) != len(versions):
        grouped: dict[str, list[int]] = {}
        for row, version in enumerate(versions):
            grouped.setdefault(version, []).append(row)
        own = counted_one_by_one({version: len(rows) for version, rows in grouped.items()}, route, GUARD_BUDGET)
        rows_of, others = with_others(grouped, own)
    found = [_tally(version, rows, batch, judgement, policy, source, now, route) for version, rows in rows_of.items()]
    return [*found[:-1], _of_others(found[-1], others)] if others else found


def _of_others(one: Tally, versions: int) -> Tally:
    """The tally of several versions together: what is known of single ones is left out."""
    return one.model_copy(
        update={"versions": versions, "entities": (), "approved_entities": (), "samples": (), "shadow": None}
    )


def _some_distinct(ids: Sequence[str], rows: NDArray[np.intp]) -> tuple[str, ...]:
    """The first distinct entities of these rows, as many as a tally names."""
    found: dict[str, None] = {}
    # Most batches have enough of them in their first rows.
    for some in (rows[: 2 * MAX_TALLY_ENTITIES], rows[2 * MAX_TALLY_ENTITIES :]):
        if len(found) < MAX_TALLY_ENTITIES and len(some):
            found |= dict.fromkeys([ids[row] for row in some.tolist()])
    return tuple(map(short, islice(found, MAX_TALLY_ENTITIES)))


def _tally(
    version: str,
    rows: Any,
    batch: Batch,
    judgement: Judgement,
    policy: Policy,
    source: Source,
    now: datetime,
    route: Route | None,
) -> Tally:
    numbers = np.arange(len(batch.columns)) if isinstance(rows, slice) else np.array(rows, dtype=np.intp)
    approved = int(np.count_nonzero(judgement.approved[rows]))
    blocked_rows = numbers[~judgement.approved[rows]].tolist()
    found, counts = judgement.findings, judgement.counts
    if not isinstance(rows, slice):
        # A batch may hold as many versions as predictions: each looks at its own rows only.
        counts = Counter((one.check, one.enforced) for row in rows if row in found for one in found[row])
    ids = batch.columns.values("entity_id")
    entities = _some_distinct(ids, numbers[judgement.failed[rows]])
    approved_entities = _some_distinct(ids, numbers[judgement.approved[rows]])
    positions = [batch.positions[row] for row in blocked_rows[:MAX_SAMPLES]]
    first_blocked = min((source.records[batch.positions[row]].timestamp for row in blocked_rows), default=None)
    return Tally(
        model=policy.model,
        model_version=version,
        policy=policy.id,
        at=now,
        worker=source.worker,
        partition=source.partition,
        first_offset=source.records[batch.positions[int(numbers[0])]].offset,
        last_offset=source.records[batch.positions[int(numbers[-1])]].offset,
        topic_id=source.topic_id,
        seen=len(numbers),
        approved=approved,
        blocked=len(blocked_rows),
        failed=int(np.count_nonzero(judgement.failed[rows])),
        critical=int(np.count_nonzero(judgement.critical[rows])),
        blocked_by_check={check: count for (check, enforced), count in counts.items() if enforced},
        shadow_by_check={check: count for (check, enforced), count in counts.items() if not enforced},
        shadow=_shadow(numbers[(judgement.approved & judgement.condemned)[rows]], batch, judgement, source),
        unknown_by_check={
            name: count for name, mask in judgement.unknown.items() if (count := int(np.count_nonzero(mask[rows])))
        },
        entities=entities,
        approved_entities=approved_entities,
        promoted=policy.accepts(version, route),
        first_blocked_at=None if first_blocked is None else time_of(first_blocked),
        samples=tuple(
            sample_of(batch, row, source, position, tuple(found.finding() for found in judgement.findings[row]))
            for row, position in zip(blocked_rows, positions, strict=False)
        ),
    )


def _shadow(rows: NDArray[np.intp], batch: Batch, judgement: Judgement, source: Source) -> ShadowTally | None:
    """What checks in shadow would have blocked of these approved rows; None: nothing."""
    if not len(rows):
        return None
    condemning = {
        row: [one for one in judgement.findings[row] if one.severity in BLOCKING and not one.enforced]
        for row in rows.tolist()
    }
    by_segment: dict[str, Counter[str]] = {}
    if batch.columns.reads("segment"):
        segments = batch.columns.values("segment")
        for row, found in condemning.items():
            for one in found:
                if segments[row] is not None:
                    by_segment.setdefault(one.check, Counter())[cut(segments[row]) or ""] += 1
    # The worst of the first ones: to look at all of a large batch would cost more than they tell.
    first = list(condemning)[:SHADOW_LOOKED_AT]
    worst = sorted(first, key=lambda row: max(deviation(one.finding()) for one in condemning[row]), reverse=True)
    return ShadowTally(
        failed=len(rows),
        critical=sum(any(one.severity is Severity.CRITICAL for one in found) for found in condemning.values()),
        by_segment={check: dict(sorted(counts.items())[:MAX_TALLY_ENTITIES]) for check, counts in by_segment.items()},
        entities=_some_distinct(batch.columns.values("entity_id"), rows),
        samples=tuple(
            sample_of(batch, row, source, batch.positions[row], tuple(one.finding() for one in condemning[row]))
            for row in worst[:SHADOW_SAMPLES]
        ),
    )


def with_malformed(
    tallies: Sequence[Tally],
    versions: Mapping[str, Sequence[int]],
    found: Mapping[int, Malformed],
    policy: Policy,
    route: Route | None,
    source: Source,
    now: datetime,
) -> list[Tally]:
    """The tallies of a model's batch with the malformed records that its `versions` are to blame for.

    `versions` maps a version to the positions of its malformed records. They count as blocked, and as failed unless
    the version was fenced before or the policy's mode does not block.
    """
    result = {tally.model_version: tally for tally in tallies}
    before = OTHERS in result
    # There is always room for the versions that the route names.
    left = max(2, GUARD_BUDGET - len(result.keys() - {OTHERS}))
    new = {version: len(positions) for version, positions in versions.items() if version not in result}
    if before:
        # Any other version may be among those that are counted together, and each is counted in one place.
        new = {version: count for version, count in new.items() if version in named_by(route)}
    own = counted_one_by_one(new, route, left) | result.keys()
    grouped, others = with_others(versions, own - {OTHERS})
    for version, positions in grouped.items():
        counts = policy.mode == "enforce" and not (route is not None and version in route.fenced)
        told = result.get(version)
        entities = dict.fromkeys(told.entities if told is not None else ())
        if counts:
            for position in positions:
                if len(entities) == MAX_TALLY_ENTITIES:
                    break
                if (entity := _entity(found[position], source.records[position])) is not None:
                    entities[short(entity)] = None
        offsets = [source.records[position].offset for position in (positions[0], positions[-1])]
        first_blocked = time_of(min(source.records[position].timestamp for position in positions))
        samples = told.samples if told is not None else ()
        room = positions[: MAX_SAMPLES - len(samples)]
        base = told or Tally(
            model=policy.model,
            model_version=version,
            policy=policy.id,
            at=now,
            worker=source.worker,
            partition=source.partition,
            first_offset=offsets[0],
            last_offset=offsets[1],
            topic_id=source.topic_id,
            seen=0,
            approved=0,
            blocked=0,
            failed=0,
            promoted=policy.accepts(version, route),
        )
        result[version] = base.model_copy(
            update={
                "first_offset": min(base.first_offset, offsets[0]),
                "last_offset": max(base.last_offset, offsets[1]),
                "seen": base.seen + len(positions),
                "blocked": base.blocked + len(positions),
                "failed": base.failed + (len(positions) if counts else 0),
                "blocked_by_check": base.blocked_by_check | {MALFORMED: len(positions)},
                "entities": tuple(entities),
                "first_blocked_at": min(filter(None, (base.first_blocked_at, first_blocked))),
                "samples": (*samples, *(malformed_sample(found[at], source, at) for at in room)),
            }
        )
    if others:
        result[OTHERS] = _of_others(result[OTHERS], others + (result[OTHERS].versions if before else 0))
    return [*result.values()]


def _entity(found: Malformed, record: Record) -> str | None:
    """What a malformed record is about: its entity, else the record's key, else the prediction itself."""
    if found.identity.entity_id is not None:
        return found.identity.entity_id
    if record.key:
        return record.key[:1000].decode("utf-8", "replace")[:1000]
    return found.identity.prediction_id
