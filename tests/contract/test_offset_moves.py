"""What it means that a partition goes on elsewhere, by what the verdicts and the group's offset tell."""

import pytest

from holdfast.cli.offsets import Position, move_of
from holdfast.kafka.evidence import Judged

NOTHING = Judged()
TO_39 = Judged(ever=True, last=39)
REMOVED = Judged(ever=True, complete=False)
"""There were verdicts, and those that would tell how far are gone."""


@pytest.mark.parametrize(
    ("judged", "committed", "after", "passed_over", "repeated"),
    [
        pytest.param(TO_39, 40, 40, 0, 0, id="where it is"),
        pytest.param(TO_39, 40, 39, 0, 1, id="the last verdict once more"),
        pytest.param(TO_39, 40, 10, 0, 30, id="all verdicts of the log once more"),
        pytest.param(TO_39, 40, 41, 1, 0, id="one is passed over"),
        pytest.param(TO_39, 40, 100, 60, 0, id="all that waits is passed over"),
        pytest.param(TO_39, None, 10, 0, 30, id="the group has lost its offsets, the verdicts are there"),
        pytest.param(TO_39, None, 40, 0, 0, id="behind the last verdict"),
        pytest.param(TO_39, None, 60, 20, 0, id="beyond it"),
        pytest.param(TO_39, 10, 20, 10, 20, id="the offset was moved back before"),
        pytest.param(TO_39, 80, 50, 0, 0, id="what was passed over before is judged at last"),
        pytest.param(NOTHING, 80, 10, 0, 0, id="passed over at the first start, and nothing was judged"),
        pytest.param(NOTHING, None, 60, 50, 0, id="nothing was judged, and the first are passed over"),
        pytest.param(REMOVED, 80, 10, 0, 70, id="the offset alone tells"),
        pytest.param(REMOVED, 80, 80, 0, 0, id="the offset alone tells, and it stays"),
        pytest.param(REMOVED, None, 60, 50, 0, id="nothing tells: a person decides"),
        pytest.param(Judged(ever=True, last=39, complete=False), 80, 60, 0, 20, id="older verdicts are left"),
        pytest.param(Judged(ever=True, last=500), None, 10, 0, 90, id="there are verdicts beyond the end"),
        pytest.param(
            Judged(ever=True, last=500), None, 100, 0, 0, id="there are verdicts beyond the end, from the end"
        ),
    ],
)
def test_a_move_tells_what_is_judged_twice_and_what_never(judged, committed, after, passed_over, repeated):
    """The log goes from offset 10 to 100."""
    told = move_of(Position("guard", "predictions", 3, 10, 100, 100, committed), after, judged)
    assert (told.passed_over, told.repeated) == (passed_over, repeated)


@pytest.mark.parametrize(("service", "what"), [("guard", "approved twice"), ("switch", "count a second time")])
def test_the_refusal_names_the_effect_and_the_first_offset_that_is_free(service, what):
    told = move_of(Position(service, "topic", 3, 0, 100, 100, 40), 10, TO_39).refusal()
    assert told.startswith("topic/3 was worked through up to offset 39: from offset 10 on, up to 30 records")
    assert what in told
    assert told.endswith("Choose offset 40 or a later one; --force does it all the same")
