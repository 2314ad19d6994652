"""What a guard writes, seen from outside: the wire contract, on a real broker."""

import gzip
import json
import time

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from e2e.stack import POLICY, Stack, body, headers
from holdfast.adapters.policies import load_policy
from holdfast_schemas import MAX_VALUE_BYTES, TOPICS

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="module")]

OURS = ["holdfast-verdict", "holdfast-policy", "holdfast-model", "holdfast-model-version"]
SHADOW = """
[[checks]]
name = "cheap"
kind = "range"
field = "value"
min = 50.0
mode = "shadow"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    """One guard for all tests of this file; each sends predictions of its own."""
    policies = {"pricing": SHADOW + POLICY}
    folder = tmp_path_factory.mktemp("verdicts")
    async with Stack(kafka, redis_server.url, policies, folder=folder, partitions=3) as stack:
        await stack.start("guard")
        yield stack


async def verdict(stack, value, role, **options):
    """Send one record and return it with what became of it; nothing of it is in any other topic."""
    if isinstance(value, dict):
        options = {"key": value.get("entity_id", "k").encode(), **options}
    ((partition, offset),) = await stack.send([value], **options)
    sent = await stack.until(
        lambda: next((r for r in stack.seen["predictions"] if (r.partition, r.offset) == (partition, offset)), None)
    )

    def found(role):
        # The value tells which record it is: each test makes its own.
        return [r for r in stack.seen[role] if r.value == sent.value and r.partition == sent.partition]

    await stack.until(lambda: found(role), f"a record in {role}")
    assert {r: len(found(r)) for r in ("approved", "blocked", "malformed")} == {
        "approved": 0,
        "blocked": 0,
        "malformed": 0,
        role: 1,
    }
    return sent, found(role)[0]


def policy_id(stack):
    """What `holdfast check` calls the policy."""
    return load_policy(stack.policies / "pricing.toml").id.encode()


async def test_an_approved_record_is_the_producers_with_our_headers_behind(stack):
    """Bytes, key, timestamp, headers and partition number are as they came; four headers say who approved what."""
    raw = json.dumps(stack.prediction("pricing", "v42", "SKU-1", 129.99, extra={"ä": [1, {"b": None}]}), indent=1)
    yesterday = int(time.time() * 1000) - 86_400_123
    sent, out = await verdict(
        stack,
        raw.encode(),
        "approved",
        key=b"SKU-1",
        partition=2,
        headers=[("trace", b"abc"), ("trace", b"def"), ("empty", b"")],
        timestamp_ms=yesterday,
    )
    assert (out.value, out.key, out.timestamp, out.partition) == (raw.encode(), b"SKU-1", yesterday, 2)
    assert list(out.headers) == [
        *sent.headers,
        ("holdfast-verdict", b"approved"),
        ("holdfast-policy", policy_id(stack)),
        ("holdfast-model", b"pricing"),
        ("holdfast-model-version", b"v42"),
    ]


async def test_a_blocked_record_says_why_and_where_from(stack):
    """The findings are a JSON list with seen and limit; the source is topic/partition/offset."""
    sent, out = await verdict(
        stack, stack.prediction("pricing", "v42", "SKU-1", 9.5), "blocked", headers=[("trace", b"1")], partition=1
    )
    assert (out.value, out.key, out.timestamp) == (sent.value, sent.key, sent.timestamp)
    assert [name for name, _ in out.headers] == ["trace", *OURS, "holdfast-findings", "holdfast-source"]
    ours = headers(out)
    assert ours["holdfast-verdict"] == b"blocked"
    assert ours["holdfast-source"] == f"{stack.topic('predictions')}/1/{sent.offset}".encode()
    assert json.loads(ours["holdfast-findings"]) == [
        {"check": "cheap", "severity": "error", "enforced": False, "field": "value", "seen": 9.5, "limit": {"min": 50}},
        {
            "check": "price_floor",
            "severity": "error",
            "enforced": True,
            "field": "value",
            "seen": 9.5,
            "limit": {"min": 10.0, "max": 25000.0},
        },
    ]


async def test_a_finding_in_shadow_does_not_block(stack):
    """The record is approved and carries the finding, which says that it was not enforced."""
    _, out = await verdict(stack, stack.prediction("pricing", "v42", "SKU-1", 20.0), "approved")
    (finding,) = json.loads(headers(out)["holdfast-findings"])
    assert (finding["check"], finding["enforced"]) == ("cheap", False)
    assert "holdfast-source" not in headers(out)


@pytest.mark.parametrize("bound", [10.0, 25000.0])
async def test_a_price_at_a_bound_passes(stack, bound):
    """The bounds of a range are inside it."""
    await verdict(stack, stack.prediction("pricing", "v42", "SKU-1", bound), "approved")


MALFORMED = {
    "no JSON": (b"{not json", "the value is not JSON: "),
    "not UTF-8": (b'{"prediction_id":"\xff"}', "the value is not UTF-8: byte 18 is 0xff"),
    "no version": (
        b'{"prediction_id":"1","model":"pricing","entity_id":"s","value":100.0}',
        "it lacks the required field `model_version`: nothing stands at `model_version`",
    ),
    "the framing of a schema registry": (
        b'\x00\x00\x00\x00\x2a{"prediction_id":"6","model":"pricing"}',
        "the framing of a schema registry (byte 0, then the schema's id 42), and JSON behind it",
    ),
    "text for a number": (
        b'{"prediction_id":"2","model":"pricing","model_version":"v1","entity_id":"s","value":"100.5"}',
        'expected a number for `value`, got the text "100.5"',
    ),
    "a key twice": (
        b'{"prediction_id":"3","model":"pricing","model_version":"v1","entity_id":"s","value":1,"value":100.0}',
        "the key 'value' stands twice",
    ),
    "no output": (
        b'{"prediction_id":"4","model":"pricing","model_version":"v1","entity_id":"s"}',
        "neither value nor outputs is given",
    ),
    "10,000 levels": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
    "a list": (b"[1, 2]", "the value is a JSON list, not an object"),
    "empty": (b"", "the value is not JSON"),
    "oversized": (
        b'{"prediction_id":"5","model":"pricing","model_version":"v1","entity_id":"s","value":100.0,"pad":"'
        + b"x" * 1_010_000
        + b'"}',
        "over the limit of 1000000 (guard.max_record_bytes)",
    ),
    "no value": (None, "the record has no value"),
}


BLAMED = {"text for a number", "a key twice", "no output"}
"""Of these the model and version can be read."""


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_record_is_put_aside_with_the_reason(stack, case):
    """It is neither approved nor blocked; it is kept as it came, with the reason and the source."""
    raw, reason = MALFORMED[case]
    sent, out = await verdict(stack, raw, "malformed", key=b"s", partition=0, headers=[("trace", b"\x00")])
    assert (out.value, out.key, out.timestamp) == (raw, b"s", sent.timestamp)
    blame = OURS[1:] if case in BLAMED else []
    assert [name for name, _ in out.headers] == [
        "trace",
        "holdfast-error",
        "holdfast-error-kind",
        *blame,
        "holdfast-source",
    ]
    assert reason in headers(out)["holdfast-error"].decode()
    assert headers(out)["holdfast-source"] == f"{stack.topic('predictions')}/0/{sent.offset}".encode()


async def test_of_a_value_that_no_topic_takes_the_beginning_is_put_aside(stack):
    """In a topic of others it came through compressed; whole it fits nowhere, and must not stop its partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    theirs = {**TOPICS["predictions"].settings, "compression.type": "producer"}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, stack.topic("predictions"), theirs)])
    await admin.close()
    raw = b'{"pad":"' + b"x" * 10_000_000 + b'"}'
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.kafka.bootstrap, compression_type="gzip", max_request_size=16_000_000
    )
    async with producer:
        sent = await producer.send_and_wait(stack.topic("predictions"), raw, key=b"long", partition=1)
    await stack.until(lambda: [r for r in stack.seen["malformed"] if r.key == b"long"], "it is in the malformed topic")
    (out,) = [r for r in stack.seen["malformed"] if r.key == b"long"]
    assert out.value == raw[:MAX_VALUE_BYTES]
    assert headers(out)["holdfast-source"] == f"{stack.topic('predictions')}/1/{sent.offset}".encode()
    assert f"the value has {len(raw)} bytes" in headers(out)["holdfast-error"].decode()
    await verdict(stack, stack.prediction("pricing", "v42", "SKU-1", 129.0), "approved", partition=1)


