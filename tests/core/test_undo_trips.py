"""A policy mistake that was live for seconds: incidents name the change, and one command takes back what it did."""

from datetime import timedelta

import pytest

from core.test_routing import POLICY, Model
from holdfast.core.model_state import Standing, standing
from holdfast.core.policy_change import advice
from holdfast_schemas import Outcome, RouteState

OLD, WRONG, WORSE = "pricing@00000000001d", "pricing@0000000bad00", "pricing@0000000bad01"


def mistaken(*versions, at=5):
    """These versions are good under the old policy; then the wrong one comes, and `at` seconds later all trip."""
    model = Model()
    for version in versions:
        model.command("promote", version)
        model.tally(version, policy=OLD)
        model.now += POLICY.good_after
        model.tally(version, policy=OLD)
    model.tally(versions[-1], 1, policy=WRONG)
    model.now += timedelta(seconds=at)
    for version in reversed(versions):
        model.tally(version, 500, failed=500, policy=WRONG)
    return model


def put_back(model, version="v9"):
    """The old policy judges again."""
    model.now += timedelta(seconds=10)
    model.tally(version, 1, policy=OLD)


def latest(model):
    return {incident.incident_id: incident for incident in model.incidents}.values()


# The incident says so


def test_the_incident_and_the_route_name_the_policy_change_before_the_trip():
    """When, in place of which, and the command that undoes it; a resolved one says nothing more of it."""
    model = mistaken("v1", "v2", at=4)
    incident = next(one for one in latest(model) if one.bad_version == "v2")
    assert (incident.policy, incident.policy_before) == (WRONG, OLD)
    assert (incident.opened_at - incident.policy_since).total_seconds() == 4
    assert advice(incident) == (
        f"The policy {WRONG} was taken up 4s before, in place of {OLD}. If the policy is wrong and the version is "
        "right, put the old policy back, then undo its trips: "
        f"holdfast policy undo-trips pricing --policy {WRONG} --reason …"
    )
    assert f"the policy {WRONG} was taken up 4s before" in model.routes[-1].reason
    model.command("resolve", "v2")
    assert advice(next(one for one in latest(model) if one.bad_version == "v2")) == ""


@pytest.mark.parametrize(
    ("case", "told"),
    [("just before", True), ("15 minutes", True), ("longer ago", False), ("the first policy", False)],
)
def test_only_a_change_shortly_before_is_named(case, told):
    """The first policy of a model is no change."""
    model = Model().earn_good("v1")
    policy = "pricing@000000000000" if case == "the first policy" else WRONG
    model.tally("v1", 1, policy=policy)
    model.now += {"15 minutes": timedelta(minutes=15), "longer ago": timedelta(minutes=15, seconds=1)}.get(
        case, timedelta(seconds=1)
    )
    model.tally("v2", 50, failed=50, policy=policy)
    assert (model.incidents[-1].policy_since is not None) is told
    assert ("was taken up" in model.audits[-1].reason) is told


def test_guards_that_change_over_one_after_the_other_are_one_change():
    """Tallies of both policies come in turn; the new one counts from its first."""
    model = Model().earn_good("v1")
    since = model.now
    for second in range(20):
        model.now = since + timedelta(seconds=second)
        model.tally("v1", 1, policy=OLD)
        model.tally("v1", 1, policy=WRONG)
    model.tally("v2", 50, failed=50, policy=WRONG)
    assert model.incidents[-1].policy_since == since


def test_a_policy_that_comes_back_later_is_a_change_again():
    """The wrong file is deployed once more."""
    model = Model().earn_good("v1")
    for policy in (OLD, WRONG, OLD, WRONG):
        model.now += timedelta(minutes=10)
        model.tally("v1", 1, policy=policy)
    since = model.now
    model.tally("v2", 50, failed=50, policy=WRONG)
    assert model.incidents[-1].policy_since == since


# One command undoes it


@pytest.mark.parametrize("named", [WRONG, None], ids=["named", "the latest trip's"])
def test_everything_that_the_policy_did_is_undone(named):
    """Both good versions tripped and the model was held: the one that served serves again, both are good."""
    model = mistaken("v1", "v2")
    assert (model.shows(), model.route.fenced) == ((None, "held"), ("v1", "v2"))
    put_back(model)
    audit = model.command("undo_trips", policy=named, reason="a typo in the floor")
    assert audit.outcome is Outcome.APPLIED
    assert audit.detail == (
        f"trips under {WRONG} are undone: v1 (good), v2 (good) are not fenced any more; v2 serves again"
    )
    assert (model.shows(), model.route.fenced, model.route.last_good) == (("v2", "auto"), (), "v1")
    assert {model.state.versions[name].state.value for name in ("v1", "v2")} == {"good"}
    assert not model.state.incidents
    assert {(one.status.value, one.resolved_by, one.resolved_because) for one in latest(model)} == {
        ("resolved", "ann", "a typo in the floor")
    }
    assert model.command("undo_trips", policy=WRONG).outcome is Outcome.REFUSED


def test_a_candidate_that_served_serves_again_and_is_a_candidate():
    """It was not good before, and is not now."""
    model = Model()
    model.command("promote", "v1")
    model.tally("v1", 1, policy=OLD)
    model.tally("v1", 50, failed=50, policy=WRONG)
    assert standing(model.state) is Standing.HELD
    put_back(model)
    model.command("undo_trips")
    assert (model.shows(), model.state.versions["v1"].state.value) == (("v1", "auto"), "candidate")


