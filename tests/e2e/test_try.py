"""`holdfast check --try` and `--event` on an existing topic of other people, before anything of Holdfast is there."""

import json
import uuid

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from e2e.commands import holdfast

pytestmark = pytest.mark.real_kafka

POLICY = """
model = "pricing"
[fields]
prediction_id = "meta.id"
model = "meta.model"
model_version = "meta.version"
entity_id = "sku"
value = "price.amount"
features = "inputs"
[[checks]]
name = "floor"
kind = "range"
min = 10
[[checks]]
name = "margin"
kind = "expression"
expression = "value >= cost"
unknown = "pass"
"""


def event(number, **more):
    return {
        "meta": {"id": number, "model": "pricing", "version": 7},
        "sku": 4711 + number,
        "price": {"amount": 100.0},
        "inputs": {"cost": 5},
        "box": {"size": 1},
        **more,
    }


@pytest.fixture
async def topic(kafka):
    """A topic of nested events, written by somebody who does not know Holdfast."""
    name = f"theirs-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, 3, 1)])
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for number in range(300):
            await producer.send(name, json.dumps(event(number)).encode(), key=str(number).encode())
        await producer.send_and_wait(name, b"\x00\x00\x00\x00\x07avro", partition=0)
    before = set(await admin.list_topics())
    yield name
    # Looking has created nothing.
    assert set(await admin.list_topics()) == before
    await admin.close()


@pytest.fixture
def installation(kafka, tmp_path):
    """A configuration and a policy, and no topic."""

    def write(policy):
        (tmp_path / "policies").mkdir(exist_ok=True)
        (tmp_path / "policies" / "pricing.toml").write_text(policy)
        config = tmp_path / "holdfast.toml"
        config.write_text(f'policies = "{tmp_path / "policies"}"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap}"\n')
        return config

    return write


async def test_the_newest_events_of_a_topic_are_judged(topic, installation):
    """As many as were asked for, of all partitions, with what each check says and what could not be decoded."""
    config = installation(POLICY)
    said = await holdfast(config, "check", "--try", topic, "--records", "50", "--json")
    assert said.code == 0
    facts = said.facts
    assert (facts["events"], facts["decoded"], facts["approved"]) == (50, 49, 49)
    assert set(facts["malformed"]) == {"schema_registry"}
    assert "schema's id 7" in facts["malformed"]["schema_registry"]["first"]
    assert facts["checks"]["pricing"]["margin"] == {"pass": 49, "fail": 0, "unknown": 0}
    assert facts["absent_fields"] == []
    assert {one["entity_id"] for one in facts["each"] if one["verdict"] == "approved"} <= {
        str(4711 + number) for number in range(300)
    }
    for_people = (await holdfast(config, "check", "--try", topic)).flat()
    assert "100 events: 99 approved, 0 blocked, 1 malformed." in for_people
    assert "The memory was empty at the first event" in for_people


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (("price.amount", "price.amout"), "nothing stands at `price.amout`"),
        (('model = "meta.model"', 'model = "meta.modell"'), "nothing stands at `meta.modell`"),
        (('entity_id = "sku"', 'entity_id = "box"'), "for `entity_id` at `box`, got an object with 1 keys"),
    ],
)
async def test_a_wrong_mapping_is_seen_with_the_true_reason(topic, installation, mistake, says):
    """Nothing can be decoded: exit code 1, and the path that was read."""
    said = await holdfast(installation(POLICY.replace(*mistake)), "check", "--try", topic)
    assert said.code == 1
    assert says in said.flat()
    assert "100 malformed." in said.flat()


async def test_a_feature_that_no_event_has_is_found(topic, installation):
    """A mistyped feature with `unknown = "pass"` would check nothing for ever."""
    said = await holdfast(installation(POLICY.replace(">= cost", ">= cots")), "check", "--try", topic)
    assert said.code == 0
    assert (
        "pricing: features.cots (at inputs.cots), which check margin reads, stands in none of the 99 events."
        in said.flat()
    )
    assert "There is cost beside it." in said.flat()


async def test_a_topic_that_is_not_there_is_not_made(topic, installation):
    """One sentence, and what to do."""
    said = await holdfast(installation(POLICY), "check", "--try", "nobodys-topic")
    assert said.code == 1
    assert "There is no topic nobodys-topic. Name the topic that the predictions are written to." in said.flat()


async def test_an_event_of_a_file_is_judged_without_kafka(topic, installation, tmp_path):
    """One event, broken over lines or not, or one in each line."""
    config = installation(POLICY)
    config.write_text(f'policies = "{tmp_path / "policies"}"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\n')
    file = tmp_path / "event.json"
    file.write_text(json.dumps(event(1), indent=2))
    assert (await holdfast(config, "check", "--event", str(file), "--json")).facts["approved"] == 1
    file.write_text("\n".join(json.dumps(event(n, price={"amount": n})) for n in range(20)))
    facts = (await holdfast(config, "check", "--event", str(file), "--json")).facts
    assert (facts["events"], facts["approved"], facts["blocked"]) == (20, 10, 10)
    file.write_text("{")
    assert (await holdfast(config, "check", "--event", str(file))).code == 1
    file.write_text("")
    assert "is empty" in (await holdfast(config, "check", "--event", str(file))).err
    assert "cannot be read" in (await holdfast(config, "check", "--event", str(tmp_path / "no"))).flat()
    assert (await holdfast(config, "check", "--event", str(file), "--try", topic)).code == 2
