"""The demo: a model server, a guard and a switch on real diamond prices, and a version that forgets the logarithm.

The model server, in this process, asks `holdfast.client` which version to serve, as any serving code would. Guard and
switch are processes of their own. Everything that is reported is read from the topics and from Redis.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from holdfast.adapters.commands import send_command
from holdfast.adapters.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from holdfast.adapters.kafka import create_topics, reader
from holdfast.client import RouteReader
from holdfast.core.policy_events import POLICY_ACTIONS
from holdfast.demo.model import Stone, load_stones, outputs
from holdfast.guarded import GuardedService, stop_all
from holdfast.settings import Settings, load_settings
from holdfast.terminal import Refused
from holdfast_schemas import (
    TOPICS,
    Action,
    AuditRecord,
    Command,
    Header,
    Incident,
    IncidentAction,
    Outcome,
    Verdict,
    utc_now,
)

MODEL = "pricing"
GOOD, BAD = "v1", "v2"
STONES = 2000
"""How many of the stones are offered, again and again."""
TICK = 0.02
DEADLINE = 300.0
"""Seconds after which the demo gives up."""
QUIET = 10.0
"""Seconds without a new verdict, after which no more are waited for."""


class DemoFailed(Refused):
    """Holdfast did not do its job, or could not be started; the message says what happened and what to do."""


@dataclass
class Watch:
    """All that was seen so far; the view shows it and the facts are made of it."""

    servers: str
    stage: str = "starting guard and switch"
    version: str | None = None
    route_state: str = "none"
    rate: int = 0
    produced: Counter[str] = field(default_factory=Counter)
    approved: Counter[str] = field(default_factory=Counter)
    blocked: Counter[str] = field(default_factory=Counter)
    blocked_by_check: Counter[str] = field(default_factory=Counter)
    first_bad_at: float | None = None
    """Kafka's timestamp of the first output of the bad version, in seconds since the epoch."""
    first_block_seen_at: float | None = None
    switched_at: float | None = None
    saved: float = 0.0
    """What the blocked offers were below the selling prices, in US dollars."""
    evidence: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    incident: Incident | None = None
    audits: list[AuditRecord] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def note(self, text: str) -> None:
        self.timeline.append((time.monotonic() - self.started, text))

    def milliseconds(self, until: float | None) -> float | None:
        """From the first bad prediction in Kafka until then."""
        if until is None or self.first_bad_at is None:
            return None
        return round((until - self.first_bad_at) * 1000, 1)


def facts(watch: Watch, failures: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "ok": not failures,
        "failures": list(failures),
        "servers": watch.servers,
        "predictions_per_second": watch.rate,
        "produced": dict(watch.produced),
        "approved": dict(watch.approved),
        "blocked": dict(watch.blocked),
        "blocked_by_check": dict(watch.blocked_by_check),
        "bad_outputs_approved": watch.approved[BAD],
        "route": {"version": watch.version, "state": watch.route_state},
        "ms_from_first_bad_prediction_to_block": watch.milliseconds(watch.first_block_seen_at),
        "ms_from_first_bad_prediction_to_switch": watch.milliseconds(watch.switched_at),
        "would_have_cost_usd": round(watch.saved, 2),
        "evidence": watch.evidence,
        "incident": None if watch.incident is None else watch.incident.model_dump(mode="json", exclude_none=True),
        "decisions": [audit.model_dump(mode="json", exclude_none=True) for audit in watch.audits],
        "seconds": round(time.monotonic() - watch.started, 1),
    }


def failures_of(watch: Watch) -> list[str]:
    """What Holdfast failed to do, in sentences; empty when it did its job."""
    found: list[str] = []
    if watch.approved[BAD]:
        found.append(f"{watch.approved[BAD]} outputs of {BAD} were approved, although every one is absurd.")
    if not watch.blocked[BAD]:
        found.append(f"No output of {BAD} was blocked.")
    if not any(audit.action == "trip" and audit.version == BAD for audit in watch.audits):
        found.append(f"The breaker of {BAD} did not trip.")
    if watch.version != GOOD or watch.switched_at is None:
        found.append(f"The route in Redis did not go back to {GOOD}.")
    incident = watch.incident
    if incident is None or incident.action is not IncidentAction.SWITCHED or not incident.samples:
        found.append("No incident with evidence was published.")
    for version, count in watch.produced.items():
        seen = watch.approved[version] + watch.blocked[version]
        if seen != count:
            found.append(f"{count} outputs of {version} were produced, but {seen} verdicts came.")
    if watch.blocked[GOOD] > 0.01 * watch.produced[GOOD]:
        found.append(f"{watch.blocked[GOOD]} of {watch.produced[GOOD]} outputs of {GOOD} were blocked.")
    return found


