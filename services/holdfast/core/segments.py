"""The closed list of segments of a policy.

The producer writes the segment, so bounds of a segment hold only as long as it writes the right one: `Cameras`,
an empty text or none at all would escape the bounds of `cameras`. A policy that lists its segments judges every other
one by the strictest bounds of all, or blocks it.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from holdfast.core.checks import AnyCheck
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.checks.range import RangeCheck

UNLISTED = "unlisted_segment"
UNREMEMBERED = "unremembered_segment"
"""The names under which findings say it."""
UnlistedSegment = Literal["strictest", "block"]


def with_listed(checks: Iterable[AnyCheck], segments: Sequence[str]) -> tuple[AnyCheck, ...]:
    """The same checks; those that read a segment know which there are. An empty list lists nothing."""
    if not segments:
        return tuple(checks)
    return tuple(
        check.with_segments(segments) if isinstance(check, RangeCheck | OutlierCheck) else check for check in checks
    )


def unlisted(column: Sequence[str | None], listed: frozenset[str]) -> NDArray[np.bool_] | None:
    """(n,) the rows whose segment is not listed; None: there is no such row."""
    if listed.issuperset(column):
        return None
    return np.fromiter((segment not in listed for segment in column), dtype=np.bool_, count=len(column))
