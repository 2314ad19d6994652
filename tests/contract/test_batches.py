"""Record batches as they are written and read: what aiokafka's own builder makes and checks, byte by byte."""

import asyncio
from itertools import pairwise

import pytest
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer import fetcher
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.kafka.batches import Outs, _known_name, batches_of
from holdfast.kafka.records import replace_readers

NOW = 1_764_000_000_000
replace_readers()

SIZES = st.one_of(st.integers(0, 200), st.sampled_from([63, 64, 8191, 8192, 70_000]))
SHARED = [("holdfast-verdict", b"approved"), ("ü", b"")]
VALUES = st.none() | SIZES.map(lambda size: b"v" * size)
RECORDS = st.lists(
    st.tuples(
        st.one_of(st.integers(NOW - 20_000, NOW + 20_000), st.sampled_from([0, NOW, NOW * 2])),
        st.none() | SIZES.map(lambda size: b"k" * size),
        VALUES,
        st.just(SHARED) | st.lists(st.tuples(st.text(max_size=70), st.none() | st.binary(max_size=70)), max_size=3),
    ),
    min_size=1,
    max_size=150,
)


def as_aiokafka_builds_it(records, transactional):
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), 7, 3, 11, 1 << 30)
    for offset, record in enumerate(records):
        assert builder.append(offset, *record) is not None
    return bytes(builder.build())


def built(batch):
    batch._set_producer_state(7, 3, 11)
    return bytes(batch._build())


@given(RECORDS, st.booleans(), st.sampled_from([400, 10_000, 900_000]))
@example([(NOW + i * 3, b"SKU", b"{}" * (i % 50), SHARED) for i in range(9000)], True, 900_000)
@example([(NOW, b"k", b"v", [*SHARED, (f"n{i % 2}", [None, b"x" * i][i % 3 > 0])]) for i in range(200)], True, 900_000)
def test_every_byte_is_as_aiokafka_would_write_it(records, transactional, max_bytes):
    """In batches within the limit, each as long as it may be, in order; a larger record goes alone."""
    batches = list(batches_of(Outs.of([records]), max_bytes=max_bytes, transactional=transactional))
    start = 0
    for batch in batches:
        some = records[start : start + batch.record_count()]
        assert built(batch) == as_aiokafka_builds_it(some, transactional)
        assert batch.size() == len(built(batch))
        assert batch.size() <= max_bytes or batch.record_count() == 1
        start += batch.record_count()
    assert start == len(records)
    for batch, following in pairwise(batches):
        # A little room is left, for sizes are estimated before.
        assert batch.size() + following.size() + 40 * (batch.record_count() + 1) > max_bytes


def test_a_batch_that_is_sent_again_is_the_same():
    """Its numbers are set once: the broker tells by them what it has already."""
    (batch,) = batches_of(Outs.of([[(NOW, b"k", b"v", [])]]), max_bytes=1000, transactional=True)
    first = built(batch)
    batch._set_producer_state(9, 9, 9)
    assert batch._build() == first


async def test_a_producer_takes_it_for_one_of_its_own():
    """Also one whose transaction is ended while the batch waits for its turn."""
    accumulator, place = MessageAccumulator(ClusterMetadata(), 1000, 0, 60), TopicPartition("approved", 0)
    (batch,) = batches_of(Outs.of([[(NOW, b"k", b"v", [])]]), max_bytes=1000, transactional=True)
    told = await accumulator.add_batch(batch, place, 1)
    flushing = asyncio.ensure_future(accumulator.flush_for_commit())
    await asyncio.sleep(0)
    (waiting,) = accumulator._batches[place]
    assert waiting.record_count == 1
    waiting.done(base_offset=5)
    assert (await told).offset == 5
    await asyncio.wait_for(flushing, 10)


def test_records_of_several_writes_are_one_after_the_other():
    """Lists and columns alike; nothing at all is no batch."""
    one, other = (NOW, b"a", b"1", []), (None, b"b", None, SHARED)
    joined = Outs.of([[one], [], Outs.of([[other]])])
    assert (joined.timestamps, joined.keys, joined.values, joined.headers) == (
        (NOW, None),
        (b"a", b"b"),
        (b"1", None),
        ([], SHARED),
    )
    assert list(batches_of(Outs.of([[]]), max_bytes=1000, transactional=False)) == []


def read(raw):
    return fetcher.MemoryRecords(raw).next_batch()


@pytest.mark.parametrize("at", [21, 40, 61, -1])
def test_a_byte_that_has_changed_is_noticed(at):
    """From the attributes to the last byte, which is what the checksum is of."""
    raw = bytearray(as_aiokafka_builds_it([(NOW, b"key", b"value", SHARED)], transactional=False))
    assert read(bytes(raw)).validate_crc()
    raw[at] ^= 1
    assert not read(bytes(raw)).validate_crc()


def test_batches_of_old_producers_have_another_checksum():
    """Version 1 of the format, which brokers before 4.0 hand out as it was written."""
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, timestamp=NOW, key=b"key", value=b"value")
    raw = bytearray(builder.build())
    assert read(bytes(raw)).validate_crc()
    raw[-1] ^= 1
    assert not read(bytes(raw)).validate_crc()


def test_long_names_of_headers_are_not_remembered():
    """A thousand of a megabyte each would be a gigabyte."""
    before = _known_name.cache_info().currsize
    outs = Outs([1], [b"k"], [b"v"], [[("n" * 101, b"x"), ("m" * 100_000, b"y")]])
    assert sum(batch.record_count() for batch in batches_of(outs, max_bytes=900_000, transactional=False)) == 1
    assert _known_name.cache_info().currsize == before
