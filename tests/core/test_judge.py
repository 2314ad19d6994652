"""From answers to verdicts: severities, modes, fences, holds, memory and tallies."""

from datetime import UTC, datetime

import pytest

from core.alike import NOW, Real, failures, policy_of, raw, route_of
from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import judge
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicySet
from holdfast.core.recent import ESTABLISHED, MAX_SEGMENTS
from holdfast.core.record import time_of

FLOOR = 'model = "pricing"\nmode = "{mode}"\n[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n'
LOW, HIGH = raw(value=1), raw(value=11)


def floor(mode="enforce", check=""):
    return policy_of(FLOOR.format(mode=mode) + check)


@pytest.mark.parametrize(
    ("severity", "approved", "enforced", "failed", "critical"),
    [
        ("critical", False, True, 1, 1),
        ("error", False, True, 1, 0),
        ("warning", True, False, 0, 0),
        ("info", True, False, 0, 0),
    ],
)
def test_a_severity_says_what_a_failure_does(severity, approved, enforced, failed, critical):
    """Critical and error block and count; warning and info are reported only."""
    real = Real(floor(check=f'severity = "{severity}"'))
    assert real.judge([LOW, HIGH]) == [(approved, [("floor", enforced)]), (True, [])]
    (tally,) = real.tallies
    assert (tally.seen, tally.failed, tally.critical) == (2, failed, critical)
    assert (tally.blocked_by_check, tally.shadow_by_check) == (({"floor": 1}, {}) if enforced else ({}, {"floor": 1}))


@pytest.mark.parametrize("of_model", ["enforce", "shadow", "off"])
@pytest.mark.parametrize("of_check", ["enforce", "shadow", "off"])
def test_the_milder_of_two_modes_counts(of_model, of_check):
    """Only enforce in both blocks; off in either runs nothing; shadow reports, and never trips."""
    real = Real(floor(of_model, f'mode = "{of_check}"\nseverity = "critical"'))
    (answer,) = real.judge([LOW])
    if "off" in (of_model, of_check):
        assert answer == (True, [])
    else:
        enforced = (of_model, of_check) == ("enforce", "enforce")
        assert answer == (not enforced, [("floor", enforced)])
        assert (real.tallies[0].failed, real.tallies[0].critical) == ((1, 1) if enforced else (0, 0))


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
@pytest.mark.parametrize("number", ["NaN", "1e999", "-0.0"])
def test_a_number_that_is_none_is_blocked_in_every_mode(mode, number):
    assert Real(floor(mode)).judge([HIGH.replace(b"11", number.encode())])[0][0] is False


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
def test_a_fenced_version_is_blocked_in_every_mode_and_does_not_count(mode):
    """Trap: caches go on serving the bad version. What it says is no evidence any more."""
    real = Real(floor(mode, 'severity = "critical"'), fenced=("v1",))
    answers = real.judge([LOW, HIGH, raw(value=11, model_version="v2")])
    assert [answer[0] for answer in answers] == [False, False, True]
    assert all("fenced" in failures(answer) for answer in answers[:2])
    fenced = next(tally for tally in real.tallies if tally.model_version == "v1")
    assert (fenced.blocked, fenced.failed, fenced.critical) == (2, 0, 0)


def test_a_held_model_is_blocked_whole_and_its_failures_still_count():
    """Every version; a bad one trips while it is held."""
    real = Real(floor(), held=True)
    assert [answer[0] for answer in real.judge([LOW, HIGH])] == [False, False]
    assert (real.tallies[0].blocked, real.tallies[0].failed) == (2, 1)


@pytest.mark.parametrize("approve", [False, True])
def test_a_model_without_a_policy_is_blocked_unless_the_configuration_says_otherwise(approve):
    """Fences, holds and numbers that are none block it in any case."""
    policies = PolicySet.of([])
    raws = [HIGH, HIGH.replace(b"11", b"NaN"), raw(model_version="v2")]
    ((model, batch),), malformed = decode_by_model(policies, raws)
    judgement = judge(batch, None, Memory(), None, NOW, model=model, approve_without_policy=approve)
    assert malformed == {}
    assert judgement.approved.tolist() == [approve, False, approve]
    fenced = judge(batch, None, Memory(), route_of(("v2",)), NOW, model=model, approve_without_policy=approve)
    assert fenced.approved.tolist() == [approve, False, False]
    held = judge(batch, None, Memory(), route_of(held=True), NOW, model=model, approve_without_policy=approve)
    assert not held.approved.any()


CHANGE = """
model = "pricing"
[[checks]]
name = "jump"
kind = "max_change"
up = 2
[[checks]]
name = "ceiling"
kind = "range"
max = 100
[[checks]]
name = "cost_jump"
kind = "max_change"
field = "features.cost"
up = 2
"""


