"""Shadow: what a check in shadow condemns is approved, is no reference, and earns no version its `good`."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.alike import NOW, Real, raw
from core.test_routing import Model
from holdfast.core.breaker import BreakerPolicy, Window
from holdfast.core.condemned import is_condemned
from holdfast.core.policy import parse_policy
from holdfast.core.shadow import MOST_SEGMENTS, MOST_VERSIONS, Report, report
from holdfast_schemas import Header, ShadowTally, Tally

BREAKER = BreakerPolicy(min_seen=50, min_entities=3, min_partitions=1, max_blocked_ratio=0.05)


def policy(*checks, **more):
    return parse_policy({"model": "pricing", "checks": list(checks), **more}, "t")


def floor(**more):
    return {"name": "floor", "kind": "range", "min": 10, **more}


def change(**more):
    return {"name": "change", "kind": "max_change", "up": 2.0, "unknown": "pass", **more}


def outlier(**more):
    return {"name": "outlier", "kind": "outlier", "window": 20, "min_values": 10, "max_score": 5, **more}


SHADOW = {"mode": "shadow"}


@pytest.mark.parametrize(
    ("checks", "more", "condemned"),
    [
        ([floor(**SHADOW), change()], {}, True),
        ([floor(), change()], {"mode": "shadow"}, True),
        ([floor(severity="critical", **SHADOW), change()], {}, True),
        ([floor(severity="warning"), change()], {}, False),
        ([floor(severity="info", **SHADOW), change()], {}, False),
        ([floor(mode="off"), change()], {}, False),
        ([change(down=0.5, **SHADOW)], {}, True),
        ([floor(**SHADOW), change(), outlier()], {}, True),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_value_that_a_check_in_shadow_condemns_is_no_reference(checks, more, condemned, together):
    """It is approved; the next value is held against the one before it. In one batch or in two, and after a restart."""
    real = Real(policy(*checks, **more))
    events = [raw(value=100.0), raw(value=1.0)]
    answers = real.judge(events) if together else [*real.judge(events[:1]), *real.judge(events[1:])]
    assert all(approved for approved, _ in answers)
    before = real.last
    assert before["value", "a"] == (100.0 if condemned else 1.0)
    real.restart()
    assert real.last == before


def test_after_enforce_sound_values_are_not_held_against_bad_ones():
    """A feed that is broken in shadow for a while leaves no trace in the recent values of its segment."""
    checks = [floor(), outlier()]
    watched, bare = Real(policy(*checks, mode="shadow")), Real(policy(outlier()))
    sound = [raw(value=100.0 + n % 7) for n in range(30)]
    broken = [raw(value=1.0 + n % 3) for n in range(200)]
    for batch in (sound, broken):
        watched.judge(batch)
        bare.judge(batch)
    enforced = Real(policy(*checks))
    enforced.memory = watched.memory
    assert all(approved for approved, _ in enforced.judge(sound))
    enforced.memory, enforced.approved = watched.memory, watched.approved
    enforced.restart()
    assert all(approved for approved, _ in enforced.judge(sound))
    assert watched.recent["value"][0][None] == [100.0 + n % 7 for n in range(10, 30)]


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 60)), min_size=1, max_size=60),
    st.sampled_from([[floor()], [change()], [outlier()], [floor(), change(), outlier()]]),
)
def test_shadow_says_what_enforce_would_do(pairs, checks):
    """The same records fail the same checks, whether they are blocked for it or not; and the memory is the same."""
    events = [raw(entity_id=entity, value=float(value)) for entity, value in pairs]
    watched, enforced = Real(policy(*checks, mode="shadow")), Real(policy(*checks))
    shadow, real = watched.judge(events), enforced.judge(events)
    assert all(approved for approved, _ in shadow)
    assert [sorted(name for name, _ in found) for _, found in shadow] == [
        sorted(name for name, _ in found) for _, found in real
    ]
    assert (watched.last, watched.recent) == (enforced.last, enforced.recent)


@pytest.mark.parametrize(
    ("findings", "condemned"),
    [
        (None, False),
        (b"[]", False),
        (b'[{"check":"c","severity":"error","enforced":false,"seen":1}]', True),
        (b'[{"check":"c","severity":"critical","enforced":false}]', True),
        (b'[{"check":"c","severity":"warning","enforced":false}]', False),
        (b'[{"check":"c","severity":"error","enforced":true}]', False),
        (b'[{"check":"w","severity":"info","enforced":false},{"check":"c","severity":"error","enforced":false}]', True),
        (b"not json", True),
        (b"\xff", True),
        (b'[{"check":"c"}]', True),
    ],
)
def test_the_header_of_an_approved_record_tells_what_the_guard_knew(findings, condemned):
    """Whoever reads the memory back learns the same; what cannot be read teaches nothing."""
    headers = [("theirs", b"x"), *([(Header.FINDINGS.value, findings)] if findings is not None else [])]
    assert is_condemned(headers) is condemned
    assert is_condemned(dict(headers)) is condemned


def test_what_the_guard_writes_is_read_as_it_was_meant():
    """The bytes of the header, as the guard encodes them."""
    real = Real(policy(floor(**SHADOW)))
    real.judge([raw(value=1.0)], NOW)
    (told,) = real.tallies
    assert told.shadow_by_check == {"floor": 1}
    found = [{"check": "floor", "severity": "error", "enforced": False, "field": "value", "seen": 1.0}]
    assert is_condemned([(Header.FINDINGS.value, msgspec.json.encode(found))])


# Tallies and the report


def tallies_of(*checks, values, entities=10, **more):
    real = Real(policy(*checks, **more))
    events = [raw(entity_id=f"e{n % entities}", value=value, segment=f"s{n % 2}") for n, value in enumerate(values)]
    real.judge(events)
    return real.tallies


def test_a_tally_says_what_shadow_would_have_blocked():
    """Approved rows only, each once; by check and segment, with the worst of them."""
    checks = [
        floor(segment={"s0": {"min": 10}}, **SHADOW),
        {"name": "cap", "kind": "range", "max": 1000, "severity": "critical", **SHADOW},
        {"name": "odd", "kind": "range", "max": 5, "severity": "warning"},
        {"name": "real", "kind": "range", "max": 5000},
    ]
    (told,) = tallies_of(*checks, values=[100.0, 9.0, 1.0, 2000.0, 9000.0, 8.0])
    assert (told.approved, told.blocked) == (5, 1)
    assert (told.shadow.failed, told.shadow.critical) == (4, 1)
    assert told.shadow.by_segment == {"floor": {"s0": 1, "s1": 2}, "cap": {"s1": 1}}
    assert told.shadow.entities == ("e1", "e2", "e3", "e5")
    assert [sample.entity_id for sample in told.shadow.samples] == ["e2", "e3"]
    assert [finding.check for finding in told.shadow.samples[0].findings] == ["floor"]


def test_a_tally_without_shadow_findings_says_nothing_of_it():
    """Also where a check in shadow passes, and where one only warns."""
    (told,) = tallies_of(floor(severity="warning"), floor(name="other", **SHADOW), values=[100.0] * 5)
    assert told.shadow is None


@pytest.mark.parametrize(("bad", "trips"), [(0, False), (2, False), (3, True), (50, True)])
def test_the_report_says_whether_the_breaker_would_have_tripped(bad, trips):
    """As if the checks were enforced: it trips above 5 % of at least 50, from enough entities."""
    values = [1.0] * bad + [100.0] * (50 - bad)
    found = report([(NOW, one) for one in tallies_of(floor(**SHADOW), values=values)], BREAKER)
    assert (found["v1"].seen, found["v1"].would_block) == (50, bad)
    assert (found["v1"].would_trip_at == NOW) is trips
    assert (f"{bad} of 50 failed" in found["v1"].would_trip) is trips


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 30).map(float), min_size=1, max_size=40), min_size=1, max_size=6))
def test_the_report_agrees_with_the_breaker_of_the_same_checks_in_force(batches):
    """The same predictions, in shadow and enforced: the same count, and the same trip."""
    watched, enforced = Real(policy(floor(), change(), mode="shadow")), Real(policy(floor(), change()))
    window, tripped = Window(), None
    for values in batches:
        events = [raw(entity_id=f"e{n % 7}", value=value) for n, value in enumerate(values)]
        watched.judge(events)
        enforced.judge(events)
    for one in enforced.tallies:
        window = window.add(one, NOW, BREAKER)
        tripped = tripped or window.trips(BREAKER)
    found = report([(NOW, one) for one in watched.tallies], BREAKER)["v1"]
    assert found.would_block == sum(one.blocked for one in enforced.tallies)
    assert found.would_trip == (tripped or "")


@pytest.mark.parametrize(("failing", "good"), [(100, False), (90, False), (89, True), (0, True)])
def test_a_version_of_which_nearly_all_fail_in_shadow_does_not_earn_good(failing, good):
    """Nothing is blocked, and yet nobody knows it to work; once it passes, it earns it."""
    model = Model()
    model.command("promote", "v1")
    model.tick(seconds=60)
    shadow = ShadowTally(failed=failing) if failing else None
    model.tally("v1", 100, shadow=shadow)
    assert (model.state.versions["v1"].state.value == "good") is good
    model.tick(seconds=60)
    model.tally("v1", 100)
    assert model.state.versions["v1"].state.value == "good"


def shadow_tally(version, by_segment):
    """One approved output that a check in shadow would have blocked."""
    return Tally(
        model="pricing",
        model_version=version,
        policy="pricing@0123456789ab",
        at=NOW,
        worker="w",
        partition=0,
        first_offset=0,
        last_offset=0,
        seen=1,
        approved=1,
        blocked=0,
        failed=0,
        shadow_by_check={"floor": 1},
        shadow=ShadowTally(failed=1, by_segment=by_segment, entities=("a",)),
    )


def test_a_report_is_bounded_however_many_versions_and_segments_there_are():
    """The versions seen last stay, and of a check the segments with most failures; the counts are whole."""
    found = Report(BREAKER)
    for n in range(MOST_VERSIONS + 50):
        found.add(NOW, shadow_tally(f"v{n}", {"floor": {"DE": 1}}))
        found.add(NOW, shadow_tally("daily", {"floor": {"DE": 5, f"segment-{n}": 1}}))
    for n in range(50, 3 * MOST_SEGMENTS):
        found.add(NOW, shadow_tally("daily", {"floor": {"DE": 5, f"segment-{n}": 1}}))
    assert len(found.versions) == MOST_VERSIONS
    assert list(found.versions)[-1] == "daily"
    assert "v0" not in found.versions
    facts = found.versions["daily"].facts("daily")
    assert len(facts.by_segment["floor"]) == MOST_SEGMENTS
    assert next(iter(facts.by_segment["floor"])) == "DE"
    assert facts.would_block == facts.approved == MOST_VERSIONS + 50 + 3 * MOST_SEGMENTS - 50
    assert len(found.versions["daily"].by_segment["floor"]) <= 2 * MOST_SEGMENTS
