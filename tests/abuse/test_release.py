"""What an operator, or somebody who can write one topic too many, can do with a release: nothing that guards would not.

Each test is an input that once released, or hid, what nobody had judged.
"""

import asyncio
import json
import signal
import sys
import time

import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, body, headers
from holdfast.verify import service as audit
from holdfast.verify.service import audit_once
from holdfast_schemas import ReleaseCommand, WaitingPrediction

pytestmark = pytest.mark.real_kafka

MODEL = "pricing"
STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    async with Stack(kafka, redis_server.url, {MODEL: STEADY}, folder=tmp_path, partitions=2) as stack:
        await stack.start("guard")
        yield stack


async def block(stack, *values, **options):
    """Have a guard block these values; the sources, in order."""
    before = len(stack.seen["blocked"])
    events = [stack.prediction(MODEL, "v1", f"SKU-{before + n}", value) for n, value in enumerate(values)]
    places = await stack.send(events, **options)
    await stack.until(lambda: len(stack.seen["blocked"]) == before + len(values), "all are blocked")
    return [f"{stack.topic('predictions')}/{partition}/{offset}" for partition, offset in places]


async def release(config, *arguments):
    return await holdfast(config, "blocked", "release", MODEL, "-r", "a sale", "--actor", "mallory", *arguments)


async def released(stack):
    """The sources of what is released by now, each as often as it is."""
    await stack.settled()
    found = [headers(r) for r in stack.seen["approved"]]
    return sorted(h["holdfast-source"].decode() for h in found if h["holdfast-verdict"] == b"released")


async def violations(stack):
    found = await audit_once(stack.settings, None)
    return {kind: count for kind, count in found.facts()["violations"].items() if count}


async def test_a_release_is_judged_by_the_guards_and_not_by_who_asks(stack):
    """An own folder with mode = "off" and an own age of ten years: the first two still fail, the third is too old.

    A broken audit record keeps nothing else back for hours.
    """
    own = stack.folder / "own"
    own.mkdir()
    (own / f"{MODEL}.toml").write_text(f'model = "{MODEL}"\nmode = "off"\n{STEADY}')
    changes = {"policies": str(own), "release": {"max_age": "3650d"}, "guard": {"release_max_age": "3650d"}}
    config = stack.write_config("mallory", changes)
    young = await block(stack, 0.01, 0.02)
    (old,) = await block(stack, 0.03, timestamp_ms=int((time.time() - 7200) * 1000))
    await stack.send([b'{"action": "release", "outcome": ', b"\xff\xfe"], role="audit", key=b"x")

    said = await release(config, "--since", "3h", "--json")
    answers = {p["source"]: p["answer"] for p in said.facts["predictions"]}
    assert (said.code, answers) == (1, {**dict.fromkeys(young, "still_fails"), old: "too_old"})
    assert {f["check"] for p in said.facts["predictions"] for f in p["findings"]} == {"price_floor"}
    assert await released(stack) == []
    forced = await release(config, "--force", "--superseded", "--since", "3h", "--json")
    assert forced.facts["counts"] == {"released": 2, "too_old": 1}
    assert await released(stack) == sorted(young)
    assert await violations(stack) == {}


async def test_a_forged_release_is_found(stack, monkeypatch):
    """What was never predicted, with a person's name on it; and another value in the name of a real release."""
    monkeypatch.setattr(audit, "PATIENCE", 1.0)
    (source,) = await block(stack, 0.01)
    assert (await release(stack.folder / "base.toml", "--force")).code == 0
    assert await violations(stack) == {}
    (real,) = [r for r in stack.seen["approved"] if headers(r)["holdfast-verdict"] == b"released"]
    place = source.rpartition("/")[0]

    async def forge(value, **changes):
        given = {**headers(real), **{name.replace("_", "-"): text.encode() for name, text in changes.items()}}
        event = json.dumps(stack.prediction(MODEL, "v1", "SKU-9", value)).encode()
        await stack.send([event], role="approved", key=b"SKU-9", partition=real.partition, headers=[*given.items()])

    await forge(0.01, holdfast_source=f"{place}/100000", holdfast_released_by="the-cfo")
    await forge(0.01, holdfast_released_by="the-cfo", holdfast_source="elsewhere/0/0")
    assert await violations(stack) == {"unchecked": 2}
    await forge(9000.0)
    found = await violations(stack)
    # That its contents are others is told where the prediction was read before.
    assert (found["unchecked"], found["repeated"]) == (2, 1)
    said = await holdfast(stack.folder / "base.toml", "audit", "--once")
    assert (said.code, "no audit record names it" in said.flat()) == (1, True)


