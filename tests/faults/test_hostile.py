"""One hostile producer among honest ones: their verdicts and commands are as without it."""

import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from backends import Kafka, RedisServer
from e2e.stack import Stack
from faults import neighbour
from faults.campaign import LONG, PATIENT, campaign

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(600)]

SECONDS = 30.0 if LONG else 5.0
PROBE = '[[checks]]\nname = "bounds"\nkind = "range"\nmin = 1.0\nmax = 10.0\n'
THEIRS = PROBE + "[breaker]\nmin_entities = 1\nmin_partitions = 1\n"


@contextlib.asynccontextmanager
async def beside(stack: Stack, kind: str) -> AsyncIterator[list[int]]:
    """With such a neighbour; then how many records it has sent."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, neighbour.__file__, kind, stack.kafka.bootstrap, stack.topic("predictions")),
        stdout=asyncio.subprocess.PIPE,
    )
    sent: list[int] = []
    try:
        await asyncio.sleep(3)
        assert process.returncode is None, "it writes until it is terminated"
        yield sent
    finally:
        process.terminate()
        out, _ = await process.communicate()
    sent.append(int(out))


@contextlib.asynccontextmanager
async def answers(stack: Stack) -> AsyncIterator[Callable[[str], float | None]]:
    """When each verdict and each decision on the probe's model was there for consumers, by the id of what was sent."""
    seen: dict[str, float] = {}
    consumer = AIOKafkaConsumer(
        bootstrap_servers=stack.kafka.bootstrap, isolation_level="read_committed", fetch_max_wait_ms=20
    )
    await consumer.start()
    sizes = {"approved": stack.sizes["predictions"], "audit": stack.sizes["control"]}
    partitions = [TopicPartition(stack.topic(role), n) for role, size in sizes.items() for n in range(size)]
    consumer.assign(partitions)
    await consumer.seek_to_end(*partitions)

    async def follow() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    if b'"probe"' in record.value:
                        document = json.loads(record.value)
                        seen.setdefault(document.get("prediction_id") or document.get("command_id"), time.monotonic())

    task = asyncio.create_task(follow())
    try:
        yield seen.get
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()


async def measured(stack: Stack, seconds: float) -> tuple[list[float], list[float]]:
    """The milliseconds to each verdict on a sane output, and to each decision on a command, of an honest model."""
    sent: dict[str, float] = {}
    commands: dict[str, float] = {}
    async with answers(stack) as when:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            event = stack.prediction("probe", "p1", f"P{len(sent) % 40}", 5.0)
            sent[event["prediction_id"]] = time.monotonic()
            await stack.send([event])
            if len(sent) % 10 == 1:
                command = stack.command_record("probe", "unpin" if len(commands) % 2 else "pin")
                commands[command["command_id"]] = time.monotonic()
                await stack.send([command], role="control")
            await asyncio.sleep(0.05)
        for some in (sent, commands):
            await stack.until(lambda some=some: all(map(when, some)), "every one is answered", PATIENT)
        refused = [one for one in stack.audits("probe") if one["outcome"] != "applied"]
        assert not refused, refused
    verdicts, decisions = ([1000 * ((when(one) or 0) - at) for one, at in some.items()] for some in (sent, commands))
    return verdicts, decisions


def told(milliseconds: list[float]) -> str:
    """Their p50 and p99."""
    values = sorted(milliseconds)
    return " and ".join(f"{values[math.ceil(share * len(values)) - 1]:.0f}" for share in (0.5, 0.99))


async def test_a_hostile_producer_hurts_nobody_else(
    broker: Kafka, redis_server: RedisServer, tmp_path: Path, figures: dict[str, dict[str, Any]]
) -> None:
    """Invented versions, models, entities and segments, the worst characters, garbage, and events of a megabyte."""
    async with campaign(broker, redis_server.url, tmp_path, rate=100) as run:
        run.stack.write_policy("probe", PROBE)
        run.stack.write_policy("theirs", THEIRS)
        await run.stack.command("probe", "promote", "p1")
        await run.stack.command("theirs", "promote", "v1")
        await asyncio.sleep(2)
        alone = await measured(run.stack, SECONDS)
        async with beside(run.stack, "honest"):
            usual = await measured(run.stack, SECONDS)
        async with beside(run.stack, "hostile") as sent:
            hostile = await measured(run.stack, SECONDS)
        # Only the hostile producer's own model is hurt.
        assert run.stack.route("probe")["fenced"] == []
        assert run.stack.route("probe")["version"] == "p1"
        run.done["hostile records"] = sent[0]
    measures = zip(("verdict", "command"), alone, usual, hostile, strict=True)
    more = {
        f"ms p50 and p99 of an honest {what} ({told(without)} without a neighbour, {told(beside_honest)} beside an "
        "honest one)": told(under)
        for what, without, beside_honest, under in measures
    }
    figures["one hostile producer"] = run.figures() | more
