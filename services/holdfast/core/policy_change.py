"""Which policy judged when, and what its trips did, so that one command undoes them.

Each tally names the policy that judged it. The switch notes since when it sees each of them; a trip soon after a change
may be the policy's mistake, and its incident says so. What a trip took from a version and from the route is kept beside
the version and in the detours of the model. A detour holds only while nothing else has moved the route since.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from holdfast.core.duration import format_duration
from holdfast_schemas import Contract, Incident, IncidentStatus, Name, UtcTime

SOON = timedelta(minutes=15)
"""After a policy change: a trip within it names the change."""
GONE_AFTER = timedelta(minutes=1)
"""A policy that no tally has named for so long is taken up again when one does."""
IN_USE = timedelta(seconds=3)
"""A policy that the latest tally names, not longer ago than this, is in force."""
KEPT = 8
"""Policies and detours of one model."""


class PolicySeen(Contract):
    """When tallies named one policy of a model."""

    since: UtcTime
    last: UtcTime
    before: str | None = None
    """The policy that judged before; None: this is the first one."""


class Trip(Contract):
    """What a trip took from a version."""

    policy: str
    at: UtcTime
    was_good: bool = False


class Detour(Contract):
    """Where the route was when trips under one policy moved it."""

    policy: str
    version: Name
    pinned: bool = False
    ends_at: UtcTime | None = None
    """Of the pin."""


def note_policy(known: Mapping[str, PolicySeen], policy: str, now: datetime) -> dict[str, PolicySeen]:
    """What is known after a tally by `policy`; while guards change over, tallies of both come in turn."""
    latest, seen = latest_policy(known), known.get(policy)
    others = {name: one for name, one in known.items() if name != policy}
    if seen is None or (latest != policy and now - seen.last >= GONE_AFTER):
        seen = PolicySeen(since=now, last=now, before=latest)
    else:
        seen = seen.model_copy(update={"last": max(now, seen.last)})
    kept = sorted(others.items(), key=lambda item: item[1].last)[-(KEPT - 1) :]
    return {**dict(kept), policy: seen}


def latest_policy(known: Mapping[str, PolicySeen]) -> str | None:
    """The policy of the last tally: the last one that was noted."""
    return next(reversed(list(known)), None)


def in_use(known: Mapping[str, PolicySeen], policy: str, now: datetime) -> bool:
    """Whether guards judge by it still, as far as tallies tell."""
    return policy in known and now - known[policy].last < IN_USE


def change_before(known: Mapping[str, PolicySeen], policy: str, now: datetime) -> PolicySeen | None:
    """The change to this policy, where it was shortly before `now`."""
    seen = known.get(policy)
    return seen if seen is not None and seen.before is not None and now - seen.since <= SOON else None


def without_detour(detours: Sequence[Detour], policy: str) -> tuple[tuple[Detour, ...], Detour | None]:
    """The detours without that of `policy`, and the one to go back from now.

    None: there is none, or trips under another policy have led further since; their detour then begins where this
    one began.
    """
    place = next((place for place, one in enumerate(detours) if one.policy == policy), None)
    if place is None:
        return tuple(detours), None
    mine, later = detours[place], tuple(detours[place + 1 :])
    if not later:
        return tuple(detours[:place]), mine
    return (*detours[:place], mine.model_copy(update={"policy": later[0].policy}), *later[1:]), None


def in_words(policy: str, since: datetime, at: datetime) -> str:
    """`the policy pricing@… was taken up 4 s before`."""
    ago = timedelta(seconds=max(0, round((at - since).total_seconds())))
    return f"the policy {policy} was taken up {format_duration(ago) if ago else 'less than a second'} before"


def advice(incident: Incident) -> str:
    """What an incident says of the policy change before it; empty where there was none, or it is over."""
    if incident.policy_since is None or incident.status is IncidentStatus.RESOLVED:
        return ""
    what = in_words(incident.policy, incident.policy_since, incident.opened_at)
    instead = f", in place of {incident.policy_before}" if incident.policy_before else ""
    return (
        f"{what[0].upper()}{what[1:]}{instead}. If the policy is wrong and the version is right, put the old policy "
        f"back, then undo its trips: holdfast policy undo-trips {incident.model} --policy {incident.policy} --reason …"
    )
