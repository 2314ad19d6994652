"""What a guard answers to a request for releases, as a table, and what holds for all of them."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.written import Rec
from holdfast.core.policy import EMPTY, PolicySet, parse_policy
from holdfast.core.releases import Answer, Known, Rules, Waiting, in_words, judge_releases
from holdfast_schemas import ReleaseCommand, Route, RouteState, WaitingPrediction

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = parse_policy(
    {
        "model": "pricing",
        "checks": [
            {"name": "floor", "kind": "range", "field": "value", "min": 10},
            {"name": "jump", "kind": "max_change", "field": "value", "up": 3.0},
        ],
    },
    "a test",
)
RULES = Rules(PolicySet.of([POLICY]), HOUR)


def record(value=20.0, *, ago=timedelta(minutes=1), key=b"SKU-1", model="pricing", version="v1", raw=None, offset=0):
    event = {"prediction_id": "p", "model": model, "model_version": version, "entity_id": "SKU-1", "value": value}
    at = round((NOW - ago).timestamp() * 1000)
    return Rec(offset, at, key, json.dumps(event).encode() if raw is None else raw)


def answer(one, known=None, rules=RULES, **asked):
    """What becomes of one prediction that was blocked, or malformed with `action="retry"`."""
    (judged,) = answers([one], known, rules, **asked)
    return judged


def answers(records, known=None, rules=RULES, *, sources=None, **asked):
    sources = sources or [f"predictions/0/{number}" for number in range(len(records))]
    waiting = {
        source: one if isinstance(one, Waiting) else Waiting(source, one)
        for source, one in zip(sources, records, strict=True)
        if one is not None
    }
    command = ReleaseCommand(
        **{"command_id": "c", "action": "release", "model": "pricing", "actor": "ann", "reason": "x", **asked},
        predictions=tuple(WaitingPrediction(source=source, offset=n) for n, source in enumerate(sources)),
    )
    return judge_releases(command, waiting, known or Known(), rules, NOW)


def route(*fenced, state=RouteState.AUTO):
    return Route(
        model="pricing",
        version=None if state is RouteState.HELD else "v9",
        state=state,
        epoch=7,
        reason="x",
        actor="ann",
        since=NOW,
        fenced=fenced,
    )


SOURCE = "predictions/0/0"
OLDER, NEWER = (round((NOW - timedelta(minutes=minutes)).timestamp() * 1000) for minutes in (2, 0))
FORCE = {"force": True, "superseded": True}


@pytest.mark.parametrize(
    ("one", "known", "asked", "expected"),
    [
        (record(), Known(), {}, "released"),
        (record(), Known(), {"dry_run": True}, "would_be_released"),
        (record(5.0), Known(), {}, "still_fails"),
        (record(5.0), Known(), {"dry_run": True}, "still_fails"),
        (record(5.0), Known(), {"force": True}, "released"),
        (record(), Known(released={SOURCE}), FORCE, "already_released"),
        (record(), Known(unclear={SOURCE}), FORCE, "unclear"),
        (record(), Known(refused={SOURCE: "too large"}), FORCE, "not_written"),
        (record(ago=HOUR), Known(), {}, "released"),
        (record(ago=HOUR + timedelta(milliseconds=1)), Known(), FORCE, "too_old"),
        (record(ago=-HOUR), Known(), {}, "released"),
        (record(ago=-HOUR - timedelta(milliseconds=1)), Known(), FORCE, "too_old"),
        (record(), Known(newest={b"SKU-1": NEWER}), {}, "superseded"),
        (record(), Known(newest={b"SKU-1": NEWER}), {"force": True}, "superseded"),
        (record(), Known(newest={b"SKU-1": NEWER}), {"superseded": True}, "released"),
        (record(), Known(newest={b"SKU-1": OLDER}), {}, "released"),
        (record(), Known(newest={b"SKU-2": NEWER}), {}, "released"),
        (record(key=None), Known(newest={b"SKU-1": NEWER}), {"force": True}, "released"),
        (record(), Known(routes={"pricing": route("v1")}), {}, "still_fails"),
        (record(), Known(routes={"pricing": route("v1")}), {"force": True}, "released"),
        (record(), Known(routes={"pricing": route("v2")}), {}, "released"),
        (record(), Known(routes={"pricing": route(state=RouteState.HELD)}), {}, "still_fails"),
        (record(raw=b"{"), Known(), FORCE, "still_fails"),
        (record(model="other"), Known(), FORCE, "not_found"),
        (record(), Known(), {"version": "v1"}, "released"),
        (record(), Known(), {"version": "v2", **FORCE}, "not_found"),
        (None, Known(), FORCE, "not_found"),
        (record(), Known(), {"action": "retry"}, "released"),
        (record(raw=b"{"), Known(), {"action": "retry", **FORCE}, "still_malformed"),
        (Waiting(SOURCE, record(), "only a part was kept"), Known(), {"action": "retry", **FORCE}, "still_malformed"),
    ],
)
def test_each_prediction_has_one_answer(one, known, asked, expected):
    assert answer(one, known, **asked).answer == expected


def test_the_rules_are_those_of_the_guard():
    """No policy, an age, a limit of bytes."""
    assert answer(record(), rules=Rules(EMPTY, HOUR)).findings[0].check == "no_policy"
    assert answer(record(), rules=Rules(EMPTY, HOUR, approve_without_policy=True)).answer is Answer.RELEASED
    assert answer(record(ago=2 * HOUR), rules=dataclasses.replace(RULES, max_age=3 * HOUR)).answer is Answer.RELEASED
    small = dataclasses.replace(RULES, max_record_bytes=10)
    assert answer(record(), rules=small, action="retry", **FORCE).answer is Answer.STILL_MALFORMED


def test_another_models_malformed_record_has_no_answer():
    """Whether it can be decoded now or not; one of which nobody can say whose it is does."""
    assert answers([record(model="other")], action="retry") == []
    assert answers([record(version="v2")], action="retry", version="v1") == []
    other = b'{"model": "other", "model_version": "v1", "entity_id": "E"}'
    assert answers([record(raw=other)], action="retry") == []
    assert answer(record(raw=b"[]"), action="retry").answer is Answer.STILL_MALFORMED


def test_what_is_released_with_it_counts_for_the_next():
    """The same prediction that was blocked twice, and two of one key, in one command."""
    twice = answers([record(), record(offset=1)], sources=[SOURCE, SOURCE])
    assert [one.answer for one in twice] == ["released", "already_released"]
    newer, older = record(30.0, ago=timedelta(0)), record(20.0)
    assert [one.answer for one in answers([newer, older])] == ["released", "superseded"]
    both = answers([older, newer], superseded=True)
    assert [one.answer for one in both] == ["released", "released"]
    # Only the newest is the next reference, in whatever order they are named.
    assert [[t.value for t in one.taught] for one in both] == [[], [30.0]]
    assert [[t.value for t in one.taught] for one in answers([newer, older], superseded=True)] == [[30.0], []]


def test_what_is_released_says_by_what_and_teaches():
    """Findings that force overruled, the version, and the entity's next reference; none of a fenced version."""
    forced = answer(record(5.0), force=True)
    assert [finding.check for finding in forced.findings] == ["floor"]
    assert (forced.version, forced.taught) == ("v1", (("SKU-1", "value", 5.0),))
    fenced = answer(record(), Known(routes={"pricing": route("v1")}), force=True)
    assert fenced.taught == ()
    assert answer(record(), dry_run=True).taught == ()


