"""Who serves: one model's state, and the pure function that steps it.

Three kinds of event arrive in one order: a tally from a guard, a command from a person or a pipeline, and a tick
of the clock. `decide` answers with the new state and what to publish. Every standing of the route and what each
command does there is in `_REFUSED_IN` below; trips and fences work in all of them.

A version is `candidate` first, `good` once it has served as active long enough, and `fenced` when its breaker
trips or somebody says so; only an `unfence` ends a fence. When the active version is fenced the route moves to the
*last good*: the latest version that served as active, earned `good`, is not fenced and is not the one being left.
Where there is none, or where too many switches came in a while, the route is `held`: never "stay".

A held route remembers why. A hold by a person ends by a `resume` or at its own end; a hold by the breaker also ends
when a version is promoted, and is there again when a person's hold over it comes to its end. A pin that a person's hold
covers is in force again after it, unless its own end has passed, or another version serves then.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from holdfast.core.actors import HOLDFAST, actor_name
from holdfast.core.approvals import LOOSENS, Asked, approved, ask, wish
from holdfast.core.breaker import MAX_SAMPLES, BreakerPolicy, Window, earliest
from holdfast.core.duration import format_duration
from holdfast.core.policy_change import (
    KEPT,
    Detour,
    PolicySeen,
    Trip,
    change_before,
    in_use,
    in_words,
    note_policy,
    without_detour,
)
from holdfast.core.population import Population
from holdfast_schemas import (
    ALERT_NAMES,
    Action,
    AuditRecord,
    Command,
    Contract,
    Count,
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    Name,
    Outcome,
    Reference,
    Route,
    RouteState,
    Sample,
    Tally,
    UtcTime,
)
from holdfast_schemas.control import OTHERS
from holdfast_schemas.route import EPOCHS_AHEAD, MAX_PROMOTED

UPDATE_EVERY = timedelta(seconds=1)
"""How often an open incident is published again while its counts rise; more seldom as it grows older."""
UPDATE_EVERY_AT_MOST = timedelta(minutes=10)
UPDATES_IN_AGE = 100
"""The pause before an update is the incident's age divided by this: a version may send for months on end."""
REMEMBERED_COMMANDS = 32
MAX_VERSIONS = 200
"""Candidates of one model; beyond it those that were silent longest are forgotten."""
MAX_FENCED = 400
"""Versions of one model that are fenced by themselves without having served: the list is part of every route."""
OWN_INCIDENTS = 10
"""Open incidents of versions of one model that never served, within `MANY_WITHIN`; the latest one tells of more."""
MANY_WITHIN = timedelta(minutes=10)
MAX_EVIDENCE = 10
"""Open incidents of one model, and candidates, that keep all of their samples: a state must fit into its record."""
MAX_EXAMPLES = 100
"""Open incidents of one model that keep one sample; what was published of the others is in their topic."""


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


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Redis holds a higher epoch than the switch has decided, so readers have seen a route that is not its own."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Full:
    """What came would make the state larger than its record may be; `commands` are those among it."""

    version: str
    """The version that a tally among it names, else the one that serves."""
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The new state and what to publish, in the order of the fields."""

    state: ModelState | None
    route: Route | None = None
    incidents: tuple[Incident, ...] = ()
    audits: tuple[AuditRecord, ...] = ()
    references: tuple[Reference, ...] = ()


class Standing(StrEnum):
    """What a command meets; a held route is told apart by who holds it."""

    UNROUTED = "without a version so far"
    AUTO = "auto"
    PINNED = "pinned"
    HELD = "held by the breaker"
    HELD_BY_PERSON = "held by a person"


_NOT_HELD = "nothing is held; promote a version to change the route"
_NOTHING_ACTIVE = "no version is active, so there is nothing to leave; promote a version, or resume a held route"
_NOTHING_SERVES = "no version is active, and only the one that serves can be declared good; promote it first"
_NOT_PINNED = "the route is not pinned; there is nothing to end"
_HELD = "a person holds the route; resume it first"
_REFUSED_IN: dict[Action, dict[Standing, str]] = {
    Action.PROMOTE: {Standing.PINNED: "the route is pinned; unpin it first", Standing.HELD_BY_PERSON: _HELD},
    Action.PIN: {Standing.HELD_BY_PERSON: _HELD},
    Action.UNPIN: dict.fromkeys(set(Standing) - {Standing.PINNED}, _NOT_PINNED),
    Action.ROLLBACK: dict.fromkeys((Standing.UNROUTED, Standing.HELD, Standing.HELD_BY_PERSON), _NOTHING_ACTIVE),
    Action.HOLD: {},
    Action.RESUME: dict.fromkeys((Standing.UNROUTED, Standing.AUTO, Standing.PINNED), _NOT_HELD),
    Action.FENCE: {},
    Action.UNFENCE: {},
    Action.UNDO_TRIPS: {},
    Action.ACCEPT_REFERENCE: {},
    Action.GOOD: dict.fromkeys((Standing.UNROUTED, Standing.HELD, Standing.HELD_BY_PERSON), _NOTHING_SERVES),
    Action.ACKNOWLEDGE: {},
    Action.RESOLVE: {},
}
_MAY_END = {Action.PIN, Action.HOLD, Action.UNFENCE}


def decide(
    state: ModelState | None,
    event: Tally | Command | Tick | Overtaken | Full,
    now: datetime,
    policy: BreakerPolicy,
    *,
    new_id: str,
    runbook_url: str,
    approvals: int = 1,
) -> Decision:
    """Step one model.

    `state` is None for a model that is met for the first time; a tick then does nothing. `new_id` is fresh for each
    call and names the incidents and audit records made by it. `now` is aware. Raises nothing for any event: a
    command that cannot be carried out is refused in its audit record and changes nothing else. A `runbook_url` that
    ends in a slash is a folder: incidents name the page of their kind in it. `approvals`: how many people must ask for
    what loosens, 1 or 2.
    """
    if state is None:
        if isinstance(event, Tick | Overtaken | Full):
            return Decision(None)
        state = ModelState(model=event.model)
    turn = _Turn(state, now, policy, new_id, runbook_url, approvals)
    match event:
        case Tally():
            turn.count(event)
        case Command():
            turn.obey(event)
        case Tick():
            turn.tick()
        case Overtaken():
            turn.overtake(event.epoch)
        case Full():
            turn.isolate(event)
    return turn.done()


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


def refusal(state: ModelState, action: Action) -> str | None:
    """Why the route, as it stands, does not take this command; None: what the command names decides."""
    return _REFUSED_IN[action].get(standing(state))


class _RefusedError(Exception):
    pass


class _AskedError(_RefusedError):
    """A second person must want it too; the state has the wish."""


def _in_one_form(command: Command) -> Command:
    """The command with its actor's name in one form."""
    try:
        return command.model_copy(update={"actor": actor_name(command.actor)})
    except ValueError as error:
        raise _RefusedError(str(error)) from None


