"""Where a partition begins whose group has no committed offset: nothing is judged twice, and nothing is left out."""

import asyncio
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from e2e.stack import POLICY, Stack, body

pytestmark = pytest.mark.real_kafka

STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")
DAYS_AGO = int((time.time() - 3 * 86400) * 1000)
LATEST = {"guard": {"start_from": "latest"}}


def installation(kafka, redis_server, tmp_path, **more):
    return Stack(kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, **more)


def outputs(stack, number, start=0, value=100.0):
    """So many of as many entities; every seventh is too cheap, and every tenth cannot be decoded."""
    return [
        b"{" if n % 10 == 9 else stack.prediction("pricing", "v1", f"E-{n}", 1.0 if n % 7 == 0 else value, n=n)
        for n in range(start, start + number)
    ]


async def lose_offsets(stack, service="guard"):
    """As a broker does that has not seen the group for a week, or a person."""
    await stack.kafka.delete_group(getattr(stack.settings, service).group)


async def empty(stack, *roles):
    """As retention does in a quiet week."""
    for topic in {tp.topic for tp in stack._partitions() if stack._roles[tp.topic] in roles}:
        await stack.kafka.empty_topic(topic)


async def judged(stack, number):
    """Wait until there are so many verdicts, and no more than that come."""

    def count():
        return sum(len(stack.seen[role]) for role in ("approved", "blocked", "malformed"))

    await stack.until(lambda: count() >= number, f"{number} verdicts")
    await stack.settled()
    assert count() == number


def approved_once(stack):
    counts = Counter(body(record)["prediction_id"] for record in stack.seen["approved"])
    assert set(counts.values()) <= {1}


@pytest.mark.parametrize("removed", [(), ("control",), ("approved", "blocked")])
async def test_lost_offsets_judge_nothing_twice(kafka, redis_server, tmp_path, removed):
    """100 are judged, the group is deleted, 60 more come: those only, whichever topic still tells how far it was."""
    async with installation(kafka, redis_server, tmp_path) as stack:
        (guard,) = await stack.start("guard")
        await stack.send(outputs(stack, 100))
        await judged(stack, 100)
        guard.stop()
        await empty(stack, *removed)
        await lose_offsets(stack)
        await stack.send(outputs(stack, 60, start=100))
        guard.start()
        await judged(stack, 160)
        approved_once(stack)
        told = guard.told("all offsets of the group were lost, checking goes on behind the last verdicts")
        assert len(told) == 1


async def test_what_cannot_be_told_waits_for_a_person(kafka, redis_server, tmp_path):
    """No verdict and no tally is left: the partition stops and names the command, which a running guard obeys."""
    async with installation(kafka, redis_server, tmp_path) as stack:
        (guard,) = await stack.start("guard")
        await stack.send(outputs(stack, 40), partition=0)
        await stack.send(outputs(stack, 40, start=40), partition=1)
        await judged(stack, 80)
        guard.stop()
        await empty(stack, "approved", "blocked", "malformed", "control")
        await lose_offsets(stack)
        await stack.send(outputs(stack, 10, start=80), partition=0)
        guard.start()
        (first, *_) = await stack.until(
            lambda: guard.told("partition stopped, the others go on", partition=0), "it says so"
        )
        assert "holdfast offsets set guard --partition 0 --to OFFSET" in first["reason"]
        assert guard.running
        assert not guard.ready()

        # A running guard obeys.
        code, said = await offsets(stack, "set", "guard", "--partition", "0", "--to", "4000")
        assert code == 1
        assert "is not between them" in said
        code, said = await offsets(stack, "set", "guard", "--partition", "0", "--to", "40")
        assert code == 0, said
        await judged(stack, 90)
        approved_once(stack)
        await stack.until(lambda: guard.told("partition goes on", partition=0), "it goes on")


