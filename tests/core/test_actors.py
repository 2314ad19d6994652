"""Names of who acts: one form for each, and none that reads like the name of automatic decisions."""

import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.actors import actor_key, actor_name, is_reserved
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.decide import decide
from holdfast_schemas import Action, Command, Outcome

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
RESERVED = [
    "holdfast",
    "Holdfast",
    "HOLDFAST",
    "holdfast ",
    " holdfast",
    "hold fast",
    "hold-fast",
    "holdfast.",
    "(holdfast)",
    "\uff48\uff4f\uff4c\uff44\uff46\uff41\uff53\uff54",  # full width
    "holdfa\u017ft",  # long s
    "h\u043eldfast",  # Cyrillic o
    "hold\ufb00ast".replace("\ufb00", "f"),
    "h0ldfast",
    "ho1dfast",
    "hoIdfast",
    "hóldfast",
    "\u210boldfast",  # script H
]


@pytest.mark.parametrize("name", RESERVED)
def test_no_name_that_reads_like_the_automatic_actor_is_taken(name: str) -> None:
    """Whatever its case, blanks, marks, width, or letters of another script."""
    assert is_reserved(name)
    with pytest.raises(ValueError, match="names automatic decisions; say who acts"):
        actor_name(name)


@pytest.mark.parametrize("name", RESERVED)
def test_the_switch_refuses_a_command_in_such_a_name(name: str) -> None:
    """Also where the command was written straight to Kafka; nothing but the audit record comes of it."""
    decision = decide(None, command(name), NOW, BreakerPolicy(), new_id="i-1", runbook_url="")
    (audit,) = decision.audits
    assert audit.outcome is Outcome.REFUSED
    assert "names automatic decisions" in audit.detail
    assert decision.route is None


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("ann", "ann"),
        ("Ann", "Ann"),
        ("  the \t cfo\n", "the cfo"),
        ("the\u00a0cfo", "the cfo"),
        ("\uff21nn", "Ann"),
        ("Zoe\u0308", "Zoë"),
        ("holdfast-ci", "holdfast-ci"),
        ("holdfast2", "holdfast2"),
        ("Иван", "Иван"),
    ],
)
def test_a_name_is_kept_in_one_form(given_name: str, kept: str) -> None:
    """By the switch too, so that the audit has each actor once."""
    assert actor_name(given_name) == kept
    decision = decide(None, command(given_name), NOW, BreakerPolicy(), new_id="i-1", runbook_url="")
    assert decision.audits[0].actor == kept
    assert decision.route is not None
    assert decision.route.actor == kept


@pytest.mark.parametrize("name", ["", " ", "\u2003", "an\u200bn", "an\u202en", "ann\x00", "a" * 1001])
def test_a_name_that_shows_nothing_or_hides_something_is_refused(name: str) -> None:
    """It would not be what people read in the audit."""
    with pytest.raises(ValueError, match="the name of the actor"):
        actor_name(name)


@pytest.mark.parametrize(("one", "other"), [("Ann", "ann "), ("STRASSE", "straße"), ("Zoe\u0308", "zoë")])
def test_case_does_not_make_another_actor(one: str, other: str) -> None:
    assert actor_key(one) == actor_key(other)
    assert actor_key(one) != actor_key("bob")


@given(st.text(max_size=30))
def test_the_form_of_a_name_is_its_own_form(text: str) -> None:
    """Whatever somebody gives: refused, or a normalised name that stays as it is."""
    try:
        name = actor_name(text)
    except ValueError:
        return
    assert name == actor_name(name) == unicodedata.normalize("NFKC", name).strip()
    assert actor_key(name) == actor_key(text)


def command(actor: str) -> Command:
    return Command(command_id="c-1", model="pricing", action=Action.HOLD, actor=actor, reason="a test")
