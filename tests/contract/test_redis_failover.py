"""The mirror and the readers of routes follow Redis to where its primary is: by name, by Sentinel, in a cluster."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from backends import RedisServer
from contract.test_client import a_route, eventually
from holdfast import client as client_module
from holdfast.adapters import redis as mirror_module
from holdfast.adapters.acls import REDIS_USERS
from holdfast.adapters.redis import PublishOutcome, RedisUnavailable, RouteMirror
from holdfast.cli import doctor
from holdfast.client import RouteReader
from holdfast.redis_url import Kind, check_redis_url, parse_redis_url
from holdfast.settings import Settings, SettingsError
from redis_servers import (
    AnsweringServer,
    ClusterNodeServer,
    MovingName,
    addresses,
    demote,
    follow,
    redis_cluster,
    sentinels_of,
    wait_for,
)

GENEROUS = 30.0
"""Seconds for a failover."""
NEVER = 3600.0
"""Seconds between polls where only the channel must tell."""


@contextlib.asynccontextmanager
async def a_mirror(url: str) -> AsyncIterator[RouteMirror]:
    mirror = RouteMirror(url)
    try:
        yield mirror
    finally:
        await mirror.close()


async def insist(mirror: RouteMirror, epoch: int, **route: Any) -> int:
    """Publish as the switch does, again and again until Redis takes it; how often it was refused."""
    refusals = 0
    async with asyncio.timeout(GENEROUS):
        while True:
            with contextlib.suppress(RedisUnavailable):
                await mirror.publish(a_route(epoch, f"v{epoch}", **route))
                return refusals
            refusals += 1
            await asyncio.sleep(0.1)


@pytest.fixture
def pair() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    with RedisServer() as primary, RedisServer() as replica:
        follow(replica, primary)
        yield primary, replica


async def test_a_demoted_primary_is_left_for_the_new_one_behind_the_name(
    pair: tuple[RedisServer, RedisServer],
) -> None:
    """The old server goes on answering, as a replica; one refusal, and the next route is on the new primary."""
    old, new = pair
    with MovingName(old.port) as name:
        async with (
            a_mirror(name.url) as mirror,
            RouteReader(name.url, "pricing", poll_seconds=0.2) as reader,
        ):
            await mirror.publish(a_route(1))
            await eventually(reader, lambda route: route.epoch == 1)
            name.target = new.port
            await asyncio.to_thread(demote, old, new)
            with pytest.raises(RedisUnavailable, match=r"read-only replica.*looked up again"):
                await mirror.publish(a_route(2, "v2"))
            assert await mirror.publish(a_route(2, "v2")) is PublishOutcome.WRITTEN
            await eventually(reader, lambda route: route.version == "v2" and not route.stale)


async def test_a_primary_that_lost_its_name_is_left_although_it_answers(
    pair: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off from its replica, it never hears of the failover: only another look at the name tells."""
    old, new = pair
    monkeypatch.setattr(mirror_module, "LOOK_UP_EVERY", 0.3)
    monkeypatch.setattr(client_module, "LOOK_UP_EVERY", 0.3)
    with MovingName(old.port) as name, redis.Redis(port=new.port) as raw:
        async with (
            a_mirror(name.url) as mirror,
            RouteReader(name.url, "pricing", poll_seconds=NEVER) as reader,
        ):
            await mirror.publish(a_route(1))
            await eventually(reader, lambda route: route.epoch == 1)
            raw.replicaof("NO", "ONE")
            name.target = new.port
            async with asyncio.timeout(GENEROUS):
                while raw.hget("holdfast:{pricing}:state", "epoch") != b"2":
                    await mirror.publish(a_route(2, "v2"))
                    await asyncio.sleep(0.05)
            await eventually(reader, lambda route: route.version == "v2")


