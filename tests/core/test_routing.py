"""Who serves: each command in each standing, trips, time, and the invariants under any sequence of events."""

from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.core.actors import HOLDFAST
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.decide import Tick, decide
from holdfast.core.incident_book import OWN_INCIDENTS
from holdfast.core.model_state import MAX_VERSIONS, ModelState, Standing, forget_silent, last_good, standing
from holdfast.core.trips import MAX_FENCED
from holdfast_schemas import (
    TOPICS,
    Action,
    Command,
    Finding,
    IncidentAction,
    IncidentStatus,
    Outcome,
    RouteState,
    Sample,
    Severity,
    Tally,
)

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
POLICY = BreakerPolicy(
    min_seen=10, min_entities=2, min_partitions=1, good_after_seen=100, good_after=timedelta(seconds=60), max_switches=2
)


class Model:
    """Steps one model and keeps everything that was published."""

    def __init__(self, policy=POLICY, runbooks="https://runbooks.example/"):
        self.runbooks = runbooks
        self.policy, self.now, self.state, self.ids = policy, NOW, None, count()
        self.routes, self.incidents, self.audits = [], [], []

    def step(self, event):
        decision = decide(
            self.state, event, self.now, self.policy, new_id=f"id{next(self.ids)}", runbook_url=self.runbooks
        )
        self.state = decision.state and forget_silent(decision.state, self.now)
        self.routes += [decision.route] if decision.route is not None else []
        self.incidents += decision.incidents
        self.audits += decision.audits
        return decision

    def tally(self, version, seen=100, failed=0, critical=0, *, policy="pricing@000000000000", **more):
        return self.step(
            Tally(
                model="pricing",
                model_version=version,
                policy=policy,
                at=self.now,
                worker="w",
                partition=0,
                first_offset=0,
                last_offset=seen,
                seen=seen,
                approved=seen - failed,
                blocked=failed,
                failed=failed,
                critical=critical,
                blocked_by_check={"floor": failed} if failed else {},
                entities=more.pop("entities", tuple(f"e{i}" for i in range(min(failed, 32)))),
                first_blocked_at=self.now if failed else None,
                **more,
            )
        )

    def command(self, action, version=None, **more):
        values = {"command_id": f"c{next(self.ids)}", "actor": "ann", "reason": "because", **more}
        decision = self.step(Command(model="pricing", action=Action(action), version=version, **values))
        return decision.audits[0]

    def tick(self, **after):
        self.now += timedelta(**after)
        return self.step(Tick())

    def earn_good(self, version):
        """Promote and serve until the version is good."""
        assert self.command("promote", version).outcome is Outcome.APPLIED
        self.tally(version)
        self.now += POLICY.good_after
        self.tally(version)
        assert self.state.versions[version].state == "good"
        return self

    @property
    def route(self):
        return self.state.route

    def latest_incidents(self):
        """As a reader of the topic has them, by id."""
        return {incident.incident_id: incident for incident in self.incidents}

    def shows(self):
        return (self.route.version, self.route.state.value)


def in_standing(where):
    """A model in that standing: v1 is good, v2 is the candidate that serves where one serves."""
    model = Model()
    if where is Standing.UNROUTED:
        model.tally("v2")
        return model
    model.earn_good("v1")
    if where is Standing.HELD:
        model.command("fence", "v1")
        return model
    model.command("promote", "v2")
    if where is Standing.PINNED:
        model.command("pin")
    if where is Standing.HELD_BY_PERSON:
        model.command("hold")
    assert standing(model.state) is where
    return model


def test_the_route_says_where_a_trip_would_go_now():
    """`last_good` is never the version that serves, and follows what is fenced."""
    model = Model().earn_good("v1")
    assert model.route.last_good is None
    model.earn_good("v2").command("promote", "v3")
    assert model.route.last_good == "v2"
    model.command("fence", "v2")
    assert model.route.last_good == "v1"
    model.command("pin", "v1")
    assert model.route.last_good is None


# A version becomes good


@pytest.mark.parametrize(
    ("case", "seen", "after", "good"),
    [
        ("one output too few", 99, 60, False),
        ("a second too early", 100, 59, False),
        ("both just met", 100, 60, True),
    ],
)
def test_good_is_earned_by_enough_approved_outputs_for_long_enough(case, seen, after, good):
    """Both limits are reached, not exceeded."""
    model = Model()
    model.command("promote", "v1")
    model.now += timedelta(seconds=after)
    model.tally("v1", seen)
    assert (model.state.versions["v1"].state == "good") is good, case


def test_a_version_that_does_not_serve_earns_nothing():
    """Outputs of a shadow or canary version count for its breaker, not for `good`."""
    model = Model()
    model.command("promote", "v1")
    for _ in range(5):
        model.tick(seconds=60)
        model.tally("v2")
    assert model.state.versions["v2"].state == "candidate"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_and_comes_back_earns_nothing(hours):
    """A version that has hardly served is none to go back to."""
    model = Model()
    model.command("promote", "v1")
    model.now += timedelta(hours=hours)
    model.tally("v1", 1)
    model.now += timedelta(hours=-hours, seconds=5)
    model.tally("v1", POLICY.good_after_seen)
    assert model.state.versions["v1"].state == "candidate"


def test_good_is_not_earned_while_too_much_fails():
    """A version whose failures come from too few entities to trip is not good either."""
    model = Model(POLICY.model_copy(update={"min_entities": 30}))
    model.command("promote", "v1")
    model.tick(seconds=60)
    model.tally("v1", 200, failed=20)
    assert model.state.versions["v1"].state == "candidate"


