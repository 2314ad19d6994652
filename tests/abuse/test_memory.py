"""A producer sends what is small as it is stored, and huge as it is unpacked."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from backends import Kafka, RedisServer
from e2e.stack import POLICY, Stack, Worker

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]
MIB = 1024 * 1024
HUGE, COUNT = 60 * MIB, 16


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    kafka: Kafka, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """With an input topic as Kafka makes one: what producers compress stays compressed in it."""
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=folder, create=False)
    await kafka.create_topic(stack.topic("predictions"), 2)
    await kafka.create_topics(stack.settings)
    async with stack:
        yield stack


def peak(worker: Worker) -> int:
    """Bytes that the process has had in memory at most."""
    (line,) = [one for one in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def test_a_gigabyte_of_zeros_costs_a_guard_a_fraction_of_it(stack: Stack) -> None:
    """Sixteen records of 60 MB, in as many batches of 58 KB, come in one fetch; honest outputs are judged beside."""
    async with AIOKafkaProducer(
        bootstrap_servers=stack.kafka.bootstrap, compression_type="gzip", max_request_size=2 * HUGE
    ) as producer:
        for _ in range(COUNT):
            await producer.send_and_wait(stack.topic("predictions"), bytes(HUGE), key=b"zeros", partition=0)
    honest = [Stack.prediction("pricing", "v1", f"SKU-{number}", 100.0) for number in range(20)]
    await stack.send(honest, partition=1)
    await stack.send(honest[:1], partition=0)
    (guard,) = await stack.start("guard")
    await stack.until(lambda: len(stack.seen["malformed"]) == COUNT, "every record of zeros is malformed")
    await stack.until(lambda: len(stack.seen["approved"]) == 21, "the others are judged")
    assert peak(guard) < 600 * MIB
    assert guard.metric("holdfast_malformed_total") == COUNT
