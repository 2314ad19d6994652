"""What somebody who may write Redis can make serving code do: little, and nothing where routes are signed."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from redis.asyncio import Redis

from backends import GENEROUS, Kafka, RedisServer, until
from e2e.commands import holdfast
from e2e.stack import POLICY, Stack
from holdfast import client as client_module
from holdfast.adapters.redis import PublishOutcome, RouteMirror
from holdfast.client import CurrentRoute, RouteReader
from holdfast.core.route_signature import RouteSigner, RouteVerifier
from holdfast_schemas import Route, RouteState

STATE, STRING = "holdfast:{pricing}:state", "holdfast:{pricing}:route"
FAR = 10**15
"""As in the attack that served EVIL for ever."""


def a_route(epoch: int, version: str = "v1") -> Route:
    return Route(
        model="pricing",
        version=version,
        epoch=epoch,
        state=RouteState.AUTO,
        reason="promoted",
        actor="ci",
        since=datetime(2026, 11, 24, 10, tzinfo=UTC),
    )


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """The attacker's own client."""
    redis_server.flush()
    async with Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def mirror(redis: Redis, redis_server: RedisServer) -> AsyncIterator[RouteMirror]:
    found = RouteMirror(redis_server.url)
    yield found
    await found.close()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers know their route from the first answer on, as they do after ten seconds."""
    monkeypatch.setattr(client_module, "SETTLED_AFTER", 0.0)


def reading(url: str, **more: Any) -> RouteReader:
    return RouteReader(url, "pricing", poll_seconds=0.05, stale_after=0.3, **more)


async def evil(redis: Redis, epoch: object = FAR, **more: str) -> None:
    """One write, and a message on the channel."""
    fields = {"version": "EVIL", "epoch": str(epoch), "state": "auto", **more}
    await redis.hset(STATE, mapping=fields)
    await redis.set(STRING, "EVIL")
    text = ",".join(f'"{name}":"{value}"' for name, value in fields.items())
    await redis.publish("holdfast:routes", f'{{"model":"pricing",{text}}}')


async def is_at(redis: Redis, epoch: int) -> None:
    """Wait until Redis holds that epoch."""
    async with asyncio.timeout(GENEROUS):
        while await redis.hget(STATE, "epoch") != str(epoch):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def shows(reader: RouteReader, condition: Callable[[CurrentRoute], bool]) -> CurrentRoute:
    await until(lambda: condition(reader.route("pricing")))
    return reader.route("pricing")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("epoch", [1002 + 5, FAR, 10**18, "9" * 400, "-1", "1e3", " 9", "\u0669"])
async def test_a_reader_refuses_an_epoch_that_no_switch_has_written(
    redis: Redis, mirror: RouteMirror, redis_server: RedisServer, epoch: object
) -> None:
    """The known route stays and grows stale, and is confirmed again once the switch has written."""
    await mirror.publish(a_route(5))
    async with reading(redis_server.url) as reader:
        await evil(redis, epoch)
        route = await shows(reader, lambda route: route.stale)
        assert (route.version, route.epoch) == ("v1", 5)
        await mirror.publish(a_route(5))
        route = await shows(reader, lambda route: not route.stale)
        assert (route.version, route.epoch) == ("v1", 5)


@pytest.mark.usefixtures("settled")
async def test_a_thousand_changes_at_once_are_followed(
    redis: Redis, mirror: RouteMirror, redis_server: RedisServer
) -> None:
    """As far as a switch can have come; one more is not."""
    await mirror.publish(a_route(5))
    async with reading(redis_server.url) as reader:
        await mirror.publish(a_route(1005, "v2"))
        await shows(reader, lambda route: route.version == "v2")
        await mirror.publish(a_route(2006, "v3"))
        assert (await shows(reader, lambda route: route.stale)).version == "v2"


async def test_a_reader_that_starts_during_the_attack_comes_back(
    redis: Redis, mirror: RouteMirror, redis_server: RedisServer
) -> None:
    """It cannot know better at first, and follows the switch when that has written."""
    await evil(redis, 10**9)
    async with reading(redis_server.url) as reader:
        await shows(reader, lambda route: route.version == "EVIL")
        assert await mirror.publish(a_route(5)) is PublishOutcome.TAKEN_BACK
        await shows(reader, lambda route: (route.version, route.epoch, route.stale) == ("v1", 5, False))


@pytest.mark.parametrize(
    ("epoch", "outcome"),
    [
        ("6", PublishOutcome.NEWER_EXISTS),
        ("0" * 5000 + "6", PublishOutcome.NEWER_EXISTS),
        ("1005", PublishOutcome.NEWER_EXISTS),
        ("1006", PublishOutcome.TAKEN_BACK),
        (str(FAR), PublishOutcome.TAKEN_BACK),
        ("9" * 400, PublishOutcome.TAKEN_BACK),
        ("-7", PublishOutcome.WRITTEN),
        ("1e15", PublishOutcome.WRITTEN),
    ],
)
async def test_the_switch_takes_back_what_no_switch_has_written(
    redis: Redis, mirror: RouteMirror, epoch: str, outcome: PublishOutcome
) -> None:
    """With its own route whole; a nearer epoch may be another switch's and is left, and told."""
    await evil(redis, epoch, extra="x")
    assert await mirror.publish(a_route(5)) is outcome
    if outcome is PublishOutcome.NEWER_EXISTS:
        assert mirror.newer == {"pricing": int(epoch.lstrip("0"))}
        assert await redis.get(STRING) == "EVIL"
    else:
        assert mirror.newer == {}
        assert await redis.get(STRING) == "v1"
        state = await redis.hgetall(STATE)
        assert (state["epoch"], state["version"], "extra" in state) == ("5", "v1", False)
        assert await mirror.publish(a_route(5)) is PublishOutcome.UNCHANGED