# Trips


def test_a_trip_of_the_active_version_moves_the_route_to_the_last_good():
    """The story: v2 goes bad; v2 is fenced, v1 serves, one incident and one audit record say so."""
    model = Model().earn_good("v1")
    model.command("promote", "v2")
    decision = model.tally("v2", 50, failed=50)
    assert model.shows() == ("v1", "auto")
    assert decision.route.fenced == ("v2",)
    assert [audit.action for audit in decision.audits] == ["trip"]
    assert decision.audits[0].actor == HOLDFAST
    (incident,) = decision.incidents
    assert (incident.dedup_key, incident.action, incident.routed_to) == ("holdfast/pricing/v2", "switched", "v1")
    assert (incident.seen, incident.blocked, incident.blocked_by_check) == (50, 50, {"floor": 50})
    assert decision.route.incident_id == incident.incident_id == decision.audits[0].incident_id
    assert incident.severity == "critical"


def test_a_trip_without_a_good_version_left_holds_the_route():
    """Trap: everything ejected, so traffic goes to a bad target."""
    model = Model()
    model.command("promote", "v1")
    model.command("promote", "v2")
    model.tally("v2", 50, failed=50)
    assert model.shows() == (None, "held")
    assert model.incidents[-1].action == "held"
    assert model.incidents[-1].routed_to is None


@pytest.mark.parametrize(
    ("runbooks", "page"),
    [
        ("https://runbooks.example/", "https://runbooks.example/HoldfastRouteHeld.md"),
        ("https://wiki.example/pricing", "https://wiki.example/pricing"),
    ],
)
def test_an_incident_names_the_runbook_of_its_kind(runbooks, page):
    """In the folder of all of them, unless the address given is that of a page."""
    model = Model(runbooks=runbooks)
    model.command("promote", "v1")
    model.tally("v1", 50, failed=50)
    assert model.incidents[-1].runbook_url == page


@pytest.mark.parametrize("spoiled", ["never active", "never good", "fenced", "the one being left"])
def test_the_route_never_goes_to_a_version_that_is_not_last_good(spoiled):
    """Trap: the rollback goes to the version that is being left, or to one nobody saw work."""
    model = Model()
    if spoiled == "never active":
        model.tally("v1", 1000)
    if spoiled == "never good":
        model.command("promote", "v1")
    if spoiled == "fenced":
        model.earn_good("v1")
    if spoiled == "the one being left":
        model.earn_good("v2")
    model.command("promote", "v2")
    if spoiled == "fenced":
        model.command("fence", "v1")
    model.tally("v2", 50, failed=50)
    assert model.shows() == (None, "held")


def test_the_latest_good_version_is_chosen():
    """Latest by when it served last, not by name."""
    model = Model().earn_good("v9").earn_good("v1").earn_good("v5")
    model.command("promote", "v9")
    model.command("promote", "v10")
    model.tally("v10", 50, failed=50)
    assert model.shows() == ("v9", "auto")


def test_a_trip_of_another_version_fences_it_and_leaves_the_route():
    """A canary that goes bad is fenced everywhere; who serves stays."""
    model = Model().earn_good("v1")
    model.tally("v2", 50, failed=50)
    assert model.shows() == ("v1", "auto")
    assert model.route.fenced == ("v2",)
    assert (model.incidents[-1].action, model.incidents[-1].severity) == ("fenced", "error")


def test_a_version_is_fenced_although_no_route_was_ever_made():
    """The guards learn of the fence from a route record without a version."""
    model = Model()
    model.tally("v2", 50, failed=50)
    assert (model.shows(), model.route.fenced) == ((None, "auto"), ("v2",))


@pytest.mark.parametrize("where", [s for s in Standing if s is not Standing.UNROUTED])
def test_trips_work_in_every_route_state(where):
    """Trap: a human hold suspends safety. A pin never keeps a version that tripped."""
    model = in_standing(where)
    model.tally("v2", 50, failed=50)
    assert "v2" in model.route.fenced
    assert model.route.version != "v2"
    if where is Standing.PINNED:
        assert model.shows() == ("v1", "auto")
        model.tick(hours=10)
        assert model.shows() == ("v1", "auto")
    if where is Standing.HELD_BY_PERSON:
        assert model.shows() == (None, "held")
        model.command("resume")
        assert model.shows() == ("v1", "auto")


def test_too_many_switches_hold_the_route():
    """`max_switches` = 2: the third automatic switch within the hour holds instead."""
    model = Model().earn_good("v1").earn_good("v2").earn_good("v3").earn_good("v4")
    for left in ("v4", "v3"):
        model.tally(left, 500, failed=500)
        assert model.route.state is RouteState.AUTO
    model.tally("v2", 500, failed=500)
    assert model.shows() == (None, "held")
    assert "2 switches within 1h" in model.route.reason


def test_switches_of_long_ago_do_not_count():
    """After `max_switches_within` the count is free again."""
    model = Model().earn_good("v1").earn_good("v2").earn_good("v3").earn_good("v4")
    for left in ("v4", "v3", "v2"):
        model.tick(hours=1)
        model.tally(left, 500, failed=500)
    assert model.shows() == ("v1", "auto")


