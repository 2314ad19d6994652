"""`freshness`: the time of the prediction is near now."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import repeat
from typing import Literal

import numpy as np

from holdfast.core.arrays import Mask, Numbers, mask_of, no_rows
from holdfast.core.checks.base import Check, CheckResult, Rows
from holdfast.core.columns import Columns
from holdfast.core.duration import Duration, format_duration
from holdfast.core.memory import Memory


class FreshnessCheck(Check):
    """`predicted_at` lies at most `max_age` before now, and at most `max_ahead` after it.

    A prediction that was fresh when it arrived and grew old while it waited for a guard is blocked too, but that is
    not its version's fault: it does not count for the breaker.
    """

    kind: Literal["freshness"]
    max_age: Duration
    max_ahead: Duration = timedelta(seconds=5)

    def texts(self) -> tuple[str, ...]:
        return ("predicted_at",)

    def run(self, columns: Columns, memory: Memory, model: str, now: datetime) -> CheckResult:
        seen: list[datetime | None] = columns.values("predicted_at")
        oldest, newest = now - self.max_age, now + self.max_ahead
        unknown = None
        given: Sequence[datetime] = seen  # type: ignore[assignment]
        if None in seen:
            unknown = mask_of([i for i, at in enumerate(seen) if at is None], len(seen))
            given = [at for at in seen if at is not None]
        if given and oldest <= min(given) and max(given) <= newest:
            failed = no_rows(len(seen))
        else:
            failed = mask_of(
                [i for i, at in enumerate(seen) if at is not None and not oldest <= at <= newest], len(seen)
            )
        return CheckResult(
            failed,
            unknown,
            lambda rows: (repeat("predicted_at"), [_age(seen[i], now) for i in rows], repeat(self._limit())),
        )

    def grew_old_here(self, columns: Columns, failed: Mask, arrived: Numbers, now: datetime) -> Mask:
        """(n,) the rows of `failed` that are too old now, and were not when they arrived.

        `arrived` are Unix milliseconds by Kafka's timestamp; one that is negative or in the future says nothing.
        """
        seen, now_ms = columns.values("predicted_at"), now.timestamp() * 1000
        oldest, max_age_ms = now - self.max_age, self.max_age.total_seconds() * 1000
        rows: Rows = []
        for row in np.flatnonzero(failed).tolist():
            at, arrived_ms = seen[row], float(arrived[row])
            if at is not None and at < oldest and 0 <= arrived_ms < now_ms:
                age_ms = arrived_ms - at.timestamp() * 1000
                if age_ms <= max_age_ms:
                    rows.append(row)
        return mask_of(rows, len(seen))

    def _limit(self) -> dict[str, str]:
        return {"max_age": format_duration(self.max_age), "max_ahead": format_duration(self.max_ahead)}


def _age(at: datetime | None, now: datetime) -> str | None:
    if at is None:
        return None
    seconds = (now - at).total_seconds()
    return f"{abs(seconds):.3f}s {'old' if seconds >= 0 else 'ahead'}"
