"""Topics on a broker that creates topics by itself: looking creates none, unsafe settings are refused or corrected."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import UnknownTopicOrPartitionError

from backends import GENEROUS, private_kafka
from e2e.commands import holdfast, start
from e2e.stack import POLICY, Stack
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.reading import reader
from holdfast.kafka.topic_settings import set_settings, settings_of
from holdfast.kafka.topics import partitions_of
from holdfast_schemas import TOPICS

pytestmark = pytest.mark.real_kafka

DEFAULTS = {
    "auto.create.topics.enable": "true",
    "num.partitions": "3",
    "log.retention.hours": "168",
}


@pytest.fixture(scope="module")
def creating():
    """A broker that creates each topic that somebody asks about, with its defaults."""
    with private_kafka(DEFAULTS) as broker:
        yield broker


@pytest.fixture
async def stack(creating, redis_server, tmp_path):
    async with Stack(
        creating, redis_server.url, {"pricing": POLICY}, folder=tmp_path, create=False, follow=()
    ) as stack:
        yield stack


async def ours(stack):
    """The topics of this installation that are on the broker."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    try:
        return {name for name in await admin.list_topics() if name.startswith(stack.run)}
    finally:
        await admin.close()


async def actual(stack, role):
    """The settings of one topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    try:
        return {
            key: setting.value
            for key, setting in (await settings_of(admin, [stack.topic(role)]))[stack.topic(role)].items()
        }
    finally:
        await admin.close()


async def ends(stack, service):
    """What a service says that does not start. It ends with 1 and without a traceback."""
    process = start(stack.folder / "base.toml", service)
    _, said = await asyncio.to_thread(process.communicate, timeout=GENEROUS)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return said


async def create_by_accident(stack, roles=tuple(TOPICS)):
    """As a broker does that is asked about them by clients of others."""
    for role in roles:
        await stack.kafka.create_topic(stack.topic(role), 3, {})


LOOKS = (
    ("doctor",),
    ("route", "show"),
    ("incidents", "list"),
    ("blocked", "list", "pricing"),
    ("audit", "--once"),
    ("route", "promote", "pricing", "v1", "--reason", "a try"),
)


async def test_no_command_and_no_service_creates_a_topic_by_looking(stack):
    """Each of them says that the topics are missing; and `topics create` makes them as they must be."""
    for arguments in LOOKS:
        said = await holdfast(stack.folder / "base.toml", *arguments)
        assert said.code == 1, arguments
        assert "holdfast topics create" in said.flat(), (arguments, said)
    services = ("guard", "switch", "notify", "api", "audit")
    for said in await asyncio.gather(*(ends(stack, service) for service in services)):
        assert "Create the topics with: holdfast topics create" in said
    assert await ours(stack) == set()
    said = await holdfast(stack.folder / "base.toml", "topics", "create", "--json")
    assert said.code == 0, said
    assert set(said.facts.values()) == {"created"}
    for role, topic in TOPICS.items():
        has = await actual(stack, role)
        assert {key: has[key] for key in topic.settings} == topic.settings, role


async def test_no_client_of_holdfast_creates_a_topic(stack):
    """Whatever asks: the readers, an offset, a producer, a group. A client of others does create one."""
    kafka, name = stack.settings.kafka, f"{stack.run}.nowhere"
    with pytest.raises(KafkaUnavailable, match="does not exist"):
        await partitions_of(kafka, name)
    consumer = reader(kafka)
    await consumer.start()
    consumer.subscribe([name])
    await consumer.getmany(timeout_ms=500)
    await consumer.stop()
    grouped = AIOKafkaConsumer(name, group_id=stack.run, request_timeout_ms=1000, **kafka.client_options())
    with pytest.raises(UnknownTopicOrPartitionError):
        await grouped.start()
    await grouped.stop()
    producer = AIOKafkaProducer(request_timeout_ms=1000, **kafka.client_options())
    await producer.start()
    with pytest.raises(UnknownTopicOrPartitionError):
        await producer.send_and_wait(name, b"x")
    await producer.stop()
    assert await ours(stack) == set()


async def test_routes_that_a_broker_deletes_stop_guard_and_switch(stack):
    """After a week no guard would know which versions are fenced; each says so, and what to do."""
    await create_by_accident(stack)
    guard, switch = await asyncio.gather(ends(stack, "guard"), ends(stack, "switch"))
    for said, role in ((guard, "routes"), (switch, "routes"), (switch, "state")):
        assert f"{stack.topic(role)} has cleanup.policy=delete: what is older than its retention" in said
        assert "Correct it: holdfast topics create --fix" in said


async def test_topics_of_others_are_compared_and_corrected(stack):
    """Refused with a sentence for each difference; with --fix corrected, and nothing else is changed."""
    await create_by_accident(stack)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    await set_settings(admin, {stack.topic("routes"): {"segment.ms": "7200000"}})
    await set_settings(admin, {stack.topic("predictions"): {"retention.ms": "600000"}})
    await admin.close()
    config = stack.folder / "base.toml"
    said = await holdfast(config, "topics", "create")
    assert said.code == 1
    for role, words in {
        "routes": "cleanup.policy=delete: what is older than its retention is deleted, and after a restart a guard",
        "state": "cleanup.policy=delete: what is older than its retention is deleted, and after a restart the switch",
        "predictions": "retention.ms=600000: it keeps records for less than an hour; a guard that is down for longer",
        "control": "message.timestamp.type=CreateTime: the clocks of services differ",
        "approved": "max.message.bytes=1048588: a record that is too large",
    }.items():
        assert f"{stack.topic(role)} has {words}" in said.flat(), role
    assert "Correct them: holdfast topics create --fix" in said.flat()
    assert (await actual(stack, "routes"))["cleanup.policy"] == "delete"
    said = await holdfast(config, "topics", "create", "--fix", "--json")
    assert said.code == 0, said
    routes = said.facts[stack.topic("routes")]
    assert "cleanup.policy delete -> compact" in routes
    assert "message.timestamp.type CreateTime -> LogAppendTime" in routes
    assert said.facts[stack.topic("audit")].startswith("corrected: ")
    assert "retention.ms 604800000 -> 31536000000" in said.facts[stack.topic("audit")]
    assert said.facts[stack.topic("predictions")] == "corrected: retention.ms 600000 -> 604800000"
    assert (await actual(stack, "routes"))["segment.ms"] == "7200000"
    for role, topic in TOPICS.items():
        has = await actual(stack, role)
        for key in set(topic.settings) & {"cleanup.policy", "message.timestamp.type"}:
            assert has[key] == topic.settings[key], (role, key)
    again = await holdfast(config, "topics", "create", "--json")
    assert again.code == 0
    assert set(again.facts.values()) == {"exists"}
    await stack.start("guard", "switch")


async def test_verdict_topics_with_too_few_partitions_are_given_more(stack):
    """As many as predictions; those of predictions stay."""
    for role in TOPICS:
        await stack.kafka.create_topic(stack.topic(role), 5 if role == "predictions" else 1, TOPICS[role].settings)
    config = stack.folder / "base.toml"
    said = await holdfast(config, "topics", "create")
    assert said.code == 1
    assert f"{stack.topic('blocked')} has 1 partitions: {stack.topic('predictions')} has 5" in said.flat()
    said = await holdfast(config, "topics", "create", "--fix", "--json")
    assert said.code == 0, said
    assert said.facts[stack.topic("approved")] == "corrected: partitions 1 -> 5"
    assert said.facts[stack.topic("predictions")] == "exists"


async def test_doctor_fails_only_for_what_endangers_something(stack):
    """A topic with Kafka's default compression is worth a look; a routes topic that is deleted has failed."""
    await stack.kafka.create_topics(stack.settings)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    await set_settings(
        admin,
        {
            stack.topic("predictions"): {"compression.type": "producer"},
            stack.topic("approved"): {"compression.type": "zstd"},
            stack.topic("audit"): {"retention.ms": "604800000"},
        },
    )

    async def topics():
        said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
        return [one for one in said.facts if one["area"] == "topics"]

    assert {one["health"] for one in await topics()} == {"ok", "warning"}
    (look,) = [one for one in await topics() if "compression.type" in one["finding"]]
    assert look["finding"].startswith(f"{stack.topic('predictions')} has compression.type=producer: the guards unpack")
    assert "kafka-configs.sh --alter" in look["advice"]
    await set_settings(admin, {stack.topic("routes"): {"cleanup.policy": "delete"}})
    (bad,) = [one for one in await topics() if one["health"] == "failed"]
    assert "which versions are fenced" in bad["finding"]
    assert bad["advice"] == "Correct it: holdfast topics create --fix"
    await set_settings(admin, {stack.topic("routes"): {"cleanup.policy": "compact,delete", "retention.ms": "-1"}})
    assert {one["health"] for one in await topics()} == {"ok", "warning"}
    await admin.close()
