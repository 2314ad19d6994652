"""`holdfast offsets set` judges nothing a second time unless a person says so."""

import asyncio
import os
import pty
import subprocess

import pytest

from e2e.commands import HOLDFAST, holdfast
from e2e.stack import POLICY, Stack, body

pytestmark = pytest.mark.real_kafka

MODEL = "pricing"


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    async with Stack(kafka, redis_server.url, {MODEL: POLICY}, folder=tmp_path, partitions=1) as stack:
        yield stack


async def send(stack, count):
    await stack.send([stack.prediction(MODEL, "v1", f"SKU-{n}", 100.0) for n in range(count)])


async def judged(stack, count):
    """Wait until so many are approved, and no more than that come."""
    await stack.until(lambda: len(stack.seen["approved"]) >= count, f"{count} verdicts")
    await stack.settled()
    assert len(stack.seen["approved"]) == count


async def set_offset(stack, *arguments, service="guard"):
    return await holdfast(stack.folder / "base.toml", "offsets", "set", service, *arguments)


async def test_an_offset_before_verdicts_is_refused(stack):
    """Under a guard that runs, and after the group has lost its offsets; --yes is not enough, --force is."""
    (guard,) = await stack.start("guard")
    await send(stack, 40)
    await judged(stack, 40)
    for arguments in (("--to", "10"), ("--to", "10", "--yes"), ("--to", "earliest"), ("--to", "2020-01-01T00:00:00Z")):
        said = await set_offset(stack, *arguments)
        assert said.code == 1, said
        assert "judged a second time, and what passes is approved twice. Choose offset 40 or a later one" in said.flat()
        assert said.flat().endswith("Nothing was changed.")
    assert (await set_offset(stack, "--to", "40")).code == 0
    await send(stack, 1)
    await judged(stack, 41)

    guard.stop()
    await stack.kafka.delete_group(stack.settings.guard.group)
    assert (await set_offset(stack, "--to", "earliest")).code == 1
    (moved,) = (await set_offset(stack, "--to", "earliest", "--force", "--json")).facts
    assert (moved["before"], moved["after"], moved["repeated"]) == (None, 0, 41)
    guard.start()
    await judged(stack, 82)


async def test_what_was_passed_over_may_be_gone_back_to(kafka, redis_server, tmp_path):
    """20 came before the first start, and nothing has a verdict: `earliest` judges them, each once."""
    latest = {"guard": {"start_from": "latest"}}
    policies = {MODEL: POLICY}
    async with Stack(kafka, redis_server.url, policies, folder=tmp_path, partitions=1, settings=latest) as stack:
        await send(stack, 20)
        (guard,) = await stack.start("guard")
        await stack.until(lambda: any(line["event"].startswith("first start") for line in guard.lines()), "it begins")
        said = await set_offset(stack, "--to", "earliest", "--json")
        assert (said.code, said.facts[0]["repeated"]) == (0, 0), said
        await send(stack, 1)
        await judged(stack, 21)


async def test_a_person_at_a_terminal_is_asked(stack):
    """The question names the effect; no changes nothing, and yes does it."""
    await stack.start("guard")
    await send(stack, 5)
    await judged(stack, 5)
    code, said = await asyncio.to_thread(at_a_terminal, stack, "n")
    assert code == 1
    assert "5 records from there on are judged a second time, and what passes is approved twice." in said
    await judged(stack, 5)
    assert (await asyncio.to_thread(at_a_terminal, stack, "y"))[0] == 0
    await send(stack, 1)
    await judged(stack, 11)


def at_a_terminal(stack, answer):
    """Exit code, and what it said, of a command that goes back to the beginning."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*HOLDFAST, "offsets", "set", "guard", "--to", "earliest", "--config", str(stack.folder / "base.toml")],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.write(ours, f"{answer}\n".encode())
        said, _ = process.communicate(timeout=60)
        return process.returncode, " ".join(said.split())
    finally:
        os.close(ours)
        os.close(theirs)


async def test_the_switch_takes_in_nothing_twice(stack):
    """Commands and tallies that its state has taken in are not gone back to."""
    (switch,) = await stack.start("switch")
    await stack.command(MODEL, "promote", "v1")
    said = await set_offset(stack, "--to", "earliest", service="switch")
    assert said.code == 1
    assert "count a second time, and commands among them may be carried out again" in said.flat()
    assert (await set_offset(stack, "--to", "latest", service="switch")).code == 0
    await stack.command(MODEL, "promote", "v2")
    assert [one["outcome"] for one in stack.audits(MODEL)] == ["applied"] * 2
    assert body(stack.seen["routes"][-1])["version"] == "v2"
    assert switch.running