@pytest.mark.parametrize("epoch", ["9" * 5000, "\u00b2", "-1", "1e3"])
async def test_an_epoch_that_is_not_one_reads_as_none(redis: Redis, mirror: RouteMirror, epoch: str) -> None:
    """What doctor compares is not ended by it."""
    await evil(redis, epoch)
    assert await mirror.epochs(["pricing"]) == {"pricing": None}


KEY, ANOTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


async def unsigned(redis: Redis) -> None:
    await evil(redis, 6)


async def with_another_routes_signature(redis: Redis) -> None:
    await redis.hset(STATE, mapping={"version": "EVIL", "epoch": "6"})


async def with_rubbish_for_a_signature(redis: Redis) -> None:
    await evil(redis, 6, signature=base64.b64encode(b"x" * 64).decode())


async def signed_by_another_key(redis: Redis) -> None:
    fields = {"version": "EVIL", "epoch": "6", "state": "auto"}
    await redis.delete(STATE)
    await redis.hset(STATE, mapping=fields | {"signature": RouteSigner(private(ANOTHER_KEY)).sign("pricing", fields)})


async def signed_for_another_model(redis: Redis) -> None:
    fields = {"version": "EVIL", "epoch": "6", "state": "auto"}
    await redis.delete(STATE)
    await redis.hset(STATE, mapping=fields | {"signature": RouteSigner(private(KEY)).sign("fraud", fields)})


@pytest.mark.parametrize(
    "attack",
    [
        unsigned,
        with_another_routes_signature,
        with_rubbish_for_a_signature,
        signed_by_another_key,
        signed_for_another_model,
    ],
)
async def test_only_signed_routes_are_believed(
    redis: Redis, redis_server: RedisServer, attack: Callable[[Redis], Awaitable[None]]
) -> None:
    """By the poll and by the channel, from the first answer on; a reader that knows nothing serves nothing."""
    mirror = RouteMirror(redis_server.url, RouteSigner(private(KEY)))
    await mirror.publish(a_route(5))
    async with reading(redis_server.url, route_public_key=public(KEY)) as reader:
        await attack(redis)
        assert (await shows(reader, lambda route: route.stale)).version == "v1"
        async with reading(redis_server.url, route_public_key=public(KEY)) as late:
            await asyncio.sleep(0.2)
            assert (late.route("pricing").version, late.route("pricing").source) == (None, "none")
        assert set(await mirror.wrongly_signed(["pricing"], RouteVerifier(public(KEY)))) == {"pricing"}
        await mirror.publish(a_route(7, "v2"))
        await shows(reader, lambda route: (route.version, route.stale) == ("v2", False))
        assert await mirror.wrongly_signed(["pricing"], RouteVerifier(public(KEY))) == {}
    await mirror.close()


async def test_an_older_signed_route_is_not_obeyed_again(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Replayed, it does not take a reader back; and a signature needs no nearness of epochs."""
    file = tmp_path / "route-public-key.pem"
    file.write_bytes(public(ANOTHER_KEY) + public(KEY))
    mirror = RouteMirror(redis_server.url, RouteSigner(private(KEY)))
    await mirror.publish(a_route(5))
    before = await redis.hgetall(STATE)
    async with reading(redis_server.url, route_public_key=file) as reader:
        await mirror.publish(a_route(5000, "v2"))
        await shows(reader, lambda route: route.version == "v2")
        await redis.delete(STATE)
        await redis.hset(STATE, mapping=before)
        route = await shows(reader, lambda route: route.stale)
        assert (route.version, route.epoch) == ("v2", 5000)
    await mirror.close()


@pytest.mark.real_kafka
async def test_one_write_to_redis_is_served_for_seconds_at_most(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """With a switch: far ahead it is overwritten, near it the epoch rises above it, and the audit tells it.

    Every route is signed by the key of the configuration; doctor says which are not.
    """
    (tmp_path / "key.pem").write_bytes(private(KEY))
    (tmp_path / "public.pem").write_bytes(public(KEY))
    keys = {"route_key_file": str(tmp_path / "key.pem"), "route_public_key_file": str(tmp_path / "public.pem")}
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, settings={"redis": keys}) as stack:
        (switch,) = await stack.start("switch")
        await stack.command("pricing", "promote", "v1")
        async with reading(redis_server.url) as reader, reading(redis_server.url, route_public_key=public(KEY)) as sure:
            for each in (reader, sure):
                await shows(each, lambda route: route.version == "v1")
            epoch = stack.route("pricing")["epoch"]
            for far in (FAR, epoch + 1001):
                await evil(stack.redis, far)
                await is_at(stack.redis, epoch)
                for each in (reader, sure):
                    await shows(each, lambda route: (route.version, route.epoch, route.stale) == ("v1", epoch, False))
            assert stack.route("pricing")["epoch"] == epoch

            await evil(stack.redis, epoch + 500)
            await is_at(stack.redis, epoch + 501)
            for each in (reader, sure):
                await shows(each, lambda route: (route.version, route.epoch, route.stale) == ("v1", epoch + 501, False))
            told = await stack.until(
                lambda: [one for one in stack.audits("pricing") if one["action"] == "route_reasserted"], "it is told"
            )
            assert [(one["actor"], one["epoch"]) for one in told] == [("holdfast", epoch + 501)]
            assert await stack.redis.get(STRING) == "v1"
        await asyncio.to_thread(switch.stop)
        config = stack.write_config("doctor")
        assert "agrees with Kafka on 1 route" in (await holdfast(config, "doctor")).flat()
        await stack.redis.hdel(STATE, "signature")
        assert "the route of pricing is not signed" in (await holdfast(config, "doctor")).flat()
