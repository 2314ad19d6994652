"""Releasing blocked predictions: a guard judges them again, in somebody's name, once at most, and never too late."""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, body, headers
from holdfast import release as releasing
from holdfast_schemas import MAX_RELEASES, TOPICS, AuditRecord, Outcome

pytestmark = pytest.mark.real_kafka

MODEL = "pricing"
JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\ndown = 0.5\nup = 3.0\n'
TODAY = POLICY.replace("min = 10.0", "min = 1.0")
"""A lower floor: what cost 1 to 10 was blocked, and passes today."""


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    async with Stack(kafka, redis_server.url, {MODEL: POLICY + JUMP}, folder=tmp_path, partitions=2) as stack:
        yield stack


async def block(stack, *values, version="v1", **options):
    """Have a guard block these values, each of an entity of its own; the sources, in order."""
    if not stack.workers:
        await stack.start("guard")
    before = len(stack.seen["blocked"])
    events = [stack.prediction(MODEL, version, f"SKU-{before + n}", value) for n, value in enumerate(values)]
    places = await stack.send(events, headers=[("trace", b"t-1")], **options)
    await stack.until(lambda: len(stack.seen["blocked"]) == before + len(values), "all are blocked")
    return [f"{stack.topic('predictions')}/{partition}/{offset}" for partition, offset in places]


async def takes_up(stack, policy):
    """Write the policy and wait until the guard has it."""
    guard = next(worker for worker in stack.workers if worker.name == "guard")
    before = len(guard.told("policies changed"))
    stack.write_policy(MODEL, policy)
    await stack.until(lambda: len(guard.told("policies changed")) > before, "the policy is taken up")


async def release(stack, *arguments):
    config = stack.folder / "base.toml"
    return await holdfast(config, "blocked", "release", MODEL, "-r", "a real sale", "--actor", "alice", *arguments)


def released(stack):
    """The committed records with that verdict."""
    return [r for r in stack.seen["approved"] if headers(r)["holdfast-verdict"] == b"released"]


def sources(stack):
    return sorted(headers(r)["holdfast-source"].decode() for r in released(stack))


def audited(stack):
    """The audit records of released predictions, without those that answer whole commands."""
    return [audit for audit in stack.audits(MODEL) if "source" in audit]


async def ends(stack, *but):
    """Where every partition ends, the markers of transactions included; without the topics of these roles."""
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka.bootstrap)
    await consumer.start()
    try:
        names = {stack.topic(role) for role in but}
        return await consumer.end_offsets([tp for tp in stack._partitions() if tp.topic not in names])
    finally:
        await consumer.stop()


async def test_what_passes_todays_policy_is_released_once(stack):
    """Same partition, key, value, time and headers of the producer; actor and reason in headers and audit."""
    (source,) = await block(stack, 5.0)
    still = await release(stack)
    assert still.code == 1
    assert "value 5, expected 10 to " in still.flat()
    assert "1 still failing." in still.out
    assert released(stack) == []
    await takes_up(stack, TODAY)
    dry = await release(stack, "--dry-run", "--json")
    assert (dry.code, dry.facts["counts"]) == (0, {"would_be_released": 1})
    done = await release(stack)
    assert (done.code, done.out) == (0, "1 released.\n")
    await stack.settled()
    (record,) = released(stack)
    (was,) = stack.seen["blocked"]
    assert (record.partition, record.key, record.value, record.timestamp) == (
        was.partition,
        was.key,
        was.value,
        was.timestamp,
    )
    given = headers(record)
    assert given["trace"] == b"t-1"
    assert (given["holdfast-released-by"], given["holdfast-release-reason"]) == (b"alice", b"a real sale")
    assert (given["holdfast-source"].decode(), given["holdfast-model-version"]) == (source, b"v1")
    assert "holdfast-findings" not in given
    (audit,) = audited(stack)
    assert (audit["actor"], audit["reason"], audit["source"], audit["outcome"]) == (
        "alice",
        "a real sale",
        source,
        "applied",
    )
    again = await release(stack, "--force", "--superseded", "--json")
    assert (again.code, again.facts["counts"]) == (1, {"already_released": 1})
    await stack.settled()
    assert len(released(stack)) == 1
    answers = [a for a in stack.audits(MODEL) if "source" not in a]
    assert [(a["outcome"], [one["answer"] for one in a["answers"]]) for a in answers] == [
        ("refused", ["still_fails"]),
        ("applied", ["would_be_released"]),
        ("applied", ["released"]),
        ("refused", ["already_released"]),
    ]
    assert audit["command_id"] == answers[2]["command_id"]


