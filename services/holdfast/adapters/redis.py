"""The mirror of routes in Redis, which serving code reads.

Redis is a projection: `holdfast.routes` is the truth, and whatever happens to Redis (FLUSHALL, a failover
that loses writes, an outage) heals with the next re-assertion. One Lua script compares the epoch and writes:
a writer that was asleep, or races another, never puts an older route over a newer one. An epoch that no switch can
have written, more than `EPOCHS_AHEAD` ahead, is overwritten.

The primary may move: behind one name, by Sentinel, or in a cluster. After every refusal, and now and then without
one, the connections are dropped, and the next call looks the primary up again.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from redis import exceptions
from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError

from holdfast.core.errors import HoldfastError
from holdfast.core.route_signature import SIGNATURE, RouteSigner, RouteVerifier
from holdfast.redis_url import AsyncClient, Kind, connect_async, parse_redis_url, sentinels
from holdfast_schemas import Route, redis_route_key, redis_state_key
from holdfast_schemas.route import EPOCHS_AHEAD, REDIS_CHANNEL

CONNECT_TIMEOUT = 0.5
"""Seconds to open a connection."""
SOCKET_TIMEOUT = 0.4
"""Seconds to wait for one answer."""
CALL_TIMEOUT = 1.0
"""Seconds for one whole call, name look-up and login included; it also bounds a client that retries."""
SEARCH_TIMEOUT = 2.0
"""The same where Sentinels or nodes of a cluster are asked first, some of which may be away."""
LOOK_UP_EVERY = 30.0
"""Seconds after which the connections are dropped without a refusal: a name may have moved away from a server that
still answers as a primary."""
PIPELINE_SIZE = 500
"""Routes sent at once: few enough to be written well within `CALL_TIMEOUT`."""

# Runs on Redis 6.2 and later, and in Redis Cluster: both keys are in one slot.
# KEYS: route, state. ARGV: epoch, version ('' for none), channel, message, how far ahead an epoch may be, then the
# state's fields. A damaged key (of another type, without a usable epoch) counts as absent and is written again.
# DEL comes first: it is allowed beyond `maxmemory`, and after it so is the rest of the script. A switch away from
# a bad version must not fail because other people's data have filled the server.
_COMPARE_AND_SET = """
local stored, count = {}, 0
local state_type = redis.call('TYPE', KEYS[2]).ok
if state_type == 'hash' then
  local flat = redis.call('HGETALL', KEYS[2])
  for i = 1, #flat, 2 do stored[flat[i]] = flat[i + 1] end
  count = #flat
end
local epoch = tonumber(ARGV[1])
local stored_epoch = string.match(stored.epoch or '', '^%d+$')
local ahead = stored_epoch and tonumber(stored_epoch) - epoch or 0
if ahead > 0 and ahead <= tonumber(ARGV[5]) then return {2, string.format('%.0f', tonumber(stored_epoch))} end

local route_type = redis.call('TYPE', KEYS[1]).ok
local route = route_type
if route_type == 'string' then route = 'string:' .. redis.call('GET', KEYS[1]) end
local same = count == #ARGV - 5 and route == (ARGV[2] == '' and 'none' or 'string:' .. ARGV[2])
for i = 6, #ARGV, 2 do same = same and stored[ARGV[i]] == ARGV[i + 1] end
if same then return 0 end

redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2]) end
redis.call('HSET', KEYS[2], unpack(ARGV, 6))
redis.call('PUBLISH', ARGV[3], ARGV[4])
return ahead > 0 and 3 or 1
"""


class PublishOutcome(StrEnum):
    """What became of a route that was offered to Redis."""

    UNCHANGED = "unchanged"
    """Redis held exactly this route."""
    WRITTEN = "written"
    """Redis held an older route, a damaged one or none."""
    NEWER_EXISTS = "newer_exists"
    """Redis holds a higher epoch, and was left as it is."""
    TAKEN_BACK = "taken_back"
    """Redis held an epoch that no switch can have written, and was overwritten."""


# In the order of the numbers that the script returns.
_OUTCOMES = (
    PublishOutcome.UNCHANGED,
    PublishOutcome.WRITTEN,
    PublishOutcome.NEWER_EXISTS,
    PublishOutcome.TAKEN_BACK,
)


class RedisUnavailable(HoldfastError):  # noqa: N818 - reads as the state it reports
    """Redis did not take the call."""


class RouteMirror:
    """Writes routes to Redis.

    Every call ends within about `CALL_TIMEOUT` seconds, also against a server that accepts connections and
    never answers, and raises `RedisUnavailable` if Redis did not do what was asked. Nothing is retried here:
    the caller re-asserts on a timer anyway.
    """

    def __init__(self, redis: AsyncClient | str, signer: RouteSigner | None = None) -> None:
        """Take a client, which stays the caller's to close, or a URL, as `holdfast.redis_url` describes it.

        With a `signer` every route is signed. Raises ValueError for a URL that cannot be used.
        """
        self._signer = signer
        # The fields of a route do not change, and signing takes longer than all else here.
        self._inputs: dict[str, tuple[Route, tuple[list[str], list[str]]]] = {}
        self.newer: dict[str, int] = {}
        """By model, the epoch that was found where a newer route existed, as of the last time."""
        self._owns_client = isinstance(redis, str)
        self._timeout = CALL_TIMEOUT
        if isinstance(redis, str):
            place = parse_redis_url(redis)
            self._redis = connect_async(place, connect_timeout=CONNECT_TIMEOUT, answer_timeout=SOCKET_TIMEOUT)
            self._address = place.address
            if place.kind is not Kind.SERVER:
                self._timeout = SEARCH_TIMEOUT
        else:
            self._redis = redis
            self._address = _address(redis)
        self._script_sha = hashlib.sha1(_COMPARE_AND_SET.encode(), usedforsecurity=False).hexdigest()
        self._looked_up = time.monotonic()

    async def publish(self, route: Route) -> PublishOutcome:
        """Write the route, unless Redis holds an epoch that is up to `EPOCHS_AHEAD` higher; announce a change.

        The same epoch with other or missing fields is a damaged copy, and is repaired.
        Raises RedisUnavailable.
        """
        return (await self.publish_all([route]))[route.model]

    async def publish_all(self, routes: Sequence[Route]) -> dict[str, PublishOutcome]:
        """Re-assert many routes, `PIPELINE_SIZE` to a round trip; the outcome for each model.

        Raises RedisUnavailable, after having offered the other routes of that round trip, if one is refused.
        """
        outcomes: dict[str, PublishOutcome] = {}
        for start in range(0, len(routes), PIPELINE_SIZE):
            some = routes[start : start + PIPELINE_SIZE]
            async with self._bounded():
                answers = await self._offer(some)
                missed = [n for n, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
                if missed:
                    # The server has restarted, or another one is the primary now. The others have their outcomes.
                    await self._redis.script_load(_COMPARE_AND_SET)
                    for n, answer in zip(missed, await self._offer([some[n] for n in missed]), strict=True):
                        answers[n] = answer
                for route, answer in zip(some, answers, strict=True):
                    if isinstance(answer, Exception):
                        raise answer
                    self.newer.pop(route.model, None)
                    if isinstance(answer, list):
                        self.newer[route.model], answer = int(answer[1]), answer[0]
                    outcomes[route.model] = _OUTCOMES[int(answer)]
        return outcomes

    async def _offer(self, routes: Sequence[Route]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for route in routes:
                keys, args = self._input(route)
                # The method of this name is barred in a cluster's pipeline; both keys are in one slot.
                pipe.execute_command("EVALSHA", self._script_sha, len(keys), *keys, *args)
            return list(await pipe.execute(raise_on_error=False))

    def _input(self, route: Route) -> tuple[list[str], list[str]]:
        known = self._inputs.get(route.model)
        if known is None or known[0] is not route:
            known = self._inputs[route.model] = (route, _script_input(route, self._signer))
        return known[1]

    async def wrongly_signed(self, models: Sequence[str], verifier: RouteVerifier) -> dict[str, str]:
        """By model, what is wrong with the signature of the route that Redis holds. Raises RedisUnavailable."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hgetall(redis_state_key(model))
            answers = await pipe.execute(raise_on_error=False)
        found = {}
        for model, answer in zip(models, answers, strict=True):
            if isinstance(answer, dict) and answer:
                fields = {_text(name): _text(value) for name, value in answer.items()}
                if (wrong := verifier.what_is_wrong(model, fields)) is not None:
                    found[model] = wrong
        return found

    async def ping(self) -> None:
        """Raises RedisUnavailable unless Redis answers."""
        async with self._bounded():
            await self._redis.ping()

    async def clock(self) -> datetime:
        """The server's time. Raises RedisUnavailable."""
        async with self._bounded():
            seconds, microseconds = await self._redis.time()
            return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(microseconds))

    async def epochs(self, models: Sequence[str]) -> dict[str, int | None]:
        """The epoch that Redis holds for each model, None where it holds none. Raises RedisUnavailable."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hget(redis_state_key(model), "epoch")
            answers = await pipe.execute(raise_on_error=False)
        return {
            model: int(answer) if isinstance(answer, str | bytes) and _is_epoch(answer) else None
            for model, answer in zip(models, answers, strict=True)
        }

    async def close(self) -> None:
        """Close the connections, if this mirror opened them. Never raises for a server that is away."""
        if self._owns_client:
            try:
                async with self._bounded():
                    await self._redis.aclose()
                    for sentinel in sentinels(self._redis):
                        await sentinel.aclose()
            except RedisUnavailable:
                pass  # The connections are gone either way.

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                if time.monotonic() - self._looked_up > LOOK_UP_EVERY:
                    await self._look_up_again()
                yield
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
            # TimeoutError is an OSError.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CALL_TIMEOUT):
                    await self._look_up_again()
            raise RedisUnavailable(_explain(error, self._address)) from error

    async def _look_up_again(self) -> None:
        """Drop the connections that nobody uses now, so that each call from here on finds out where the primary is."""
        self._looked_up = time.monotonic()
        if isinstance(self._redis, RedisCluster):
            await self._redis.aclose()
        else:
            await self._redis.connection_pool.disconnect(inuse_connections=False)


def state_fields(route: Route) -> dict[str, str]:
    """The hash of a route: text only, and an absent value is an absent field."""
    document = route.model_dump(mode="json", exclude_none=True, exclude={"model", "fenced", "promoted"})
    return {name: str(value) for name, value in document.items()}


def _is_epoch(value: bytes | str) -> bool:
    """Whether it reads as a number that a switch can have written."""
    return value.isascii() and value.isdigit() and len(value) <= 19


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _script_input(route: Route, signer: RouteSigner | None = None) -> tuple[list[str], list[str]]:
    message = route.model_dump(mode="json", exclude_none=True, exclude={"fenced", "promoted"})
    values = state_fields(route)
    if signer is not None:
        message[SIGNATURE] = values[SIGNATURE] = signer.sign(route.model, values)
    fields = [part for field in values.items() for part in field]
    return (
        [redis_route_key(route.model), redis_state_key(route.model)],
        [
            str(route.epoch),
            route.version or "",
            REDIS_CHANNEL,
            json.dumps(message, separators=(",", ":")),
            str(EPOCHS_AHEAD),
            *fields,
        ],
    )


def _address(redis: AsyncClient) -> str:
    if isinstance(redis, RedisCluster):
        return ", ".join(f"{node.host}:{node.port}" for node in redis.nodes_manager.startup_nodes.values())
    options = redis.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _explain(error: Exception, address: str) -> str:
    match error:
        case exceptions.NoPermissionError():
            return (
                f"Redis at {address} does not permit the mirror of routes ({error}): grant its user the keys"
                " `holdfast:*`, the channel `holdfast:routes` and the commands that the sentence names"
            )
        case exceptions.AuthenticationError() | exceptions.AuthenticationWrongNumberOfArgsError():
            return f"Redis at {address} refused the login ({error}): check the user and password of its URL"
        # Before Redis 7 a script's error has the code inside its text.
        case exceptions.ResponseError() if isinstance(error, exceptions.ReadOnlyError) or "-READONLY" in str(error):
            return (
                f"Redis at {address} is a read-only replica: give the address of the primary; after a failover its "
                "name is looked up again with each attempt"
            )
        case exceptions.BusyLoadingError():
            return f"Redis at {address} is still loading its data: wait until it is ready"
        case exceptions.MovedError() | exceptions.AskError():
            return f"Redis at {address} is a node of a cluster, without this key: write redis+cluster:// in its URL"
        case exceptions.ClusterError() | exceptions.RedisClusterException() | exceptions.TryAgainError():
            return f"Redis at {address} has no node for this key now ({error}): see `redis-cli CLUSTER INFO`"
        case MasterNotFoundError():
            return (
                f"Redis is not found: {address} know no primary that answers: see `redis-cli -p 26379 SENTINEL "
                "MASTERS`, and check the Sentinels' addresses, their login and the service's name"
            )
        case exceptions.TimeoutError() | TimeoutError():
            return f"Redis at {address} did not answer in time: check that it is running and not overloaded"
        case exceptions.ConnectionError() | OSError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return (
                f"Redis at {address} showed a certificate that is not accepted ({_verification(error)}): give the CA"
                " that signed it as redis.ssl_ca_file, and an address that it names"
            )
        case exceptions.ConnectionError() | OSError():
            return f"Redis at {address} cannot be reached ({error}): check that it is running and the address"
        case _:
            return f"Redis at {address} refused the route ({error}): see `redis-cli INFO` and the server's log"


def _verification(error: Exception) -> str:
    """What OpenSSL says is wrong with the certificate, without the rest of its message."""
    return str(error).rpartition("certificate verify failed: ")[2].partition(" (_ssl")[0].rstrip(".")
