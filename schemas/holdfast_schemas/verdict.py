"""The verdict on one prediction and the findings behind it."""

from enum import StrEnum
from typing import Any

from holdfast_schemas._base import Contract


class Verdict(StrEnum):
    APPROVED = "approved"
    BLOCKED = "blocked"
    RELEASED = "released"
    """Blocked first, then approved by a person."""


class Severity(StrEnum):
    CRITICAL = "critical"
    """One failure trips the breaker."""
    ERROR = "error"
    """Blocks, and counts in the breaker's window."""
    WARNING = "warning"
    """Reported only: neither blocks nor trips."""
    INFO = "info"
    """Reported only: neither blocks nor trips."""


class Finding(Contract):
    """Why one check failed on one prediction."""

    check: str
    severity: Severity
    enforced: bool
    """Whether this finding blocked the prediction; false in shadow mode and for reported-only severities."""
    field: str | None = None
    seen: Any = None
    """What the prediction said. A number that JSON cannot hold is given as text (`"nan"`, `"inf"`)."""
    limit: Any = None
    """The bound that it broke."""
    unit: str | None = None


class Header(StrEnum):
    """The record headers that Holdfast adds; the producer's own stay in front of them."""

    VERDICT = "holdfast-verdict"
    POLICY = "holdfast-policy"
    MODEL = "holdfast-model"
    MODEL_VERSION = "holdfast-model-version"
    FINDINGS = "holdfast-findings"
    SOURCE = "holdfast-source"
    ERROR = "holdfast-error"
    RELEASED_BY = "holdfast-released-by"
    RELEASE_REASON = "holdfast-release-reason"