class _Turn:
    """One call of `decide`: the state as it changes, and what there is to publish."""

    def __init__(
        self,
        state: ModelState,
        now: datetime,
        policy: BreakerPolicy,
        new_id: str,
        runbook_url: str,
        approvals: int,
    ) -> None:
        self.state, self.now, self.policy, self._approvals = state, now, policy, approvals
        self._new_id, self._runbook_url = new_id, runbook_url
        self._epoch = state.route.epoch if state.route is not None else 0
        self._route: Route | None = None
        self._incidents: dict[str, Incident] = {}
        self._touched: str | None = None
        """The incident that was opened, acknowledged or resolved last; one that only follows the route is not meant."""
        self._told_in: str | None = None
        """The incident of other versions that tells of this trip."""
        self._ended: list[str] = []
        """Bad versions whose incidents ended with their hold; the next audit record tells it."""
        self._audits: list[AuditRecord] = []
        self._references: list[Reference] = []
        self._tripping = False

    def done(self) -> Decision:
        return Decision(
            self.state, self._route, tuple(self._incidents.values()), tuple(self._audits), tuple(self._references)
        )

    # What is read and changed

    @property
    def active(self) -> str | None:
        return self.state.route.version if self.state.route is not None else None

    def version(self, name: str) -> Version:
        return self.state.versions.get(name, Version())

    def _set(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)

    def _set_version(self, name: str, **changes: Any) -> None:
        self._set(versions={**self.state.versions, name: self.version(name).model_copy(update=changes)})

    def _move(
        self,
        version: str | None,
        route_state: RouteState,
        *,
        reason: str,
        actor: str,
        incident_id: str | None = None,
        held_by_person: bool = False,
        held_before: bool = False,
        ends_at: datetime | None = None,
        pinned_before: bool = False,
        pin_ends_at: datetime | None = None,
    ) -> None:
        """Make a new route; a version that becomes active by it starts its time as the active version."""
        epoch = self._epoch + 1
        if not self._tripping and not self._is_at(version, route_state):
            self._set(detours=())
        if version is not None and version != self.active:
            self._set_version(version, activated=epoch, active_since=self.now, approved=0)
        self._set(
            held_by_person=held_by_person,
            held_before=held_before,
            resume_to=(self.active or self.state.resume_to) if route_state is RouteState.HELD else None,
            ends_at=ends_at,
            pinned_before=pinned_before,
            pin_ends_at=pin_ends_at,
        )
        self._route = Route(
            model=self.state.model,
            version=version,
            epoch=epoch,
            state=route_state,
            last_good=last_good(self.state, leaving=version),
            reason=reason,
            incident_id=incident_id,
            actor=actor,
            since=self.now,
            fenced=tuple(sorted(n for n, v in self.state.versions.items() if v.state is VersionState.FENCED)),
            promoted=promoted(self.state.versions),
        )
        self._set(route=self._route)
        self._let_incidents_follow()

    def _is_at(self, version: str | None, route_state: RouteState) -> bool:
        route = self.state.route
        return route is not None and (route.version, route.state) == (version, route_state)

    def _republish(self, *, reason: str, actor: str, incident_id: str | None = None) -> None:
        """The same version and state with other fences; what a held or pinned route remembers stays."""
        route, kept = self.state.route, self.state
        self._move(
            self.active,
            route.state if route is not None else RouteState.AUTO,
            reason=reason,
            actor=actor,
            incident_id=incident_id,
            held_by_person=kept.held_by_person,
            held_before=kept.held_before,
            ends_at=kept.ends_at,
            pinned_before=kept.pinned_before,
            pin_ends_at=kept.pin_ends_at,
        )

    def _audit(self, action: str, version: str | None, outcome: Outcome, *, detail: str, **fields: Any) -> None:
        ended, self._ended = self._ended, []
        if ended:
            detail += f"; resolved, since the route is held no longer: the incident of {', '.join(ended)}"
        self._audits.append(
            AuditRecord(
                audit_id=f"{self._new_id}-{len(self._audits)}",
                at=self.now,
                model=self.state.model,
                action=action,
                version=version,
                outcome=outcome,
                epoch=self.state.route.epoch if self.state.route is not None else 0,
                detail=detail,
                **fields,
            )
        )

    def _automatic(self, action: str, version: str | None, *, reason: str, detail: str) -> None:
        incident = self.state.incidents.get(version or "")
        self._audit(
            action,
            version,
            Outcome.APPLIED,
            actor=HOLDFAST,
            reason=reason,
            detail=detail,
            incident_id=incident.incident.incident_id if incident is not None else self._told_in,
        )

    # Tallies

    def count(self, tally: Tally) -> None:
        name = tally.model_version
        if tally.keyless:
            self._set(keyless=self.state.keyless + tally.keyless, keyless_at=self.now)
        if tally.misplaced:
            self._set(misplaced=self.state.misplaced + tally.misplaced, misplaced_at=self.now)
        if name == OTHERS:
            self._set(others=self.state.others + tally.seen, others_at=self.now)
            return
        version = self.version(name)
        self._set(policies=note_policy(self.state.policies, tally.policy, self.now))
        if version.state is VersionState.FENCED:
            self._add_to_incident(name, tally)
            return
        window = version.window.add(tally, self.now, self.policy)
        approved = version.approved + (tally.approved if name == self.active else 0)
        self._set_version(name, window=window, approved=approved, last_seen=self.now)
        self._set(population=self.state.population.add(tally, self.now, self.policy))
        if (cause := window.trips(self.policy, self.state.population.needed(self.policy))) is not None:
            self._trip(name, cause, tally)
        elif self._has_earned_good(name):
            self._set_version(name, state=VersionState.GOOD)
            served = format_duration(timedelta(seconds=round(self._active_for(name).total_seconds())))
            self._automatic(
                "earned_good",
                name,
                reason=f"{approved} outputs approved within {served} as the active version",
                detail=f"{name} is good: the route may come back to it",
            )

    def _active_for(self, name: str) -> timedelta:
        since = self.version(name).active_since
        return max(timedelta(0), self.now - since) if since is not None else timedelta(0)

    def _has_earned_good(self, name: str) -> bool:
        version = self.version(name)
        return (
            name == self.active
            and version.state is VersionState.CANDIDATE
            and version.approved >= self.policy.good_after_seen
            and self._active_for(name) >= self.policy.good_after
            and not version.window.too_many_failed(self.policy)
            and not version.window.nearly_all_fail_in_shadow
        )

    def _trip(self, name: str, cause: str, tally: Tally) -> None:
        version, route, ends_at = self.version(name), self.state.route, self.state.ends_at
        if (change := change_before(self.state.policies, tally.policy, self.now)) is not None:
            cause = f"{cause}; {in_words(tally.policy, change.since, self.now)}"
        reason = f"{name} tripped: {cause}"
        trip = Trip(policy=tally.policy, at=self.now, was_good=version.state is VersionState.GOOD)
        too_many = version.activated is None and self._fenced_unserved() >= MAX_FENCED
        if too_many and not tally.promoted:
            # Guards block its outputs without a fence, and versions that anybody can invent hold no model.
            self._set_version(name, window=Window())
            return
        self._tripping = True
        if too_many:
            self._hold_for_too_many(name, cause, reason, policy=tally.policy)
        else:
            detail = self._fence(
                name,
                reason=reason,
                actor=HOLDFAST,
                severity=IncidentSeverity.CRITICAL if self.active in {name, None} else IncidentSeverity.ERROR,
                policy=tally.policy,
                window=version.window,
            )
            self._automatic("trip", name, reason=cause, detail=detail)
        self._tripping = False
        if self._route is not None:
            self._set_version(name, trip=trip)
            self._note_detour(tally.policy, route, ends_at)

    def _note_detour(self, policy: str, before: Route | None, ends_at: datetime | None) -> None:
        """Remember where the route was before a trip, unless trips under this policy have led there."""
        if before is None or before.version is None or before.version == self.active:
            return
        detours = self.state.detours
        if not detours or detours[-1].policy != policy:
            pinned = before.state is RouteState.PINNED
            detour = Detour(policy=policy, version=before.version, pinned=pinned, ends_at=ends_at if pinned else None)
            self._set(detours=(*detours, detour)[-KEPT:])

    def _fence(
        self,
        name: str,
        *,
        reason: str,
        actor: str,
        severity: IncidentSeverity,
        policy: str = "",
        window: Window | None = None,
        to: str | None = None,
    ) -> str:
        """Fence a version, move the route if it was active, open the incident. Returns what was done, in words.

        The route goes to `to`, or to the last good.
        """
        was_active = name == self.active
        self._set_version(name, state=VersionState.FENCED, window=Window(), fence_at=None, approved=0, trip=None)
        shared = self._shared_incident(name) if actor == HOLDFAST and not was_active else None
        incident_id = shared.incident.incident_id if shared is not None else self._new_id
        if not was_active:
            self._republish(reason=reason, actor=actor, incident_id=incident_id)
            action, detail = IncidentAction.FENCED, f"{name} is fenced; it was not active, so the route stays"
        elif (target := to or last_good(self.state, leaving=name)) is None:
            self._move(
                None, RouteState.HELD, reason=f"{reason}; no good version is left", actor=actor, incident_id=incident_id
            )
            action, detail = IncidentAction.HELD, f"{name} is fenced; no good version is left, so the route is held"
        elif actor == HOLDFAST and (flapping := self._flaps()) is not None:
            self._move(None, RouteState.HELD, reason=f"{reason}; {flapping}", actor=actor, incident_id=incident_id)
            action, detail = IncidentAction.HELD, f"{name} is fenced; {flapping}, so the route is held"
        else:
            self._move(target, RouteState.AUTO, reason=reason, actor=actor, incident_id=incident_id)
            if actor == HOLDFAST:
                self._set(switches=(*self.state.switches, self.now))
            action, detail = IncidentAction.SWITCHED, f"{name} is fenced; the route moved to {target}"
        # One may be open of a version that was not fenced: it had held the route.
        self._resolve_incident(name, actor, because=reason)
        if shared is not None:
            self._tell_in(shared, window or Window())
            return detail
        self._open_incident(name, action, incident_id, severity=severity, policy=policy, window=window)
        return detail

    def _hold_for_too_many(self, name: str, cause: str, reason: str, *, policy: str) -> None:
        """Versions without end are no versions: the producer puts something else into that field."""
        if standing(self.state) in (Standing.HELD, Standing.HELD_BY_PERSON):
            return  # What it says is blocked; it trips anew once the route is resumed.
        window = self.version(name).window
        why = f"{MAX_FENCED} versions are fenced already; unfence those that nobody sends any more"
        self._move(None, RouteState.HELD, reason=f"{reason}; {why}", actor=HOLDFAST, incident_id=self._new_id)
        self._set_version(name, window=Window())
        self._resolve_incident(name, HOLDFAST, because=reason)
        self._open_incident(
            name, IncidentAction.HELD, self._new_id, severity=IncidentSeverity.CRITICAL, policy=policy, window=window
        )
        self._automatic("trip", name, reason=cause, detail=f"the route is held: {why}")

    def isolate(self, full: Full) -> None:
        """Hold the model, whose state has no room for what came; of that nothing is counted, and nothing obeyed."""
        why = "its state is as large as its record may be, without any evidence"
        if standing(self.state) not in (Standing.HELD, Standing.HELD_BY_PERSON):
            reason = f"{self.state.model} cannot be followed any more: {why}"
            self._move(None, RouteState.HELD, reason=reason, actor=HOLDFAST, incident_id=self._new_id)
            self._resolve_incident(full.version, HOLDFAST, because=reason)
            self._open_incident(
                full.version,
                IncidentAction.HELD,
                self._new_id,
                severity=IncidentSeverity.CRITICAL,
                policy="",
                window=None,
            )
            self._automatic(
                "trip", full.version, reason=reason, detail="the route is held; unfence versions that nobody sends"
            )
        for command in full.commands:
            self._audit(
                command.action.value,
                command.version,
                Outcome.REFUSED,
                actor=command.actor,
                reason=command.reason,
                detail=f"{why}; unfence versions that nobody sends any more, and try again",
                command_id=command.command_id,
            )

    def _fenced_unserved(self) -> int:
        return sum(v.state is VersionState.FENCED and v.activated is None for v in self.state.versions.values())

    def _flaps(self) -> str | None:
        within = self.policy.max_switches_within
        # A switch in the future means that the clock went back: it counts as one of now.
        recent = tuple(min(at, self.now) for at in self.state.switches if self.now - at < within)
        self._set(switches=recent)
        if len(recent) < self.policy.max_switches:
            return None
        return f"there were already {len(recent)} switches within {format_duration(within)}"

    # Incidents

    def _open_incident(
        self,
        name: str,
        action: IncidentAction,
        incident_id: str,
        *,
        severity: IncidentSeverity,
        policy: str,
        window: Window | None,
    ) -> None:
        window = window or Window()
        change = change_before(self.state.policies, policy, self.now)
        runbook = f"{ALERT_NAMES[action]}.md" if self._runbook_url.endswith("/") else ""
        self._publish_incident(
            Incident(
                incident_id=incident_id,
                dedup_key=f"holdfast/{self.state.model}/{name}",
                status=IncidentStatus.TRIGGERED,
                severity=severity,
                model=self.state.model,
                bad_version=name,
                routed_to=self.active if action is not IncidentAction.HELD else None,
                action=action,
                opened_at=self.now,
                first_blocked_at=window.first_blocked_at,
                switched_at=None if action is IncidentAction.FENCED else self.now,
                seen=window.seen,
                blocked=window.blocked,
                blocked_by_check=window.blocked_by_check,
                samples=window.samples,
                policy=policy,
                policy_since=change.since if change is not None else None,
                policy_before=change.before if change is not None else None,
                runbook_url=self._runbook_url + runbook,
                **self._route_as_told(),
            )
        )
        self._touched = incident_id

    def _shared_incident(self, name: str) -> OpenIncident | None:
        """The open incident that tells of a version which never served, where there are many of these; else None."""
        if self.version(name).activated is not None or name in self.state.incidents:
            return None
        open_ones = [
            known
            for other, known in self.state.incidents.items()
            if known.incident.action is IncidentAction.FENCED
            and self.version(other).activated is None
            and abs(self.now - known.incident.opened_at) < MANY_WITHIN
        ]
        if len(open_ones) < OWN_INCIDENTS:
            return None
        return max(open_ones, key=lambda known: (known.incident.more_versions, known.incident.opened_at))

    def _tell_in(self, shared: OpenIncident, window: Window) -> None:
        """Count a further version in an open incident."""
        # The route has moved since, and the incident has followed it.
        known = self.state.incidents[shared.incident.bad_version]
        incident = known.incident.model_copy(
            update={
                "more_versions": known.incident.more_versions + 1,
                "seen": known.incident.seen + window.seen,
                "blocked": known.incident.blocked + window.blocked,
                "blocked_by_check": dict(Counter(known.incident.blocked_by_check) + Counter(window.blocked_by_check)),
            }
        )
        self._told_in = incident.incident_id
        self._take_over(known, incident, publish=self._update_is_due(known))

    def _route_as_told(self) -> dict[str, Any]:
        """What an incident says about the route."""
        route = self.state.route
        return {"route_state": route.state if route is not None else None, "serves": self.active}

    def _let_incidents_follow(self) -> None:
        """Open incidents say how the route stands now; one of a hold is over when the route is not held any more.

        That a version was bad needs a person, however the route stands: its incident stays open.
        """
        told, changed = self._route_as_told(), dict(self.state.incidents)
        over: list[str] = []
        for name, known in self.state.incidents.items():
            incident = known.incident
            if incident.action is IncidentAction.HELD and told["route_state"] is not RouteState.HELD:
                over.append(name)
            elif {"route_state": incident.route_state, "serves": incident.serves} != told:
                self._incidents[incident.incident_id] = incident = incident.model_copy(update=told)
                changed[name] = OpenIncident(incident=incident, published_at=self.now)
        self._set(incidents=changed)
        for name in over:
            self._end_hold(name)

    def _has_incident_of_hold(self, name: str) -> bool:
        """Whether the version's open incident says that the model is held; it lasts as long as the hold."""
        known = self.state.incidents.get(name)
        return known is not None and known.incident.action is IncidentAction.HELD

    def _end_hold(self, name: str) -> None:
        now = f"{self.active} serves" if self.active is not None else "the model is without a version"
        self._resolve_incident(name, HOLDFAST, because=f"the route is held no longer: {now}")
        self._ended.append(name)

    def _publish_incident(self, incident: Incident) -> None:
        self._incidents[incident.incident_id] = incident
        still_open = {v: o for v, o in self.state.incidents.items() if v != incident.bad_version}
        if incident.status is not IncidentStatus.RESOLVED:
            still_open[incident.bad_version] = OpenIncident(incident=incident, published_at=self.now)
        for place, name in enumerate(reversed(list(still_open)[:-MAX_EVIDENCE]), start=MAX_EVIDENCE):
            known = still_open[name]
            less = known.incident.samples[: 1 if place < MAX_EXAMPLES else 0]
            if less != known.incident.samples:
                smaller = known.incident.model_copy(update={"samples": less})
                still_open[name] = known.model_copy(update={"incident": smaller})
        self._set(incidents=still_open)

    def _add_to_incident(self, name: str, tally: Tally) -> None:
        """A fenced version is still sending: its incident is updated, not repeated."""
        if (known := self.state.incidents.get(name)) is None:
            return
        incident = known.incident
        publish = self._update_is_due(known)
        # Only among the last ones published is there room.
        has_room = publish or name in list(self.state.incidents)[-MAX_EVIDENCE:]
        room = MAX_SAMPLES - len(incident.samples) if has_room else 0
        samples: tuple[Sample, ...] = incident.samples + tally.samples[: max(0, room)]
        incident = incident.model_copy(
            update={
                "seen": incident.seen + tally.seen,
                "blocked": incident.blocked + tally.blocked,
                "blocked_by_check": dict(Counter(incident.blocked_by_check) + Counter(tally.blocked_by_check)),
                "first_blocked_at": earliest((incident.first_blocked_at, tally.first_blocked_at)),
                "samples": samples,
                "policy": incident.policy or tally.policy,
            }
        )
        self._take_over(known, incident, publish=publish)

    def _take_over(self, known: OpenIncident, incident: Incident, *, publish: bool) -> None:
        """Keep risen counts of an open incident; without `publish` a later update tells of them."""
        if publish:
            self._publish_incident(incident)
            return
        update = known.model_copy(update={"incident": incident, "stale": True})
        self._set(incidents={**self.state.incidents, incident.bad_version: update})

    def _update_is_due(self, known: OpenIncident) -> bool:
        age = abs(self.now - known.incident.opened_at)
        pause = min(max(UPDATE_EVERY, age / UPDATES_IN_AGE), UPDATE_EVERY_AT_MOST)
        return abs(self.now - known.published_at) >= pause

    def _resolve_incident(self, name: str, actor: str, *, because: str) -> None:
        if (known := self.state.incidents.get(name)) is None:
            return
        self._publish_incident(
            known.incident.model_copy(
                update={
                    "status": IncidentStatus.RESOLVED,
                    "resolved_at": self.now,
                    "resolved_by": actor,
                    "resolved_because": because,
                    **self._route_as_told(),
                }
            )
        )
        self._touched = known.incident.incident_id

    # Time

    def tick(self) -> None:
        if self.state.route is not None and self.state.route.promoted != promoted(self.state.versions):
            self._republish(reason="the route names the versions that were promoted", actor=HOLDFAST)
            return  # One route record for each decision.
        self._let_incidents_follow()
        if self._ended:
            self._automatic("resolved", self._ended[-1], reason="the route is not held", detail="nothing else changed")
        for known in list(self.state.incidents.values()):
            if known.stale and self._update_is_due(known):
                self._publish_incident(known.incident)
        for name, version in list(self.state.versions.items()):
            if version.window.is_over(self.now, self.policy):
                self._set_version(name, window=Window())
        for name, version in list(self.state.versions.items()):
            if version.fence_at is not None and self.now >= version.fence_at:
                severity = IncidentSeverity.CRITICAL if name == self.active else IncidentSeverity.ERROR
                reason = f"the unfence of {name} was granted until now"
                detail = self._fence(name, reason=reason, actor=HOLDFAST, severity=severity)
                self._automatic("expired", name, reason=reason, detail=detail)
                # One route record for each decision: the next tick does the next one.
                return
        if self.state.ends_at is not None and self.now >= self.state.ends_at:
            self._end_pin_or_hold()

    def overtake(self, epoch: int) -> None:
        """Rise above an epoch that somebody else has written: readers never go back, so only a higher one heals them.

        One that is too far ahead is refused by readers and overwritten, and must not drive the epoch up.
        """
        ours = self._epoch
        if self.state.route is None or not ours < epoch <= ours + EPOCHS_AHEAD:
            return
        self._epoch = epoch
        reason = f"Redis held the epoch {epoch}, which the switch has not written"
        self._republish(reason=reason, actor=HOLDFAST)
        self._automatic(
            "route_reasserted",
            self.active,
            reason=reason,
            detail=f"the epoch rises from {ours} to {epoch + 1}, so that serving code leaves what somebody else wrote "
            "to Redis: find out who can write there",
        )

    def _end_pin_or_hold(self) -> None:
        if standing(self.state) is Standing.PINNED:
            reason, detail = "the pin has come to its end", "the route is auto again"
            self._move(self.active, RouteState.AUTO, reason=reason, actor=HOLDFAST)
        elif self.state.held_before:
            reason = "the hold has come to its end, and the breaker had held the route before"
            detail = "the route stays held; promote a version"
            self._move(None, RouteState.HELD, reason=reason, actor=HOLDFAST)
        elif (target := self._resume_target()) is not None or self.state.resume_to is None:
            reason = "the hold has come to its end"
            detail = self._serve_again(target, reason=reason, actor=HOLDFAST)
        else:
            reason = "the hold has come to its end, but no version may serve"
            detail = "the route stays held; promote a version"
            self._move(None, RouteState.HELD, reason=reason, actor=HOLDFAST)
        self._automatic("expired", self.active, reason=reason, detail=detail)

    def _resume_target(self) -> str | None:
        remembered = self.state.resume_to
        if remembered is not None and self.version(remembered).state is not VersionState.FENCED:
            return remembered
        return last_good(self.state, leaving=None)

    def _serve_again(self, name: str | None, *, reason: str, actor: str) -> str:
        """End a hold. Returns what was done, in words."""
        pin_ends_at = self.state.pin_ends_at
        pin_is_over = pin_ends_at is not None and pin_ends_at <= self.now
        if name is None or name != self.state.resume_to or not self.state.pinned_before or pin_is_over:
            self._move(name, RouteState.AUTO, reason=reason, actor=actor)
            return _serves_again(name)
        self._move(name, RouteState.PINNED, reason=reason, actor=actor, ends_at=pin_ends_at)
        return f"{_serves_again(name)}, pinned as before{_until(pin_ends_at)}"

    # Commands

    def obey(self, command: Command) -> None:
        if (known := self.state.commands.get(command.command_id)) is not None:
            self._audits.append(known)
            return
        before = self.state
        incident = self._incident_meant(command)
        try:
            command = _in_one_form(command)
            if (refused_here := refusal(self.state, command.action)) is not None:
                raise _RefusedError(refused_here)
            self._check(command)
            command, approval = self._with_approval(command)
            detail, outcome = _HANDLERS[command.action](self, command) + approval, Outcome.APPLIED
        except _AskedError as asked:
            detail, outcome = str(asked), Outcome.REFUSED
        except _RefusedError as refused:
            self.state, detail, outcome = before, str(refused), Outcome.REFUSED
        self._audit(
            command.action.value,
            command.version,
            outcome,
            actor=command.actor,
            reason=command.reason,
            detail=detail,
            command_id=command.command_id,
            incident_id=(self._touched or incident) if outcome is Outcome.APPLIED else None,
        )
        commands = {**self.state.commands, command.command_id: self._audits[-1]}
        for oldest in list(commands)[:-REMEMBERED_COMMANDS]:
            del commands[oldest]
        self._set(commands=commands)

    def _with_approval(self, command: Command) -> tuple[Command, str]:
        """The command as all people want it that it needs, and who approved it. Raises _AskedError."""
        if self._approvals < 2 or command.action not in LOOSENS:
            return command, ""
        found = approved(self.state.asked, command, self.now)
        if found is None:
            asked, told = ask(self.state.asked, command, self.now)
            self._set(asked=asked)
            raise _AskedError(told)
        wanted, first = found
        self._set(asked={key: one for key, one in self.state.asked.items() if key != wish(command)})
        return wanted, f"; {first.actor} had asked for it at {first.at:%Y-%m-%dT%H:%M:%SZ}"

    def _incident_meant(self, command: Command) -> str | None:
        known = self._find_incident(command)
        return known.incident.incident_id if known is not None else None

    def _find_incident(self, command: Command) -> OpenIncident | None:
        if command.incident_id is not None:
            found = (o for o in self.state.incidents.values() if o.incident.incident_id == command.incident_id)
            return next(found, None)
        return self.state.incidents.get(command.version or "")

    def _check(self, command: Command) -> None:
        if command.policy is not None and command.action is not Action.UNDO_TRIPS:
            raise _RefusedError(f"{command.action.value} is not about a policy; leave the policy out")
        if command.references and command.action is not Action.ACCEPT_REFERENCE:
            raise _RefusedError(f"{command.action.value} is not about references; leave them out")
        if command.expires_at is None:
            return
        if command.action not in _MAY_END:
            raise _RefusedError(f"{command.action.value} has no end; only pin, hold and unfence take expires_at")
        if command.expires_at <= self.now:
            raise _RefusedError(f"expires_at {command.expires_at:%Y-%m-%dT%H:%M:%SZ} has passed; give a later time")

    def _wanted(self, command: Command, *, otherwise: str | None = None) -> str:
        name = command.version or otherwise
        if name is None:
            raise _RefusedError(f"{command.action.value} needs a version; name it")
        return name

    def _refuse_fenced(self, name: str) -> None:
        if self.version(name).state is VersionState.FENCED:
            raise _RefusedError(f"{name} is fenced; unfence it first, or choose another version")

    def _promote(self, command: Command) -> str:
        name = self._wanted(command)
        self._refuse_fenced(name)
        if name == self.active:
            return f"{name} is active already; nothing changed"
        self._move(name, RouteState.AUTO, reason=command.reason, actor=command.actor)
        return f"{name} is active{self._if_never_seen(name)}"

    def _if_never_seen(self, name: str) -> str:
        return "" if was_seen(self.state, name) else "; no output of it was seen so far, so check its name"

    def _pin(self, command: Command) -> str:
        name = self._wanted(command, otherwise=self.active)
        self._refuse_fenced(name)
        self._move(name, RouteState.PINNED, reason=command.reason, actor=command.actor, ends_at=command.expires_at)
        return f"{name} is pinned{_until(command.expires_at)}{self._if_never_seen(name)}"

    def _unpin(self, command: Command) -> str:
        self._move(self.active, RouteState.AUTO, reason=command.reason, actor=command.actor)
        return f"the route is auto; {self.active} stays active"

    def _rollback(self, command: Command) -> str:
        if (leaving := self.active) is None:
            raise _RefusedError(_NOTHING_ACTIVE)
        if command.version is not None:
            self._refuse_fenced(command.version)
            if command.version == leaving:
                raise _RefusedError(f"{leaving} is the version to leave; name another, or none for the last good one")
            if self.version(command.version).activated is None:
                raise _RefusedError(f"{command.version} never served as active; promote it instead")
        return self._fence_by_hand(leaving, command, to=command.version)

    def _hold(self, command: Command) -> str:
        pinned = standing(self.state) is Standing.PINNED
        self._move(
            None,
            RouteState.HELD,
            reason=command.reason,
            actor=command.actor,
            held_by_person=True,
            held_before=standing(self.state) is Standing.HELD or self.state.held_before,
            ends_at=command.expires_at,
            pinned_before=pinned or self.state.pinned_before,
            pin_ends_at=self.state.ends_at if pinned else self.state.pin_ends_at,
        )
        return f"the route is held: every output is blocked{_until(command.expires_at)}"

    def _resume(self, command: Command) -> str:
        name = command.version or self._resume_target()
        if self.state.resume_to is not None:
            name = self._wanted(command, otherwise=name)
        if name is not None:
            self._refuse_fenced(name)
        return self._serve_again(name, reason=command.reason, actor=command.actor)

    def _fence_command(self, command: Command) -> str:
        name = self._wanted(command)
        if self.version(name).trip is not None and self.version(name).state is VersionState.FENCED:
            self._set_version(name, trip=None)
            return f"{name} is fenced already; it now stays so when trips are undone"
        if self.version(name).state is VersionState.FENCED:
            return f"{name} is fenced already; nothing changed"
        return self._fence_by_hand(name, command)

    def _fence_by_hand(self, name: str, command: Command, to: str | None = None) -> str:
        return self._fence(
            name,
            reason=command.reason,
            actor=command.actor,
            severity=IncidentSeverity.ERROR if name == self.active else IncidentSeverity.WARNING,
            window=self.version(name).window.at(self.now, self.policy),
            to=to,
        )

    def _unfence(self, command: Command) -> str:
        name = self._wanted(command)
        if self.version(name).state is not VersionState.FENCED:
            if self.version(name).fence_at is None:
                raise _RefusedError(f"{name} is not fenced; there is nothing to lift")
            self._set_version(name, fence_at=command.expires_at)
            return f"{name} stays without a fence{_until(command.expires_at)}"
        self._set_version(name, state=VersionState.CANDIDATE, window=Window(), fence_at=command.expires_at)
        if not self._has_incident_of_hold(name):
            self._resolve_incident(name, command.actor, because=command.reason)
        self._republish(reason=command.reason, actor=command.actor)
        return f"{name} is a candidate again{_until(command.expires_at)}"

    def _accept_reference(self, command: Command) -> str:
        if not command.references:
            raise _RefusedError("accept_reference needs at least one value; name the entity and its value")
        self._references += [
            Reference(
                reference_id=f"{self._new_id}-r{number}",
                model=self.state.model,
                entity_id=one.entity_id,
                field=one.field,
                value=one.value,
                at=self.now,
                actor=command.actor,
                reason=command.reason,
                command_id=command.command_id,
            )
            for number, one in enumerate(command.references)
        ]
        first = command.references[0]
        more = f", and {len(command.references) - 1} more" if len(command.references) > 1 else ""
        return (
            f"the next {first.field} of {first.entity_id[:200]} is held against {first.value:g}{more}, until an output "
            "is approved"
        )

    def _undo_trips(self, command: Command) -> str:
        trips = {name: v.trip for name, v in self.state.versions.items() if v.trip is not None}
        latest = max(trips.values(), key=lambda trip: trip.at, default=None)
        policy = command.policy or (latest.policy if latest is not None else None)
        undone = {name: trip for name, trip in trips.items() if trip.policy == policy}
        if policy is None or not undone:
            under = f" under {policy}" if policy is not None else ""
            raise _RefusedError(f"no trip{under} is left to undo; unfence versions one by one")
        if in_use(self.state.policies, policy, self.now):
            raise _RefusedError(
                f"guards judge by {policy} still, so that the versions would trip again; put the old policy back, wait "
                "until the guards have it, and do it again"
            )
        for name, trip in undone.items():
            if self.version(name).state is not VersionState.GOOD:
                state = VersionState.GOOD if trip.was_good else VersionState.CANDIDATE
                self._set_version(name, state=state, window=Window())
            self._set_version(name, trip=None)
        moved_at = {trip.at for trip in undone.values()}
        self._set(switches=tuple(at for at in self.state.switches if at not in moved_at))
        detours, back = self._way_back(policy)
        for name in undone:
            if back is not None or not self._has_incident_of_hold(name):
                self._resolve_incident(name, command.actor, because=command.reason)
        if back is None:
            self._republish(reason=command.reason, actor=command.actor)
            then = f"{self.active} serves on" if self.active else "no version serves, as before; promote one"
        else:
            pinned = back.pinned and (back.ends_at is None or back.ends_at > self.now)
            self._move(
                back.version,
                RouteState.PINNED if pinned else RouteState.AUTO,
                reason=command.reason,
                actor=command.actor,
                ends_at=back.ends_at if pinned else None,
            )
            then = f"{back.version} serves again"
        self._set(detours=detours)
        what = _several([f"{name} (good)" if trip.was_good else name for name, trip in undone.items()])
        return f"trips under {policy} are undone: {what} not fenced any more; {then}"

    def _way_back(self, policy: str) -> tuple[tuple[Detour, ...], Detour | None]:
        """The detours that are left, and where the route goes; None: it stays, for something else moved it since."""
        detours, detour = without_detour(self.state.detours, policy)
        if detour is not None and self.version(detour.version).state is VersionState.FENCED:
            target = last_good(self.state, leaving=None) if standing(self.state) is Standing.HELD else None
            detour = Detour(policy=policy, version=target) if target is not None else None
        return detours, detour if detour is None or detour.version != self.active else None

    def _good(self, command: Command) -> str:
        name = self._wanted(command)
        if name != self.active:
            raise _RefusedError(f"{name} does not serve, and only the one that serves can be declared good; promote it")
        if self.version(name).state is VersionState.GOOD:
            return f"{name} is good already; nothing changed"
        self._set_version(name, state=VersionState.GOOD)
        return f"{name} is good: the route may come back to it"

    def _acknowledge(self, command: Command) -> str:
        known = self._open_incident_meant(command)
        if known.incident.status is IncidentStatus.ACKNOWLEDGED:
            return f"{known.incident.acknowledged_by} has acknowledged it already; nothing changed"
        self._publish_incident(
            known.incident.model_copy(
                update={
                    "status": IncidentStatus.ACKNOWLEDGED,
                    "acknowledged_at": self.now,
                    "acknowledged_by": command.actor,
                }
            )
        )
        self._touched = known.incident.incident_id
        return "the incident is acknowledged"

    def _resolve(self, command: Command) -> str:
        known = self._open_incident_meant(command)
        name = known.incident.bad_version
        self._resolve_incident(name, command.actor, because=command.reason)
        fenced = self.version(name).state is VersionState.FENCED
        return f"the incident is resolved; {name} stays fenced" if fenced else "the incident is resolved"

    def _open_incident_meant(self, command: Command) -> OpenIncident:
        if (known := self._find_incident(command)) is None:
            what = command.incident_id or command.version or "this model"
            raise _RefusedError(f"there is no open incident of {what}; name an open one by its id or its bad version")
        return known


_HANDLERS: dict[Action, Callable[[_Turn, Command], str]] = {
    Action.PROMOTE: _Turn._promote,
    Action.PIN: _Turn._pin,
    Action.UNPIN: _Turn._unpin,
    Action.ROLLBACK: _Turn._rollback,
    Action.HOLD: _Turn._hold,
    Action.RESUME: _Turn._resume,
    Action.FENCE: _Turn._fence_command,
    Action.UNFENCE: _Turn._unfence,
    Action.UNDO_TRIPS: _Turn._undo_trips,
    Action.ACCEPT_REFERENCE: _Turn._accept_reference,
    Action.GOOD: _Turn._good,
    Action.ACKNOWLEDGE: _Turn._acknowledge,
    Action.RESOLVE: _Turn._resolve,
}


def _several(names: list[str]) -> str:
    """`v1 is`, or `v1, v2 are`; of very many the first five."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} {'is' if len(names) == 1 else 'are'}"


def _serves_again(name: str | None) -> str:
    return f"{name} serves again" if name is not None else "the model is without a version, as it was before"


def _until(end: datetime | None) -> str:
    return f" until {end:%Y-%m-%d %H:%M:%S} UTC" if end is not None else ""
