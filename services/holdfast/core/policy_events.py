"""What happened to the policies that a worker reads, and the audit record of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from holdfast.core.policy import Policy
from holdfast_schemas import AuditRecord, Outcome

AT_START, TAKEN_UP, REMOVED, REFUSED = "policy_at_start", "policy_taken_up", "policy_removed", "policy_refused"
POLICY_ACTIONS = frozenset((AT_START, TAKEN_UP, REMOVED, REFUSED))
NO_MODEL = "none"
"""The model of a refusal that is not of one model's file."""
MAX_DETAIL = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}")


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """A model's policy is another one than before; None: it has none."""

    before: Policy | None
    after: Policy | None
    author: str | None = None
    """Who has made it, as the deployment says."""
    at_start: bool = False
    """The worker began with it, and does not know what was before."""


@dataclass(frozen=True, slots=True)
class PolicyRefusal:
    """What the files say was not taken up."""

    why: str
    model: str | None = None
    """None: it is not of one model's file."""
    author: str | None = None


PolicyEvent = PolicyChange | PolicyRefusal


def changes(
    before: Mapping[str, Policy], after: Mapping[str, Policy], author: str | None = None, *, at_start: bool = False
) -> list[PolicyChange]:
    """What is new in `after`, and what is missing there, by model."""
    return [
        PolicyChange(before.get(model), after.get(model), author, at_start)
        for model in sorted(before.keys() | after.keys())
        if _id(before.get(model)) != _id(after.get(model))
    ]


def _id(policy: Policy | None) -> str | None:
    return policy.id if policy is not None else None


def is_same_again(before: AuditRecord, after: AuditRecord) -> bool:
    """Whether another worker, or one that has started again, says what was said of the model's policy before."""
    if REFUSED in (before.action, after.action):
        return before.action == after.action and before.detail == after.detail
    return before.policy == after.policy


def model_of(event: PolicyEvent) -> str:
    """Whose audit it belongs to."""
    if isinstance(event, PolicyChange):
        policy = event.after or event.before
        return policy.model if policy is not None else NO_MODEL
    return event.model if event.model is not None and _NAME.fullmatch(event.model) else NO_MODEL


def audit_of(event: PolicyEvent, *, worker: str, audit_id: str, at: datetime, epoch: int) -> AuditRecord:
    """The record for `holdfast.audit`. The actor is the author that the deployment tells, else the worker."""
    record = partial(
        AuditRecord,
        audit_id=audit_id,
        at=at,
        model=model_of(event),
        actor=event.author or worker,
        worker=worker,
        epoch=epoch,
    )
    if isinstance(event, PolicyRefusal):
        return record(
            action=REFUSED,
            outcome=Outcome.REFUSED,
            reason="the policy files changed",
            detail=f"the policies before stay in force: {event.why}"[:MAX_DETAIL],
        )
    before, after = event.before, event.after
    return record(
        action=REMOVED if after is None else AT_START if event.at_start else TAKEN_UP,
        outcome=Outcome.APPLIED,
        reason=f"{worker} started" if event.at_start else "the policy files changed",
        detail=_in_words(event),
        policy=_id(after),
        policy_before=_id(before),
        mode=after.mode if after is not None else None,
        mode_before=before.mode if before is not None else None,
    )


def _in_words(change: PolicyChange) -> str:
    before, after = change.before, change.after
    if after is None:
        return f"{_id(before)} is no longer in force, and the model has no policy"
    found = f"{after.id} is in force"
    if before is not None:
        found += f" in place of {before.id}"
    if before is not None and before.mode != after.mode:
        found += f'; its mode was "{before.mode}" and is "{after.mode}"'
    elif after.mode != "enforce":
        found += f'; its mode is "{after.mode}"'
    if after.mode == "off":
        found += ", so no check runs"
    elif after.mode == "shadow":
        found += ", so no check blocks"
    if after.mode_until is not None:
        found += f", until {after.mode_until:%Y-%m-%dT%H:%M:%SZ}"
    return found
