"""`holdfast doctor`: each thing that can be wrong is found, with what to do about it."""

import asyncio
import contextlib
import email.utils
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack
from holdfast_schemas import TOPICS

pytestmark = pytest.mark.real_kafka

AWAY = "127.0.0.1:1"


@contextlib.contextmanager
def alertmanager(*, ahead=0.0, status=200):
    """What doctor asks of an Alertmanager, on a machine whose clock is that many seconds ahead."""

    class Answer(BaseHTTPRequestHandler):
        def answer(self):
            self.send_response_only(status)
            self.send_header("Date", email.utils.formatdate(time.time() + ahead, usegmt=True))
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815  names that http.server calls

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    # What other tests left there is a newer route than this Kafka knows of: a finding.
    redis_server.flush()
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        yield stack


async def ask(stack, **environment):
    """The exit code, and what was found, by area: `[health, finding, advice]`."""
    said = await holdfast(stack.folder / "base.toml", "doctor", "--json", **environment)
    areas = {}
    for one in said.facts:
        assert bool(one["advice"]) == (one["health"] != "ok"), one
        areas.setdefault(one["area"], []).append((one["health"], one["finding"], one["advice"]))
    return said.code, areas


def found(areas, area, health, *words):
    """There is such a finding, and its advice is with it."""
    for had, finding, advice in areas[area]:
        if had == health and all(word in f"{finding}. {advice}" for word in words):
            return True
    raise AssertionError(f"{health} {words} not among {areas[area]}")


async def test_a_policy_that_the_guards_refuse(stack):
    """Its files load here: what tells is that the guards judge by another policy than they say."""
    long_ago = time.time() - 600

    def write(rows):
        floors = stack.folder / "policies" / "floors.csv"
        fresh = floors.with_suffix(".new")
        fresh.write_text("entity_id,min\n" + "".join(f"SKU-{n},1\n" for n in range(rows)))
        # Copied with its time, as rsync and kubectl do: what is older than the guard's last verdict is in force or not.
        os.utime(fresh, (long_ago, long_ago))
        fresh.rename(floors)

    table = '[[checks]]\nname = "table"\nkind = "range"\ntable = "floors.csv"\nunlisted = "pass"\n'
    write(100)
    stack.write_policy("pricing", POLICY + table)
    os.utime(stack.folder / "policies" / "pricing.toml", (long_ago, long_ago))
    guard, _ = await stack.start("guard", "switch")

    async def judge():
        before = len(stack.seen["approved"]) + len(stack.seen["blocked"])
        await stack.send([stack.prediction("pricing", "v1", f"SKU-{n}", 100.0) for n in range(5)])
        await stack.until(
            lambda: len(stack.seen["approved"]) + len(stack.seen["blocked"]) >= before + 5, "they are judged"
        )

    await judge()
    in_force = re.search("pricing@[0-9a-f]+", str((await ask(stack))[1]["policies"]))[0]
    write(1)
    await stack.until(lambda: guard.told("new policy refused, the old one stays"), "the guard refuses it")
    await judge()
    _, areas = await ask(stack)
    found(areas, "policies", "warning", f"guards judge pricing by {in_force}, and the files in", "max_table_shrink")
    (stack.folder / "policies" / "pricing.toml").write_text("nonsense")
    _, areas = await ask(stack)
    found(areas, "policies", "failed", "pricing.toml", "services that run keep the policies they have")
    found(areas, "policies", "ok", f"the guards judge by {in_force}")


async def test_a_healthy_installation(stack):
    """Exit code 0; that each topic has one replica is worth a look, and no more."""
    guard, _ = await stack.start("guard", "switch")
    await stack.until(lambda: guard.metric("holdfast_ready", service="releases") == 1, "it answers requests")
    await stack.command("pricing", "promote", "v1")
    with alertmanager() as url:
        code, areas = await ask(stack, HOLDFAST_NOTIFY__ALERTMANAGER_URLS=f'["{url}"]')
    assert [one for all_of in areas.values() for one in all_of if one[0] == "failed"] == []
    assert code == 0
    found(areas, "guard", "ok", "1 in the group")
    found(areas, "releases", "ok", "and no request waits")
    found(areas, "switch", "ok", "1 in the group")
    found(areas, "routes", "ok", "1 model with a route")
    found(areas, "redis", "ok", "agrees with Kafka on 1 route")
    found(areas, "topics", "warning", "with one replica", "replication_factor = 3")
    await stack.command("pricing", "hold")
    _, areas = await ask(stack)
    found(areas, "routes", "warning", "held, so that everything is blocked: pricing", "holdfast route show")


async def test_nothing_runs_and_nothing_answers(stack):
    """No guard, no switch, no Redis, no Alertmanager: all of it is told at once, and exit code 1."""
    code, areas = await ask(
        stack,
        HOLDFAST_REDIS__URL=f"redis://:hunter2@{AWAY}/0",
        HOLDFAST_NOTIFY__ALERTMANAGER_URLS=f'["http://{AWAY}"]',
    )
    assert code == 1
    found(areas, "guard", "failed", "none runs in the group", "Start one: holdfast guard")
    found(areas, "releases", "warning", "no guard answers requests for releases", "Start a guard")
    found(areas, "switch", "failed", "none runs in the group", "Start one: holdfast switch")
    found(areas, "redis", "failed", "cannot be reached", "serving code keeps its last answer")
    found(areas, "alertmanager", "failed", f"http://{AWAY} does not answer", "Nobody is paged")
    assert "hunter2" not in str(areas)


