"""A version goes bad, people step in, and servers fail: the switch, the guards and Redis, seen from outside."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from e2e.stack import POLICY, Stack, headers

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="module")]

NOT_IN_REDIS = {"model", "fenced", "promoted"}

CRITICAL = POLICY.replace('kind = "range"', 'kind = "range"\nseverity = "critical"')
FLAPPING = POLICY.replace("max_switches = 3", "max_switches = 1")
FRESH = POLICY.replace(
    "[breaker]", '[[checks]]\nname = "fresh"\nkind = "freshness"\nmax_age = "2s"\nunknown = "pass"\n\n[breaker]'
)
MODELS = {
    "fresh": FRESH,
    **dict.fromkeys(("trip", "witnesses", "held", "people", "expiry", "odd", "killed", "redis"), POLICY),
    "critical": CRITICAL,
    "flap": FLAPPING,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    """One guard and one switch for all tests of this file; each has a model of its own."""
    folder = tmp_path_factory.mktemp("switching")
    async with Stack(kafka, redis_server.url, MODELS, folder=folder) as stack:
        await stack.start("guard", "switch")
        yield stack


async def outputs(stack, model, version, value, count=40, entities=20):
    """Send outputs and wait for their verdicts; how many were approved."""
    some = [stack.prediction(model, version, f"E-{n % entities}", value) for n in range(count)]
    await stack.send(some)
    ids = {one["prediction_id"] for one in some}
    await stack.until(lambda: ids <= set(stack.verdicts()), f"verdicts on {version}")
    return sum(stack.verdicts()[one] == ["approved"] for one in ids)


async def serve_well(stack, model, version):
    """Promote a version and let it earn `good`."""
    assert (await stack.command(model, "promote", version))["outcome"] == "applied"

    def good():
        return [a for a in stack.audits(model) if (a["action"], a["version"]) == ("earned_good", version)]

    while not good():
        assert await outputs(stack, model, version, 100.0, count=30) == 30
    return good()[0]


async def fenced(stack, model, version):
    return await stack.until(lambda: version in stack.route(model).get("fenced", ()), f"{version} is fenced")


async def mirrored(stack, model, redis=None):
    """Wait until Redis says exactly what Kafka says."""
    redis = redis or stack.redis
    end = asyncio.get_running_loop().time() + 60
    while True:
        route = stack.route(model)
        want = {k: str(v) for k, v in route.items() if k not in NOT_IN_REDIS}
        try:
            said = await redis.get(f"holdfast:{{{model}}}:route"), await redis.hgetall(f"holdfast:{{{model}}}:state")
        except OSError as error:
            said = error
        if said == (route.get("version"), want):
            return route
        assert asyncio.get_running_loop().time() < end, (said, route)
        await asyncio.sleep(0.05)


async def test_a_bad_version_is_left_for_the_last_good_one(stack):
    """The breaker trips; fence, route, Redis, channel, incident and audit all say so, and late outputs are blocked."""
    await serve_well(stack, "trip", "v1")
    assert (await stack.command("trip", "promote", "v2"))["outcome"] == "applied"
    channel = stack.redis.pubsub()
    await channel.subscribe("holdfast:routes")
    before = stack.route("trip")["epoch"]
    assert await outputs(stack, "trip", "v2", 1.0) == 0
    await fenced(stack, "trip", "v2")
    route = await mirrored(stack, "trip")
    assert (route["version"], route["state"], route["fenced"]) == ("v1", "auto", ["v2"])
    assert route["epoch"] == before + 1
    async with asyncio.timeout(60):
        async for message in channel.listen():
            if message["type"] == "message" and (said := json.loads(message["data"]))["model"] == "trip":
                break
    await channel.aclose()
    assert said == {key: value for key, value in route.items() if key not in NOT_IN_REDIS - {"model"}}

    (trip,) = [a for a in stack.audits("trip") if a["action"] == "trip"]
    assert (trip["version"], trip["actor"], trip["outcome"], trip["epoch"]) == (
        "v2",
        "holdfast",
        "applied",
        route["epoch"],
    )
    opened = stack.incidents("trip")[0]
    assert opened["incident_id"] == trip["incident_id"] == route["incident_id"]
    assert (opened["dedup_key"], opened["status"], opened["severity"]) == ("holdfast/trip/v2", "triggered", "critical")
    assert (opened["action"], opened["routed_to"], opened["bad_version"]) == ("switched", "v1", "v2")
    assert opened["blocked_by_check"]["price_floor"] == opened["blocked"] > 0
    assert opened["policy"].startswith("trip@")
    assert 0 < len(opened["samples"]) <= 5
    for sample in opened["samples"]:
        assert sample["prediction"]["value"] == 1.0
        assert sample["findings"][0]["check"] == "price_floor"

    # Sane or not, however late: the version is not trusted any more.
    assert await outputs(stack, "trip", "v2", 100.0) == 0
    late = [r for r in stack.seen["blocked"] if headers(r)["holdfast-model"] == b"trip"][-1]
    assert json.loads(headers(late)["holdfast-findings"])[0]["check"] == "fenced"
    assert await outputs(stack, "trip", "v1", 100.0) == 40
    await stack.until(lambda: stack.incidents("trip")[-1]["blocked"] == 80, "the incident counts the late ones")
    assert {i["incident_id"] for i in stack.incidents("trip")} == {opened["incident_id"]}
    assert len([a for a in stack.audits("trip") if a["action"] == "trip"]) == 1


async def test_one_critical_failure_trips(stack):
    """No window and no witnesses: one is enough."""
    await serve_well(stack, "critical", "v1")
    await stack.command("critical", "promote", "v2")
    await outputs(stack, "critical", "v2", 1.0, count=1)
    await fenced(stack, "critical", "v2")
    assert stack.route("critical")["version"] == "v1"


async def test_too_few_witnesses_do_not_trip(stack):
    """Four entities retried often, or five predictions in all, are blocked; the version stays."""
    await serve_well(stack, "witnesses", "v1")
    await stack.command("witnesses", "promote", "v2")
    assert await outputs(stack, "witnesses", "v2", 1.0, count=100, entities=4) == 0
    assert await outputs(stack, "witnesses", "v3", 1.0, count=10) == 0
    # A command is behind the tallies in the order of control: when it is answered, they are weighed.
    await stack.settled()
    await stack.command("witnesses", "acknowledge", "v2")
    assert stack.route("witnesses")["version"] == "v2"
    assert stack.route("witnesses")["fenced"] == []
    # The fifth witness tips it.
    assert await outputs(stack, "witnesses", "v2", 1.0, count=5, entities=5) == 0
    await fenced(stack, "witnesses", "v2")


async def test_held_when_no_good_version_is_left(stack):
    """Nothing may serve: the string in Redis is gone, and everything is blocked until a person decides."""
    await stack.command("held", "promote", "v1")
    await outputs(stack, "held", "v1", 1.0)
    await fenced(stack, "held", "v1")
    route = await mirrored(stack, "held")
    assert route["state"] == "held"
    assert (await stack.redis_route("held"))[0] is None
    assert await outputs(stack, "held", "v9", 100.0) == 0
    assert stack.incidents("held")[0]["action"] == "held"
    assert (await stack.command("held", "promote", "v9"))["outcome"] == "applied"
    assert await outputs(stack, "held", "v9", 100.0) == 40


async def test_flapping_is_held(stack):
    """The second automatic switch within the hour does not happen; the route is held instead."""
    for version in ("v1", "v2"):
        await serve_well(stack, "flap", version)
    await outputs(stack, "flap", "v2", 1.0, count=300)
    await fenced(stack, "flap", "v2")
    assert stack.route("flap")["version"] == "v1"
    await serve_well(stack, "flap", "v3")
    await outputs(stack, "flap", "v3", 1.0, count=300)
    await fenced(stack, "flap", "v3")
    # The route and the incident come in one transaction, and are read from two topics.
    await stack.settled()
    assert stack.route("flap")["state"] == "held"
    assert stack.incidents("flap")[-1]["action"] == "held"


async def test_people_step_in(stack):
    """Each command does what its name says, is audited with who and why, and raises the epoch."""
    for version in ("v1", "v2"):
        await serve_well(stack, "people", version)
    steps = [
        ("pin", "v1", "applied", ("v1", "pinned", [])),
        ("promote", "v2", "refused", ("v1", "pinned", [])),
        ("unpin", None, "applied", ("v1", "auto", [])),
        ("unpin", None, "refused", ("v1", "auto", [])),
        ("hold", None, "applied", (None, "held", [])),
        ("resume", None, "applied", ("v1", "auto", [])),
        ("promote", "v2", "applied", ("v2", "auto", [])),
        ("rollback", None, "applied", ("v1", "auto", ["v2"])),
        ("promote", "v2", "refused", ("v1", "auto", ["v2"])),
        ("unfence", "v2", "applied", ("v1", "auto", [])),
        ("fence", "v2", "applied", ("v1", "auto", ["v2"])),
        ("acknowledge", "v2", "applied", ("v1", "auto", ["v2"])),
        ("resolve", "v2", "applied", ("v1", "auto", ["v2"])),
        ("resolve", "v2", "refused", ("v1", "auto", ["v2"])),
    ]
    for action, version, outcome, route in steps:
        audit = await stack.command("people", action, version, actor="ann", reason=f"because {action}")
        assert (audit["outcome"], audit["actor"], audit["reason"]) == (outcome, "ann", f"because {action}"), audit
        await stack.until(lambda audit=audit: stack.route("people")["epoch"] == audit["epoch"])
        now = stack.route("people")
        assert (now.get("version"), now["state"], now["fenced"]) == route, audit
    epochs = [route["epoch"] for route in stack.routes("people")]
    assert epochs == list(range(1, len(epochs) + 1))
    assert [i["status"] for i in stack.incidents("people")][-3:] == ["triggered", "acknowledged", "resolved"]
    await mirrored(stack, "people")


async def test_pins_and_holds_end_by_themselves(stack):
    """At `expires_at` the route is auto again, and the audit says why."""
    await serve_well(stack, "expiry", "v1")
    for action, version in (("pin", "v1"), ("hold", None)):
        soon = datetime.now(UTC) + timedelta(seconds=1.5)
        audit = await stack.command("expiry", action, version, expires_at=soon.isoformat().replace("+00:00", "Z"))
        assert audit["outcome"] == "applied", audit
        await stack.until(lambda audit=audit: stack.route("expiry")["epoch"] > audit["epoch"], f"the {action} ends")
        assert (stack.route("expiry")["version"], stack.route("expiry")["state"]) == ("v1", "auto")
        assert stack.audits("expiry")[-1]["action"] == "expired"


async def test_what_is_no_command_is_put_aside(stack):
    """Not JSON, an unknown action, no reason, or the wrong key: malformed with the reason, and nothing stops."""
    bad = [
        (b"{", b"odd"),
        (b'{"type":"command","command_id":"c","model":"odd","action":"explode","actor":"a","reason":"b"}', b"odd"),
        (b'{"type":"command","command_id":"c","model":"odd","action":"hold","actor":"a","reason":""}', b"odd"),
        (b'{"type":"command","command_id":"c","model":"odd","action":"hold","actor":"a","reason":"b"}', b"trip"),
        (None, b"odd"),
    ]
    for value, key in bad:
        await stack.send([value], role="control", key=key)
    await stack.until(lambda: [r.value for r in stack.seen["malformed"]] == [value for value, _ in bad])
    assert all(headers(r)["holdfast-error"] and headers(r)["holdfast-source"] for r in stack.seen["malformed"])
    assert (await stack.command("odd", "hold"))["outcome"] == "applied"


@pytest.mark.parametrize(("key", "header"), [(b"k" * 4_000_000, b""), (b"odd", b"h" * 4_000_000)])
async def test_of_a_command_that_no_topic_takes_with_a_reason_the_beginning_is_put_aside(stack, key, header):
    before = len(stack.seen["malformed"])
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap, max_request_size=16_000_000)
    async with producer:
        await producer.send_and_wait(stack.topic("control"), b"{" * 190_000, key=key, headers=[("h", header)])
    await stack.until(lambda: len(stack.seen["malformed"]) > before, "it is in the malformed topic")
    out = stack.seen["malformed"][-1]
    assert (len(out.key), len(out.value), len(headers(out)["holdfast-error"]) > 0) == (
        min(len(key), 2**18),
        190_000,
        True,
    )
    assert (await stack.command("odd", "hold"))["outcome"] == "applied"


async def test_a_command_that_comes_twice_is_carried_out_once(stack):
    """The second time changes nothing and is answered with the first outcome."""
    held = stack.route("odd").get("epoch", 0)
    one = await stack.command("odd", "fence", "v7", command_id="twice")
    await stack.send([{"type": "command", "command_id": "twice", "model": "odd", "action": "fence", "version": "v7",
                       "actor": "tester", "reason": "a test"}], role="control")  # fmt: skip
    await stack.until(lambda: [a["command_id"] for a in stack.audits("odd") if "command_id" in a].count("twice") == 2)
    assert [a for a in stack.audits("odd") if a.get("command_id") == "twice"] == [one, one]
    assert stack.route("odd")["epoch"] == held + 1
    assert len({i["incident_id"] for i in stack.incidents("odd") if i["bad_version"] == "v7"}) == 1


async def test_a_killed_switch_goes_on_where_it_was(stack):
    """kill -9 in the middle of an incident: the state is read back, no epoch falls, and no incident opens twice."""
    switch = next(worker for worker in stack.workers if worker.name == "switch")
    await serve_well(stack, "killed", "v1")
    await stack.command("killed", "promote", "v2")
    sending = asyncio.create_task(outputs(stack, "killed", "v2", 1.0, count=400))
    await asyncio.to_thread(switch.kill)
    assert await sending == 0
    await asyncio.to_thread(switch.start)
    await fenced(stack, "killed", "v2")
    assert await outputs(stack, "killed", "v2", 1.0) == 0
    await stack.until(lambda: stack.incidents("killed")[-1]["blocked"] == 440, "the incident counts on")
    assert len({i["incident_id"] for i in stack.incidents("killed")}) == 1
    for model in MODELS:
        epochs = [route["epoch"] for route in stack.routes(model)]
        assert epochs == sorted(set(epochs)), model
    assert switch.told("state restored")
    await mirrored(stack, "killed")
    # What it knew of commands is part of the state too.
    one = next(a for a in stack.audits("odd") if a.get("command_id") == "twice")
    assert (await stack.command("odd", "fence", "v7", command_id="twice")) == one


async def test_redis_fails_during_an_incident(stack, redis_server):
    """Flushed, overwritten with a stale copy, stopped and started empty: it heals, and guards obey Kafka throughout."""
    guard, switch = (next(w for w in stack.workers if w.name == name) for name in ("guard", "switch"))
    await serve_well(stack, "redis", "v1")
    stale = await mirrored(stack, "redis")
    await stack.command("redis", "promote", "v2")
    await outputs(stack, "redis", "v2", 1.0)
    await fenced(stack, "redis", "v2")
    await mirrored(stack, "redis")

    redis_server.flush()
    await mirrored(stack, "redis")
    await stack.until(lambda: switch.metric("holdfast_redis_repairs_total") >= 1, "the repair is counted")

    state = {k: str(v) for k, v in stale.items() if k not in NOT_IN_REDIS}
    await stack.redis.set("holdfast:{redis}:route", "v2")
    await stack.redis.delete("holdfast:{redis}:state")
    await stack.redis.hset("holdfast:{redis}:state", mapping={**state, "version": "v2"})
    assert (await mirrored(stack, "redis"))["version"] == "v1"

    await asyncio.to_thread(redis_server.stop)
    await stack.until(lambda: switch.told("routes are not mirrored to Redis; guards go on obeying Kafka"))
    assert switch.ready()
    assert guard.ready()
    assert await outputs(stack, "redis", "v2", 100.0) == 0
    held = await stack.command("redis", "hold")
    assert held["outcome"] == "applied"
    assert "Redis does not answer the switch, so serving code keeps the version that it knows" in held["detail"]
    assert await outputs(stack, "redis", "v1", 100.0) == 0
    assert (await stack.command("redis", "resume"))["outcome"] == "applied"
    assert await outputs(stack, "redis", "v1", 100.0) == 40
    await asyncio.to_thread(redis_server.start)
    async with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        assert (await mirrored(stack, "redis", redis))["version"] == "v1"
    await stack.until(lambda: switch.told("routes are mirrored to Redis"), "the switch has Redis again")
    assert "Redis" not in (await stack.command("redis", "promote", "v3"))["detail"]


async def test_a_decision_is_one_line_and_a_record_none(stack):
    """The logs hold a line for each decision, and do not grow with the traffic; no label carries an entity."""
    guard, switch = (next(w for w in stack.workers if w.name == name) for name in ("guard", "switch"))
    decided = switch.told("decision", model="trip")
    assert [line["action"] for line in decided] == [a["action"] for a in stack.audits("trip")]
    before = len(guard.lines())
    await outputs(stack, "trip", "v1", 1.0, count=1)
    assert await outputs(stack, "trip", "v1", 100.0, count=1000) == 1000
    assert len(guard.lines()) == before
    for worker in (guard, switch):
        text = worker.get("/metrics")[1]
        assert "E-1" not in text
        assert 'v2"' not in text


async def test_outputs_that_grew_old_while_no_guard_ran_do_not_fence_their_version(stack):
    """They are blocked for their age, and that is nobody's fault; what was old when it was sent counts."""
    await serve_well(stack, "fresh", "v1")
    assert (await stack.command("fresh", "promote", "v2"))["outcome"] == "applied"
    (guard,) = (worker for worker in stack.workers if worker.name == "guard")
    await asyncio.to_thread(guard.stop)
    now = datetime.now(UTC).isoformat()
    some = [stack.prediction("fresh", "v2", f"E-{n % 20}", 100.0, predicted_at=now) for n in range(200)]
    await stack.send(some)
    await asyncio.sleep(3)
    await asyncio.to_thread(guard.start)
    await stack.ready(guard)
    ids = {one["prediction_id"] for one in some}
    await stack.until(lambda: ids <= set(stack.verdicts()), "verdicts on what waited")
    assert {v for one in ids for v in stack.verdicts()[one]} == {"blocked"}
    # Commands come after the tallies before them.
    await stack.command("fresh", "pin")
    assert stack.route("fresh")["version"] == "v2"
    assert "v2" not in stack.route("fresh").get("fenced", ())
    late = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    await stack.send([one | {"prediction_id": f"late-{n}", "predicted_at": late} for n, one in enumerate(some)])
    await fenced(stack, "fresh", "v2")
