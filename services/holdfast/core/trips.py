"""What tallies, time and a full state do to the versions of a model."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast.core.actors import HOLDFAST
from holdfast.core.breaker import Window
from holdfast.core.duration import format_duration
from holdfast.core.model_state import Standing, VersionState, last_good, promoted, standing
from holdfast.core.policy_change import KEPT, Detour, Trip, change_before, in_words, note_policy
from holdfast.core.route_moves import RouteMoves
from holdfast_schemas import Command, IncidentAction, IncidentSeverity, Outcome, Route, RouteState, Tally
from holdfast_schemas.control import OTHERS

MAX_FENCED = 400
"""Versions of one model that are fenced by themselves without having served: the list is part of every route."""


@dataclass(frozen=True, slots=True)
class Full:
    """What came would make the state larger than its record may be; `commands` are those among it."""

    version: str
    """The version that a tally among it names, else the one that serves."""
    commands: tuple[Command, ...] = ()


class Trips(RouteMoves):
    """What tallies and time do to versions: good ones are earned, bad ones are fenced."""

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
        """Hold the route: with so many versions, the producer puts something else into that field."""
        if standing(self.state) in (Standing.HELD, Standing.HELD_BY_PERSON):
            return  # What it says is blocked; it trips again once the route is resumed.
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
