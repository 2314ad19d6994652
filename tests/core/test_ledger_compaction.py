"""The checker on topics that compaction has thinned out: what is gone is not what never was."""

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.test_ledger import History, history, prediction
from core.written import Rec
from holdfast.verify.ledger import Kind, Rules, Stream
from holdfast_schemas import Header

BOTH = frozenset({Stream.PREDICTIONS, Stream.APPROVED})


def made(values: Sequence[float], keys: int = 5, batch: int = 4) -> History:
    """Predictions of so many entities, one after the other; most are approved."""
    return history([prediction(i, f"E{i % keys}", value) for i, value in enumerate(values)], batch=batch)


def superseded(records: Sequence[Rec]) -> list[Rec]:
    """What compaction may remove: of each key all but the last."""
    last = {record.key: record.offset for record in records}
    return [record for record in records if record.offset < last[record.key]]


def compact(one: History, stream: Stream, chosen: Sequence[bool]) -> int:
    """Remove what is chosen of what may go; how many that is."""
    records = one.predictions if stream is Stream.PREDICTIONS else one.out[stream]
    gone = [record for record, goes in zip(superseded(records), chosen, strict=False) if goes]
    kept = [record for record in records if record not in gone]
    if stream is Stream.PREDICTIONS:
        one.predictions = kept
    else:
        one.out[stream] = kept
    return len(gone)


VALUES = st.lists(st.sampled_from([100.0, 110.0, 150.0, 5.0, 400.0, 40.0]), min_size=8, max_size=40)


@settings(max_examples=60)
@given(VALUES, st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 9))
def test_compacted_predictions_give_no_alarm(values: list[float], chosen: list[bool], chunk: int) -> None:
    """Whichever of them compaction has removed, and however the rest is read."""
    one = made(values)
    one.rules = Rules("predictions", compacted=frozenset({Stream.PREDICTIONS}))
    gone = compact(one, Stream.PREDICTIONS, chosen)
    assert one.violations(chunk=chunk) == [], one.details
    assert one.ledger.removed == gone
    assert one.ledger.checked == len(values) - gone


@settings(max_examples=60)
@given(VALUES, st.lists(st.booleans(), min_size=40, max_size=40), st.lists(st.booleans(), min_size=40, max_size=40))
def test_compacted_approved_topics_give_no_alarm(values: list[float], first: list[bool], second: list[bool]) -> None:
    """Alone, and together with predictions that are compacted too."""
    one = made(values)
    one.rules = Rules("predictions", compacted=BOTH)
    compact(one, Stream.APPROVED, first)
    compact(one, Stream.PREDICTIONS, second)
    assert one.violations() == [], one.details


def test_without_compaction_the_same_is_an_alarm() -> None:
    """A prediction that is gone from a topic that is not compacted never was."""
    one = made([100.0] * 20)
    compact(one, Stream.PREDICTIONS, [True] * 3)
    assert Kind.UNCHECKED in one.violations()


@pytest.mark.parametrize("compacted", [frozenset({Stream.PREDICTIONS}), frozenset({Stream.APPROVED}), BOTH])
def test_what_is_wrong_in_what_is_left_is_found(compacted: frozenset[Stream]) -> None:
    """The last output of a key has no verdict; a blocked one was altered; one is there twice."""
    rules = Rules("predictions", compacted=compacted)
    one = made([100.0] * 19 + [5.0])
    one.rules = rules
    lost = one.out[Stream.APPROVED].pop()
    one.renumber()
    assert [kind for kind in one.violations() if kind is not Kind.TALLY] == [Kind.LOST], (lost, one.details)

    one = made([100.0] * 19 + [5.0])
    one.rules = rules
    one.out[Stream.BLOCKED][0] = dataclasses.replace(one.out[Stream.BLOCKED][0], value=b'{"other": 1}')
    assert one.violations() == [Kind.ALTERED]

    one = made([100.0] * 19 + [5.0])
    one.rules = rules
    one.out[Stream.BLOCKED].append(one.out[Stream.BLOCKED][0])
    one.renumber()
    assert one.violations() == [Kind.REPEATED]


def test_a_deletion_that_was_passed_on_is_a_verdict() -> None:
    """It has no tally; one with a value was not written by a guard."""
    one = made([100.0] * 8)
    tombstone = dataclasses.replace(prediction(8, "E1", 1), value=None)
    one.predictions.append(tombstone)
    one.committed = 9
    headers = [(Header.VERDICT.value, b"deleted"), (Header.SOURCE.value, b"predictions/0/8")]
    one.write(Stream.APPROVED, tombstone, headers)
    assert one.violations() == []
    assert one.ledger.checked == 9

    one.out[Stream.APPROVED][-1] = dataclasses.replace(one.out[Stream.APPROVED][-1], value=b"{}")
    assert sorted(one.violations()) == [Kind.LOST, Kind.UNCHECKED]
