"""Compressed batches: every codec is read, in every framing that clients write, and none unpacks without a bound."""

import contextlib
import gzip
import os
import struct
import tracemalloc
import zlib

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.codec import lz4_encode, snappy_encode, zstd_encode
from aiokafka.errors import UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.record import UnreadableBatch
from holdfast.kafka import codecs, records
from holdfast.kafka.codecs import UnreadableError, unpack_gzip, unpack_lz4, unpack_snappy, unpack_zstd

TEXT = b'{"prediction_id":"p-1","value":129.99}' * 1000
MIB = 1024 * 1024
CODEC = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
UNPACK = {"gzip": unpack_gzip, "snappy": unpack_snappy, "lz4": unpack_lz4, "zstd": unpack_zstd}


def lz4_frames(data, **options):
    packer = cramjam.lz4.Compressor(**options)
    packer.compress(data)
    return bytes(packer.finish())


def zstd_stream(data):
    """A frame without a content size, as a stream is written."""
    packer = cramjam.zstd.Compressor()
    for at in range(0, len(data), 1000):
        packer.compress(data[at : at + 1000])
    return bytes(packer.finish())


WRITTEN = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "gzip, in members": ("gzip", gzip.compress(TEXT[:500]) + gzip.compress(TEXT[500:])),
    "gzip, in members that hold nothing": ("gzip", gzip.compress(b"") * 50_000 + gzip.compress(TEXT)),
    "gzip, with zeros behind": ("gzip", gzip.compress(TEXT) + b"\0" * 8),
    "snappy, raw as librdkafka's": ("snappy", bytes(snappy_encode(TEXT, xerial_compatible=False))),
    "snappy, framed as Java's": ("snappy", snappy_encode(TEXT)),
    "snappy, in small blocks": ("snappy", snappy_encode(TEXT, xerial_blocksize=100)),
    "lz4": ("lz4", lz4_encode(TEXT)),
    "lz4, with checksums and linked blocks": ("lz4", lz4_frames(TEXT, content_checksum=True, block_linked=True)),
    "lz4, in frames": ("lz4", lz4_frames(TEXT[:500]) + lz4_frames(TEXT[500:])),
    "zstd": ("zstd", zstd_encode(TEXT)),
    "zstd, without a content size": ("zstd", zstd_stream(TEXT)),
    "zstd, in frames": ("zstd", zstd_encode(TEXT[:500]) + zstd_stream(TEXT[500:])),
}


@pytest.mark.parametrize(("codec", "packed"), WRITTEN.values(), ids=WRITTEN.keys())
def test_every_framing_is_read(codec, packed):
    """Also from a view into a fetch, as a batch is."""
    assert UNPACK[codec](packed) == TEXT
    assert UNPACK[codec](memoryview(b"x" + packed)[1:]) == TEXT


