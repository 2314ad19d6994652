"""Logs that go on behind the last record, and logs that lose their beginning: progress is a position."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from e2e.stack import POLICY, Stack

pytestmark = pytest.mark.real_kafka


async def offsets_of(stack, role, group, partition=0):
    """The first offset, the end, and what the group has committed."""
    tp = TopicPartition(stack.topic(role), partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        first, end = (await consumer.beginning_offsets([tp]))[tp], (await consumer.end_offsets([tp]))[tp]
        return first, end, await consumer.committed(tp)
    finally:
        await consumer.stop()


async def caught_up(stack, role, group, partition=0):
    """Wait until the group has committed the end, markers and all."""
    for _ in range(600):
        _, end, committed = await offsets_of(stack, role, group, partition)
        if end == committed:
            return end
        await asyncio.sleep(0.1)
    raise AssertionError(f"the group stays at {committed} of {end}")


async def commit(stack, group, role, offset, metadata=""):
    """Commit by hand, as an earlier version or Kafka's own tool does."""
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        tp = TopicPartition(stack.topic(role), 0)
        consumer.assign([tp])
        await consumer.commit({tp: OffsetAndMetadata(offset, metadata)})
    finally:
        await consumer.stop()


async def transactional(stack, transactional_id):
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap, transactional_id=transactional_id)
    await producer.start()
    return producer


async def sent_in(stack, producer, values, partition=0):
    """Write predictions into the producer's open transaction."""
    for number, value in enumerate(values):
        document = stack.prediction("pricing", "v1", f"SKU-{number}", value)
        encoded = __import__("json").dumps(document).encode()
        await producer.send_and_wait(stack.topic("predictions"), encoded, key=b"k", partition=partition)


async def forty_outputs(stack):
    await stack.send([stack.prediction("pricing", "v1", f"SKU-{n}", 20 + n) for n in range(40)])
    await stack.until(lambda: len(stack.seen["approved"]) == 40, "40 verdicts")


def judged(stack):
    return sum(len(stack.seen[role]) for role in ("approved", "blocked", "malformed"))


async def test_a_switch_goes_on_after_its_topic_was_emptied(kafka, redis_server, tmp_path):
    """40 outputs, the switch stops, `control` is emptied, the switch starts; then a second one joins."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        guard, switch = await stack.start("guard", "switch")
        await forty_outputs(stack)
        await caught_up(stack, "control", stack.settings.switch.group)
        switch.stop()
        await kafka.empty_topic(stack.topic("control"))
        switch.start()
        await stack.ready(switch)
        await stack.command("pricing", "promote", "v1")
        await caught_up(stack, "control", stack.settings.switch.group)
        await kafka.empty_topic(stack.topic("control"))
        (second,) = await stack.start("switch", ready=False)
        await stack.command("pricing", "promote", "v2")
        await stack.until(lambda: switch.ready() or second.ready(), "one of them has the partition")
        assert all(worker.running for worker in (guard, switch, second))