EVIDENCE = Sample(
    source="predictions/0/1",
    prediction="z" * 4096,
    findings=tuple(
        Finding(check=f"c{i}", severity=Severity.ERROR, enforced=True, field="value", seen="x" * 500, limit="y" * 500)
        for i in range(4)
    ),
)


def fits(model):
    return len(model.state.model_dump_json(exclude_defaults=True)) < TOPICS["state"].max_message_bytes


def test_the_state_fits_into_its_record_after_years_of_versions():
    """What a silent version failed by is forgotten; of very many open incidents the latest keep some evidence."""
    model = Model().earn_good("v0")
    for number in range(2 * MAX_VERSIONS):
        for _ in range(6):
            entities = tuple(uuid4().hex for _ in range(32))
            model.tally(f"sane-{number}", 1000, 40, entities=entities, samples=(EVIDENCE,) * 5)
            model.now += timedelta(seconds=1)
        model.tally(f"bad-{number}", 1000, 500, samples=(EVIDENCE,) * 5)
        model.tick(minutes=1)
    assert len(model.state.incidents) == 2 * MAX_VERSIONS
    assert [len(known.incident.samples) for known in model.state.incidents.values()][-12:] == [1] * 2 + [5] * 10
    assert fits(model)
    assert not any(version.window.buckets for version in model.state.versions.values())


def test_the_state_fits_into_its_record_when_all_versions_send_at_once():
    """Hundreds of fenced ones with open incidents, beside hundreds of candidates, all with evidence."""
    model = Model().earn_good("v0")
    for number in range(MAX_FENCED):
        model.tally(f"bad-{number}", 1000, 500, samples=(EVIDENCE,) * 5)
    for number in range(MAX_VERSIONS):
        model.tally(f"sane-{number}", 1000, 40, samples=(EVIDENCE,) * 5)
        model.tally(f"bad-{number}", 1000, 500, samples=(EVIDENCE,) * 5)
    assert fits(model)
    model.now += timedelta(seconds=2)
    for number in range(MAX_FENCED):
        model.tally(f"bad-{number}", 1000, 500, samples=(EVIDENCE,) * 5)
    assert fits(model)


def test_versions_without_end_hold_the_route():
    """Something else than a version in that field: what is fenced stays fenced, and no list grows for ever."""
    model = Model().earn_good("v0")
    for number in range(MAX_FENCED):
        model.tally(f"request-{number}", 1, critical=1, failed=1)
    assert (len(model.routes[-1].fenced), standing(model.state)) == (MAX_FENCED, Standing.AUTO)
    for number in range(MAX_FENCED, MAX_FENCED + 2 * MAX_VERSIONS):
        model.tally(f"request-{number}", 1, critical=1, failed=1)
    assert standing(model.state) is Standing.HELD
    assert len(model.routes[-1].fenced) == MAX_FENCED
    assert model.incidents[-1].action is IncidentAction.HELD
    assert "unfence those that nobody sends any more" in model.audits[-1].detail
    assert len(model.latest_incidents()) == OWN_INCIDENTS + 1
    assert len(model.state.versions) <= MAX_FENCED + MAX_VERSIONS + 3
    # Each hold has an incident of its own, which ends with it, or by a person.
    again = model.incidents[-1]
    model.command("resume")
    assert model.latest_incidents()[again.incident_id].status is IncidentStatus.RESOLVED
    model.tally(again.bad_version, 1, critical=1, failed=1)
    assert standing(model.state) is Standing.HELD
    assert model.incidents[-1].incident_id != again.incident_id
    assert model.command("resolve", incident_id=model.incidents[-1].incident_id).outcome is Outcome.APPLIED
    # Fenced by a person, it has one open incident, not two.
    model.command("resume")
    model.tally(again.bad_version, 1, critical=1, failed=1)
    held = model.incidents[-1]
    fenced = model.command("fence", again.bad_version)
    latest = model.latest_incidents()
    assert (latest[held.incident_id].status, latest[held.incident_id].resolved_by) == (IncidentStatus.RESOLVED, "ann")
    assert (latest[fenced.incident_id].status, latest[fenced.incident_id].action) == ("triggered", "fenced")
    # One that has served is fenced all the same, also while the route is held.
    model.tally("v0", 1, critical=1, failed=1)
    assert "v0" in model.routes[-1].fenced


def test_versions_without_end_that_nobody_promoted_hold_no_model():
    """Guards block them by the route: anybody may invent them, and those that serve go on."""
    model = Model().earn_good("v0")
    for number in range(MAX_FENCED + MAX_VERSIONS):
        model.tally(f"request-{number}", 1, critical=1, failed=1, promoted=False)
    assert model.shows() == ("v0", "auto")
    assert len(model.routes[-1].fenced) == MAX_FENCED
    assert len(model.latest_incidents()) == OWN_INCIDENTS
    assert fits(model)


def test_a_route_names_the_versions_that_have_served():
    """Promoted, pinned or gone back to; fenced ones too, and versions that never served do not push them out."""
    model = Model()
    model.tally("v0")
    model.command("fence", "v0")
    assert model.route.promoted == ()
    model.earn_good("v1").command("promote", "v2")
    assert model.route.promoted == ("v1", "v2")
    model.command("pin", "v3")
    model.command("fence", "v2")
    assert model.route.promoted == ("v1", "v2", "v3")
    for number in range(2 * MAX_VERSIONS):
        model.tick(seconds=1)
        model.tally(f"canary-{number}")
    model.command("fence", "v3")
    assert model.shows() == ("v1", "auto")
    assert model.route.promoted == ("v1", "v2", "v3")


