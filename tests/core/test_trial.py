"""What `holdfast check --try` says of events: the guard's own answers, and what no event has."""

import dataclasses

import pytest

from core.alike import NOW, Real, failures, policy_of, raw
from core.written import Rec
from holdfast.core.policy import PolicySet
from holdfast.core.trial import Event, try_events

TOML = """
model = "pricing"
[[checks]]
name = "floor"
kind = "range"
min = 10
[[checks]]
name = "margin"
kind = "expression"
expression = "value >= cots"
unknown = "pass"
[[checks]]
name = "fresh"
kind = "freshness"
max_age = "5m"
unknown = "pass"
[[checks]]
name = "jump"
kind = "max_change"
up = 3
"""
NOW_MS = int(NOW.timestamp() * 1000)


def tried(raws, toml=TOML, **options):
    events = [Event(f"t/0/{i}", 0, Rec(i, NOW_MS, b"a", one)) for i, one in enumerate(raws)]
    return try_events(PolicySet.of([policy_of(toml)]), events, max_record_bytes=100_000, **options)


def test_each_event_gets_the_answer_that_a_guard_would_give():
    """With an empty memory, in order, and at the time when it was written."""
    raws = [
        raw(features={"cost": 5}),
        raw(value=1.0),
        raw(value=40.0),
        raw(predicted_at="2026-11-24T10:00:00Z", value=11),
        raw(predicted_at="2026-11-24T09:00:00Z"),
        b"{",
        raw(value=None),
        raw(model="other"),
        raw(note="x" * 100_000),
    ]
    trial = tried(raws)
    for one, answer in zip(trial.tried[:-1], Real(policy_of(TOML)).judge(raws[:-1]), strict=True):
        assert (one.malformed is not None) == (answer == "malformed")
        if answer != "malformed":
            assert one.approved == answer[0]
            assert {finding.check for finding in one.findings} == failures(answer)
    assert trial.tried[-1].malformed.kind == "value_too_long"
    assert (trial.decoded, trial.approved) == (6, 2)
    assert {kind: count for kind, (count, _) in trial.reasons().items()} == {
        "not_json": 1,
        "no_output": 1,
        "value_too_long": 1,
    }
    answers = trial.answers["pricing"]
    assert answers["floor"] == {"pass": 4, "fail": 1}
    assert answers["margin"] == {"unknown": 5}
    assert answers["fresh"] == {"unknown": 3, "pass": 1, "fail": 1}
    assert answers["jump"] == {"unknown": 1, "fail": 1, "pass": 3}


def test_old_events_are_judged_at_their_own_time():
    """Events of last month are as fresh as they were."""
    then = NOW_MS - 30 * 86_400_000
    event = raw(predicted_at="2026-10-25T09:59:00Z")
    events = [Event("t/0/0", 0, Rec(0, then, None, event))]
    policies = PolicySet.of([policy_of(TOML)])
    assert try_events(policies, events, max_record_bytes=1000).answers["pricing"]["fresh"] == {"pass": 1}
    later = [dataclasses.replace(events[0], at=NOW)]
    assert try_events(policies, later, max_record_bytes=1000).answers["pricing"]["fresh"] == {"fail": 1}


@pytest.mark.parametrize(
    ("event", "instead"),
    [
        (raw(features={"cost": 5}), "nothing"),
        (raw(features={"cots": None, "cost": 1}), "nothing"),
        (raw(), "nothing"),
        (raw(features={"cots": "5"}), "a text"),
        (raw(features={"cots": [5]}), "a list"),
        (raw(features={"cots": True}), "true or false"),
    ],
)
def test_a_feature_that_no_event_has_is_named(event, instead):
    """With the check that reads it, and what stands beside it under a similar name."""
    (found,) = [one for one in tried([event, event]).absent if one.field == "features.cots"]
    assert (found.model, found.path, found.checks, found.events) == ("pricing", "features.cots", ("margin",), 2)
    assert found.instead == instead
    assert found.similar == (("cost",) if b'"cost"' in event else ())


def test_a_feature_that_one_event_has_is_not():
    """Some events may well lack it."""
    trial = tried([raw(), raw(features={"cots": 5}), raw()])
    assert [one.field for one in trial.absent] == ["predicted_at"]


def test_decimal_texts_count_as_numbers_where_they_are_read_as_such():
    """The mapping decides."""
    mapping = '[fields]\n"features.cots" = { path = "c", as = "decimal_text" }\n'
    toml = TOML.replace('model = "pricing"\n', f'model = "pricing"\n{mapping}')
    assert [one.field for one in tried([raw(c="5")], toml).absent] == ["predicted_at"]
    assert [one.path for one in tried([raw(c="five")], toml).absent] == ["c", "predicted_at"]