def test_a_record_off_the_key_of_its_entity_needs_force_and_teaches_nothing():
    """As for the guard that blocked it: its entity may be known elsewhere."""
    off = record(key=b"other")
    strict = Rules(PolicySet.of([POLICY.model_copy(update={"off_key": "block"})]), HOUR)
    assert [finding.check for finding in answer(off, rules=strict).findings] == ["off_key"]
    forced = answer(off, rules=strict, force=True)
    assert (forced.answer, forced.taught) == ("released", ())


def test_the_answer_in_words():
    """A clause for the audit."""
    some = answers([record(), record(5.0, key=b"2"), record(6.0, key=b"3")])
    assert in_words(some, dry_run=False) == "1 released, 2 still fails"
    assert in_words([], dry_run=True) == "dry run: nothing of this model and version"


@given(
    values=st.lists(st.sampled_from([5.0, 20.0, None]), min_size=1, max_size=8),
    ages=st.lists(st.integers(-90, 90), min_size=8, max_size=8),
    keys=st.lists(st.sampled_from([b"a", b"b", None]), min_size=8, max_size=8),
    known=st.lists(st.sampled_from(["fresh", "released", "unclear"]), min_size=8, max_size=8),
    force=st.booleans(),
    superseded=st.booleans(),
    dry_run=st.booleans(),
    action=st.sampled_from(["release", "retry"]),
)
def test_nothing_is_released_that_may_not_be(values, ages, keys, known, force, superseded, dry_run, action):
    """Whatever is asked: not twice, not what is unclear or too old, and nothing at all in a dry run."""
    sources = [f"predictions/0/{number}" for number in range(len(values))]
    records = [
        None if value is None else record(value, ago=timedelta(minutes=age), key=key)
        for value, age, key in zip(values, ages, keys, strict=False)
    ]
    facts = Known(
        released={source for source, said in zip(sources, known, strict=False) if said == "released"},
        unclear={source for source, said in zip(sources, known, strict=False) if said == "unclear"},
    )
    asked = {"force": force, "superseded": superseded, "dry_run": dry_run, "action": action}
    found = answers(records, facts, sources=sources, **asked)
    assert [one.source for one in found] == sources
    released = [one for one in found if one.answer in (Answer.RELEASED, Answer.WOULD_BE_RELEASED)]
    assert not any(one.answer is Answer.RELEASED for one in found) or not dry_run
    for one in released:
        assert one.source not in facts.released | facts.unclear
        assert -HOUR <= NOW - datetime.fromtimestamp(one.waiting.produced_ms / 1000, UTC) <= HOUR
        assert force or json.loads(one.waiting.record.value)["value"] >= 10
