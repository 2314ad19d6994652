"""Each kind of check at its limits: what passes, what fails, and what cannot be told."""

import math
import statistics
from datetime import timedelta
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.alike import NOW, Real, failures, policy_of, raw, same
from core.reference import CONDITIONS, Reference
from holdfast.core import recent as recent_values
from holdfast.core.columns import Columns, Decoded
from holdfast.core.judge import remember
from holdfast.core.recent import as_recent

HEAD = 'model = "pricing"\n[[checks]]\nname = "it"\n'


def outcome(check, *events):
    """What the last of `events` gets, after the others were judged one batch each: pass, fail or unknown."""
    answers = set()
    for meaning in ("pass", "fail"):
        real = Real(policy_of(f'{HEAD}unknown = "{meaning}"\n{check}'))
        answer = [real.judge([event])[0] for event in events][-1]
        assert answer != "malformed", answer
        answers.add("fail" if failures(answer) else "pass")
    return answers.pop() if len(answers) == 1 else "unknown"


RANGE = 'kind = "range"\nmin = 10\nmax = 20\n'
TABLE = 'kind = "range"\ntable = "floors.csv"\n'
SEGMENT = RANGE + "[checks.segment.cameras]\nmin = 15\n"
YEN = "[checks.currency.JPY]\nmin = 1500\n[checks.currency.EUR]\nmin = 9\nmax = 19\n"
CURRENCY = f'kind = "range"\n{YEN}'
DOLLARS = f'{TABLE}unlisted = "fail"\nin_currency = "USD"\n[checks.segment.cameras]\nmin = 15\n{YEN}'


