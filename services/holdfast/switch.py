"""The switch: steps each version's breaker, decides the route, and keeps Redis in line with it.

Tallies and commands of a model arrive in one order on one partition of `holdfast.control`; `decide` turns each
into a new state and what to publish. A batch's effects, in this order: (1) state, route, incidents and audit
records and the offset, in one Kafka transaction; (2) the route to Redis. Redis only mirrors: what it missed is
asserted again on a timer.
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import structlog
from aiokafka import TopicPartition
from pydantic import ValidationError

from holdfast import metrics
from holdfast.adapters.policies import PolicyStore
from holdfast.adapters.redis import PublishOutcome, RedisUnavailable, RouteMirror
from holdfast.adapters.service import run_service
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.command_signature import Through
from holdfast.core.decide import Overtaken, Tick, decide
from holdfast.core.errors import describe, first_flaw
from holdfast.core.fit import STATE_BYTES, STATE_BYTES_OF_COMMANDS, encode, fit_incident, fit_state
from holdfast.core.model_state import ModelState, forget_silent
from holdfast.core.policy import PolicySet
from holdfast.core.record import Record, UnreadableBatch, writable
from holdfast.core.trips import Full
from holdfast.core.turn import Decision
from holdfast.core.verdict_headers import error_headers, source_header, topic_id_header
from holdfast.core.version_budget import SWITCH_BUDGET, counted_one_by_one
from holdfast.kafka.batches import Out
from holdfast.kafka.begin import SwitchBegin
from holdfast.kafka.errors import TopicsMismatch
from holdfast.kafka.group import TransactionalLoop
from holdfast.kafka.partitioner import partition_for
from holdfast.kafka.reading import read_latest
from holdfast.kafka.refusals import Refusal
from holdfast.kafka.topic_settings import refuse_uncompacted
from holdfast.kafka.topics import check_topics
from holdfast.kafka.transaction import Write
from holdfast.settings import Settings, SettingsError
from holdfast_schemas import (
    Action,
    AuditRecord,
    Command,
    Incident,
    IncidentStatus,
    Outcome,
    Party,
    Route,
    RouteState,
    Tally,
    parse_control,
    utc_now,
)
from holdfast_schemas.control import OTHERS

log = structlog.get_logger("holdfast.switch")

AT_ONCE = 2000
"""Control records in one transaction: the group's heartbeats, and commands behind them, wait meanwhile."""
LEAST_STATE_BYTES = 16 * 1024
"""A topic that does not even take that is not taken for one of states."""

RAISE_EVERY = 5.0
"""Seconds between two rises of a model's epoch over one that somebody else has written to Redis."""