def offer(value, cost=1, entity="a"):
    return raw(value=value, features={"cost": cost}, entity_id=entity)


@pytest.mark.parametrize("cut", ["one batch", "a batch each"])
@pytest.mark.parametrize(
    ("events", "approved", "last"),
    [
        ([offer(10), offer(20), offer(40)], [True, True, True], 40),
        ([offer(10), offer(21), offer(20)], [True, False, True], 20),
        # 60 is blocked by its own ceiling before it could be a reference for 110
        ([offer(50), offer(101), offer(100)], [True, False, True], 100),
        # 20 is blocked for its cost: 30 is held against 10
        ([offer(10, 1), offer(20, 3), offer(30, 1)], [True, False, False], 10),
        ([offer(10, 1), offer(30, 2), offer(20, 4), offer(20, 2)], [True, False, False, True], 20),
        ([offer(10), offer(10, entity="b"), offer(30, entity="b"), offer(20)], [True, True, False, True], 20),
    ],
)
def test_only_approved_values_become_the_reference(events, approved, last, cut):
    """Trap: bad values poison the reference. Also within one batch, and whichever check blocked."""
    real = Real(policy_of(CHANGE))
    batches = [events] if cut == "one batch" else [[event] for event in events]
    assert [answer[0] for batch in batches for answer in real.judge(batch)] == approved
    assert real.last["value", "a"] == last


def test_only_approved_values_become_recent_ones():
    """An outlier does not widen what counts as usual; the memory keeps a window and no more."""
    toml = 'model = "pricing"\n[[checks]]\nname = "odd"\nkind = "outlier"\nwindow = 10\nmin_values = 5\n'
    real = Real(policy_of(toml))
    real.judge([raw(value=value) for value in (1, 2, 3, 4, 5)])
    for _ in range(20):
        assert real.judge([raw(value=1000)])[0][0] is False
    assert real.memory.recent["pricing", "value"][None].values() == [1, 2, 3, 4, 5]
    for value in range(20):
        real.judge([raw(value=3 + value / 100)])
    assert len(real.memory.recent["pricing", "value"][None]) == 10


@pytest.mark.parametrize(("meaning", "approved"), [("pass", True), ("fail", False)])
def test_no_reference_is_an_answer_and_the_policy_says_what_it_means(meaning, approved):
    """Trap: no reference switches the check off. Either way it is counted as unknown."""
    check = f'[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2\nunknown = "{meaning}"\n'
    real = Real(policy_of(f'model = "pricing"\n{check}'))
    assert real.judge([HIGH])[0][0] is approved
    assert real.tallies[0].unknown_by_check == {"jump": 1}


def test_tallies_add_up_to_the_verdicts():
    """One for each version: its counts, offsets, at most 32 entities and 5 samples, and when the first was blocked."""
    real = Real(floor(), fenced=("v3",))
    raws = [
        raw(value=i % 20, model_version=f"v{i % 3 + 1}", entity_id=f"e{i}", prediction_id=f"p{i}") for i in range(300)
    ]
    answers = real.judge(raws)
    by_version = {tally.model_version: tally for tally in real.tallies}
    for number, version in enumerate(("v1", "v2", "v3")):
        tally, mine = by_version[version], answers[number::3]
        assert tally.seen == len(mine) == 100
        assert tally.approved == sum(answer[0] for answer in mine)
        assert tally.blocked_by_check.get("floor", 0) == sum("floor" in failures(answer) for answer in mine)
        assert tally.failed == (0 if version == "v3" else tally.blocked)
        assert len(set(tally.entities)) == len(tally.entities) == min(32, tally.failed)
        assert (tally.first_offset, tally.last_offset) == (number, 297 + number)
        assert len(tally.samples) == 5
        assert all(sample.findings for sample in tally.samples)
        assert tally.first_blocked_at == datetime.fromtimestamp(1_795_514_400, UTC)


def test_new_segments_do_not_make_a_guard_forget_established_ones():
    """A producer may invent as many as it likes: the memory is bounded, and invented ones replace one another."""
    outlier = '[[checks]]\nname = "odd"\nkind = "outlier"\nmin_values = 5\n'
    real = Real(policy_of(f'model = "pricing"\n{outlier}'))
    real.judge([raw(value=10.0 + i, segment="cameras") for i in range(6)])
    for start in range(0, 2 * MAX_SEGMENTS, 500):
        real.judge([raw(value=10.0 + i % 7, segment=f"s{i}") for i in range(start, start + 500)])
    (known,) = real.memory.recent.values()
    assert len(known) == MAX_SEGMENTS
    assert len(known["cameras"]) == 6
    assert "s0" not in known
    assert f"s{2 * MAX_SEGMENTS - 1}" in known
    assert real.judge([raw(value=1000.0, segment="cameras")])[0] == (False, [("odd", True)])


