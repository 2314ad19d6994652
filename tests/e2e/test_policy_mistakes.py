"""Policies and tables that are wrong for some seconds, on a real broker: what they do, and how it is undone."""

import asyncio
import os

import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="function")]


async def serve(stack, version, value=100.0, count=40):
    """Predictions of ten entities, until each has its verdict; how many were approved."""
    before, approved = len(stack.verdicts()), len(stack.seen["approved"])
    await stack.send([stack.prediction("pricing", version, f"SKU-{n % 10}", value) for n in range(count)])
    await stack.until(lambda: len(stack.verdicts()) == before + count, "all have verdicts")
    return len(stack.seen["approved"]) - approved


async def earn_good(stack, version):
    await stack.command("pricing", "promote", version)
    while not any(a["action"] == "earned_good" and a["version"] == version for a in stack.audits("pricing")):
        await serve(stack, version, count=20)


async def takes_up(stack, guard, policy):
    before = len(guard.told("policies changed"))
    stack.write_policy("pricing", policy)
    await stack.until(lambda: len(guard.told("policies changed")) > before, "the policy is taken up")


async def test_a_policy_mistake_that_was_live_for_seconds_is_undone_by_one_command(kafka, redis_server, tmp_path):
    """It fenced both good versions and held the model; afterwards the route, `good` and incidents are as before."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        guard, _ = await stack.start("guard", "switch")
        for version in ("v1", "v2"):
            await earn_good(stack, version)
        await takes_up(stack, guard, POLICY.replace("min = 10.0", "min = 1000.0"))
        for version in ("v2", "v1"):
            assert await serve(stack, version) == 0
            await stack.until(lambda version=version: version in stack.route("pricing")["fenced"], f"{version} trips")
        assert stack.route("pricing")["state"] == "held"
        wrong = stack.incidents("pricing")[-1]["policy"]
        assert "was taken up" in stack.route("pricing")["reason"]
        opened = next(one for one in stack.incidents("pricing") if one["bad_version"] == "v2")
        assert (opened["policy"], opened["policy_before"]) == (wrong, stack.tallies("pricing")[0]["policy"])

        config = tmp_path / "base.toml"
        shown = (await holdfast(config, "incidents", "show", opened["incident_id"])).flat()
        assert f"The policy {wrong} was taken up" in shown
        assert f"holdfast policy undo-trips pricing --policy {wrong} --reason" in shown
        undo = ("policy", "undo-trips", "pricing", "--policy", wrong, "-r", "a typo in the floor")
        early = await holdfast(config, *undo)
        if early.code:  # The last bad tally may be three seconds old by now.
            assert f"guards judge by {wrong} still" in early.out

        await takes_up(stack, guard, POLICY)
        await serve(stack, "v3", count=1)
        for _ in range(100):
            said = await holdfast(config, *undo)
            if said.code == 0:
                break
            await asyncio.sleep(0.2)
        assert said.out.startswith(
            f"applied: trips under {wrong} are undone: v1 (good), v2 (good) are not fenced any more"
        )
        assert said.out.strip().endswith("v2 serves again")
        await stack.until(lambda: stack.route("pricing").get("version") == "v2", "v2 serves again")
        route = stack.route("pricing")
        assert (route["state"], route["fenced"], route["last_good"]) == ("auto", [], "v1")
        latest = {one["incident_id"]: one for one in stack.incidents("pricing")}.values()
        assert {(one["status"], one.get("resolved_because")) for one in latest} == {("resolved", "a typo in the floor")}
        assert await serve(stack, "v2") == 40

        again = await holdfast(config, *undo)
        assert (again.code, again.out) == (
            1,
            f"refused: no trip under {wrong} is left to undo; unfence versions one by one\n",
        )
        nonsense = await holdfast(config, "policy", "undo-trips", "pricing", "--policy", "latest", "-r", "x")
        assert nonsense.code == 2
        assert "is not a policy id" in nonsense.flat()


FLOORS = """
[[checks]]
name = "floors"
kind = "range"
table = "floors.csv"
unlisted = "fail"
"""


async def test_a_table_that_is_half_written_for_seconds_takes_no_version_down(kafka, redis_server, tmp_path):
    """2,501 of 200,000 rows lie there for four seconds. One that stays so is refused, and the old one is in force."""
    rows = ["entity_id,min\n", *(f"SKU-{n},10.0\n" for n in reversed(range(200_000)))]
    async with Stack(kafka, redis_server.url, {}, folder=tmp_path) as stack:
        floors, fresh = stack.policies / "floors.csv", stack.policies / ".floors"
        floors.write_text("".join(rows))
        os.utime(floors, ns=(0, 0))  # long ago
        stack.write_policy("pricing", FLOORS + POLICY)
        guard, _ = await stack.start("guard", "switch")
        await earn_good(stack, "v1")
        judged_by = stack.tallies("pricing")[-1]["policy"]

        with floors.open("w") as file:
            file.writelines(rows[:2502])
            file.flush()
            for _ in range(8):
                assert await serve(stack, "v1", count=10) == 10
                await asyncio.sleep(0.5)
            file.writelines([*rows[2502:], "SKU-new,10.0\n"])
        await stack.until(lambda: guard.told("policies changed"), "the whole table is taken up")
        assert await serve(stack, "v1") == 40
        assert stack.tallies("pricing")[-1]["policy"] != judged_by
        assert stack.route("pricing")["fenced"] == []

        # On a slow machine it may have been refused before, too.
        before = len(guard.told("new policy refused, the old one stays"))
        with floors.open("w") as file:
            file.writelines(rows[:2502])
        refused = await stack.until(
            lambda: guard.told("new policy refused, the old one stays")[before:], "the short table is refused"
        )
        assert "table floors.csv has 2,501 rows, and the one in force has 200,001" in refused[-1]["error"]
        assert guard.metric("holdfast_policies_refused_total") >= 1
        assert await serve(stack, "v1") == 40
        assert stack.route("pricing")["fenced"] == []

        fresh.write_text("".join(rows))
        fresh.replace(floors)
        await stack.until(lambda: len(guard.told("policies changed")) == 2, "the whole one is taken up")
        assert await serve(stack, "v1") == 40