async def test_a_request_that_names_something_else_releases_nothing(stack):
    """An approved output, one that was never predicted, another's, one of another partition, a record of no guard."""
    (source,) = await block(stack, 0.01, partition=0)
    (real,) = stack.seen["blocked"]
    place = source.rpartition("/")[0]
    forged = [("holdfast-model", MODEL.encode()), ("holdfast-model-version", b"v1"), ("holdfast-verdict", b"blocked")]
    other = f"{stack.topic('predictions')}/1/0"
    ((_, offset),) = await stack.send(
        [real.value], role="blocked", key=b"SKU-1", partition=0, headers=[*forged, ("holdfast-source", other.encode())]
    )
    command = ReleaseCommand(
        command_id="c-1",
        action="release",
        model=MODEL,
        predictions=(
            WaitingPrediction(source=f"{place}/7", offset=real.offset),
            WaitingPrediction(source=source, offset=real.offset + 1000),
            WaitingPrediction(source=other, offset=offset),
        ),
        actor="mallory",
        reason="x",
        force=True,
        superseded=True,
    )
    named = (WaitingPrediction(source=source, offset=real.offset),)
    others = [
        command.model_copy(update={"command_id": "c-2", "model": "other", "predictions": named}),
        command.model_copy(update={"command_id": "c-3", "action": "retry", "predictions": named}),
        command.model_copy(update={"command_id": "c-4", "actor": " Holdfast", "predictions": named}),
    ]
    for one in (command, *others):
        await stack.send([one.to_json()], role="releases", key=b"x", partition=0)
    # In the partition of others.
    elsewhere = command.model_copy(update={"command_id": "c-5", "predictions": named})
    await stack.send([elsewhere.to_json()], role="releases", key=b"x", partition=1)

    def answers():
        found = [body(record) for record in stack.seen["audit"]]
        return {one["command_id"]: one for one in found if one.get("command_id")}

    await stack.until(lambda: len(answers()) == 5, "all are answered")
    assert {one["outcome"] for one in answers().values()} == {"refused"}
    assert {a["answer"] for one in answers().values() for a in one.get("answers", [])} == {"not_found"}
    assert "names automatic decisions" in answers()["c-4"]["detail"]
    assert await released(stack) == []


SLOW = """
import asyncio, os, signal, sys
from aiokafka import AIOKafkaProducer
from holdfast.cli import main as cli

commit, count = AIOKafkaProducer.commit_transaction, 0

async def die_in_the_second(self):
    global count
    if "-releases-" in self._txn_manager.transactional_id:
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return await commit(self)

AIOKafkaProducer.commit_transaction = die_in_the_second
cli.main()
"""
"""A guard that is killed in the transaction of its second command."""


async def test_a_killed_guard_leaves_the_rest_to_another_and_nothing_is_released_twice(kafka, redis_server, tmp_path):
    """Two guards share the partitions of the requests, each dies in its second transaction, a third finishes.

    The person who asked waits through it, and reads that everything was released.
    """
    settings = {"kafka": {"bootstrap_servers": kafka.bootstrap, "session_timeout": "6s"}}
    async with Stack(
        kafka, redis_server.url, {MODEL: STEADY}, folder=tmp_path, partitions=2, settings=settings
    ) as stack:
        program = (sys.executable, "-c", SLOW)
        doomed = [*await stack.start("guard", program=program), *await stack.start("guard", program=program)]
        sent = await block(stack, *[2.0] * 2500)
        asking = asyncio.create_task(release(stack.folder / "base.toml", "--force", "--json", "--wait", "1m"))
        await stack.until(lambda: any(not guard.running for guard in doomed), "one guard is killed")
        (guard,) = await stack.start("guard", ready=False)
        said = await asking
        assert (said.code, said.facts["counts"]) == (0, {"released": len(sent)})
        assert await released(stack) == sorted(sent)
        audited = [a["source"] for a in stack.audits(MODEL) if "source" in a]
        assert sorted(audited) == sorted(sent)
        assert {guard.process.returncode for guard in doomed if not guard.running} == {-signal.SIGKILL}
        await stack.ready(guard)
        assert await violations(stack) == {}
