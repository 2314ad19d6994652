"""Versions without end: some are counted one by one, the others together, and every verdict stays as it was."""

import random

import pytest

from core.alike import Real, policy_of
from core.test_ledger import history, prediction
from core.test_routing import Model
from core.test_what_is_malformed import FLOOR, raw
from holdfast.core.version_budget import GUARD_BUDGET
from holdfast_schemas.control import OTHERS


def test_a_batch_of_as_many_versions_as_predictions_has_few_tallies_that_add_up():
    real = Real(policy_of(FLOOR))
    answers = real.judge([raw(value=i % 20, model_version=f"v{i}", entity_id=f"e{i}") for i in range(3000)])
    *own, others = real.tallies
    assert len(own) == GUARD_BUDGET
    assert (others.model_version, others.versions) == (OTHERS, 3000 - GUARD_BUDGET)
    assert (others.entities, others.approved_entities, others.samples) == ((), (), ())
    for counted in ("seen", "approved", "blocked", "failed"):
        assert getattr(others, counted) + sum(getattr(one, counted) for one in own) == {
            "seen": 3000,
            "approved": sum(passed for passed, _ in answers),
        }.get(counted, sum(not passed for passed, _ in answers))
    by_version = {one.model_version: one for one in own}
    for i, (approved, found) in enumerate(answers):
        if (one := by_version.get(f"v{i}")) is not None:
            assert (one.seen, one.approved) == (1, int(approved))
            assert one.blocked_by_check == {name: 1 for name, enforced in found if enforced}


def test_versions_with_most_predictions_and_those_of_the_route_are_counted_one_by_one():
    """However many others a batch names, and wherever in it they stand."""
    real = Real(policy_of(FLOOR))
    real.route = real.route.model_copy(update={"version": "routed", "last_good": "before"})
    events = [raw(model_version=f"new-{i}", entity_id=f"e{i}") for i in range(500)]
    events += [raw(model_version=name, entity_id="e") for name in ("routed", "before")]
    events += [raw(model_version="canary", entity_id=f"e{i}") for i in range(2)]
    random.Random(7).shuffle(events)
    real.judge(events)
    assert {"routed", "before", "canary"} <= {one.model_version for one in real.tallies}
    assert len(real.tallies) == GUARD_BUDGET + 1


def test_malformed_records_of_many_versions_are_counted_together_with_the_others():
    real = Real(policy_of(FLOOR))
    real.route = real.route.model_copy(update={"version": "routed"})
    events = [raw(model_version=f"good-{i}") for i in range(100)]
    events += [raw(model_version=f"bad-{i}", value="text") for i in range(100)]
    real.judge([*events, raw(model_version="routed", value="text")])
    assert sum(one.seen for one in real.tallies) == 201
    assert sum(one.blocked_by_check.get("malformed", 0) for one in real.tallies) == 101
    assert len(real.tallies) <= GUARD_BUDGET + 3
    (routed,) = (one for one in real.tallies if one.model_version == "routed")
    assert routed.blocked_by_check == {"malformed": 1}


@pytest.mark.parametrize("value", [1, "text"])
def test_no_event_passes_for_the_versions_that_are_counted_together(value):
    real = Real(policy_of(FLOOR))
    assert real.judge([raw(model_version=OTHERS, value=value)]) == ["malformed"]


@pytest.mark.parametrize("malformed", [0, 1, 3], ids="{} malformed of each version".format)
def test_a_history_with_many_versions_has_no_violation(malformed):
    """The checker finds the tally of a version that was counted together with others, malformed or not."""
    values = [100, *["text"] * malformed]
    records = [prediction(i, f"E{i % 5}", values[i // 45 % len(values)], f"v{i % 45}") for i in range(720)]
    made = history(records, batch=180)
    assert made.violations() == [], made.details
    assert any(tally.model_version == OTHERS for tally, _ in made.tallies)
    wrong = [
        (tally.model_copy(update={"seen": tally.seen + 1, "approved": tally.approved + 1}), at)
        if tally.model_version == OTHERS
        else (tally, at)
        for tally, at in made.tallies
    ]
    made.tallies = wrong
    assert made.violations()


def test_the_switch_counts_them_and_nothing_trips_by_them():
    model = Model().earn_good("v1")
    for _ in range(10):
        model.tally(OTHERS, 1000, critical=1, failed=1000, versions=500)
    assert (model.state.others, model.state.others_at) == (10_000, model.now)
    assert OTHERS not in model.state.versions
    assert (model.shows(), model.incidents) == (("v1", "auto"), [])