def test_a_route_of_before_is_published_again_with_the_versions_that_have_served():
    """A switch of an earlier version did not write them: then guards approve outputs of every version."""
    model = Model().earn_good("v1")
    before = model.route.model_copy(update={"promoted": ()})
    model.state = model.state.model_copy(update={"route": before})
    decision = model.tick(seconds=1)
    assert (decision.route.promoted, decision.route.epoch) == (("v1",), before.epoch + 1)
    assert model.shows() == ("v1", "auto")
    assert model.tick(seconds=1).route is None


def test_candidates_keep_their_windows_beside_many_fenced_versions():
    """Two that send in turn trip both."""
    model = Model().earn_good("v0")
    for number in range(MAX_VERSIONS + 10):
        model.tally(f"bad-{number}", 1, critical=1, failed=1)
    for _ in range(10):
        model.tally("slow-1", 1, failed=1, entities=(uuid4().hex,))
        model.tally("slow-2", 1, failed=1, entities=(uuid4().hex,))
    assert {"slow-1", "slow-2"} <= set(model.routes[-1].fenced)


def test_late_outputs_of_a_fenced_version_update_its_incident_and_do_not_repeat_it():
    """Counts rise at most once a second; the tick publishes the rest."""
    model = Model().earn_good("v1")
    model.command("promote", "v2")
    model.tally("v2", 50, failed=50)
    opened = len(model.incidents)
    for _ in range(10):
        model.tally("v2", 10, failed=10)
    assert len(model.incidents) == opened
    model.tick(seconds=1)
    (update,) = model.incidents[opened:]
    assert (update.blocked, update.status) == (150, IncidentStatus.TRIGGERED)
    assert update.incident_id == model.incidents[opened - 1].incident_id
    model.tick(seconds=10)
    assert len(model.incidents) == opened + 1


def test_the_longer_an_incident_lasts_the_more_seldom_it_is_updated():
    """A fenced version that nobody turns off: a record a second for months would fill the topic."""
    model = Model().earn_good("v1")
    model.command("promote", "v2")
    model.tally("v2", 50, failed=50)

    def updates():
        before = len(model.incidents)
        for _ in range(1800):
            model.now += timedelta(seconds=1)
            model.tally("v2", 1, failed=1)
        return len(model.incidents) - before

    assert 60 < updates() < 600
    model.now += timedelta(days=1)
    assert updates() in (3, 4)
    model.tick(minutes=10)
    assert model.incidents[-1].blocked == 50 + 2 * 1800


# Commands

VERSIONED = {"promote": "v3", "pin": "v3", "fence": "v3", "good": "v2"}
APPLIED, REFUSED = "applied", "refused"
TABLE = {
    #             unrouted  auto      pinned    held      held by a person
    "promote": (APPLIED, APPLIED, REFUSED, APPLIED, REFUSED),
    "pin": (APPLIED, APPLIED, APPLIED, APPLIED, REFUSED),
    "unpin": (REFUSED, REFUSED, APPLIED, REFUSED, REFUSED),
    "rollback": (REFUSED, APPLIED, APPLIED, REFUSED, REFUSED),
    "hold": (APPLIED, APPLIED, APPLIED, APPLIED, APPLIED),
    "resume": (REFUSED, REFUSED, REFUSED, REFUSED, APPLIED),
    "fence": (APPLIED, APPLIED, APPLIED, APPLIED, APPLIED),
    "good": (REFUSED, APPLIED, APPLIED, REFUSED, REFUSED),
}


@pytest.mark.parametrize("action", TABLE)
@pytest.mark.parametrize(("column", "where"), list(enumerate(Standing)))
def test_each_command_is_applied_or_refused_by_where_the_route_stands(action, column, where):
    """A refused command changes nothing but the audit; every command has exactly one outcome."""
    model = in_standing(where)
    before, routes = model.route, len(model.routes)
    audit = model.command(action, VERSIONED.get(action))
    assert audit.outcome == TABLE[action][column]
    assert (audit.actor, audit.reason, audit.epoch) == ("ann", "because", model.route.epoch if model.route else 0)
    if audit.outcome is Outcome.REFUSED:
        assert (model.route, len(model.routes)) == (before, routes)
        assert ";" in audit.detail, "says what to do instead"


@pytest.mark.parametrize("action", ["promote", "pin", "resume", "rollback"])
@pytest.mark.parametrize("where", list(Standing))
def test_no_command_lets_a_fenced_version_serve(action, where):
    """Only an unfence ends a fence."""
    model = in_standing(where)
    model.command("fence", "v7")
    assert model.command(action, "v7").outcome is Outcome.REFUSED
    assert model.route.version != "v7"


@pytest.mark.parametrize("action", ["promote", "fence", "unfence", "good"])
def test_a_command_that_needs_a_version_is_refused_without_one(action):
    assert Model().earn_good("v1").command(action).outcome is Outcome.REFUSED


def test_promoting_what_serves_already_changes_nothing():
    """No-op, audited; no new epoch."""
    model = Model().earn_good("v1")
    epoch = model.route.epoch
    assert "already" in model.command("promote", "v1").detail
    assert model.route.epoch == epoch


