"""Records within their size, whatever producers write: evidence is shed first, routes and fences never."""

import json
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.test_routing import EVIDENCE, POLICY, Model
from holdfast.core.decide import decide
from holdfast.core.fit import (
    INCIDENT_BYTES,
    STATE_BYTES,
    TALLY_BYTES,
    encode,
    fit_incident,
    fit_state,
    fit_tally,
)
from holdfast.core.model_state import ModelState, Standing, VersionState, standing
from holdfast.core.short_names import short
from holdfast.core.trips import Full
from holdfast_schemas import Action, Command, IncidentAction, IncidentStatus, Outcome, Sample, parse_control

WORST = "\u0001"
"""Six bytes in JSON."""
BAD = Sample(
    source="predictions/0/1",
    prediction=WORST * 4096,
    findings=EVIDENCE.findings,
    entity_id=WORST * 200,
    prediction_id="\U0001f600" * 200,
)
WIDE = POLICY.model_copy(update={"min_entities": 32})
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}\Z")
entities = st.text(alphabet=st.sampled_from(["\u0001", '"', "\\", "é", "\U0001f600", "a"]), min_size=1, max_size=1000)


def fenced(state):
    return {name for name, version in state.versions.items() if version.state is VersionState.FENCED}


def test_invented_versions_with_the_worst_characters_leave_a_state_that_can_be_written():
    """110 versions that trip, then 250 with ten failing records each, half of them with long ids to be escaped."""
    model = Model(WIDE).earn_good("good")
    for number in range(110):
        model.tally(f"bad-{number}" + "x" * 190, 10, critical=1, failed=10, samples=(BAD,) * 5)
    for number in range(250):
        ids = tuple(f"{n}" + WORST * 990 for n in range(32)) if number % 2 else tuple(f"E-{n}" for n in range(32))
        model.tally(f"new-{number}" + "x" * 190, 1000, failed=10, samples=(BAD,) * 5, entities=ids)
    state, raw = fit_state(model.state, STATE_BYTES)
    assert len(raw) <= STATE_BYTES
    assert (state.route, fenced(state)) == (model.state.route, fenced(model.state))
    assert state.versions["good"].state is VersionState.GOOD
    assert ModelState.model_validate_json(raw) == state


@settings(max_examples=12)
@given(
    st.lists(st.tuples(names, st.booleans(), st.lists(entities, max_size=32, unique=True)), min_size=1, max_size=12),
    st.sampled_from([16 * 1024, 64 * 1024, STATE_BYTES]),
)
def test_no_state_exceeds_the_limit_and_none_loses_its_route_or_a_fence(tallies, limit):
    model = Model(WIDE).earn_good("good")
    ids = count()
    for name, trips, named in tallies:
        model.tally(name, 1000, 40, critical=40 * trips, entities=tuple(named), samples=(BAD,) * 5)
        model.command("acknowledge", reason=WORST * 990 + "x", command_id=f"c-{next(ids)}" + '"' * 900)
    found = fit_state(model.state, limit)
    bare = sum(2 * len(name) + 600 for name in fenced(model.state)) + 10_000
    assert found is not None or bare > limit
    if found is not None:
        state, raw = found
        assert len(raw) <= limit
        assert raw == encode(state)
        assert (state.route, fenced(state), standing(state)) == (
            model.state.route,
            fenced(model.state),
            standing(model.state),
        )


def test_a_state_that_fits_loses_nothing():
    model = Model().earn_good("good")
    model.tally("v2", 1000, 40, samples=(EVIDENCE,) * 5)
    assert fit_state(model.state, STATE_BYTES) == (model.state, encode(model.state))


def test_tallies_and_incidents_keep_as_many_samples_as_fit():
    model = Model().earn_good("good")
    model.tally("v2", 1000, critical=1, failed=500, samples=(BAD,) * 5)
    incident = model.incidents[-1].model_copy(update={"samples": (BAD,) * 5})
    assert len(incident.to_json()) > INCIDENT_BYTES >= len(fit_incident(incident))
    few = incident.model_copy(update={"samples": (EVIDENCE,) * 5})
    assert fit_incident(few) == few.to_json()
    tally = parse_control(
        model_tally(samples=[BAD.model_dump(mode="json")] * 5, entities=[short(WORST * n) for n in range(1, 33)])
    )
    kept = parse_control(fit_tally(tally))
    assert len(fit_tally(tally)) <= TALLY_BYTES
    assert (kept.seen, kept.entities, len(kept.samples)) == (tally.seen, tally.entities, 2)


def model_tally(**more):
    facts = {"type": "tally", "model": "pricing", "model_version": "v1", "policy": "pricing@000000000000"}
    facts |= {"at": "2026-11-24T10:00:00Z", "worker": "w", "partition": 0, "first_offset": 0, "last_offset": 9}
    return json.dumps(facts | {"seen": 10, "approved": 0, "blocked": 10, "failed": 10} | more).encode()


def test_a_model_whose_state_has_no_room_is_held_with_an_incident_and_its_commands_are_answered():
    model = Model().earn_good("v1")
    asked = model_command("promote", "v2")
    decision = decide(
        model.state, Full("v2", (asked,)), model.now, model.policy, new_id="full", runbook_url="https://runbooks/"
    )
    assert standing(decision.state) is Standing.HELD
    (incident,) = decision.incidents
    assert (incident.action, incident.status) == (IncidentAction.HELD, IncidentStatus.TRIGGERED)
    trip, answer = decision.audits
    assert (trip.action, answer.outcome, answer.command_id) == ("trip", Outcome.REFUSED, asked.command_id)
    assert "unfence versions that nobody sends any more" in answer.detail
    again = decide(
        decision.state, Full("v2", (asked,)), model.now, model.policy, new_id="again", runbook_url="https://runbooks/"
    )
    assert (again.state, again.route, again.incidents) == (decision.state, None, ())
    assert [audit.outcome for audit in again.audits] == [Outcome.REFUSED]


def model_command(action, version):
    return Command(
        command_id="c-1", model="pricing", action=Action(action), version=version, actor="ann", reason="because"
    )


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("E-1", True),
        ("Café 7", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("é" * 33, False),
        (WORST, False),
        ('"', False),
        ("\\", False),
        ("\ud800", False),
    ],
)
def test_long_names_and_those_that_need_escapes_are_hashed(name, kept):
    assert (short(name) == name) is kept
    assert short(name) == short(name)
    assert len(short(name).encode()) <= 64


def test_many_versions_that_never_served_have_ten_incidents_and_the_latest_tells_of_the_others():
    model = Model().earn_good("v1")
    for number in range(300):
        model.tally(f"bad-{number}", 10, critical=1, failed=10)
    model.tick(seconds=2)
    latest = model.latest_incidents().values()
    assert len(latest) == 10
    assert max(one.more_versions for one in latest) == 290
    assert len(model.route.fenced) == 300
    trips = [audit for audit in model.audits if audit.action == "trip"]
    assert len(trips) == 300
    assert {audit.incident_id for audit in trips} == {one.incident_id for one in latest}
    # One that served, and one that comes later, have incidents of their own.
    model.tally("v1", 10, critical=1, failed=10)
    model.now += timedelta(minutes=11)
    model.tally("another", 10, critical=1, failed=10)
    assert len(model.latest_incidents()) == 12
