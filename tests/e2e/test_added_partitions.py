"""Predictions get partitions that the topics of verdicts lack: only those wait, and they go on by themselves."""

import asyncio
from collections import Counter

import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, body

pytestmark = pytest.mark.real_kafka

MODEL = "pricing"


def installation(kafka, redis_server, tmp_path, **guard):
    return Stack(kafka, redis_server.url, {MODEL: POLICY}, folder=tmp_path, settings={"guard": guard})


async def grow_predictions(stack, partitions):
    await stack.kafka.grow_topic(stack.topic("predictions"), partitions)
    async with asyncio.timeout(60):
        while partitions - 1 not in await stack._producer.partitions_for(stack.topic("predictions")):
            await stack._producer.client.force_metadata_update()


async def send(stack, partition, count=5):
    """Write sane outputs into one partition; their prediction ids."""
    values = [stack.prediction(MODEL, "v1", f"SKU-{partition}-{n}", 100.0) for n in range(count)]
    await stack.send(values, partition=partition)
    return {one["prediction_id"] for one in values}


async def fix(stack, partitions):
    """Grow the topics of verdicts by the command that the guard names, and follow them too."""
    said = await holdfast(stack.folder / "base.toml", "topics", "create", "--fix")
    assert said.code == 0, said
    stack.sizes["predictions"] = partitions
    stack._follower.assign(stack._partitions())


def verdicts(stack):
    """How many verdicts each prediction has; a record that the test reads twice counts once."""
    records = {
        (one.topic, one.partition, one.offset): one for role in ("approved", "blocked") for one in stack.seen[role]
    }
    return Counter(body(record)["prediction_id"] for record in records.values())


async def judged(stack, sent):
    await stack.until(lambda: sent <= verdicts(stack).keys(), "all have a verdict")
    await stack.settled()
    assert verdicts(stack) == dict.fromkeys(sent, 1)


@pytest.mark.parametrize("restarts", [False, True], ids=["a guard that runs", "a guard that starts again"])
async def test_only_the_new_partition_waits_until_it_can_get_verdicts(kafka, redis_server, tmp_path, restarts):
    """The old partitions are judged meanwhile; log, /ready, a metric and doctor name the new one and the command."""
    async with installation(kafka, redis_server, tmp_path) as stack:
        (guard,) = await stack.start("guard")
        sent = await send(stack, 0) | await send(stack, 1)
        await judged(stack, sent)
        if restarts:
            guard.stop()
        await grow_predictions(stack, 3)
        waiting = await send(stack, 2)
        if restarts:
            guard.start()
        process = guard.process.pid

        (told, *_) = await stack.until(lambda: guard.told("partition stopped, the others go on", partition=2), "held")
        place, approved = f"{stack.topic('predictions')}/2", stack.topic("approved")
        assert told["reason"].startswith(f"{place} is held: {stack.topic('predictions')} has 3 partitions, and fewer")
        assert f"{approved} (2)" in told["reason"]
        assert told["reason"].endswith("it goes on by itself: holdfast topics create --fix")
        await stack.until(lambda: f"{place} is held" in guard.get("/ready")[1], "/ready says so")
        assert guard.get("/ready")[0] == 503
        stopped = [guard.metric("holdfast_partition_stopped", partition=str(number)) for number in range(3)]
        assert stopped == [0, 0, 1]
        said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
        (found,) = [one for one in said.facts if one["finding"].startswith(f"{place} is held")]
        assert (said.code, found["health"]) == (1, "failed")
        assert found["advice"].endswith("holdfast topics create --fix")
        sent |= await send(stack, 0) | await send(stack, 1)
        await judged(stack, sent)
        audited = await holdfast(stack.folder / "base.toml", "audit", "--once", "--json")
        assert audited.code == 0, audited

        await fix(stack, 3)
        await judged(stack, sent | waiting)
        await stack.until(guard.ready, "the guard is ready")
        assert guard.metric("holdfast_partition_stopped") == 0
        sent |= waiting | await send(stack, 2)
        await judged(stack, sent)
        assert guard.process.pid == process
        assert guard.running


@pytest.mark.parametrize("start_from", ["earliest", "latest"])
async def test_a_first_start_judges_what_it_can(kafka, redis_server, tmp_path, start_from):
    """Nothing was judged before, and predictions are ahead already: `start_from` holds for the new partition too."""
    async with installation(kafka, redis_server, tmp_path, start_from=start_from) as stack:
        await grow_predictions(stack, 3)
        before = set().union(*[await send(stack, partition) for partition in range(3)])
        (guard,) = await stack.start("guard", ready=False)
        await stack.until(lambda: guard.told("partition stopped, the others go on", partition=2), "held")
        await stack.until(lambda: any(line["event"].startswith("first start") for line in guard.lines()), "it begins")
        after = [await send(stack, partition) for partition in range(3)]
        await stack.until(lambda: after[0] | after[1] <= verdicts(stack).keys(), "the others are judged")
        await fix(stack, 3)
        await judged(stack, set().union(*after, before if start_from == "earliest" else set()))