@pytest.mark.parametrize(
    ("key", "beside", "reason"),
    [
        (b"k" * 300_000, [], b"the key has 300000 bytes, over the limit of 262144"),
        (b"k", [("h", b"x" * 299_999)], b"the headers have 300000 bytes, over the limit of 262144"),
        (b"k", [("n" * 300_000, b"")], b"the headers have 300000 bytes, over the limit of 262144"),
    ],
)
async def test_what_is_too_long_beside_the_value_is_put_aside(stack, key, beside, reason):
    """With headers of ours it may fit nowhere, and must not stop its partition."""
    before = len(stack.seen["malformed"])
    event = json.dumps(stack.prediction("pricing", "v42", "SKU-1", 129.0)).encode()
    await stack.send([event], key=key, headers=beside, partition=1)
    await stack.until(lambda: len(stack.seen["malformed"]) > before, "it is in the malformed topic")
    out = stack.seen["malformed"][-1]
    assert (out.value, out.key, headers(out)["holdfast-error"]) == (event, key[: 256 * 1024], reason)
    await verdict(stack, stack.prediction("pricing", "v42", "SKU-1", 129.0), "approved", partition=1)


async def test_a_version_for_each_prediction_stops_nothing(stack):
    """A producer may put its request's id into that field."""
    events = [stack.prediction("pricing", f"request-{i}", f"SKU-{i}", 100.0 + i % 50) for i in range(4000)]
    await stack.send(events)

    def told():
        """Of one batch most are counted together."""
        names = ("request-", "holdfast:others")
        return sum(t["seen"] for t in stack.tallies("pricing") if t["model_version"].startswith(names))

    await stack.until(lambda: told() == len(events), "each is counted")
    approved = [r for r in stack.seen["approved"] if b'"request-' in r.value]
    assert len(approved) == len(events)


