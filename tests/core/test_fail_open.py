"""What lets outputs pass unchecked is said in words, and nothing else is."""

import pytest

from core.alike import policy_of
from holdfast.core.fail_open import unchecked

JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2\n'


def policy(model="pricing", mode="enforce", **modes):
    checks = "".join(
        f'[[checks]]\nname = "{name}"\nkind = "range"\nmin = 1\nmode = "{mode_}"\n' for name, mode_ in modes.items()
    )
    return policy_of(f'model = "{model}"\nmode = "{mode}"\n{checks}')


@pytest.mark.parametrize(
    ("policies", "approves", "said"),
    [
        ([], False, []),
        ([policy(a="enforce")], False, []),
        ([policy(mode="shadow", a="enforce")], False, []),
        ([policy(a="shadow")], False, []),
        ([], True, ["every output of a model without a policy is approved (guard.no_policy)"]),
        ([policy(mode="off", a="off")], False, ["none of the checks of pricing runs (mode)"]),
        ([policy(a="off", b="enforce")], False, ["the check a of pricing is off"]),
        ([policy(a="off", b="off")], False, ["the checks a, b of pricing are off"]),
        ([policy_of('model = "m"\nversions = "routed"\n' + JUMP)], False, []),
        (
            [policy_of('model = "m"\nversions = "any"\n' + JUMP)],
            False,
            ["outputs of m pass whether or not somebody promoted their version (versions)"],
        ),
        (
            [policy_of('model = "m"\noff_key = "pass"\nambiguous = "pass"\n' + JUMP)],
            False,
            [
                "the keys of the records of m are not looked at (off_key)",
                "events of m that can be read in two ways pass (ambiguous)",
            ],
        ),
        (
            [policy("b", a="off"), policy("a", mode="off", a="enforce")],
            True,
            [
                "every output of a model without a policy is approved (guard.no_policy)",
                "none of the checks of a runs (mode)",
                "the check a of b is off",
            ],
        ),
    ],
)
def test_every_open_switch_is_named(policies, approves, said):
    assert unchecked(policies, no_policy_approves=approves) == said
