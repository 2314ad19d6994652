"""How many entities a model has, and what its breaker makes of it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.alike import Real, policy_of, raw
from core.test_routing import Model
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.population import Population
from holdfast_schemas import Tally

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
DEFAULT = BreakerPolicy()
COUNTRIES = ("at", "ch", "de", "li")


def tally(approved=100, entities=COUNTRIES):
    counts = {"seen": approved, "approved": approved, "blocked": 0, "failed": 0}
    where = {"worker": "w", "partition": 0, "first_offset": 0, "last_offset": approved}
    named = {"model": "pricing", "model_version": "v1", "policy": "pricing@000000000000"}
    return Tally(**named, at=NOW, **where, **counts, approved_entities=tuple(entities))


def population(*days, policy=DEFAULT):
    """What is known after these days, each a list of tallies."""
    known = Population()
    for number, tallies in enumerate(days):
        for one in tallies:
            known = known.add(one, NOW + timedelta(days=number), policy)
    return known


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_small_model_trips_once_all_its_entities_fail(failing):
    """Four countries under the default breaker: v1 is fine, v2 says 1.0 for all of them."""
    model = Model(policy=DEFAULT)
    model.command("promote", "v1")
    model.tally("v1", 2000, approved_entities=COUNTRIES)
    model.now += timedelta(minutes=20)
    model.tally("v1", 2000, approved_entities=COUNTRIES)
    model.command("promote", "v2")
    model.tally("v2", 1500, failed=1500, entities=COUNTRIES[:failing])
    assert model.shows() == (("v1" if failing == 4 else "v2"), "auto")


@pytest.mark.parametrize(
    ("case", "days", "needed"),
    [
        ("nothing was approved", [], 5),
        ("four entities", [[tally()]], 4),
        ("more than enough", [[tally(entities=[f"e{i}" for i in range(32)])]], 5),
        ("too few outputs to tell", [[tally(49)]], 5),
        ("just enough", [[tally(30), tally(20)]], 4),
        ("two partitions with two each", [[tally(50, COUNTRIES[:2]), tally(50, COUNTRIES[2:])]], 4),
        ("the next day has begun", [[tally()], [tally(1, ["at"])]], 4),
        ("fewer since yesterday", [[tally()], [tally(entities=["at"])]], 4),
        ("fewer since the day before yesterday", [[tally()], [tally(entities=["at"])], [tally(1, ["at"])]], 1),
        ("a quiet day says nothing", [[tally()], [tally(1, ["at"])], [tally(1, ["at"])]], 4),
        ("a guard that names none", [[tally(entities=())]], 5),
    ],
)
def test_the_breaker_asks_for_no_more_entities_than_there_are(case, days, needed):
    """Told by what was approved within a day, or within the last day that had traffic."""
    assert population(*days).needed(DEFAULT) == needed, case


@given(st.lists(st.lists(st.sampled_from([*COUNTRIES, *"abcdef"]), max_size=6), max_size=12), st.randoms())
def test_the_order_of_tallies_does_not_matter(several, rng):
    """Guards of several partitions write at once; what is kept is bounded."""
    tallies = [tally(10, entities) for entities in several]
    known = population(tallies)
    rng.shuffle(tallies)
    assert population(tallies).needed(DEFAULT) == known.needed(DEFAULT)
    assert len(known.entities) <= DEFAULT.min_entities
    assert Population.model_validate_json(known.model_dump_json()) == known


@pytest.mark.parametrize(
    ("outputs", "minutes", "told"), [(30, 60, True), (59_999, 600, True), (60_000, 600, False), (1, 9, False)]
)
def test_traffic_that_is_too_little_for_the_breaker_is_told(outputs, minutes, told):
    """50 outputs within 30 s are 60,000 within ten hours; what is younger than ten minutes says nothing yet."""
    why = population([tally(outputs)]).why_it_may_not_trip(NOW + timedelta(minutes=minutes), DEFAULT)
    assert (why is not None) is told


def test_a_tally_names_the_entities_that_were_approved():
    """At most 32, and none that were only blocked."""
    real = Real(policy_of('model = "pricing"\n[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n'))
    real.judge([raw(entity_id=f"e{i % 100}", value=20 if i % 2 else 1) for i in range(1000)])
    real.judge([raw(entity_id=f"e{i % 3}", value=20) for i in range(1000)])
    real.judge([raw(value=1)])
    many, few, nobody = (one.approved_entities for one in real.tallies)
    assert len(set(many)) == len(many) == 32
    assert {int(name[1:]) % 2 for name in many} == {1}
    assert few == ("e0", "e1", "e2")
    assert nobody == ()


@pytest.mark.parametrize(
    ("extra", "told"),
    [("", False), ('mode = "shadow"', True), ('severity = "warning"', True), ('mode = "off"', True)],
)
def test_a_policy_without_a_check_that_blocks_is_told(extra, told):
    """Nothing but a record that cannot be read would trip a version."""
    policy = policy_of(f'model = "pricing"\n[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n{extra}\n')
    assert (policy.why_it_cannot_trip() is not None) is told
