"""What somebody who reaches a port tries: half-open requests, slow bodies, answers that are never read, other users'
connections to the unix socket. `/health` answers throughout, and nothing stays for ever.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from backends import Kafka, RedisServer
from e2e.stack import START_TOKEN, Stack
from holdfast.adapters import http_limits
from holdfast.adapters.embedded import free_port
from holdfast.adapters.http_limits import BoundedProtocol, HttpLimits, bounded
from holdfast.adapters.service import run_service
from holdfast.adapters.unix_socket import SocketUnusable, bind_private
from holdfast.api.http import Edge
from holdfast.settings import Settings

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW_BODY = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken="


# One connection, without a network


class Wire(asyncio.Transport):
    """The other side of a connection: what was written to it, and whether it was closed."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        super().__init__({"socket": self})
        self.family, self.written, self.closed = family, b"", False
        self.protocol: BoundedProtocol | None = None

    def getsockname(self) -> Any:
        return ("127.0.0.1", 1)

    def getpeername(self) -> Any:
        return ("192.0.2.1", 2)

    def getsockopt(self, *_: int) -> bytes:
        return (7).to_bytes(4, "little") + (4242).to_bytes(4, "little") + (0).to_bytes(4, "little")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        if not self.closed and self.protocol is not None:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Port:
    """Connections of one port, with short limits."""

    def __init__(self, **limits: Any) -> None:
        self.waits = asyncio.Event()
        self.wires: list[Wire] = []
        self._class = bounded(HttpLimits(**{"request_within": 0.05, "read_within": 0.05, **limits}))
        self._config = uvicorn.Config(Edge(self._app, body_within=30), lifespan="off", log_config=None, ws="none")
        self._state = ServerState()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await self.waits.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def connect(self, wire: Wire | None = None) -> tuple[BoundedProtocol, Wire]:
        wire = wire or Wire()
        protocol = self._class(config=self._config, server_state=self._state, app_state={})
        wire.protocol = protocol
        self.wires.append(wire)
        protocol.connection_made(wire)
        return protocol, wire

    async def end(self) -> None:
        """Leave nothing that waits."""
        self.waits.set()
        for wire in self.wires:
            wire.close()
        await until(lambda: not self._state.tasks)


@pytest_asyncio.fixture
async def port(request: pytest.FixtureRequest) -> AsyncGenerator[Port, None]:
    made = Port(**getattr(request, "param", {}))
    yield made
    await made.end()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"G", b"HTTP/1.1 408 "),
        (HALF, b"HTTP/1.1 408 "),
        (WHOLE + HALF, b"HTTP/1.1 200 "),
        (SLOW_BODY, b""),
    ],
)
async def test_a_request_that_does_not_come_whole_is_ended(port: Port, sent: bytes, answer: bytes) -> None:
    """Whatever is missing of it, and however many whole ones came before."""
    protocol, wire = port.connect()
    if sent:
        protocol.data_received(sent)
    await until(lambda: wire.closed)
    assert wire.written.startswith(answer)


@pytest.mark.parametrize("sent", [b"", WHOLE])
async def test_an_idle_connection_is_ended_without_an_answer(port: Port, sent: bytes) -> None:
    """A client that sends its next request at that moment would take a 408 for the answer to it."""
    protocol, wire = port.connect()
    if sent:
        protocol.data_received(sent)
    await until(lambda: wire.closed)
    assert wire.written.count(b"HTTP/1.1") == bool(sent)


async def test_a_trickle_of_bytes_gains_no_time(port: Port) -> None:
    """One byte at a time, each well within the limit."""
    protocol, wire = port.connect()
    protocol.data_received(HALF)
    for _ in range(200):
        if wire.closed:
            break
        protocol.data_received(b"x")
        await asyncio.sleep(0.005)
    assert wire.closed


async def test_a_request_that_is_worked_on_is_not_ended(port: Port) -> None:
    """The limits are about what comes, not about how long an answer takes; then the next request may come."""
    protocol, wire = port.connect()
    protocol.data_received(WHOLE.replace(b"/health", b"/wait"))
    await asyncio.sleep(0.2)
    assert not wire.closed
    port.waits.set()
    await until(lambda: wire.written)
    protocol.data_received(WHOLE)
    await until(lambda: wire.written.count(b"200 OK") == 2)


async def test_who_does_not_read_is_ended_and_who_reads_slowly_is_not(port: Port) -> None:
    (stuck, stuck_wire), (slow, slow_wire) = port.connect(), port.connect()
    for one in (stuck, slow):
        one.data_received(WHOLE.replace(b"/health", b"/wait"))
        one.pause_writing()
    slow.resume_writing()
    await until(lambda: stuck_wire.closed)
    assert not slow_wire.closed


@pytest.mark.parametrize("port", [{"connections": 16, "request_within": 30.0}], indirect=True)
async def test_the_connection_that_has_waited_longest_makes_room(port: Port) -> None:
    """Never one whose request is worked on."""
    working = [port.connect() for _ in range(10)]
    half_open = [port.connect() for _ in range(6)]
    for protocol, _ in working:
        protocol.data_received(WHOLE.replace(b"/health", b"/wait"))
    for protocol, _ in half_open:
        protocol.data_received(HALF)
    fresh, wire = port.connect()
    assert [one.closed for _, one in half_open] == [True] + [False] * 5
    fresh.data_received(WHOLE)
    await until(lambda: b"200 OK" in wire.written)
    assert not any(one.closed for _, one in working)