async def test_no_broker(stack):
    """The rest is looked at all the same."""
    code, areas = await ask(stack, HOLDFAST_KAFKA__BOOTSTRAP_SERVERS=AWAY)
    assert code == 1
    found(areas, "kafka", "failed", f"No Kafka broker answers at {AWAY}", "Start it, or set kafka.bootstrap_servers")
    found(areas, "redis", "ok", "answers")
    found(areas, "policies", "ok", "pricing@")


async def test_topics_that_are_not_as_they_must_be(kafka, redis_server, tmp_path):
    """Missing, of too few partitions, or with settings of their own: each is named."""
    async with Stack(kafka, redis_server.url, {}, folder=tmp_path, create=False) as stack:
        names = {role: stack.topic(role) for role in TOPICS}
        for role, topic in TOPICS.items():
            if role not in {"audit", "malformed", "approved", "blocked"}:
                await kafka.create_topic(names[role], 2, topic.settings)
        await kafka.create_topic(names["approved"], 1, TOPICS["approved"].settings)
        await kafka.create_topic(names["blocked"], 2, {**TOPICS["blocked"].settings, "max.message.bytes": "1000000"})
        code, areas = await ask(stack)
    assert code == 1
    found(
        areas, "topics", "failed", f"missing, or not to be seen by this login: {names['malformed']}, {names['audit']}"
    )
    found(areas, "topics", "failed", f"{names['approved']} has 1 partitions: {names['predictions']} has 2", "Give")
    found(areas, "topics", "failed", f"{names['blocked']} has max.message.bytes=1000000", "topics create --fix")
    found(areas, "policies", "warning", "there is none in", "every prediction is blocked")


async def test_a_guard_that_is_behind(stack):
    """More than ten thousand predictions wait."""
    await stack.send([stack.prediction("pricing", "v1", f"SKU-{n}", 20.0) for n in range(10_001)])
    _, areas = await ask(stack)
    found(areas, "guard", "warning", "10,001 records of", "run more of them, up to 2")


async def test_a_model_that_has_many_fenced_versions(stack):
    """Before there are so many that the model is held."""
    await stack.start("switch")
    await asyncio.gather(*(stack.command("pricing", "fence", f"v{number}") for number in range(301)))
    _, areas = await ask(stack)
    found(areas, "routes", "warning", "301 versions of pricing are fenced; at 400", "holdfast route unfence pricing")


async def test_redis_behind_and_ahead_of_kafka(stack):
    """Behind: a switch will fix it. Ahead: no switch can, since the epochs of Kafka have started again."""
    (switch,) = await stack.start("switch")
    await stack.command("pricing", "promote", "v1")
    await stack.until(lambda: stack.route("pricing"))
    switch.stop()
    await stack.redis.hset("holdfast:{pricing}:state", "epoch", "99")
    code, areas = await ask(stack)
    found(areas, "redis", "failed", "newer route than Kafka for pricing", "find out who else can write to Redis")
    assert code == 1
    await stack.redis.delete("holdfast:{pricing}:state")
    _, areas = await ask(stack)
    found(areas, "redis", "warning", "is behind Kafka for pricing", "A running switch asserts them again")
    await stack.redis.delete("holdfast:{pricing}:route")


async def test_a_policy_with_a_mistake(stack):
    """File and key are named."""
    stack.write_policy("pricing", POLICY.replace("min = 10.0", "mim = 10.0"))
    code, areas = await ask(stack)
    assert code == 1
    found(areas, "policies", "failed", "pricing.toml", "mim", "Correct it")


@pytest.mark.parametrize(("ahead", "side"), [(-3600.0, "behind"), (3600.0, "ahead of")])
async def test_clocks_apart(stack, ahead, side):
    """An hour between this machine and another's."""
    with alertmanager(ahead=ahead) as url:
        _, areas = await ask(stack, HOLDFAST_NOTIFY__ALERTMANAGER_URLS=f'["{url}"]')
    found(areas, "alertmanager", "warning", "its clock is", f" s {side} this machine's", "Set both by NTP")


async def test_an_alertmanager_that_is_not_ready(stack):
    """It answers, but with an error."""
    with alertmanager(status=503) as url:
        code, areas = await ask(stack, HOLDFAST_NOTIFY__ALERTMANAGER_URLS=f'["{url}", "http://{AWAY}"]')
    assert code == 1
    found(areas, "alertmanager", "failed", "503", "Nobody is paged")
    found(areas, "alertmanager", "failed", "does not answer")


async def test_what_cannot_be_decoded_is_named_with_its_reasons(stack):
    """A share of it is worth a look; nearly everything means that consumers get nothing."""
    (_, areas) = await ask(stack)
    found(areas, "malformed", "ok", "every record of the last 15m could be decoded")
    await stack.start("guard")
    good = [stack.prediction("pricing", "v1", f"SKU-{n}", 100.0) for n in range(30)]
    await stack.send([*good, stack.prediction("pricing", "v1", "SKU-1", "x"), b"{", b"{"], key=b"k")
    await stack.until(lambda: len(stack.seen["malformed"]) == 3, "three are malformed")
    (_, areas) = await ask(stack)
    found(areas, "malformed", "warning", "3 of about 33 records", "2 not_json", "expected a number for `value`")
    await stack.send([b"{"] * 1000, key=b"k")
    await stack.until(lambda: len(stack.seen["malformed"]) == 1003, "all are malformed")
    (code, areas) = await ask(stack)
    found(areas, "malformed", "failed", "1,003 of about", "holdfast check --try TOPIC")
    assert code == 1
