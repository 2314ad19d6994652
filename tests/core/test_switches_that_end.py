"""Switches that let outputs pass, and end by themselves: what is in force before, at and after the time."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.alike import failures, policy_of, raw
from core.test_ledger import NOW, NOW_MS, approve, history, policy, prediction
from holdfast.adapters.policies_here import PolicyHere
from holdfast.api.console import in_shadow
from holdfast.core.fail_open import ends, unchecked
from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import judge
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicyError, PolicySet
from holdfast.settings import Settings
from holdfast.verify.ledger import Kind, Stream
from holdfast_schemas import Header

END = datetime(2026, 12, 1, 10, tzinfo=UTC)
TICK = timedelta(microseconds=1)
FLOOR = '[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n'
JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2\n'


def ending(mode, until="2026-12-01T10:00:00Z", checks=FLOOR):
    return policy_of(f'model = "pricing"\nmode = "{mode}"\nmode_until = {until}\n{checks}')


@pytest.mark.parametrize("mode", ["off", "shadow"])
@pytest.mark.parametrize(
    ("now", "ended"),
    [(END - timedelta(days=365), False), (END - TICK, False), (END, True), (END + TICK, True)],
)
def test_a_mode_ends_at_its_time(mode, now, ended):
    """The id stays, and what is read of an event; from the time on the policy enforces."""
    given = ending(mode)
    policies = PolicySet.of([given])
    found = policies.at(now)
    assert (found.policies["pricing"].mode, found.policies["pricing"].id) == ("enforce" if ended else mode, given.id)
    assert found.shapes is policies.shapes
    assert found is policies.at(now)
    for in_force in (given, found.policies["pricing"]):
        ((_, batch),) = decode_by_model(policies, [raw(value=1.0)])[0]
        judgement = judge(batch, in_force, Memory(), None, now, model="pricing")
        assert bool(judgement.approved[0]) is not ended
        said = (True, [(one.check, one.enforced) for one in judgement.findings.get(0, ())])
        assert failures(said) == (set() if mode == "off" and not ended else {"floor"})


def test_what_the_memory_holds_follows_the_end():
    """A guard reads back what it must know as soon as the checks run."""
    policies = PolicySet.of([ending("off", checks=JUMP)])
    assert policies.at(END - TICK).remembered_fields() == frozenset()
    assert {one.field for one in policies.at(END).remembered_fields()} == {"value"}


def test_each_policy_ends_at_its_own_time():
    first = ending("off")
    second = policy_of('model = "b"\nmode = "shadow"\nmode_until = 2026-12-01T11:00:00+01:00\n' + FLOOR)
    third = policy_of('model = "c"\nmode = "shadow"\nmode_until = 2027-01-01T00:00:00Z\n' + FLOOR)
    never = policy_of('model = "d"\nmode = "shadow"\n' + FLOOR)
    policies = PolicySet.of([first, second, third, never])
    modes = {at: [one.mode for one in policies.at(at).policies.values()] for at in (END - TICK, END, END.replace(2027))}
    assert [*modes.values()] == [
        ["off", "shadow", "shadow", "shadow"],
        ["enforce", "enforce", "shadow", "shadow"],
        ["enforce", "enforce", "enforce", "shadow"],
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('mode = "off"\nmode_until = 2026-12-01T10:00:00', "mode_until: the time has no zone"),
        ('mode = "off"\nmode_until = "2026-12-01T10:00:00"', "mode_until: the time has no zone"),
        ('mode = "off"\nmode_until = 2026-12-01', "mode_until: the time has no zone, or no hour"),
        ('mode = "off"\nmode_until = "tomorrow"', "mode_until: 'tomorrow' is not a time; write it as in 2026-12-01"),
        ('mode = "off"\nmode_until = 1795000000', "mode_until: 1795000000 is not a time"),
        ("mode_until = 2026-12-01T10:00:00Z", 'and the mode is "enforce"; set one of them, or leave mode_until out'),
        ('mode = "enforce"\nmode_until = 2026-12-01T10:00:00Z', 'the mode is "enforce"'),
    ],
)
def test_an_end_that_says_nothing_is_refused(line, says):
    with pytest.raises(PolicyError) as refused:
        policy_of(f'model = "pricing"\n{line}\n')
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"no_policy": "approve", "no_policy_until": "2026-12-01T10:00:00"}, "the time has no zone"),
        ({"no_policy": "approve", "no_policy_until": "soon"}, "'soon' is not a time"),
        ({"no_policy_until": "2026-12-01T10:00:00Z"}, 'and no_policy is "block"'),
    ],
)
def test_an_end_of_no_policy_that_says_nothing_is_refused(section, says):
    with pytest.raises(ValidationError, match=says):
        Settings.model_validate({"guard": section})


def test_models_without_a_policy_are_blocked_from_the_time_on():
    guard = Settings.model_validate({"guard": {"no_policy": "approve", "no_policy_until": str(END)}}).guard
    assert [guard.approves_without_policy(at) for at in (END - TICK, END, END + TICK)] == [True, False, False]
    assert Settings.model_validate({"guard": {"no_policy": "approve"}}).guard.approves_without_policy(END)


def test_people_read_of_an_end_before_it_and_after_it():
    """In doctor, in what `check` warns of, and on the console."""
    given = ending("off")
    assert list(ends([given], END - TICK, END)) == [
        "models without a policy are approved until 2026-12-01T10:00:00Z, and blocked from then on",
        'pricing has mode = "off" until 2026-12-01T10:00:00Z, and enforces from then on',
    ]
    after = " ".join(ends([given], END, END))
    assert "guard.no_policy_until has passed" in after
    assert "mode_until of pricing has passed (2026-12-01T10:00:00Z), so its checks are enforced" in after
    assert list(ends([policy()], END)) == []
    assert unchecked([given.at(END - TICK)], no_policy_approves=False)
    assert unchecked([given.at(END)], no_policy_approves=False) == []
    told = in_shadow("pricing", PolicyHere.of(given))
    assert told == "The checks of pricing are off: none of them runs. It enforces from 2026-12-01 10:00 UTC on."
    assert in_shadow("pricing", PolicyHere.of(given.at(END))) == ""


VALUES = st.lists(st.sampled_from([5.0, 100.0, 110.0, 250.0, 900.0, 5000.0]), min_size=4, max_size=24)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from(["off", "shadow"]), st.integers(-1, 7), st.booleans())
def test_the_verifier_comes_to_the_verdict_of_the_guard(values, mode, last, microsecond):
    """Whatever is judged before, at and after the end; and what a guard lets pass after it is found."""
    until = NOW + timedelta(seconds=last) + TICK * microsecond
    given = policy(mode=mode, mode_until=until)
    made = history(
        [prediction(i, f"E{i % 2}", value) for i, value in enumerate(values)],
        by=lambda number: given.at(NOW + timedelta(seconds=number)),
    )
    made.policies = [given]
    assert made.violations() == [], made.details
    assert made.ledger.unjudged == 0
    sources = [dict(record.headers)[Header.SOURCE.value] for record in made.out[Stream.BLOCKED]]
    blocked = [int(source.rpartition(b"/")[2]) for source in sources]
    assert all(NOW + timedelta(seconds=offset // 4) >= until for offset in blocked)
    for offset in [offset for offset in blocked if values[offset] == 5.0][:1]:
        approve(made, offset)
        assert Kind.WRONGLY_APPROVED in made.violations(), made.details


@pytest.mark.parametrize(("until", "found"), [(1, []), (0, [Kind.WRONGLY_APPROVED]), (-1, [Kind.WRONGLY_APPROVED])])
def test_the_verifier_finds_what_was_predicted_after_approval_without_a_policy_ended(until, found):
    made = history([prediction(0, "E0", 100)])
    headers = [(n, b"none" if n == Header.POLICY else v) for n, v in made.out[Stream.APPROVED][0].headers]
    made.out[Stream.APPROVED][0] = dataclasses.replace(made.out[Stream.APPROVED][0], headers=headers)
    made.tallies = []
    made.rules = dataclasses.replace(made.rules, approve_without_policy=True, no_policy_until_ms=NOW_MS + until)
    assert made.violations() == found
