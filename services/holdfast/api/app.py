"""The API: what people and pipelines read, and command, over HTTP; and the console page.

What is read comes from the board, which follows the topics. A command is written to `holdfast.control` and answered
with its audit record: applied 200, refused 409, and 504 when no switch answered in time. Its actor is whose token
came with it (`adapters/entry.py`). Every answer that is no success is a problem document.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import parse_qs, urlencode

import structlog
from aiokafka.errors import KafkaError
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Route as Endpoint
from starlette.types import ASGIApp, Receive, Scope, Send

from holdfast.adapters.commands import CommandWriter
from holdfast.adapters.decisions import read_decisions
from holdfast.adapters.http_limits import HttpLimits, Share
from holdfast.adapters.malformed import watch_malformed
from holdfast.adapters.policies import known_models
from holdfast.adapters.policies_here import watch_policies
from holdfast.adapters.service import OWN_PATHS, run_service
from holdfast.adapters.shadow import read_report
from holdfast.api.asked import Lasts, Reason, duration
from holdfast.api.console import STATIC, Console, View
from holdfast.api.console.reference import operations
from holdfast.api.console.runbook import INDEX, runbook, runbooks
from holdfast.api.entry import MODEL, ROLE, Entry
from holdfast.api.http import (
    LOOPBACK_NAMES,
    MAX_BODY_BYTES,
    Edge,
    Problem,
    ProblemError,
    handle_problems,
    json_of,
    peer_of,
    problem_responses,
)
from holdfast.api.openid import AWAY, BEGUN_LASTS, CALLBACK, SignInError
from holdfast.api.read_model import HISTORY, Board
from holdfast.api.reading import read_within
from holdfast.api.release_desk import (
    AskRelease,
    BlockedList,
    Kind,
    MalformedList,
    OfBlocked,
    OfMalformed,
    ReleaseDesk,
    ReleaseDone,
    body_of,
    said,
)
from holdfast.api.tokens import Principal
from holdfast.core.actors import actor_key
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.checks.base import Mode
from holdfast.core.model_state import VersionState
from holdfast.core.shadow import Report, VersionFacts
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.follow import Follower
from holdfast.kafka.login import explain
from holdfast.kafka.topics import check_topics
from holdfast.metrics import HTTP_REFUSED
from holdfast.settings import Settings
from holdfast_schemas import (
    MAX_REFERENCES,
    AcceptedValue,
    Action,
    AuditRecord,
    Command,
    Contract,
    Count,
    Incident,
    IncidentStatus,
    Name,
    Outcome,
    PolicyId,
    Route,
    UtcTime,
    utc_now,
)

log = structlog.get_logger("holdfast.api")

T = TypeVar("T")
SILENT_TOO_LONG = 10.0
"""Seconds without a word from Kafka, after which what is shown may be old."""
REMEMBERED_KEYS = 10_000
COOKIE = "holdfast_session"
SHADOW_TALLIES = 100_000
"""Offsets of the control topic that one shadow report reads at most, the latest."""
SHADOW_WITHIN = 20.0
"""Seconds in which a shadow report is read, or refused."""
SHADOW_AT_ONCE = 2


# What is asked and answered


class RouteNow(Route):
    """A route, and when its pin or hold ends by itself."""

    ends_at: UtcTime | None = None


class VersionNow(Contract):
    """One entry of a model's version ledger."""

    model: Name
    version: Name
    state: VersionState
    active: bool
    activated: Count | None = None
    """The epoch at which it last became active."""
    active_since: UtcTime | None = None
    approved: Count
    """Outputs approved since it became active."""
    last_seen: UtcTime | None = None
    fence_at: UtcTime | None = None
    """When an unfence that was granted for a while ends."""


class RatesNow(Contract):
    """How many predictions of a model are approved and blocked."""

    model: Name
    approved_per_second: float
    blocked_per_second: float
    history: list[tuple[int, int]] = Field(
        description=f"Approved and blocked of each of the last {HISTORY} seconds, the oldest first."
    )


class ShadowNow(BaseModel):
    """What checks in shadow found of a model's outputs."""

    model: Name
    mode: Mode | None = Field(None, description="The policy's; absent where the API has no policy of this model.")
    checks_in_shadow: list[str] = Field(description="The checks that would block, and do not because of shadow.")
    first: UtcTime | None = Field(None, description="When the first output that is counted here was judged.")
    versions: list[VersionFacts]


