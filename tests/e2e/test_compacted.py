"""Compacted topics: deletions are passed on where the configuration says so, and what is gone is no false alarm."""

import asyncio

import pytest

from e2e.stack import POLICY, Stack, headers
from e2e.test_refused_records import alter, audited

pytestmark = pytest.mark.real_kafka

STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")


@pytest.mark.parametrize("tombstones", ["malformed", "pass"])
async def test_a_deletion_is_malformed_or_passed_on(kafka, redis_server, tmp_path, tombstones):
    """In order with the outputs of its key; what was blocked before it is not released after it."""
    settings = {"guard": {"tombstones": tombstones}}
    async with Stack(
        kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, partitions=1, settings=settings
    ) as stack:
        await stack.start("guard")
        await stack.send([stack.prediction("pricing", "v1", "A", 100.0), stack.prediction("pricing", "v1", "A", 0.1)])
        ((_, offset),) = await stack.send([None], key=b"A")
        await stack.send([stack.prediction("pricing", "v1", "B", 100.0)])
        passed = tombstones == "pass"
        await stack.until(lambda: len(stack.seen["approved"]) == 2 + passed, "the approved ones")
        await stack.until(lambda: len(stack.seen["malformed"]) == 1 - passed, "the malformed ones")
        if passed:
            deletion = stack.seen["approved"][1]
            assert (deletion.key, deletion.value) == (b"A", None)
            assert headers(deletion) == {
                "holdfast-verdict": b"deleted",
                "holdfast-source": f"{stack.topic('predictions')}/0/{offset}".encode(),
            }
        facts = await audited(stack)
        assert set(facts["violations"].values()) == {0}, facts
        assert facts["checked"] == 4


async def test_predictions_that_compaction_removed_are_no_alarm(kafka, redis_server, tmp_path):
    """30 outputs of three keys are judged, and all but the last of each key are removed from the input."""
    async with Stack(kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, partitions=1) as stack:
        await alter(stack, "predictions", cleanup_policy="compact", min_cleanable_dirty_ratio="0.01", segment_ms="500")
        await stack.start("guard")
        for round_ in range(10):
            await stack.send([stack.prediction("pricing", "v1", f"E{n}", 100.0 + round_) for n in range(3)])
        await stack.until(lambda: len(stack.seen["approved"]) == 30, "all are approved")
        await asyncio.sleep(1)
        # The segment that is written to is never compacted.
        await stack.send([stack.prediction("pricing", "v1", "LAST", 100.0)])
        await stack.until(lambda: len(stack.seen["approved"]) == 31, "the last one is approved")

        async def left():
            consumer = stack._consumer("read_committed")
            await consumer.start()
            try:
                consumer.assign([tp for tp in stack._partitions() if tp.topic == stack.topic("predictions")])
                return sum(map(len, (await consumer.getmany(timeout_ms=1000)).values()))
            finally:
                await consumer.stop()

        async with asyncio.timeout(60):
            while await left() > 10:
                pass
        facts = await audited(stack)
        assert set(facts["violations"].values()) == {0}, facts
        assert facts["input_removed"] > 20
        assert facts["checked"] + facts["input_removed"] == 31
