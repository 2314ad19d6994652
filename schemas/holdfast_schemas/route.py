"""The route of a model: which version serves."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from holdfast_schemas._base import Contract, Count, Name, UtcTime

MAX_PROMOTED = 100


class RouteState(StrEnum):
    """`pinned`: a person chose the version, and no other is promoted; a trip still fences it and moves the route.
    `held`: no version may serve, everything is blocked."""

    AUTO = "auto"
    PINNED = "pinned"
    HELD = "held"


class Route(Contract):
    """A record of the compacted topic `holdfast.routes`, keyed by model: the truth about its route."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"state": {"const": "held"}}, "required": ["state"]},
            "then": {"properties": {"version": {"type": "null"}}},
        }
    )

    model: Name
    version: Name | None = None
    """The active version; absent while held, and until a first version is promoted."""
    epoch: Count
    """The fencing token: it rises with every record of this model."""
    state: RouteState
    last_good: Name | None = None
    """Where a trip of the active version would move the route now."""
    reason: str
    incident_id: str | None = None
    """The incident that the change belongs to."""
    actor: str
    """The person or pipeline that changed it; `holdfast` for automatic decisions."""
    since: UtcTime
    """When this record was decided."""
    fenced: tuple[Name, ...] = ()
    """The versions whose outputs are blocked, sorted."""
    promoted: Annotated[tuple[Name, ...], Field(max_length=MAX_PROMOTED)] = ()
    """The versions that have served as active, the latest 100, sorted: by default outputs of others are blocked. Empty:
    none has, so that outputs of every version may be approved."""

    @model_validator(mode="after")
    def _held_routes_have_no_version(self) -> Self:
        if self.state is RouteState.HELD and self.version is not None:
            raise ValueError("a held route has no version")
        return self


def redis_route_key(model: str) -> str:
    """The string with the active version; the braces keep a model's keys in one slot of Redis Cluster."""
    return f"holdfast:{{{model}}}:route"


def redis_state_key(model: str) -> str:
    """The hash with `version, epoch, state, last_good, reason, incident_id, actor, since`, and `signature` where the
    switch has a key."""
    return f"holdfast:{{{model}}}:state"


REDIS_CHANNEL = "holdfast:routes"
EPOCHS_AHEAD = 1000
"""An epoch in Redis that is further ahead of the known one was not written by a switch: each change adds one."""
