"""What one client of a port may hold: time-outs of requests and readers, and a limit of connections.

A connection is in one of three phases. `WAITING`: its next request has not come whole; `RUNNING`: its request is being
answered; and it may read slowly in both. A connection that waits longer than `request_within` for its head, or for its
body, is ended. So is one that does not read for `read_within`. Where there are more than `connections`, the one that
has waited longest makes room: thousands of half-open requests end each other, and a whole request is answered at once.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from holdfast.metrics import HTTP_REFUSED

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_ABORT_AFTER = 2.0
"""Seconds after which a connection that was closed is ended although the other side reads nothing."""
SLOW_REQUEST, SLOW_READER, CROWDED, FOREIGN_PEER = "slow_request", "slow_reader", "crowded", "foreign_peer"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    connections: int = 500
    request_within: float = 10.0
    """Seconds for a head, and as many for a body."""
    read_within: float = 30.0
    """Seconds in which some of an answer must be read."""

    def for_this_process(self) -> "HttpLimits":
        """With no more connections than half of the files that the process may open: Kafka needs some too."""
        try:
            import resource
        except ImportError:  # Windows
            return self
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self if files < 0 else replace(self, connections=max(16, min(self.connections, files // 2)))


class _Phase(Enum):
    HEAD = "waits for a head"
    BODY = "waits for a body"
    RUNNING = "is answered"


class BoundedProtocol(H11Protocol):
    """One connection."""

    limits: HttpLimits
    waiting: "dict[BoundedProtocol, None]"
    """The connections of this port that wait, the longest first."""
    _phase: _Phase | None = None
    _request_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (peer := _peer(transport)) is not None:
            if peer not in {0, os.getuid()}:
                self._end(FOREIGN_PEER)
                return
            self.app_state = {**self.app_state, "peer": peer}
        if len(self.connections) > self.limits.connections:
            (next(iter(self.waiting), self))._end(CROWDED)
        if not transport.is_closing():
            self._note_phase()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_phase()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        for timer in (self._request_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self.loop.call_later(self.limits.read_within, self._end, SLOW_READER)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()

    def _note_phase(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            phase = _Phase.HEAD
        elif self.conn.their_state is h11.SEND_BODY:
            phase = _Phase.BODY
        else:
            phase = _Phase.RUNNING
        if phase is self._phase:
            return
        self._phase = phase
        if self._request_timer is not None:
            self._request_timer.cancel()
        self.waiting.pop(self, None)
        if phase is not _Phase.RUNNING:
            self.waiting[self] = None
            self._request_timer = self.loop.call_later(self.limits.request_within, self._too_slow)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            HTTP_REFUSED.labels(SLOW_REQUEST).inc()
            some, _ = self.conn.trailing_data
            if self._phase is _Phase.HEAD and self.conn.their_state is h11.IDLE and some:
                self.transport.write(_TIMEOUT)
            self.transport.close()
        self.loop.call_later(_ABORT_AFTER, self.transport.abort)

    def _end(self, reason: str) -> None:
        HTTP_REFUSED.labels(reason).inc()
        self.waiting.pop(self, None)
        self.transport.abort()


def bounded(limits: HttpLimits) -> type[BoundedProtocol]:
    """The connections of one port."""
    for reason in (SLOW_REQUEST, SLOW_READER, CROWDED):
        HTTP_REFUSED.labels(reason)
    members: dict[str, Any] = {"limits": limits.for_this_process(), "waiting": {}}
    return cast(type[BoundedProtocol], type("BoundedConnection", (BoundedProtocol,), members))


def _peer(transport: asyncio.Transport) -> int | None:
    """The user at the other end of a unix socket."""
    connection = transport.get_extra_info("socket")
    # Windows has none.
    if connection is None or connection.family != getattr(socket, "AF_UNIX", None):
        return None
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()  # The socket's mode lets nobody else in.
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", said)[1])


class Share:
    """How many of something are open: in all, and for each person."""

    def __init__(self, in_all: int, for_each: int) -> None:
        self._in_all, self._for_each = in_all, for_each
        self._open: dict[str, int] = {}

    def take(self, person: str) -> Callable[[], None] | None:
        """Return what gives the place back; None where there is no place left."""
        if sum(self._open.values()) >= self._in_all or self._open.get(person, 0) >= self._for_each:
            return None
        self._open[person] = self._open.get(person, 0) + 1
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._open[person] -= 1
                if not self._open[person]:
                    del self._open[person]

        return give_back