async def test_force_releases_what_fails_and_says_so(stack):
    """Some of it by source; the findings are in the header and named in the audit."""
    first, second = await block(stack, 2.0, 3.0)
    forced = await release(stack, "--force", "--source", second)
    assert (forced.code, "1 released." in forced.out) == (0, True)
    await stack.settled()
    assert sources(stack) == [second]
    assert json.loads(headers(released(stack)[0])["holdfast-findings"])[0]["check"] == "price_floor"
    assert [a["detail"] for a in audited(stack)] == [
        f"the prediction at {second} was approved, although it fails price_floor"
    ]
    elsewhere = second.rpartition("/")[0] + "/999"
    named = await release(stack, "--force", "--source", second, "--source", elsewhere, "--dry-run", "--json")
    assert (named.code, {p["source"]: p["answer"] for p in named.facts["predictions"]}) == (
        1,
        {second: "already_released", elsewhere: "not_found"},
    )
    both = await release(stack, "--json")
    assert {p["source"]: p["answer"] for p in both.facts["predictions"]} == {
        first: "still_fails",
        second: "already_released",
    }


async def test_a_dry_run_releases_nothing(stack):
    """Only the question and its answer are written."""
    await block(stack, 2.0)
    before = await ends(stack, "releases", "audit")
    assert (await release(stack, "--force", "--dry-run")).out.endswith("1 would be released.\n")
    assert await ends(stack, "releases", "audit") == before
    await stack.settled()
    assert [audit["detail"] for audit in stack.audits(MODEL)] == ["dry run: 1 would be released"]


@pytest.mark.parametrize("hours", [-1.5, 2])
async def test_too_old_is_never_released(stack, hours):
    """Neither by force; and a time in the future is no proof of youth."""
    await stack.start("guard")
    at = int((time.time() - hours * 3600) * 1000)
    wrapped = stack.prediction(MODEL, "v1", "SKU-1", 2.0)
    if hours < 0:
        # A broker refuses such a time, unless it is told otherwise: the blocked record is written by hand.
        found = [
            ("holdfast-verdict", b"blocked"),
            ("holdfast-model", MODEL.encode()),
            ("holdfast-model-version", b"v1"),
            ("holdfast-source", f"{stack.topic('predictions')}/0/0".encode()),
        ]
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
        await admin.start()
        future = {"message.timestamp.after.max.ms": str(10 * 3_600_000)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, stack.topic("blocked"), configs=future)])
        await admin.close()
        await stack.send([wrapped], role="blocked", partition=0, headers=found, timestamp_ms=at)
    else:
        await stack.send([wrapped], timestamp_ms=at)
    await stack.until(lambda: stack.seen["blocked"])
    said = await release(stack, "--force", "--superseded", "--since", "3h", "--json")
    assert (said.code, said.facts["counts"]) == (1, {"too_old": 1})


async def test_an_older_output_does_not_overtake_a_newer_one(stack):
    """Downstream has a newer price for the entity: going back to the blocked one needs a word of its own."""
    await stack.start("guard")
    await stack.send([stack.prediction(MODEL, "v1", "SKU-1", 2.0)], timestamp_ms=int(time.time() * 1000) - 5000)
    await stack.send([stack.prediction(MODEL, "v1", "SKU-1", 20.0)])
    await stack.until(lambda: stack.seen["blocked"] and stack.seen["approved"])
    await takes_up(stack, TODAY)
    said = await release(stack)
    assert said.code == 1
    assert "1 superseded." in said.out
    assert (await release(stack, "--superseded")).code == 0


