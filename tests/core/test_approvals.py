"""Two people for what loosens: one alone changes nothing, and what tightens never waits."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from holdfast.core.approvals import ASKED_FOR, LOOSENS, MOST_ASKED
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.decide import decide
from holdfast.core.model_state import ModelState, VersionState
from holdfast.core.turn import Decision
from holdfast_schemas import AcceptedValue, Action, Command, Outcome, RouteState

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
STEP = timedelta(minutes=1)


class Model:
    """One model under a switch that asks for two people."""

    def __init__(self, approvals: int = 2) -> None:
        self.state: ModelState | None = None
        self.now, self.approvals, self._count = NOW, approvals, 0

    def __call__(self, actor: str, action: Action, version: str | None = None, **more: Any) -> Decision:
        self.now += STEP
        self._count += 1
        command = Command(
            command_id=f"c-{self._count}",
            model="pricing",
            action=action,
            version=version,
            **{"actor": actor, "reason": f"what {actor} says", **more},
        )
        decision = decide(
            self.state,
            command,
            self.now,
            BreakerPolicy(),
            new_id=f"n-{self._count}",
            runbook_url="",
            approvals=self.approvals,
        )
        # As it is restored after a restart.
        assert decision.state is not None
        self.state = ModelState.model_validate_json(decision.state.to_json())
        return decision


def outcome(decision: Decision) -> Outcome:
    return decision.audits[0].outcome


@pytest.fixture
def model() -> Model:
    """v1 is fenced, and v2 serves."""
    made = Model()
    for action, version in ((Action.PROMOTE, "v1"), (Action.PROMOTE, "v2"), (Action.FENCE, "v1")):
        assert outcome(made("ann", action, version)) is Outcome.APPLIED
    return made


def test_an_unfence_waits_for_somebody_else(model: Model) -> None:
    """The first person is told; the second one's is carried out, and the audit names both."""
    first = model("ann", Action.UNFENCE, "v1")
    assert outcome(first) is Outcome.REFUSED
    assert first.audits[0].detail == "unfence needs a second person: somebody else must ask for the same within 30m"
    assert first.route is None
    second = model("bob", Action.UNFENCE, "v1")
    assert (outcome(second), second.audits[0].actor) == (Outcome.APPLIED, "bob")
    assert second.audits[0].detail.endswith("; ann had asked for it at 2026-11-24T10:04:00Z")
    assert model.state is not None
    assert model.state.versions["v1"].state is VersionState.CANDIDATE
    # A wish is used up.
    model("ann", Action.FENCE, "v1")
    assert outcome(model("bob", Action.UNFENCE, "v1")) is Outcome.REFUSED


@pytest.mark.parametrize("again", ["ann", "Ann", " ann ", "\uff41nn"])
def test_the_same_person_twice_is_one_person(model: Model, again: str) -> None:
    for actor in ("ann", again, again):
        assert outcome(model(actor, Action.UNFENCE, "v1")) is Outcome.REFUSED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"version": "v1"}, {"version": "v2"}),
        ({"version": "v1"}, {"version": "v3"}),
    ],
)
def test_another_wish_approves_nothing(model: Model, first: dict[str, Any], second: dict[str, Any]) -> None:
    assert outcome(model("ann", Action.UNFENCE, **first)) is Outcome.REFUSED
    decision = model("bob", Action.UNFENCE, **second)
    assert "needs a second person" in decision.audits[0].detail


def test_other_values_are_another_wish(model: Model) -> None:
    """A person approves the value that stands there."""
    for actor, value, expected in (("ann", 1.0, Outcome.REFUSED), ("bob", 2.0, Outcome.REFUSED)):
        references = (AcceptedValue(entity_id="SKU-1", value=value),)
        assert outcome(model(actor, Action.ACCEPT_REFERENCE, references=references)) is expected
    agreed = model("bob", Action.ACCEPT_REFERENCE, references=(AcceptedValue(entity_id="SKU-1", value=1.0),))
    assert outcome(agreed) is Outcome.APPLIED
    assert [one.value for one in agreed.references] == [1.0]


@pytest.mark.parametrize(("after", "expected"), [(ASKED_FOR - STEP, Outcome.APPLIED), (ASKED_FOR, Outcome.REFUSED)])
def test_a_wish_waits_for_half_an_hour(model: Model, after: timedelta, expected: Outcome) -> None:
    model("ann", Action.UNFENCE, "v1")
    model.now += after - STEP
    assert outcome(model("bob", Action.UNFENCE, "v1")) is expected


def test_a_clock_that_was_set_back_makes_no_wish_last(model: Model) -> None:
    model("ann", Action.UNFENCE, "v1")
    model.now -= timedelta(days=1)
    assert outcome(model("bob", Action.UNFENCE, "v1")) is Outcome.REFUSED


@pytest.mark.parametrize(("mine", "theirs"), [(2, 5), (5, 2), (None, 2), (2, None)])
def test_the_earlier_end_counts(model: Model, mine: int | None, theirs: int | None) -> None:
    ends = [None if hours is None else NOW + timedelta(hours=hours) for hours in (mine, theirs)]
    model("ann", Action.UNFENCE, "v1", expires_at=ends[0])
    model("bob", Action.UNFENCE, "v1", expires_at=ends[1])
    assert model.state is not None
    assert model.state.versions["v1"].fence_at == NOW + timedelta(hours=2)


def test_what_tightens_never_waits(model: Model) -> None:
    """And a hold that one person made is ended by two."""
    for action, version in ((Action.FENCE, "v3"), (Action.HOLD, None)):
        assert outcome(model("ann", action, version)) is Outcome.APPLIED
    assert outcome(model("ann", Action.RESUME)) is Outcome.REFUSED
    resumed = model("bob", Action.RESUME)
    assert resumed.route is not None
    assert resumed.route.state is RouteState.AUTO


def test_a_wish_that_cannot_be_carried_out_is_refused_for_its_reason(model: Model) -> None:
    """Where the route does not take it, nobody is asked for; where the version is not fenced, the second is told."""
    assert "nothing is held" in model("ann", Action.RESUME).audits[0].detail
    model("ann", Action.UNFENCE, "v2")
    assert "needs a second person" not in model("bob", Action.UNFENCE, "v2").audits[0].detail


def test_one_is_enough_where_nobody_says_otherwise() -> None:
    single = Model(approvals=1)
    single("ann", Action.FENCE, "v1")
    assert outcome(single("ann", Action.UNFENCE, "v1")) is Outcome.APPLIED
    assert {Action.UNFENCE, Action.RESUME, Action.ACCEPT_REFERENCE, Action.UNDO_TRIPS} == LOOSENS


def test_many_wishes_do_not_fill_the_state(model: Model) -> None:
    """The oldest make room."""
    for number in range(50):
        model("ann", Action.UNFENCE, f"v{number}")
    assert model.state is not None
    assert len(model.state.asked) == MOST_ASKED
    assert outcome(model("bob", Action.UNFENCE, "v1")) is Outcome.REFUSED