def test_a_version_that_did_not_serve_is_unfenced_and_the_route_stays():
    """A canary's trip moved nothing."""
    model = Model().earn_good("v1")
    model.tally("v2", 50, failed=50, policy=WRONG)
    put_back(model, "v1")
    assert model.command("undo_trips").detail.endswith("v2 is not fenced any more; v1 serves on")
    assert (model.shows(), model.route.fenced) == (("v1", "auto"), ())


@pytest.mark.parametrize(("minutes", "state"), [(None, "pinned"), (60, "pinned"), (1, "auto")])
def test_a_pin_that_the_trip_broke_is_in_force_again(minutes, state):
    """Unless its end has passed."""
    model = Model().earn_good("v1").earn_good("v2")
    end = None if minutes is None else model.now + timedelta(minutes=minutes)
    model.command("pin", "v2", expires_at=end)
    model.tally("v2", 500, failed=500, policy=WRONG)
    assert model.shows() == ("v1", "auto")
    model.tick(minutes=2)
    put_back(model)
    model.command("undo_trips")
    assert (model.shows(), model.state.ends_at) == (("v2", state), end if state == "pinned" else None)


@pytest.mark.parametrize(
    ("command", "version", "then"),
    [
        ("promote", "v3", ("v3", "auto")),
        ("pin", "v3", ("v3", "pinned")),
        ("hold", None, (None, "held")),
        ("rollback", None, (None, "held")),
    ],
)
def test_what_a_person_decided_since_stands(command, version, then):
    """The versions are good again, and who serves is what the person chose."""
    model = Model().earn_good("v1").earn_good("v2")
    model.tally("v2", 500, failed=500, policy=WRONG)
    assert model.command(command, version).outcome is Outcome.APPLIED
    put_back(model)
    model.command("undo_trips")
    assert (model.shows(), model.state.versions["v2"].state.value) == (then, "good")


@pytest.mark.parametrize("why", ["a person", "a person too", "another policy"])
def test_what_is_fenced_for_another_reason_stays_fenced(why):
    """Also what tripped, and was then fenced by a person, who knew more."""
    model = Model().earn_good("v1").earn_good("v2")
    if why == "a person":
        model.command("fence", "v1")
    if why == "another policy":
        model.tally("v1", 500, failed=500, policy=OLD)
    model.tally("v2", 500, failed=500, policy=WRONG)
    if why == "a person too":
        model.tally("v1", 500, failed=500, policy=WRONG)
        model.command("fence", "v1")
    put_back(model)
    model.command("undo_trips", policy=WRONG)
    assert (model.shows(), model.route.fenced) == (("v2", "auto"), ("v1",))


def test_a_version_that_was_unfenced_by_hand_is_good_again():
    """An unfence makes a candidate of it; the trip had taken its `good`."""
    model = Model().earn_good("v1").earn_good("v2")
    model.tally("v2", 500, failed=500, policy=WRONG)
    model.command("unfence", "v2")
    put_back(model)
    assert model.command("undo_trips").outcome is Outcome.APPLIED
    assert model.state.versions["v2"].state.value == "good"


@pytest.mark.parametrize("seconds", [0, 2, 3])
def test_it_is_refused_while_guards_judge_by_the_policy(seconds):
    """Else the versions would trip again at once."""
    model = mistaken("v1", "v2")
    model.now += timedelta(seconds=seconds)
    audit = model.command("undo_trips")
    assert (audit.outcome is Outcome.REFUSED) is (seconds < 3)
    if seconds < 3:
        assert "put the old policy back" in audit.detail


@pytest.mark.parametrize("first", [WRONG, WORSE])
def test_two_policies_are_undone_in_either_order(first):
    """The first mistake led from v3 to v2, the second from v2 to v1; what is left says where to go back."""
    model = Model().earn_good("v1").earn_good("v2").earn_good("v3")
    model.tally("v3", 900, failed=900, policy=WRONG)
    model.tally("v2", 900, failed=900, policy=WORSE)
    assert model.shows() == ("v1", "auto")
    put_back(model)
    model.command("undo_trips", policy=first)
    assert model.shows() == (("v2", "auto") if first == WORSE else ("v1", "auto"))
    model.command("undo_trips")
    assert (model.shows(), model.route.fenced) == (("v3", "auto"), ())


def test_switches_that_are_undone_do_not_count_as_flapping():
    """`max_switches` = 2."""
    model = Model().earn_good("v1").earn_good("v2").earn_good("v3")
    model.tally("v3", 900, failed=900, policy=WRONG)
    model.tally("v2", 900, failed=900, policy=WRONG)
    put_back(model)
    model.command("undo_trips")
    for version in ("v3", model.route.last_good):
        model.tally(version, 900, failed=900, policy=OLD)
        assert model.route.state is RouteState.AUTO


def test_the_hold_by_versions_without_end_is_undone_too():
    """A critical limit that is wrong fences each version that comes."""
    model = Model().earn_good("v0")
    for number in range(405):
        model.tally(f"r-{number}", 1, critical=1, failed=1, policy=WRONG)
    assert standing(model.state) is Standing.HELD
    put_back(model, "v0")
    assert " and 3" in model.command("undo_trips").detail
    assert (model.shows(), model.route.fenced, dict(model.state.incidents)) == (("v0", "auto"), (), {})


@pytest.mark.parametrize("policy", [None, WRONG])
def test_with_nothing_to_undo_it_is_refused(policy):
    """It changes nothing."""
    model = Model().earn_good("v1")
    model.command("fence", "v2")
    before = model.route
    assert model.command("undo_trips", policy=policy).outcome is Outcome.REFUSED
    assert model.route == before


def test_other_commands_take_no_policy():
    assert Model().earn_good("v1").command("unfence", "v1", policy=WRONG).outcome is Outcome.REFUSED
