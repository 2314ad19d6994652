"""Under `[fields]` people are told which entity and prediction it was, wherever evidence is shown."""

import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack

pytestmark = pytest.mark.real_kafka

MAPPED = '[fields]\nentity_id = "item.sku"\nprediction_id = "meta.id"\nvalue = "price"\n' + POLICY


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    async with Stack(kafka, redis_server.url, {"pricing": MAPPED}, folder=tmp_path) as stack:
        await stack.start("guard", "switch")
        yield stack


async def test_evidence_names_the_entity_and_the_prediction(stack):
    """The tally, the incident, the incident's page in the terminal, and the list of what was blocked."""
    events = [
        {"meta": {"id": f"p-{n}"}, "item": {"sku": 4711 + n % 20}, "price": 1.0, "model": "pricing", "model_version": 3}
        for n in range(80)
    ]
    for event in events:
        await stack.send([{**event, "entity_id": None}], key=str(event["item"]["sku"]).encode())
    await stack.until(lambda: stack.incidents("pricing"), "an incident opens")
    incident = stack.incidents("pricing")[0]
    assert incident["bad_version"] == "3"
    for sample in incident["samples"]:
        assert sample["entity_id"] == str(sample["prediction"]["item"]["sku"])
        assert (sample["prediction_id"], sample["value"]) == (sample["prediction"]["meta"]["id"], 1.0)
    config = stack.folder / "base.toml"
    first = incident["samples"][0]
    shown = (await holdfast(config, "incidents", "show", incident["incident_id"][:8], COLUMNS="160")).flat()
    assert f"{first['entity_id']} value 1, expected" in shown
    assert first["prediction_id"] in shown
    listed = await holdfast(config, "blocked", "list", "pricing", COLUMNS="160")
    assert f" {first['entity_id']} " in listed.flat()
    facts = (await holdfast(config, "blocked", "list", "pricing", "--json")).facts["predictions"]
    assert {(one["entity_id"], one["prediction_id"]) for one in facts} <= {
        (str(event["item"]["sku"]), event["meta"]["id"]) for event in events
    }