@pytest.mark.parametrize(
    ("check", "event", "expected"),
    [
        (RANGE, {"value": 10}, "pass"),
        (RANGE, {"value": 10 - 1.1e-8}, "fail"),
        (RANGE, {"value": 10 - 0.9e-8}, "pass"),
        (RANGE, {"value": 20}, "pass"),
        (RANGE, {"value": 20 + 2.2e-8}, "fail"),
        (RANGE, {"value": 20 + 1.8e-8}, "pass"),
        (RANGE, {"value": 1e308}, "fail"),
        (RANGE, {"value": None, "outputs": {"p": 1}}, "unknown"),
        ('kind = "range"\nmin = 0', {"value": 5e-324}, "pass"),
        ('kind = "range"\nmin = 0', {"value": 0}, "pass"),
        ('kind = "range"\nmax = 0', {"value": 5e-324}, "fail"),
        ('kind = "range"\nfield = "features.cost"\nmin = 1', {"features": {"cost": 1}}, "pass"),
        ('kind = "range"\nfield = "features.cost"\nmin = 1', {"features": {"cost": 0}}, "fail"),
        ('kind = "range"\nfield = "features.cost"\nmin = 1', {"features": {"cost": "1.5"}}, "unknown"),
        ('kind = "range"\nfield = "features.cost"\nmin = 1', {"features": {"cost": True}}, "unknown"),
        ('kind = "range"\nfield = "features.cost"\nmin = 1', {"features": {"cost": [1.5]}}, "unknown"),
        ('kind = "range"\nfield = "features.cost"\nmin = 1', {"features": {}}, "unknown"),
        ('kind = "range"\nfield = "features.size.w"\nmin = 1', {"features": {"size": {"w": 1}}}, "pass"),
        ('kind = "range"\nfield = "outputs.p"\nmin = 1', {"outputs": {"p": 0.5}}, "fail"),
        ('kind = "range"\nfield = "outputs.p"\nmin = 1', {"outputs": {"p": [2]}}, "unknown"),
        # A segment's own side, and the global one where it leaves it open
        (SEGMENT, {"value": 15, "segment": "cameras"}, "pass"),
        (SEGMENT, {"value": 14.99, "segment": "cameras"}, "fail"),
        (SEGMENT, {"value": 15 - 1.4e-8, "segment": "cameras"}, "pass"),
        (SEGMENT, {"value": 15 - 1.6e-8, "segment": "cameras"}, "fail"),
        (SEGMENT, {"value": 20.01, "segment": "cameras"}, "fail"),
        (SEGMENT, {"value": 14.99, "segment": "phones"}, "pass"),
        (SEGMENT, {"value": 14.99, "segment": None}, "pass"),
        (SEGMENT, {"value": 14.99, "segment": "Cameras"}, "pass"),
        # Entity a: 5 to 50; b: at most 20; c: at least 1
        (CURRENCY, {"value": 1500, "currency": "JPY"}, "pass"),
        (CURRENCY, {"value": 100, "currency": "JPY"}, "fail"),
        (CURRENCY, {"value": 1e9, "currency": "JPY"}, "pass"),
        (CURRENCY, {"value": 10, "currency": "EUR"}, "pass"),
        (CURRENCY, {"value": 20, "currency": "EUR"}, "fail"),
        (CURRENCY, {"value": 10, "currency": "USD"}, "fail"),
        (CURRENCY, {"value": 10, "currency": "eur"}, "fail"),
        (CURRENCY, {"value": 10, "currency": ""}, "fail"),
        (CURRENCY, {"value": 10}, "unknown"),
        (CURRENCY, {"currency": "JPY", "value": None, "outputs": {"p": 1}}, "unknown"),
        (CURRENCY, {"currency": "USD", "value": None, "outputs": {"p": 1}}, "fail"),
        # The table, the segments and `unlisted` are in dollars
        (DOLLARS, {"entity_id": "a", "value": 5, "currency": "USD"}, "pass"),
        (DOLLARS, {"entity_id": "a", "value": 5, "currency": "JPY"}, "fail"),
        (DOLLARS, {"entity_id": "a", "value": 1e6, "currency": "JPY"}, "pass"),
        (DOLLARS, {"entity_id": "z", "value": 10, "currency": "USD"}, "fail"),
        (DOLLARS, {"entity_id": "z", "value": 10, "currency": "EUR"}, "pass"),
        (DOLLARS, {"entity_id": "c", "value": 14, "currency": "USD", "segment": "cameras"}, "pass"),
        (DOLLARS, {"entity_id": "b", "value": 14, "currency": "USD", "segment": "cameras"}, "fail"),
        (DOLLARS, {"entity_id": "b", "value": 14, "currency": "EUR", "segment": "cameras"}, "pass"),
        (DOLLARS, {"entity_id": "a", "value": 5, "currency": "GBP"}, "fail"),
        (RANGE + 'in_currency = "USD"', {"value": 15, "currency": "USD"}, "pass"),
        (RANGE + 'in_currency = "USD"', {"value": 15, "currency": "JPY"}, "fail"),
        (RANGE + 'in_currency = "USD"', {"value": 15}, "unknown"),
        (RANGE, {"value": 15, "currency": "JPY"}, "pass"),
        (TABLE, {"entity_id": "a", "value": 5}, "pass"),
        (TABLE, {"entity_id": "a", "value": 4.99}, "fail"),
        (TABLE, {"entity_id": "a", "value": 50.01}, "fail"),
        (TABLE, {"entity_id": "b", "value": -1e9}, "pass"),
        (TABLE, {"entity_id": "b", "value": 20.01}, "fail"),
        (TABLE, {"entity_id": "c", "value": 1e9}, "pass"),
        (TABLE, {"entity_id": "z", "value": 1e9}, "pass"),
        (TABLE + 'unlisted = "fail"', {"entity_id": "z", "value": 1}, "fail"),
        (TABLE + 'unlisted = "fail"\nmin = 1', {"entity_id": "z", "value": 1}, "pass"),
        (TABLE + "min = 3", {"entity_id": "b", "value": 2.99}, "fail"),
        (TABLE, {"entity_id": "a", "value": 5 - 4e-9}, "pass"),
        (TABLE, {"entity_id": "a", "value": 5 - 6e-9}, "fail"),
        (TABLE + "min = 30", {"entity_id": "a", "value": 5}, "pass"),
    ],
)
def test_a_range_holds_at_its_bounds(check, event, expected):
    """Bounds are inclusive; the entity's row goes before the segment's bounds, those before the global ones."""
    assert outcome(check, raw(**event)) == expected


CHANGE = 'kind = "max_change"\ndown = 0.5\nup = 3.0'


