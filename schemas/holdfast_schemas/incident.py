"""An incident: a version was found bad, and what was done about it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from holdfast_schemas._base import AnyJson, Contract, Count, Name, UtcTime
from holdfast_schemas.route import RouteState
from holdfast_schemas.verdict import Finding


class IncidentStatus(StrEnum):
    TRIGGERED = "triggered"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class IncidentSeverity(StrEnum):
    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class IncidentAction(StrEnum):
    """`switched`: the bad version was active, the route moved to `routed_to`; `fenced`: it was not active, the route
    stayed; `held`: no version may serve."""

    SWITCHED = "switched"
    FENCED = "fenced"
    HELD = "held"


ALERT_NAMES: dict[IncidentAction, str] = {
    IncidentAction.SWITCHED: "HoldfastVersionSwitched",
    IncidentAction.FENCED: "HoldfastVersionFenced",
    IncidentAction.HELD: "HoldfastRouteHeld",
}
"""What an incident is called where people are told of it; the runbook of each is `alerts/runbooks/<name>.md`."""


class Sample(Contract):
    """One blocked prediction, kept as evidence."""

    source: str
    """`topic/partition/offset` of the prediction."""
    prediction: AnyJson
    """The prediction as it came; text where it is not JSON."""
    findings: tuple[Finding, ...]
    entity_id: str | None = None
    """Read by the policy's mapping; a long one is cut. So is `prediction_id`."""
    prediction_id: str | None = None
    value: AnyJson = None
    """The output, a number; text where JSON cannot hold it."""


class Incident(Contract):
    """A record of `holdfast.incidents`, keyed by `incident_id`; each update is a full record."""

    incident_id: str
    dedup_key: str
    """`holdfast/<model>/<version>`"""
    status: IncidentStatus
    severity: IncidentSeverity
    model: Name
    bad_version: Name
    routed_to: Name | None = None
    """The version that served when the incident was opened; `serves` says which one serves now."""
    action: IncidentAction
    opened_at: UtcTime
    first_blocked_at: UtcTime | None = None
    """When the first blocked prediction was written to Kafka."""
    switched_at: UtcTime | None = None
    acknowledged_at: UtcTime | None = None
    acknowledged_by: str | None = None
    resolved_at: UtcTime | None = None
    resolved_by: str | None = None
    """The person; `holdfast` where what the incident says is no longer so."""
    resolved_because: str | None = None
    """What the person said, or what ended it."""
    route_state: RouteState | None = None
    """How the model's route stands. While the incident is open, it is published again when this or `serves` changes."""
    serves: Name | None = None
    """The version that serves; absent while none does."""
    seen: Count
    blocked: Count
    blocked_by_check: dict[str, Count]
    samples: Annotated[tuple[Sample, ...], Field(max_length=5)] = ()
    more_versions: Count = 0
    """Further versions that never served and were fenced since, which have no incidents of their own."""
    policy: str
    policy_since: UtcTime | None = None
    """When the switch first saw outputs judged by this policy, where that was shortly before the incident: the policy
    may be what is wrong. `undo_trips` takes back what its trips did."""
    policy_before: str | None = None
    """The policy that was in force before it."""
    runbook_url: str
    """The page that says what to do."""
