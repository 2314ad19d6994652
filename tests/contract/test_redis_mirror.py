"""The mirror of routes, on a real Redis."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from backends import RedisServer, until
from holdfast.adapters.redis import PublishOutcome, RedisUnavailable, RouteMirror
from holdfast.metrics import REDIS_REPAIRS
from holdfast.settings import Settings
from holdfast.switch import Mirror
from holdfast_schemas import Route, RouteState, redis_route_key, redis_state_key
from holdfast_schemas.route import EPOCHS_AHEAD

ROUTE_KEY = "holdfast:{pricing}:route"
STATE_KEY = "holdfast:{pricing}:state"
GENEROUS = 10.0
"""Seconds: far above what a call may take, far below what redis-py's own retries take on a frozen server."""


def a_route(epoch: int, version: str | None = "v1", **changes: Any) -> Route:
    fields: dict[str, Any] = {
        "model": "pricing",
        "version": version,
        "epoch": epoch,
        "state": RouteState.AUTO if version else RouteState.HELD,
        "last_good": "v0",
        "reason": "promoted",
        "actor": "ci",
        "since": datetime(2026, 11, 24, 10, tzinfo=UTC),
    }
    return Route(**fields | changes)


@pytest.fixture
async def mirror(redis_server: RedisServer) -> AsyncIterator[RouteMirror]:
    redis_server.flush()
    mirror = RouteMirror(redis_server.url)
    yield mirror
    await mirror.close()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A plain client, as other people's code has it."""
    async with Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


async def test_a_route_is_readable_as_the_contract_says(mirror: RouteMirror, redis: Redis) -> None:
    """The string holds the version, the hash the eight fields as text, and times are RFC 3339 UTC."""
    assert await mirror.publish(a_route(7, incident_id="i-1", fenced=("v2",))) is PublishOutcome.WRITTEN
    assert redis_route_key("pricing") == ROUTE_KEY
    assert redis_state_key("pricing") == STATE_KEY
    assert await redis.get(ROUTE_KEY) == "v1"
    assert await redis.hgetall(STATE_KEY) == {
        "version": "v1",
        "epoch": "7",
        "state": "auto",
        "last_good": "v0",
        "reason": "promoted",
        "incident_id": "i-1",
        "actor": "ci",
        "since": "2026-11-24T10:00:00Z",
    }


async def test_an_absent_value_is_an_absent_field(mirror: RouteMirror, redis: Redis) -> None:
    """What the former route had and the new one has not is gone."""
    await mirror.publish(a_route(1, incident_id="i-1"))
    await mirror.publish(a_route(2, last_good=None))
    assert {"last_good", "incident_id"}.isdisjoint(await redis.hgetall(STATE_KEY))


async def test_held_deletes_the_route(mirror: RouteMirror, redis: Redis) -> None:
    """While a model is held there is no version to read, and the state says why."""
    await mirror.publish(a_route(1))
    assert await mirror.publish(a_route(2, None, reason="none left")) is PublishOutcome.WRITTEN
    assert await redis.exists(ROUTE_KEY) == 0
    state = await redis.hgetall(STATE_KEY)
    assert (state["state"], state["reason"], "version" in state) == ("held", "none left", False)
    assert await mirror.publish(a_route(2, None, reason="none left")) is PublishOutcome.UNCHANGED


async def test_an_older_epoch_never_overwrites(mirror: RouteMirror, redis: Redis) -> None:
    """A writer that was asleep is told that it is late."""
    await mirror.publish(a_route(10, "v2"))
    assert await mirror.publish(a_route(9, "v1")) is PublishOutcome.NEWER_EXISTS
    assert await redis.get(ROUTE_KEY) == "v2"
    assert await redis.hget(STATE_KEY, "epoch") == "10"


@pytest.mark.parametrize(
    "damage",
    [
        ("HSET", STATE_KEY, "version", "v9"),
        ("HDEL", STATE_KEY, "state"),
        ("HSET", STATE_KEY, "extra", "x"),
        ("HDEL", STATE_KEY, "epoch"),
        ("HSET", STATE_KEY, "epoch", "inf"),
        ("HSET", STATE_KEY, "epoch", "not a number"),
        ("SET", ROUTE_KEY, "v9"),
        ("DEL", ROUTE_KEY),
        ("DEL", STATE_KEY),
        ("SET", STATE_KEY, "another type"),
        ("FLUSHALL",),
        ("SCRIPT", "FLUSH"),
    ],
    ids=" ".join,
)
async def test_the_same_epoch_repairs_a_damaged_copy(
    mirror: RouteMirror, redis: Redis, damage: tuple[str, ...]
) -> None:
    """Whatever happened to the copy, asserting the same route again makes it whole."""
    await mirror.publish(a_route(5))
    before = await redis.hgetall(STATE_KEY)
    await redis.execute_command(*damage)  # type: ignore[no-untyped-call]
    await mirror.publish_all([a_route(5)])
    assert await redis.get(ROUTE_KEY) == "v1"
    assert await redis.hgetall(STATE_KEY) == before
    assert await mirror.publish(a_route(5)) is PublishOutcome.UNCHANGED