class Mirror:
    """Writes routes to Redis as they change, and all of them again on a timer; an outage only delays it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.redis
        self._url = settings.redis.connection_url()
        self._signer = settings.redis.route_signer()
        self._redis = RouteMirror(self._url, self._signer)
        self._refused = ""
        self._every = settings.redis.reassert_every.total_seconds()
        self._routes: dict[str, Route] = {}
        self._changed = asyncio.Event()
        self._fresh: set[str] = set()
        self._overtaken: dict[str, int] = {}
        self._raised_at: dict[str, float] = {}
        self.up: bool | None = None

    def show(self, route: Route) -> None:
        if self._routes.get(route.model) == route:
            return
        self._routes[route.model] = route
        self._fresh.add(route.model)
        self._changed.set()

    def overtaken(self, models: Iterable[str]) -> dict[str, int]:
        """By model, the epoch that Redis holds and this worker has not decided, once for each time it is found."""
        if not self._overtaken:
            return {}
        now, found = time.monotonic(), {}
        for model in self._overtaken.keys() & set(models):
            if now - self._raised_at.get(model, float("-inf")) >= RAISE_EVERY:
                self._raised_at[model] = now
                found[model] = self._overtaken.pop(model)
        return found

    def forget(self, models: Sequence[str]) -> None:
        """Leave these models to the worker that owns them now."""
        for model in models:
            self._routes.pop(model, None)
            self._overtaken.pop(model, None)
            self._raised_at.pop(model, None)
            metrics.ROUTE_MISMATCH.remove(model)

    async def run(self) -> None:
        """Runs until cancelled."""
        due = time.monotonic()
        try:
            while True:
                fresh, self._fresh = self._fresh, set()
                self._changed.clear()
                everything = time.monotonic() >= due
                if everything:
                    due = time.monotonic() + self._every
                routes = [r for model, r in list(self._routes.items()) if everything or model in fresh]
                if routes or everything:
                    await self._publish(routes, fresh)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), max(0.0, due - time.monotonic()))
        finally:
            await self._redis.close()

    async def _publish(self, routes: Sequence[Route], fresh: set[str]) -> None:
        try:
            if not routes:
                await self._redis.ping()
            for model, outcome in (await self._redis.publish_all(routes)).items():
                taken_back = outcome is PublishOutcome.TAKEN_BACK
                lost = taken_back or (outcome is PublishOutcome.WRITTEN and model not in fresh)
                newer = outcome is PublishOutcome.NEWER_EXISTS
                if taken_back:
                    log.error("Redis held an epoch that no switch has written; who can write there?", model=model)
                if lost:
                    metrics.REDIS_REPAIRS.inc()
                    log.warning("route re-asserted in Redis", model=model)
                if newer:
                    log.warning("Redis has a newer route than this worker", model=model)
                if newer and model in self._routes:
                    if self._overtaken.get(model) != self._redis.newer[model]:
                        metrics.REDIS_REPAIRS.inc()
                    self._overtaken[model] = self._redis.newer[model]
                else:
                    self._overtaken.pop(model, None)
                if model in self._routes:
                    metrics.ROUTE_MISMATCH.labels(model).set(float(lost or newer))
            up, error = True, None
        except RedisUnavailable as failure:
            up, error = False, str(failure)
        except Exception as failure:
            # What Redis answers must not end the switch.
            up, error = False, describe(failure)
        if not up:
            self._fresh |= fresh
            await self._log_in_again()
        if up != self.up:
            if up:
                log.info("routes are mirrored to Redis")
            else:
                log.error("routes are not mirrored to Redis; guards go on obeying Kafka", error=error)
        self.up = up
        metrics.REDIS_UP.labels("switch").set(float(up))

    async def _log_in_again(self) -> None:
        """Connect with the secrets' files if they have changed; a URL that cannot be used leaves the login as it is."""
        try:
            url = self._settings.connection_url()
            if url == self._url:
                return
            fresh = RouteMirror(url, self._signer)
        except (SettingsError, ValueError) as error:  # It may be half written.
            if str(error) != self._refused:
                log.error("the changed login for Redis cannot be used, the one before stays", error=str(error))
            self._refused = str(error)
            return
        self._url, self._redis, before = url, fresh, self._redis
        self._refused = ""
        await before.close()


