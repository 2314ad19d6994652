"""Producers that compress, on a topic with Kafka's own default: every codec of both clients is judged."""

import asyncio
import json
import struct
import zlib

import cramjam
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, body, headers
from holdfast.kafka.topic_settings import set_settings

pytestmark = pytest.mark.real_kafka

CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.fixture
async def stack(kafka, redis_server, tmp_path):
    follow = ("approved", "blocked", "malformed")
    async with Stack(
        kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1, follow=follow
    ) as stack:
        await set_compression(stack, "producer", "predictions", "approved", "blocked", "malformed", "control", "routes")
        yield stack


async def set_compression(stack, kind, *roles):
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    await set_settings(admin, {stack.topic(role): {"compression.type": kind} for role in roles})
    await admin.close()


def outputs(stack, name, count=200):
    """Sound ones, and every tenth below the floor of the policy."""
    return [
        json.dumps(stack.prediction("pricing", "v1", f"{name}-{n}", 1.0 if n % 10 == 0 else 100.0 + n)).encode()
        for n in range(count)
    ]


async def by_aiokafka(stack, name, values, **options):
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap, linger_ms=20, **options)
    async with producer:
        await asyncio.gather(*[await producer.send(stack.topic("predictions"), v, key=name.encode()) for v in values])


def by_librdkafka(stack, name, values, codec):
    confluent_kafka = pytest.importorskip("confluent_kafka")
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": stack.kafka.bootstrap, "compression.type": codec, "linger.ms": 20}
    )
    for value in values:
        producer.produce(stack.topic("predictions"), value, key=name)
    assert producer.flush(30) == 0


async def judged(stack, sent):
    """The entities that were approved and blocked of these, once each has its verdict."""
    ids = {json.loads(value)["prediction_id"] for value in sent}

    def found(role):
        return [r for r in stack.seen[role] if r.value and body(r)["prediction_id"] in ids]

    await stack.until(lambda: len(found("approved")) + len(found("blocked")) == len(ids), "each has its verdict")
    return len(found("approved")), len(found("blocked"))


async def test_each_codec_of_each_client_is_judged(stack):
    """gzip, snappy, lz4 and zstd, of aiokafka and of librdkafka, mixed in one topic; then zstd by the broker."""
    (guard,) = await stack.start("guard")
    for codec in CODECS:
        sent = outputs(stack, f"aiokafka-{codec}")
        await by_aiokafka(stack, codec, sent, compression_type=codec)
        assert await judged(stack, sent) == (180, 20), codec
        sent = outputs(stack, f"librdkafka-{codec}")
        await asyncio.to_thread(by_librdkafka, stack, codec, sent, codec)
        assert await judged(stack, sent) == (180, 20), codec
    for codec in ("zstd", "lz4"):
        await set_compression(stack, codec, "predictions", "approved", "blocked", "control", "routes", "state")
        sent = outputs(stack, f"topic-{codec}")
        await by_aiokafka(stack, "plain", sent)
        assert await judged(stack, sent) == (180, 20), codec
    assert stack.seen["malformed"] == []
    assert guard.ready()
    # The memory of the checks, too, is read back from a compressed topic.
    guard.restart()
    await stack.ready(guard)
    said = await holdfast(stack.folder / "base.toml", "audit", "--once", "--json")
    assert said.code == 0, said


def varint(number):
    out, number = bytearray(), (number << 1) ^ (number >> 63)
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def gigabyte(pack):
    """One record whose value is nearly a GiB of zeros, as `pack(before, chunk, times, behind)` compresses it."""
    chunk, times = bytes(1 << 20), 900
    inner = b"\x00" + varint(0) + varint(0) + varint(-1) + varint(len(chunk) * times)
    return pack(varint(len(inner) + len(chunk) * times + 1) + inner, chunk, times, varint(0))


def by_gzip(before, chunk, times, behind):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    # Each block stands alone, so one serves for all: it takes a minute to compress a gigabyte otherwise.
    block = packer.compress(chunk) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum, size = zlib.crc32(before), len(before) + len(chunk) * times + len(behind)
    for _ in range(times):
        checksum = zlib.crc32(chunk, checksum)
    tail = packer.compress(behind) + packer.flush() + struct.pack("<II", zlib.crc32(behind, checksum), size)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + head + block * times + tail


def by_zstd(before, chunk, times, behind):
    packer = cramjam.zstd.Compressor()
    for part in (before, *[chunk] * times, behind):
        packer.compress(part)
    return bytes(packer.finish())


def batch_of(codec, packed):
    """A batch of one record, packed by the codec of this number."""
    rest = struct.pack(">hiqqqhii", codec, 0, 0, 0, -1, -1, -1, 1) + packed
    body = struct.pack(">ib", -1, 2) + struct.pack(">I", calc_crc32c(rest)) + rest
    return struct.pack(">qi", 0, len(body)) + body


async def test_a_batch_that_unpacks_to_a_gigabyte_goes_to_malformed(stack):
    """The broker keeps it as it came. One malformed record stands for it, with the reason; the guard goes on."""
    (guard,) = await stack.start("guard")
    bombs = [batch_of(1, await asyncio.to_thread(gigabyte, by_gzip)), batch_of(4, gigabyte(by_zstd))]
    assert max(map(len, bombs)) < 1 << 20
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap)
    await producer.start()
    for bomb in bombs:
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=60_000, topics=[(stack.topic("predictions"), [(0, bomb)])]
        )
        answer = await producer.client.send(producer.client.get_random_node(), request)
        assert answer.topics[0][1][0][1] == 0
    await producer.stop()
    sent = outputs(stack, "after")
    await by_aiokafka(stack, "after", sent, compression_type="zstd")
    assert await judged(stack, sent) == (180, 20)
    assert [(record.key, record.value) for record in stack.seen["malformed"]] == [(None, None)] * 2
    for offset, record in enumerate(stack.seen["malformed"]):
        assert headers(record)["holdfast-source"] == f"{stack.topic('predictions')}/0/{offset}".encode()
        reason = headers(record)["holdfast-error"].decode()
        assert reason == f"the batch of the offsets {offset} to {offset} cannot be read: it unpacks to more than 64 MiB"
    assert guard.metric("holdfast_malformed_total", reason="unreadable_batch") == 2
    assert len(guard.told("started")) == 1
    said = await holdfast(stack.folder / "base.toml", "audit", "--once", "--json")
    assert said.code == 0, said
