"""The key of a record is that of its entity, or the checks with memory cannot tell."""

import tomllib

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_one
from hypothesis import given
from hypothesis import strategies as st

from core.alike import Real, failures, policy_of, raw
from holdfast.core.murmur2 import murmur2, partitions_of
from holdfast.core.policy import PolicyError, parse_policy
from holdfast.core.record_keys import Keys, RecordKey

JUMP = 'model = "pricing"\n{}\n[[checks]]\nname = "jump"\nkind = "max_change"\ndown = 0.5\nup = 2.0\n'
FALLING = [20_000 / 2**i for i in range(7)]


def judged(toml, values, keys, **where):
    """Whether each of these values of the entity `a` is approved, one batch for each."""
    real = Real(policy_of(toml))
    return [real.judge([raw(value=value)], keys=[key], **where)[0][0] for value, key in zip(values, keys, strict=True)]


def test_a_price_that_falls_under_ten_keys_is_held_against_the_one_before():
    """The second value is a third of the first: under the key of its entity it fails, under another it cannot pass."""
    toml = JUMP.format("")
    assert judged(toml, [20_000, 10_000, 312], [b"a", b"a", b"a"]) == [True, True, False]
    assert judged(toml, [20_000, 10_000, 312], [b"a", b"b", b"c"]) == [True, False, False]
    assert judged(toml, [312], [b"b"]) == [False]


@pytest.mark.parametrize("key", [None, b"", b"b", b"A", b"a ", b'"a"', b"a\n"])
def test_what_an_output_under_another_key_is_the_policy_says(key):
    """`unknown` by default, as the check's `unknown` says; `block`; `pass`."""
    for off_key, unknown, approved, found in (
        ("unknown", "auto", False, {"jump"}),
        ("unknown", "fail", False, {"jump"}),
        ("unknown", "pass", True, {"off_key"}),
        ("block", "pass", False, {"off_key"}),
        ("pass", "auto", True, set()),
    ):
        real = Real(policy_of(JUMP.format(f'off_key = "{off_key}"') + f'unknown = "{unknown}"\n'))
        (answer,) = real.judge([raw(value=312.0)], keys=[key])
        assert (answer[0], failures(answer)) == (approved, found), (off_key, unknown)
        # It is no reference, unless keys say nothing.
        assert bool(real.last) == (off_key == "pass")


def test_it_is_not_the_fault_of_the_version():
    """Off its key an output is blocked, and the breaker does not count it."""
    for off_key in ("unknown", "block"):
        real = Real(policy_of(JUMP.format(f'off_key = "{off_key}"')))
        real.judge([raw()], keys=[b"x"])
        assert (real.tallies[0].blocked, real.tallies[0].failed) == (1, 0)


def test_a_value_that_fails_against_what_is_known_fails_under_any_key():
    """That it is off its key makes nothing better."""
    real = Real(policy_of(JUMP.format("") + 'unknown = "pass"\n'))
    answers = real.judge([raw(value=100.0), raw(value=1.0)], keys=[b"a", b"x"])
    assert answers[1] == (False, [("jump", True)])


def test_where_no_check_has_memory_keys_say_nothing():
    """A policy of bounds alone is judged as before."""
    real = Real(policy_of('model = "pricing"\noff_key = "block"\n[[checks]]\nname = "f"\nkind = "range"\nmin = 1.0\n'))
    assert real.judge([raw(), raw()], keys=[None, b"x"]) == [(True, []), (True, [])]


def test_an_outlier_check_asks_for_the_key_too():
    """Else a producer would choose the partition, and with it what the segment's values are held against."""
    outlier = 'model = "pricing"\n[[checks]]\nname = "odd"\nkind = "outlier"\nunknown = "fail"\nmin_values = 3\n'
    real = Real(policy_of(outlier.replace('unknown = "fail"\n', "")))
    real.judge([raw(value=10.0 + i) for i in range(5)], keys=[b"a"] * 5)
    answers = real.judge([raw(value=11.0), raw(value=11.0)], keys=[b"a", b"b"])
    assert answers == [(True, []), (True, [("off_key", False)])]
    assert len(real.memory.recent["pricing", "value"][None]) == 6
    assert real.tallies[-1].unknown_by_check == {"odd": 1}


