"""A policy that lists its segments judges every other one by the strictest bounds, or blocks it."""

import tomllib

import pytest

from core.alike import Real, failures, policy_of, raw
from holdfast.core.policy import PolicyError, parse_policy

SEGMENTS = 'segments = ["cameras", "lenses", "bags"]\n'
RANGE = """
[[checks]]
name = "floor"
kind = "range"
min = 10.0
max = 25000.0
[checks.segment.cameras]
min = 250.0
[checks.segment.lenses]
max = 9000.0
"""
ESCAPES = ["Cameras", "CAMERAS", "cameras ", "camera", "", "\u200bcameras", "c\u0430meras", None]
"""Also with a Cyrillic letter, and none at all."""


def policy(top, checks=RANGE):
    return policy_of(f'model = "pricing"\n{top}{checks}')


@pytest.mark.parametrize("segment", ESCAPES)
def test_a_segment_that_is_not_listed_is_judged_by_the_strictest_bounds(segment):
    """At least 250 as cameras, at most 9,000 as lenses."""
    values = [249, 250, 9000, 9001]
    answers = Real(policy(SEGMENTS)).judge([raw(value=value, segment=segment) for value in values])
    assert [approved for approved, _ in answers] == [False, True, True, False]


@pytest.mark.parametrize("segment", ESCAPES)
def test_or_it_is_blocked(segment):
    """And counts for its version, as other failures do."""
    real = Real(policy(SEGMENTS + 'unlisted_segment = "block"\n'))
    assert real.judge([raw(value=300, segment=segment), raw(value=300, segment="cameras")]) == [
        (False, [("unlisted_segment", True)]),
        (True, []),
    ]
    assert real.tallies[0].failed == 1


@pytest.mark.parametrize(
    ("segment", "passing", "failing"),
    [("cameras", [250, 25000], [249]), ("lenses", [10, 9000], [9001]), ("bags", [10, 25000], [9, 25001])],
)
def test_listed_segments_have_their_own_bounds(segment, passing, failing):
    """Those without bounds of their own have the general ones."""
    real = Real(policy(SEGMENTS))
    answers = real.judge([raw(value=value, segment=segment) for value in (*passing, *failing)])
    assert [approved for approved, _ in answers] == [True] * len(passing) + [False] * len(failing)


@pytest.mark.parametrize("segment", ESCAPES)
def test_without_a_list_the_general_bounds_hold_as_before(segment):
    """`holdfast check` says that such a segment escapes."""
    assert Real(policy("")).judge([raw(value=10, segment=segment)]) == [(True, [])]


def test_in_shadow_and_off_nothing_is_blocked():
    """As for every check."""
    top = SEGMENTS + 'unlisted_segment = "block"\nmode = "{}"\n'
    assert Real(policy(top.format("shadow"))).judge([raw(value=300)]) == [(True, [("unlisted_segment", False)])]
    assert Real(policy(top.format("off"))).judge([raw(value=300)]) == [(True, [])]


OUTLIER = '[[checks]]\nname = "odd"\nkind = "outlier"\nmin_values = 3\n'


def test_an_outlier_check_holds_an_unlisted_segment_against_every_listed_one():
    """What fails for one of them fails; and an unlisted segment has no memory of its own."""
    real = Real(policy(SEGMENTS, OUTLIER))
    real.judge([raw(value=1000.0 + i, segment="cameras") for i in range(9)])
    real.judge([raw(value=1004.0 + i, segment="lenses") for i in range(9)])
    real.judge([raw(value=1002.0 + i, segment="bags") for i in range(9)])
    answers = real.judge([raw(value=value, segment="Cameras") for value in (1006.0, 1500.0, 1006.0)])
    assert answers == [(True, []), (False, [("odd", True)]), (True, [])]
    assert set(real.memory.recent["pricing", "value"]) == {"cameras", "lenses", "bags"}
    before = real.recent
    real.restart()
    assert real.recent == before


def test_bounds_of_a_segment_that_is_not_listed_are_refused():
    """One of the two is mistyped."""
    toml = f'model = "pricing"\nsegments = ["camera", "lenses"]\n{RANGE}'
    with pytest.raises(PolicyError, match=r"bounds for the segment 'cameras'.*not one of segments .camera, lenses."):
        parse_policy(tomllib.loads(toml), "pricing.toml")
    with pytest.raises(PolicyError, match="stands twice"):
        parse_policy(tomllib.loads('model = "pricing"\nsegments = ["a", "a"]\n'), "pricing.toml")


def test_the_table_of_an_entity_goes_before():
    """Its own bounds are more special than those of any segment."""
    checks = '[[checks]]\nname = "floor"\nkind = "range"\ntable = "floors.csv"\n[checks.segment.cameras]\nmin = 250.0\n'
    (answer,) = Real(policy(SEGMENTS, checks)).judge([raw(value=6, entity_id="a", segment="x")])
    assert failures(answer) == set()
