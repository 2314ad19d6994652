"""Which keys are in a partition that is not theirs: a sample of each batch, and never one that is in its place."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.misplaced import LONGEST, LOOKED_AT, by_version, misplaced
from holdfast.kafka.partitioner import partition_for, partition_of_key

# Of Kafka's own tests of its murmur2: a key, and where Java's client puts it among 100 partitions.
JAVAS = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}


def records(keys, offset=0):
    return [SimpleNamespace(offset=offset + n, key=key, headers=()) for n, key in enumerate(keys)]


def test_keys_belong_where_java_puts_them():
    """And so do those of the client that makes the tests' predictions."""
    for key, murmur2 in JAVAS.items():
        assert partition_of_key(key, 100) == (murmur2 & 0x7FFFFFFF) % 100
        assert partition_for(key.decode(), 100) == partition_of_key(key, 100)


@given(st.lists(st.binary(min_size=1, max_size=LONGEST), max_size=100), st.integers(1, 20), st.integers(0, 10_000))
def test_what_is_found_is_misplaced_and_little_is_looked_at(keys, partitions, offset):
    """Of a short batch everything; a record that is in its partition is never found."""
    looked_at = []

    def partition_of(key):
        looked_at.append(key)
        return partition_of_key(key, partitions)

    found = misplaced(records(keys, offset), 0, partition_of)
    assert all(partition_of_key(keys[position], partitions) != 0 for position in found)
    assert len(looked_at) <= LOOKED_AT
    if len(keys) <= LOOKED_AT:
        assert found == {n for n, key in enumerate(keys) if partition_of_key(key, partitions) != 0}


def test_a_producer_of_the_other_kind_is_found_in_a_long_batch():
    """All its keys are misplaced, so some of those that are looked at are."""
    assert len(misplaced(records([b"k%d" % n for n in range(10_000)]), 1, lambda key: 0)) == LOOKED_AT
    assert misplaced(records([b"k%d" % n for n in range(10_000)]), 0, lambda key: 0) == frozenset()


def test_other_places_are_looked_at_in_each_batch():
    """So that a few records of another producer are found in time."""
    keys = [b"k"] * 1000
    seen = set()
    for batch in range(1000 // LOOKED_AT + 1):
        seen |= misplaced(records(keys, batch), 1, lambda key: 0)
    assert seen == set(range(1000))


def test_what_has_no_key_or_a_very_long_one_is_not_looked_at():
    """The first are counted elsewhere, and the others would take too long."""
    assert misplaced(records([None, b"", b"x" * (LONGEST + 1)]), 1, lambda key: 0) == frozenset()
    assert misplaced([], 1, lambda key: 0) == frozenset()


def test_they_are_counted_for_the_versions_that_they_are_of():
    """Of a batch that holds only some of the records."""
    columns = SimpleNamespace(values=lambda field: ["v1", "v2", "v2", "v1"])
    batch = SimpleNamespace(columns=columns, positions=[1, 3, 4, 9])
    assert by_version(batch, {0, 1, 2, 3, 4, 5, 10}) == {"v1": 1, "v2": 2}
    assert by_version(batch, frozenset()) == {}
