"""Producers whose partitioners differ: their keys are counted, and told of in metric, tallies, log and doctor."""

import asyncio
import json

import confluent_kafka
import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack

pytestmark = pytest.mark.real_kafka


@pytest.fixture
async def stack(kafka, redis_server, tmp_path, unique):
    async with Stack(kafka, redis_server.url, {unique: POLICY}, folder=tmp_path, partitions=4) as stack:
        yield stack


def by_librdkafka(stack, values, **options):
    producer = confluent_kafka.Producer({"bootstrap.servers": stack.kafka.bootstrap, "linger.ms": 20, **options})
    for value in values:
        producer.produce(stack.topic("predictions"), json.dumps(value).encode(), key=value["entity_id"])
    assert producer.flush(30) == 0


async def partitioner_of_doctor(stack):
    said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
    return [(one["health"], one["finding"], one["advice"]) for one in said.facts if one["area"] == "partitioner"]


async def test_a_client_with_another_partitioner_is_told_of(stack, unique):
    """60 keys by murmur2, then by librdkafka's default; told to use murmur2, it is as good as the first."""
    guard, _ = await stack.start("guard", "switch")

    def found():
        return guard.metric("holdfast_misplaced_keys_total", model=unique)

    def judged():
        return guard.metric("holdfast_predictions_total", model=unique)

    some = [stack.prediction(unique, "v1", f"SKU-{number}", 100.0) for number in range(60)]
    await stack.send(some)
    await asyncio.to_thread(by_librdkafka, stack, some, partitioner="murmur2_random")
    await stack.until(lambda: judged() == 120, "all are judged")
    assert found() == 0
    assert [one[0] for one in await partitioner_of_doctor(stack)] == ["ok"]
    await asyncio.to_thread(by_librdkafka, stack, some)
    await stack.until(lambda: judged() == 180, "all are judged")
    assert 0 < found() <= 60
    assert "keys are not in their partition by murmur2" in guard.log.read_text()
    await stack.until(
        lambda: sum(one.get("misplaced", 0) for one in stack.tallies(unique)) == found(), "in the tallies"
    )
    while (told := await partitioner_of_doctor(stack))[0][0] == "ok":  # noqa: ASYNC110  another process changes it
        await asyncio.sleep(0.1)
    ((health, finding, advice),) = told
    assert health == "warning"
    assert f"keys of {unique} that were looked at are not in their partition by murmur2" in finding
    assert "Keys and partitioners" in advice


async def test_producers_that_all_use_another_one_may_say_so(stack, unique):
    """Nothing is counted then."""
    (guard,) = await stack.start("guard", settings={"guard": {"partitioner": "other"}})
    some = [stack.prediction(unique, "v1", f"SKU-{number}", 100.0) for number in range(60)]
    await asyncio.to_thread(by_librdkafka, stack, some)
    await stack.until(lambda: guard.metric("holdfast_predictions_total", model=unique) == 60, "all are judged")
    assert guard.metric("holdfast_misplaced_keys_total", model=unique) == 0
