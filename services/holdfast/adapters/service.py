"""The shell of a service: a FastStream application with health, metrics and AsyncAPI on one port."""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from prometheus_client import make_asgi_app
from starlette.types import ASGIApp

from holdfast.adapters import asyncapi
from holdfast.adapters.http_limits import HttpLimits, bounded
from holdfast.adapters.unix_socket import bind_private
from holdfast.core.errors import HoldfastError
from holdfast.metrics import READY, REGISTRY
from holdfast.settings import Settings

log = structlog.get_logger("holdfast.service")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
TRIM_EVERY = 60.0
"""Seconds."""
OF_HEALTH = HttpLimits(connections=100)
"""Of a port that only probes and Prometheus ask."""
OWN_PATHS = ("/health", "/ready", "/metrics", "/asyncapi", "/asyncapi.json")
"""What every service answers at."""


class ServiceError(HoldfastError):
    """The service cannot start, or has ended by itself."""


def configure_logging(log_format: str) -> None:
    """Structured lines on standard error: for people on a terminal, else JSON."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # The clients report every reconnect; what matters of it is logged by the loops.
    for name in ("aiokafka", "uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Server(uvicorn.Server):
    """Serves on one port, and on a unix socket too if there is one."""

    def __init__(self, config: uvicorn.Config, unix: socket.socket | None) -> None:
        super().__init__(config)
        self._unix = unix

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._unix is not None:
            server = await asyncio.get_running_loop().create_unix_server(self._connection, sock=self._unix)
            self.servers.append(server)

    def _connection(self) -> asyncio.Protocol:
        protocol: type[Any] = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(config=self.config, server_state=self.server_state, app_state={})
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # run_service handles them, to finish the batch first


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Now, and not only once the service has started: two that are bound to a port find out here.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Set another port, or 0 for any."
        ) from None
    return listener


def _keep_memory() -> None:
    """Let the C library keep what a batch has freed for the next one: new pages would take a twentieth of the time.

    Only glibc has this; elsewhere nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 128 * 1024 * 1024)


async def _give_memory_back() -> None:
    """Return what the C library holds and nobody uses to the system: after a burst it stands in pieces."""
    with contextlib.suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim
        while True:
            await asyncio.sleep(TRIM_EVERY)
            trim(0)


async def run_service(
    name: str,
    settings: Settings,
    *,
    host: str,
    port: int,
    start: Callable[[], Awaitable[None]],
    run: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    ready: Callable[[], str | None],
    site: Callable[[ASGIApp], ASGIApp] | None = None,
    unix_socket: Path | None = None,
    limits: HttpLimits = OF_HEALTH,
    keep_memory: bool = False,
) -> None:
    """Run until SIGTERM, SIGINT or an error of `run`, which is raised; after SIGINT so is KeyboardInterrupt.

    `ready()` says why the service is not ready, or None when it is. `site` is given the application that answers at
    `OWN_PATHS`, and returns the one that answers everything. The same is served on `unix_socket`, where the state of a
    request has its `peer`: the id of the user who sent it. `keep_memory`: what one batch frees is kept for the next.
    """
    listener = _bind(host, port)
    unix = bind_private(unix_socket) if unix_socket is not None else None
    READY.labels(name).set_function(lambda: float(ready() is None))

    @get
    async def health(scope: object) -> AsgiResponse:
        return AsgiResponse(b"ok\n", status_code=200)

    @get
    async def readiness(scope: object) -> AsgiResponse:
        reason = ready()
        return AsgiResponse((reason or "ready").encode() + b"\n", status_code=503 if reason else 200)

    # Everybody who reaches the port sees it: it does not say where the brokers are.
    document = asyncapi.without_servers(asyncapi.document(settings))
    described, page = json.dumps(document).encode(), asyncapi.page(document).encode()

    @get
    async def asyncapi_json(scope: object) -> AsgiResponse:
        return AsgiResponse(described, status_code=200, headers={"content-type": "application/json"})

    # Not FastStream's own page: it loads its scripts from somewhere else.
    @get
    async def asyncapi_page(scope: object) -> AsgiResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        headers = {"content-type": "text/html; charset=utf-8", "content-security-policy": policy}
        return AsgiResponse(page, status_code=200, headers=headers)

    app = AsgiFastStream(
        asgi_routes=[
            ("/health", health),
            ("/ready", readiness),
            # The api compresses what it sends by itself; compressed twice, Prometheus cannot read it.
            ("/metrics", make_asgi_app(REGISTRY, disable_compression=True)),
            ("/asyncapi", asyncapi_page),
            ("/asyncapi.json", asyncapi_json),
        ],
        logger=None,
    )
    front = app if site is None else site(app)
    config = uvicorn.Config(
        front, http=bounded(limits), ws="none", lifespan="off", log_config=None, access_log=False, server_header=False
    )
    server = _Server(config, unix)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        stopping.set()

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    serving = asyncio.create_task(server.serve([listener]), name="http")
    ended = asyncio.create_task(stopping.wait())
    beside: set[asyncio.Task[Any]] = {ended}
    try:
        # Not FastStream's own start: it would open a broker connection beside the transactional loop's.
        starting = asyncio.ensure_future(start())
        await asyncio.wait([starting, ended], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting], timeout=2)
            await stop()
            return
        starting.result()
        # Batches make many short-lived objects and no cycles: looking for those after every 700 costs a tenth.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        if keep_memory:
            _keep_memory()
        else:
            beside.add(asyncio.create_task(_give_memory_back()))
        log.info("started", service=name, port=listener.getsockname()[1])
        working = asyncio.ensure_future(run())
        await asyncio.wait([working, ended, serving], return_when=asyncio.FIRST_COMPLETED)
        await stop()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        server.should_exit = True
        for task in beside:
            task.cancel()
        await asyncio.wait([serving], timeout=2)
        if unix_socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(unix_socket)  # noqa: PTH108  at the end, where nothing else runs
        log.info("stopped", service=name)
        if interrupted.is_set() and sys.exc_info()[0] is None:
            raise KeyboardInterrupt
