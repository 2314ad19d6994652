"""Where the route goes."""

from datetime import datetime

from holdfast.core.actors import HOLDFAST
from holdfast.core.incident_book import IncidentBook
from holdfast.core.model_state import Standing, VersionState, last_good, promoted, standing
from holdfast_schemas import Route, RouteState
from holdfast_schemas.route import EPOCHS_AHEAD


class RouteMoves(IncidentBook):
    """Where the route goes, and what a held or pinned route remembers."""

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
        return f"{_serves_again(name)}, pinned as before{until(pin_ends_at)}"

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


def _serves_again(name: str | None) -> str:
    return f"{name} serves again" if name is not None else "the model is without a version, as it was before"


def until(end: datetime | None) -> str:
    return f" until {end:%Y-%m-%d %H:%M:%S} UTC" if end is not None else ""
