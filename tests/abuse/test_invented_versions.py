"""A producer that puts another version into each prediction, on real servers: nobody else's model notices it."""

import pytest

from e2e.stack import POLICY, Stack

pytestmark = pytest.mark.real_kafka

WORST = "\u0001"
CRITICAL = POLICY.replace('kind = "range"', 'kind = "range"\nseverity = "critical"')


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    policies = {"pricing": CRITICAL, "churn": POLICY}
    async with Stack(kafka, redis_server.url, policies, folder=tmp_path, partitions=1) as made:
        await made.start("guard", "switch")
        yield made


async def held(stack):
    """Another model's hold is obeyed."""
    audit = await stack.command("churn", "hold", reason="a test")
    assert audit["outcome"] == "applied"


async def test_versions_with_ids_of_the_worst_characters_do_not_stop_the_switch(stack):
    """110 invented versions trip; then 250 fail ten times each, half of them with long ids that JSON must escape."""
    await stack.send([stack.prediction("pricing", f"bad-{n}" + "x" * 190, f"E-{n}", 0.01) for n in range(110)])
    await stack.send(
        [
            stack.prediction("pricing", f"new-{n % 250}" + "x" * 190, f"{n}" + (WORST * 990 + "x") * (n % 2), 0.01)
            for n in range(2500)
        ]
    )
    await stack.until(lambda: len(stack.seen["blocked"]) == 2610, "all are blocked")
    await held(stack)
    largest = max(len(record.value) for record in stack.seen["state"])
    assert largest <= 1024 * 1024
    assert all(len(record.value) <= 64 * 1024 for record in stack.seen["control"])
    incidents = {record.key for record in stack.seen["incidents"]}
    assert len(incidents) <= 20


async def test_versions_without_end_do_not_keep_commands_of_other_models_waiting(stack):
    """10,000 records of as many versions: few are counted one by one, and the rest of them together."""
    await stack.send([stack.prediction("pricing", f"v-{n}", f"E-{n}", 100.0) for n in range(10_000)])
    await held(stack)
    await stack.until(lambda: len(stack.seen["approved"]) == 10_000, "all are judged")
    tallies = stack.tallies("pricing")
    assert len(tallies) < 2000
    assert sum(tally["seen"] for tally in tallies) == 10_000
    assert any(tally["model_version"] == "holdfast:others" for tally in tallies)