def test_a_rollback_fences_what_it_leaves():
    """The route goes to the last good; an incident keeps why."""
    model = Model().earn_good("v1").earn_good("v2")
    assert model.command("rollback").outcome is Outcome.APPLIED
    assert (model.shows(), model.route.fenced, model.route.actor) == (("v1", "auto"), ("v2",), "ann")
    assert model.incidents[-1].bad_version == "v2"


def test_a_rollback_goes_to_the_version_named_if_it_served_before():
    """A candidate that served may be chosen by a person; one that never did must be promoted."""
    model = Model().earn_good("v1")
    model.command("promote", "v2")
    model.command("promote", "v3")
    assert model.command("rollback", "v9").outcome is Outcome.REFUSED
    assert model.command("rollback", "v3").outcome is Outcome.REFUSED
    assert model.command("rollback", "v2").outcome is Outcome.APPLIED
    assert model.shows() == ("v2", "auto")


def test_a_rollback_with_nothing_good_left_holds():
    """Never "stay"."""
    model = Model()
    model.command("promote", "v1")
    model.command("rollback")
    assert model.shows() == (None, "held")


def test_a_hold_by_a_person_is_resumed_to_what_served():
    model = in_standing(Standing.HELD_BY_PERSON)
    model.command("resume")
    assert model.shows() == ("v2", "auto")


def test_a_version_that_a_person_declared_good_is_gone_back_to():
    """The first ten minutes must not mean that a trip holds everything."""
    model = Model()
    model.command("promote", "v1")
    assert model.command("good", "v1").detail == "v1 is good: the route may come back to it"
    assert "already" in model.command("good", "v1").detail
    model.command("promote", "v2")
    assert model.route.last_good == "v1"
    model.tally("v2", 50, failed=50)
    assert model.shows() == ("v1", "auto")


@pytest.mark.parametrize("name", ["v0", "v9"])
def test_only_the_version_that_serves_can_be_declared_good(name):
    """Neither one that served before nor one that nobody knows."""
    model = Model()
    model.command("promote", "v0")
    model.command("promote", "v1")
    assert model.command("good", name).outcome is Outcome.REFUSED
    assert last_good(model.state, leaving=None) is None


def test_what_was_declared_good_trips_and_is_fenced_like_any_other():
    """A person's word is about the past."""
    model = Model().earn_good("v1")
    model.command("promote", "v2")
    model.command("good", "v2")
    model.tally("v2", 50, failed=50)
    assert (model.shows(), model.route.fenced) == (("v1", "auto"), ("v2",))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("action", ["promote", "pin"])
def test_the_answer_says_that_no_output_of_a_version_was_seen(action, version):
    """A name that is mistyped serves nothing that was judged."""
    model = Model().earn_good("v1")
    model.command("promote", "v0")
    warned = "no output of it was seen" in model.command(action, version).detail
    assert warned is (version == "v2")


@pytest.mark.parametrize("holds", [1, 2])
@pytest.mark.parametrize("by", ["resume", "resume v2", "its end"])
def test_a_pin_is_in_force_again_after_a_hold(by, holds):
    """With the end that it had; a fence meanwhile of another version changes nothing about it."""
    model = in_standing(Standing.PINNED)
    until = model.now + timedelta(hours=2)
    model.command("pin", "v2", expires_at=until)
    for _ in range(holds):
        model.command("hold", expires_at=model.now + timedelta(minutes=5))
    model.command("fence", "v9")
    if by == "its end":
        model.tick(minutes=5)
    else:
        model.command(*by.split())
    assert (model.shows(), model.state.ends_at) == (("v2", "pinned"), until)
    assert "pinned as before until" in model.audits[-1].detail
    assert model.command("promote", "v1").outcome is Outcome.REFUSED
    model.tick(hours=2)
    assert model.shows() == ("v2", "auto")


@pytest.mark.parametrize("why", ["the pin has ended", "the version is fenced", "another is named", "unpinned before"])
def test_a_hold_gives_no_pin_back_that_is_over(why):
    """Another version than the pinned one serves automatically, and so does the same one after the pin's end."""
    model = in_standing(Standing.PINNED)
    if why == "the pin has ended":
        model.command("pin", "v2", expires_at=model.now + timedelta(minutes=5))
    if why == "unpinned before":
        model.command("unpin")
    model.command("hold")
    if why == "the version is fenced":
        model.command("fence", "v2")
    model.tick(minutes=5)
    model.command("resume", "v1" if why == "another is named" else None)
    assert model.shows() == ("v2" if why in ("the pin has ended", "unpinned before") else "v1", "auto")


def test_a_resume_does_not_go_back_to_a_version_fenced_meanwhile():
    model = in_standing(Standing.HELD_BY_PERSON)
    model.command("fence", "v2")
    model.command("resume")
    assert model.shows() == ("v1", "auto")


@pytest.mark.parametrize("action", ["pin", "hold"])
def test_a_pin_and_a_hold_end_by_themselves(action):
    """Not before their end, and at it."""
    model = Model().earn_good("v1")
    model.command(action, expires_at=model.now + timedelta(minutes=5))
    held = model.shows()
    model.tick(minutes=4, seconds=59)
    assert model.shows() == held
    decision = model.tick(seconds=1)
    assert model.shows() == ("v1", "auto")
    assert [audit.action for audit in decision.audits] == ["expired"]


def test_a_hold_that_ends_without_a_version_left_stays_held():
    """It is the breaker's hold then: a promote ends it."""
    model = Model()
    model.command("promote", "v1")
    model.command("hold", expires_at=model.now + timedelta(minutes=5))
    model.command("fence", "v1")
    model.tick(minutes=5)
    assert standing(model.state) is Standing.HELD
    assert model.command("promote", "v2").outcome is Outcome.APPLIED


