"""Policies that change under a running guard, what it remembers, and records that would crash it."""

import asyncio
import json
import struct
import sys
import zlib
from datetime import timedelta

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

from backends import GENEROUS, private_kafka, until
from e2e.stack import JUMP, POLICY, Stack, body, headers
from holdfast.adapters.policies import PolicyStore
from holdfast.verify.service import audit_once
from holdfast_schemas import utc_now

pytestmark = pytest.mark.real_kafka


async def verdict(stack, value, entity="E", model="pricing"):
    """Send one prediction: what became of it, and the checks that failed."""
    sent = stack.prediction(model, "v1", entity, value)
    await stack.send([sent])

    def found():
        for role in ("approved", "blocked"):
            for record in stack.seen[role]:
                if body(record)["prediction_id"] == sent["prediction_id"]:
                    return role, [f["check"] for f in json.loads(headers(record).get("holdfast-findings", b"[]"))]
        return None

    return await stack.until(found, "a verdict")


async def takes_up(stack, guard, policy):
    """Write the policy and wait until the guard says that it has it."""
    before = len(guard.told("policies changed"))
    stack.write_policy("pricing", policy)
    await stack.until(lambda: len(guard.told("policies changed")) > before, "the policy is taken up")


async def test_a_mode_ends_by_itself(kafka, redis_server, tmp_path):
    """Without a change of the file: the checks block from then on, also by what was approved before, and the verifier
    agrees.
    """

    def off(lasts):
        return f'mode = "off"\nmode_until = {utc_now() + lasts:%Y-%m-%dT%H:%M:%SZ}\n{JUMP}{POLICY}'

    async with Stack(kafka, redis_server.url, {"pricing": off(timedelta(hours=1))}, folder=tmp_path) as stack:
        (guard,) = await stack.start("guard")
        assert await verdict(stack, 1.0, "A") == ("approved", [])
        assert await verdict(stack, 60.0) == ("approved", [])
        await takes_up(stack, guard, off(timedelta(seconds=3)))
        changes = len(guard.told("policies changed"))
        async with asyncio.timeout(GENEROUS):
            while (said := await verdict(stack, 1.0, "B"))[0] == "approved":
                assert said == ("approved", [])
        assert said == ("blocked", ["price_floor"])
        assert await verdict(stack, 180.0) == ("blocked", ["jump"])
        assert await verdict(stack, 70.0) == ("approved", [])
        assert len(guard.told("policies changed")) == changes
        await stack.settled()
        found = await audit_once(stack.settings, None)
        assert not found.violations.total(), found.facts()


