"""The verdict on a batch of one model's predictions. Pure: no clock, no I/O, nothing changed but what is returned."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

import numpy as np

from holdfast.core.accepted import ByField, WithGiven, pending, used_by
from holdfast.core.arrays import Mask, Numbers
from holdfast.core.built_in import (
    ENOUGH_SEGMENTS,
    BuiltIn,
    apply_result,
    block_by_route,
    block_non_finite,
    block_row,
    block_unlisted,
    doubt,
    explain_record_keys,
    note_unpromoted,
    off_key_rows,
    warn_row,
)
from holdfast.core.checks.base import CheckResult
from holdfast.core.checks.freshness import FreshnessCheck
from holdfast.core.checks.max_change import MaxChangeCheck, judge_changes
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.columns import Columns
from holdfast.core.grouping import Batch
from holdfast.core.in_order import are_doubtful, judge_in_order
from holdfast.core.judgement import Judgement
from holdfast.core.memory import Entities, Known, Memory
from holdfast.core.policy import Policy
from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.promoted import PROMOTED
from holdfast.core.recent import Segments, learn_recent
from holdfast.core.record_keys import CHECK as OFF_KEY
from holdfast.core.record_keys import Keys
from holdfast.core.segments import UNREMEMBERED, unlisted
from holdfast_schemas import Route


def judge(
    batch: Batch,
    policy: Policy | None,
    memory: Memory,
    route: Route | None,
    now: datetime,
    *,
    model: str,
    approve_without_policy: bool = False,
    arrived: Callable[[], Numbers] | None = None,
    given: ByField | None = None,
    keys: Callable[[], Keys] | None = None,
) -> Judgement:
    """Check every prediction of `batch` and say which may pass.

    `route` carries the fences. With no policy everything is blocked (`no_policy`), unless told otherwise. `arrived`
    gives (n,) Unix milliseconds, the Kafka timestamps of the records; without it they arrived just now. `given` are the
    references that people gave for this model. `keys` gives the (n,) keys of the records; without it nothing is said
    about them.
    """
    policy = policy.at(now) if policy is not None else None
    columns, size = batch.columns, len(batch.columns)
    result = Judgement(np.ones(size, dtype=np.bool_))
    result.failed = np.zeros(size, dtype=np.bool_)
    result.critical = np.zeros(size, dtype=np.bool_)
    result.condemned = np.zeros(size, dtype=np.bool_)
    block_non_finite(batch, result, policy)
    # The rows that the checks count against their version: all but those of a version fenced before.
    countable = ~block_by_route(columns, route, result)
    result.failed &= countable
    if policy is None:
        if not approve_without_policy:
            for row in range(size):
                block_row(result, row, "no_policy", "model", model, "a policy for this model")
            result.approved[:] = False
        return result

    if policy.mode != "off":
        note_unpromoted(columns, route, policy, result)
    listed = policy.listed_segments()
    if listed is not None and policy.unlisted_segment == "block":
        block_unlisted(columns, listed, policy, result, countable)
    changes: list[tuple[MaxChangeCheck, bool]] = []
    outliers: list[tuple[OutlierCheck, bool]] = []
    for check in policy.active_checks():
        enforces = policy.enforces(check)
        if isinstance(check, MaxChangeCheck):
            changes.append((check, check.would_block))
        elif isinstance(check, OutlierCheck):
            outliers.append((check, check.would_block))
        else:
            outcome = check.run(columns, memory, policy.model, now)
            counts = countable
            if isinstance(check, FreshnessCheck) and arrived is not None and outcome.failed.any():
                counts = countable & ~check.grew_old_here(columns, outcome.failed, arrived(), now)
            apply_result(result, check, enforces, outcome, counts)
    # Last, because only what every other check lets pass may become part of a reference.
    known: Known = memory.of(policy.model)
    given_keys = keys() if keys is not None and policy.reads_keys() else None
    off = result.off_key = None if given_keys is None else off_key_rows(given_keys, columns, policy, known)
    explain_keys = partial(explain_record_keys, given_keys, columns, policy)
    if off is not None and policy.off_key == "block":
        # It is not the version's fault: the breaker does not count it.
        nowhere = np.zeros(size, dtype=np.bool_)
        apply_result(result, BuiltIn(OFF_KEY), policy.mode == "enforce", CheckResult(off, None, explain_keys), nowhere)
    doubted = off if policy.off_key == "unknown" else None
    teaches = result.approved & ~result.condemned
    if off is not None:
        teaches &= ~off
    if result.unpromoted is not None:
        teaches &= ~result.unpromoted
    waiting = pending(given, {check.field for check, _ in changes}, memory.used, columns) if given else {}
    if waiting:
        known = WithGiven(memory.of(policy.model), waiting)
    outcomes: list[CheckResult] = []
    if changes and not outliers:
        outcomes, result.last = judge_changes(changes, columns, known, teaches)
    if outliers or are_doubtful(changes, outcomes, columns, known):
        windows = policy.windows()
        recent = {name: memory.recent.get((policy.model, name), Segments()) for name in windows}
        both = judge_in_order(changes, outliers, columns, known, recent, windows, teaches, listed)
        result.last, result.recent = both.last, both.recent
        for (outlier, _), outcome in zip(outliers, both.outliers, strict=True):
            if doubted is not None:
                doubt(outlier, outcome, doubted, explain_keys)
            apply_result(result, outlier, policy.enforces(outlier), outcome, countable)
        outcomes = both.changes
        for row in both.unremembered:
            segment = columns.values("segment")[row]
            warn_row(result, row, UNREMEMBERED, "segment", segment, ENOUGH_SEGMENTS)
    for (change, _), outcome in zip(changes, outcomes, strict=True):
        if doubted is not None:
            doubt(change, outcome, doubted, explain_keys)
        apply_result(result, change, policy.enforces(change), outcome, countable)
    if off is not None:
        for row in np.flatnonzero(off & result.approved).tolist():
            # A guard that reads the record back knows by this that it is not a reference.
            (seen,), (limit,) = explain_keys([row])[1:]
            if all(one.check != OFF_KEY for one in result.findings.get(row, ())):
                warn_row(result, row, OFF_KEY, "key", seen, limit)
    if result.unpromoted is not None and policy.versions == "any" and policy.checks_with_memory():
        for row in np.flatnonzero(result.unpromoted & result.approved).tolist():
            # As with a key: a guard that reads the record back knows by this that it is not a reference.
            version = columns.values("model_version")[row]
            warn_row(result, row, NOT_PROMOTED, "model_version", version, PROMOTED)
    if waiting:
        result.used = used_by(waiting, result.last, columns)
    return result


def learn(memory: Memory, policy: Policy, columns: Columns, judgement: Judgement) -> None:
    """Let the memory take in what was approved of one model's batch."""
    for name, rows in judgement.last.items():
        memory.entities.setdefault(policy.model, Entities()).learn(name, columns, rows)
    for name, segments in judgement.recent.items():
        memory.recent[policy.model, name] = segments
    memory.used.update(one.reference_id for some in judgement.used.values() for _, one in some)


def remember(memory: Memory, columns: Columns, policy: Policy, teaches: Mask | None = None) -> None:
    """Take in predictions of one model that were approved before, oldest first.

    `teaches[i]`: whether row i may become a reference; without it all of them.
    """
    everything = np.ones(len(columns), dtype=np.bool_) if teaches is None else teaches
    listed = policy.listed_segments()
    changing = dict.fromkeys(check.field for check in policy.active_checks() if isinstance(check, MaxChangeCheck))
    for name in changing:
        rows = everything & ~np.isnan(columns.numbers(name))
        memory.entities.setdefault(policy.model, Entities()).learn(name, columns, rows)
    for name, keep in policy.windows().items():
        values, segments = columns.numbers(name), columns.values("segment")
        rows = everything & ~np.isnan(values)
        if listed is not None and (others := unlisted(segments, listed)) is not None:
            rows &= ~others
        if not rows.all():
            segments = [segments[row] for row in np.flatnonzero(rows).tolist()]
        learn_recent(memory.recent.setdefault((policy.model, name), Segments()), keep, segments, values[rows].tolist())
