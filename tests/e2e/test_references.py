"""A reference that a person gives: for a guard that runs, one that starts again, and the verifier."""

import asyncio
import json

import pytest

from e2e.commands import holdfast
from e2e.stack import JUMP, POLICY, Stack, headers

pytestmark = pytest.mark.real_kafka

MODEL = "pricing"
HALF = JUMP.replace("up = 2.0", "down = 0.5\nup = 2.0")
STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    async with Stack(kafka, redis_server.url, {MODEL: HALF + STEADY}, folder=tmp_path, partitions=2) as stack:
        await stack.start("guard", "switch")
        yield stack


async def say(stack, entity, value):
    """Send one output; its verdict."""
    one = stack.prediction(MODEL, "v1", entity, value)
    await stack.send([one])
    return (await stack.until(lambda: stack.verdicts().get(one["prediction_id"]), "a verdict"))[0]


async def restart(stack):
    (guard,) = (worker for worker in stack.workers if worker.name == "guard")
    await asyncio.to_thread(guard.stop)
    await asyncio.to_thread(guard.start)
    await stack.ready(guard)


async def reference(stack, *arguments):
    said = await holdfast(stack.folder / "base.toml", "reference", *arguments)
    assert said.code == 0, said
    return said


async def taken(stack, count):
    """Wait until so many references stand in their topic, and the guard has read them."""
    await stack.until(lambda: len(stack.seen["references"]) >= count, "the reference is written")
    await asyncio.sleep(1)


async def audited(stack):
    said = await holdfast(stack.folder / "base.toml", "audit", "--once", "--json")
    assert said.code == 0, said
    return json.loads(said.out)


@pytest.mark.parametrize("restarts", [False, True])
async def test_an_accepted_value_is_held_against_until_an_output_is_approved(stack, restarts):
    """100, then 40 for good: blocked, until a person accepts 40; then 100 is too much."""
    assert await say(stack, "a", 100.0) == "approved"
    assert [await say(stack, "a", 40.0) for _ in range(2)] == ["blocked"] * 2
    await reference(stack, "accept", MODEL, "a", "--value", "40", "-r", "a sale")
    await taken(stack, 1)
    if restarts:
        await restart(stack)
    assert await say(stack, "a", 100.0) == "blocked", "it is held against 40"
    assert await say(stack, "b", 100.0) == "approved", "it is nobody else's"
    assert await say(stack, "a", 41.0) == "approved"
    (used,) = [r for r in stack.seen["approved"] if "holdfast-reference" in headers(r)]
    assert json.loads(headers(used)["holdfast-reference"])[0]["value"] == 40.0
    if restarts:
        await restart(stack)
    assert await say(stack, "a", 82.0) == "approved", "it is held against 41"
    assert await say(stack, "a", 40.0) == "blocked", "the reference is used up"
    shown = json.loads((await reference(stack, "show", MODEL, "--json")).out)
    assert [(one["entity_id"], one["value"], one["reason"]) for one in shown] == [("a", 40.0, "a sale")]
    assert [(a["action"], a["outcome"]) for a in stack.audits(MODEL)] == [("accept_reference", "applied")]
    found = await audited(stack)
    assert not any(found["violations"].values()), found


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_released_output_is_the_next_reference(stack, restarts):
    """100, then 40 is released by force: the next 40 passes, for a guard that ran and for one that starts again."""
    assert await say(stack, "a", 100.0) == "approved"
    assert await say(stack, "a", 40.0) == "blocked"
    config = stack.folder / "base.toml"
    said = await holdfast(config, "blocked", "release", MODEL, "-r", "a sale", "--force")
    assert said.code == 0, said
    await taken(stack, 1)
    if restarts:
        await restart(stack)
    assert [await say(stack, "a", value) for value in (40.0, 30.0, 100.0)] == ["approved", "approved", "blocked"]
    found = await audited(stack)
    assert not any(found["violations"].values()), found