async def test_a_changed_policy_is_taken_up_and_a_broken_one_refused(kafka, redis_server, tmp_path):
    """Without a restart; a mistake names file and key, leaves the old policy in force and raises a metric."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        (guard,) = await stack.start("guard")
        assert await verdict(stack, 60.0) == ("approved", [])
        await takes_up(stack, guard, POLICY.replace("min = 10.0", "min = 100.0"))
        assert await verdict(stack, 60.0) == ("blocked", ["price_floor"])

        stack.write_policy("pricing", POLICY.replace("min = 10.0", "minimum = 1.0"))
        (refused,) = await stack.until(lambda: guard.told("new policy refused, the old one stays"), "it is refused")
        assert "pricing.toml: checks[price_floor].minimum: there is no such key" in refused["error"]
        assert guard.metric("holdfast_policies_refused_total") == 1
        assert guard.ready()
        assert await verdict(stack, 60.0) == ("blocked", ["price_floor"])
        await takes_up(stack, guard, POLICY)
        assert await verdict(stack, 60.0) == ("approved", [])

        # What a new check must remember was approved before it came.
        await takes_up(stack, guard, JUMP + POLICY)
        assert await verdict(stack, 130.0) == ("blocked", ["jump"])
        assert [line["entities"] for line in guard.told("memory rebuilt")].count(1) == 1

        # What was approved while nobody looked is remembered too, once somebody looks again.
        await takes_up(stack, guard, POLICY)
        assert await verdict(stack, 130.0) == ("approved", [])
        await takes_up(stack, guard, JUMP + POLICY)
        assert await verdict(stack, 250.0) == ("approved", [])
        assert await verdict(stack, 510.0) == ("blocked", ["jump"])

        # As a mounted ConfigMap changes: the folder's files are links, and what they lead to is exchanged.
        versions = [stack.policies / "..first", stack.policies / "..second"]
        for folder, floor in zip(versions, (50.0, 70.0), strict=True):
            folder.mkdir()
            text = POLICY.replace("min = 10.0", f"min = {floor}")
            (folder / "pricing.toml").write_text(f'model = "pricing"\n{text}')
        for number, folder in enumerate(versions):
            before = len(guard.told("policies changed"))
            (stack.policies / "..new").symlink_to(folder.name)
            (stack.policies / "..new").rename(stack.policies / "..data")
            if number == 0:
                (stack.policies / ".link").symlink_to("..data/pricing.toml")
                (stack.policies / ".link").rename(stack.policies / "pricing.toml")
            await stack.until(
                lambda before=before: len(guard.told("policies changed")) > before, "the link is followed"
            )
        assert await verdict(stack, 60.0) == ("blocked", ["price_floor"])

        (stack.policies / "pricing.toml").unlink()
        await stack.until(lambda: guard.told("policies changed", removed=["pricing"]))
        assert await verdict(stack, 100.0) == ("blocked", ["no_policy"])


async def test_a_restarted_guard_remembers(kafka, redis_server, tmp_path):
    """The memory is read back from the approved topic, past a transaction that somebody left open there.

    Until that one has ended the guard is not ready, and judges nothing.
    """
    async with Stack(kafka, redis_server.url, {"pricing": JUMP + POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        assert await verdict(stack, 100.0) == ("approved", [])
        stranger = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=f"{stack.run}-stranger")
        await stranger.start()
        await stranger.begin_transaction()
        await stranger.send_and_wait(stack.topic("approved"), b"{}", partition=0)
        # Nobody may see what stands behind the open transaction, so the verdict is told by the committed offset.
        await stack.send([stack.prediction("pricing", "v1", "E", 190.0)])
        while (await stack.committed())[0] < 2:  # noqa: ASYNC110  the guard commits it
            await asyncio.sleep(0.1)
        await asyncio.to_thread(guard.stop)
        await asyncio.to_thread(guard.start)
        await stack.until(lambda: guard.get("/ready") == (503, "partitions not running: 0 opening\n"))
        assert guard.told("memory rebuilt", entities=1) == []
        await stranger.abort_transaction()
        await stranger.stop()
        await stack.ready(guard)
        assert guard.told("memory rebuilt", entities=1)
        # Before anything was judged since.
        assert guard.metric("holdfast_remembered_entities") == 1
        assert await verdict(stack, 370.0) == ("approved", [])
        assert await verdict(stack, 100_000.0) == ("blocked", ["price_floor", "jump"])
        # Blocked values teach nothing.
        assert await verdict(stack, 800.0) == ("blocked", ["jump"])


CRASHING = """
import holdfast.guard as guard
judge = guard.judge
def crash(batch, *arguments, **options):
    if "POISON" in batch.columns.values("entity_id"):
        raise ZeroDivisionError("poison")
    return judge(batch, *arguments, **options)
guard.judge = crash
from holdfast.cli.main import main
main()
"""


async def test_a_record_that_crashes_the_worker_is_put_aside(kafka, redis_server, tmp_path):
    """After three attempts it is malformed with the reason; its neighbours and the partition go on."""
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard", program=(sys.executable, str(script)))
        await stack.send(
            [stack.prediction("pricing", "v1", "POISON" if n % 10 == 5 else f"E-{n}", 100.0) for n in range(30)]
        )
        await stack.until(lambda: len(stack.seen["malformed"]) == 3 and len(stack.seen["approved"]) == 27)
        for record in stack.seen["malformed"]:
            assert body(record)["entity_id"] == "POISON"
            reason = headers(record)["holdfast-error"]
            assert reason == b"could not be processed in three attempts: ZeroDivisionError: poison"
        assert await verdict(stack, 100.0) == ("approved", [])
        assert guard.metric("holdfast_poison_records_total") == guard.metric("holdfast_malformed_total") == 3
        assert guard.ready()


UNUSUAL = {
    "a lone surrogate": (
        b'{"prediction_id":"1","model":"pricing","model_version":"\\ud800","entity_id":"s","value":1.0}'
    ),
    "a lone surrogate in an entity": (
        b'{"prediction_id":"2","model":"pricing","model_version":"v1","entity_id":"\\udfff","value":1.0}'
    ),
    "a version of 100,000 letters": json.dumps(
        {"prediction_id": "3", "model": "pricing", "model_version": "v" * 100_000, "entity_id": "s", "value": 1.0}
    ).encode(),
    "a version with a space": (
        b'{"prediction_id":"4","model":"pricing","model_version":"v 1","entity_id":"s","value":1.0}'
    ),
}


async def test_unusual_records_do_not_stop_the_partition(kafka, redis_server, tmp_path):
    """Names that no label, header or tally can hold, and times before the calendar: none is approved, all are told."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        await stack.send(UNUSUAL.values(), key=b"s")
        for time in (-1, -(10**15)):
            await stack.send([stack.prediction("pricing", "v1", f"T{time}", 1.0)], timestamp_ms=time)
        await stack.until(lambda: len(stack.seen["malformed"]) + len(stack.seen["blocked"]) == len(UNUSUAL) + 2)
        assert stack.seen["approved"] == []
        assert await verdict(stack, 100.0) == ("approved", [])
        assert guard.ready()


