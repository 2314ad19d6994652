"""What cannot be decoded: who is to blame for it, and what becomes of it, on real servers."""

import asyncio
import json
import re

import httpx
import pytest
import pytest_asyncio

from e2e.commands import holdfast
from e2e.stack import POLICY, START_TOKEN, Stack, headers, sign_in
from e2e.test_switching import fenced, serve_well
from holdfast.verify.service import audit_once

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="module")]

VALUES = {"null": None, "nan": "NaN", "text": "12.5", "nothing": ...}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    """One guard and one switch; each test has a model of its own."""
    folder = tmp_path_factory.mktemp("malformed")
    async with Stack(kafka, redis_server.url, dict.fromkeys((*VALUES, "junk"), POLICY), folder=folder) as stack:
        await stack.start("guard", "switch")
        yield stack


def of(stack, model):
    return [r for r in stack.seen["malformed"] if headers(r).get("holdfast-model") == model.encode()]


@pytest.mark.parametrize("model", VALUES)
async def test_a_version_that_sends_no_number_is_left(stack, model):
    """Null, the NaN of another language, a number as text, nothing at all: the route goes back, with the evidence."""
    await serve_well(stack, model, "v1")
    assert (await stack.command(model, "promote", "v2"))["outcome"] == "applied"
    events = [stack.prediction(model, "v2", f"E-{n % 20}", VALUES[model]) for n in range(200)]
    for event in events if VALUES[model] is ... else []:
        del event["value"]
    await stack.send(events)
    await fenced(stack, model, "v2")
    await stack.until(lambda: stack.route(model)["version"] == "v1", "the route goes back")
    incident = stack.incidents(model)[0]
    assert (incident["bad_version"], incident["action"], incident["routed_to"]) == ("v2", "switched", "v1")
    assert set(incident["blocked_by_check"]) == {"malformed"}
    assert incident["first_blocked_at"]
    for sample in incident["samples"]:
        assert sample["prediction"]["entity_id"].startswith("E-")
        (finding,) = sample["findings"]
        assert (finding["check"], finding["field"], finding["enforced"]) == ("malformed", "value", True)
    await stack.until(lambda: len(of(stack, model)) == 200, "every record is kept, with the reason")
    kinds = {headers(r)["holdfast-error-kind"] for r in of(stack, model)}
    assert kinds == {b"no_output" if VALUES[model] in (None, ...) else b"wrong_type"}
    assert {headers(r)["holdfast-model-version"] for r in of(stack, model)} == {b"v2"}


async def test_what_names_no_version_is_nobodys(stack):
    """It stays in the malformed topic, and no version is fenced for it."""
    await serve_well(stack, "junk", "v1")
    before = len(stack.seen["malformed"])
    await stack.send([b'{"model":"junk","value":null}'] * 100, partition=0)
    await stack.send([b'{"model":"junk","model_version":"v1","value":'] * 100, partition=1)
    await stack.until(lambda: len(stack.seen["malformed"]) == before + 200, "all are kept")
    assert of(stack, "junk") == []
    assert stack.route("junk")["fenced"] == []
    (guard, _) = stack.workers
    assert guard.metric("holdfast_malformed_total", model="none", reason="not_json") == 100
    assert guard.metric("holdfast_malformed_total", model="none", reason="missing_field") == 100
    assert guard.metric("holdfast_malformed_total", model="null", reason="no_output") == 200


async def test_the_verifier_agrees(stack):
    """Tallies and malformed records add up."""
    found = await audit_once(stack.settings, None)
    assert found.checked > 0
    assert found.facts()["examples"] == []
    assert json.dumps(found.facts())


# Seeing and retrying it

MAPPED = '[fields]\nvalue = "price.{}"\n' + POLICY


@pytest_asyncio.fixture(loop_scope="module")
async def mapped(kafka, redis_server, tmp_path):
    """A guard with a mistyped mapping."""
    async with Stack(kafka, redis_server.url, {"pricing": MAPPED.format("amout")}, folder=tmp_path) as stack:
        await stack.start("guard")
        yield stack


def priced(stack, entity, amount, model="pricing"):
    event = stack.prediction(model, "v1", entity, None, price={"amount": amount})
    del event["value"]
    return event