async def test_the_channel_is_heard_on_the_new_primary(pair: tuple[RedisServer, RedisServer]) -> None:
    """The old primary dies: the reader subscribes on the new one, and needs no poll for what comes then."""
    old, new = pair
    with MovingName(old.port) as name:
        async with a_mirror(name.url) as mirror, RouteReader(name.url, "pricing", poll_seconds=NEVER) as reader:
            await mirror.publish(a_route(1))
            await eventually(reader, lambda route: route.epoch == 1)
            name.target = new.port
            await asyncio.to_thread(demote, old, new)
            old.kill()
            await insist(mirror, 2)
            await eventually(reader, lambda route: route.epoch == 2)
            with redis.Redis(port=new.port) as raw:
                wait_for(lambda: raw.pubsub_numsub("holdfast:routes")[0][1] == 1, "the reader subscribes")
            await mirror.publish(a_route(3, "v3"))
            route = await eventually(reader, lambda route: route.epoch == 3)
            assert route.source == "channel"


@pytest.mark.parametrize(
    "answer",
    [
        "-READONLY You can't write against a read only replica.",
        "-LOADING Redis is loading the dataset in memory",
        "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "-MOVED 7000 127.0.0.1:1",
        "-ASK 7000 127.0.0.1:1",
        "-CLUSTERDOWN The cluster is down",
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "-NOREPLICAS Not enough good replicas to write.",
        "-ERR Error running script (call to f_1): @user_script:1: -READONLY You can not write here.",
    ],
    ids=lambda answer: answer.split()[0 if "ERR" not in answer else 1],
)
async def test_a_server_that_says_it_is_not_the_right_one_is_left(redis_server: RedisServer, answer: str) -> None:
    """Whatever it says instead of serving, its connection is dropped, and the name is looked up again."""
    redis_server.flush()
    with AnsweringServer(answer) as wrong, MovingName(wrong.port) as name:
        async with a_mirror(name.url) as mirror, RouteReader(name.url, "pricing", poll_seconds=0.2) as reader:
            with pytest.raises(RedisUnavailable, match=r"Redis at 127\.0\.0\.1:\d+ ") as refused:
                await mirror.publish(a_route(1))
            assert "\n" not in str(refused.value)
            name.target = redis_server.port
            assert await mirror.publish(a_route(1)) is PublishOutcome.WRITTEN
            await eventually(reader, lambda route: route.version == "v1")
            assert wrong.asked


PASSWORDS = {"requirepass": "s3cret", "masterauth": "s3cret"}


