"""What is known of one model: its versions, its route, its open incidents."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from holdfast.core.approvals import Asked
from holdfast.core.breaker import Window
from holdfast.core.policy_change import Detour, PolicySeen, Trip
from holdfast.core.population import Population
from holdfast_schemas import AuditRecord, Contract, Count, Incident, Name, Route, RouteState, UtcTime
from holdfast_schemas.route import MAX_PROMOTED

MAX_VERSIONS = 200
"""Candidates of one model; beyond it those that were silent longest are forgotten."""
MAX_EVIDENCE = 10
"""Open incidents of one model, and candidates, that keep all of their samples: a state must fit into its record."""


class VersionState(StrEnum):
    CANDIDATE = "candidate"
    GOOD = "good"
    FENCED = "fenced"


class Version(Contract):
    """One entry of the version ledger."""

    state: VersionState = VersionState.CANDIDATE
    activated: Count | None = None
    """The epoch at which it last became active; None: it never was."""
    active_since: UtcTime | None = None
    approved: Count = 0
    """Outputs approved since then, while active."""
    window: Window = Window()
    last_seen: UtcTime | None = None
    fence_at: UtcTime | None = None
    """When an unfence that was granted for a while ends."""
    trip: Trip | None = None
    """The trip that fenced it last, as long as it can be undone."""


class OpenIncident(Contract):
    incident: Incident
    published_at: UtcTime
    stale: bool = False
    """Counts have risen since it was published."""


class ModelState(Contract):
    """All that is known of one model; a record of the compacted state topic."""

    model: Name
    route: Route | None = None
    versions: dict[str, Version] = {}
    held_by_person: bool = False
    held_before: bool = False
    """The breaker held the route when a person took the hold over."""
    resume_to: str | None = None
    """The version that was active when the route was held."""
    pinned_before: bool = False
    """`resume_to` was pinned when a person held the route."""
    pin_ends_at: UtcTime | None = None
    """When that pin ends by itself."""
    ends_at: UtcTime | None = None
    """When a pin or a hold ends by itself."""
    switches: tuple[UtcTime, ...] = ()
    """Automatic switches, for as long as they count."""
    incidents: dict[str, OpenIncident] = {}
    """The open ones, by bad version."""
    population: Population = Population()
    policies: dict[str, PolicySeen] = {}
    """The policies that tallies name, the latest last."""
    detours: tuple[Detour, ...] = ()
    """Where trips took the route away from, since anything else moved it."""
    keyless: Count = 0
    """Predictions that came without a key."""
    keyless_at: UtcTime | None = None
    """When the last of them was counted."""
    misplaced: Count = 0
    """Predictions whose key was looked at and belongs in another partition."""
    misplaced_at: UtcTime | None = None
    """When the last of them was counted."""
    others: Count = 0
    """Predictions of versions that were counted together."""
    others_at: UtcTime | None = None
    """When the last of them were counted."""
    asked: dict[str, Asked] = {}
    """Commands that wait for a second person, by what is asked for, the latest last."""
    commands: dict[str, AuditRecord] = {}
    """The outcomes of the latest commands, by command id: the same command again changes nothing."""


class Standing(StrEnum):
    """What a command meets; a held route is told apart by who holds it."""

    UNROUTED = "without a version so far"
    AUTO = "auto"
    PINNED = "pinned"
    HELD = "held by the breaker"
    HELD_BY_PERSON = "held by a person"


def forget_silent(state: ModelState, now: datetime) -> ModelState:
    """The state with `MAX_VERSIONS` candidates at most, and the samples of `MAX_EVIDENCE`: of those that sent last.

    It looks at every version, so a batch of control records calls it once. A version that serves, is fenced or good
    stays.
    """
    if len(state.versions) <= MAX_EVIDENCE:
        return state
    needed = {state.route.version if state.route is not None else None, state.resume_to}
    latest_first = sorted(
        state.versions.items(), key=lambda item: (min(item[1].last_seen or now, now), item[0]), reverse=True
    )
    dropped, candidates, with_samples = set[str](), 0, 0
    changed = dict[str, Version]()
    for name, version in latest_first:
        if (
            version.state is VersionState.CANDIDATE
            and version.activated is None
            and version.fence_at is None
            and name not in needed
        ):
            candidates += 1
            if candidates > MAX_VERSIONS:
                dropped.add(name)
                continue
        if version.window.has_samples:
            with_samples += 1
            if with_samples > MAX_EVIDENCE:
                changed[name] = version.model_copy(update={"window": version.window.without_samples()})
    if not dropped and not changed:
        return state
    versions = {name: changed.get(name, version) for name, version in state.versions.items() if name not in dropped}
    return state.model_copy(update={"versions": versions})


def last_good(state: ModelState, leaving: str | None) -> str | None:
    """Where the route goes when `leaving` is left; None: nowhere."""
    choices = [
        (version.activated, name)
        for name, version in state.versions.items()
        if version.activated is not None and version.state is VersionState.GOOD and name != leaving
    ]
    return max(choices)[1] if choices else None


def was_seen(state: ModelState | None, version: str) -> bool:
    """Whether an output of this version was ever judged."""
    return state is not None and version in state.versions and state.versions[version].last_seen is not None


def promoted(versions: Mapping[str, Version]) -> tuple[str, ...]:
    """The versions that served as active last, sorted: as many as a route names."""
    served = sorted((one.activated, name) for name, one in versions.items() if one.activated is not None)
    return tuple(sorted(name for _, name in served[-MAX_PROMOTED:]))


def standing(state: ModelState) -> Standing:
    match state.route:
        case Route(state=RouteState.HELD):
            return Standing.HELD_BY_PERSON if state.held_by_person else Standing.HELD
        case Route(state=RouteState.PINNED):
            return Standing.PINNED
        case Route(version=str()):
            return Standing.AUTO
    return Standing.UNROUTED