class SwitchWork:
    """One partition of `holdfast.control`: the models whose keys fall there."""

    def __init__(self, switch: "Switch", partition: int) -> None:
        self._switch, self._partition = switch, partition
        self._topics = switch.settings.topics
        self._states: dict[str, ModelState] = {}
        self._pending: dict[str, ModelState] = {}
        self._encoded: dict[str, bytes] = {}
        self._decisions: list[Decision] = []
        self._through: dict[str, Through] = {}
        """How the commands of this turn came, by their ids; empty where commands are not signed."""
        # The topic may take less than its settings should say.
        self._limit = STATE_BYTES
        self._next_tick = 0.0
        self._progress = metrics.PROGRESS.labels("switch", str(partition))
        self._progress.set_to_current_time()
        self.topic_id: str | None = None

    async def restore(self) -> None:
        """Read the states back; the previous owner's last transaction has ended, so they are complete."""
        self._switch.check_partition(self._partition)
        # Of the many records that compaction has not reached yet only the last of each model is worth parsing.
        latest = await read_latest(self._switch.settings.kafka, self._topics.state, [self._partition])
        self._states = {model: ModelState.model_validate_json(value) for model, value in latest.items()}
        for state in self._states.values():
            self._switch.check_partition(self._partition, state.model)
            _start_at_zero(state.model)
            self._show(state)
        log.info("state restored", partition=self._partition, models=len(self._states))

    def process(self, records: Sequence[Record]) -> list[Write]:
        self._pending, self._decisions, self._through = {}, [], {}
        aside: list[Out] = []
        events: list[Tally | Command] = []
        for record in records:
            try:
                event = parse_control(record.value or b"")
            except ValidationError as error:
                reason = f"not a control record: {first_flaw(error)}"
                if isinstance(record, UnreadableBatch):
                    reason = record.reason
                aside.append(self._dead_letter(record, reason))
                continue
            if record.key != event.model.encode():
                aside.append(
                    self._dead_letter(record, f"the key is not the model {event.model!r}, so its order is not kept")
                )
                continue
            if isinstance(event, Command) and (verifier := self._switch.verifier) is not None:
                value = record.value or b""
                through = verifier.through(self._topics.control, value, record.timestamp, record.headers)
                self._through.setdefault(event.command_id, through)
            events.append(event)
        for event in self._within_budget(events):
            self._decide(event.model, event)
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + self._switch.settings.switch.tick_every.total_seconds()
            for model in list(self._states):
                self._decide(model, Tick())
        for model, epoch in self._switch.mirror.overtaken(self._states).items():
            # Only a worker that owns the model can commit this; one that was replaced writes nothing.
            self._decide(model, Overtaken(epoch))
        self._fit(events)
        writes = self._writes(aside, records[-1].offset if records else self._switch.position(self._partition) - 1)
        if not records and not writes:
            self._progress.set_to_current_time()
        return writes

    def _within_budget(self, events: Sequence[Tally | Command]) -> list[Tally | Command]:
        """The events, with tallies of versions beyond the budget as such of several versions together."""
        counts: dict[str, Counter[str]] = {}
        for event in events:
            if isinstance(event, Tally):
                counts.setdefault(event.model, Counter())[event.model_version] += event.seen
        own = {
            model: counted_one_by_one(
                count, state.route if (state := self._states.get(model)) is not None else None, SWITCH_BUDGET
            )
            for model, count in counts.items()
        }
        return [
            event.model_copy(update={"model_version": OTHERS})
            if isinstance(event, Tally) and event.model_version not in own[event.model]
            else event
            for event in events
        ]

    def _fit(self, events: Sequence[Tally | Command]) -> None:
        """Encode the new states, each within the size of its record; hold a model whose state has no room left."""
        self._encoded = {}
        asked: dict[str, list[Command]] = {}
        for event in events:
            if isinstance(event, Command):
                asked.setdefault(event.model, []).append(event)
        now = utc_now()
        for model, state in list(self._pending.items()):
            state = self._pending[model] = forget_silent(state, now)
            factor = STATE_BYTES_OF_COMMANDS // STATE_BYTES if model in asked else 1
            fitting = fit_state(state, factor * self._limit)
            if fitting is None:
                fitting = self._isolate(model, asked.get(model, ()), events)
            if fitting is not None:
                self._pending[model], self._encoded[model] = fitting

    def _isolate(
        self, model: str, commands: Sequence[Command], events: Sequence[Tally | Command]
    ) -> tuple[ModelState, bytes] | None:
        """Take back what was decided for this model, and hold it; None: it was held already."""
        log.error("a model's state has no room left, so the model is held", model=model, limit=self._limit)
        metrics.STATE_FULL.labels(model).inc()
        del self._pending[model]
        self._decisions = [decision for decision in self._decisions if _model_of(decision) != model]
        before = self._states.get(model) or ModelState(model=model)
        named = next((e.model_version for e in events if isinstance(e, Tally) and e.model == model), OTHERS)
        serves = before.route.version if before.route is not None else None
        self._decide(model, Full(serves or named, tuple(commands)), before)
        if (state := self._pending.get(model)) is None:
            return None
        return state, encode(state)

    def _decide(
        self, model: str, event: Tally | Command | Tick | Overtaken | Full, before: ModelState | None = None
    ) -> None:
        policy = self._switch.policies.current.policies.get(model)
        before = before or self._pending.get(model) or self._states.get(model)
        decision = decide(
            before,
            event,
            utc_now(),
            policy.breaker if policy is not None else BreakerPolicy(),
            new_id=uuid.uuid4().hex,
            runbook_url=(policy.runbook_url if policy is not None else "") or self._switch.settings.runbook_url,
            approvals=self._switch.settings.switch.approvals,
        )
        decision = _with_marks(decision, before, self._through)
        if decision.route is not None and self._switch.mirror.up is False:
            decision = _with_warning(decision)
        if decision.state is not None and decision.state != before:
            self._pending[model] = decision.state
        if decision.route or decision.incidents or decision.audits:
            self._decisions.append(decision)

    def _writes(self, aside: list[Out], handled: int) -> list[Write]:
        """`handled`: the offset of the last control record that the states have taken in; -1 before the first."""
        counts = self._switch.partitions
        # If the group loses its offsets, this says how far the switch had come.
        source = [source_header(f"{self._topics.control}/{self._partition}/{handled}")] if handled >= 0 else []
        if source and self.topic_id is not None:
            source.append(topic_id_header(self.topic_id))
        writes = [
            Write(
                self._topics.state,
                self._partition,
                [Out.now(model.encode(), encoded, source) for model, encoded in self._encoded.items()],
            ),
            Write(self._topics.malformed, 0, aside),
        ]
        for decision in self._decisions:
            if (route := decision.route) is not None:
                to = partition_for(route.model, counts["routes"])
                writes.append(Write(self._topics.routes, to, [Out.now(route.model.encode(), route.to_json())]))
            for incident in decision.incidents:
                to = partition_for(incident.incident_id, counts["incidents"])
                key = incident.incident_id.encode()
                writes.append(Write(self._topics.incidents, to, [Out.now(key, fit_incident(incident))]))
            for reference in decision.references:
                to = partition_for(reference.model, counts["references"])
                writes.append(Write(self._topics.references, to, [Out.now(reference.key, reference.to_json())]))
            for audit in decision.audits:
                to = partition_for(audit.model, counts["audit"])
                writes.append(Write(self._topics.audit, to, [Out.now(audit.model.encode(), audit.to_json())]))
        return [write for write in writes if write.records]

    def _dead_letter(self, record: Record, reason: str) -> Out:
        metrics.BAD_CONTROL.inc()
        log.warning("control record skipped", reason=reason, offset=record.offset, partition=self._partition)
        source = f"{self._topics.control}/{self._partition}/{record.offset}"
        key, value, theirs = writable(record)
        return Out(record.timestamp, key, value, [*theirs, *error_headers(reason), source_header(source)])

    async def prepare(self, records: Sequence[Record]) -> None:
        """Nobody else changes what it knows."""

    def refused(self, refusals: Sequence[Refusal]) -> bool:
        """Try again with smaller states; nothing else that the switch writes can be written in another way."""
        smaller = self._limit // 2
        if {one.topic for one in refusals} != {self._topics.state} or smaller < LEAST_STATE_BYTES:
            return False
        log.warning("the topic takes smaller states only", reason=refusals[0].reason, limit=smaller)
        self._limit = smaller
        return True

    def poison(self, record: Record, error: Exception) -> list[Write]:
        metrics.POISON.inc()
        self._pending, self._encoded, self._decisions = {}, {}, []
        reason = f"could not be processed in three attempts: {describe(error)}"
        return [Write(self._topics.malformed, 0, [self._dead_letter(record, reason)])]

    async def committed(self, _: Mapping[TopicPartition, int]) -> None:
        self._states.update(self._pending)
        for state in self._pending.values():
            self._show(state)
        for decision in self._decisions:
            for audit in decision.audits:
                _report_audit(audit)
            for incident in decision.incidents:
                _report_incident(incident)
            if decision.route is not None:
                _report_route(decision.route)
        self._pending, self._decisions = {}, []
        self._progress.set_to_current_time()

    def closed(self) -> None:
        """The partition is another worker's now: this one has nothing more to say about it."""
        self._switch.mirror.forget(list(self._states))
        metrics.PROGRESS.remove("switch", str(self._partition))
        for model in self._states:
            metrics.ROUTE_HELD.remove(model)
            metrics.ROUTE_PINNED.remove(model)
            metrics.ROUTE_EPOCH.remove("switch", model)
            for status in _OPEN:
                metrics.OPEN_INCIDENTS.remove(model, status.value)

    def _show(self, state: ModelState) -> None:
        statuses = [known.incident.status for known in state.incidents.values()]
        for status in _OPEN:
            metrics.OPEN_INCIDENTS.labels(state.model, status.value).set(statuses.count(status))
        if state.route is not None:
            self._switch.mirror.show(state.route)
            metrics.ROUTE_HELD.labels(state.model).set(float(state.route.state is RouteState.HELD))
            metrics.ROUTE_PINNED.labels(state.model).set(float(state.route.state is RouteState.PINNED))
            metrics.ROUTE_EPOCH.labels("switch", state.model).set(state.route.epoch)


