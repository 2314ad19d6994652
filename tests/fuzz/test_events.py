"""A great many events through decode and judge, held against the reference, record by record."""

import os
import random
from collections import Counter

import pytest
from events import raw_event

from backends import ROOT
from core.alike import NOW, Real, policy_of, same
from core.reference import Reference
from holdfast.core.entity_key import entity_key

EVENTS = int(os.environ.get("HOLDFAST_TEST_FUZZ_EVENTS", "50000"))
SEED = int(os.environ.get("HOLDFAST_TEST_FUZZ_SEED", "20261124"))

EVERYTHING = (ROOT / "tests/fuzz/every_kind.toml").read_text(encoding="utf-8")
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
    assert real.last == {(name, entity_key(entity)): value for (name, entity), value in reference.last.items()}
    assert sum(one.seen for one in real.tallies) <= sum(counts.values())
    assert 0 < sum(one.blocked_by_check.get("malformed", 0) for one in real.tallies) <= counts["malformed"]
    assert all(counts[verdict] > wanted / 50 for verdict in ("approved", "blocked", "malformed")), counts
    with capsys.disabled():
        print(f"\n{name}: " + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items())))
