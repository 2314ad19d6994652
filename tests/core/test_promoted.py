"""Once a model has a route, what nobody promoted is judged and counted, and neither approved nor learnt from."""

import pytest

from core.alike import NOW, Real, failures, policy_of, raw
from holdfast.core.model_state import Version, promoted
from holdfast.core.promoted import CHECK
from holdfast_schemas import Route, RouteState
from holdfast_schemas.control import OTHERS
from holdfast_schemas.route import MAX_PROMOTED

FLOOR = '[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\nseverity = "critical"\n'
JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\ndown = 0.5\nunknown = "pass"\n'


def real(versions=None, *, mode="enforce", checks=FLOOR, serves="v2", served=("v1", "v2"), fenced=()):
    said = f'versions = "{versions}"\n' if versions else ""
    guard = Real(policy_of(f'model = "pricing"\nmode = "{mode}"\n{said}{checks}'))
    state = RouteState.AUTO if serves else RouteState.HELD
    guard.route = Route(
        model="pricing",
        version=serves,
        epoch=3,
        state=state,
        reason="r",
        actor="a",
        since=NOW,
        fenced=fenced,
        promoted=served,
    )
    return guard


def outputs(*versions, value=100, entity="a"):
    return [raw(model_version=version, value=value, entity_id=entity) for version in versions]


@pytest.mark.parametrize(
    ("versions", "served", "approved"),
    [
        (None, ("v1", "v2"), [True, True, False]),
        ("promoted", ("v1", "v2"), [True, True, False]),
        ("routed", ("v1", "v2"), [False, True, False]),
        ("any", ("v1", "v2"), [True, True, True]),
        ("promoted", (), [True, True, True]),
        ("routed", (), [True, True, True]),
    ],
)
def test_the_policy_says_whose_outputs_may_be_approved(versions, served, approved):
    """By default those of versions that were promoted; before a first promotion those of all."""
    guard = real(versions, served=served)
    answers = guard.judge(outputs("v1", "v2", "v3"))
    assert [passed for passed, _ in answers] == approved
    assert [CHECK in failures(answer) for answer in answers] == [not passed for passed in approved]
    assert {tally.model_version: tally.promoted for tally in guard.tallies} == dict(
        zip(("v1", "v2", "v3"), approved, strict=True)
    )


@pytest.mark.parametrize(("mode", "enforced"), [("enforce", True), ("shadow", False)])
def test_in_shadow_it_is_counted_and_not_blocked(mode, enforced):
    ((approved, found),) = real(mode=mode).judge(outputs("v3"))
    assert (approved, found) == (not enforced, [(CHECK, enforced)])


def test_where_no_check_runs_no_version_is_asked_for():
    assert real(mode="off").judge(outputs("v3")) == [(True, [])]


def test_that_it_was_not_promoted_is_no_failure_of_the_version_and_what_its_checks_find_is():
    """So that a candidate trips by its own outputs before somebody promotes it."""
    guard = real()
    guard.judge([*outputs("v3", "v3"), *outputs("v3", value=1)])
    (tally,) = guard.tallies
    assert (tally.seen, tally.approved, tally.blocked, tally.failed, tally.critical) == (3, 0, 3, 1, 1)
    assert tally.blocked_by_check == {CHECK: 3, "floor": 1}


def test_a_fence_and_a_hold_block_beside_it():
    answers = real(fenced=("v2", "v3")).judge(outputs("v1", "v2", "v3"))
    assert [sorted(failures(answer)) for answer in answers] == [[], ["fenced"], ["fenced", CHECK]]
    answers = real("routed", serves=None).judge(outputs("v1", "v3"))
    assert [sorted(failures(answer)) for answer in answers] == [["held"], ["held", CHECK]]


@pytest.mark.parametrize("versions", ["promoted", "routed", "any"])
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_what_nobody_promoted_moves_no_reference(versions, restarts, together):
    """80 outputs of another version, each within every check of the one before, end at a hundredth of the price."""
    guard = real(versions, checks=JUMP)
    assert guard.judge(outputs("v2", value=20_000)) == [(True, [])]
    lower = [outputs("v3", value=20_000 * 0.9 ** (step + 1))[0] for step in range(80)]
    for batch in [lower] if together else [[one] for one in lower]:
        guard.judge(batch)
    if restarts:
        guard.restart()
    assert guard.last == {("value", "a"): 20_000.0}
    assert guard.judge(outputs("v2", value=19_000)) == [(True, [])], "the version that serves is not hurt by it"
    assert failures(guard.judge(outputs("v2", value=5000))[0]) == {"jump"}


def test_of_versions_that_are_counted_together_none_is_promoted():
    assert not real().policy.accepts(OTHERS, real().route)


def test_a_route_names_the_versions_that_served_last():
    """Whether they are fenced, good or candidates by now."""
    versions = {f"v{number}": Version(activated=number) for number in range(1, MAX_PROMOTED + 3)}
    named = promoted(versions | {"never": Version()})
    assert len(named) == MAX_PROMOTED
    assert set(versions) - set(named) == {"v1", "v2"}
    assert list(named) == sorted(named)