def _model_of(decision: Decision) -> str | None:
    return decision.state.model if decision.state is not None else None


def _with_marks(decision: Decision, before: ModelState | None, through: Mapping[str, Through]) -> Decision:
    """The decision, whose audit records say how their commands came; one that is repeated says what it said."""
    fresh = {name: how for name, how in through.items() if before is None or name not in before.commands}

    def marked(audit: AuditRecord) -> AuditRecord:
        how = fresh.get(audit.command_id or "")
        return audit.model_copy(update={"through": how.value}) if how is not None else audit

    if not fresh:
        return decision
    state = decision.state
    if state is not None:
        state = state.model_copy(update={"commands": {name: marked(one) for name, one in state.commands.items()}})
    return replace(decision, state=state, audits=tuple(map(marked, decision.audits)))


_OPEN = (IncidentStatus.TRIGGERED, IncidentStatus.ACKNOWLEDGED)


def _with_warning(decision: Decision) -> Decision:
    """The decision, with what its audit records must say while Redis cannot be written."""
    more = "Redis does not answer the switch, so serving code keeps the version that it knows until Redis is back"
    audits = (audit.model_copy(update={"detail": f"{audit.detail}; {more}"}) for audit in decision.audits)
    return replace(decision, audits=tuple(audits))


def _start_at_zero(model: str) -> None:
    metrics.TRIPS.labels(model)
    metrics.SWITCHES.labels(model)
    for action in Action:
        for outcome in Outcome:
            metrics.COMMANDS.labels(model, action.value, outcome.value)