async def test_a_newer_output_is_found_however_many_came_since(kafka, redis_server, tmp_path):
    """As far back as the blocked one, not only as far as a guard remembers."""
    settings = {"guard": {"restore_records": 1}}
    async with Stack(kafka, redis_server.url, {MODEL: POLICY}, folder=tmp_path, settings=settings) as stack:
        await stack.start("guard")
        now = int(time.time() * 1000)
        await stack.send([stack.prediction(MODEL, "v1", "SKU-1", 2.0)], timestamp_ms=now - 5000, partition=0)
        await stack.send([stack.prediction(MODEL, "v1", "SKU-1", 20.0)], partition=0)
        await stack.send([stack.prediction(MODEL, "v1", f"SKU-{n}", 20.0) for n in range(2, 30)], partition=0)
        await stack.until(lambda: stack.seen["blocked"] and len(stack.seen["approved"]) == 29)
        await takes_up(stack, TODAY)
        assert "1 superseded." in (await release(stack)).out


def fence(version):
    return {
        "model": MODEL,
        "version": "v1",
        "epoch": 7,
        "state": "auto",
        "reason": f"{version} tripped",
        "actor": "holdfast",
        "since": datetime.now(UTC).isoformat(),
        "fenced": [version],
    }


async def test_a_fenced_version_needs_force(stack):
    """However good the value is; so does a held route."""
    (source,) = await block(stack, 5.0, version="v2")
    await takes_up(stack, TODAY)
    await stack.send([fence("v2")], role="routes")
    said = await release(stack)
    assert said.code == 1
    assert "model_version v2, expected fenced at epoch 7 (fenced)" in said.flat()
    assert (await release(stack, "--force")).code == 0
    await stack.settled()
    assert sources(stack) == [source]
    assert audited(stack)[0]["epoch"] == 7


async def test_a_record_that_is_there_twice_or_is_nobodys(stack):
    """Delivered twice: released once. What no guard wrote in the blocked topic is passed over."""
    await block(stack, 2.0)
    (record,) = stack.seen["blocked"]
    await stack.send([record.value], role="blocked", key=record.key, partition=record.partition, headers=record.headers)
    await stack.send([b"x"], role="blocked", key=b"k", headers=[("holdfast-findings", b"\xff"), ("trace", b"\xff")])
    said = await release(stack, "--force", "--json")
    assert said.facts["counts"] == {"released": 1, "already_released": 1}
    await stack.settled()
    assert len(released(stack)) == 1


async def test_records_without_a_key_do_not_overtake_one_another(stack):
    """Nobody can say that they are of the same entity."""
    await stack.start("guard")
    now = int(time.time() * 1000)
    for n in range(3):
        event = stack.prediction(MODEL, "v1", f"SKU-{n}", 2.0)
        await stack.send([json.dumps(event).encode()], timestamp_ms=now - 1000 * n, partition=0)
    await stack.until(lambda: len(stack.seen["blocked"]) == 3)
    assert {record.key for record in stack.seen["blocked"]} == {None}
    await takes_up(stack, TODAY)
    said = await release(stack, "--json")
    assert (said.code, said.facts["counts"]) == (0, {"released": 3})


async def test_an_audit_record_that_cannot_be_read_keeps_back_what_it_names(stack):
    """Nothing else: whether that one was released before is not known, so it is not released."""
    named, other = await block(stack, 2.0, 3.0)
    broken = [f'{{"action": "release", "source": "{named}", "outcome": ', '{"action": "retry", "outcome": 7']
    await stack.send([text.encode() for text in broken], role="audit", key=b"other")
    said = await release(stack, "--force", "--json")
    assert {p["source"]: p["answer"] for p in said.facts["predictions"]} == {named: "unclear", other: "released"}
    told = await release(stack, "--force", "--source", named)
    assert (told.code, "so it may have been released before" in told.flat()) == (1, True)
    await stack.settled()
    assert sources(stack) == [other]


def wanted():
    return releasing.Wanted(MODEL, datetime.fromtimestamp(0, UTC))


