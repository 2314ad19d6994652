"""The partition of a key, as Kafka's own clients choose it."""

from functools import lru_cache

from aiokafka.partitioner import DefaultPartitioner


def partition_for(key: str, partitions: int) -> int:
    """The partition that Java's default partitioner (murmur2) gives `key`, and what other clients can be told to do."""
    return partition_of_key(key.encode(), partitions)


@lru_cache(16_384)
def partition_of_key(key: bytes, partitions: int) -> int:
    """The same for a key in bytes; remembered, since its hash is computed byte by byte in Python."""
    everyone = list(range(partitions))
    return int(DefaultPartitioner()(key, everyone, everyone))