class Page(BaseModel, Generic[T]):
    """A part of a list; `next`, given as `after`, asks for what follows it."""

    items: list[T]
    total: int
    next: str | None = None


class OfModel(BaseModel):
    """What to list; a parameter that does not exist is refused, because its list would be the wrong one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name | None = Field(None, description="Of one model.")

    def fits(self, model: str) -> bool:
        return self.model in (None, model)


class _Paged(OfModel):
    limit: int = Field(100, ge=1, le=500, description="How many at most.")
    after: str | None = Field(None, max_length=200, description="`next` of the page before.")


class OfIncidents(_Paged):
    status: Literal["all", "open", "triggered", "acknowledged", "resolved"] = Field(
        "all", description="`open` is triggered or acknowledged."
    )


class OfAudit(_Paged):
    actor: str | None = Field(None, max_length=1000)
    action: str | None = Field(None, max_length=100)
    outcome: Outcome | None = None


def _rfc_3339(value: Any) -> Any:
    # Numbers and bare dates would be taken for times otherwise.
    if not isinstance(value, str) or re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", value) is None:
        raise ValueError("write a time as in 2026-11-24T10:00:00Z")
    return value


Until = Annotated[UtcTime, BeforeValidator(_rfc_3339), WithJsonSchema({"type": "string", "format": "date-time"})]


class OfShadow(BaseModel):
    """Which shadow report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    version: Name | None = Field(None, description="Of one version.")
    since: Lasts = Field("1h", description="How far back to look: 90s, 30m, 2h or 7d.")


