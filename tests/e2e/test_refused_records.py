"""A record that a topic of verdicts does not take, or would delete at once: the others of its batch are judged."""

import asyncio
import json
import sys
import time
from datetime import datetime

import pytest

from backends import admin_of
from e2e.stack import POLICY, Stack, body, headers
from holdfast.kafka.topic_settings import set_settings

pytestmark = pytest.mark.real_kafka

STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")
HOUR_MS = 3_600_000
OPEN = {"message_timestamp_after_max_ms": str(2**63 - 1)}


async def alter(stack, role, **settings):
    """Change settings of a topic; `_` stands for a dot in their names."""
    changes = {key.replace("_", "."): value for key, value in settings.items()}
    async with admin_of(stack.kafka.bootstrap) as admin:
        await set_settings(admin, {stack.topic(role): changes})


async def audited(stack):
    """The facts of `holdfast audit --once`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "holdfast.cli", "audit", "--once", "--json"),
        *("--config", str(stack.write_config("audit"))),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return json.loads(out)


def produced(record):
    return datetime.fromisoformat(headers(record)["holdfast-produced-at"].decode()).timestamp() * 1000


async def test_a_record_that_a_topic_refuses_goes_to_malformed_alone(kafka, redis_server, tmp_path):
    """A time two hours ahead, a value that is too large, a missing key in a compacted topic: each with its reason."""
    async with Stack(kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, partitions=1) as stack:
        await alter(stack, "predictions", **OPEN)
        await alter(stack, "approved", message_timestamp_after_max_ms=str(HOUR_MS), max_message_bytes="20000")
        await alter(stack, "approved", cleanup_policy="compact")
        await alter(stack, "malformed", message_timestamp_after_max_ms=str(HOUR_MS))
        ahead = round(time.time() * 1000) + 2 * HOUR_MS
        good = [stack.prediction("pricing", "v1", f"E-{n}", 100.0) for n in range(300)]
        await stack.send(good[:150])
        await stack.send([stack.prediction("pricing", "v1", "AHEAD", 100.0)], timestamp_ms=ahead)
        await stack.send([b"{"], key=b"BROKEN", timestamp_ms=ahead)
        await stack.send([stack.prediction("pricing", "v1", "LARGE", 100.0, note="x" * 30_000)])
        keyless = json.dumps(stack.prediction("pricing", "v1", "KEYLESS", 100.0)).encode()
        await stack.send([keyless])
        await stack.send([stack.prediction("pricing", "v1", "CHEAP", 0.1)], timestamp_ms=ahead)
        await stack.send(good[150:])
        (guard,) = await stack.start("guard")
        await stack.until(lambda: len(stack.seen["approved"]) >= 300, "the good ones are approved")
        await stack.until(lambda: len(stack.seen["malformed"]) >= 4, "the refused ones are malformed")
        await stack.settled()
        assert [body(record)["entity_id"] for record in stack.seen["approved"]] == [one["entity_id"] for one in good]
        # The blocked topic takes any time.
        assert [body(record)["entity_id"] for record in stack.seen["blocked"]] == ["CHEAP"]
        found = {record.key: record for record in stack.seen["malformed"]}
        assert set(found) == {b"AHEAD", b"BROKEN", b"LARGE", None}
        place = f"the topic {stack.topic('approved')} does not take it: "
        for key, reason in (
            (b"AHEAD", f"{place}its timestamp is further from now than the topic's settings allow"),
            (b"LARGE", f"{place}it is larger than max.message.bytes there"),
            (None, f"{place}the broker does not take it"),
        ):
            assert headers(found[key])["holdfast-error"].decode().startswith(reason), key
            assert headers(found[key])["holdfast-error-kind"] == b"refused"
        # What cannot be decoded keeps its own reason, and its time where the topic takes no such time.
        assert headers(found[b"BROKEN"])["holdfast-error-kind"] == b"not_json"
        for key in (b"AHEAD", b"BROKEN"):
            assert abs(found[key].timestamp - time.time() * 1000) < HOUR_MS
            assert produced(found[key]) == ahead
        assert guard.running
        facts = await audited(stack)
        assert set(facts["violations"].values()) == {0}, facts
        assert facts["checked"] == 305


async def test_old_timestamps_do_not_delete_a_verdict_at_once(kafka, redis_server, tmp_path):
    """Dated eight days ago: written with the time of the verdict, and the producer's time in a header."""
    async with Stack(kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, partitions=1) as stack:
        await alter(stack, "predictions", retention_ms="-1")
        await alter(stack, "malformed", retention_ms="-1")
        long_ago = round(time.time() * 1000) - 8 * 24 * HOUR_MS
        recent = round(time.time() * 1000) - 5 * 24 * HOUR_MS
        (guard,) = await stack.start("guard")
        await stack.send([stack.prediction("pricing", "v1", f"E-{n}", 100.0) for n in range(10)], timestamp_ms=long_ago)
        await stack.send([stack.prediction("pricing", "v1", "CHEAP", 0.1), b"{"], key=b"k", timestamp_ms=long_ago)
        await stack.send([stack.prediction("pricing", "v1", "RECENT", 100.0)], timestamp_ms=recent)
        await stack.until(lambda: len(stack.seen["approved"]) == 11 and stack.seen["blocked"], "verdicts")
        await stack.until(lambda: stack.seen["malformed"], "the malformed one")
        for record in [*stack.seen["approved"][:10], *stack.seen["blocked"]]:
            assert abs(record.timestamp - time.time() * 1000) < HOUR_MS
            assert produced(record) == long_ago
        # These topics keep them long enough.
        for record, at in ((stack.seen["approved"][10], recent), (stack.seen["malformed"][0], long_ago)):
            assert record.timestamp == at
            assert "holdfast-produced-at" not in headers(record)
        assert guard.metric("holdfast_restamped_total", topic="approved") == 10
        assert guard.metric("holdfast_restamped_total", topic="blocked") == 1
        assert guard.metric("holdfast_restamped_total", topic="malformed") == 0
        facts = await audited(stack)
        assert set(facts["violations"].values()) == {0}, facts
        assert facts["checked"] == 13