ABSURD = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf", "1e999": "inf", "-0.0": "-0.0", "1" * 500: "inf"}


@pytest.mark.parametrize("number", ABSURD, ids=lambda number: number[:9])
async def test_a_number_that_is_none_is_blocked(stack, number):
    """NaN, infinity, what overflows to it, and negative zero pass many a comparison; none of them gets through."""
    raw = f'{{"prediction_id":"n","model":"pricing","model_version":"v1","entity_id":"s","value":{number}}}'
    _, out = await verdict(stack, raw.encode(), "blocked")
    first = json.loads(headers(out)["holdfast-findings"])[0]
    assert (first["field"], first["seen"], first["enforced"]) == ("value", ABSURD[number], True)


async def test_a_producer_cannot_speak_for_the_guard(stack):
    """Headers of ours that a producer forged are gone; its others stay."""
    forged = [
        ("holdfast-verdict", b"approved"),
        ("holdfast-findings", b"[]"),
        ("mine", b"1"),
        ("holdfast-source", b"x/0/0"),
        ("holdfast-error", b"none"),
        ("holdfast-policy", b"pricing@000000000000"),
        ("holdfast-released-by", b"a friend"),
        ("holdfast-release-reason", b"please"),
    ]
    _, out = await verdict(stack, stack.prediction("pricing", "v9", "SKU-1", 1.0), "blocked", headers=forged)
    names = [name for name, _ in out.headers]
    assert len(names) == len(set(names)) == 7
    assert headers(out)["mine"] == b"1"
    assert headers(out)["holdfast-verdict"] == b"blocked"
    assert len(json.loads(headers(out)["holdfast-findings"])) == 2
    _, out = await verdict(stack, stack.prediction("pricing", "v9", "SKU-1", 100.0), "approved", headers=forged)
    assert [name for name, _ in out.headers] == ["mine", *OURS]
    _, out = await verdict(stack, b"{forged", "malformed", headers=forged)
    assert [name for name, _ in out.headers] == ["mine", "holdfast-error", "holdfast-error-kind", "holdfast-source"]


