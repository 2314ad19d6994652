"""The readers of routes for serving code, on a real Redis."""

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest
import redis
from redis.asyncio import Redis

from backends import RedisServer
from holdfast.adapters.redis import RouteMirror
from holdfast.client import CurrentRoute, RouteReader, SyncRouteReader
from holdfast_schemas import Route, RouteState, redis_state_key

GENEROUS = 10.0
"""Seconds to wait for what normally takes milliseconds."""


def a_route(epoch: int, version: str | None = "v1", model: str = "pricing") -> Route:
    return Route(
        model=model,
        version=version,
        epoch=epoch,
        state=RouteState.AUTO if version else RouteState.HELD,
        reason="promoted",
        actor="ci",
        since=datetime(2026, 11, 24, 10, tzinfo=UTC),
    )


@pytest.fixture
async def mirror(redis_server: RedisServer) -> AsyncIterator[RouteMirror]:
    redis_server.flush()
    mirror = RouteMirror(redis_server.url)
    yield mirror
    await mirror.close()


async def eventually(
    reader: RouteReader, condition: Callable[[CurrentRoute], bool], model: str = "pricing"
) -> CurrentRoute:
    async with asyncio.timeout(GENEROUS):
        while not condition(route := reader.route(model)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return route


async def test_the_route_is_known_when_the_reader_is_entered(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """The first request is served by the right version."""
    await mirror.publish(a_route(4, "v4"))
    async with RouteReader(redis_server.url, "pricing") as reader:
        route = reader.route("pricing")
    assert (route.model, route.version, route.epoch, route.state) == ("pricing", "v4", 4, RouteState.AUTO)
    assert (route.stale, route.source) == (False, "poll")
    assert 0 <= route.age_seconds < GENEROUS


async def test_a_change_arrives_by_the_channel(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """With polling out of the way a new route, and a hold, are followed at once."""
    await mirror.publish(a_route(1, "v1"))
    async with RouteReader(redis_server.url, "pricing", poll_seconds=3600.0) as reader:
        await mirror.publish(a_route(2, "v2"))
        route = await eventually(reader, lambda route: route.epoch == 2)
        assert (route.version, route.source) == ("v2", "channel")
        await mirror.publish(a_route(3, None))
        route = await eventually(reader, lambda route: route.epoch == 3)
        assert (route.version, route.state) == (None, RouteState.HELD)


async def test_a_change_whose_message_was_lost_arrives_by_polling(
    mirror: RouteMirror, redis_server: RedisServer
) -> None:
    """A channel delivers at most once."""
    await mirror.publish(a_route(1))
    async with (
        RouteReader(redis_server.url, "pricing", poll_seconds=0.05) as reader,
        Redis.from_url(redis_server.url) as client,
    ):
        await client.hset(redis_state_key("pricing"), mapping={"version": "v2", "epoch": "2"})
        route = await eventually(reader, lambda route: route.epoch == 2)
    assert (route.version, route.source) == ("v2", "poll")


async def test_the_last_answer_stays_while_redis_is_away(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """It is said to be stale, its age rises, and the new route is followed when Redis is back."""
    await mirror.publish(a_route(5, "v5"))
    async with RouteReader(redis_server.url, "pricing", stale_after=0.3, poll_seconds=0.1) as reader:
        assert not reader.route("pricing").stale
        redis_server.kill()
        try:
            away = await eventually(reader, lambda route: route.stale)
            assert (away.version, away.epoch) == ("v5", 5)
            assert away.age_seconds > 0.3
            later = await eventually(reader, lambda route: route.age_seconds > 2 * away.age_seconds)
            assert (later.version, later.stale) == ("v5", True)
        finally:
            redis_server.start()
        # Redis came back empty: nothing to go by until the switch asserts the route again.
        assert reader.route("pricing").version == "v5"
        await mirror.publish(a_route(5, "v5"))
        await eventually(reader, lambda route: not route.stale and route.version == "v5")
        await mirror.publish(a_route(6, "v6"))
        await eventually(reader, lambda route: not route.stale and route.version == "v6")


async def test_a_frozen_redis_makes_the_answer_stale_and_no_caller_wait(
    mirror: RouteMirror, redis_server: RedisServer
) -> None:
    """SIGSTOP: the connections stay open and say nothing."""
    await mirror.publish(a_route(1))
    async with RouteReader(redis_server.url, "pricing", stale_after=0.3, poll_seconds=0.1) as reader:
        redis_server.pause()
        try:
            assert (await eventually(reader, lambda route: route.stale)).version == "v1"
        finally:
            redis_server.resume()
        await eventually(reader, lambda route: not route.stale)


async def test_a_reader_does_not_go_back_to_an_older_epoch(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """A stale copy (a failover that lost writes) is neither obeyed nor taken for a confirmation."""
    await mirror.publish(a_route(8, "v8"))
    async with RouteReader(redis_server.url, "pricing", stale_after=0.3, poll_seconds=0.05) as reader:
        redis_server.flush()
        await mirror.publish(a_route(7, "v7"))
        route = await eventually(reader, lambda route: route.stale)
        assert (route.version, route.epoch) == ("v8", 8)
        await mirror.publish(a_route(8, "v8"))
        await eventually(reader, lambda route: not route.stale and route.epoch == 8)


@pytest.mark.parametrize(("field", "value"), [("epoch", "many"), ("state", "on fire")], ids=["epoch", "state"])
async def test_a_damaged_route_is_not_obeyed(
    mirror: RouteMirror, redis_server: RedisServer, field: str, value: str
) -> None:
    """The last usable answer stays, and the follower goes on, also after rubbish on the channel."""
    await mirror.publish(a_route(1))
    async with (
        RouteReader(redis_server.url, "pricing", stale_after=0.3, poll_seconds=0.05) as reader,
        Redis.from_url(redis_server.url) as client,
    ):
        await client.hset(redis_state_key("pricing"), mapping={field: value, "version": "v9"})
        for rubbish in (b"\xff", b"[]", b"null", b'{"model":"pricing"}', b'{"model":["pricing"]}'):
            await client.publish("holdfast:routes", rubbish)
        assert (await eventually(reader, lambda route: route.stale)).version == "v1"
        await mirror.publish(a_route(2, "v2"))
        await eventually(reader, lambda route: route.version == "v2")


async def test_a_service_starts_without_redis(redis_server: RedisServer) -> None:
    """Nothing is known, which is not an error: the caller serves its fallback until Redis is there."""
    redis_server.kill()
    try:
        async with RouteReader(redis_server.url, "pricing") as reader:
            assert reader.route("pricing") == CurrentRoute("pricing", None, 0, None, math.inf, True, "none")
            with pytest.raises(TimeoutError, match=r"no route of 'pricing' within 0.1 s: Redis does not answer"):
                await reader.wait_for("pricing", timeout=0.1)
    finally:
        redis_server.start()


async def test_waiting_ends_with_the_first_route(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """Also when it is a held one; a model without a route ends in a time-out that says where to look."""
    async with RouteReader(redis_server.url, "pricing", "fraud") as reader:
        waiting = asyncio.create_task(reader.wait_for("pricing", timeout=GENEROUS))
        await mirror.publish(a_route(1, None))
        route = await waiting
        assert (route.version, route.epoch) == (None, 1)
        with pytest.raises(TimeoutError, match="is a version promoted"):
            await reader.wait_for("fraud", timeout=0.1)


async def test_each_model_has_its_own_route(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """One reader follows several models; one that it was not made for is an error with the names it has."""
    await mirror.publish_all([a_route(3, "v3"), a_route(1, "x1", model="fraud")])
    async with RouteReader(redis_server.url, "pricing", "fraud") as reader:
        assert (reader.route("pricing").version, reader.route("fraud").version) == ("v3", "x1")
        with pytest.raises(KeyError, match=r"'prices' is not followed.*\['fraud', 'pricing'\]"):
            reader.route("prices")


async def test_a_closed_reader_keeps_its_answer_and_can_be_entered_again(
    mirror: RouteMirror, redis_server: RedisServer
) -> None:
    """A reader that was never entered says so."""
    await mirror.publish(a_route(1))
    reader = RouteReader(redis_server.url, "pricing")
    with pytest.raises(RuntimeError, match="enter it first"):
        reader.route("pricing")
    async with reader:
        pass
    await reader.close()
    assert reader.route("pricing").version == "v1"
    async with reader:
        await mirror.publish(a_route(2, "v2"))
        await eventually(reader, lambda route: route.version == "v2")


async def test_a_threaded_server_uses_the_synchronous_reader(mirror: RouteMirror, redis_server: RedisServer) -> None:
    """Same answers, without an event loop; a client of the caller's own is used and left open."""
    await mirror.publish(a_route(1))

    def serve() -> tuple[CurrentRoute, CurrentRoute]:
        with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
            with SyncRouteReader(client, "pricing") as reader:
                answers = reader.wait_for("pricing", timeout=GENEROUS), reader.route("pricing")
            assert client.ping()
        return answers

    first, second = await asyncio.to_thread(serve)
    assert first.version == second.version == "v1"
    assert not second.stale


def test_a_reader_entered_before_a_fork_follows_in_the_child(redis_server: RedisServer) -> None:
    """Pre-forking servers (gunicorn --preload) would serve the old version for ever otherwise."""
    asyncio.run(_publish(redis_server.url, 1))
    with SyncRouteReader(redis_server.url, "pricing") as reader:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            deadline = time.monotonic() + GENEROUS
            while reader.route("pricing").epoch != 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            os.write(write_end, str(reader.route("pricing").epoch).encode())
            os._exit(0)
        asyncio.run(_publish(redis_server.url, 2))
        os.waitpid(child, 0)
        assert os.read(read_end, 10) == b"2"
        os.close(read_end)
        os.close(write_end)


async def _publish(url: str, epoch: int) -> None:
    mirror = RouteMirror(url)
    await mirror.publish(a_route(epoch, f"v{epoch}"))
    await mirror.close()


def test_the_client_imports_nothing_of_the_services() -> None:
    """Other people's serving code pays for redis and the contract, not for Kafka or numpy."""
    program = "import sys, holdfast.client; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert {"aiokafka", "faststream", "numpy", "msgspec", "structlog"}.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize("url", ["redis://:s3cr/et@host", "host:6379", "redis://host?bogus=1"])
def test_mistakes_of_the_caller_are_refused_at_once(url: str) -> None:
    """A URL that cannot be used (and the message does not quote it), and a reader without models."""
    with pytest.raises(ValueError, match="the Redis URL cannot be used") as refused:
        RouteReader(url, "pricing")
    assert "s3cr" not in str(refused.value)
    with pytest.raises(ValueError, match="name the models"):
        SyncRouteReader("redis://localhost")
