"""Where a partition goes on: what is committed against what the topic still has."""

import pytest

from holdfast.core.progress import MARKERS, Committed, GoOn, Reason, Removed, where_to_go_on

ID, OTHER = "0HFlVjbJQAqBXJBJNtgNsA", "sTm6cVrLSVaiuVYLLs5b3w"


@pytest.mark.parametrize(
    ("committed", "first", "topic_id", "expected"),
    [
        # Everything that was judged may go, and what follows is there.
        (Committed(100, True, ID), 0, ID, GoOn(100, Reason.COMMITTED)),
        (Committed(100, True, ID), 100, ID, GoOn(100, Reason.COMMITTED)),
        (Committed(0, True, ID), 0, ID, GoOn(0, Reason.COMMITTED)),
        # A position has nothing behind it that may be passed over.
        (Committed(100, True, ID), 101, ID, Removed(100, 100)),
        (Committed(100, True, ID), 5000, ID, Removed(100, 4999)),
        (Committed(100, True, None), 101, None, Removed(100, 100)),
        # "Last record + 1" of an earlier version is followed by markers.
        (Committed(100), 100, ID, GoOn(100, Reason.COMMITTED)),
        (Committed(100), 101, ID, GoOn(101, Reason.MARKERS_REMOVED)),
        (Committed(100), 100 + MARKERS, None, GoOn(100 + MARKERS, Reason.MARKERS_REMOVED)),
        (Committed(100), 101 + MARKERS, ID, Removed(100, 100 + MARKERS)),
        # Another topic of that name begins with its first record, wherever that is.
        (Committed(100, True, OTHER), 0, ID, GoOn(0, Reason.MADE_AGAIN)),
        (Committed(100, True, OTHER), 7, ID, GoOn(7, Reason.MADE_AGAIN)),
        (Committed(100, True, OTHER), 500, ID, GoOn(500, Reason.MADE_AGAIN)),
        # A broker that tells no ids says nothing about it.
        (Committed(100, True, OTHER), 0, None, GoOn(100, Reason.COMMITTED)),
    ],
)
def test_a_partition_goes_on_where_nothing_unseen_is_passed_over(committed, first, topic_id, expected):
    """Committed position, first offset that is there, id of the topic: where to go on, or what is gone."""
    assert where_to_go_on(committed, first, topic_id) == expected


@pytest.mark.parametrize("committed", [Committed(7, True, ID), Committed(7, True, None)])
def test_a_commit_says_of_itself_what_it_is(committed):
    """What is written into the metadata is read back."""
    assert Committed.read(committed.offset, committed.metadata()) == committed


@pytest.mark.parametrize("metadata", [None, "", "{", "x", "[]", '"position"', '{"position": "yes"}', "\x00"])
def test_metadata_of_other_tools_says_nothing(metadata):
    """A commit by Kafka's own tool, or by an earlier version, is an offset and no more."""
    assert Committed.read(7, metadata) == Committed(7)


def test_members_of_a_later_version_are_ignored():
    """The rest of such a commit is read."""
    assert Committed.read(7, f'{{"position": true, "more": [1], "topic_id": "{ID}"}}') == Committed(7, True, ID)