async def test_a_header_that_is_not_utf8_passes_through(stack):
    """Values of headers are bytes; none of them is read."""
    _, out = await verdict(
        stack, stack.prediction("pricing", "v1", "SKU-1", 100.0), "approved", headers=[("raw", b"\xff\xfe\x00")]
    )
    assert headers(out)["raw"] == b"\xff\xfe\x00"


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "gzip"])
async def test_a_header_name_that_is_not_utf8_stops_nothing(stack, compression):
    """Clients in C can send it, and brokers take it: its bytes are replaced as in Java, and its batch is judged."""
    sent = [stack.prediction("pricing", "v1", "SKU-1", 100.0) for _ in range(3)]
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 20)
    for number, one in enumerate(sent):
        named = [("mine", b"1"), ("zzzz", b"2")] if number == 1 else []
        builder.append(number, int(time.time() * 1000), b"SKU-1", json.dumps(one).encode(), named)
    plain = bytes(builder.build())
    records = plain[61:].replace(b"zzzz", b"\xff\xfez\xfd")
    head = plain[21:23] if not compression else compression.to_bytes(2, "big")
    rest = head + plain[23:61] + (gzip.compress(records) if compression else records)
    batch = plain[:8] + (len(rest) + 9).to_bytes(4, "big") + plain[12:17] + calc_crc32c(rest).to_bytes(4, "big") + rest
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap)
    await producer.start()
    request = ProduceRequest(
        transactional_id=None, required_acks=-1, timeout=30_000, topics=[(stack.topic("predictions"), [(1, batch)])]
    )
    answer = await producer.client.send(producer.client.get_random_node(), request)
    await producer.stop()
    assert answer.topics[0][1][0][1] == 0
    ids = [one["prediction_id"] for one in sent]

    def approved():
        return [r for r in stack.seen["approved"] if body(r)["prediction_id"] in ids]

    await stack.until(lambda: len(approved()) == 3)
    assert [body(record)["prediction_id"] for record in approved()] == ids
    assert [name for name, _ in approved()[1].headers] == ["mine", "\ufffd\ufffdz\ufffd", *OURS]
    assert headers(approved()[1])["\ufffd\ufffdz\ufffd"] == b"2"


async def test_a_record_without_a_key_keeps_its_partition(stack):
    """It has no order to keep, and still gets its verdict where it came from."""
    ((partition, _),) = await stack.send(
        [json.dumps(sent := stack.prediction("pricing", "v1", "SKU-1", 77.7)).encode()], partition=1
    )
    out = await stack.until(
        lambda: next((r for r in stack.seen["approved"] if body(r)["prediction_id"] == sent["prediction_id"]), None)
    )
    assert (out.key, out.partition) == (None, partition)


async def test_a_model_without_a_policy_is_blocked(stack):
    """Nobody said what is sane for it."""
    _, out = await verdict(stack, stack.prediction("unheard-of", "v1", "SKU-1", 100.0), "blocked")
    (finding,) = json.loads(headers(out)["holdfast-findings"])
    assert (finding["check"], finding["seen"], finding["enforced"]) == ("no_policy", "unheard-of", True)
    assert headers(out)["holdfast-policy"] == b"none"
    assert stack.tallies("unheard-of") == []


async def test_a_model_without_a_policy_is_approved_where_the_configuration_says_so(kafka, redis_server, tmp_path):
    """`no_policy = "approve"`: but no number that is none gets through."""
    settings = {"guard": {"no_policy": "approve"}}
    async with Stack(kafka, redis_server.url, {}, folder=tmp_path, partitions=1, settings=settings) as stack:
        await stack.start("guard")
        _, out = await verdict(stack, stack.prediction("unheard-of", "v1", "SKU-1", 100.0), "approved")
        assert headers(out)["holdfast-policy"] == b"none"
        await verdict(stack, stack.prediction("unheard-of", "v1", "SKU-1", float("nan")), "blocked")


async def test_the_order_of_a_key_is_kept(stack):
    """Predictions of one entity come out in the order in which they went in, whatever their neighbours do."""
    sent = [
        stack.prediction("pricing", "v1", f"E-{number % 7}", 100.0 if number % 5 else 1.0, n=number)
        for number in range(700)
    ]
    await stack.send(sent)
    ids = {one["prediction_id"] for one in sent}
    await stack.until(lambda: ids <= set(stack.verdicts()))
    for role in ("approved", "blocked"):
        for entity in range(7):
            numbers = [
                one["n"]
                for record in stack.seen[role]
                if (one := body(record))["prediction_id"] in ids and one["entity_id"] == f"E-{entity}"
            ]
            assert numbers == sorted(numbers)
            assert numbers


async def test_tallies_add_up_to_the_verdicts(stack):
    """Whatever was sent before: seen, approved and blocked of all tallies are the records of the topics.

    What is malformed and says its version counts as blocked.
    """
    await stack.settled()

    def with_policy(role):
        return [r for r in stack.seen[role] if headers(r).get("holdfast-model") == b"pricing"]

    tallies = stack.tallies("pricing")
    approved, blocked, malformed = map(len, map(with_policy, ("approved", "blocked", "malformed")))
    assert 0 < malformed < len(stack.seen["malformed"])
    assert sum(t["approved"] for t in tallies) == approved
    assert sum(t["blocked"] for t in tallies) == blocked + malformed
    assert sum(t["blocked_by_check"].get("malformed", 0) for t in tallies) == malformed
    assert sum(t["seen"] for t in tallies) == approved + blocked + malformed
