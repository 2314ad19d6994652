"""Wishes to force a release: how long they wait, and for whom."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import forced_wishes
from holdfast.core.approvals import ASKED_FOR, MOST_ASKED
from holdfast.core.forced_wishes import ForcedWishes

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def name(wish):
    return wish.actor if wish is not None else None


@pytest.mark.parametrize(
    ("actor", "later", "expected"),
    [
        ("bob", timedelta(0), "ann"),
        ("bob", ASKED_FOR - TICK, "ann"),
        ("bob", ASKED_FOR, None),
        # Of a clock that was set back.
        ("bob", -TICK, None),
        ("ann", timedelta(0), None),
        (" Ann", timedelta(0), None),
        ("\uff41nn", timedelta(0), None),
    ],
)
def test_a_wish_waits_for_somebody_else(actor, later, expected):
    wishes = ForcedWishes()
    wishes.add("p/0/1", "ann", NOW)
    assert name(wishes.of_somebody_else("p/0/1", actor, NOW + later)) == expected
    assert wishes.of_somebody_else("p/0/2", actor, NOW + later) is None


def test_who_asks_again_begins_again():
    wishes = ForcedWishes()
    wishes.add("p/0/1", "ann", NOW)
    wishes.add("p/0/1", "ANN", NOW + ASKED_FOR)
    assert name(wishes.of_somebody_else("p/0/1", "bob", NOW + ASKED_FOR)) == "ANN"


def test_the_oldest_make_room(monkeypatch):
    """Of one prediction, and of all: what is forgotten must be asked for again."""
    monkeypatch.setattr(forced_wishes, "MOST_PREDICTIONS", 3)
    wishes = ForcedWishes()
    for number in range(MOST_ASKED + 1):
        wishes.add("p/0/0", f"a{number}", NOW + number * TICK)
    assert name(wishes.of_somebody_else("p/0/0", "bob", NOW + timedelta(minutes=1))) == "a1"
    for number in range(1, 4):
        wishes.add(f"p/0/{number}", "ann", NOW)
    kept = [wishes.of_somebody_else(f"p/0/{number}", "bob", NOW) is not None for number in range(4)]
    assert kept == [False, True, True, True]


@given(st.lists(st.tuples(st.sampled_from(["ann", "Ann", "bob"]), st.integers(0, 90)), max_size=12), st.integers(0, 99))
def test_nobody_is_the_second_person_of_their_own_wish(asked, minutes):
    wishes = ForcedWishes()
    for actor, at in sorted(asked, key=lambda one: one[1]):
        wishes.add("p/0/1", actor, NOW + timedelta(minutes=at))
    found = wishes.of_somebody_else("p/0/1", "ann", NOW + timedelta(minutes=minutes))
    latest = max((at for actor, at in asked if actor == "bob"), default=None)
    waits = latest is not None and 0 <= minutes - latest < 30
    assert name(found) == ("bob" if waits else None)