@pytest.mark.parametrize(
    ("check", "before", "value", "expected"),
    [
        (CHANGE, 10, 5, "pass"),
        (CHANGE, 10, 4.99, "fail"),
        (CHANGE, 10, 30, "pass"),
        (CHANGE, 10, 30.01, "fail"),
        (CHANGE, 10, -10, "fail"),
        (CHANGE, -10, -5, "pass"),
        (CHANGE, -10, -4.99, "fail"),
        (CHANGE, -10, -30, "pass"),
        (CHANGE, -10, -30.01, "fail"),
        (CHANGE, -10, 10, "fail"),
        (CHANGE, 0, 10, "unknown"),
        # 1.15 * 100 is 114.99999999999999, and 0.55 * 100 is 55.00000000000001
        ('kind = "max_change"\nup = 1.15', 100, 115, "pass"),
        ('kind = "max_change"\nup = 1.15', 100, 115.000001, "fail"),
        ('kind = "max_change"\ndown = 0.55', 100, 55, "pass"),
        ('kind = "max_change"\ndown = 0.55', 100, 54.999999, "fail"),
        ('kind = "max_change"\nup = 1.15', -100, -115, "pass"),
        ('kind = "max_change"\ndown = 0.55', -100, -55, "pass"),
        (CHANGE, 1e308, 1e308, "pass"),
        ('kind = "max_change"\nup = 3', 10, 0, "pass"),
        ('kind = "max_change"\nup = 3', 10, -0.01, "fail"),
        ('kind = "max_change"\ndown = 0.5', 10, 1e300, "pass"),
        ('kind = "max_change"\ndown = 1\nup = 1', 10, 10, "pass"),
    ],
)
def test_a_change_holds_at_its_ratios(check, before, value, expected):
    """Against the last approved value of the same entity; below zero the interval is mirrored."""
    first = raw(value=before)
    assert outcome(check, raw(value=value)) == "unknown", "no last value"
    answers = set()
    for meaning in ("pass", "fail"):
        real = Real(policy_of(f'{HEAD}unknown = "{meaning}"\n{check}'))
        remember(
            real.memory,
            Columns(Decoded({"model": ["pricing"], "entity_id": ["a"], "value": [float(before)]})),
            real.policy,
        )
        answers.add("fail" if failures(real.judge([raw(value=value)])[0]) else "pass")
        other = Real(policy_of(f'{HEAD}unknown = "pass"\n{check}'))
        other.judge([first, raw(value=value, entity_id="b")])
        assert other.last["value", "b"] == value, "another entity's value is no reference"
    assert (answers.pop() if len(answers) == 1 else "unknown") == expected


NEWCOMER = 'kind = "max_change"\ndown = 0.5\nup = 3.0\n'