async def offsets(stack, *arguments):
    """Exit code of `holdfast offsets`, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "holdfast.cli", "offsets", *arguments, "--config", str(stack.write_config("offsets"))),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode().strip()


async def test_a_new_installation_leaves_what_is_there_alone(kafka, redis_server, tmp_path):
    """120 predictions of three days ago at a hundredth of the price: neither approved nor tripped on; new ones are."""
    async with installation(kafka, redis_server, tmp_path, settings=LATEST) as stack:
        await stack.send(outputs(stack, 120, value=0.5), timestamp_ms=DAYS_AGO)
        first, second = await stack.start("guard", "guard")
        await stack.send(outputs(stack, 50, start=120))
        await judged(stack, 50)
        said = [*first.told(FIRST_START), *second.told(FIRST_START)]
        assert [one["records"] for one in said] == [120]
        assert "holdfast offsets set guard --to earliest" in said[0]["advice"]
        assert not stack.incidents("pricing")


FIRST_START = "first start: what is in predictions before these offsets stays without a verdict"


async def test_a_partition_that_is_added_is_read_from_its_first_record(kafka, redis_server, tmp_path):
    """Also with `latest`: what came into it before the guards took it up is not lost."""
    async with installation(kafka, redis_server, tmp_path, settings=LATEST) as stack:
        (guard,) = await stack.start("guard")
        await stack.send(outputs(stack, 20))
        await judged(stack, 20)
        guard.stop()
        for role in ("approved", "blocked", "malformed", "predictions"):
            await kafka.grow_topic(stack.topic(role), 3)
        stack.sizes["predictions"] = 3
        stack._follower.assign(stack._partitions())
        sent = [stack.prediction("pricing", "v1", "X", 100.0) for _ in range(5)]
        async with asyncio.timeout(60):
            while 2 not in await stack._producer.partitions_for(stack.topic("predictions")):
                await stack._producer.client.force_metadata_update()
        await stack.send(sent, partition=2)
        guard.start()
        await stack.until(
            lambda: (
                {one["prediction_id"] for one in sent}
                <= {body(record)["prediction_id"] for record in stack.seen["approved"]}
            ),
            "all five are approved",
        )


async def test_a_first_start_may_begin_at_a_time(kafka, redis_server, tmp_path):
    """What is dated before it stays without a verdict."""
    since = datetime.now(UTC) - timedelta(days=1)
    async with installation(
        kafka, redis_server, tmp_path, settings={"guard": {"start_from": since.isoformat()}}
    ) as stack:
        await stack.send(outputs(stack, 30), timestamp_ms=DAYS_AGO)
        await stack.send(outputs(stack, 20, start=30))
        await stack.start("guard")
        await judged(stack, 20)


async def test_the_switch_counts_no_tally_and_obeys_no_command_twice(kafka, redis_server, tmp_path):
    """Its group is deleted: the route, its epoch and the number of audit records stay what they were."""
    async with installation(kafka, redis_server, tmp_path) as stack:
        guard, switch = await stack.start("guard", "switch")
        await stack.send(outputs(stack, 100))
        await judged(stack, 100)
        # More than it remembers by their ids.
        for _ in range(20):
            await stack.command("pricing", "promote", "v2")
            last = await stack.command("pricing", "promote", "v1")
        guard.stop()
        await stack.settled()
        approved = (await state_of(stack))["versions"]
        switch.stop()
        await lose_offsets(stack, "switch")
        audits = len(stack.audits("pricing"))
        switch.start()
        await stack.ready(switch)
        await stack.command("pricing", "fence", "v9")
        assert len(stack.audits("pricing")) == audits + 1
        assert stack.route("pricing")["version"] == "v1"
        after = (await state_of(stack))["versions"]
        assert {name: version.get("approved") for name, version in after.items() if name != "v9"} == {
            name: version.get("approved") for name, version in approved.items()
        }
        assert switch.told("offset lost, the switch goes on behind its state")
        assert last["outcome"] == "applied"


async def state_of(stack):
    return body(stack.seen["state"][-1])