def test_a_segment_that_finds_no_room_is_unknown_and_said_to_be_so():
    """Once all are established: its outputs have a finding, and no place of another segment is taken."""
    outlier = '[[checks]]\nname = "odd"\nkind = "outlier"\nmin_values = 5\n'
    real = Real(policy_of(f'model = "pricing"\n{outlier}'))
    for start in range(0, MAX_SEGMENTS, 500):
        real.judge([raw(value=10.0, segment=f"s{i}") for i in range(start, start + 500) for _ in range(ESTABLISHED)])
    real.tallies = []
    told = [("unremembered_segment", False)]
    assert real.judge([raw(segment="new"), raw(segment="s0")] * 5) == [(True, told), (True, [])] * 5
    (known,) = real.memory.recent.values()
    assert len(known) == MAX_SEGMENTS
    assert "new" not in known
    assert real.tallies[0].unknown_by_check == {"odd": 10}
    assert real.tallies[0].shadow_by_check == {"unremembered_segment": 5}
    assert real.tallies[0].shadow is None


def test_the_name_of_a_remembered_segment_is_bounded():
    """2,000 names of a megabyte would be all of the memory."""
    outlier = '[[checks]]\nname = "odd"\nkind = "outlier"\nmin_values = 5\n'
    real = Real(policy_of(f'model = "pricing"\n{outlier}'))
    assert real.judge([raw(segment="s" * 1000), raw(segment="s" * 1001)]) == [
        (True, []),
        (True, [("unremembered_segment", False)]),
    ]
    assert [*map(len, real.memory.recent["pricing", "value"])] == [1000]


def test_what_is_read_by_another_mapping_is_another_field():
    """Cents must not be held against dollars: the memory is read back by the new mapping."""
    jump = 'model = "pricing"\n[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2\n'
    cents, dollars = (policy_of(f'{jump}[fields]\nvalue = "price.{unit}"\n') for unit in ("cents", "dollars"))
    assert cents.remembered_fields() != dollars.remembered_fields()
    assert cents.remembered_fields() == policy_of(f'{jump}[fields]\nvalue = "price.cents"\n').remembered_fields()


def test_findings_are_bounded_whatever_the_event_says():
    """Trap: one record that cannot be written stops the partition. A megabyte of text or of zeros fits a header."""
    one_of = '[[checks]]\nname = "it"\nkind = "one_of"\nfield = "features.tier"\nvalues = ["gold"]\n'
    real = Real(policy_of(f'model = "pricing"\n{one_of}'))
    for tier in ("x" * 900_000, ["x" * 900_000], {"x" * 900_000: 1}):
        real.judge([raw(features={"tier": tier})])
    real.judge([raw(outputs={f"o{i}": -0.0 for i in range(50_000)})])
    real.judge([raw(outputs={"o" * 900_000: -0.0})])
    real.judge([raw(features={"k" * 900_000: 1}).replace(b": 1}", b": 1e999}")])
    assert [tally.blocked for tally in real.tallies] == [1] * 6
    for tally in real.tallies:
        assert sum(len(finding.model_dump_json()) for finding in tally.samples[0].findings) < 5000


def test_every_blocked_prediction_has_an_enforced_finding_and_no_approved_one_has():
    """The guard refuses to write a verdict without a reason."""
    real = Real(floor(), fenced=("v2",))
    for approved, found in real.judge([LOW, HIGH, raw(model_version="v2"), raw(model="other"), raw(value=-0.0)]):
        assert approved is not any(enforced for _, enforced in found)
        assert approved or found


def test_a_finding_on_a_number_beyond_64_bits_can_be_written():
    """A producer may send any number; what is said about it goes into a header all the same."""
    policy = policy_of(
        'model = "pricing"\n[[checks]]\nname = "code"\nkind = "one_of"\nfield = "features.code"\nvalues = [1]'
    )
    for code, approved in ((1, True), (10**30, False), (-(2**63) - 1, False), (2**64, False)):
        answer = Real(policy).judge([raw(features={"code": code})])[0]
        assert answer[0] == approved


@pytest.mark.parametrize(
    ("timestamp", "year"),
    [(1_764_000_000_000, 2025), (-1, 1969), (1_764_000_000_000_000, 9999), (2**63 - 1, 9999), (-(2**63), 1)],
)
def test_a_records_time_is_the_nearest_that_a_datetime_holds(timestamp, year):
    """Producers write microseconds, or nothing; that must not keep a verdict from its tally."""
    assert time_of(timestamp).year == year