def _policies_refused() -> None:
    metrics.POLICIES_REFUSED.inc()
    metrics.POLICIES_IN_FORCE.labels("switch").set(0)


def _policies_loaded(policies: PolicySet) -> None:
    metrics.POLICIES_IN_FORCE.labels("switch").set(1)
    for model in policies.policies:
        _start_at_zero(model)


def _report_audit(audit: AuditRecord) -> None:
    if audit.command_id is not None:
        metrics.COMMANDS.labels(audit.model, audit.action, audit.outcome.value).inc()
    if audit.action == "trip":
        metrics.TRIPS.labels(audit.model).inc()
    level = log.warning if audit.action == "trip" or audit.outcome is Outcome.REFUSED else log.info
    level(
        "decision",
        model=audit.model,
        action=audit.action,
        version=audit.version,
        outcome=audit.outcome.value,
        actor=audit.actor,
        reason=audit.reason,
        detail=audit.detail,
        epoch=audit.epoch,
        **({"through": audit.through} if audit.through is not None else {}),
    )


def _report_incident(incident: Incident) -> None:
    if incident.status is not IncidentStatus.TRIGGERED:
        log.info("incident", id=incident.incident_id, status=incident.status.value, key=incident.dedup_key)


def _report_route(route: Route) -> None:
    metrics.SWITCHES.labels(route.model).inc()
    log.info(
        "route",
        model=route.model,
        version=route.version,
        state=route.state.value,
        epoch=route.epoch,
        fenced=list(route.fenced),
    )


