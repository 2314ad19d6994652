"""Which partition Kafka's default partitioner gives to a key, for many keys at once.

The hash is murmur2 as in `org.apache.kafka.common.utils.Utils.murmur2`; the partition is its lower 31 bits modulo the
number of partitions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)
_R = np.uint32(24)


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """(n,) the partition of each key, of so many."""
    hashes = murmur2(keys) & np.uint32(0x7FFFFFFF)
    return hashes.astype(np.int64) % partitions


def murmur2(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """(n,) the hash of each key."""
    if not keys:
        return np.zeros(0, dtype=np.uint32)
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    # The longest first: those that have a word at a place stand together.
    order = np.argsort(-lengths, kind="stable")
    # The tail is read as a word too.
    text = b"".join(keys) + bytes(4)
    words = np.ndarray((len(text) - 3,), dtype="<u4", buffer=text, strides=(1,))
    starts = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    counts = lengths // 4
    hashes = _SEED ^ lengths.astype(np.uint32)
    for place in range(int(counts[0])):
        some = int(np.searchsorted(-counts, -place, side="left"))
        word = words[starts[:some] + 4 * place] * _M
        word ^= word >> _R
        word *= _M
        hashes[:some] = hashes[:some] * _M ^ word
    left = (lengths % 4).astype(np.uint32)
    tails = words[starts + 4 * counts] & ((np.uint32(1) << (np.uint32(8) * left)) - np.uint32(1))
    hashes = np.where(left > 0, (hashes ^ tails) * _M, hashes)
    hashes ^= hashes >> np.uint32(13)
    hashes *= _M
    hashes ^= hashes >> np.uint32(15)
    result = np.empty_like(hashes)
    result[order] = hashes
    return result
