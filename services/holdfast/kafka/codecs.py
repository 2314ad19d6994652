"""Unpacking of compressed batches, bounded in every codec.

One MiB that Kafka takes may unpack to a GiB of zeros. Each function here unpacks into at most `MAX_UNPACKED` bytes and
raises `UnreadableError` for more, before the memory is taken; it believes no size that a batch claims. Sizes that a
frame states are not needed either: librdkafka and Java leave them out.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records, legacy_records

try:
    from aiokafka.record._crecords import default_records as fast_default_records
    from aiokafka.record._crecords import legacy_records as fast_legacy_records
except ImportError:
    fast_default_records, fast_legacy_records = default_records, legacy_records

MAX_UNPACKED = 64 * 1024 * 1024
"""Bytes of one batch: 64 times what Kafka takes in one by default. JSON events seldom pack to less than a twentieth."""
_FIRST_GUESS = 8
"""How many times its size a batch is given at first; what needs more is unpacked once more."""
_SMALL = 64 * 1024
_PIECE = 16 * 1024
_XERIAL_HEADER = b"\x82SNAPPY\x00"
_XERIAL_FRAMES_FROM = 16


class UnreadableError(CorruptRecordException):  # type: ignore[misc]
    """A batch whose checksum is right cannot be unpacked. The message says why, after `it`."""


_unpacked = 0


def unpacked_bytes() -> int:
    """How many bytes consumers of this process have unpacked since its start: two answers say what one batch took."""
    return _unpacked


def _counted(unpack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def counted(packed: Any) -> bytes:
        global _unpacked
        found = unpack(packed)
        _unpacked += len(found)
        return found

    return counted


def replace_decoders() -> None:
    """Let every consumer of this process unpack so."""
    gzip, snappy, lz4, zstd = map(_counted, (unpack_gzip, unpack_snappy, unpack_lz4, unpack_zstd))
    for module in (default_records, legacy_records, fast_default_records, fast_legacy_records):
        module.gzip_decode, module.snappy_decode, module.lz4_decode, module.zstd_decode = gzip, snappy, lz4, zstd


def unpack_gzip(packed: Any) -> bytes:
    """One member or several, as RFC 1952 allows, and zeros after them."""
    whole, at, room = memoryview(packed), 0, MAX_UNPACKED
    parts: list[bytes] = []
    member = None
    try:
        while at < len(whole):
            if member is None and parts and not any(whole[at:]):
                break
            member = member or zlib.decompressobj(16 + zlib.MAX_WBITS)
            # Piece by piece: what stands behind a member is copied, and a batch may hold thousands of members.
            piece = whole[at : at + _PIECE]
            part = member.decompress(piece, room + 1)
            if len(part) > room:
                raise _too_large()
            parts.append(part)
            room -= len(part)
            at += len(piece) - len(member.unused_data)
            if member.eof:
                member = None
    except zlib.error as error:
        raise UnreadableError(f"its gzip data is broken: {error}") from None
    if member is not None or not parts:
        raise UnreadableError("its gzip data ends too early")
    return b"".join(parts)


def unpack_snappy(packed: Any) -> bytes:
    """One raw block, as librdkafka writes it, or blocks in the framing of the xerial library, as Java does."""
    from cramjam import snappy

    whole = bytes(packed)
    if not whole.startswith(_XERIAL_HEADER) or len(whole) <= _XERIAL_FRAMES_FROM:
        return _into_exactly(whole, MAX_UNPACKED, snappy)
    parts, at, room = [], _XERIAL_FRAMES_FROM, MAX_UNPACKED
    while at < len(whole):
        if at + 4 > len(whole):
            raise UnreadableError("its snappy data ends too early")
        (size,) = struct.unpack_from(">i", whole, at)
        at += 4
        # A negative size would go round in circles.
        if not 0 < size <= len(whole) - at:
            raise UnreadableError(f"its snappy data has a block of {size} bytes where {len(whole) - at} are left")
        parts.append(_into_exactly(whole[at : at + size], room, snappy))
        room -= len(parts[-1])
        at += size
    return b"".join(parts)


def _into_exactly(block: bytes, room: int, snappy: Any) -> bytes:
    """A block states its size in front, and the library writes no byte more than that."""
    from cramjam import DecompressionError

    try:
        size = int(snappy.decompress_raw_len(block))
        if size > room:
            raise _too_large()
        out = np.empty(size, dtype=np.uint8)
        snappy.decompress_raw_into(block, out)
    except DecompressionError as error:
        raise UnreadableError(f"its snappy data is broken: {error}") from None
    return out.tobytes()


def unpack_lz4(packed: Any) -> bytes:
    """One frame or several, with or without a content size."""
    from cramjam import lz4

    return _into(bytes(packed), "lz4", lz4.decompress_into)


def unpack_zstd(packed: Any) -> bytes:
    """One frame or several, with or without a content size. The library takes windows of up to 128 MiB."""
    from cramjam import zstd

    return _into(bytes(packed), "zstd", zstd.decompress_into)


def _into(packed: bytes, codec: str, unpack: Callable[[bytes, Any], int]) -> bytes:
    from cramjam import DecompressionError

    for room in (max(_SMALL, _FIRST_GUESS * len(packed)), MAX_UNPACKED):
        # Only the pages that are written to are taken.
        out = np.empty(min(room, MAX_UNPACKED), dtype=np.uint8)
        try:
            return out[: unpack(packed, out)].tobytes()
        except DecompressionError as error:
            flaw = str(error)
            # The library's words for a buffer that is full.
            if "whole buffer" not in flaw:
                raise UnreadableError(f"its {codec} data is broken: {flaw}") from None
    raise _too_large()


def _too_large() -> UnreadableError:
    return UnreadableError(f"it unpacks to more than {MAX_UNPACKED >> 20} MiB")
