"""What cannot be decoded: who is to blame for it, and what becomes of it, on real servers."""

import json

import pytest
import pytest_asyncio

from e2e.stack import POLICY, Stack, headers
from e2e.test_switching import fenced, serve_well
from holdfast.audit import audit_once

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
