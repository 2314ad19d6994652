"""A great many events through decode and judge, held against the reference, record by record."""

import os
import random
from collections import Counter

import pytest
from events import raw_event

from core.alike import NOW, Real, policy_of, same
from core.reference import Reference

EVENTS = int(os.environ.get("HOLDFAST_TEST_FUZZ_EVENTS", "50000"))
SEED = int(os.environ.get("HOLDFAST_TEST_FUZZ_SEED", "20261124"))

EVERYTHING = """
model = "pricing"
[[checks]]
name = "bounds"
kind = "range"
min = 1
max = 1000
segment.cameras = {min = 6}
[[checks]]
name = "own_bounds"
kind = "range"
table = "floors.csv"
severity = "critical"
[[checks]]
name = "cost_bounds"
kind = "range"
field = "features.cost"
min = 0
unknown = "pass"
[[checks]]
name = "jump"
kind = "max_change"
down = 0.2
up = 5
[[checks]]
name = "cost_jump"
kind = "max_change"
field = "features.cost"
up = 2
[[checks]]
name = "above_cost"
kind = "expression"
expression = "value >= 1.02 * cost"
[[checks]]
name = "watched"
kind = "expression"
expression = "not (value / cost > 3)"
mode = "shadow"
[[checks]]
name = "currency"
kind = "one_of"
field = "currency"
values = ["USD", "EUR"]
[[checks]]
name = "tier"
kind = "one_of"
field = "features.tier"
values = ["gold", 1, "['gold']"]
unknown = "pass"
severity = "warning"
[[checks]]
name = "fresh"
kind = "freshness"
max_age = "1h"
[[checks]]
name = "probabilities"
kind = "simplex"
field = "outputs.p"
unknown = "pass"
[[checks]]
name = "strange"
kind = "outlier"
window = 20
min_values = 10
max_score = 6
[[checks]]
name = "there"
kind = "required"
fields = ["segment", "features.list_price"]
"""
BARE = """
model = "pricing"
[[checks]]
name = "bounds"
kind = "range"
min = 1
max = 1000
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "toml", "share"), [("every kind", EVERYTHING, 0.8), ("one check", BARE, 0.2)], ids=["every", "one"]
)
def test_no_event_is_judged_otherwise_than_the_reference_judges_it(name, toml, share, capsys):
    """No exception, no approval of what is not sane, no block of what is; whatever its neighbours in the batch are.

    The seed and the number come from HOLDFAST_TEST_FUZZ_SEED and HOLDFAST_TEST_FUZZ_EVENTS.
    """
    policy, rng = policy_of(toml), random.Random(f"{SEED} {name}")
    real, reference = Real(policy, fenced=("bad",)), Reference(policy, fenced=("bad",))
    counts, wanted = Counter(), int(EVENTS * share)
    while sum(counts.values()) < wanted:
        raws = [raw_event(rng) for _ in range(rng.choice((1, 2, 50, 700)))]
        for raw, got, right in zip(raws, real.judge(raws), reference.judge(raws, NOW), strict=True):
            assert same(got) == same(right), f"seed {SEED}, after {sum(counts.values())}: {raw[:3000]!r}"
            counts["malformed" if got == "malformed" else "approved" if got[0] else "blocked"] += 1
    assert real.last == reference.last
    assert sum(one.seen for one in real.tallies) <= sum(counts.values()) - counts["malformed"]
    assert all(counts[verdict] > wanted / 50 for verdict in ("approved", "blocked", "malformed")), counts
    with capsys.disabled():
        print(f"\n{name}: " + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items())))