def gzip_zeros(size):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    # The same block again and again: it takes a minute to make a gigabyte otherwise.
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    ahead = [packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) == block for _ in range(2)]
    assert all(ahead)
    return head + block * (size // MIB - 1)


def zstd_zeros(size):
    packer = cramjam.zstd.Compressor()
    for _ in range(size // MIB):
        packer.compress(bytes(MIB))
    return bytes(packer.finish())


def lz4_zeros(size):
    packer = cramjam.lz4.Compressor(content_checksum=False, block_linked=False)
    for _ in range(size // MIB):
        packer.compress(bytes(MIB))
    return bytes(packer.finish())


def xerial(*blocks):
    head = struct.pack(">b7sxii", -126, b"SNAPPY", 1, 1)[:8] + struct.pack(">ii", 1, 1)
    return head + b"".join(struct.pack(">i", len(block)) + block for block in blocks)


def raw_snappy(size):
    return bytes(cramjam.snappy.compress_raw(bytes(size)))


# Under Kafka's MiB where the codec packs zeros so well; 1 GiB of them, or as much as its MiB holds.
BOMBS = {
    "gzip": ("gzip", lambda: gzip_zeros(1024 * MIB)),
    "gzip, in members that fit one by one": ("gzip", lambda: gzip.compress(bytes(24 * MIB)) * 3),
    "gzip, empty members without end": ("gzip", lambda: gzip.compress(bytes(MIB)) * 900),
    "snappy, a claim of 4 GiB": ("snappy", lambda: b"\xff\xff\xff\xff\x0f" + b"\x00" * 100),
    "snappy, raw": ("snappy", lambda: raw_snappy(codecs.MAX_UNPACKED + 1)),
    "snappy, in blocks that fit one by one": ("snappy", lambda: xerial(*([raw_snappy(8 * MIB)] * 9))),
    "snappy, blocks that claim 4 GiB": ("snappy", lambda: xerial(b"\xff\xff\xff\xff\x0f")),
    "lz4": ("lz4", lambda: lz4_zeros(256 * MIB)),
    "lz4, in frames that fit one by one": ("lz4", lambda: lz4_zeros(32 * MIB) * 3),
    "zstd": ("zstd", lambda: zstd_zeros(1024 * MIB)),
    "zstd, in frames that fit one by one": ("zstd", lambda: zstd_zeros(32 * MIB) * 3),
}


@pytest.mark.parametrize(("codec", "make"), BOMBS.values(), ids=BOMBS.keys())
def test_what_unpacks_to_more_than_is_allowed_takes_no_more_memory_than_that(codec, make):
    """The bound is held by the bytes that come out, whatever the batch claims."""
    bomb = make()
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="it unpacks to more than 64 MiB"):
            UNPACK[codec](bomb)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * codecs.MAX_UNPACKED
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", UNPACK)
def test_the_bound_is_inclusive(codec, monkeypatch):
    """As many bytes are read; one more is not."""
    monkeypatch.setattr(codecs, "MAX_UNPACKED", 3 * MIB)
    pack = {
        "gzip": gzip.compress,
        "snappy": lambda data: snappy_encode(data, xerial_compatible=False),
        "lz4": lz4_encode,
        "zstd": zstd_encode,
    }[codec]
    assert len(UNPACK[codec](pack(bytes(3 * MIB)))) == 3 * MIB
    with pytest.raises(UnreadableError, match="more than 3 MiB"):
        UNPACK[codec](pack(bytes(3 * MIB + 1)))


BROKEN = {
    "gzip, cut off": ("gzip", gzip.compress(TEXT)[:-9]),
    "gzip, nothing": ("gzip", b""),
    "gzip, something else": ("gzip", b"GET / HTTP/1.1"),
    "gzip, something else behind": ("gzip", gzip.compress(TEXT) + b"more"),
    "snappy, cut off": ("snappy", bytes(snappy_encode(TEXT, xerial_compatible=False))[:-9]),
    "snappy, nothing": ("snappy", b""),
    "snappy, a block that goes back": ("snappy", xerial(b"")[:16] + struct.pack(">i", -4) + b"abcd"),
    "snappy, a block of nothing": ("snappy", xerial(b"")),
    "snappy, a block beyond the end": ("snappy", xerial(raw_snappy(10))[:-2]),
    "snappy, half a size": ("snappy", xerial(raw_snappy(10)) + b"\0\0"),
    "lz4, cut off": ("lz4", lz4_encode(TEXT)[:-9]),
    "lz4, nothing": ("lz4", b""),
    "lz4, something else": ("lz4", b"GET / HTTP/1.1"),
    "zstd, cut off": ("zstd", zstd_encode(TEXT)[:-9]),
    "zstd, nothing": ("zstd", b""),
    "zstd, something else": ("zstd", b"GET / HTTP/1.1"),
    "zstd, a window of more than any machine has": ("zstd", b"\x28\xb5\x2f\xfd\x00\xff" + b"\x01\x00\x00"),
}


@pytest.mark.parametrize(("codec", "packed"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_said_to_be(codec, packed):
    """It neither ends the process nor goes on for ever."""
    with pytest.raises(UnreadableError, match=rf"its {codec} data"):
        UNPACK[codec](packed)


@given(st.sampled_from(sorted(UNPACK)), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(codec, data):
    """With no other error than that they cannot be read."""
    with contextlib.suppress(UnreadableError):
        assert isinstance(UNPACK[codec](data), bytes)


# Batches, as they come in a fetch.


def batch(codec=0, count=3, *, packed=None, first_offset=100):
    """A stored batch with an offset of its own, and the records in it as `packed` says."""
    builder = DefaultRecordBatchBuilder(2, codec if packed is None else 0, 0, -1, -1, 0, 1 << 24)
    for number in range(count):
        builder.append(number, 1_700_000_000_000 + number, b"k", b"v%d" % number, [])
    plain = bytes(builder.build())
    if packed is not None:
        plain = plain[:21] + struct.pack(">h", codec) + plain[23:61] + packed
    rest = plain[21:]
    head = struct.pack(">qiib", first_offset, len(rest) + 9, 0, 2)
    return head + struct.pack(">I", calc_crc32c(rest)) + rest


def read(data, marker=None):
    """What a consumer with this marker gets of a fetch."""
    fetched = records._PartitionRecords(TopicPartition("t", 0), records._Records(data), None, 0, None, marker, True, 0)
    return list(fetched)


@pytest.mark.parametrize("codec", CODEC.values(), ids=CODEC.keys())
def test_batches_of_each_codec_are_read_as_plain_ones(codec):
    """By ordinary consumers and by the guard's."""
    plain = [(r.offset, r.timestamp, r.value) for r in records.records_of(read(batch(), records.in_batches), 0)]
    packed = batch(codec, count=3)
    assert [(r.offset, r.timestamp, r.value) for r in records.records_of(read(packed, records.in_batches), 0)] == plain
    assert len(plain) == 3
    assert [(r.offset, r.timestamp, r.value) for r in read(packed, records.with_unreadable)] == plain


@pytest.mark.parametrize("codec", CODEC.values(), ids=CODEC.keys())
def test_one_record_stands_for_a_batch_that_cannot_be_read(codec):
    """At its last offset, with its latest time and the reason; what is before and behind it is read."""
    data = batch() + batch(codec, packed=b"\xff" * 20, first_offset=103) + batch(first_offset=106)
    got = records.records_of(read(data, records.in_batches), 0, tolerant=True)
    assert [r.offset for r in got] == [100, 101, 102, 105, 106, 107, 108]
    stands = got[3]
    assert isinstance(stands, UnreadableBatch)
    assert (stands.key, stands.value, list(stands.headers), stands.timestamp) == (None, None, [], 1_700_000_000_002)
    assert stands.reason.startswith("the batch of the offsets 103 to 105 cannot be read: its ")
    assert [r.offset for r in read(data, records.with_unreadable)] == [r.offset for r in got]
    with pytest.raises(UnreadableError):
        records.records_of(read(data, records.in_batches), 0)


def test_who_did_not_ask_for_it_gets_an_error():
    """Routes and incidents are not to be skipped."""
    with pytest.raises(UnreadableError, match="its gzip data"):
        read(batch(1, packed=b"\xff" * 20))


def test_records_that_are_broken_inside_a_sound_batch():
    """Fewer or more than the batch says, or none at all."""
    body = batch()[61:]
    for packed in (body[:-3], body + b"\0", b"", b"\xff" * 50, os.urandom(40)):
        (stands,) = read(batch(1, packed=gzip.compress(packed)), records.with_unreadable)
        assert isinstance(stands, UnreadableBatch), packed
        assert "its records are broken" in stands.reason


def test_a_batch_of_more_records_than_real_ones_have(monkeypatch):
    """As Python objects they would need far more than their bytes."""
    monkeypatch.setattr(records, "MAX_RECORDS", 2)
    (stands,) = read(batch(1), records.with_unreadable)
    assert "it has more than 2 records" in stands.reason
    monkeypatch.setattr(records, "MAX_RECORDS", 3)
    assert len(read(batch(1), records.with_unreadable)) == 3


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4"])
def test_batches_of_old_producers_are_bounded_alike(codec, monkeypatch):
    """Of the format before Kafka 0.11, which old topics still hold."""
    builder = LegacyRecordBatchBuilder(1, CODEC[codec], 1 << 22)
    builder.append(0, 1_700_000_000_000, b"k", bytes(2 * MIB))
    data = bytes(builder.build())
    assert [len(r.value) for r in read(data)] == [2 * MIB]
    (record,) = records.records_of(read(data, records.in_batches), 0)
    assert (record.offset, record.key, len(record.value), [*record.headers]) == (0, b"k", 2 * MIB, [])
    monkeypatch.setattr(codecs, "MAX_UNPACKED", MIB)
    (stands,) = read(data, records.with_unreadable)
    assert "it unpacks to more than 1 MiB" in stands.reason


def test_a_codec_whose_library_is_missing_is_not_skipped(monkeypatch):
    """That is the installation's fault, not the batch's."""
    from aiokafka import codec

    data = batch(CODEC["zstd"])
    monkeypatch.setattr(codec, "cramjam", None)
    with pytest.raises(UnsupportedCodecError):
        read(data, records.with_unreadable)
