"""Following a topic on a real broker: what is known of it, and since when."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

import backends
from backends import GENEROUS, until
from holdfast.api.read_model import Board
from holdfast.guard import RouteFollower
from holdfast.kafka.follow import PROBE_EVERY, Follower
from holdfast.kafka.reading import KeyOrder, read_latest
from holdfast.kafka.transaction import Write, pack
from holdfast.notify import Incidents
from holdfast.settings import KafkaSettings, Settings, TopicNames
from holdfast_schemas import (
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    Route,
    RouteState,
    utc_now,
)

pytestmark = pytest.mark.real_kafka


@contextlib.asynccontextmanager
async def producer(kafka: backends.Kafka, **options: str) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@contextlib.asynccontextmanager
async def following(follower: Follower, partitions: dict[str, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(follower.follow(partitions))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
    async with (
        following(follower, {topic: 1}),
        producer(kafka, transactional_id=f"{unique}-hangs") as hangs,
        producer(kafka) as other,
    ):
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


async def test_what_one_partition_says_does_not_hide_the_silence_of_another(kafka: backends.Kafka, unique: str) -> None:
    """Its leader may be away, and a fence may be there."""
    topic = f"{unique}.routes"
    await kafka.create_topic(topic, 2)
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap)
    follower = Follower(settings, lambda records: None, behind_transactions=True)
    async with (
        following(follower, {topic: 2}),
        producer(kafka, transactional_id=f"{unique}-hangs") as hangs,
        producer(kafka) as other,
    ):
        await follower.caught_up.wait()
        await hangs.begin_transaction()
        await hangs.send_and_wait(topic, b"hidden", partition=1)
        async with asyncio.timeout(GENEROUS):
            while follower.silent_for < 4 * PROBE_EVERY:
                await other.send_and_wait(topic, b"update", partition=0)
                await asyncio.sleep(0.05)
        await hangs.abort_transaction()
        await until(lambda: follower.silent_for < 2 * PROBE_EVERY)


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


async def test_a_partition_that_a_topic_is_given_while_it_is_followed_is_followed_too(
    kafka: backends.Kafka, unique: str
) -> None:
    """A switch that started later writes fences there."""
    topic = f"{unique}.routes"
    await kafka.create_topic(topic, 1)
    taken: list[bytes | None] = []
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap)
    follower = Follower(settings, lambda records: taken.extend(record.value for record in records))
    async with following(follower, {topic: 1}):
        async with producer(kafka) as made:
            await made.send_and_wait(topic, b"before", partition=0)
            await follower.caught_up.wait()
            await kafka.grow_topic(topic, 3)
            await made.send_and_wait(topic, b"old", partition=0)
            await until(lambda: b"old" in taken)
        # Its producer did not know them yet.
        async with producer(kafka) as made:
            await made.send_and_wait(topic, b"fence", partition=2)
            await until(lambda: b"fence" in taken)
            await made.send_and_wait(topic, b"another", partition=0)
            await follower.catch_up()
    assert taken == [b"before", b"old", b"fence", b"another"]


async def test_the_last_value_of_a_key_counts_also_in_a_topic_that_has_grown(
    kafka: backends.Kafka, unique: str
) -> None:
    topic = f"{unique}.routes"
    await kafka.create_topic(topic, 2)
    async with producer(kafka) as made:
        await made.send_and_wait(topic, b"new", key=b"moved", partition=0, timestamp_ms=2000)
        await made.send_and_wait(topic, b"old", key=b"moved", partition=1, timestamp_ms=1000)
        await made.send_and_wait(topic, b"first", key=b"stays", partition=1, timestamp_ms=3000)
        await made.send_and_wait(topic, b"second", key=b"stays", partition=1, timestamp_ms=2000)
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap)
    for partitions in ((0, 1), (1, 0)):
        assert await read_latest(settings, topic, partitions) == {"moved": b"new", "stays": b"second"}


@pytest.mark.parametrize("old_first", [True, False])
def test_an_incident_that_is_over_stays_so_in_a_topic_that_has_grown(old_first: bool) -> None:
    opened = Incident(
        incident_id="i",
        dedup_key="holdfast/m/v",
        status=IncidentStatus.TRIGGERED,
        severity=IncidentSeverity.ERROR,
        model="m",
        bad_version="v",
        action=IncidentAction.FENCED,
        opened_at=utc_now(),
        seen=1,
        blocked=1,
        blocked_by_check={},
        policy="",
        runbook_url="",
    )
    resolved = opened.model_copy(update={"status": IncidentStatus.RESOLVED, "resolved_at": utc_now()})
    topics = TopicNames()
    old, new = (
        SimpleNamespace(
            topic=topics.incidents, partition=partition, offset=0, timestamp=at, key=b"i", value=incident.to_json()
        )
        for partition, at, incident in ((1, 1000, opened), (0, 2000, resolved))
    )
    board, pages, order = Board(topics, keep_incidents=9, keep_audit=9), Incidents(), KeyOrder()
    for record in (old, new) if old_first else (new, old):
        board.take([record])  # type: ignore[list-item]
        pages.take(pages.decode([record], order))  # type: ignore[list-item]
    assert board.incidents == pages.by_id == {"i": resolved}


async def test_records_of_one_partition_go_out_together(kafka: backends.Kafka) -> None:
    """A partition takes one batch at a time: thousands of them would take longer than a transaction may."""
    async with producer(kafka) as made:
        writes = [Write(("a", "b")[i % 2], i % 4 // 2, [(None, b"k", str(i).encode(), [])]) for i in range(1000)]
        packed = pack(made, writes)
        assert sorted((one.topic, one.partition) for one in packed) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
        assert [one.batch.record_count() for one in packed] == [250] * 4