@pytest.mark.parametrize(
    ("known", "value", "expected"),
    [
        ([], 1, "pass"),
        ([100, 100], 1, "pass"),
        ([100, 100, 100], 1, "fail"),
        ([100, 100, 100], -100, "fail"),
        ([100, 100, 100], 0, "fail"),
        ([100, 100, 100], 100 / 30 + 0.01, "pass"),
        ([100, 100, 100], 100 / 30 - 0.01, "fail"),
        ([100, 100, 100], 2999, "pass"),
        ([100, 100, 100], 3001, "fail"),
        # What lies far apart already reaches as far again
        ([1, 100, 100], 0.011, "pass"),
        ([1, 100, 100], 9999, "pass"),
        ([1, 100, 100], 10_001, "fail"),
        ([-100, -100, -100], -3, "fail"),
        ([-100, -100, -100], -4, "pass"),
        ([-100, -100, -100], 100, "fail"),
        ([-1, 100, 1], -2999, "pass"),
        ([-1, 100, 1], -3001, "fail"),
        ([0, 0, 0], 1e9, "pass"),
        ([0, 0, 100, 100], 1, "fail"),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_a_newcomer_must_be_within_reach_of_the_other_entities(known, value, expected, size):
    """By default: a new product is like the others; a hundredth of every price is a record in the wrong partition."""
    real = Real(policy_of(f"{HEAD}{NEWCOMER}"))
    batch = [raw(entity_id=f"e{i}", value=one) for i, one in enumerate(known)]
    batch.append(raw(entity_id="new", value=value))
    answers = [answer for at in range(0, len(batch), size) for answer in real.judge(batch[at : at + size])]
    assert [approved for approved, _ in answers] == [True] * len(known) + [expected == "pass"]
    assert sum(tally.failed for tally in real.tallies) == 0, "it is not the version's fault"
    for meaning in ("pass", "fail"):
        other = Real(policy_of(f'{HEAD}{NEWCOMER}unknown = "{meaning}"\n'))
        assert other.judge([raw(entity_id="new", value=value)])[0][0] is (meaning == "pass")


def test_a_catalogue_that_is_met_for_the_first_time_passes():
    """Thousands of products from 2 to 20,000, none of them known, in any order."""
    real = Real(policy_of(f"{HEAD}{NEWCOMER}"))
    batch = [raw(entity_id=f"e{i}", value=round(2 * 10 ** (i * 7919 % 2000 / 500), 2)) for i in range(2000)]
    answers = [answer for at in range(0, len(batch), 300) for answer in real.judge(batch[at : at + 300])]
    assert sum(not approved for approved, _ in answers) <= 2


def test_sixty_keys_that_come_to_other_partitions_are_not_approved_at_a_hundredth():
    """Sixty products at 100, ten in each of six partitions; then each of them at 1.0 in the partition beside."""
    memories = [Real(policy_of(f"{HEAD}{NEWCOMER}")) for _ in range(6)]
    for number, real in enumerate(memories):
        assert all(
            approved for approved, _ in real.judge([raw(entity_id=f"e{number}-{i}", value=100) for i in range(10)])
        )
    for number, real in enumerate(memories):
        moved = [raw(entity_id=f"e{(number + 1) % 6}-{i}", value=1.0) for i in range(10)]
        assert not any(approved for approved, _ in real.judge(moved))


def expression(text):
    return f'kind = "expression"\nexpression = "{text}"'


@pytest.mark.parametrize(
    ("text", "value", "features", "expected"),
    [
        ("value >= 1.02 * cost", 10.2, {"cost": 10}, "pass"),
        ("value >= 1.02 * cost", 10.19, {"cost": 10}, "fail"),
        # 1.1 * 100 is 110.00000000000001, and 1.15 * 100 is 114.99999999999999
        ("value >= 1.1 * cost", 110, {"cost": 100}, "pass"),
        ("value >= 1.1 * cost", 109.999999, {"cost": 100}, "fail"),
        ("value <= 1.15 * cost", 115, {"cost": 100}, "pass"),
        ("value == 1.1 * cost", 110, {"cost": 100}, "pass"),
        ("value == 1.1 * cost", 110.000001, {"cost": 100}, "fail"),
        ("value != 1.1 * cost", 110, {"cost": 100}, "fail"),
        ("value != 1.1 * cost", 110.000001, {"cost": 100}, "pass"),
        ("value < 1.1 * cost", 110, {"cost": 100}, "fail"),
        ("value > 1.15 * cost", 115, {"cost": 100}, "fail"),
        ("not value > 1.15 * cost", 115, {"cost": 100}, "pass"),
        ("value < 1.1 * cost", 109.999999, {"cost": 100}, "pass"),
        ("0 < value", 5e-324, {}, "pass"),
        ("value == 0", 5e-324, {}, "fail"),
        ("value <= cost", 1e308, {"cost": -1e308}, "fail"),
        ("value > cost", 1e308, {"cost": -1e308}, "pass"),
        ("value > cost", 10, {"cost": 10}, "fail"),
        ("value != cost", 10, {"cost": 10}, "fail"),
        ("1 < value <= 10", 10, {}, "pass"),
        ("1 < value <= 10", 1, {}, "fail"),
        ("value > 5 and cost > 5 or value == 1", 1, {"cost": 0}, "pass"),
        ("value > 5 and (cost > 5 or value == 1)", 1, {"cost": 0}, "fail"),
        ("not value > 5", 5, {}, "pass"),
        ("value >= cost", 10, {}, "unknown"),
        ("value >= cost", 10, {"cost": "5"}, "unknown"),
        # Arithmetic that ends nowhere never passes, however it is negated
        ("value / cost < 5", 10, {"cost": 0}, "fail"),
        ("value / cost > 5", 10, {"cost": 0}, "fail"),
        ("not (value / cost > 5)", 10, {"cost": 0}, "fail"),
        ("value / cost != 5", 0, {"cost": 0}, "fail"),
        ("not (log(cost) > 5)", 10, {"cost": -1}, "fail"),
        ("value * value * 1e300 > 1", 1e200, {}, "fail"),
        ("sqrt(cost) != 2", 10, {"cost": -1}, "fail"),
        ("where(cost > 0, value / cost, 1) >= 1", 10, {"cost": 0}, "pass"),
        ("abs(value - cost) <= 2 and exp(0 * value) == 1", 10, {"cost": 12}, "pass"),
        ("features.cost <= value", 10, {"cost": 10}, "pass"),
    ],
)
def test_an_expression_says_what_it_says_in_python(text, value, features, expected):
    """An absent number is unknown; a result that is not finite fails."""
    assert outcome(expression(text), raw(value=value, features=features)) == expected


ONE_OF = 'kind = "one_of"\nfield = "features.tier"\n'


@pytest.mark.parametrize(
    ("values", "tier", "expected"),
    [
        ('["gold", "silver"]', "gold", "pass"),
        ('["gold", "silver"]', "Gold", "fail"),
        ('["gold", "silver"]', "", "fail"),
        ('["gold", "silver"]', None, "unknown"),
        ("[1, 2]", 1, "pass"),
        ("[1, 2]", 1.0, "pass"),
        ("[1, 2]", True, "fail"),
        ("[1, 2]", "1", "fail"),
        ("[true]", True, "pass"),
        ("[true]", 1, "fail"),
        ("""["['gold']", "{'a': 1}"]""", ["gold"], "fail"),
        ("""["['gold']", "{'a': 1}"]""", {"a": 1}, "fail"),
    ],
)
def test_one_of_is_equality_of_value_and_type(values, tier, expected):
    """True is not 1, text is no number, and a list is no text that looks like it; whatever stands beside it."""
    event = raw(features={"tier": tier})
    check = f"{ONE_OF}values = {values}"
    assert outcome(check, event) == expected
    real = Real(policy_of(f'{HEAD}unknown = "fail"\n{check}'))
    neighbours = [raw(features={"tier": other}) for other in (1, True, "gold", ["x"], None)]
    assert bool(failures(real.judge([*neighbours, event])[-1])) is (expected != "pass")


FRESH = 'kind = "freshness"\nmax_age = "10m"\nmax_ahead = "5s"'


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (NOW, "pass"),
        (NOW - timedelta(minutes=10), "pass"),
        (NOW - timedelta(minutes=10, microseconds=1), "fail"),
        (NOW + timedelta(seconds=5), "pass"),
        (NOW + timedelta(seconds=5, microseconds=1), "fail"),
        (None, "unknown"),
    ],
)
def test_freshness_holds_at_both_ends(at, expected):
    """Exactly `max_age` old, and exactly `max_ahead` ahead, pass; the zone that it is written in does not matter."""
    assert outcome(FRESH, raw(predicted_at=at and at.isoformat())) == expected
    assert outcome(FRESH, raw(predicted_at=at and at.isoformat().replace("+00:00", "Z"))) == expected


