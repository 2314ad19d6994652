"""`holdfast audit` against a real guard and switch: silent about what is right, and loud about a forgery."""

import asyncio
import json
import sys
import time
from datetime import timedelta

import pytest

from e2e.stack import POLICY, Stack
from holdfast.verify import ledger
from holdfast.verify import service as audit_service
from holdfast.verify.service import Auditor
from holdfast_schemas import utc_now

pytestmark = pytest.mark.real_kafka

VERDICTS = ("approved", "blocked", "malformed")
JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\nfield = "value"\ndown = 0.5\nup = 3.0\n'


async def audit(stack, *arguments):
    """Exit code and facts of `holdfast audit --once --json`."""
    command = [sys.executable, "-m", "holdfast.cli", "audit", "--once", "--json", *arguments]
    config = str(stack.write_config("audit"))
    process = await asyncio.create_subprocess_exec(
        *command, "--config", config, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert out, err.decode()
    return process.returncode, json.loads(out)


async def traffic(stack, number):
    """A mix of `number` predictions that are all judged when it returns: good, bad, jumping and malformed ones."""
    values = [
        b"{"
        if i % 50 == 7
        else stack.prediction(
            "pricing", f"v{1 + i % 3}", f"E{i % 9}", 5.0 if i % 10 == 3 else 100.0 + 300 * (i % 7 == 5)
        )
        for i in range(number)
    ]
    expected = sum(len(stack.seen[role]) for role in VERDICTS) + number
    await stack.send(values)
    await stack.until(lambda: sum(len(stack.seen[role]) for role in VERDICTS) == expected, "every one has a verdict")


async def test_the_checker_confirms_what_guards_did_and_finds_what_they_did_not_do(kafka, redis_server, tmp_path):
    """Exit code 0 and zeros; then a record that no guard wrote: exit code 1, and the kind in the table and metric."""
    async with Stack(kafka, redis_server.url, {"pricing": JUMP + POLICY}, folder=tmp_path) as stack:
        await stack.start("guard", "switch")
        (auditor,) = await stack.start("audit")
        await traffic(stack, 400)
        await stack.command("pricing", "fence", "v3")
        await traffic(stack, 400)
        code, facts = await audit(stack)
        assert code == 0, facts
        assert facts["checked"] == 800
        assert set(facts["violations"].values()) == {0}
        assert facts["not_judged_policy_unknown"] == 0
        assert (await audit(stack, "--since", "1h"))[0] == 0

        await stack.until(lambda: auditor.metric("holdfast_audit_checked_total") == 800)
        assert auditor.metric("holdfast_audit_violations_total") == 0
        ours = stack.seen["approved"][0].headers
        await stack.send([stack.prediction("pricing", "v3", "E1", 1.0)], role="approved", headers=ours)
        code, facts = await audit(stack)
        assert code == 1
        assert facts["violations"] == {kind: int(kind == "unchecked") for kind in facts["violations"]}
        await stack.until(lambda: auditor.metric("holdfast_audit_violations_total", kind="unchecked") == 1)
        assert auditor.told("violation", kind="unchecked", model="pricing")
        assert auditor.metric("holdfast_audit_lag_records") == 0
        auditor.stop()
        assert auditor.process.returncode == 0


async def look(stack, since, monkeypatch):
    """What the auditor found, and how many offsets of each role it read; it waits for nothing to become older."""
    monkeypatch.setattr(audit_service, "PATIENCE", 1e9)
    # More verdicts than are held at once were given before.
    monkeypatch.setattr(ledger, "LIMIT", 50)
    auditor = Auditor(stack.settings, since, once=True)
    try:
        await auditor.start()
        found = await auditor.once()
    finally:
        await auditor.stop()
    read = dict.fromkeys((*VERDICTS, "predictions"), 0)
    for role in read:
        for tp, position in auditor._position.items():
            if tp.topic == stack.topic(role):
                read[role] += position - auditor._began[tp]
    return found, read


async def test_a_look_at_a_short_time_reads_nothing_older_where_nothing_came(
    kafka, redis_server, tmp_path, monkeypatch
):
    """Though checks compare with earlier values; where something came, these are read, and nothing is waited for."""
    async with Stack(kafka, redis_server.url, {"pricing": JUMP + POLICY}, folder=tmp_path) as stack:
        await stack.start("guard", "switch")
        hour_ago = int((time.time() - 3600) * 1000)
        values = [stack.prediction("pricing", "v1", f"E{i % 9}", 5.0 if i % 10 == 3 else 100.0) for i in range(600)]
        await stack.send(values, timestamp_ms=hour_ago)
        await stack.until(lambda: sum(len(stack.seen[role]) for role in VERDICTS) == 600, "every one has a verdict")
        async with asyncio.timeout(60):
            while sum((await stack.committed()).values()) < 600:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            # The markers of the guard's transactions have the broker's time.
            since = utc_now() + timedelta(seconds=1)
            await asyncio.sleep(1.5)
            found, read = await look(stack, since, monkeypatch)
            assert (found.checked, found.violations.total()) == (0, 0)
            assert read == {"approved": 0, "blocked": 0, "malformed": 0, "predictions": 0}

            await stack.send([stack.prediction("pricing", "v1", f"E{i}", 100.0) for i in range(4)])
            await stack.until(lambda: sum(len(stack.seen[role]) for role in VERDICTS) == 604, "every one has a verdict")
            found, read = await look(stack, since, monkeypatch)
            assert (found.checked, found.violations.total(), found.unjudged) == (4, 0, 0)
            assert read["predictions"] == 4
            assert read["approved"] > 4