@pytest.fixture
def logins() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica that ask for a password."""
    arguments = [word for name, value in PASSWORDS.items() for word in (f"--{name}", value)]
    with (
        RedisServer(*arguments) as primary,
        RedisServer("--replicaof", "127.0.0.1", str(primary.port), *arguments) as copy,
    ):
        with redis.Redis(port=copy.port, password="s3cret") as raw:
            wait_for(lambda: raw.info("replication")["master_link_status"] == "up", "the replica has the data")
        yield primary, copy


async def test_sentinels_say_where_the_new_primary_is(logins: tuple[RedisServer, RedisServer]) -> None:
    """The primary and one of three Sentinels are lost; mirror, reader and doctor go on with the new primary."""
    primary, _ = logins
    lines = ("sentinel auth-pass routes s3cret", "requirepass watch")
    with sentinels_of(primary, *lines, password="watch") as sentinels:
        settings = Settings.model_validate(
            {
                "redis": {
                    "url": f"redis+sentinel://{addresses(sentinels)}/routes/0",
                    "password": "s3cret",
                    "sentinel_password": "watch",
                    "allow_password_without_tls": True,
                }
            }
        )
        url = settings.redis.connection_url()
        assert parse_redis_url(url).kind is Kind.SENTINEL
        async with (
            a_mirror(url) as mirror,
            RouteReader(url, "pricing", poll_seconds=0.2, allow_password_without_tls=True) as reader,
        ):
            await mirror.publish(a_route(1))
            await eventually(reader, lambda route: route.epoch == 1)
            sentinels[0].kill()
            primary.kill()
            await insist(mirror, 2)
            await asyncio.wait_for(eventually(reader, lambda route: route.epoch == 2), GENEROUS)
            await mirror.publish(a_route(3, "v3"))
            await eventually(reader, lambda route: route.epoch == 3)
        found = [one async for one in doctor._redis(settings, {"pricing": a_route(3, "v3")})]
        assert [one.health for one in found] == [doctor.Health.OK] * 2, found
        for sentinel in sentinels[1:]:
            sentinel.kill()
        (away,) = [one async for one in doctor._redis(settings, {})]
        assert away.finding.startswith("Redis is not found: the service 'routes' of the Sentinels 127.0.0.1:")


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[ClusterNodeServer]]:
    """Three primaries and their replicas; the last test that uses it stops one of them."""
    with redis_cluster() as nodes:
        yield nodes


async def test_a_node_of_a_cluster_behind_a_plain_url_says_what_to_write(cluster: list[ClusterNodeServer]) -> None:
    """`redis://` is one server; where it answers MOVED, the sentence names the scheme."""
    nodes = cluster
    models = [f"other-{number}" for number in range(20)]
    async with a_mirror(nodes[0].url) as mirror:
        with pytest.raises(RedisUnavailable, match=r"node of a cluster.*write redis\+cluster://"):
            await mirror.publish_all([a_route(1, "v1", model) for model in models])


async def test_in_a_cluster_a_change_arrives_by_the_channel_with_the_rights_of_holdfast_acls(
    cluster: list[ClusterNodeServer],
) -> None:
    """A message reaches every node; the users that `holdfast acls redis` makes may do all that is done."""
    nodes = cluster
    for node in nodes:
        for user in REDIS_USERS:
            node.ask("ACL", "SETUSER", user.name, *user.rules, ">s3cret")
    place = f"{addresses(nodes[1:3])}"
    writer, serving = (f"redis+cluster://{user.name}:s3cret@{place}" for user in REDIS_USERS)
    async with (
        a_mirror(writer) as mirror,
        RouteReader(serving, "pricing", poll_seconds=NEVER, allow_password_without_tls=True) as reader,
    ):
        for epoch in (1, 2):
            await mirror.publish(a_route(epoch))
            route = await eventually(reader, lambda route, epoch=epoch: route.epoch == epoch)
        assert route.source == "channel"
        async with a_mirror(serving) as reading:
            await reading.clock()
            assert await reading.epochs(["pricing", "none"]) == {"pricing": 2, "none": None}


async def test_a_cluster_holds_the_routes_wherever_their_slots_are(cluster: list[ClusterNodeServer]) -> None:
    """Forty models on three primaries; one of them is lost, and its replica goes on with them."""
    models = [f"m{number}" for number in range(40)]
    nodes = cluster
    url = f"redis+cluster://{addresses(nodes[:3])}"
    async with a_mirror(url) as mirror, RouteReader(url, *models, poll_seconds=0.2) as reader:
        outcomes = await mirror.publish_all([a_route(1, "v1", model) for model in models])
        assert outcomes == dict.fromkeys(models, PublishOutcome.WRITTEN)
        assert min(int(node.ask("DBSIZE")) for node in nodes[:3]) >= 2
        for model in models:
            await eventually(reader, lambda route: route.epoch == 1, model)
        wait_for(lambda: nodes[3].ask("DBSIZE") == nodes[0].ask("DBSIZE"), "the replica has the routes")
        nodes[0].kill()
        async with asyncio.timeout(GENEROUS):
            while True:
                with contextlib.suppress(RedisUnavailable):
                    await mirror.publish_all([a_route(2, "v2", model) for model in models])
                    break
                await asyncio.sleep(0.1)
        for model in models:
            await asyncio.wait_for(eventually(reader, lambda route: route.epoch == 2, model), GENEROUS)
    settings = Settings.model_validate({"redis": {"url": url}})
    found = [one async for one in doctor._redis(settings, {m: a_route(2, "v2", m) for m in models})]
    assert [one.health for one in found] == [doctor.Health.OK] * 2, found


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "service", "options"),
    [
        ("redis://a:1/2", Kind.SERVER, (("a", 1),), "", {"db": 2}),
        ("unix:///run/redis.sock?db=3", Kind.SERVER, (("localhost", 6379),), "", {"path": "/run/redis.sock", "db": 3}),
        ("redis+sentinel://a,b:2/routes", Kind.SENTINEL, (("a", 26379), ("b", 2)), "routes", {}),
        ("redis+sentinel://[::1]:7,b/my%20name/4", Kind.SENTINEL, (("::1", 7), ("b", 26379)), "my name", {"db": 4}),
        (
            "rediss+sentinel://u:p%40w@a/r?ssl_ca_certs=ca.pem",
            Kind.SENTINEL,
            (("a", 26379),),
            "r",
            {"username": "u", "password": "p@w", "ssl_ca_certs": "ca.pem"},
        ),
        ("redis+cluster://a,b:2", Kind.CLUSTER, (("a", 6379), ("b", 2)), "", {}),
        ("rediss+cluster://:p@a/0", Kind.CLUSTER, (("a", 6379),), "", {"password": "p", "db": 0}),
    ],
)
def test_a_url_says_how_redis_is_found(
    url: str, kind: Kind, nodes: tuple[tuple[str, int], ...], service: str, options: dict[str, Any]
) -> None:
    """One server, Sentinels with their service, or some nodes of a cluster; several hosts, and what each needs."""
    place = parse_redis_url(url)
    assert (place.kind, place.nodes, place.service, place.options) == (kind, nodes, service, options)
    assert place.tls is url.startswith("rediss")


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1",  # no service
        "redis+sentinel://a:1/",
        "redis+sentinel://a:1,,b/routes",
        "redis+sentinel://a:1/routes/first",
        "redis+sentinel://a:1/routes?bogus=1",
        "redis+sentinel://a:x/routes",
        "redis+cluster://a:1/3",  # a cluster has no databases
        "redis+cluster://a?sentinel_password=s",
        "redis+cluster://",
        "redis+magic://a",
        "unix+sentinel:///run/sentinel/routes",
        "redis://a,b",
        "redis://a/first",
        "redis://a?sentinel_password=s",
        "sentinel://a/routes",
    ],
)
def test_a_url_that_says_nothing_usable_is_refused(url: str) -> None:
    """The sentence shows the three forms."""
    with pytest.raises(ValueError, match=r"redis\+sentinel://.*redis\+cluster://"):
        parse_redis_url(url)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("redis+sentinel://:s3cret@127.0.0.1/routes", True),  # where the primary is, the Sentinels say
        ("redis+sentinel://127.0.0.1/routes?sentinel_password=s3cret", True),
        ("redis+cluster://:s3cret@localhost", True),
        ("rediss+cluster://:s3cret@a?ssl_cert_reqs=none", True),
        ("rediss+sentinel://:s3cret@a/routes", False),
        ("rediss+cluster://:s3cret@a", False),
        ("redis+sentinel://a/routes", False),
        ("redis://:s3cret@127.0.0.1", False),
    ],
)
def test_a_password_goes_nowhere_without_tls(url: str, refused: bool) -> None:
    """Also not to the servers that Sentinels or a cluster name, unless the network is said to be trusted."""
    if refused:
        with pytest.raises(ValueError, match=r"without verified TLS; use a rediss\+") as error:
            check_redis_url(url)
        assert "s3cret" not in str(error.value)
    check_redis_url(url, allow_password_without_tls=True)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("rediss://a?ssl_cert_reqs=none", True),
        ("rediss://a?ssl_cert_reqs=optional", True),
        ("rediss://a?ssl_check_hostname=false", True),
        ("rediss+sentinel://127.0.0.1/routes?ssl_cert_reqs=none", True),
        ("rediss+cluster://a?ssl_cert_reqs=none", True),
        ("rediss://127.0.0.1?ssl_cert_reqs=none", False),
        ("rediss://a", False),
        ("redis://a", False),
    ],
)
def test_tls_that_verifies_nothing_is_refused_without_a_password_too(url: str, refused: bool) -> None:
    """Whoever answers says what serves. This machine is trusted, and a network of which that is said."""
    if refused:
        with pytest.raises(ValueError, match="turns off that TLS verifies the server"):
            check_redis_url(url)
    else:
        check_redis_url(url)
    check_redis_url(url, allow_password_without_tls=True)


def test_the_login_of_sentinels_needs_sentinels() -> None:
    """A setting that would go nowhere is refused."""
    with pytest.raises((SettingsError, ValueError), match=r"write redis\+sentinel://"):
        Settings.model_validate({"redis": {"url": "redis://a", "sentinel_password": "x"}})
