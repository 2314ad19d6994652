"""For serving code: which version of a model may serve now.

    from holdfast.client import RouteReader

    async with RouteReader("redis://localhost:6379", "pricing") as reader:
        route = reader.route("pricing")  # from memory: no I/O, a few microseconds
        price = models[route.version].predict(x) if route.version else list_price(x)

`SyncRouteReader` is the same for threaded servers: `with SyncRouteReader(...) as reader`.

One background thread follows Redis: it reads the routes at the start and every second, and listens to the
channel `holdfast:routes` in between, because a message on a channel is delivered at most once. While Redis is
away the last known answer stays, and `age_seconds` says since when it was not confirmed.

A reader never goes back to a lower epoch: a Redis that came back empty, or with an older copy, does not
confirm the answer (it grows stale), and the switch overwrites it within a second or two. It does not go to an epoch
that is more than `EPOCHS_AHEAD` higher either: no switch has written it. In the first `SETTLED_AFTER` seconds a reader
does not know yet which of two epochs that are far apart is the switch's, and follows what is written last. If epochs
start again at 1 because the topics of Holdfast were deleted, or a reader slept for more than `EPOCHS_AHEAD` changes,
restart it.

With a `route_public_key` a reader believes only routes that a switch with that key has signed. Any other route does not
confirm the answer, which grows stale.

Redis may fail over: each new connection looks up where it is now, a server that answers that it is not, or not yet,
the right one is left at once, and every half minute the name is looked up again.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import redis
from redis.exceptions import RedisClusterException
from redis.sentinel import MasterNotFoundError

from holdfast.core.route_signature import RouteVerifier
from holdfast.redis_url import Client, Place, check_redis_url, connect, is_stale, parse_redis_url, sentinels
from holdfast_schemas.route import EPOCHS_AHEAD, REDIS_CHANNEL, RouteState, redis_state_key

__all__ = ["CurrentRoute", "RouteReader", "SyncRouteReader"]

CONNECT_TIMEOUT = 0.5
SOCKET_TIMEOUT = 0.5
START_TIMEOUT = 2.0
"""Seconds that entering a reader waits for the first answer; the time-outs above usually end it sooner."""
SETTLED_AFTER = 10.0
"""Seconds after the first answer until which an epoch that is far from it is followed: the switch overwrites what it
has not written within a second or two."""
STOP_POLL = 0.2
"""Seconds after which the thread notices that it must stop."""
FIRST_BACKOFF = 0.1
LAST_BACKOFF = 1.0
SILENT_POLLS = 3
"""Polls after which a channel that answers no ping is opened again."""

LOOK_UP_EVERY = 30.0
"""Seconds after which the connections are opened again: the name of Redis may have moved away from a server that
still answers, and no longer hears of new routes."""

log = logging.getLogger("holdfast.client")


@dataclass(frozen=True, slots=True)
class CurrentRoute:
    """The answer of a reader."""

    model: str
    version: str | None
    """The version to serve. None (held, no version yet, nothing known): serve your fallback."""
    epoch: int
    """Rises with every change of the route; 0 while nothing is known."""
    state: RouteState | None
    """None while nothing is known."""
    age_seconds: float
    """Since Redis last confirmed this answer; infinite while nothing is known."""
    stale: bool
    """Not confirmed for longer than the reader's `stale_after`. The answer is still the best one known."""
    source: Literal["poll", "channel", "none"]
    """What confirmed it last; `none` while nothing is known."""


@dataclass(frozen=True, slots=True)
class _Known:
    version: str | None
    epoch: int
    state: RouteState
    source: Literal["poll", "channel"]
    confirmed_at: float
    """On the monotonic clock."""
    first_at: float
    """When the first answer of this model was read, on the same clock."""