@pytest.mark.parametrize(
    ("predicted", "arrived", "judged", "approved", "counts"),
    [
        # Seconds after NOW; max_age is 600
        (0, 0, 600, True, False),
        (0, 0, 601, False, False),
        (0, 600, 1300, False, False),
        (0, 601, 1300, False, True),
        (0, 601, 601, False, True),
        # A record's time that lies in the future, or that nobody gave, says nothing
        (0, 5000, 1300, False, True),
        (0, None, 1300, False, True),
        # Ahead of its time when it is judged
        (1400, 0, 1300, False, True),
    ],
)
@pytest.mark.parametrize("severity", ["error", "critical"])
def test_what_grew_old_while_it_waited_is_blocked_and_not_the_versions_fault(
    predicted, arrived, judged, approved, counts, severity
):
    """For the breaker the age at the record's arrival counts."""
    real = Real(policy_of(f'{HEAD}{FRESH}\nseverity = "{severity}"\n'))
    event = raw(predicted_at=(NOW + timedelta(seconds=predicted)).isoformat())
    arrived_ms = -1 if arrived is None else int((NOW.timestamp() + arrived) * 1000)
    ((passed, _),) = real.judge([event], NOW + timedelta(seconds=judged), arrived_ms)
    (tally,) = real.tallies
    assert (passed, tally.blocked, tally.failed) == (approved, int(not approved), int(counts))
    assert tally.critical == (tally.failed if severity == "critical" else 0)
    assert tally.blocked_by_check == ({} if approved else {"it": 1})


SIMPLEX = 'kind = "simplex"\nfield = "outputs.p"\ntolerance = 0.01\n'