class Switch:
    """The service: policies for the breakers, a worker for each assigned partition of control, and the mirror."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a key that cannot be used."""
        self.settings = settings
        self.policies = PolicyStore(settings.policies, _policies_refused, _policies_loaded)
        self.mirror = Mirror(settings)
        self.verifier = settings.api.command_verifier()
        self.partitions: dict[str, int] = {}
        self.loop: TransactionalLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Raises KafkaUnavailable."""
        roles = ("control", "state", "routes", "references", "incidents", "audit", "malformed")
        self.partitions = await check_topics(self.settings, roles)
        await refuse_uncompacted(self.settings, Party.SWITCH)
        switch = self.settings.switch
        self.loop = TransactionalLoop(
            self.settings.kafka,
            service="switch",
            topic=self.settings.topics.control,
            group=switch.group,
            worker=self.settings.worker,
            open_work=lambda partition: SwitchWork(self, partition),
            poll_ms=min(200, int(switch.tick_every.total_seconds() * 1000)),
            max_records=AT_ONCE,
            give_up_after=switch.give_up_after,
            begin=self._begin,
        )
        beside = (self.mirror.run(), self.policies.follow())
        self._tasks = [asyncio.create_task(self.loop.must_run(task)) for task in beside]
        await self.loop.start()

    async def _begin(self, tp: TopicPartition) -> int:
        assert self.loop is not None  # noqa: S101  its partition workers ask
        self.check_partition(tp.partition)
        return await SwitchBegin(self.settings, self.loop).of(tp)

    def position(self, partition: int) -> int:
        """The offset before which the control records of that partition have been taken in."""
        assert self.loop is not None  # noqa: S101  its partition workers ask
        return self.loop.workers[TopicPartition(self.settings.topics.control, partition)].offset

    def check_partition(self, number: int, model: str | None = None) -> None:
        """Whether that partition was there from the start, and is that of `model`. Raises TopicsMismatch.

        A model whose commands came to another partition than its tallies and its state would forget its fences.
        """
        known, topics = self.partitions["control"], self.settings.topics
        if number >= known or (model is not None and partition_for(model, known) != number):
            raise TopicsMismatch(
                f"The topic {topics.control} was grown, and where each model's state is depends on its partitions. "
                f"Create new topics for control and state with as many as there were, copy {topics.state} into the "
                "new one, and name both in the configuration ([topics])."
            )

    async def run(self) -> None:
        assert self.loop is not None  # noqa: S101  start() made it
        await self.loop.run()

    async def stop(self) -> None:
        if self.loop is not None:
            await self.loop.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def not_ready(self) -> str | None:
        """Why the switch is not ready, or None. Redis being away does not count: the guards obey Kafka."""
        return "starting" if self.loop is None else self.loop.not_ready()


async def serve(settings: Settings) -> None:
    """Run the switch until it is told to stop. Raises KafkaUnavailable, PolicyError, ServiceError."""
    switch = Switch(settings)
    await run_service(
        "switch",
        settings,
        host=settings.switch.health_host,
        port=settings.switch.health_port,
        start=switch.start,
        run=switch.run,
        stop=switch.stop,
        ready=switch.not_ready,
    )