class _Follower:
    """What both readers share: the thread that follows Redis, and the answers in memory."""

    def __init__(
        self,
        source: str | Client,
        *models: str,
        poll_seconds: float = 1.0,
        stale_after: float = 5.0,
        allow_password_without_tls: bool = False,
        route_public_key: str | bytes | Path | None = None,
    ) -> None:
        """Follow the routes of `models`. Nothing is opened before the reader is entered.

        `source` is a URL, or a client with short time-outs and without retries, which stays the caller's to
        close. A URL for TLS and a user of the ACL is `rediss://user:password@host:6379/0?ssl_ca_certs=ca.pem`, with
        `&ssl_certfile=…&ssl_keyfile=…` for a client certificate. `redis+sentinel://host:port,host:port/service` asks
        Sentinels for the primary, `redis+cluster://host:port,host:port` is a cluster. `poll_seconds` and
        `stale_after` are seconds. `route_public_key` is the PEM of the key by which the switch signs routes, or of
        several keys, or the path of its file.
        Raises ValueError for a URL that cannot be used or would send its password without TLS to another machine
        (unless allowed), for a key that cannot be used, and if no model is named. Raises OSError for a key's file that
        cannot be read.
        """
        if not models:
            raise ValueError("name the models to follow: RouteReader(url, 'pricing')")
        if isinstance(source, str):
            check_redis_url(source, allow_password_without_tls=allow_password_without_tls)
            self._source: Place | Client = parse_redis_url(source)
        else:
            self._source = source
        if isinstance(route_public_key, Path):
            route_public_key = route_public_key.read_bytes()
        self._verifier = RouteVerifier(route_public_key) if route_public_key is not None else None
        self._models = frozenset(models)
        self._poll_seconds = poll_seconds
        self._stale_after = stale_after
        self._known: dict[str, _Known] = {}
        self._trouble: str | None = None
        self._start_lock = threading.Lock()
        self._pid: int | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._first_attempt = threading.Event()
        self._changed = threading.Condition()

    def route(self, model: str) -> CurrentRoute:
        """Which version of `model` may serve, from memory.

        Raises KeyError for a model that is not followed, RuntimeError if the reader was never entered.
        """
        if self._pid != os.getpid():
            self._start_after_fork()
        known = self._known.get(model)
        if known is None:
            if model not in self._models:
                raise KeyError(f"{model!r} is not followed: this reader was made for {sorted(self._models)}")
            return CurrentRoute(model, None, 0, None, math.inf, True, "none")
        age = time.monotonic() - known.confirmed_at
        return CurrentRoute(model, known.version, known.epoch, known.state, age, age > self._stale_after, known.source)

    def _start(self) -> None:
        with self._start_lock:
            if self._pid == os.getpid() and not self._stop.is_set():
                return
            # New ones each time: after a fork a lock may be held by a thread that is not there.
            self._stop = threading.Event()
            self._first_attempt = threading.Event()
            self._changed = threading.Condition()
            self._thread = threading.Thread(target=self._run, name="holdfast-route-reader", daemon=True)
            self._thread.start()
            self._pid = os.getpid()

    def _start_after_fork(self) -> None:
        """Threads do not survive a fork, and pre-forking servers may have entered the reader before it."""
        if self._pid is None:
            raise RuntimeError("the reader follows nothing yet: enter it first, `with reader:`")
        if not self._stop.is_set():
            self._start()

    def _enter(self) -> None:
        self._start()
        self._first_attempt.wait(START_TIMEOUT)

    def _close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(START_TIMEOUT)

    def _wait_for(self, model: str, timeout: float) -> CurrentRoute:
        self.route(model)
        with self._changed:
            if not self._changed.wait_for(lambda: model in self._known, timeout):
                cause = self._trouble or "Redis holds none: is the switch running, is a version promoted?"
                raise TimeoutError(f"no route of {model!r} within {timeout:g} s: {cause}")
        return self.route(model)

    # From here on: the thread.

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                with self._connected() as client:
                    self._follow(client)
                backoff = FIRST_BACKOFF
                continue
            except MasterNotFoundError:
                self._report("the Sentinels know no primary that answers, the last known routes stay")
            except (redis.RedisError, RedisClusterException, OSError) as error:
                self._report(f"Redis does not answer, the last known routes stay ({error})")
            except Exception:
                # A defect here must not end the thread: serving code would keep an old route for ever.
                log.exception("the follower of routes failed, and starts again")
            self._first_attempt.set()
            if time.monotonic() - started > 2 * LAST_BACKOFF:  # It did work for a while.
                backoff = FIRST_BACKOFF
            self._stop.wait(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, LAST_BACKOFF)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Client]:
        """Look up where Redis is now; the connections go with the block."""
        if not isinstance(self._source, Place):
            try:
                yield self._source
            finally:
                if isinstance(self._source, redis.Redis):  # One of a cluster follows failovers by itself.
                    self._source.connection_pool.disconnect(inuse_connections=False)
            return
        client = connect(self._source, connect_timeout=CONNECT_TIMEOUT, answer_timeout=SOCKET_TIMEOUT)
        try:
            yield client
        finally:
            client.close()
            for sentinel in sentinels(client):
                sentinel.close()

    def _follow(self, client: Client) -> None:
        """Listen and poll until the reader stops, Redis fails or its name is to be looked up again.

        Raises redis.RedisError or RedisClusterException.
        """
        look_up_at = time.monotonic() + LOOK_UP_EVERY
        with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(REDIS_CHANNEL)
            # Only a read after the subscription is confirmed leaves no gap between the two.
            if pubsub.get_message(timeout=SOCKET_TIMEOUT) is None:
                raise redis.TimeoutError("no answer to SUBSCRIBE")
            heard_at = time.monotonic()
            next_poll = 0.0
            while not self._stop.is_set():
                now = time.monotonic()
                if now >= look_up_at:
                    return
                if now >= next_poll:
                    self._poll(client)
                    # A connection that was dropped on the way looks like a quiet channel: hence the ping.
                    if now - heard_at > SILENT_POLLS * self._poll_seconds:
                        raise redis.TimeoutError("the channel has gone silent")
                    pubsub.ping()
                    next_poll = now + self._poll_seconds
                wait = min(STOP_POLL, max(next_poll - time.monotonic(), 0.0))
                message = pubsub.get_message(timeout=wait)
                if message is not None:
                    heard_at = time.monotonic()
                    if message["type"] == "message":
                        self._take_message(message["data"])

    def _poll(self, client: Client) -> None:
        models = sorted(self._models)
        with client.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hgetall(redis_state_key(model))
            answers = pipe.execute(raise_on_error=False)
        troubles = []
        for model, answer in zip(models, answers, strict=True):
            if isinstance(answer, Exception) and is_stale(answer):
                raise answer
            if isinstance(answer, Exception):
                troubles.append(f"{model}: {answer}")
            elif answer:
                fields = {_text(name): _text(value) for name, value in answer.items()}
                if trouble := self._take(model, fields, "poll"):
                    troubles.append(trouble)
            elif model in self._known:
                troubles.append(f"{model}: Redis has lost the route, the last known one stays")
        self._report("; ".join(troubles) or None)
        self._first_attempt.set()

    def _take_message(self, data: bytes | str) -> None:
        try:
            fields = json.loads(data)
            model = fields["model"]
        except (ValueError, TypeError, KeyError):
            log.warning("a message on %s is not a route, and was ignored", REDIS_CHANNEL)
            return
        if model in self._models and (trouble := self._take(model, fields, "channel")):
            log.warning("%s", trouble)

    def _take(self, model: str, fields: Mapping[str, object], source: Literal["poll", "channel"]) -> str | None:
        """Remember what Redis says, unless it is unusable or older than what is known: then say so."""
        try:
            epoch, state = _epoch(fields["epoch"]), RouteState(str(fields["state"]))
        except (KeyError, ValueError):
            return f"{model}: the route in Redis is damaged, the last known one stays"
        if self._verifier is not None and (wrong := self._verifier.what_is_wrong(model, _texts(fields))) is not None:
            return f"{model}: the route in Redis {wrong}, the last known one stays"
        known, now = self._known.get(model), time.monotonic()
        if known is not None and (why := self._why_it_stays(known, epoch, now)) is not None:
            return f"{model}: Redis is at epoch {epoch}{why}, the known route of epoch {known.epoch} stays"
        version = fields.get("version")
        serves = str(version) if version and state is not RouteState.HELD else None
        with self._changed:
            self._known[model] = _Known(serves, epoch, state, source, now, known.first_at if known else now)
            self._changed.notify_all()
        if known is None or epoch != known.epoch:
            log.info("%s: version %s serves, epoch %d, %s", model, serves, epoch, state)
        return None

    def _why_it_stays(self, known: _Known, epoch: int, now: float) -> str | None:
        """Why a route of that epoch does not replace the known one, in words that may be empty; None: it does."""
        # A signature says better than a distance whether a switch has written it.
        is_far = abs(epoch - known.epoch) > EPOCHS_AHEAD and self._verifier is None
        if is_far and now - known.first_at < SETTLED_AFTER:
            return None
        if epoch < known.epoch:
            return ""
        return ", which no switch has written" if is_far else None

    def _report(self, trouble: str | None) -> None:
        """Log a trouble when it begins and when it is over, not with every poll."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                log.warning("%s", trouble)
            else:
                log.info("the routes in Redis are readable again")


class SyncRouteReader(_Follower):
    """Follows routes for threaded serving code; safe to share between threads. See the module's docstring."""

    def __enter__(self) -> Self:
        """Start, and wait up to 2 s for the first answer; a Redis that is away is no error."""
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following. The last known answers stay readable, and grow stale."""
        self._close()

    def wait_for(self, model: str, timeout: float) -> CurrentRoute:
        """Wait up to `timeout` seconds until a route of `model` is known, held or not. Raises TimeoutError."""
        return self._wait_for(model, timeout)


class RouteReader(_Follower):
    """Follows routes for asyncio serving code; safe to share between tasks. See the module's docstring."""

    async def __aenter__(self) -> Self:
        """Start, and wait up to 2 s for the first answer; a Redis that is away is no error."""
        await asyncio.to_thread(self._enter)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop following. The last known answers stay readable, and grow stale."""
        await asyncio.to_thread(self._close)

    async def wait_for(self, model: str, timeout: float) -> CurrentRoute:  # noqa: ASYNC109 - as in the other
        """Wait up to `timeout` seconds until a route of `model` is known, held or not. Raises TimeoutError."""
        return await asyncio.to_thread(self._wait_for, model, timeout)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _epoch(value: object) -> int:
    """Raises ValueError for what no switch writes."""
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ValueError(value)
    return int(text)


def _texts(fields: Mapping[str, object]) -> dict[str, str]:
    """The fields as the hash has them: a message has the epoch as a number."""
    return {name: str(value) for name, value in fields.items() if value is not None}