async def test_many_values_come_from_a_file(stack, tmp_path):
    """A CSV file; a mistake in it names the line, and nothing is sent."""
    values = tmp_path / "values.csv"
    values.write_text("entity_id,value\na,40\nb,n/a\n")
    config = stack.folder / "base.toml"
    refused = await holdfast(config, "reference", "accept", MODEL, "--csv", str(values), "-r", "a sale")
    assert refused.code == 1
    assert "line 3: 'n/a' is not a number" in refused.flat()
    values.write_text("entity_id,value\n" + "".join(f"e{n},40\n" for n in range(1500)))
    await reference(stack, "accept", MODEL, "--csv", str(values), "-r", "a sale")
    await taken(stack, 1500)
    assert len(stack.audits(MODEL)) == 2
    assert [await say(stack, "e1499", value) for value in (100.0, 40.0)] == ["blocked", "approved"]


async def test_a_segment_takes_over_what_was_blocked_of_it(stack):
    """A sale in one segment: its entities go on at the new prices; other segments and what the floor blocks do not."""
    config = stack.folder / "base.toml"

    async def say_all(values, segment="cameras"):
        some = [stack.prediction(MODEL, "v1", entity, value, segment=segment) for entity, value in values.items()]
        await stack.send(some)
        await stack.until(lambda: all(one["prediction_id"] in stack.verdicts() for one in some), "verdicts")
        return [stack.verdicts()[one["prediction_id"]][0] for one in some]

    entities = [f"e{n}" for n in range(6)]
    await say_all(dict.fromkeys(entities, 100.0))
    await say_all({"lens": 100.0}, "lenses")
    assert await say_all(dict.fromkeys(entities, 30.0)) == ["blocked"] * 6
    assert await say_all({"lens": 30.0}, "lenses") == ["blocked"]
    # e4 is below the floor by now, and e5 is back where it was.
    assert await say_all({"e0": 40.0, "e4": 1.0}) == ["blocked"] * 2
    assert await say_all({"e5": 95.0}) == ["approved"]

    wrong = await holdfast(config, "reference", "accept", MODEL, "--segment", "camera", "-r", "a sale")
    assert wrong.code == 1
    assert "Segments with blocked outputs: cameras, lenses." in wrong.flat()
    other = await holdfast(
        config, "reference", "accept", MODEL, "--segment", "cameras", "--field", "features.cost", "-r", "a sale"
    )
    assert "No max_change check of pricing reads features.cost; fields with one: value." in other.flat()
    both = await holdfast(config, "reference", "accept", MODEL, "e0", "--segment", "cameras", "-r", "a sale")
    assert (both.code, stack.audits(MODEL)) == (1, [])

    said = await reference(stack, "accept", MODEL, "--segment", "cameras", "-r", "a sale")
    assert "The next value of 4 entities of the segment cameras is held against the latest one" in said.flat()
    assert "0.3 to 0.4 times the last approved one, 0.3 in the middle." in said.flat()
    assert "1 entity whose latest output fails price_floor too" in said.flat()
    assert "1 entity with a newer output that was approved" in said.flat()
    await taken(stack, 4)
    shown = json.loads((await reference(stack, "show", MODEL, "--json")).out)
    assert {one["entity_id"]: one["value"] for one in shown} == {"e0": 40.0, "e1": 30.0, "e2": 30.0, "e3": 30.0}
    assert await say_all({"e0": 41.0, "e1": 31.0, "e2": 31.0, "e3": 100.0, "e4": 30.0, "e5": 30.0}) == [
        *["approved"] * 3,
        *["blocked"] * 3,
    ]
    assert await say_all({"lens": 30.0}, "lenses") == ["blocked"]
    found = await audited(stack)
    assert not any(found["violations"].values()), found


async def test_a_condemned_version_gives_a_segment_no_reference(stack):
    """Its outputs are left out until it is unfenced."""
    config = stack.folder / "base.toml"
    one = stack.prediction(MODEL, "v1", "a", 100.0, segment="cameras")
    two = stack.prediction(MODEL, "v2", "a", 30.0, segment="cameras")
    for output in (one, two):
        await stack.send([output])
        await stack.until(lambda: output["prediction_id"] in stack.verdicts(), "a verdict")  # noqa: B023
    await stack.command(MODEL, "fence", "v2")
    arguments = ("reference", "accept", MODEL, "--segment", "cameras", "-r", "a sale")
    said = await holdfast(config, *arguments)
    assert said.code == 1
    assert "1 entity of the fenced version v2 (unfence it first if its outputs are right)" in said.flat()
    await stack.command(MODEL, "unfence", "v2")
    said = await holdfast(config, *arguments)
    assert said.code == 0, said
    await taken(stack, 1)
