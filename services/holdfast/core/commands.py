"""What people and pipelines command, and why it is refused."""

from collections.abc import Callable

from holdfast.core.actors import actor_name
from holdfast.core.approvals import LOOSENS, approved, ask, wish
from holdfast.core.breaker import Window
from holdfast.core.model_state import ModelState, OpenIncident, Standing, VersionState, last_good, standing, was_seen
from holdfast.core.policy_change import Detour, in_use, without_detour
from holdfast.core.route_moves import until
from holdfast.core.trips import Trips
from holdfast_schemas import Action, Command, IncidentSeverity, IncidentStatus, Outcome, Reference, RouteState

REMEMBERED_COMMANDS = 32
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


class CommandTurn(Trips):
    """What people and pipelines command."""

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
        return f"{name} is pinned{until(command.expires_at)}{self._if_never_seen(name)}"

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
        return f"the route is held: every output is blocked{until(command.expires_at)}"

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
            return f"{name} stays without a fence{until(command.expires_at)}"
        self._set_version(name, state=VersionState.CANDIDATE, window=Window(), fence_at=command.expires_at)
        if not self._has_incident_of_hold(name):
            self._resolve_incident(name, command.actor, because=command.reason)
        self._republish(reason=command.reason, actor=command.actor)
        return f"{name} is a candidate again{until(command.expires_at)}"

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


_HANDLERS: dict[Action, Callable[[CommandTurn, Command], str]] = {
    Action.PROMOTE: CommandTurn._promote,
    Action.PIN: CommandTurn._pin,
    Action.UNPIN: CommandTurn._unpin,
    Action.ROLLBACK: CommandTurn._rollback,
    Action.HOLD: CommandTurn._hold,
    Action.RESUME: CommandTurn._resume,
    Action.FENCE: CommandTurn._fence_command,
    Action.UNFENCE: CommandTurn._unfence,
    Action.UNDO_TRIPS: CommandTurn._undo_trips,
    Action.ACCEPT_REFERENCE: CommandTurn._accept_reference,
    Action.GOOD: CommandTurn._good,
    Action.ACKNOWLEDGE: CommandTurn._acknowledge,
    Action.RESOLVE: CommandTurn._resolve,
}


def _several(names: list[str]) -> str:
    """`v1 is`, or `v1, v2 are`; of very many the first five."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} {'is' if len(names) == 1 else 'are'}"