class Ask(BaseModel):
    """A command; its actor is whose token comes with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    reason: Reason = Field(description="Why; it is kept in the audit.")


class AskVersion(Ask):
    version: Name


class AskMaybeVersion(Ask):
    version: Name | None = Field(None, description="Without it: the last good one, or the one that was active.")


class _ForAWhile(BaseModel):
    expires_at: Until | None = Field(None, description="When it ends by itself; with `lasts` too, what comes first.")
    lasts: Lasts | None = Field(None, description="After how long it ends by itself: 90s, 30m, 2h or 7d.")


class AskPin(_ForAWhile, Ask):
    version: Name | None = Field(None, description="Without it: the active one.")


class AskHold(_ForAWhile, Ask):
    pass


class AskUnfence(_ForAWhile, AskVersion):
    pass


class AskUndoTrips(Ask):
    policy: PolicyId | None = Field(None, description="Whose trips; without it, the policy of the latest trip.")


class AskIncident(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    incident_id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    reason: Reason = Field(description="Why; it is kept in the audit.")


class AskReferences(Ask):
    references: Annotated[list[AcceptedValue], Field(min_length=1, max_length=MAX_REFERENCES)]


_COMMANDS: dict[Action, tuple[type[BaseModel], str]] = {
    Action.PROMOTE: (AskVersion, "Let a version serve."),
    Action.PIN: (AskPin, "Fix the version: no other is promoted until unpin. A trip still moves the route."),
    Action.UNPIN: (Ask, "Let Holdfast switch automatically again."),
    Action.ROLLBACK: (AskMaybeVersion, "Leave the active version, fence it, and go back to the last good one."),
    Action.HOLD: (AskHold, "Let no version serve; everything is blocked."),
    Action.RESUME: (AskMaybeVersion, "End a hold."),
    Action.FENCE: (AskVersion, "Block every output of a version."),
    Action.UNFENCE: (AskUnfence, "Let a fenced version be a candidate again."),
    Action.UNDO_TRIPS: (
        AskUndoTrips,
        "Take back what trips under a wrong policy did: fences, lost `good`, the route, and their incidents.",
    ),
    Action.ACCEPT_REFERENCE: (
        AskReferences,
        "Set what the next values of entities are held against, instead of their last approved ones.",
    ),
    Action.GOOD: (AskVersion, "Declare the version that serves good: a trip of a later one goes back to it."),
    Action.ACKNOWLEDGE: (AskIncident, "Say that somebody is looking at an incident."),
    Action.RESOLVE: (AskIncident, "Close an incident; the version stays fenced."),
}


# The service


class Api:
    """What the endpoints work with."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for tokens that cannot be read, ServiceError where nobody could come in."""
        self.settings = settings
        self.entry = Entry(settings.api, settings.notify.console_url)
        self.streams = Share(settings.api.streams, settings.api.streams_per_person)
        self.board = Board(
            settings.topics, keep_incidents=settings.api.keep_incidents, keep_audit=settings.api.keep_audit
        )
        self.board.no_policy_approves = settings.guard.no_policy == "approve"
        self.board.no_policy_until = settings.guard.no_policy_until
        self.follower = Follower(settings.kafka, self.board.take)
        self.console = Console(self.board)
        self.writer = CommandWriter(settings)
        self.releases = ReleaseDesk(settings)
        self.stopping = False
        self._shadow = asyncio.Semaphore(SHADOW_AT_ONCE)
        self._limit = RateLimitItemPerMinute(settings.api.commands_per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._keys: dict[str, str] = {}
        self._partitions: dict[str, int] = {}

    async def start(self) -> None:
        """Raises KafkaUnavailable."""
        roles = ("routes", "state", "incidents", "audit", "control")
        counts = await check_topics(self.settings, roles)
        self._partitions = {getattr(self.settings.topics, role): counts[role] for role in roles}
        if (path := self.settings.api.unix_socket) is not None:
            log.info("served on a unix socket, to the user of this process", path=str(path))

    async def run(self) -> None:
        """Raises KafkaUnavailable."""
        topics = self.settings.topics
        tails = {topics.control: 0}
        # A release of many predictions has a record for each, behind which the decisions before it are still wanted.
        readers = {topics.audit: partial(read_decisions, keep=self.settings.api.keep_audit)}
        watching = [
            asyncio.create_task(watch_malformed(self.settings, self.board.take_malformed)),
            asyncio.create_task(watch_policies(self.settings.policies, self.board.take_policies)),
        ]
        try:
            await self.follower.follow(self._partitions, tails, readers)
        except KafkaError as error:
            raise KafkaUnavailable(await explain(self.settings.kafka, error)) from None
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def stop(self) -> None:
        self.stopping = True
        await self.releases.stop()
        await self.writer.close()

    def not_ready(self) -> str | None:
        """Why the API does not know what is going on, or None."""
        if not self.follower.caught_up.is_set():
            return "reading the topics"
        if self.follower.silent_for > SILENT_TOO_LONG:
            return f"Kafka has not answered for {self.follower.silent_for:.0f} s"
        return None

    def who(self, request: Request, bearer: str | None = None) -> Principal | None:
        """Who sent the request: by its token, by the session of its browser, or over the unix socket."""
        return self.entry.who(bearer, request.cookies.get(COOKIE), peer_of(request.scope))

    async def command(self, who: Principal, action: Action, wanted: Mapping[str, Any], key: str | None) -> AuditRecord:
        """Send a command and return its audit record. Raises ProblemError when it is not applied."""
        if not who.may(action):
            raise self._role_may_not(who, action.value)
        incident_id = wanted.get("incident_id")
        self.must_see(who, wanted["model"] if incident_id is None else self.incident(incident_id).model)
        command_id = self._command_id(who, action.value, wanted, key)
        audit = self.board.outcomes.get(command_id)
        if audit is None:
            self._count_against_limit(who)
            command = Command(command_id=command_id, action=action, actor=who.name, **self._complete(wanted))
            self.must_exist(command.model)
            if key is not None:
                self._use_up(command_id)
            audit = await self._send(command)
        if audit.outcome is Outcome.REFUSED:
            outcome = audit.model_dump(mode="json", exclude_none=True)
            raise ProblemError(409, "refused", "The command was refused", f"Refused: {audit.detail}.", outcome=outcome)
        return audit

    def _role_may_not(self, who: Principal, what: str) -> ProblemError:
        self.entry.refuse(ROLE, "", actor=who.name, action=what)
        return ProblemError(
            403,
            "forbidden",
            "Not allowed",
            f"{who.name} has the role {who.role.value}, which may not {what}. Ask somebody whose role may, or an "
            "administrator for another role.",
        )

    async def release(self, who: Principal, kind: Kind, ask: AskRelease, key: str | None) -> ReleaseDone:
        """Have the guards release what is asked for. Raises ProblemError when they do not answer it."""
        if not who.may_release(force=ask.force):
            raise self._role_may_not(who, f"{kind} with force" if ask.force else kind)
        self.must_see(who, ask.model)
        command_id = self._command_id(who, kind, said(ask), key)
        parts = (one for name, one in self.board.outcomes.items() if name.startswith(f"{command_id}."))
        answered = next(parts, None)
        if answered is None and not self.releases.is_asking(command_id):
            self._count_against_limit(who)
            self.must_exist(ask.model)
            if key is not None:
                self._use_up(command_id)
        return await self.releases.release(kind, ask, who.name, command_id, answered, of_all_models=who.models is None)

    def must_see(self, who: Principal, model: str) -> None:
        """Raises ProblemError (403) for who is limited to other models."""
        if who.sees(model):
            return
        self.entry.refuse(MODEL, "", actor=who.name, model=model)
        raise ProblemError(
            403,
            "forbidden",
            "Not allowed",
            f"{who.name} is limited to other models than {model}. Ask an administrator for this one.",
        )

    def must_name_a_model(self, who: Principal) -> ProblemError:
        """For what is of all models, and is asked for by a token that is limited to some."""
        self.entry.refuse(MODEL, "", actor=who.name, model="all")
        return ProblemError(
            403, "forbidden", "Not allowed", f"The token of {who.name} is limited to some models. Ask for one of them."
        )

    def _command_id(self, who: Principal, action: str, wanted: Mapping[str, Any], key: str | None) -> str:
        """Made of the token's name, the key and the request: the same after a restart, and on another instance."""
        if key is None:
            return f"api-{secrets.token_hex(16)}"
        named = f"api-{_hash(who.name, key)}"
        command_id = f"{named}-{_hash(action, json.dumps(wanted, sort_keys=True))}"
        earlier = self._keys.get(named) or next((one for one in self.board.outcomes if one.startswith(named)), None)
        # A request for releases has several commands, whose ids begin alike.
        earlier = earlier.partition(".")[0] if earlier is not None else None
        if earlier not in (None, command_id):
            raise ProblemError(
                422,
                "key-used",
                "The Idempotency-Key came with another request before",
                "Nothing was done. Choose a new key for a new command.",
            )
        return command_id

    def _use_up(self, command_id: str) -> None:
        """The key that `command_id` is made of comes with no other request from here on."""
        self._keys[command_id.rpartition("-")[0]] = command_id
        if len(self._keys) > REMEMBERED_KEYS:
            del self._keys[next(iter(self._keys))]

    def must_exist(self, model: str) -> None:
        """Raises ProblemError (404)."""
        if model in self.board.models or model in known_models(self.settings.policies, ()):
            return
        raise ProblemError(
            404,
            "no-such-model",
            "No such model",
            f"There is no model {model} with a route or a policy here. Check the name, or write its policy.",
        )

    async def shadow(self, of: OfShadow) -> Report:
        """Raises ProblemError: 404 for an unknown model, 503 where Kafka does not give it in time."""
        self.must_exist(of.model)
        here = self.board.policies.policies.get(of.model)
        breaker = here.breaker if here is not None else BreakerPolicy()
        advice = "Ask for less time, or use holdfast shadow report."
        async with read_within(SHADOW_WITHIN, self._shadow, "The report", advice):
            since = utc_now() - duration(of.since)
            return await read_report(self.settings, of.model, since, breaker, version=of.version, tail=SHADOW_TALLIES)

    def _count_against_limit(self, who: Principal) -> None:
        if self._limiter.hit(self._limit, who.key):
            return
        free_at = self._limiter.get_window_stats(self._limit, who.key).reset_time
        seconds = max(1, math.ceil(free_at - time.time()))
        raise ProblemError(
            429,
            "too-many-commands",
            "Too many commands",
            f"{who.name} sent {self._limit.amount} commands within a minute. Try again in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )

    def _complete(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The command's members: the end of what lasts for a while, and the model and version of an incident."""
        members = dict(wanted)
        lasts, expires_at = members.pop("lasts", None), members.pop("expires_at", None)
        ends = [utc_now() + duration(lasts)] if lasts is not None else []
        ends += [datetime.fromisoformat(expires_at)] if expires_at is not None else []
        if (incident_id := members.get("incident_id")) is not None:
            incident = self.incident(incident_id)
            members |= {"model": incident.model, "version": incident.bad_version}
        if (references := members.pop("references", None)) is not None:
            members["references"] = tuple(AcceptedValue.model_validate(one) for one in references)
        return {**members, "expires_at": min(ends, default=None)}

    async def _send(self, command: Command) -> AuditRecord:
        seconds = self.settings.api.outcome_within.total_seconds()
        written = False
        try:
            async with asyncio.timeout(seconds):
                await self.writer.write(command)
                written = True
                return await self.board.outcome(command.command_id)
        except KafkaUnavailable as error:
            raise ProblemError(
                503,
                "kafka-unavailable",
                "Kafka cannot be used",
                f"{error} The command may have been written before: see the audit for {command.command_id}.",
                command_id=command.command_id,
            ) from None
        except TimeoutError:
            what = (
                f"The command was written, but no switch answered within {seconds:g} s. It will be carried out as soon "
                "as a switch runs: start one"
                if written
                else f"Kafka did not take the command within {seconds:g} s. It may still be carried out"
            )
            raise ProblemError(
                504,
                "no-outcome",
                "No outcome in time",
                f"{what}, and see the audit for command {command.command_id}.",
                command_id=command.command_id,
            ) from None

    def incident(self, incident_id: str) -> Incident:
        """Raises ProblemError (404)."""
        if (found := self.board.incidents.get(incident_id)) is None:
            raise ProblemError(
                404,
                "no-such-incident",
                "No such incident",
                "No incident of this id is known. See /api/v1/incidents for those that are.",
            )
        return found


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


# The endpoints. All of them run on the event loop, also where nothing is awaited: the board changes there, and must not
# change while another thread looks at it.

router = APIRouter(prefix="/api/v1")
pages = APIRouter(include_in_schema=False)
_bearer = HTTPBearer(auto_error=False, description="A token of `holdfast api token create`.")


async def _api(request: Request) -> Api:
    """Raises ProblemError (503) before the topics have been read: an answer would be wrong."""
    api: Api = request.app.state.api
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        detail = f"{', '.join(repeated)[:200]} is given more than once. Ask for one at a time."
        raise ProblemError(422, "invalid", "The request is not valid", detail)
    if not api.follower.caught_up.is_set():
        raise ProblemError(
            503,
            "starting",
            "Starting",
            "The API is still reading the topics. Try again in a moment.",
            headers={"Retry-After": "1"},
        )
    return api


Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _who(request: Request, bearer: Bearer) -> Principal:
    """Raises ProblemError (401)."""
    api: Api = request.app.state.api
    token = bearer.credentials if bearer is not None else None
    who = api.entry.require(token, request.cookies.get(COOKIE), peer_of(request.scope), _client(request))
    if who is None:
        raise _unauthorized()
    return who


def _client(request: Request) -> str:
    return request.client.host if request.client is not None else "unix socket"


def _unauthorized() -> ProblemError:
    return ProblemError(
        401,
        "unauthorized",
        "No valid token",
        "This needs a bearer token that the API knows. Send it as `Authorization: Bearer …`; an administrator "
        "makes one with `holdfast api token create`.",
        headers={"WWW-Authenticate": "Bearer"},
    )


Caller = Annotated[Principal, Depends(_who)]
TheApi = Annotated[Api, Depends(_api)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,200}$",
        description="The same key with the same request is carried out once, and answered the same.",
    ),
]
_READ = problem_responses(401, 408, 421, 422, 503)


def _page(everything: Mapping[str, T], order: Callable[[T], Any], fits: Callable[[T], bool], asked: _Paged) -> Page[T]:
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


for _action, (_body, _summary) in _COMMANDS.items():
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


# The console

UPDATE_EVERY = 0.2
"""Seconds between two updates of a page at least."""
SeenBy = Annotated[View, Query()]


def _cookie(api: Api, request: Request) -> dict[str, Any]:
    """How the cookie is kept.

    It holds a session, not the token: `adapters/sessions.py`. Scripts cannot read it. It is Lax, not Strict, so that a
    link in a page at night opens the console. What is posted from another site is refused at the edge.
    """
    secure = request.url.scheme == "https" or api.settings.notify.console_url.startswith("https://")
    return {"key": COOKIE, "httponly": True, "samesite": "lax", "secure": secure}


@pages.get("/")
async def console_page(request: Request, view: SeenBy) -> Response:
    api = await _api(request)
    who = api.who(request)
    if who is None:
        return RedirectResponse(f"/login?{urlencode({'next': view.address()})}", 303)
    return HTMLResponse(api.console.page(view, who, may_leave=COOKIE in request.cookies))


@pages.get("/shadow")
async def shadow_page(request: Request, of: Annotated[OfShadow, Query()]) -> Response:
    """The shadow report of a model, for people."""
    api = await _api(request)
    who = api.who(request)
    if who is None:
        return RedirectResponse("/login", 303)
    api.must_see(who, of.model)
    return HTMLResponse(api.console.shadow_page(of.model, of.since, await api.shadow(of)))


@pages.get("/events")
async def events(request: Request, view: SeenBy) -> Response:
    """What changes on a page; once a second also the rates, so that silence means trouble."""
    api = await _api(request)
    who = api.entry.require(None, request.cookies.get(COOKIE), peer_of(request.scope), _client(request))
    if who is None:
        raise _unauthorized()
    give_back = api.streams.take(who.key)
    if give_back is None:
        HTTP_REFUSED.labels("streams").inc()
        raise ProblemError(
            429,
            "too-many-streams",
            "Too many open pages",
            f"{who.name} has {api.settings.api.streams_per_person} pages of the console open, or all people together "
            "have too many. Close one, then load this page again.",
            headers={"Retry-After": "10"},
        )
    updates = _updates(api, view, lambda: api.who(request))
    return _Stream(give_back, updates, ping=3600, send_timeout=30, headers={"X-Accel-Buffering": "no"})


class _Stream(EventSourceResponse):
    """A stream of events that gives its place back when it ends, however it ends."""

    def __init__(self, give_back: Callable[[], None], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._give_back = give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._give_back()


async def _updates(api: Api, view: View, who_asks: Callable[[], Principal | None]) -> AsyncIterator[ServerSentEvent]:
    sent: dict[str, int] = {}
    revision, beat_at = -1, 0.0
    # A session that is over, or whose token was taken out, sees nothing more.
    while not api.stopping and (who := who_asks()) is not None:
        update: dict[str, Any] = {}
        if api.board.revision != revision:
            revision = api.board.revision
            update = api.console.update(view, who, sent)
        if (now := time.monotonic()) >= beat_at:
            beat_at = now + 1
            update["rates"] = api.console.rates(who)
            if (silent := api.follower.silent_for) > SILENT_TOO_LONG / 2:
                update["silent_since"] = utc_now() - timedelta(seconds=silent)
        if update:
            yield ServerSentEvent(to_json(update).decode(), event="update")
            await asyncio.sleep(UPDATE_EVERY)
        if api.board.revision == revision:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(api.board.change(), max(0.0, beat_at - time.monotonic()))


@pages.get("/login")
async def login_page(request: Request, next: str = "/") -> Response:  # noqa: A002  the name in the address
    """Ask for a token. A link may have it behind its `#`, which the page's script fills in and sends."""
    return HTMLResponse(_door(request.app.state.api, next, None))


@pages.post("/login")
async def login(request: Request) -> Response:
    """Open a session for the form's token."""
    api: Api = request.app.state.api
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    token, wanted = form.get("token", [""])[0].strip(), form.get("next", ["/"])[0]
    session = api.entry.sign_in(token, _client(request)) if token else None
    if session is None:
        problem = (
            "The API does not know this token. Check that it is whole, or ask an administrator for another. A link "
            "that signs in works once, and for a minute."
        )
        return HTMLResponse(_door(api, wanted, problem), 401)
    answer = RedirectResponse(_of_ours(wanted), 303)
    lasts = int(api.entry.sessions.lasts.total_seconds())
    answer.set_cookie(value=session, max_age=lasts, **_cookie(api, request))
    return answer


def _of_ours(wanted: str) -> str:
    """A place of our own: neither another site's address nor `//` nor a backslash that browsers take for one."""
    here = re.fullmatch(r"/(\?[!-~]*)?", wanted) is not None and "\\" not in wanted
    return wanted if here else "/"


@pages.get("/login/oidc")
async def login_at_provider(request: Request, next: str = "/") -> Response:  # noqa: A002  the name in the address
    """Send the browser to the provider of `api.oidc`."""
    api: Api = request.app.state.api
    if (provider := api.entry.provider) is None:
        raise HTTPException(404)
    try:
        begun = await provider.begin(_of_ours(next))
    except SignInError as error:
        api.entry.refuse_sign_in(error, _client(request))
        return HTMLResponse(_door(api, next, str(error)), 503)
    answer = RedirectResponse(begun.address, 303)
    answer.set_cookie(value=begun.cookie, max_age=BEGUN_LASTS, **_begun_cookie(api, request))
    return answer


@pages.get(CALLBACK)
async def login_from_provider(request: Request) -> Response:
    """Open a session for who comes back from the provider."""
    api: Api = request.app.state.api
    begun = _begun_cookie(api, request)
    try:
        session, wanted = await api.entry.finish_sign_in(
            dict(request.query_params), request.cookies.get(begun["key"], ""), _client(request)
        )
    except SignInError as error:
        answer: Response = HTMLResponse(_door(api, "/", str(error)), 503 if error.reason == AWAY else 403)
    else:
        answer = RedirectResponse(_of_ours(wanted), 303)
        lasts = int(api.entry.sessions.person_lasts.total_seconds())
        answer.set_cookie(value=session, max_age=lasts, **_cookie(api, request))
    answer.delete_cookie(**begun)
    return answer


def _begun_cookie(api: Api, request: Request) -> dict[str, Any]:
    """How the cookie is kept that ties the provider's answer to the browser which asked."""
    return {**_cookie(api, request), "key": f"{COOKIE}_begun", "path": "/login/oidc"}


@pages.post("/login/code")
async def login_code(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Response:
    """Answer a code with which a browser is signed in as who has the token, once."""
    api: Api = request.app.state.api
    code = api.entry.code(bearer.credentials) if bearer is not None else None
    if code is None:
        raise _unauthorized()
    return json_of({"code": code})


def _door(api: Api, wanted: str, problem: str | None) -> str:
    entry = api.entry
    provider, place = entry.provider, _of_ours(wanted)
    return api.console.other_page(
        "login.html",
        next=place,
        problem=problem,
        takes_tokens=entry.takes_tokens,
        at_start=not entry.configured,
        provider=provider.title if provider is not None else None,
        begin_at=f"{provider.begin_at}?{urlencode({'next': place})}" if provider is not None else None,
    )


@pages.post("/logout")
async def logout(request: Request) -> Response:
    api: Api = request.app.state.api
    api.entry.sign_out(request.cookies.get(COOKIE, ""), _client(request))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(**_cookie(api, request))
    return answer


@pages.get("/docs")
async def reference_page(request: Request) -> Response:
    """The OpenAPI document for people."""
    api, document = request.app.state.api, request.app.openapi()
    return HTMLResponse(
        api.console.other_page(
            "docs.html",
            summary=document["info"]["summary"],
            operations=operations(document),
            base=str(request.base_url).rstrip("/"),
        )
    )


@pages.get("/runbooks")
async def runbooks_page() -> Response:
    return RedirectResponse("/runbooks/", 308)


@pages.get("/runbooks/")
@pages.get("/runbooks/{name}")
async def runbook_page(request: Request, name: str = INDEX) -> Response:
    """What to do about an alert. Open to all, as the source is: a page at night must not end at a door."""
    found = runbook(name)
    if found is None:
        raise HTTPException(404)
    others = runbooks() if name == INDEX else []
    console: Console = request.app.state.api.console
    return HTMLResponse(console.other_page("runbook.html", title=found[0], body=found[1], others=others))


@pages.get("/static/{name}")
async def static(name: str) -> Response:
    if name not in STATIC:
        raise HTTPException(404)
    content, kind = STATIC[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "max-age=300"})


def make_app(api: Api, service: ASGIApp | None = None) -> ASGIApp:
    """The whole site; `service` answers at the paths that every service has."""
    app = FastAPI(
        title="Holdfast",
        version="1",
        summary="Which model versions serve, what was blocked, and every command.",
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY_BYTES,
    )
    app.state.api = api
    handle_problems(app)
    app.include_router(router)
    app.include_router(pages)
    app.add_middleware(GZipMiddleware)
    if service is not None:
        app.router.routes += [Endpoint(path, service) for path in OWN_PATHS]
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    app.openapi()["components"]["schemas"] |= {**schema.pop("$defs"), "Problem": schema}
    return Edge(
        app,
        None if api.entry.configured else LOOPBACK_NAMES | {api.settings.api.host},
        at_once=api.settings.api.requests_at_once,
        beyond=("/health", "/ready", "/metrics", "/events"),
    )


async def serve(settings: Settings) -> None:
    """Run the API until it is told to stop. Raises KafkaUnavailable, ServiceError, SettingsError."""
    api = Api(settings)
    await run_service(
        "api",
        settings,
        host=settings.api.host,
        port=settings.api.port,
        start=api.start,
        run=api.run,
        stop=api.stop,
        ready=api.not_ready,
        site=lambda service: make_app(api, service),
        unix_socket=settings.api.unix_socket,
        limits=HttpLimits(),
    )
