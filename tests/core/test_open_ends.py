"""What `holdfast check` says that a policy leaves open."""

import pytest

from backends import ROOT
from core.alike import policy_of
from holdfast.adapters.policies import load_policies, load_policy
from holdfast.core.open_ends import open_ends

SEGMENT = '[[checks]]\nname = "floor"\nkind = "range"\nmin = 1\n[checks.segment.cameras]\nmin = 250\n'
LIMIT = '[[checks]]\nname = "above_cost"\nkind = "expression"\nexpression = "value >= 1.02 * cost"\n'
JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2\n'
COST = '[[checks]]\nname = "cost"\nkind = "{}"\n{}\n'
ONLY = '[[checks]]\nname = "s"\nkind = "one_of"\nfield = "segment"\nvalues = ["cameras"]\n'


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (SEGMENT, "escapes the bounds of its segment in floor: list all segments"),
        ('off_key = "block"\n[[checks]]\nname = "odd"\nkind = "outlier"\n', "escapes the bounds of its segment in odd"),
        (f'segments = ["cameras"]\n{SEGMENT}', None),
        (SEGMENT + ONLY, None),
        (SEGMENT + ONLY + 'unknown = "pass"\n', "escapes"),
        (SEGMENT + ONLY + 'mode = "shadow"\n', "escapes"),
        (f'mode = "off"\n{SEGMENT}', None),
        (LIMIT, "above_cost takes features.cost as a limit, and no check bounds it: an event that says cost = -1e9"),
        (LIMIT + COST.format("range", 'field = "features.cost"\nmin = 1\nmax = 9'), None),
        (LIMIT + COST.format("range", 'field = "features.cost"\nmin = 1\nmax = 9\nmode = "shadow"'), "above_cost"),
        (LIMIT + COST.format("range", 'field = "features.cost"\nmax = 9'), "above_cost"),
        (LIMIT + COST.format("expression", 'expression = "cost > 0"'), None),
        (LIMIT + COST.format("max_change", 'field = "features.cost"\nup = 2'), None),
        (COST.format("expression", 'expression = "cost > 0"'), None),
        (COST.format("expression", 'expression = "outputs.low <= outputs.high"'), None),
        (JUMP, None),
        (JUMP + 'unknown = "fail"\n', None),
        (JUMP + 'unknown = "pass"\n', "another key than its entity's passes jump, because unknown passes there"),
        ('off_key = "block"\n' + JUMP + 'unknown = "pass"\n', None),
        ('segments = ["a"]\n[[checks]]\nname = "odd"\nkind = "outlier"\n', "passes odd"),
        (f'off_key = "pass"\n{JUMP}', "an entity under another key escapes jump"),
        (f'off_key = "pass"\n{COST.format("range", "min = 1")}', None),
        ('ambiguous = "pass"\n', "read in two ways passes"),
    ],
)  # fmt: skip
def test_each_open_end_is_a_sentence(toml, words):
    """And a policy that leaves nothing open has none."""
    found = open_ends(policy_of(f'model = "pricing"\n{toml}'))
    assert len(found) == (words is not None), found
    assert all(words in one for one in found)


def test_no_policy_of_the_repository_leaves_anything_open():
    """They are what people copy."""
    shipped = [ROOT / "policies", ROOT / "deploy/kubernetes/policies"]
    policies = [one for folder in shipped for one in load_policies(folder).policies.values()]
    policies.append(load_policy(ROOT / "services/holdfast/cli/demo/pricing.toml"))
    assert len(policies) >= 3
    assert [open_ends(one) for one in policies] == [[]] * len(policies)