def test_a_record_in_another_partition_than_its_keys_is_off_where_its_entity_is_new():
    """An entity that is known here is held against what is known."""
    (at,) = partitions_of([b"a"], 4).tolist()
    toml = JUMP.format("")
    assert judged(toml, [100.0], [b"a"], partition=at, partitions=4) == [True]
    assert judged(toml, [100.0], [b"a"], partition=(at + 1) % 4, partitions=4) == [False]
    # Producers may use another partitioner; then the number of partitions is not given.
    assert judged(toml, [100.0], [b"a"], partition=(at + 1) % 4) == [True]
    real = Real(policy_of(toml))
    real.judge([raw(value=100.0)], keys=[b"a"], partition=0, partitions=1)
    (answer,) = real.judge([raw(value=110.0)], keys=[b"a"], partition=(at + 1) % 4, partitions=4)
    assert answer == (True, [])


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ({}, "sku-1", b"sku-1"),
        ({}, "Größe", "Größe".encode()),
        ({"as": "json"}, "sku-1", b'"sku-1"'),
        ({"as": "json"}, 'a"b', b'"a\\"b"'),
        ({"as": "json"}, "Größe", '"Größe"'.encode()),
        ({"as": "int32"}, "4711", b"\x00\x00\x12\x67"),
        ({"as": "int64"}, "-1", b"\xff" * 8),
        ({"as": "int32"}, "2147483648", None),
        ({"as": "int32"}, "04711", None),
        ({"as": "int64"}, "sku-1", None),
        ({"field": "features.shop"}, 12, b"12"),
        ({"field": "features.shop"}, 12.0, b"12"),
        ({"field": "features.shop"}, True, b"true"),
        ({"field": "features.shop"}, None, None),
        ({"field": "features.shop"}, ["x"], None),
        ({"field": "segment"}, "", None),
    ],
)
def test_how_keys_are_written(key, value, written):
    """As text, as JSON text, or as a number of four or eight bytes; no other way is right."""
    assert RecordKey.model_validate(key).written(value) == written


def test_only_one_way_of_writing_is_right():
    """`"a"` in quotes is another partition than `a`: a producer that could use both would have two memories."""
    toml = JUMP.format('key = { field = "entity_id", as = "json" }')
    assert judged(toml, [100.0, 100.0], [b'"a"', b"a"]) == [True, False]


def test_a_policy_may_name_another_field_as_the_key():
    """One that goes with the entity: its record's key is that field's value."""
    toml = JUMP.format('key = "features.shop"')
    real = Real(policy_of(toml))
    events = [raw(features={"shop": shop}) for shop in ("x", 7)] + [raw()]
    assert [one[0] for one in real.judge(events, keys=[b"x", b"7", b"a"])] == [True, True, False]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('key = "prediction_id"', "cannot be the key"),
        ('key = "value"', "cannot be the key"),
        ("key = 3", "write a field"),
        ('key = { field = "entity_id", form = "json" }', "the keys here are field, as"),
        ('key = { as = "avro" }', "text, json, int32, int64"),
        ('off_key = "fail"', "unknown"),
    ],
)
def test_a_key_that_cannot_be_is_refused(line, words):
    """With what is allowed."""
    with pytest.raises(PolicyError) as refused:
        parse_policy(tomllib.loads(JUMP.format(line)), "pricing.toml")
    assert words in str(refused.value)


@given(st.lists(st.binary(max_size=30), max_size=40), st.integers(1, 50))
def test_partitions_are_those_of_kafkas_clients(keys, partitions):
    """Against aiokafka's hash, which takes one key at a time."""
    hashes = [murmur2_of_one(bytearray(key)) for key in keys]
    assert [*map(int, murmur2(keys))] == [one & 0xFFFFFFFF for one in hashes]
    assert partitions_of(keys, partitions).tolist() == [(one & 0x7FFFFFFF) % partitions for one in hashes]


texts = st.text(st.sampled_from('ab"\n é'), min_size=1, max_size=4)


@given(st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=6))
def test_a_batch_is_compared_as_each_of_its_records(pairs):
    """Also where ids hold line ends, and one key is another's text."""
    keys = [None if key is None else key.encode() for _, key in pairs]
    off = Keys(keys).off(RecordKey(), [value for value, _ in pairs])
    assert off.tolist() == [value != key for value, key in pairs]
    digests = Keys([*map(hash, keys)], form=hash).off(RecordKey(), [value for value, _ in pairs])
    assert digests.tolist() == off.tolist()
