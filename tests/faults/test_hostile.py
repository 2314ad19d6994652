"""One hostile producer among honest ones: their verdicts and commands are as without it."""

import asyncio
import contextlib
import json
import math
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from backends import Kafka, RedisServer
from e2e.stack import Stack
from faults.campaign import LONG, PATIENT, campaign

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(600)]

SECONDS = 30.0 if LONG else 8.0
HOSTILE_RATE = 400
"""Records a second, beside about 400 honest ones."""
PROBE = '[[checks]]\nname = "bounds"\nkind = "range"\nmin = 1.0\nmax = 10.0\n'
THEIRS = PROBE + "[breaker]\nmin_entities = 1\nmin_partitions = 1\n"


class Hostile:
    """Writes whatever a producer can write, in the name of its own model and of models that do not exist."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.random, self.sent = stack, random.Random(7), 0
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.stack.kafka.bootstrap, compression_type="gzip", linger_ms=5, max_request_size=2**20
        )
        await producer.start()
        try:
            due = time.monotonic()
            while True:
                for _ in range(HOSTILE_RATE // 20):
                    key, value, headers = self._record()
                    await producer.send(self.stack.topic("predictions"), value, key=key, headers=headers)
                    self.sent += 1
                due = max(due + 0.05, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            await producer.stop()

    def _record(self) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
        draw, anything = self.random.random(), uuid.uuid4().hex
        forged = [("holdfast-verdict", b"approved"), ("holdfast-policy", b"probe@0123456789ab")]
        if draw < 0.4:
            return *self._event(anything, f"E{self.random.randrange(50)}", 0.01), forged
        if draw < 0.6:
            return *self._event(f"v{self.random.randrange(50)}", "\u0001" * 990 + anything[:8], 1e300), []
        if draw < 0.7:
            return *self._event("v1", anything, 5.0, segment="\u0001" * 200 + anything), []
        if draw < 0.8:
            return *self._event("v1", "E1", 5.0, model=f"model-{anything}"), []
        if draw < 0.85:
            return *self._event("holdfast:others", "E1", float("nan"), predicted_at="\u2028" * 1000), []
        if draw < 0.995:
            garbage = (b"{", b"\xff" * 100, b"[" * 10_000, None, b"", b'{"model": "probe", "model": "theirs"}')
            return anything.encode(), self.random.choice(garbage), forged
        # Large as an event, and in the form in which it is stored nearly nothing.
        return *self._event("v2", "E2", 5.0, features={f"f{n}": 0.0 for n in range(40_000)}), []

    def _event(self, version: str, entity: str, value: float, **more: Any) -> tuple[bytes, bytes]:
        event = Stack.prediction("theirs", version, entity, value) | more
        return entity.encode(), json.dumps(event).encode()


@contextlib.asynccontextmanager
async def approved(stack: Stack) -> AsyncIterator[Callable[[str], float | None]]:
    """When each prediction of the probe's model was there for consumers, by its id."""
    seen: dict[str, float] = {}
    consumer = AIOKafkaConsumer(
        bootstrap_servers=stack.kafka.bootstrap, isolation_level="read_committed", fetch_max_wait_ms=20
    )
    await consumer.start()
    partitions = [TopicPartition(stack.topic("approved"), n) for n in range(stack.settings.topic_settings.partitions)]
    consumer.assign(partitions)
    await consumer.seek_to_end(*partitions)

    async def follow() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    if b'"probe"' in record.value:
                        seen.setdefault(json.loads(record.value)["prediction_id"], time.monotonic())

    task = asyncio.create_task(follow())
    try:
        yield seen.get
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()


async def measured(stack: Stack, seconds: float) -> tuple[list[float], list[float]]:
    """The milliseconds of each verdict on a sane output, and of the answer to each command, of an honest model."""
    sent: dict[str, float] = {}
    commands: list[float] = []
    async with approved(stack) as when:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            event = stack.prediction("probe", "p1", f"P{len(sent) % 40}", 5.0)
            sent[event["prediction_id"]] = time.monotonic()
            await stack.send([event])
            if len(sent) % 10 == 1:
                began = time.monotonic()
                answer = await stack.command("probe", "unpin" if len(commands) % 2 else "pin")
                commands.append(1000 * (time.monotonic() - began))
                assert answer["outcome"] == "applied", answer
            await asyncio.sleep(0.05)
        await stack.until(lambda: all(map(when, sent)), "every sane output is approved", PATIENT)
        return [1000 * ((when(one) or 0) - at) for one, at in sent.items()], commands


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


async def test_a_hostile_producer_hurts_nobody_else(
    broker: Kafka, redis_server: RedisServer, tmp_path: Path, figures: dict[str, dict[str, Any]]
) -> None:
    """Invented versions, models, entities and segments, the worst characters, garbage, and events of a megabyte."""
    async with campaign(broker, redis_server.url, tmp_path) as run:
        run.stack.write_policy("probe", PROBE)
        run.stack.write_policy("theirs", THEIRS)
        await run.stack.command("probe", "promote", "p1")
        await run.stack.command("theirs", "promote", "v1")
        await asyncio.sleep(2)
        alone = await measured(run.stack, SECONDS)
        hostile = Hostile(run.stack)
        try:
            await asyncio.sleep(2)
            beside = await measured(run.stack, SECONDS)
        finally:
            await hostile.stop()
        # Only the hostile producer's own model is hurt.
        assert run.stack.route("probe")["fenced"] == []
        assert run.stack.route("probe")["version"] == "p1"
        run.done["hostile records"] = hostile.sent
    told = zip(("verdict", "command"), alone, beside, strict=True)
    more = {
        f"ms p99 of an honest {what} ({p99(before):.0f} without)": f"{p99(under):.0f}" for what, before, under in told
    }
    figures["one hostile producer"] = run.figures() | more