async def test_two_at_once_release_each_prediction_once(stack):
    """Each of them is told which were his; thousands take several transactions."""
    sent = await block(stack, *[2.0] * 3000)

    async def one(actor):
        asked = releasing.Asked(actor, "a sale", force=True)
        return (await releasing.release(stack.settings, wanted(), asked)).results

    told = await asyncio.gather(*(one(name) for name in ("alice", "bob", "carol")))
    assert sorted(r.source for results in told for r in results if r.answer == "released") == sorted(sent)
    assert {result.answer for results in told for result in results} == {"released", "already_released"}
    await stack.settled()
    assert sources(stack) == sorted(sent)
    assert sorted(a["source"] for a in audited(stack)) == sorted(sent)


async def test_what_happens_between_two_commands_counts(stack):
    """A newer output of the second key is approved, then the version is fenced."""
    asked = await block(stack, *[5.0] * 4, partition=0)
    await takes_up(stack, TODAY)

    async def answer(source):
        (one,) = (await release(stack, "--source", source, "--json")).facts["predictions"]
        return one["answer"], [finding["check"] for finding in one["findings"]]

    assert await answer(asked[0]) == ("released", [])
    await stack.send([stack.prediction(MODEL, "v1", "SKU-1", 20.0)], partition=0)
    await stack.until(lambda: len(stack.seen["approved"]) == 2, "the newer one is approved")
    assert await answer(asked[1]) == ("superseded", [])
    assert await answer(asked[2]) == ("released", [])
    await stack.send([fence("v1")], role="routes")
    assert await answer(asked[3]) == ("still_fails", ["fenced"])


async def test_without_a_guard_nothing_is_lost(stack):
    """The command says so, and by its id; a guard carries it out once it runs, and once only."""
    (source,) = await block(stack, 2.0)
    (guard,) = stack.workers
    await asyncio.to_thread(guard.stop)
    said = await release(stack, "--force", "--wait", "1s")
    assert (said.code, said.out) == (1, "")
    assert "the guards have answered nothing of it, and no more within 1 s. Nothing is lost" in said.flat()
    (command,) = await stack.until(lambda: stack.seen["releases"], "it is written")
    assert body(command)["command_id"].partition(".")[0] in said.flat()
    # A pipeline that repeats a request because it was not answered.
    await stack.send([command.value] * 2, role="releases", key=command.key, partition=command.partition)
    await asyncio.to_thread(guard.start)
    await stack.until(lambda: released(stack), "it is carried out")
    assert (await release(stack, "--force", "--json")).facts["counts"] == {"already_released": 1}
    await stack.settled()
    assert sources(stack) == [source]
    of_command = [a for a in stack.audits(MODEL) if a.get("command_id") == body(command)["command_id"]]
    assert [a.get("source") for a in of_command] == [source, None]
    # What is not a request is set aside, and the next one is answered.
    await stack.send([b'{"action": "release"}'], role="releases", key=b"x", partition=command.partition)
    await stack.until(lambda: len(stack.seen["malformed"]) == 1, "it is set aside")
    assert b"not a request for releases" in headers(stack.seen["malformed"][0])["holdfast-error"]
    assert (await release(stack, "--force", "--json")).facts["counts"] == {"already_released": 1}


async def test_an_installation_that_has_no_topic_for_requests_yet(kafka, redis_server, tmp_path):
    """Its guards judge, and say what to do; once the topic is there they answer, without a restart."""
    others = [role for role in TOPICS if role != "releases"]
    async with Stack(kafka, redis_server.url, {MODEL: POLICY}, folder=tmp_path, create=False, follow=others) as stack:
        for role in others:
            size = TOPICS[role].partitions
            count = stack.sizes[size] if isinstance(size, str) else size
            await kafka.create_topic(stack.topic(role), count, TOPICS[role].settings)
        (guard,) = await stack.start("guard")
        (source,) = await block(stack, 2.0)
        missing = f"The topic {stack.topic('releases')} does not exist. Create the topics with: holdfast topics create"
        said = await release(stack, "--force")
        assert (said.code, missing in said.flat()) == (1, True)
        told = "releases are not answered by this guard, it goes on judging"
        (line,) = await stack.until(lambda: guard.told(told), "its log says so")
        assert line["reason"] == missing
        assert (await holdfast(stack.folder / "base.toml", "topics", "create")).code == 0
        assert (await release(stack, "--force", "--wait", "1m")).code == 0
        await stack.until(lambda: sources(stack) == [source], "it is released")


