"""Which partitions of predictions get verdicts, by how many each topic has."""

import pytest

from holdfast.kafka.counterparts import Counterparts, Held

ROLES = ("predictions", "approved", "blocked", "malformed")


def found(*counts):
    return Counterparts(
        {role: f"our.{role}" for role in ROLES}, {**dict(zip(ROLES, counts, strict=True)), "control": 1}
    )


@pytest.mark.parametrize(
    ("counts", "judged", "held"),
    [
        pytest.param((3, 3, 3, 3), 3, [], id="equal numbers"),
        pytest.param((3, 5, 4, 3), 3, [], id="the topics of verdicts were grown first"),
        pytest.param((3, 2, 2, 2), 2, [2], id="predictions alone were grown"),
        pytest.param((6, 6, 6, 4), 4, [4, 5], id="one topic was forgotten"),
    ],
)
def test_a_partition_is_judged_where_every_topic_of_verdicts_has_it(counts, judged, held):
    assert (found(*counts).judged, [*found(*counts).held]) == (judged, held)


def test_the_sentence_names_the_topics_that_are_short_of_this_partition():
    """Not those that are short of another one only."""
    said = str(Held(found(6, 6, 5, 4), 4))
    assert said.startswith(
        "our.predictions/4 is held: our.predictions has 6 partitions, and fewer are in our.malformed (4)"
    )
    assert said.endswith("Add the partitions, and it goes on by itself: holdfast topics create --fix")
