"""Keep tallies, incidents and states within a size in bytes, whatever producers write into predictions.

Kafka refuses a record that is too large, and a switch that cannot write a model's state could not go on. What is shed
is evidence, in the order of how little is lost by it: samples, the words of old commands, the counts of candidates,
candidates that never served. Routes, fences, and which versions served and earned `good`, are never shed.
"""

from collections.abc import Callable, Iterator
from typing import Any

from holdfast.core.breaker import Window
from holdfast.core.model_state import ModelState, OpenIncident, Version, VersionState, last_good
from holdfast_schemas import AuditRecord, Incident, Tally

KIB = 1024
TALLY_BYTES = 64 * KIB
INCIDENT_BYTES = 128 * KIB
STATE_BYTES = 1024 * KIB
"""What tallies may make of a model's state."""
STATE_BYTES_OF_COMMANDS = 3 * STATE_BYTES
"""What commands may make of it: an operator must be able to act when producers have filled the state."""
WORDS = 200
"""Characters that are kept of what people said in old commands."""
LATEST_SERVED = 50


def fit_tally(tally: Tally) -> bytes:
    """Return the record of the tally, with as many of its samples as fit into `TALLY_BYTES`."""
    raw = tally.to_json()
    for number in (2, 1, 0):
        if len(raw) <= TALLY_BYTES:
            break
        less: dict[str, Any] = {"samples": tally.samples[:number]}
        if tally.shadow is not None:
            less["shadow"] = tally.shadow.model_copy(
                update={"samples": tally.shadow.samples[:number], **({} if number else {"by_segment": {}})}
            )
        raw = tally.model_copy(update=less).to_json()
    return raw


def fit_incident(incident: Incident) -> bytes:
    """Return the record of the incident, with as many of its samples as fit into `INCIDENT_BYTES`."""
    raw = incident.to_json()
    for number in (2, 1, 0):
        if len(raw) <= INCIDENT_BYTES:
            break
        raw = incident.model_copy(update={"samples": incident.samples[:number]}).to_json()
    return raw


def encode(state: ModelState) -> bytes:
    """Return the record of the state."""
    return state.model_dump_json(exclude_defaults=True).encode()


def fit_state(state: ModelState, limit: int) -> tuple[ModelState, bytes] | None:
    """Return the state, with less evidence where its record would exceed `limit` bytes, and its record.

    None: it exceeds the limit without any evidence.
    """
    raw = encode(state)
    for shed in _STEPS:
        if len(raw) <= limit:
            return state, raw
        smaller = shed(state)
        if smaller is not state:
            state, raw = smaller, encode(smaller)
    return (state, raw) if len(raw) <= limit else None


def _active(state: ModelState) -> str | None:
    return state.route.version if state.route is not None else None


def _needed(state: ModelState) -> set[str | None]:
    """Versions that the route may come to by itself."""
    return {_active(state), state.resume_to, last_good(state, leaving=None), last_good(state, leaving=_active(state))}


def _with_versions(state: ModelState, change: Callable[[str, Version], Version | None]) -> ModelState:
    """With each version as `change` returns it; None: without that version."""
    changed = {name: change(name, version) for name, version in state.versions.items()}
    return state.model_copy(update={"versions": {name: one for name, one in changed.items() if one is not None}})


def _with_incidents(state: ModelState, change: Callable[[Incident], dict[str, Any]]) -> ModelState:
    incidents = {
        name: known.model_copy(update={"incident": known.incident.model_copy(update=change(known.incident))})
        for name, known in state.incidents.items()
    }
    return state.model_copy(update={"incidents": incidents})


def _less_of_windows(state: ModelState, less: Callable[[Window], Window], *, of_active: bool) -> ModelState:
    active = _active(state)
    return _with_versions(
        state,
        lambda name, one: (
            one if name == active and not of_active else one.model_copy(update={"window": less(one.window)})
        ),
    )


def _silent_first(state: ModelState) -> Iterator[str]:
    """The candidates that may be forgotten, those that were silent longest first."""
    needed = _needed(state)
    candidates = [
        (one.last_seen is not None, one.last_seen, name)
        for name, one in state.versions.items()
        if one.state is VersionState.CANDIDATE and one.activated is None and name not in needed and one.fence_at is None
    ]
    return (name for *_, name in sorted(candidates))


def _candidates(state: ModelState, keep: int) -> ModelState:
    names = list(_silent_first(state))
    drop = set(names[: len(names) - keep] if keep < len(names) else ())
    return _with_versions(state, lambda name, one: None if name in drop else one)


def _shorter(audit: AuditRecord) -> AuditRecord:
    return audit.model_copy(update={"reason": audit.reason[:WORDS], "detail": audit.detail[:WORDS]})


def _commands(state: ModelState, keep: int) -> ModelState:
    kept = list(state.commands.items())[-keep:] if keep else []
    return state.model_copy(update={"commands": {name: _shorter(audit) for name, audit in kept}})


def _without_history(state: ModelState) -> ModelState:
    return state.model_copy(
        update={
            "policies": dict(list(state.policies.items())[-1:]),
            "detours": (),
            "population": type(state.population)(),
        }
    )


def _oldest_served(state: ModelState) -> ModelState:
    """Versions that served long ago and are not fenced: should one come again, it is a candidate."""
    needed = _needed(state)
    served = sorted(
        (one.activated, name)
        for name, one in state.versions.items()
        if one.activated is not None and one.state is not VersionState.FENCED and name not in needed
    )
    drop = {name for _, name in served[:-LATEST_SERVED]}
    return _with_versions(state, lambda name, one: None if name in drop else one)


def _latest_incidents(state: ModelState) -> ModelState:
    """Without the oldest open incidents of versions that never served; their last records stay in the topic."""
    never = [name for name in state.incidents if (known := state.versions.get(name)) is None or known.activated is None]
    drop = set(never[:-10])
    kept: dict[str, OpenIncident] = {name: one for name, one in state.incidents.items() if name not in drop}
    return state.model_copy(update={"incidents": kept})


_STEPS: tuple[Callable[[ModelState], ModelState], ...] = (
    lambda state: _less_of_windows(state, Window.without_samples, of_active=False),
    lambda state: _with_incidents(state, lambda incident: {"samples": incident.samples[:1]}),
    lambda state: _commands(state, keep=32),
    lambda state: _with_incidents(state, lambda _: {"samples": ()}),
    lambda state: _less_of_windows(state, Window.without_samples, of_active=True),
    lambda state: _candidates(state, keep=50),
    lambda state: _commands(state, keep=8),
    lambda state: _less_of_windows(state, lambda _: Window(), of_active=False),
    lambda state: _candidates(state, keep=0),
    lambda state: _with_incidents(state, lambda incident: {"blocked_by_check": _most(incident.blocked_by_check)}),
    _without_history,
    lambda state: _less_of_windows(state, lambda _: Window(), of_active=True),
    _latest_incidents,
    _oldest_served,
    lambda state: _commands(state, keep=0),
)


def _most(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:5])
