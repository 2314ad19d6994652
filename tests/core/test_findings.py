"""What a finding says: the field, what was seen in it, and the limit, all as JSON can hold it."""

import pytest

from core.alike import Real, policy_of, raw
from holdfast.core.recent import as_recent

COST, TIER = (
    'kind = "range"\nfield = "features.cost"\nmin = 1',
    'kind = "one_of"\nfield = "features.tier"\nvalues = [1]',
)
RANGE, FLOORS = 'kind = "range"\nmin = 12\nmax = 50', 'kind = "range"\ntable = "floors.csv"\n'
YEN = 'kind = "range"\n[checks.currency.JPY]\nmin = 1500'
CHANGE = 'kind = "max_change"\n'
CURRENCY = 'kind = "one_of"\nfield = "currency"\nvalues = ["USD", "EUR"]'
FRESH = 'kind = "freshness"\nmax_age = "1h"'
SIMPLEX = 'kind = "simplex"\nfield = "outputs.p"'
OUTLIER = 'kind = "outlier"\nmin_values = 5\nwindow = 10\n'
LOG_OUTLIER, WIDE = OUTLIER + "log = true\n", [1e-300, 1e-150, 1, 1e150, 1e300]
NEARLY = {"min": pytest.approx(1e-150), "max": pytest.approx(1e150)}
SUM = {"sum": 1, "tolerance": 1e-6}
AGES = {"max_age": "1h", "max_ahead": "5s"}


def expression(text):
    return f'kind = "expression"\nexpression = "{text}"'


def parts(total, low, high, length):
    return {"sum": total, "min": low, "max": high, "length": length}


@pytest.mark.parametrize(
    ("check", "recent", "event", "field", "seen", "limit"),
    [
        (RANGE, [], {"value": 1}, "value", 1.0, {"min": 12.0, "max": 50.0}),
        ('kind = "range"\nmin = 12', [], {}, "value", 10.0, {"min": 12.0}),
        ('kind = "range"\nmax = 5', [], {"value": 1e308}, "value", 1e308, {"max": 5.0}),
        (FLOORS, [], {"entity_id": "b", "value": 21}, "value", 21.0, {"max": 20.0}),
        (FLOORS + 'unlisted = "fail"', [], {"entity_id": "new"}, "value", 10.0, "a row in the table"),
        (COST, [], {}, "features.cost", None, {"min": 1.0}),
        (YEN, [], {"currency": "JPY"}, "value", 10.0, {"min": 1500.0}),
        (YEN, [], {"currency": "USD"}, "currency", "USD", ["JPY"]),
        (YEN, [], {}, "currency", None, ["JPY"]),
        (CHANGE + "up = 1.15", [100], {"value": 116}, "value", 116.0, {"last": 100.0, "max": 115.0}),
        (CHANGE + "down = 0.55", [100], {"value": 54}, "value", 54.0, {"last": 100.0, "min": 55.0}),
        (CHANGE + "up = 2", [10], {"value": 21}, "value", 21.0, {"last": 10.0, "max": 20.0}),
        (CHANGE + "down = 0.5", [10], {"value": 4}, "value", 4.0, {"last": 10.0, "min": 5.0}),
        (CHANGE + "up = 2", [-10], {"value": -21}, "value", -21.0, {"last": -10.0, "min": -20.0}),
        (CHANGE + "up = 2\ndown = 0.5", [1e308], {}, "value", 10.0, {"last": 1e308, "min": 5e307, "max": "inf"}),
        (CHANGE + 'up = 2\nunknown = "fail"', [], {}, "value", 10.0, "a last approved value to compare with"),
        (expression("value > 20"), [], {}, "value", {"value": 10.0}, "value > 20"),
        (expression("value > cost"), [], {}, None, {"value": 10.0, "features.cost": None}, "value > cost"),
        (CURRENCY, [], {"currency": "x" * 600}, "currency", "x" * 500 + "…", ["USD", "EUR"]),
        (CURRENCY, [], {}, "currency", None, ["USD", "EUR"]),
        (TIER, [], {"features": {"tier": [1]}}, "features.tier", "[1]", [1.0]),
        (TIER, [], {"features": {"tier": 2**70}}, "features.tier", str(2**70), [1.0]),
        (FRESH, [], {"predicted_at": "2026-11-24T08:00:00Z"}, "predicted_at", "7200.000s old", AGES),
        (FRESH, [], {"predicted_at": "2026-11-24T10:00:06Z"}, "predicted_at", "6.000s ahead", AGES),
        (FRESH, [], {}, "predicted_at", None, AGES),
        (SIMPLEX, [], {"outputs": {"p": [0.5, 0.75]}}, "outputs.p", parts(1.25, 0.5, 0.75, 2), SUM),
        (SIMPLEX, [], {"outputs": {"p": [1e308, 1e308]}}, "outputs.p", parts("inf", 1e308, 1e308, 2), SUM),
        (SIMPLEX, [], {}, "outputs.p", None, SUM),
        (OUTLIER + "max_score = 0.6745", [1, 2, 3, 4, 5], {}, "value", 10.0, {"min": 2.0, "max": 4.0}),
        (LOG_OUTLIER + "max_score = 0.6745", WIDE, {"value": -1}, "value", -1.0, NEARLY),
        (LOG_OUTLIER, WIDE, {"value": -1}, "value", -1.0, {"min": 0.0, "max": "inf"}),
        (OUTLIER + 'unknown = "fail"', [1, 2], {}, "value", 10.0, "enough recent approved values"),
        ('kind = "required"\nfields = ["value", "currency"]', [], {}, "currency", None, "a value"),
    ],
)
def test_a_finding_says_what_was_seen_and_what_the_limit_is(check, recent, event, field, seen, limit):
    """`recent`: the values approved before, of the same entity and segment, the last one last."""
    real = Real(policy_of(f'model = "pricing"\n[[checks]]\nname = "it"\n{check}'))
    if recent and "outlier" in check:
        real.memory.recent["pricing", "value"] = as_recent(500, {None: map(float, recent)})
    elif recent:
        real.judge([raw(value=recent[-1])])
    assert real.judge([raw(**event)]) == [(False, [("it", True)])]
    ((finding,),) = (sample.findings for sample in real.tallies[-1].samples)
    assert (finding.field, finding.seen, finding.limit) == (field, seen, limit)