@pytest.mark.parametrize(
    ("check", "outputs", "expected"),
    [
        (SIMPLEX, {"p": [0.2, 0.3, 0.5]}, "pass"),
        (SIMPLEX, {"p": [0.5, 0.509]}, "pass"),
        (SIMPLEX, {"p": [0.5, 0.511]}, "fail"),
        (SIMPLEX, {"p": [0.5, 0.489]}, "fail"),
        (SIMPLEX, {"p": [-0.009, 1.009]}, "pass"),
        (SIMPLEX, {"p": [-0.011, 1.011]}, "fail"),
        # 0.51 + 0.5 - 1 is 0.010000000000000009
        (SIMPLEX, {"p": [0.51, 0.5]}, "pass"),
        (SIMPLEX, {"p": [0.49, 0.5]}, "pass"),
        (SIMPLEX, {"p": [1]}, "pass"),
        (SIMPLEX, {"p": []}, "fail"),
        (SIMPLEX, {"p": [1e308, 1e308]}, "fail"),
        (SIMPLEX, {"p": 1}, "unknown"),
        (SIMPLEX, {"q": [1]}, "unknown"),
        (SIMPLEX + "length = 3", {"p": [0.5, 0.5]}, "fail"),
        (SIMPLEX + "length = 2", {"p": [0.5, 0.5]}, "pass"),
        ('kind = "simplex"\nfield = "outputs"', {"yes": 0.25, "no": 0.75}, "pass"),
        ('kind = "simplex"\nfield = "outputs"', {"yes": 0.25, "no": 0.74}, "fail"),
        ('kind = "simplex"\nfield = "outputs"', None, "unknown"),
        ('kind = "simplex"\nfield = "outputs.p"\ntolerance = 0', {"p": [0.1] * 10}, "pass"),
    ],
)
def test_a_simplex_holds_within_its_tolerance(check, outputs, expected):
    """Every part within [0, 1] and the sum 1, all within `tolerance`; an empty vector is none."""
    assert outcome(check, raw(outputs=outputs)) == expected


OUTLIER = 'kind = "outlier"\nmin_values = 5\nwindow = 10\n'