async def test_a_route_of_another_type_does_not_survive_a_hold(mirror: RouteMirror, redis: Redis) -> None:
    """A list where the string belongs is removed too."""
    await redis.rpush(ROUTE_KEY, "v1")
    assert await mirror.publish(a_route(1, None)) is PublishOutcome.WRITTEN
    assert await redis.exists(ROUTE_KEY) == 0


async def test_only_a_change_is_announced(mirror: RouteMirror, redis: Redis) -> None:
    """Re-assertions and late writers are silent on the channel; the message is the state and the model."""
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("holdfast:routes")
        while await redis.pubsub_numsub("holdfast:routes") != [("holdfast:routes", 1)]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for route in (a_route(1), a_route(1), a_route(3, None), a_route(2)):
            await mirror.publish(route)
        await redis.publish("holdfast:routes", "the end")
        messages: list[str] = []
        async with asyncio.timeout(GENEROUS):
            async for message in pubsub.listen():
                if message["data"] == "the end":
                    break
                messages.append(message["data"])
    first, second = map(json.loads, messages)
    assert first == {
        "model": "pricing",
        "version": "v1",
        "epoch": 1,
        "state": "auto",
        "last_good": "v0",
        "reason": "promoted",
        "actor": "ci",
        "since": "2026-11-24T10:00:00Z",
    }
    assert (second["epoch"], second["state"], second.get("version")) == (3, "held", None)
    assert Route.model_validate_json(messages[0]) == a_route(1)


async def test_many_routes_heal_after_flushall(mirror: RouteMirror, redis: Redis) -> None:
    """More routes than fit in one round trip are all there again after one re-assertion."""
    routes = [a_route(n, model=f"m{n}") for n in range(1, 1202)]
    outcomes = await mirror.publish_all(routes)
    assert set(outcomes.values()) == {PublishOutcome.WRITTEN}
    assert len(outcomes) == 1201
    await redis.flushall()
    await mirror.publish(a_route(900, model="m7"))
    outcomes = await mirror.publish_all(routes)
    assert outcomes.pop("m7") is PublishOutcome.NEWER_EXISTS
    assert set(outcomes.values()) == {PublishOutcome.WRITTEN}
    assert await mirror.publish_all([]) == {}


async def test_concurrent_writers_leave_the_highest_epoch(
    mirror: RouteMirror, redis: Redis, redis_server: RedisServer
) -> None:
    """Two processes' worth of writers race; version, hash and epoch are those of one and the same route."""
    other = RouteMirror(redis_server.url)

    async def insist(writer: RouteMirror, route: Route) -> None:
        # As the switch does: a hundred connections at once may take longer than one call.
        async with asyncio.timeout(GENEROUS):
            while True:
                with contextlib.suppress(RedisUnavailable):
                    await writer.publish(route)
                    return

    await asyncio.gather(*(insist(mirror if n % 2 else other, a_route(n, f"v{n}")) for n in range(1, 101)))
    await other.close()
    state = await redis.hgetall(STATE_KEY)
    assert (state["epoch"], state["version"], await redis.get(ROUTE_KEY)) == ("100", "v100", "v100")


