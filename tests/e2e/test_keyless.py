"""Predictions whose record has no key are judged as others, counted, and told of."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends import Kafka, RedisServer
from e2e.commands import holdfast
from e2e.stack import POLICY, Stack


@pytest.fixture
async def stack(kafka: Kafka, redis_server: RedisServer, tmp_path: Path, unique: str) -> AsyncIterator[Stack]:
    async with Stack(kafka, redis_server.url, {unique: POLICY}, folder=tmp_path) as stack:
        yield stack


async def test_a_prediction_without_a_key_is_judged_counted_and_told_of(stack: Stack, unique: str) -> None:
    """Without one, or with an empty one; not those with a key. In the metric, the tallies, the log and doctor."""
    guard, _ = await stack.start("guard", "switch")
    await stack.command(unique, "promote", "v1")

    async def keys_of_doctor() -> list[list[str]]:
        said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
        return [[one["health"], one["finding"], one["advice"]] for one in said.facts if one["area"] == "keys"]

    def prediction(number: int) -> dict[str, Any]:
        return stack.prediction(unique, "v1", f"SKU-{number}", 100.0)

    await stack.send([prediction(number) for number in range(20)])
    await stack.until(lambda: guard.metric("holdfast_predictions_total", model=unique, verdict="approved") == 20)
    assert guard.metric("holdfast_keyless_predictions_total", model=unique) == 0
    assert await keys_of_doctor() == [["ok", "no prediction came without a key within a day", ""]]

    without = [json.dumps(prediction(number)).encode() for number in range(30)]
    await stack.send(without[:25])
    await stack.send(without[25:], key=b"")
    await stack.send([prediction(number) for number in range(20)])
    await stack.until(lambda: guard.metric("holdfast_predictions_total", model=unique, verdict="approved") == 70)
    assert guard.metric("holdfast_keyless_predictions_total", model=unique) == 30
    await stack.until(lambda: sum(one.get("keyless", 0) for one in stack.tallies(unique)) == 30, "in the tallies")
    # The state is written in the transaction that follows the tallies.
    while not (found := await keys_of_doctor())[0][1].startswith("30 "):  # noqa: ASYNC110  another process changes it
        await asyncio.sleep(0.1)
    ((_, finding, advice),) = found
    assert finding.startswith(f"30 predictions of {unique} had no key, the last one at 20")
    assert "set each record's key to its entity id" in advice
    assert "predictions without a key are judged" in guard.log.read_text()
