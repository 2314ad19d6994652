"""What the endpoints work with: the read model, the commands, the console, and who may come in."""

import asyncio
import hashlib
import json
import math
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from holdfast.adapters.commands import CommandWriter
from holdfast.adapters.decisions import read_decisions
from holdfast.adapters.http_limits import Share
from holdfast.adapters.malformed import watch_malformed
from holdfast.adapters.policies import known_models
from holdfast.adapters.policies_here import watch_policies
from holdfast.adapters.shadow import read_report
from holdfast.api.asked import duration
from holdfast.api.console import Console
from holdfast.api.documents import OfShadow
from holdfast.api.entry import MODEL, ROLE, Entry
from holdfast.api.http import ProblemError, peer_of
from holdfast.api.read_model import Board
from holdfast.api.reading import read_within
from holdfast.api.release_desk import AskRelease, Kind, ReleaseDesk, ReleaseDone, said
from holdfast.api.sessions import COOKIE
from holdfast.api.tokens import Principal
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.shadow import Report
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.follow import Follower
from holdfast.kafka.login import explain
from holdfast.kafka.topics import check_topics
from holdfast.settings import Settings
from holdfast_schemas import AcceptedValue, Action, AuditRecord, Command, Incident, Outcome, utc_now

log = structlog.get_logger("holdfast.api")

SILENT_TOO_LONG = 10.0
"""Seconds without a word from Kafka, after which what is shown may be old."""
REMEMBERED_KEYS = 10_000
SHADOW_TALLIES = 100_000
"""Offsets of the control topic that one shadow report reads at most, the latest."""
SHADOW_WITHIN = 20.0
"""Seconds in which a shadow report is read, or refused."""
SHADOW_AT_ONCE = 2


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
