"""Following a topic on a real broker: what is known of it, and since when."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

import backends
from holdfast.adapters.follow import PROBE_EVERY, Follower
from holdfast.adapters.kafka import Write, pack
from holdfast.guard import RouteFollower
from holdfast.settings import KafkaSettings, Settings
from holdfast_schemas import Route, RouteState, utc_now

pytestmark = pytest.mark.real_kafka
GENEROUS = 60.0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(GENEROUS):
        while not true():  # noqa: ASYNC110  the follower has no event for it
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def producer(kafka: backends.Kafka, **options: str) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_what_is_committed_behind_an_open_transaction_is_not_taken_for_silence(
    kafka: backends.Kafka, unique: str
) -> None:
    """A switch that died in a transaction hides the fence that the other one wrote behind it."""
    topic = f"{unique}.routes"
    await kafka.create_topic(topic, 1)
    taken: list[bytes | None] = []

    def take(records: object) -> None:
        assert isinstance(records, list)
        taken.extend(record.value for record in records if isinstance(record, ConsumerRecord))

    follower = Follower(KafkaSettings(bootstrap_servers=kafka.bootstrap), take, behind_transactions=True)
    task = asyncio.create_task(follower.follow({topic: 1}))
    async with producer(kafka, transactional_id=f"{unique}-hangs") as hangs, producer(kafka) as other:
        await follower.caught_up.wait()
        await hangs.begin_transaction()
        await hangs.send_and_wait(topic, b"hidden")
        await other.send_and_wait(topic, b"fence")
        await until(lambda: follower.silent_for > 4 * PROBE_EVERY)
        assert taken == []
        waiting: Awaitable[None] = asyncio.create_task(follower.catch_up())
        await hangs.abort_transaction()
        await waiting
        assert taken == [b"fence"]
        assert follower.silent_for < 4 * PROBE_EVERY
        # An idle topic is none that is silent.
        await asyncio.sleep(3 * PROBE_EVERY)
        assert follower.silent_for < 3 * PROBE_EVERY
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_latest_route_counts_also_in_a_topic_that_has_grown() -> None:
    """Within a partition the later record, whatever its epoch; across partitions the younger one."""

    def record(partition: int, timestamp: int, epoch: int, *fenced: str) -> Any:
        value = Route(
            model="m", epoch=epoch, state=RouteState.AUTO, reason="r", actor="a", since=utc_now(), fenced=fenced
        ).to_json()
        return SimpleNamespace(partition=partition, timestamp=timestamp, key=b"m", value=value, topic="t", offset=0)

    follower = RouteFollower(Settings())
    follower.take([record(2, 2000, 9, "bad"), record(0, 1000, 7)])
    assert follower.routes["m"].fenced == ("bad",)
    follower.take([record(2, 3000, 1, "worse")])
    assert follower.routes["m"].fenced == ("worse",)
    gone = SimpleNamespace(partition=0, timestamp=1500, key=b"m", value=None)
    follower.take([gone])  # type: ignore[list-item]
    assert "m" in follower.routes


async def test_records_of_one_partition_go_out_together(kafka: backends.Kafka) -> None:
    """A partition takes one batch at a time: thousands of them would take longer than a transaction may."""
    async with producer(kafka) as made:
        writes = [Write(("a", "b")[i % 2], i % 4 // 2, [(None, b"k", str(i).encode(), [])]) for i in range(1000)]
        packed = pack(made, writes)
        assert sorted((topic, partition) for topic, partition, _ in packed) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
        assert [batch.record_count() for _, _, batch in packed] == [250] * 4
