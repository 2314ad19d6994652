"""The incidents of one model."""

from collections import Counter
from datetime import timedelta
from typing import Any

from holdfast.core.actors import HOLDFAST
from holdfast.core.breaker import MAX_SAMPLES, Window, earliest
from holdfast.core.model_state import MAX_EVIDENCE, OpenIncident
from holdfast.core.policy_change import change_before
from holdfast.core.turn import Turn
from holdfast_schemas import (
    ALERT_NAMES,
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    RouteState,
    Sample,
    Tally,
)

UPDATE_EVERY = timedelta(seconds=1)
"""How often an open incident is published again while its counts rise; more seldom as it grows older."""
UPDATE_EVERY_AT_MOST = timedelta(minutes=10)
UPDATES_IN_AGE = 100
"""The pause before an update is the incident's age divided by this: a version may send for months on end."""
OWN_INCIDENTS = 10
"""Open incidents of versions of one model that never served, within `MANY_WITHIN`; the latest one tells of more."""
MANY_WITHIN = timedelta(minutes=10)
MAX_EXAMPLES = 100
"""Open incidents of one model that keep one sample; what was published of the others is in their topic."""


class IncidentBook(Turn):
    """The incidents of one model: opened, told apart, brought up to date, and resolved."""

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
