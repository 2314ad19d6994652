"""One step of a model: the state as it changes, and what there is to publish."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from holdfast.core.actors import HOLDFAST
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.model_state import ModelState, Version
from holdfast_schemas import AuditRecord, Incident, Outcome, Reference, Route


@dataclass(frozen=True, slots=True)
class Decision:
    """The new state and what to publish, in the order of the fields."""

    state: ModelState | None
    route: Route | None = None
    incidents: tuple[Incident, ...] = ()
    audits: tuple[AuditRecord, ...] = ()
    references: tuple[Reference, ...] = ()


class Turn:
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

    @property
    def active(self) -> str | None:
        return self.state.route.version if self.state.route is not None else None

    def version(self, name: str) -> Version:
        return self.state.versions.get(name, Version())

    def _set(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)

    def _set_version(self, name: str, **changes: Any) -> None:
        self._set(versions={**self.state.versions, name: self.version(name).model_copy(update=changes)})

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