@pytest.mark.parametrize("by", ["its end", "a resume"])
def test_a_hold_on_a_model_that_never_had_a_version_leaves_it_without_one(by):
    """Its predictions were judged without a route before, and are again."""
    model = Model()
    model.tally("v1", 1)
    model.command("hold", expires_at=model.now + timedelta(minutes=5))
    model.command("fence", "v2")
    assert model.shows() == (None, "held")
    if by == "a resume":
        assert model.command("resume").outcome is Outcome.APPLIED
    model.tick(minutes=5)
    assert (standing(model.state), model.route.fenced) == (Standing.UNROUTED, ("v2",))


@pytest.mark.parametrize("holds", [1, 2])
def test_a_hold_over_the_breakers_hold_leaves_it_held_at_its_end(holds):
    """Nobody decided that a version may serve: the breaker held because there were too many switches."""
    model = Model(POLICY.model_copy(update={"max_switches": 1})).earn_good("v1")
    for version in ("v2", "v3"):
        model.command("promote", version)
        model.tally(version, failed=100)
    assert standing(model.state) is Standing.HELD
    for _ in range(holds):
        model.command("hold", expires_at=model.now + timedelta(minutes=5))
        model.command("fence", "v4")
    assert standing(model.state) is Standing.HELD_BY_PERSON
    model.tick(minutes=5)
    assert (model.shows(), standing(model.state)) == ((None, "held"), Standing.HELD)
    model.command("hold")
    model.command("resume")
    assert model.shows() == ("v1", "auto")


def test_an_unfence_that_was_granted_for_a_while_ends_by_itself():
    """The fence is back, also for the version that serves by then."""
    model = Model().earn_good("v1")
    model.command("fence", "v2")
    model.command("unfence", "v2", expires_at=model.now + timedelta(minutes=5))
    assert model.route.fenced == ()
    model.command("promote", "v2")
    model.tick(minutes=5)
    assert (model.shows(), model.route.fenced) == (("v1", "auto"), ("v2",))


@pytest.mark.parametrize(
    ("longer", "after", "fenced"), [(30, 29, ()), (30, 30, ("v2",)), (2, 2, ("v2",)), (None, 600, ())]
)
def test_an_unfence_for_a_while_can_be_made_longer_or_shorter_or_for_good(longer, after, fenced):
    model = Model().earn_good("v1")
    model.command("fence", "v2")
    model.command("unfence", "v2", expires_at=model.now + timedelta(minutes=5))
    end = None if longer is None else model.now + timedelta(minutes=longer)
    assert model.command("unfence", "v2", expires_at=end).outcome is Outcome.APPLIED
    model.tick(minutes=after)
    assert model.route.fenced == fenced


def test_an_unfenced_version_is_a_candidate_with_a_clean_window():
    """It does not trip on what it was fenced for, and its incident is resolved."""
    model = Model().earn_good("v1").earn_good("v2")
    model.tally("v2", 500, failed=500)
    model.command("unfence", "v2")
    assert model.state.versions["v2"].state == "candidate"
    assert model.incidents[-1].status is IncidentStatus.RESOLVED
    model.tally("v2", 10)
    assert model.route.fenced == ()


@pytest.mark.parametrize(
    ("action", "end"),
    [("promote", timedelta(hours=1)), ("rollback", timedelta(hours=1)), ("pin", timedelta(0)), ("hold", -timedelta(1))],
)
def test_an_end_is_refused_where_it_makes_no_sense(action, end):
    """Only pin, hold and unfence end, and only in the future."""
    model = Model().earn_good("v1")
    assert model.command(action, "v2", expires_at=model.now + end).outcome is Outcome.REFUSED


def test_the_same_command_twice_acts_once():
    """The second gets the outcome of the first again."""
    model = Model().earn_good("v1")
    first = model.command("promote", "v2", command_id="same")
    model.command("promote", "v3")
    again = model.command("promote", "v2", command_id="same")
    assert again == first
    assert model.shows() == ("v3", "auto")


def test_nobody_speaks_for_holdfast():
    """The actor of automatic decisions is not to be claimed."""
    assert Model().earn_good("v1").command("hold", actor=HOLDFAST).outcome is Outcome.REFUSED


def test_acknowledge_and_resolve_are_for_open_incidents():
    """By id or by bad version; the version stays fenced."""
    model = Model().earn_good("v1")
    assert model.command("acknowledge", "v2").outcome is Outcome.REFUSED
    model.tally("v2", 50, failed=50)
    model.command("acknowledge", incident_id=model.incidents[-1].incident_id)
    assert (model.incidents[-1].status, model.incidents[-1].acknowledged_by) == ("acknowledged", "ann")
    model.command("resolve", "v2")
    assert (model.incidents[-1].status, model.incidents[-1].resolved_by) == ("resolved", "ann")
    assert model.route.fenced == ("v2",)
    assert model.command("resolve", "v2").outcome is Outcome.REFUSED


def test_made_up_versions_do_not_fill_the_ledger():
    """The silent candidates are forgotten; what served, is fenced or good stays."""
    model = Model().earn_good("v1")
    model.command("fence", "bad")
    for number in range(MAX_VERSIONS * 2):
        model.tally(f"x{number}", 1)
    assert len(model.state.versions) <= MAX_VERSIONS + 3
    assert {"v1", "bad", f"x{MAX_VERSIONS * 2 - 1}"} <= set(model.state.versions)