async def command(stack, *arguments):
    return await holdfast(stack.folder / "base.toml", "malformed", *arguments)


async def test_malformed_records_are_listed_and_judged_again_once(mapped):
    """Once the mapping is right: what passes is approved once, what fails or is still malformed stays and says so."""
    stack = mapped
    assert "No record that fits was malformed" in (await command(stack, "list")).out
    (api,) = await stack.start("api")
    cookies = await asyncio.to_thread(sign_in, f"http://127.0.0.1:{api.port}", START_TOKEN)
    events = [priced(stack, f"SKU-{n}", amount) for n, amount in enumerate((100.0, 5.0, "x", 120.0))]
    places = await stack.send(events, headers=[("trace", b"t-1")])
    await stack.send([b"{", json.dumps(priced(stack, "other", 1.0, "unheard-of")).encode()], key=b"k")
    sources = [f"{stack.topic('predictions')}/{partition}/{offset}" for partition, offset in places]
    # One that names a model without a policy is decoded by the contract's shape, where it has no output.
    await stack.until(lambda: len(stack.seen["malformed"]) == 6, "all are malformed")
    listed = (await command(stack, "list", "--json")).facts
    assert (listed["count"], listed["kinds"]) == (6, {"no_output": 5, "not_json": 1})
    assert "nothing stands at `price.amout`" in listed["first_reasons"]["no_output"]
    assert (await command(stack, "list", "pricing", "--kind", "no_output", "--json")).facts["count"] == 4
    people = (await command(stack, "list", "--limit", "2")).flat()
    assert "6 malformed (5 no_output, 1 not_json); the latest 2 are shown." in people

    def console():
        answer = httpx.get(f"http://127.0.0.1:{api.port}/", cookies=cookies, timeout=5)
        return answer.text

    await stack.until(lambda: 'id="malformed"' in console(), "the console says it")
    page = " ".join(re.sub(r"<[^>]+>", "", console()).split())
    assert "6 records of the last 5m could not be decoded: 5 no_output" in page
    assert "nothing stands at `price.amout`" in page
    assert "All is well" not in page

    arguments = ("retry", "pricing", "-r", "the mapping was mistyped", "--actor", "alice")
    still = await command(stack, *arguments)
    assert still.code == 1
    assert "5 still malformed." in still.out
    (guard,) = (worker for worker in stack.workers if worker.name == "guard")
    stack.write_policy("pricing", MAPPED.format("amount"))
    await stack.until(lambda: guard.told("policies changed"), "the guard has the mapping")
    dry = (await command(stack, *arguments, "--dry-run", "--json")).facts
    assert dry["counts"] == {"would_be_released": 2, "still_fails": 1, "still_malformed": 2}
    done = await command(stack, *arguments)
    assert done.code == 1
    assert "2 released" in done.out
    assert 'expected a number for `value` at `price.amount`, got the text "x"' in done.flat()
    again = (await command(stack, *arguments, "--json")).facts
    assert again["counts"] == {"already_released": 2, "still_fails": 1, "still_malformed": 2}
    await stack.settled()
    released = [r for r in stack.seen["approved"] if headers(r)["holdfast-verdict"] == b"released"]
    assert sorted(headers(r)["holdfast-source"].decode() for r in released) == sorted([sources[0], sources[3]])
    for record in released:
        given = headers(record)
        assert (given["trace"], given["holdfast-released-by"]) == (b"t-1", b"alice")
        assert "holdfast-error" not in given
        assert "holdfast-error-kind" not in given
    audits = [a for a in stack.audits("pricing") if a["action"] == "retry" and "source" in a]
    assert [(a["actor"], a["reason"]) for a in audits] == [("alice", "the mapping was mistyped")] * 2

    forced = (await command(stack, *arguments, "--force", "--source", sources[1], "--json")).facts
    assert forced["counts"] == {"released": 1}
    assert (await command(stack, "retry", "elsewhere", "-r", "x", "--source", "t/0/0")).code == 1
    found = await audit_once(stack.settings, None)
    assert (found.released, found.facts()["examples"]) == (3, [])
