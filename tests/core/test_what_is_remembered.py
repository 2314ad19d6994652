"""What is remembered of entities is bounded: the bytes of one, and how many there are of a partition and its models."""

import tracemalloc
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.alike import Real, policy_of, raw
from holdfast.core.columns import Columns, Decoded
from holdfast.core.entity_key import LONG, entity_key
from holdfast.core.judge import remember
from holdfast.core.memory import Entities, Memory, Table, fair_level
from holdfast.verify.ledger import Rules, _GuardsKnowledge

ANY = st.sampled_from("abcdef")
LENGTHS = st.sampled_from([1, LONG - 1, LONG, LONG + 1, 1000])


def columns(entities, value=1.0):
    return Columns(
        Decoded({"model": ["m"] * len(entities), "entity_id": list(entities)}, {"value": np.full(len(entities), value)})
    )


def everything(entities):
    return np.ones(len(entities), dtype=np.bool_)


@settings(max_examples=60)
@given(
    st.dictionaries(ANY, LENGTHS, min_size=6, max_size=6),
    st.lists(st.lists(ANY, min_size=1, max_size=5), max_size=9),
    st.integers(1, 6),
)
def test_a_long_id_is_remembered_and_forgotten_as_a_short_one(lengths, batches, limit):
    """The same steps with ids of any length: the same values, of the same entities, are known after each."""
    named = {letter: letter + "x" * (lengths[letter] - 1) for letter in lengths}
    table = Table({named[letter]: row for row, letter in enumerate(sorted(named))}, np.zeros(6), np.ones(6))
    plain_table = Table({letter: row for row, letter in enumerate(sorted(named))}, np.zeros(6), np.ones(6))
    long, plain = Entities(), Entities()
    for number, batch in enumerate(batches):
        theirs, ours = columns([named[letter] for letter in batch], number), columns(batch, number)
        long.learn("value", theirs, everything(batch))
        plain.learn("value", ours, everything(batch))
        long.forget(limit)
        plain.forget(limit)
        everyone = sorted(named)
        look, plainly = columns([named[letter] for letter in everyone]), columns(everyone)
        assert np.array_equal(long.last("value", look), plain.last("value", plainly), equal_nan=True)
        assert list(long.rows_in(table, look)) == list(plain.rows_in(plain_table, plainly)) == list(range(6))
        assert len(long) == len(plain)
        assert long._hashed == sum(isinstance(name, bytes) for name in long._slots)


def test_an_id_that_looks_like_a_hash_is_another_entity():
    """Hashes are bytes and ids are texts."""
    long = "a" * 1000
    hashed = blake2b(long.encode(), digest_size=16)
    known = Entities()
    known.learn("value", columns([long], 5.0), everything([long]))
    for other in (hashed.hexdigest(), hashed.digest().decode("latin-1"), long[:LONG], long + "a"):
        assert np.isnan(known.last("value", columns([other]))).all()
    assert known.last("value", columns([long]))[0] == 5.0


@pytest.mark.parametrize("character", ["a", "\u0001", "€", "😀"])
def test_an_entity_costs_no_more_for_a_longer_id(character):
    """Four thousand ids of 1,000 characters each, in bytes that the memory has grown by."""
    known = Entities()
    tracemalloc.start()
    try:
        for first in range(0, 4000, 1000):
            batch = [f"{number}-{character * 990}" for number in range(first, first + 1000)]
            known.learn("value", columns(batch), everything(batch))
        del batch
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(known) == 4000
    assert grown / 4000 < 400


@pytest.mark.parametrize(("length", "is_text"), [(1, True), (LONG, True), (LONG + 1, False), (1000, False)])
def test_ids_up_to_64_characters_stand_for_themselves(length, is_text):
    """Beyond them 16 bytes do."""
    key = entity_key("é" * length)
    assert key == "é" * length if is_text else len(key) == 16


def test_a_long_id_is_held_against_its_own_last_value():
    """As a policy judges, and once more after what was approved is read back."""
    check = 'kind = "max_change"\ndown = 0.5\nup = 2.0\nunknown = "pass"\n'
    real = Real(policy_of(f'model = "pricing"\n[[checks]]\nname = "jump"\n{check}'))
    one, other = "x" * 1000, "x" * 999 + "y"

    def judged(entity, value):
        ((approved, _),) = real.judge([raw(entity_id=entity, value=value)])
        return approved

    assert judged(one, 100.0)
    assert judged(other, 10_000.0)
    assert not judged(one, 10_000.0)
    real.restart()
    assert not judged(one, 10_000.0)
    assert not judged(other, 100.0)
    assert judged(one, 150.0)


@settings(max_examples=150)
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 60))
def test_who_has_few_entities_loses_none_to_who_has_many(sizes, room):
    """All together keep no more than there is room for, and none is forgotten that there is room for."""
    level = fair_level(sizes, room)
    kept = [min(size, level) for size in sizes]
    assert sum(kept) <= room
    if sum(sizes) <= room:
        assert kept == sizes
    elif sizes:
        assert sum(min(size, level + 1) for size in sizes) > room


def test_a_flood_of_entities_of_one_model_leaves_the_memory_of_the_others():
    """A partition remembers a hundred; a producer invents thousands of one model."""
    memory = Memory()
    for model, count in (("quiet", 20), ("busy", 40)):
        names = [f"{model}-{number}" for number in range(count)]
        memory.entities.setdefault(model, Entities()).learn("value", columns(names, 7.0), everything(names))
    for first in range(0, 5000, 50):
        names = [f"invented-{number}" for number in range(first, first + 50)]
        memory.entities.setdefault("flooded", Entities()).learn("value", columns(names), everything(names))
        memory.forget(100)
        assert len(memory) <= 100
    assert {model: len(known) for model, known in memory.entities.items()} == {"quiet": 20, "busy": 39, "flooded": 40}
    newest = columns([f"invented-{number}" for number in range(4970, 5000)])
    assert (memory.of("flooded").last("value", newest) == 1.0).all(), "those approved last"
    assert (memory.of("quiet").last("value", columns(["quiet-0", "quiet-19"])) == 7.0).all()


JUMP = 'model = "{}"\n[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2.0\n'
POLICIES = {model: policy_of(JUMP.format(model)) for model in "abc"}
STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 40), min_size=1, max_size=8)), min_size=1, max_size=25
)


@settings(max_examples=40)
@given(STEPS, st.integers(20, 110), st.booleans())
def test_the_verifier_takes_nothing_for_known_that_a_guard_has_forgotten(steps, limit, one_by_one):
    """Of several models in one partition, in the guard's batches or in others."""
    rules = Rules("predictions", max_entities=limit, ahead=4 * 8)
    guard, known, offset = Memory(), _GuardsKnowledge(rules, complete=True), 0
    for model, numbers in steps:
        batch = columns([f"e{number}" for number in numbers])
        remember(guard, batch, POLICIES[model])
        guard.forget(limit)
        for some in [[number] for number in numbers] if one_by_one else [numbers]:
            part = columns([f"e{number}" for number in some])
            known.note(model, POLICIES[model], part, range(offset, offset + len(some)), everything(some))
            known.forget(guard, rules)
            offset += len(some)
        for name, last in known._last.items():
            kept = guard.of(name).items("value")
            assert {entity for _, entity in last} <= set(kept)
        assert len(guard) <= limit
