"""What a batch of predictions is found to be."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from holdfast.core.accepted import Given
from holdfast.core.arrays import Mask
from holdfast.core.recent import Segments
from holdfast_schemas import Finding, Severity


class Found(msgspec.Struct, omit_defaults=True, gc=False):
    """A Finding while it is one of thousands: made and written in a tenth of the time."""

    check: str
    severity: Severity
    enforced: bool
    field: str | None = None
    seen: Any = None
    limit: Any = None
    unit: str | None = None

    def finding(self) -> Finding:
        return Finding(**msgspec.structs.asdict(self))


@dataclass(slots=True)
class Judgement:
    """(n,) `approved`, and what was found on the rows that failed anything.

    `counts` are the findings by check and whether it is enforced.

    `failed` are the blocked rows that the breaker counts, `critical` those of them that a critical check failed.
    `condemned` are the rows that a check in shadow would block: they are no references.
    `off_key` are the rows whose record has not the key that the policy demands: they are no references either.
    `unpromoted` are the rows of versions that the policy does not let serve: neither are they.
    `used` are the references that approved rows were the first to be held against.
    `last` are the rows by field that the memory must learn once the verdicts stand, `recent` is what it then holds.
    """

    approved: Mask
    findings: dict[int, list[Found]] = field(default_factory=dict)
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    failed: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    critical: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    condemned: Mask = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    unknown: dict[str, Mask] = field(default_factory=dict)
    off_key: Mask | None = None
    unpromoted: Mask | None = None
    last: dict[str, Mask] = field(default_factory=dict)
    recent: dict[str, Segments] = field(default_factory=dict)
    used: dict[int, list[tuple[str, Given]]] = field(default_factory=dict)