@contextlib.contextmanager
def _servers(kafka: str | None, redis: str | None) -> Iterator[tuple[str, str, EmbeddedKafka | None]]:
    """Addresses of Kafka and Redis; embedded ones live as long as the block. Raises EmbeddedUnavailable."""
    with contextlib.ExitStack() as stack:
        embedded = None if kafka else stack.enter_context(EmbeddedKafka())
        url = redis or stack.enter_context(EmbeddedRedis()).url
        yield kafka or embedded.bootstrap, url, embedded  # type: ignore[union-attr]


def _configure(folder: Path, kafka: str, redis: str, sabotage: bool, *, embedded: bool) -> Settings:
    """Write the configuration of this run, under names that no other run uses."""
    run = f"demo-{os.urandom(3).hex()}"
    topics = "\n".join(f'{name} = "{run}.{name}"' for name in TOPICS)
    policy = files("holdfast.demo").joinpath("pricing.toml").read_text()
    assert tomllib.loads(policy)["model"] == MODEL  # noqa: S101
    if sabotage:
        policy = policy.replace(f'model = "{MODEL}"', f'model = "{MODEL}"\nmode = "shadow"')
    (folder / "policies").mkdir()
    # The model is named after the run: two demos on one Redis must not share a route.
    (folder / "policies" / "pricing.toml").write_text(policy.replace(f'"{MODEL}"', f'"{MODEL}-{run}"'))
    config = folder / "holdfast.toml"
    config.write_text(
        f'policies = {json.dumps(str(folder / "policies"))}\nlog_format = "json"\n'
        f'[kafka]\nbootstrap_servers = "{kafka}"\n[redis]\nurl = {json.dumps(redis)}\n'
        f"[topics]\n{topics}\n[topic_settings]\npartitions = 4\ncontrol_partitions = 1\n"
        f'[guard]\ngroup = "{run}-guard"\nstart_from = "earliest"\nhealth_port = {free_port()}\n'
        f'[switch]\ngroup = "{run}-switch"\nhealth_port = {free_port()}\n'
    )
    # What the environment says is about another installation, but for the login to the Kafka that is given.
    for variable in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        if embedded or not variable.startswith("HOLDFAST_KAFKA__") or variable.endswith("BOOTSTRAP_SERVERS"):
            del os.environ[variable]
    return load_settings(config)


