"""One installation of Holdfast for a test: its own topics, groups, policies and ports, and real processes.

    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        guard, switch = await stack.start("guard", "switch")
        await stack.send([stack.prediction("pricing", "v1", "SKU-1", 129.99)])
        await stack.until(lambda: stack.seen["approved"])

`stack.seen` holds, by role, every committed record of each topic so far, in the order of its partition. A worker
is a `ServerProcess`: it can be stopped, killed, paused, resumed and started again.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord
from redis.asyncio import Redis
from redis.exceptions import RedisError

from backends import GENEROUS, Kafka, ServerProcess
from e2e.secure import SecureKafka
from holdfast.adapters.acls import grants
from holdfast.adapters.embedded import free_port
from holdfast.core.policy_events import POLICY_ACTIONS
from holdfast.kafka.access_lists import grant_all
from holdfast.kafka.reading import close
from holdfast.settings import KafkaSettings, Settings, load_settings
from holdfast_schemas import TOPICS
from holdfast_schemas.route import redis_route_key, redis_state_key

POLICY = """
[[checks]]
name = "price_floor"
kind = "range"
field = "value"
min = 10.0
max = 25000.0

[breaker]
window = "30s"
min_seen = 20
min_entities = 5
min_partitions = 1
max_blocked_ratio = 0.05
good_after_seen = 20
good_after = "100ms"
max_switches = 3
"""
"""Without its `model`, which Stack writes in front: prices from 10 to 25,000; 20 sane ones earn `good`."""
START_TOKEN = "the-one-of-this-stack"
"""Lets tests into an API for which they have configured no tokens."""
JUMP = """
[[checks]]
name = "jump"
kind = "max_change"
up = 2.0
"""
"""Alone, or in front of POLICY: no price more than doubles."""


class Worker(ServerProcess):
    """`holdfast guard` or `holdfast switch` as a process. `start()` returns once it answers on its health port."""

    def __init__(self, service: str, config: Path, port: int, program: Sequence[str]) -> None:
        self.name = service
        super().__init__()
        self.config, self.port, self.program = config, port, program

    def command(self) -> list[str]:
        return [*self.program, self.name, "--config", str(self.config)]

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/health")[0] == 200
        return False

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of its health port. Raises OSError while nobody answers there."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/ready")[0] == 200
        return False

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the samples of this name that have these labels; 0 where there are none."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total

    def lines(self) -> list[dict[str, Any]]:
        """Its structured log so far. Raises ValueError for a line that is no JSON, such as a traceback's."""
        # What it is writing just now, or was when it was frozen, has no end yet.
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.strip()]

    def told(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log lines of this event that have these fields."""
        return [
            line for line in self.lines() if line["event"] == event and all(line.get(k) == v for k, v in fields.items())
        ]


class Stack:
    """See the module. `settings` go over the configuration, by section: `{"guard": {"delivery": "at_least_once"}}`.

    With `create=False` the topics are the caller's to create. `follow` are the roles that `seen` keeps.

    On a broker with logins each service and the producer of predictions has its own, and the rights that
    `holdfast acls kafka` names; what the stack itself looks at and commands needs no rights there.
    """

    def __init__(
        self,
        kafka: Kafka,
        redis_url: str,
        policies: Mapping[str, str],
        *,
        folder: Path,
        partitions: int = 2,
        settings: Mapping[str, Any] | None = None,
        create: bool = True,
        follow: Iterable[str] = tuple(TOPICS),
    ) -> None:
        self.kafka, self.folder = kafka, folder
        self._secure = kafka if isinstance(kafka, SecureKafka) and create else None
        self.run = f"e{uuid.uuid4().hex[:8]}"
        self.policies = folder / "policies"
        self.policies.mkdir()
        self._models = tuple(policies)
        for model, text in policies.items():
            self.write_policy(model, text)
        self.document: dict[str, Any] = {
            "policies": str(self.policies),
            "log_format": "json",
            "kafka": {"bootstrap_servers": kafka.bootstrap},
            "redis": {"url": redis_url, "reassert_every": "200ms"},
            "topics": {role: f"{self.run}.{role}" for role in TOPICS},
            "topic_settings": {"partitions": partitions, "control_partitions": 1},
            "guard": {"group": f"{self.run}-guard", "start_from": "earliest"},
            "switch": {"group": f"{self.run}-switch", "tick_every": "200ms"},
            "api": {"start_token": START_TOKEN},
        }
        for section, values in (settings or {}).items():
            plain = not isinstance(values, Mapping)
            self.document[section] = values if plain else {**self.document.get(section, {}), **values}
        self.settings: Settings = load_settings_from(self.write_config("base"))
        self.redis: Redis = Redis.from_url(redis_url, decode_responses=True)
        size = self.settings.topic_settings
        self.sizes = {"predictions": size.partitions, "control": size.control_partitions}
        self.seen: dict[str, list[ConsumerRecord]] = {role: [] for role in TOPICS}
        self.workers: list[Worker] = []
        self._create, self._follow_roles = create, frozenset(follow)
        self._roles = {self.topic(role): role for role in TOPICS}

    # Set-up

    async def __aenter__(self) -> Self:
        if self._create:
            await self.kafka.create_topics(self.settings)
        if self._secure is not None:
            await grant_all(self.settings.kafka, grants(self.settings))
        # A route that another test left there would be one of somebody else's. Some tests start without Redis.
        with contextlib.suppress(RedisError):
            for model in self._models:
                await self.redis.delete(redis_route_key(model), redis_state_key(model))
        self._producer = self._make_producer(self.settings.kafka)
        await self._producer.start()
        self._predicts = self._producer
        if self._secure is not None:
            self._predicts = self._make_producer(KafkaSettings(**self._secure.login("producer")))
            await self._predicts.start()
        self._follower = self._consumer("read_committed")
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        for client in {self._follower, self._producer, self._predicts}:
            await close(client)
        await self.redis.aclose()
        await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in self.workers))

    @staticmethod
    def _make_producer(kafka: KafkaSettings) -> AIOKafkaProducer:
        # Idempotent: what a test sends is there once, also when the broker restarts meanwhile.
        return AIOKafkaProducer(enable_idempotence=True, linger_ms=5, max_request_size=2**24, **kafka.client_options())

    def write_policy(self, model: str, text: str) -> Path:
        """Write the policy of one model, in one step, as a deployment would."""
        path, fresh = self.policies / f"{model}.toml", self.policies / f".{model}"
        fresh.write_text(f'model = "{model}"\n{text}')
        return fresh.replace(path)

    def write_config(self, name: str, changes: Mapping[str, Any] | None = None) -> Path:
        """A configuration file: the stack's, with `changes` over it by section."""
        document = {**self.document}
        for section, values in (changes or {}).items():
            document[section] = {**document.get(section, {}), **values} if isinstance(values, Mapping) else values
        path = self.folder / f"{name}.toml"
        path.write_text(_toml(document))
        return path

    def topic(self, role: str) -> str:
        """The topic's name."""
        return str(getattr(self.settings.topics, role))

    async def start(
        self,
        *services: str,
        settings: Mapping[str, Any] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "holdfast.cli"),
        ready: bool = True,
    ) -> list[Worker]:
        """Start one worker for each name, and wait until all of them are ready (`ready=False`: until they answer)."""
        started = []
        for service in services:
            port_name = "port" if service == "api" else "health_port"
            port, number = (settings or {}).get(service, {}).get(port_name) or free_port(), len(self.workers)
            changes: dict[str, Any] = {"worker": f"{service}-{number}", service: {port_name: port}}
            if self._secure is not None:
                changes["kafka"] = self._secure.login("auditor" if service == "audit" else service)
            for section, values in (settings or {}).items():
                changes[section] = {**changes.get(section, {}), **values} if isinstance(values, Mapping) else values
            worker = Worker(service, self.write_config(f"{service}-{number}", changes), port, program)
            self.workers.append(worker)
            started.append(worker)
        starting = (asyncio.to_thread(worker.start) for worker in started)
        for failed in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(failed, BaseException):
                raise failed
        if ready:
            await self.ready(*started)
        return started

    async def ready(self, *workers: Worker) -> None:
        for worker in workers:
            await self.until(worker.ready, f"{worker.name} is ready")

    # What goes in

    @staticmethod
    def prediction(model: str, version: str, entity: str, value: Any, **more: Any) -> dict[str, Any]:
        """A prediction of the contract, with an id of its own."""
        return {
            "prediction_id": uuid.uuid4().hex,
            "model": model,
            "model_version": version,
            "entity_id": entity,
            "value": value,
            **more,
        }

    async def send(
        self,
        values: Iterable[dict[str, Any] | bytes | None],
        *,
        role: str = "predictions",
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> list[tuple[int, int]]:
        """Write records; `(partition, offset)` of each. A dict is keyed by its entity, or its model on `control`."""
        pending = []
        producer = self._predicts if role == "predictions" else self._producer
        for value in values:
            this = key
            if this is None and isinstance(value, dict):
                this = str(value["entity_id" if role == "predictions" else "model"]).encode()
            raw = json.dumps(value).encode() if isinstance(value, dict) else value
            pending.append(
                await producer.send(
                    self.topic(role),
                    raw,
                    key=this,
                    partition=partition,
                    headers=list(headers),
                    timestamp_ms=timestamp_ms,
                )
            )
        return [(done.partition, done.offset) for done in await asyncio.gather(*pending)]

    @staticmethod
    def command_record(model: str, action: str, version: str | None = None, **fields: Any) -> dict[str, Any]:
        """A command as it stands in the control topic, with an id of its own."""
        return {
            "type": "command",
            "command_id": uuid.uuid4().hex,
            "model": model,
            "action": action,
            "actor": "tester",
            "reason": "a test",
            **({"version": version} if version else {}),
            **fields,
        }

    async def command(self, model: str, action: str, version: str | None = None, **fields: Any) -> dict[str, Any]:
        """Send a command and return its audit record, as JSON."""
        document = self.command_record(model, action, version, **fields)
        await self.send([document], role="control")
        return await self.until(
            lambda: next((a for a in self.audits(model) if a.get("command_id") == document["command_id"]), None),
            f"the command {action} {version or ''} is answered",
        )

    # What comes out

    async def until(self, condition: Callable[[], Any], what: str = "", within: float = GENEROUS) -> Any:
        """Wait until `condition` holds, and return its value. Fails naming `what`, with the ends of all logs."""
        deadline = time.monotonic() + within
        while not (value := condition()):
            if self._following.done():
                self._following.result()
            if time.monotonic() > deadline:
                counts = {role: len(records) for role, records in self.seen.items() if records}
                logs = "\n".join(f"--- {w.name} {w.port}\n{w.log.read_text()[-3000:]}" for w in self.workers)
                raise AssertionError(f"not within {within:g} s: {what or condition}\nseen: {counts}\n{logs}")
            await asyncio.sleep(0.02)
        return value

    async def settled(self) -> None:
        """Wait until every record so far is either committed, and in `seen`, or aborted."""
        raw = self._consumer("read_uncommitted")
        await raw.start()
        try:
            ends = await raw.end_offsets(self._partitions())
        finally:
            await raw.stop()
        for tp, end in ends.items():
            while await self._follower.position(tp) < end:
                if self._following.done():
                    self._following.result()
                await asyncio.sleep(0.02)

    def audits(self, model: str, *, of_policies: bool = False) -> list[dict[str, Any]]:
        """Decisions about the model; or what guards say of its policies, which they write as they start."""
        found = [body(record) for record in self.seen["audit"] if record.key == model.encode()]
        return [one for one in found if (one["action"] in POLICY_ACTIONS) == of_policies]

    def routes(self, model: str) -> list[dict[str, Any]]:
        """Every route of the model, oldest first."""
        return [body(record) for record in self.seen["routes"] if record.key == model.encode()]

    def route(self, model: str) -> dict[str, Any]:
        """The route as Kafka tells it; empty before the first."""
        return (self.routes(model) or [{}])[-1]

    def incidents(self, model: str) -> list[dict[str, Any]]:
        """Every update of every incident of the model, oldest first."""
        return [found for record in self.seen["incidents"] if (found := body(record))["model"] == model]

    def tallies(self, model: str) -> list[dict[str, Any]]:
        found = [body(record) for record in self.seen["control"] if record.key == model.encode()]
        return [one for one in found if one["type"] == "tally"]

    def verdicts(self) -> dict[str, list[str]]:
        """By prediction id, the role of the topic of each verdict on it: exactly one, when all is well."""
        found: dict[str, list[str]] = {}
        for role in ("approved", "blocked"):
            for record in self.seen[role]:
                found.setdefault(body(record)["prediction_id"], []).append(role)
        return found

    async def redis_route(self, model: str) -> tuple[str | None, dict[str, str]]:
        """What Redis says: the string and the hash."""
        return (
            await self.redis.get(f"holdfast:{{{model}}}:route"),
            await self.redis.hgetall(f"holdfast:{{{model}}}:state"),
        )

    async def committed(self) -> dict[int, int]:
        """The offset from which the guards' group goes on, by partition of predictions."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap, group_id=self.settings.guard.group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            tps = [tp for tp in self._partitions() if tp.topic == self.topic("predictions")]
            return {tp.partition: await consumer.committed(tp) or 0 for tp in tps}
        finally:
            await consumer.stop()

    # Inside

    def _consumer(self, isolation: str) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=2**23,
        )

    def _partitions(self) -> list[TopicPartition]:
        sizes = self.sizes
        return [
            TopicPartition(self.topic(role), number)
            for role, topic in TOPICS.items()
            for number in range(sizes[topic.partitions] if isinstance(topic.partitions, str) else topic.partitions)
        ]

    async def _follow(self) -> None:
        await self._follower.start()
        self._follower.assign([tp for tp in self._partitions() if self._roles[tp.topic] in self._follow_roles])
        while True:
            for tp, records in (await self._follower.getmany(timeout_ms=500)).items():
                self.seen[self._roles[tp.topic]] += records


def load_settings_from(config: Path) -> Settings:
    """The settings of a file, without leaving its name in this process's environment."""
    before = os.environ.get("HOLDFAST_CONFIG")
    try:
        return load_settings(config)
    finally:
        del os.environ["HOLDFAST_CONFIG"]
        if before is not None:
            os.environ["HOLDFAST_CONFIG"] = before


def sign_in(url: str, token: str) -> dict[str, str]:
    """The cookies of a browser that has signed in at the API's console with this token."""
    answer = httpx.post(f"{url}/login", data={"token": token}, timeout=GENEROUS)
    assert answer.status_code == 303, answer.text
    return dict(answer.cookies)


def body(record: ConsumerRecord) -> dict[str, Any]:
    """The record's JSON."""
    document: dict[str, Any] = json.loads(record.value)
    return document


def headers(record: ConsumerRecord) -> dict[str, bytes]:
    """The record's headers by name; of those that stand twice, the last."""
    return dict(record.headers)


def _toml(document: Mapping[str, Any]) -> str:
    plain: list[str] = []
    tables: list[str] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            tables += [f"[{key}]", *(f"{name} = {_toml_value(one)}" for name, one in value.items())]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for entry in value:
                tables += [f"[[{key}]]", *(f"{name} = {_toml_value(one)}" for name, one in entry.items())]
        else:
            plain.append(f"{key} = {_toml_value(value)}")
    return "\n".join([*plain, *tables]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