@pytest.mark.parametrize("port", [{"connections": 16, "request_within": 30.0}], indirect=True)
async def test_where_all_connections_are_worked_on_a_new_one_is_refused(port: Port) -> None:
    """What is half-open goes first."""
    working = [port.connect() for _ in range(16)]
    for protocol, _ in working:
        protocol.data_received(WHOLE.replace(b"/health", b"/wait"))
    _, refused = port.connect()
    assert refused.closed
    assert not any(one.closed for _, one in working)


@pytest.mark.parametrize(("me", "let_in"), [(4242, True), (4243, False)])
async def test_only_ones_own_user_is_let_in_on_the_unix_socket(
    port: Port, me: int, let_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says who connects."""
    monkeypatch.setattr(http_limits.os, "getuid", lambda: me)
    protocol, wire = port.connect(Wire(socket.AF_UNIX))
    assert wire.closed is not let_in
    assert (protocol.app_state.get("peer") == 4242) is let_in


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_a_folder_that_others_can_enter_is_no_place_for_the_socket(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(SocketUnusable, match="is open to other users"):
        bind_private(folder / "api.sock")


def test_a_socket_is_taken_over_from_a_process_that_is_gone_and_from_no_other(tmp_path: Path) -> None:
    path = tmp_path / "private" / "api.sock"
    first = bind_private(path)
    with first:
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(SocketUnusable, match="Another process listens"):
            bind_private(path)
    with bind_private(path):
        pass
    path.unlink()
    path.write_text("a file of somebody")
    with pytest.raises(SocketUnusable, match="cannot be made"):
        bind_private(path)
    assert path.read_text() == "a file of somebody"
    with pytest.raises(SocketUnusable, match="more than 107 bytes"):
        bind_private(tmp_path / ("x" * 107))


# Real ports


async def half_open(port: int, count: int, sent: bytes = HALF) -> list[socket.socket]:
    """Connections on which part of a request came."""
    loop, made = asyncio.get_running_loop(), []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        await loop.sock_connect(one, ("127.0.0.1", port))
        await loop.sock_sendall(one, sent)
        made.append(one)
    return made


def open_still(connections: list[socket.socket]) -> int:
    """How many of them the other side has not ended, whatever it said before."""
    return sum(map(_is_open, connections))


def _is_open(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextlib.asynccontextmanager
async def serving(**limits: Any) -> AsyncGenerator[int, None]:
    """A service of the kind of guard, switch and notify, and its port."""
    stopping, port = asyncio.Event(), free_port()

    async def nothing() -> None:
        pass

    async def until_told() -> None:
        await stopping.wait()

    service = asyncio.create_task(
        run_service(
            "guard",
            Settings(),
            host="127.0.0.1",
            port=port,
            start=nothing,
            run=until_told,
            stop=nothing,
            ready=lambda: None,
            limits=HttpLimits(**limits),
        )
    )
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{port}/health")
                break
            await asyncio.sleep(0.02)
    try:
        yield port
    finally:
        stopping.set()
        await service


async def test_half_open_requests_end_each_other_and_health_answers_throughout() -> None:
    """On a port of guard, switch or notify: there are never more than the limit, and in the end none."""
    async with serving(connections=40, request_within=3.0) as port, httpx.AsyncClient(timeout=20) as client:
        attackers = []
        for _ in range(6):
            attackers += await half_open(port, 50)
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
            assert open_still(attackers) <= 40
        await until(lambda: open_still(attackers) == 0)
        # Its own connection has been idle for as long.
        async with httpx.AsyncClient() as another:
            metrics = (await another.get(f"http://127.0.0.1:{port}/metrics")).text
        assert 'holdfast_http_refused_total{reason="crowded"}' in metrics
        for one in attackers:
            one.close()


async def test_no_port_names_the_brokers_to_strangers() -> None:
    """The documents of the topics say what is in them, not where they are."""
    async with serving() as port, httpx.AsyncClient() as client:
        for path in ("/asyncapi", "/asyncapi.json"):
            text = (await client.get(f"http://127.0.0.1:{port}{path}")).text
            assert "predictions.approved" in text
            assert Settings().kafka.bootstrap_servers not in text


async def test_1500_half_open_requests_and_slow_bodies_do_not_stop_the_api(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """As a process, with the limits that it has: others are served, and connections are few."""
    async with Stack(kafka, redis_server.url, {}, folder=tmp_path) as stack:
        (api,) = await stack.start("api")
        url = f"http://127.0.0.1:{api.port}"
        attackers: list[socket.socket] = []
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {START_TOKEN}"}, timeout=20) as client:
            for sent in (HALF, SLOW_BODY, HALF):
                attackers.extend(await half_open(api.port, min(500, _files() // 4), sent))
                for path in ("/health", "/ready", "/metrics", "/api/v1/routes"):
                    assert (await client.get(url + path)).status_code == 200, path
                await until(lambda: open_still(attackers) <= 500)
        for one in attackers:
            one.close()


def _files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