CUT_OFF = """
import asyncio, sys
from aiokafka import AIOKafkaProducer
from holdfast.cli import main as cli

commit, count = AIOKafkaProducer.commit_transaction, 0

async def commit_once(self):
    global count
    if "-releases-" in self._txn_manager.transactional_id:
        count += 1
        if count == 2:
            print("open", file=sys.stderr, flush=True)
            await asyncio.sleep(600)
    return await commit(self)

AIOKafkaProducer.commit_transaction = commit_once
cli.main()
"""
"""A guard that stops in the transaction of its second command."""


async def test_a_guard_that_is_killed_in_its_transaction(stack):
    """What was committed is released, what was not is not; the guard that follows releases the rest, each once."""
    (guard,) = await stack.start("guard", program=(sys.executable, "-c", CUT_OFF))
    sent = await block(stack, *[2.0] * 1500)
    asking = asyncio.create_task(release(stack, "--force", "--json", "--wait", "1m"))
    await stack.until(lambda: "open" in guard.log.read_text().splitlines(), "the second transaction is open")
    await asyncio.to_thread(guard.kill)
    await stack.until(lambda: released(stack))
    assert 0 < len(released(stack)) <= MAX_RELEASES
    # In its place, and under its name, so that the group need not wait until it is taken for dead.
    guard.program = (sys.executable, "-m", "holdfast.cli")
    await asyncio.to_thread(guard.start)
    said = await asking
    assert (said.code, said.facts["counts"]) == (0, {"released": len(sent)})
    await stack.settled()
    assert sources(stack) == sorted(sent)
    assert sorted(a["source"] for a in audited(stack)) == sorted(sent)


async def test_somebody_elses_open_transaction_hides_no_release(stack):
    """The audit topic is written by switches too: a release behind their open transaction still counts."""
    (source,) = await block(stack, 2.0)
    switch = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap, transactional_id=f"{stack.run}-other")
    await switch.start()
    await switch.begin_transaction()
    await switch.send_and_wait(stack.topic("audit"), b"{}", key=b"other")
    audit = AuditRecord(
        audit_id="a-1",
        at=datetime.now(UTC),
        model=MODEL,
        actor="alice",
        action="release",
        outcome=Outcome.APPLIED,
        reason="x",
        detail="x",
        source=source,
        epoch=0,
    )
    await stack.send([audit.to_json()], role="audit", key=MODEL.encode())
    releasing_again = asyncio.create_task(release(stack, "--force", "--json"))
    # Long enough for a release that would not wait.
    await asyncio.wait([releasing_again], timeout=2)
    await switch.abort_transaction()
    await switch.stop()
    said = await releasing_again
    assert (said.code, said.facts["counts"]) == (1, {"already_released": 1})


async def test_a_release_behind_a_newer_output_teaches_the_guard_nothing(stack):
    """The newer output stays the reference: for a guard that was running, and for one that starts later."""
    (guard,) = await stack.start("guard")

    async def offer(value, role):
        before = len(stack.seen[role])
        await stack.send([stack.prediction(MODEL, "v1", "SKU-1", value)])
        await stack.until(lambda: len(stack.seen[role]) == before + 1, f"{value} is {role}")

    await offer(100.0, "approved")
    await offer(20.0, "blocked")
    await offer(90.0, "approved")
    assert (await release(stack, "--force", "--superseded", "--json")).facts["counts"]["released"] == 1
    await stack.settled()
    assert body(stack.seen["approved"][-1])["value"] == 20.0
    await offer(21.0, "blocked")
    guard.stop()
    guard.start()
    await stack.ready(guard)
    await offer(21.0, "blocked")
    await offer(80.0, "approved")