def bomb():
    """A record batch whose one record is 1 GiB of zeros, gzipped to under 1 MiB."""

    def varint(number):
        out, number = bytearray(), (number << 1) ^ (number >> 63)
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        return bytes([*out, number])

    size, chunk = 1 << 30, bytes(1 << 20)
    head = b"\x00" + varint(0) + varint(0) + varint(-1) + varint(size)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(varint(len(head) + size + 1) + head)]
    parts += [packer.compress(chunk) for _ in range(size // len(chunk))]
    parts += [packer.compress(varint(0)), packer.flush()]
    rest = struct.pack(">hiqqqhii", 1, 0, 0, 0, -1, -1, -1, 1) + b"".join(parts)
    body = struct.pack(">ib", -1, 2) + struct.pack(">I", calc_crc32c(rest)) + rest
    return struct.pack(">qi", 0, len(body)) + body


async def test_a_gzip_bomb_does_not_reach_the_worker(redis_server, tmp_path):
    """The topics that Holdfast creates refuse what unpacks to more than a record may have; the guard goes on."""
    batch = await asyncio.to_thread(bomb)
    assert len(batch) < 1 << 20
    with private_kafka() as broker:
        async with Stack(broker, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
            (guard,) = await stack.start("guard")
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
            await producer.start()
            request = ProduceRequest(
                transactional_id=None,
                required_acks=-1,
                timeout=60_000,
                topics=[(stack.topic("predictions"), [(0, batch)])],
            )
            answer = await producer.client.send(producer.client.get_random_node(), request)
            await producer.stop()
            assert answer.topics[0][1][0][1] != 0
            assert await verdict(stack, 100.0) == ("approved", [])
            assert guard.ready()
            assert len(guard.told("started")) == 1


@pytest.mark.parametrize("how", ["a link", "a rename"])
async def test_a_folder_that_is_replaced_is_read_and_followed_on(tmp_path, how):
    """As releases are switched; while there is none the policies stay."""

    def release(name, floor):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.toml").write_text(f'model = "p"\n[[checks]]\nname = "a"\nkind = "range"\nmin = {floor}\n')
        return tmp_path / name

    def switch(target):
        if how == "a link":
            (tmp_path / "next").symlink_to(target)
            (tmp_path / "next").replace(folder)
        else:
            folder.rename(tmp_path / "former")
            target.rename(folder)

    first, folder = release("first", 1.0), tmp_path / "policies"
    folder.symlink_to(first) if how == "a link" else first.rename(folder)
    refused = []
    store = PolicyStore(folder, lambda: refused.append(1))
    following = asyncio.create_task(store.follow())

    async def floor(wanted):
        await until(lambda: (p := store.current.policies.get("p")) and p.checks[0].min == wanted)

    switch(release("second", 2.0))
    await floor(2.0)
    (folder / "p.toml").write_text((folder / "p.toml").read_text().replace("2.0", "3.0"))
    await floor(3.0)
    folder.rename(tmp_path / "away")
    await until(lambda: refused)
    assert store.current.policies["p"].checks[0].min == 3.0
    release("policies", 4.0)
    await floor(4.0)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