# Incidents follow the route


@pytest.mark.parametrize(
    ("how", "serves"),
    [
        ([("promote", "v3")], "v3"),
        ([("pin", "v3")], "v3"),
        ([("resume", "v3")], "v3"),
        ([("unfence", "v1"), ("resume", None)], "v1"),
        ([("hold", None), ("resume", "v3")], "v3"),
        ([("acknowledge", "v1"), ("promote", "v3")], "v3"),
    ],
)
def test_the_incident_of_a_hold_ends_with_the_hold(how, serves):
    """By itself, with the reason, and in the transaction of the route; the command's outcome says so."""
    model = Model().earn_good("v1")
    model.tally("v1", 50, failed=50)
    (held,) = model.latest_incidents().values()
    assert (held.action, held.route_state, held.serves) == (IncidentAction.HELD, RouteState.HELD, None)
    *before, (action, version) = how
    for earlier in before:
        model.command(*earlier)
        assert model.latest_incidents()[held.incident_id].status is not IncidentStatus.RESOLVED
    audit = model.command(action, version)
    (over,) = model.latest_incidents().values()
    assert (over.status, over.resolved_by, over.serves) == (IncidentStatus.RESOLVED, HOLDFAST, serves)
    assert over.resolved_because == f"the route is held no longer: {serves} serves"
    assert audit.incident_id == held.incident_id
    assert audit.detail.endswith("resolved, since the route is held no longer: the incident of v1")
    assert not model.state.incidents


def test_the_incident_of_a_hold_outlives_a_persons_hold_over_it():
    """When the person's hold comes to its end the breaker's is there again, and so its incident still is."""
    model = Model().earn_good("v1")
    model.tally("v1", 50, failed=50)
    model.command("hold", expires_at=model.now + timedelta(minutes=5))
    model.tick(minutes=6)
    assert standing(model.state) is Standing.HELD
    assert [one.status for one in model.latest_incidents().values()] == [IncidentStatus.TRIGGERED]


def test_an_open_incident_names_the_version_that_serves_now():
    """`routed_to` stays what it was; a version that was fenced since is not named as serving."""
    model = Model().earn_good("v1").earn_good("v2")
    model.command("promote", "v3")
    model.tally("v3", 50, failed=50)
    first = model.incidents[-1]
    said = []
    for event in (
        lambda: None,
        lambda: model.command("fence", "v2"),
        lambda: model.command("fence", "v1"),
        lambda: model.command("promote", "v4"),
        lambda: model.command("hold"),
    ):
        event()
        now = model.latest_incidents()[first.incident_id]
        said.append((now.routed_to, now.serves, now.route_state.value))
    assert said == [
        ("v2", "v2", "auto"),
        ("v2", "v1", "auto"),
        ("v2", None, "held"),
        ("v2", "v4", "auto"),
        ("v2", None, "held"),
    ]


def test_a_route_that_only_gains_a_fence_publishes_no_other_incident_again():
    """A version that nobody serves changes nothing for the others."""
    model = Model().earn_good("v1")
    for number in range(5):
        model.tally(f"canary-{number}", 50, failed=50)
    assert len(model.incidents) == 5


def test_incidents_of_a_state_from_before_follow_the_route_at_the_next_tick():
    """A state that was written without these members: what is no longer so ends, with a record in the audit."""
    model = Model().earn_good("v1")
    model.tally("v1", 50, failed=50)
    held = model.state.incidents["v1"]
    model.command("promote", "v3")
    model.tally("canary", 50, failed=50)
    canary = model.state.incidents["canary"]
    old = {
        name: known.model_copy(
            update={"incident": known.incident.model_copy(update={"route_state": None, "serves": None})}
        )
        for name, known in {"v1": held, "canary": canary}.items()
    }
    model.state = model.state.model_copy(update={"incidents": old})
    model.tick(seconds=1)
    latest = model.latest_incidents()
    assert latest[held.incident.incident_id].status is IncidentStatus.RESOLVED
    assert (latest[canary.incident.incident_id].serves, model.audits[-1].action) == ("v3", "resolved")
    assert model.audits[-1].actor == HOLDFAST
    published = len(model.incidents)
    model.tick(seconds=1)
    assert len(model.incidents) == published


# Any sequence of events

NAMES = st.sampled_from(["v1", "v2", "v3", "v4"])