class _Service(GuardedService):
    """guard or switch, as a process; what it says goes to a file."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            super().__init__(name, ("127.0.0.1", port), ["--config", str(folder / "holdfast.toml")], output=log)

    async def until_ready(self) -> None:
        """Raises DemoFailed when the process ends before it is ready."""
        while not await asyncio.to_thread(self.ready):
            self.must_run()
            await asyncio.sleep(0.05)

    def must_run(self) -> None:
        """Raises DemoFailed when the process has ended."""
        if self.ended() is not None:
            lines = self._log.read_text().strip().splitlines() or ["it said nothing"]
            raise DemoFailed(f"The {self.name} ended: {lines[-1]}")


async def run_demo(
    watch: Watch,
    *,
    kafka: str | None,
    redis: str | None,
    rate: int,
    sabotage: bool = False,
) -> list[str]:
    """Run it all; `watch` is filled while it runs. Returns what Holdfast failed to do.

    Raises DemoFailed, EmbeddedUnavailable, KafkaUnavailable.
    """
    watch.rate = rate
    with contextlib.ExitStack() as stack:
        address, url, embedded = stack.enter_context(_servers(kafka, redis))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))
        settings = _configure(folder, address, url, sabotage, embedded=embedded is not None)
        model = f"{MODEL}-{settings.guard.group.removesuffix('-guard')}"
        if embedded is None:
            await create_topics(settings)
        else:
            embedded.create_topics(settings)
        ports = {"guard": settings.guard.health_port, "switch": settings.switch.health_port}
        services: list[_Service] = []
        stack.callback(stop_all, services)
        try:
            for name, port in ports.items():
                services.append(_Service(name, folder, port))
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(service.until_ready() for service in services))
                await _play(watch, settings, model, url, services)
        except TimeoutError:
            watch.note("the time is up")
    return failures_of(watch)


async def _play(watch: Watch, settings: Settings, model: str, redis: str, services: Sequence[_Service]) -> None:
    stones = random.Random(7).sample(load_stones(), STONES)
    offers = outputs(stones)
    async with (
        RouteReader(redis, model) as route_reader,
        _background(
            _serve_predictions(watch, settings, model, stones, offers, route_reader),
            _follow_topics(watch, settings, {stone.entity_id: stone for stone in stones}),
            _follow_route(watch, model, route_reader),
            _look_after(services),
        ),
    ):
        watch.stage = f"{GOOD} serves and earns `good`"
        await _command(settings, model, Action.PROMOTE, GOOD, "first version")
        await _until(lambda: any(audit.action == "earned_good" for audit in watch.audits))
        await asyncio.sleep(2)
        watch.stage = f"{BAD} is promoted"
        await _command(settings, model, Action.PROMOTE, BAD, "a better fit")
        await _until(lambda: watch.switched_at is not None or watch.approved[BAD] > 5 * watch.rate)
        watch.stage = f"back on {GOOD}" if watch.switched_at else f"{BAD} is still served"
        await asyncio.sleep(3)
        watch.stage = "counting"
        watch.rate, rate = 0, watch.rate
        with contextlib.suppress(TimeoutError):
            await _while_it_moves(
                lambda: (
                    watch.produced.total() == watch.approved.total() + watch.blocked.total()
                    and watch.incident is not None
                    and watch.incident.blocked >= watch.blocked[BAD]
                ),
                lambda: (watch.approved.total(), watch.blocked.total(), watch.incident),
            )
        watch.rate = rate
        watch.stage = "done"


@contextlib.asynccontextmanager
async def _background(*coroutines: Any) -> AsyncIterator[None]:
    """Run them beside the block; an error of one ends the block with that error."""
    main = asyncio.current_task()
    assert main is not None  # noqa: S101
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    failed: list[BaseException] = []

    def ended(task: "asyncio.Future[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed.append(error)
            main.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if failed:
            main.uncancel()
            raise failed[0] from None
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _while_it_moves(condition: Callable[[], bool], progress: Callable[[], object]) -> None:
    """Wait until `condition` holds. Raises TimeoutError once `progress` has not changed for QUIET seconds."""
    while not condition():
        async with asyncio.timeout(QUIET):
            await _until(_changed(condition, progress))


def _changed(condition: Callable[[], bool], progress: Callable[[], object]) -> Callable[[], bool]:
    before = progress()
    return lambda: condition() or progress() != before


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  what is waited for is counted by other tasks
        await asyncio.sleep(0.02)


async def _look_after(services: Sequence[_Service]) -> None:
    while True:
        for service in services:
            service.must_run()
        await asyncio.sleep(0.2)


async def _command(settings: Settings, model: str, action: Action, version: str, reason: str) -> None:
    command = Command(
        command_id=os.urandom(8).hex(), model=model, action=action, version=version, actor="demo", reason=reason
    )
    audit = await send_command(settings, command)
    if audit.outcome is not Outcome.APPLIED:
        raise DemoFailed(f"The switch refused to {action.value} {version}: {audit.detail}.")


async def _serve_predictions(
    watch: Watch,
    settings: Settings,
    model: str,
    stones: Sequence[Stone],
    offers: dict[str, Any],
    route_reader: RouteReader,
) -> None:
    """The model server: offers the stones in turn, in the version that the route names."""
    producer = AIOKafkaProducer(enable_idempotence=True, **settings.kafka.client_options())
    await producer.start()
    number, due = 0, time.monotonic()
    try:
        while True:
            version = route_reader.route(model).version
            for _ in range(max(1, round(watch.rate * TICK)) if version is not None and watch.rate else 0):
                stone = stones[number % len(stones)]
                event = {
                    "prediction_id": f"p-{number}",
                    "model": model,
                    "model_version": version,
                    "entity_id": stone.entity_id,
                    "value": float(offers[str(version)][number % len(stones)]),
                    "currency": "USD",
                    "predicted_at": utc_now().isoformat(),
                    "features": {"carat": stone.carat},
                }
                await producer.send(
                    settings.topics.predictions, json.dumps(event).encode(), key=stone.entity_id.encode()
                )
                watch.produced[str(version)] += 1
                number += 1
            due = max(due + TICK, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    finally:
        await producer.stop()


async def _follow_route(watch: Watch, model: str, route_reader: RouteReader) -> None:
    served_bad = False
    while True:
        route = route_reader.route(model)
        if (route.version, route.state) != (watch.version, watch.route_state):
            if route.version != watch.version:
                watch.note(f"route: {watch.version or 'nothing'} → {route.version or 'nothing'}")
            watch.version, watch.route_state = route.version, route.state.value if route.state else "none"
            served_bad = served_bad or route.version == BAD
            if served_bad and route.version == GOOD and watch.switched_at is None:
                watch.switched_at = time.time()
        await asyncio.sleep(0.002)


async def _follow_topics(watch: Watch, settings: Settings, stones: dict[str, Stone]) -> None:
    topics = settings.topics
    partitions = settings.topic_settings.partitions
    consumer = reader(settings.kafka, fetch_max_wait_ms=20)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, n) for topic in (topics.approved, topics.blocked) for n in range(partitions)]
        tps += [TopicPartition(topics.audit, 0), TopicPartition(topics.incidents, 0)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                for record in records:
                    if tp.topic == topics.audit:
                        _take_audit(watch, AuditRecord.model_validate_json(record.value))
                    elif tp.topic == topics.incidents:
                        watch.incident = Incident.model_validate_json(record.value)
                    else:
                        _take_verdict(watch, record, stones)
    finally:
        await consumer.stop()


def _take_audit(watch: Watch, audit: AuditRecord) -> None:
    if audit.action not in POLICY_ACTIONS:
        watch.audits.append(audit)
    if audit.action in {"trip", "earned_good"}:
        watch.note(audit.detail)


def _take_verdict(watch: Watch, record: ConsumerRecord, stones: dict[str, Stone]) -> None:
    headers = dict(record.headers)
    version = headers[Header.MODEL_VERSION.value].decode()
    passed = headers[Header.VERDICT.value].decode() == Verdict.APPROVED.value
    (watch.approved if passed else watch.blocked)[version] += 1
    if version == BAD:
        at = record.timestamp / 1000
        watch.first_bad_at = at if watch.first_bad_at is None else min(at, watch.first_bad_at)
    if passed:
        return
    findings = json.loads(headers[Header.FINDINGS.value])
    for finding in findings:
        watch.blocked_by_check[finding["check"]] += 1
    if version != BAD:
        return
    if watch.first_block_seen_at is None:
        watch.first_block_seen_at = time.time()
        watch.note(f"first output of {BAD} blocked")
    event = json.loads(record.value)
    stone = stones[event["entity_id"]]
    watch.saved += stone.price - event["value"]
    watch.evidence.append(
        {
            "entity_id": stone.entity_id,
            "stone": str(stone),
            "sold_for_usd": stone.price,
            "offered_for_usd": event["value"],
            "failed": [finding["check"] for finding in findings],
        }
    )
    watch.evidence.sort(key=lambda one: one["offered_for_usd"] - one["sold_for_usd"])
    del watch.evidence[5:]


def main_loop(coroutine: Any) -> Any:
    """Run it; SIGTERM ends it as Ctrl-C does, with everything cleaned up."""

    async def guarded() -> Any:
        task = asyncio.ensure_future(coroutine)
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return asyncio.run(guarded())
