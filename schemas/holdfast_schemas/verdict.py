"""The verdict on one prediction and the findings behind it."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Json, StringConstraints

from holdfast_schemas._base import AnyJson, Contract, NonEmpty, PolicyId
from holdfast_schemas.reference import UsedReference


class Verdict(StrEnum):
    """`released`: blocked first, then approved by a person. `deleted`: the producer deleted the key, by a record
    without a value, and the deletion was passed on."""

    APPROVED = "approved"
    BLOCKED = "blocked"
    RELEASED = "released"
    DELETED = "deleted"


class Severity(StrEnum):
    """`critical`: one failure trips the breaker; `error`: blocks, and counts in the breaker's window; `warning` and
    `info`: reported only, neither blocks nor trips."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Finding(Contract):
    """Why one check failed on one prediction."""

    check: str
    """Its name in the policy, or a built-in: `non_finite`, `negative_zero`, `fenced`, `held`, `no_policy`; or
    `malformed`, in the evidence of a version whose events could not be decoded."""
    severity: Severity
    enforced: bool
    """Whether this finding blocked the prediction; false in shadow mode and for reported-only severities."""
    field: str | None = None
    """The field that it read, where it read one."""
    seen: AnyJson = None
    """What the prediction said. A number that JSON cannot hold is given as text (`"nan"`, `"inf"`)."""
    limit: AnyJson = None
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
    PRODUCED_AT = "holdfast-produced-at"
    ERROR = "holdfast-error"
    ERROR_KIND = "holdfast-error-kind"
    RELEASED_BY = "holdfast-released-by"
    RELEASE_REASON = "holdfast-release-reason"
    REFERENCE = "holdfast-reference"


def _header_name(field: str) -> str:
    return f"holdfast-{field.replace('_', '-')}"


class _Headers(Contract):
    """UTF-8 text each; the producer's own headers stand beside them."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", alias_generator=_header_name, validate_by_name=True
    )


_Source = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[0-9]+/[0-9]+$")]
_ProducedAt = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z$")]
_Findings = Annotated[tuple[Finding, ...], Field(min_length=1)]


class _Judged(_Headers):
    policy: PolicyId
    """`pricing@<12 hex digits of the policy's content>`; `none` where the model has no policy."""
    model: NonEmpty
    model_version: NonEmpty
    produced_at: _ProducedAt | None = None
    """The producer's time, where the record has the time of its verdict: its topic would have deleted it soon."""


class ApprovedHeaders(_Judged):
    """What Holdfast adds to the headers of an approved or released record."""

    verdict: Literal[Verdict.APPROVED, Verdict.RELEASED]
    findings: Json[_Findings] | None = None
    """Present where something failed that does not block (shadow mode, `warning`, `info`), or was released anyway."""
    source: _Source | None = None
    """On released records: `topic/partition/offset` of the prediction."""
    released_by: NonEmpty | None = None
    """On released records: the person."""
    release_reason: NonEmpty | None = None
    reference: Json[tuple[UsedReference, ...]] | None = None
    """Present where the output was the first one of its entity to be held against a reference that a person gave."""


class DeletedHeaders(_Headers):
    """What Holdfast adds to the headers of a deletion that it passes on: a record with a key and without a value."""

    verdict: Literal[Verdict.DELETED]
    source: _Source
    """`topic/partition/offset` of the producer's record."""
    produced_at: _ProducedAt | None = None
    """The producer's time, where the record has the time of its verdict."""


class BlockedHeaders(_Judged):
    """What Holdfast adds to the headers of a blocked record."""

    verdict: Literal[Verdict.BLOCKED]
    findings: Json[_Findings]
    """At least one of them is enforced."""
    source: _Source
    """`topic/partition/offset` of the prediction."""


class MalformedHeaders(_Headers):
    """What Holdfast adds to the headers of a record that it could not decode; key and value are as they came."""

    error: NonEmpty
    """The reason."""
    error_kind: NonEmpty | None = None
    """The kind of reason, one of few: `missing_field`, `wrong_type`, `not_json`, …"""
    policy: PolicyId | None = None
    """Where the record says its model and version, which are then to blame: the policy that it was decoded for."""
    model: NonEmpty | None = None
    model_version: NonEmpty | None = None
    source: _Source
    """`topic/partition/offset` of the record."""
    produced_at: _ProducedAt | None = None
    """The producer's time, where the record has the time of its verdict."""
