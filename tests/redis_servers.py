"""Redis as operators run it: behind a name that moves, watched by Sentinels, and as a cluster."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import redis

from backends import GENEROUS, RedisServer, ServerProcess, free_port, redis_executable


class MovingName:
    """A port of 127.0.0.1 that stands for a name: new connections go where it points now, old ones stay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class AnsweringServer:
    """Something at a port that answers every command with the same line, such as `-LOADING …`."""

    def __init__(self, line: str) -> None:
        self._answer = line.encode() + b"\r\n"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                count = int(line[1:])
                words = [lines.read(int(lines.readline()[1:]) + 2).strip().upper() for _ in range(count)]
                greeting = words[0] in (b"CLIENT", b"SELECT", b"HELLO", b"AUTH")
                self.asked += not greeting
                connection.sendall(b"+OK\r\n" if greeting else self._answer)


class SentinelServer(ServerProcess):
    """A Sentinel that watches the service `routes`, whose primary is at `primary`; two of them decide."""

    name = "sentinel"

    def __init__(self, primary: int, *lines: str, password: str | None = None) -> None:
        super().__init__()
        self.executable = redis_executable()
        self.port = free_port()
        self._password = password
        watched = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            f"sentinel monitor routes 127.0.0.1 {primary} 2",
            "sentinel down-after-milliseconds routes 700",
            "sentinel failover-timeout routes 3000",
            *lines,
        ]
        (self.folder / "sentinel.conf").write_text("\n".join(watched) + "\n")

    def command(self) -> list[str]:
        return [self.executable, str(self.folder / "sentinel.conf"), "--sentinel"]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self._password, decode_responses=True)

    def answers(self) -> bool:
        with self.client() as client, contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        return False

    def sees_everybody(self, sentinels: int, replicas: int) -> bool:
        with self.client() as client:
            state = client.sentinel_master("routes")
        others, slaves = int(state["num-other-sentinels"]), int(state["num-slaves"])
        return others == sentinels - 1 and slaves == replicas


@contextlib.contextmanager
def sentinels_of(
    primary: RedisServer, *lines: str, replicas: int = 1, password: str | None = None
) -> Iterator[list[SentinelServer]]:
    """Three Sentinels that know each other, the primary and its replicas."""
    with contextlib.ExitStack() as stack:
        watching = [stack.enter_context(SentinelServer(primary.port, *lines, password=password)) for _ in range(3)]
        wait_for(lambda: all(each.sees_everybody(3, replicas) for each in watching), "the Sentinels know each other")
        yield watching


class ClusterNodeServer(RedisServer):
    """A node of a cluster. Its bus has a free port too: 10,000 above its own is where connections have theirs."""

    def __init__(self, *arguments: str) -> None:
        self.bus = free_port()
        own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(self.bus))
        super().__init__(*own, *arguments)

    def ask(self, *words: object) -> str:
        with redis.Redis(port=self.port, decode_responses=True) as client:
            return str(client.execute_command(*words))


@contextlib.contextmanager
def redis_cluster() -> Iterator[list[ClusterNodeServer]]:
    """Three primaries with a third of the slots each, and a replica for each of them: nodes 0 to 2, and 3 to 5."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(ClusterNodeServer()) for _ in range(6)]
        for number, node in enumerate(nodes[:3]):
            node.ask("CLUSTER", "ADDSLOTS", *range(number * 16384 // 3, (number + 1) * 16384 // 3))
        for number, node in enumerate(nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus)
        wait_for(lambda: all(node.ask("CLUSTER", "NODES").count(" connected") == 6 for node in nodes), "all have met")
        for primary, replica in zip(nodes[:3], nodes[3:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
        wait_for(lambda: all(cluster_is_whole(node) for node in nodes), "the cluster serves every slot")
        yield nodes


def cluster_is_whole(node: ClusterNodeServer) -> bool:
    with redis.Redis(port=node.port) as client:
        slots = client.execute_command("CLUSTER", "SLOTS")
    copies = [len(each[2:]) if isinstance(each, list) else 0 for each in slots] if isinstance(slots, list) else []
    return "cluster_state:ok" in node.ask("CLUSTER", "INFO") and (not copies or min(copies) >= 2)


def demote(old: RedisServer, new: RedisServer) -> None:
    """What a failover does: `new` becomes the primary, `old` its replica, and no connection is closed."""
    with redis.Redis(port=new.port) as client:
        client.replicaof("NO", "ONE")
    follow(old, new)


def follow(replica: RedisServer, primary: RedisServer) -> None:
    """Make `replica` one of `primary`, and wait until it has the data."""
    with redis.Redis(port=replica.port) as client:
        client.replicaof("127.0.0.1", str(primary.port))
        wait_for(lambda: client.info("replication")["master_link_status"] == "up", "the replica has the data")


def addresses(servers: Sequence[ServerProcess]) -> str:
    """As a URL names them."""
    return ",".join(f"127.0.0.1:{server.port}" for server in servers)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition()` holds. Raises TimeoutError."""
    deadline = time.monotonic() + GENEROUS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)
