"""The endpoints.

All of them run on the event loop, also those that await nothing: the read model changes there, and must not change
while another thread reads it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from holdfast.api.callers import Caller, IdempotencyKey, TheApi
from holdfast.api.documents import (
    COMMANDS,
    OfAudit,
    OfIncidents,
    OfModel,
    OfShadow,
    Page,
    Paged,
    RatesNow,
    RouteNow,
    ShadowNow,
    T,
    VersionNow,
)
from holdfast.api.http import ProblemError, json_of, problem_responses
from holdfast.api.release_desk import BlockedList, Kind, MalformedList, OfBlocked, OfMalformed, ReleaseDone, body_of
from holdfast.core.actors import actor_key
from holdfast_schemas import Action, AuditRecord, Incident, IncidentStatus

router = APIRouter(prefix="/api/v1")
_READ = problem_responses(401, 408, 421, 422, 503)


def _page(everything: Mapping[str, T], order: Callable[[T], Any], fits: Callable[[T], bool], asked: Paged) -> Page[T]:
    """The latest by `order` first. Raises ProblemError (404) for an `after` that is not known any more."""
    below = None
    if asked.after is not None:
        if asked.after not in everything:
            raise ProblemError(
                404,
                "cursor-gone",
                "The list has moved on",
                "What `after` names is not known any more. Start again without it.",
            )
        below = order(everything[asked.after])
    found = sorted(((order(one), key) for key, one in everything.items() if fits(one)), reverse=True)
    rest = [key for place, key in found if below is None or place < below]
    return Page(
        items=[everything[key] for key in rest[: asked.limit]],
        total=len(found),
        next=rest[asked.limit - 1] if len(rest) > asked.limit else None,
    )


@router.get("/routes", response_model=Page[RouteNow], responses=_READ, tags=["read"])
async def routes(api: TheApi, who: Caller, of: Annotated[OfModel, Query()]) -> Response:
    """Which version of each model serves, and since when and why."""
    found = [
        RouteNow.model_validate({**route.model_dump(), "ends_at": state.ends_at if state is not None else None})
        for name, route in sorted(api.board.routes.items())
        if of.fits(name) and who.sees(name)
        for state in [api.board.states.get(name)]
    ]
    return json_of(Page(items=found, total=len(found)))


@router.get("/versions", response_model=Page[VersionNow], responses=_READ, tags=["read"])
async def versions(api: TheApi, who: Caller, of: Annotated[OfModel, Query()]) -> Response:
    """The versions that are known of each model: candidate, good or fenced."""
    found = [
        VersionNow(
            model=name,
            version=version,
            state=known.state,
            active=state.route is not None and state.route.version == version,
            activated=known.activated,
            active_since=known.active_since,
            approved=known.approved,
            last_seen=known.last_seen,
            fence_at=known.fence_at,
        )
        for name, state in sorted(api.board.states.items())
        if of.fits(name) and who.sees(name)
        for version, known in sorted(state.versions.items())
    ]
    return json_of(Page(items=found, total=len(found)))


@router.get("/rates", response_model=Page[RatesNow], responses=_READ, tags=["read"])
async def rates(api: TheApi, who: Caller, of: Annotated[OfModel, Query()]) -> Response:
    """How many predictions of each model are approved and blocked per second."""
    now = int(time.time())
    found = [
        RatesNow(model=name, approved_per_second=approved, blocked_per_second=blocked, history=known.history(now))
        for name, known in sorted(api.board.rates.items())
        if of.fits(name) and who.sees(name)
        for approved, blocked in [known.per_second(now)]
    ]
    return json_of(Page(items=found, total=len(found)))


@router.get("/incidents", response_model=Page[Incident], responses=_READ | problem_responses(404), tags=["read"])
async def incidents(
    api: TheApi,
    who: Caller,
    of: Annotated[OfIncidents, Query()],
) -> Response:
    """Incidents with their evidence, the latest first."""

    def fits(incident: Incident) -> bool:
        is_open = incident.status is not IncidentStatus.RESOLVED
        return (of.fits(incident.model) and who.sees(incident.model)) and (
            of.status in ("all", incident.status.value) or (of.status == "open" and is_open)
        )

    return json_of(_page(api.board.incidents, lambda one: (one.opened_at, one.incident_id), fits, of))


@router.get(
    "/incidents/{incident_id}", response_model=Incident, responses=_READ | problem_responses(403, 404), tags=["read"]
)
async def incident(api: TheApi, who: Caller, incident_id: str) -> Response:
    """One incident with its evidence."""
    found = api.incident(incident_id)
    api.must_see(who, found.model)
    return json_of(found)


@router.get("/audit", response_model=Page[AuditRecord], responses=_READ | problem_responses(404), tags=["read"])
async def audit(
    api: TheApi,
    who: Caller,
    of: Annotated[OfAudit, Query()],
) -> Response:
    """Every decision, by people and by Holdfast itself, the latest first."""

    def fits(record: AuditRecord) -> bool:
        return (
            of.fits(record.model)
            and who.sees(record.model)
            and (of.actor is None or actor_key(of.actor) == actor_key(record.actor))
            and of.action in (None, record.action)
            and of.outcome in (None, record.outcome)
        )

    return json_of(_page(api.board.audit, lambda one: (one.at, one.audit_id), fits, of))


@router.get("/shadow", response_model=ShadowNow, responses=_READ | problem_responses(403, 404), tags=["read"])
async def shadow(api: TheApi, who: Caller, of: Annotated[OfShadow, Query()]) -> Response:
    """What checks in shadow would have blocked, by check, version and segment; and whether it would have tripped."""
    api.must_see(who, of.model)
    found, here = await api.shadow(of), api.board.policies.policies.get(of.model)
    return json_of(
        ShadowNow(
            model=of.model,
            mode=here.mode if here is not None else None,
            checks_in_shadow=list(here.in_shadow) if here is not None else [],
            first=found.first,
            versions=found.facts(),
        )
    )


@router.get("/blocked", response_model=BlockedList, responses=_READ | problem_responses(403, 404), tags=["read"])
async def blocked(api: TheApi, who: Caller, of: Annotated[OfBlocked, Query()]) -> Response:
    """The latest blocked predictions of a model, and what was found."""
    api.must_see(who, of.model)
    api.must_exist(of.model)
    return json_of(await api.releases.blocked(of))


@router.get("/malformed", response_model=MalformedList, responses=_READ | problem_responses(403, 404), tags=["read"])
async def malformed(api: TheApi, who: Caller, of: Annotated[OfMalformed, Query()]) -> Response:
    """The latest records that could not be decoded, and why; those of one model for a token that is limited to it."""
    if of.model is not None:
        api.must_see(who, of.model)
        api.must_exist(of.model)
    elif who.models is not None:
        raise api.must_name_a_model(who)
    return json_of(await api.releases.malformed(of))


def _add_command(action: Action, body: type[BaseModel], summary: str) -> None:
    async def command(
        api: TheApi,
        who: Caller,
        ask: body,  # type: ignore[valid-type]  # each command has its own members
        key: IdempotencyKey = None,
    ) -> Response:
        wanted = ask.model_dump(mode="json", exclude_none=True)  # type: ignore[attr-defined]
        return json_of(await api.command(who, action, wanted, key))

    router.post(
        f"/commands/{action.value}",
        operation_id=action.value,
        summary=summary,
        response_model=AuditRecord,
        responses=problem_responses(400, 401, 403, 404, 408, 409, 413, 421, 422, 429, 503, 504),
        tags=["command"],
    )(command)


for _action, (_body, _summary) in COMMANDS.items():
    _add_command(_action, _body, _summary)


def _add_release(kind: Kind, summary: str) -> None:
    async def release(
        api: TheApi,
        who: Caller,
        ask: body_of(kind),  # type: ignore[valid-type]
        key: IdempotencyKey = None,
    ) -> Response:
        return json_of(await api.release(who, kind, ask, key))

    router.post(
        f"/commands/{kind}",
        operation_id=kind,
        summary=summary,
        response_model=ReleaseDone,
        responses=problem_responses(400, 401, 403, 404, 408, 409, 413, 421, 422, 429, 503, 504),
        tags=["command"],
    )(release)


_add_release("release", "Have the guards judge blocked predictions again, and approve what passes.")
_add_release("retry", "Have the guards decode and judge malformed records again, and approve what passes.")
