"""Requests and responses of the API, as JSON documents."""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from holdfast.api.asked import Lasts, Reason
from holdfast.api.read_model import HISTORY
from holdfast.core.checks.base import Mode
from holdfast.core.model_state import VersionState
from holdfast.core.shadow import VersionFacts
from holdfast_schemas import (
    MAX_REFERENCES,
    AcceptedValue,
    Action,
    Contract,
    Count,
    Name,
    Outcome,
    PolicyId,
    Route,
    UtcTime,
)

T = TypeVar("T")


class RouteNow(Route):
    """A route, and when its pin or hold ends by itself."""

    ends_at: UtcTime | None = None


class VersionNow(Contract):
    """One entry of a model's version ledger."""

    model: Name
    version: Name
    state: VersionState
    active: bool
    activated: Count | None = None
    """The epoch at which it last became active."""
    active_since: UtcTime | None = None
    approved: Count
    """Outputs approved since it became active."""
    last_seen: UtcTime | None = None
    fence_at: UtcTime | None = None
    """When an unfence that was granted for a while ends."""


class RatesNow(Contract):
    """How many predictions of a model are approved and blocked."""

    model: Name
    approved_per_second: float
    blocked_per_second: float
    history: list[tuple[int, int]] = Field(
        description=f"Approved and blocked of each of the last {HISTORY} seconds, the oldest first."
    )


class ShadowNow(BaseModel):
    """What checks in shadow found of a model's outputs."""

    model: Name
    mode: Mode | None = Field(None, description="The policy's; absent where the API has no policy of this model.")
    checks_in_shadow: list[str] = Field(description="The checks that would block, and do not because of shadow.")
    first: UtcTime | None = Field(None, description="When the first output that is counted here was judged.")
    versions: list[VersionFacts]


class Page(BaseModel, Generic[T]):
    """A part of a list; `next`, given as `after`, asks for what follows it."""

    items: list[T]
    total: int
    next: str | None = None


class OfModel(BaseModel):
    """What to list; a parameter that does not exist is refused, because its list would be the wrong one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name | None = Field(None, description="Of one model.")

    def fits(self, model: str) -> bool:
        return self.model in (None, model)


class Paged(OfModel):
    limit: int = Field(100, ge=1, le=500, description="How many at most.")
    after: str | None = Field(None, max_length=200, description="`next` of the page before.")


class OfIncidents(Paged):
    status: Literal["all", "open", "triggered", "acknowledged", "resolved"] = Field(
        "all", description="`open` is triggered or acknowledged."
    )


class OfAudit(Paged):
    actor: str | None = Field(None, max_length=1000)
    action: str | None = Field(None, max_length=100)
    outcome: Outcome | None = None


def _rfc_3339(value: Any) -> Any:
    # Numbers and bare dates would be taken for times otherwise.
    if not isinstance(value, str) or re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", value) is None:
        raise ValueError("write a time as in 2026-11-24T10:00:00Z")
    return value


Until = Annotated[UtcTime, BeforeValidator(_rfc_3339), WithJsonSchema({"type": "string", "format": "date-time"})]


class OfShadow(BaseModel):
    """Which shadow report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    version: Name | None = Field(None, description="Of one version.")
    since: Lasts = Field("1h", description="How far back to look: 90s, 30m, 2h or 7d.")


class Ask(BaseModel):
    """A command; its actor is whose token comes with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    reason: Reason = Field(description="Why; it is kept in the audit.")


class AskVersion(Ask):
    version: Name


class AskMaybeVersion(Ask):
    version: Name | None = Field(None, description="Without it: the last good one, or the one that was active.")


class _ForAWhile(BaseModel):
    expires_at: Until | None = Field(None, description="When it ends by itself; with `lasts` too, what comes first.")
    lasts: Lasts | None = Field(None, description="After how long it ends by itself: 90s, 30m, 2h or 7d.")


class AskPin(_ForAWhile, Ask):
    version: Name | None = Field(None, description="Without it: the active one.")


class AskHold(_ForAWhile, Ask):
    pass


class AskUnfence(_ForAWhile, AskVersion):
    pass


class AskUndoTrips(Ask):
    policy: PolicyId | None = Field(None, description="Whose trips; without it, the policy of the latest trip.")


class AskIncident(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    incident_id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    reason: Reason = Field(description="Why; it is kept in the audit.")


class AskReferences(Ask):
    references: Annotated[list[AcceptedValue], Field(min_length=1, max_length=MAX_REFERENCES)]


COMMANDS: dict[Action, tuple[type[BaseModel], str]] = {
    Action.PROMOTE: (AskVersion, "Let a version serve."),
    Action.PIN: (AskPin, "Fix the version: no other is promoted until unpin. A trip still moves the route."),
    Action.UNPIN: (Ask, "Let Holdfast switch automatically again."),
    Action.ROLLBACK: (AskMaybeVersion, "Leave the active version, fence it, and go back to the last good one."),
    Action.HOLD: (AskHold, "Let no version serve; everything is blocked."),
    Action.RESUME: (AskMaybeVersion, "End a hold."),
    Action.FENCE: (AskVersion, "Block every output of a version."),
    Action.UNFENCE: (AskUnfence, "Let a fenced version be a candidate again."),
    Action.UNDO_TRIPS: (
        AskUndoTrips,
        "Take back what trips under a wrong policy did: fences, lost `good`, the route, and their incidents.",
    ),
    Action.ACCEPT_REFERENCE: (
        AskReferences,
        "Set what the next values of entities are held against, instead of their last approved ones.",
    ),
    Action.GOOD: (AskVersion, "Declare the version that serves good: a trip of a later one goes back to it."),
    Action.ACKNOWLEDGE: (AskIncident, "Say that somebody is looking at an incident."),
    Action.RESOLVE: (AskIncident, "Close an incident; the version stays fenced."),
}