@given(
    first=st.integers(min_value=0, max_value=2**52),
    ahead=st.lists(st.integers(min_value=0, max_value=EPOCHS_AHEAD), min_size=1, max_size=12),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # The server is emptied for each example.
def test_any_order_of_publishes_ends_in_the_highest_epoch(
    redis_server: RedisServer, first: int, ahead: list[int]
) -> None:
    """Compare-and-set is what a maximum is: order and repetition do not matter among what switches can have written."""
    epochs = [first + each for each in ahead]

    async def publish_each() -> tuple[Any, dict[Any, Any]]:
        async with Redis.from_url(redis_server.url, decode_responses=True) as client:
            await client.flushall()
            mirror = RouteMirror(client)
            for epoch in epochs:
                await mirror.publish(a_route(epoch, f"v{epoch}"))
            return await client.get(ROUTE_KEY), await client.hgetall(STATE_KEY)

    version, state = asyncio.run(publish_each())
    assert (version, state["epoch"]) == (f"v{max(epochs)}", str(max(epochs)))


async def test_a_frozen_server_is_an_error_and_not_a_hang(
    mirror: RouteMirror, redis: Redis, redis_server: RedisServer
) -> None:
    """A server that accepts connections and never answers (SIGSTOP): each call raises, then works again."""
    await mirror.publish(a_route(1))
    defaults = Redis.from_url(redis_server.url)  # retries for tens of seconds
    patient = RouteMirror(defaults)
    redis_server.pause()
    try:
        async with asyncio.timeout(GENEROUS):
            for call in (
                mirror.publish(a_route(2)),
                mirror.publish_all([a_route(2)]),
                mirror.ping(),
                patient.publish(a_route(2)),
            ):
                with pytest.raises(RedisUnavailable, match="did not answer in time: check"):
                    await call
    finally:
        redis_server.resume()
        await defaults.aclose()
    await mirror.publish(a_route(3, "v3"))
    assert await redis.get(ROUTE_KEY) == "v3"


async def test_a_stopped_server_is_an_error_and_its_return_is_noticed(
    mirror: RouteMirror, redis_server: RedisServer
) -> None:
    """After an outage the next re-assertion writes everything again, the script included."""
    await mirror.publish(a_route(1))
    redis_server.kill()
    try:
        with pytest.raises(RedisUnavailable, match="cannot be reached"):
            await mirror.publish(a_route(2))
    finally:
        redis_server.start()
    await mirror.ping()
    await mirror.publish_all([a_route(2)])
    assert await mirror.publish(a_route(2)) is PublishOutcome.UNCHANGED


def quick(url: str) -> Settings:
    return Settings.model_validate({"redis": {"url": url, "reassert_every": "1s"}})


async def test_what_redis_missed_is_no_repair_once_it_is_back(redis: Redis, redis_server: RedisServer) -> None:
    """Repairs are what somebody else has lost or damaged."""
    before = REDIS_REPAIRS._value.get()
    redis_server.kill()
    mirror = Mirror(quick(redis_server.url))
    running = asyncio.create_task(mirror.run())
    try:
        mirror.show(a_route(5, "v5"))
        await until(lambda: mirror.up is False, GENEROUS)
        redis_server.start()
        await until(lambda: mirror.up is True, GENEROUS)
        assert await redis.get(ROUTE_KEY) == "v5"
        assert REDIS_REPAIRS._value.get() == before
        redis_server.flush()
        await until(lambda: REDIS_REPAIRS._value.get() == before + 1, GENEROUS)
        assert await redis.get(ROUTE_KEY) == "v5"
    finally:
        if not redis_server.running:
            redis_server.start()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_answer_that_nobody_expects_does_not_end_the_mirror() -> None:
    """The switch goes on without Redis, whatever stands at its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(b":77\r\n")

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        mirror = Mirror(quick(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        running = asyncio.create_task(mirror.run())
        mirror.show(a_route(5))
        await until(lambda: mirror.up is False, GENEROUS)
        done, _ = await asyncio.wait([running], timeout=2.5)
        assert not done
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_full_server_still_takes_a_switch(mirror: RouteMirror, redis: Redis) -> None:
    """Other people's data beyond `maxmemory` do not keep a bad version in service."""
    await mirror.publish(a_route(1, "bad"))
    await redis.config_set("maxmemory", "1")
    try:
        assert await mirror.publish(a_route(2, "good")) is PublishOutcome.WRITTEN
        assert await mirror.publish(a_route(1, model="new")) is PublishOutcome.WRITTEN
    finally:
        await redis.config_set("maxmemory", "0")
    assert await redis.get(ROUTE_KEY) == "good"


async def test_errors_are_one_sentence_without_the_password(redis: Redis, redis_server: RedisServer) -> None:
    """Wrong login, a read-only replica, any other refusal: each says what it is and what to do."""
    redis_server.flush()
    mirror = RouteMirror(redis_server.url.replace("://", "://nobody:s3cret@"))
    with pytest.raises(RedisUnavailable, match=r"refused the login.*check the user") as wrong_login:
        await mirror.publish(a_route(1))
    await mirror.close()
    mirror = RouteMirror(redis_server.url)
    await redis.config_set("min-replicas-to-write", "1")
    try:
        with pytest.raises(RedisUnavailable, match=r"refused the route.*NOREPLICAS") as refused:
            await mirror.publish_all([a_route(1)])
    finally:
        await redis.config_set("min-replicas-to-write", "0")
    await redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(RedisUnavailable, match="read-only replica: give") as replica:
            await mirror.publish(a_route(1))
    finally:
        await redis.replicaof("NO", "ONE")
    await mirror.close()
    for error in (wrong_login, refused, replica):
        assert "s3cret" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["redis://:s3cr/et@host", "http://:s3cret@host", "redis://:s3cret@host?bogus=1"])
def test_a_url_that_cannot_be_used_is_refused_without_quoting_it(url: str) -> None:
    """The password of a mistyped URL does not get into logs."""
    with pytest.raises(ValueError, match="the Redis URL cannot be used") as refused:
        RouteMirror(url)
    assert "s3cr" not in str(refused.value)
    assert refused.value.__suppress_context__