@pytest.mark.parametrize(
    ("check", "recent", "value", "expected"),
    [
        # The median is 3 and the MAD 1: the score of x is 0.6745 * |x - 3|
        (OUTLIER + "max_score = 1.349", [1, 2, 3, 4, 5], 5, "pass"),
        (OUTLIER + "max_score = 1.348", [1, 2, 3, 4, 5], 5, "fail"),
        # The MAD is 0.1 in decimal, and 0.10000000000000009 in binary
        (OUTLIER + "max_score = 0.6745", [0.8, 0.9, 1.0, 1.1, 1.2], 1.1, "pass"),
        (OUTLIER + "max_score = 0.6745", [0.8, 0.9, 1.0, 1.1, 1.2], 0.9, "pass"),
        (OUTLIER + "max_score = 1.348", [1, 2, 3, 4, 5], 1, "fail"),
        (OUTLIER, [1, 2, 3, 4], 1e6, "unknown"),
        (OUTLIER, [3, 3, 3, 3, 3], 1e6, "unknown"),
        (OUTLIER, [*[1000] * 20, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 1000, "fail"),
        (OUTLIER + "log = true", [1, 10, 100, 1000, 10000], 1e6, "pass"),
        (OUTLIER + "log = true", [1, 10, 100, 1000, 10000], 1e9, "fail"),
        (OUTLIER + "log = true", [1, 10, 100, 1000, 10000], 0, "fail"),
        (OUTLIER + "log = true", [1, 10, 100, 1000, 10000], -5, "fail"),
    ],
)
def test_an_outlier_is_told_by_the_recent_approved_values_of_its_segment(check, recent, value, expected):
    """Too few of them, or a spread of zero, is not enough to tell; another segment's say nothing."""
    answers = set()
    for meaning in ("pass", "fail"):
        real = Real(policy_of(f'{HEAD}unknown = "{meaning}"\n{check}'))
        real.memory.recent["pricing", "value"] = as_recent(500, {"cameras": map(float, recent)})
        answers.add("fail" if failures(real.judge([raw(value=value, segment="cameras")])[0]) else "pass")
        elsewhere = real.judge([raw(value=abs(value) + 1, segment="phones")])[0]
        assert bool(failures(elsewhere)) is (meaning == "fail")
    assert (answers.pop() if len(answers) == 1 else "unknown") == expected


@pytest.mark.parametrize(
    ("event", "passes"),
    [
        ({"currency": "USD", "features": {"cost": 0}}, True),
        ({"currency": "USD", "features": {"cost": False}}, True),
        ({"currency": "", "features": {"cost": 1}}, False),
        ({"features": {"cost": 1}}, False),
        ({"currency": "USD", "features": {"cost": ""}}, False),
        ({"currency": "USD", "features": {"cost": None}}, False),
        ({"currency": "USD"}, False),
    ],
)
def test_required_fields_are_there(event, passes):
    """Zero and false are values; null and empty text are none."""
    check = 'kind = "required"\nfields = ["currency", "features.cost"]'
    assert (outcome(check, raw(**event)) == "pass") is passes


# Any batch, against the reference

KINDS = [
    RANGE,
    SEGMENT,
    TABLE,
    TABLE + 'unlisted = "fail"',
    CURRENCY,
    DOLLARS,
    CHANGE,
    'kind = "max_change"\nup = 100\ndown = 0.01',
    'kind = "max_change"\nfield = "features.cost"\nup = 2',
    FRESH,
    SIMPLEX,
    'kind = "simplex"\nfield = "outputs"',
    OUTLIER,
    OUTLIER + "log = true",
    ONE_OF + 'values = ["gold", 1, true]',
    'kind = "required"\nfields = ["segment", "features.cost"]',
    *map(expression, CONDITIONS),
]
numbers = st.sampled_from(
    [-4000, 0.001, 4000, 0, 1, 4.99, 5, 10, 14.99, 15, 20, 20.01, 30, 50.01, -10, 1e308]
) | st.floats(1, 60)
features = st.fixed_dictionaries(
    {},
    optional={
        "cost": numbers | st.sampled_from(["5", None, True]),
        "list_price": numbers,
        "tier": st.sampled_from(["gold", "silver", 1, True, ["gold"], None]),
    },
)
vectors = st.lists(st.sampled_from([0, 0.25, 0.5, 1, -0.009]), max_size=4)
events = st.builds(
    raw,
    entity_id=st.sampled_from("abzcdefg"),
    model_version=st.sampled_from(["v1", "bad"]),
    value=numbers,
    currency=st.sampled_from(["USD", "EUR", "JPY", "GBP", None]),
    segment=st.sampled_from(["cameras", "phones", None]),
    predicted_at=st.sampled_from(["2026-11-24T09:50:00Z", "2026-11-24T09:49:59Z", "2026-11-24T10:00:06Z", None]),
    features=features | st.none(),
    outputs=st.none() | st.fixed_dictionaries({}, optional={"p": vectors, "low": numbers, "high": numbers}),
)
batches = st.lists(events, min_size=1, max_size=30)
modes = st.sampled_from(['mode = "enforce"', 'mode = "shadow"', 'severity = "warning"', 'severity = "critical"'])


def means(kind, unknown):
    """Only `max_change` knows `auto`."""
    return f'unknown = "{unknown}"' if unknown != "auto" or "max_change" in kind else ""


policies = st.lists(
    st.tuples(st.sampled_from(KINDS), modes, st.sampled_from(["pass", "fail", "auto"])), min_size=1, max_size=4
).map(
    lambda checks: policy_of(
        'model = "pricing"\n'
        + "".join(
            f'[[checks]]\nname = "c{i}"\n{mode}\n{means(kind, unknown)}\n{kind}\n'
            for i, (kind, mode, unknown) in enumerate(checks)
        )
    )
)


@settings(max_examples=150)
@given(policies, st.lists(batches, min_size=1, max_size=3))
def test_a_batch_is_judged_as_the_reference_judges_record_by_record(policy, several):
    """The same verdicts, the same findings, the same memory, whatever the checks and the batches."""
    real, reference = Real(policy, fenced=("bad",)), Reference(policy, fenced=("bad",))
    for batch in several:
        assert list(map(same, real.judge(batch))) == list(map(same, reference.judge(batch, NOW)))
        assert real.last == reference.last
        tails = {(f, s): v.values() for (_, f), segments in real.memory.recent.items() for s, v in segments.items()}
        assert tails == {key: values[-len(tails.get(key, ())) :] for key, values in reference.recent.items()}


def cut(batch, data):
    """The records of `batch` in batches of any sizes."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=4)))
    return [batch[a:b] for a, b in zip([0, *cuts], [*cuts, len(batch)], strict=True) if a < b]


@settings(max_examples=150)
@given(policies, st.lists(events, min_size=1, max_size=60), st.data())
def test_how_records_are_cut_into_batches_does_not_matter(policy, batch, data):
    """The same verdicts, memory and sums of tallies, also where the guard starts again between two batches."""
    whole, pieces = Real(policy, fenced=("bad",)), Real(policy, fenced=("bad",))
    answers = []
    for piece in cut(batch, data):
        if data.draw(st.booleans()):
            pieces.restart()
        answers += pieces.judge(piece)
    assert list(map(same, answers)) == list(map(same, whole.judge(batch)))
    assert pieces.last == whole.last
    assert pieces.recent == whole.recent
    for count in ("seen", "approved", "blocked", "failed", "critical"):
        assert sum(getattr(t, count) for t in pieces.tallies) == sum(getattr(t, count) for t in whole.tallies)


@pytest.mark.parametrize("size", [1, 7, 260])
def test_values_that_rise_slowly_are_no_outliers_however_they_were_batched(size):
    """Each is held against the values before it; those of the same batch count too."""
    check = 'kind = "outlier"\nwindow = 50\nmin_values = 20\nmax_score = 10\n'
    real = Real(policy_of(f"{HEAD}{check}"))
    values = [100 + (i * 7919 % 13 - 6) / 2 for i in range(60)]
    values += [100 + 0.1 * i for i in range(1, 201)]
    answers = []
    for start in range(0, len(values), size):
        answers += real.judge([raw(value=value) for value in values[start : start + size]])
    assert all(approved for approved, _ in answers)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 40)), min_size=1, max_size=80), st.data())
def test_segments_are_forgotten_at_the_same_record_however_records_were_batched(pairs, data):
    """With room for three segments only: of those not established the one approved least recently goes, at once."""
    check = 'kind = "outlier"\nwindow = 10\nmin_values = 3\nunknown = "fail"\nseverity = "warning"\n'
    batch = [raw(segment=segment, value=value) for segment, value in pairs]
    with mock.patch.object(recent_values, "MAX_SEGMENTS", 3):
        whole, pieces = Real(policy_of(f"{HEAD}{check}")), Real(policy_of(f"{HEAD}{check}"))
        answers = []
        for piece in cut(batch, data):
            if data.draw(st.booleans()):
                pieces.restart()
            answers += pieces.judge(piece)
        assert answers == whole.judge(batch)
        assert pieces.recent == whole.recent
        assert all(len(segments) <= 3 for segments in whole.memory.recent.values())


@settings(max_examples=100)
@given(
    st.lists(st.floats(-50, 50) | st.integers(-3, 3).map(float), max_size=60),
    st.integers(1, 12),
    st.integers(12, 20),
    st.booleans(),
)
def test_a_window_knows_its_median_and_its_spread_at_every_step(values, window, keep, log):
    """Against the statistics module, over the same values."""
    moving = recent_values.Recent(keep)
    for number, value in enumerate(values, start=1):
        moving.push(value)
        tail = [one for one in values[max(0, number - window) : number] if one > 0 or not log]
        tail = [math.log(one) for one in tail] if log else tail
        count, centre, spread = moving.reference((window, log))
        assert count == len(tail)
        if tail:
            assert centre == statistics.median(tail)
            assert spread == statistics.median([abs(one - centre) for one in tail])


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6), min_size=1, max_size=12), st.integers(1, 6)
)
def test_what_is_forgotten_was_approved_least_recently_and_leaves_no_trace(batches, limit):
    """Whoever comes back is held against their own bounds and their own last value, in whosever place."""
    real = Real(policy_of(f'{HEAD}kind = "max_change"\nup = 2\nunknown = "pass"\n[[checks]]\nname = "own"\n{TABLE}'))
    recent = {}
    for number, batch in enumerate(batches):
        events = [raw(entity_id=entity, value=21 + number / 100 + ord(entity) / 1e6) for entity in batch]
        for entity, answer in zip(batch, real.judge(events), strict=True):
            assert answer[0] == (entity != "b"), "only b has a ceiling below"
            if answer[0]:
                recent.pop(entity, None)
                recent[entity] = None
        real.memory.of("pricing").forget(limit)
        kept = {entity for _, entity in real.last}
        assert kept <= set(recent)
        assert len(kept) <= limit
        newest = {entity for entity in batch if entity != "b"}
        assert newest <= kept or len(newest) > limit