class AnySequence(RuleBasedStateMachine):
    """What holds after every event, whatever came before."""

    @initialize()
    def begin(self):
        self.model = Model(POLICY.model_copy(update={"good_after_seen": 20, "good_after": timedelta(seconds=5)}))
        self.model.tally("v1", 1)
        self.seen_routes = 0
        # What the published records alone tell: when each version became active last, and which earned good.
        self.activated, self.good, self.read = {}, set(), (0, 0)
        # What trips have taken from versions that were good.
        self.lost_good = set()

    @rule(version=NAMES, seen=st.integers(1, 100), share=st.sampled_from([0, 0, 0, 0.05, 0.5, 1]))
    def tally(self, version, seen, share):
        fenced_before = self.fenced
        decision = self.model.tally(version, seen, failed=int(seen * share))
        if version in fenced_before:
            assert decision.route is None, "a fenced version moves nothing"

    @rule(version=NAMES)
    def serves_well(self, version):
        self.model.command("promote", version)
        self.model.tally(version, 20)
        self.model.tick(seconds=5)
        self.model.tally(version, 20)

    @rule(version=NAMES)
    def critical(self, version):
        before, fenced = self.model.route, self.fenced
        decision = self.model.tally(version, 1, failed=1, critical=1)
        assert version in self.fenced, "wherever the route stands"
        if before is None or version in fenced:
            return
        if before.version == version:
            held = decision.route.state is RouteState.HELD
            assert held or (decision.route.version, decision.route.state) == (before.last_good, RouteState.AUTO)
        else:
            assert (decision.route.version, decision.route.state) == (before.version, before.state)

    @rule(
        action=st.sampled_from(list(Action)),
        version=st.none() | NAMES,
        minutes=st.none() | st.integers(1, 20),
    )
    def command(self, action, version, minutes):
        before, fenced = self.model.state, self.fenced
        end = None if minutes is None else self.model.now + timedelta(minutes=minutes)
        audits = len(self.model.audits)
        audit = self.model.command(action, version, expires_at=end)
        assert len(self.model.audits) == audits + 1, "every command has one outcome"
        if audit.outcome is Outcome.REFUSED:
            kept = self.model.state.model_copy(update={"commands": before.commands})
            assert kept == before, "a refused command changes nothing"
        if action not in (Action.UNFENCE, Action.UNDO_TRIPS):
            assert fenced <= self.fenced, "only an unfence, or that of many, ends a fence"
        if action is Action.UNDO_TRIPS and audit.outcome is Outcome.APPLIED:
            self.good |= self.lost_good - self.fenced

    @rule(seconds=st.integers(0, 1000))
    def time(self, seconds):
        fenced = self.fenced
        self.model.tick(seconds=seconds)
        assert fenced <= self.fenced

    @rule(seconds=st.integers(1, 7200))
    def clock_goes_back(self, seconds):
        self.model.tick(seconds=-seconds)

    @property
    def fenced(self):
        return {name for name, version in self.model.state.versions.items() if version.state == "fenced"}

    @invariant()
    def what_serves_is_not_fenced(self):
        if self.model.route is not None:
            assert self.model.route.version not in self.fenced
            assert set(self.model.route.fenced) == self.fenced

    @invariant()
    def last_good_is_good_and_not_what_serves(self):
        route = self.model.route
        if route is not None and route.last_good is not None:
            assert route.last_good != route.version
        good = last_good(self.model.state, leaving=route.version if route else None)
        if good is not None:
            assert self.model.state.versions[good].state == "good"

    @invariant()
    def last_good_obeys_its_five_conditions(self):
        """The latest that served as active, earned good, is not fenced, and is not the one being left; else none."""
        routes, audits = self.read
        active = self.model.routes[routes - 1].version if routes else None
        for route in self.model.routes[routes:]:
            if route.version not in (None, active):
                self.activated[route.version] = route.epoch
            active = route.version
        applied = (a for a in self.model.audits[audits:] if a.outcome is Outcome.APPLIED)
        self.good |= {audit.version for audit in applied if audit.action in ("earned_good", "good")}
        tripped = {n for n, v in self.model.state.versions.items() if v.trip is not None and v.trip.was_good}
        self.lost_good = tripped
        self.good -= self.fenced
        self.read = len(self.model.routes), len(self.model.audits)
        if self.model.route is not None:
            choices = [(self.activated[name], name) for name in self.good if name != self.model.route.version]
            assert self.model.route.last_good == (max(choices)[1] if choices else None)

    @invariant()
    def held_means_no_version(self):
        route = self.model.route
        if route is not None:
            assert (route.state is RouteState.HELD) <= (route.version is None)

    @invariant()
    def epochs_rise_by_one(self):
        epochs = [route.epoch for route in self.model.routes]
        assert epochs == list(range(1, len(epochs) + 1))

    @invariant()
    def automatic_moves_go_to_good_versions_only(self):
        for route in self.model.routes[self.seen_routes :]:
            if route.actor == HOLDFAST and route.version is not None and "tripped" in route.reason:
                version = self.model.state.versions[route.version]
                assert version.activated is not None
        self.seen_routes = len(self.model.routes)

    @invariant()
    def one_open_incident_for_each_version_at_most(self):
        latest = self.model.latest_incidents()
        still_open = [i.bad_version for i in latest.values() if i.status is not IncidentStatus.RESOLVED]
        assert sorted(still_open) == sorted(set(still_open)) == sorted(self.model.state.incidents)

    @invariant()
    def open_incidents_say_how_the_route_stands(self):
        """As published, so that pages and console are true; an incident of a hold is open only while it lasts."""
        route, latest = self.model.route, self.model.latest_incidents()
        for incident in latest.values():
            if incident.status is IncidentStatus.RESOLVED:
                assert incident.resolved_by
                assert incident.resolved_because
                continue
            assert (incident.serves, incident.route_state) == (route.version, route.state)
            held = route.state is RouteState.HELD
            assert held or incident.action is not IncidentAction.HELD
            assert incident.bad_version in self.fenced or (held and incident.action is IncidentAction.HELD)

    @invariant()
    def the_state_survives_the_topic(self):
        """What is restored from the compacted topic decides as what was written."""
        written = self.model.state.model_dump_json(exclude_defaults=True)
        assert ModelState.model_validate_json(written) == self.model.state


AnySequence.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnySequence = AnySequence.TestCase
