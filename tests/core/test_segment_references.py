"""Which blocked values of a segment become references, and what a person is told of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.segment_references import BlockedOutput, OfSegment, choose
from holdfast_schemas import Finding, Severity


def finding(check="jump", last=100.0, severity=Severity.ERROR, enforced=True):
    limit = {"last": last, "min": 50.0} if last is not None else "a last approved value to compare with"
    return Finding(check=check, severity=severity, enforced=enforced, field="value", seen=1.0, limit=limit)


def output(value=40.0, *, at=1000, offset=0, version="v2", findings=None):
    return BlockedOutput(version, value, at, (at, 0, offset), (finding(),) if findings is None else findings)


def chosen(*outputs, approved=None, fenced=()):
    """Of one entity."""
    found = OfSegment("cameras")
    for one in outputs:
        found.take_blocked("cameras", "a", one)
    if approved is not None:
        found.take_approved("a", approved)
    return choose(found, "value", ["jump", "jump2"], fenced)


@pytest.mark.parametrize(
    ("outputs", "value", "last"),
    [
        pytest.param([output()], 40.0, 100.0, id="one output"),
        pytest.param([output(40.0), output(41.0, at=2000)], 41.0, 100.0, id="the latest of two"),
        pytest.param([output(41.0, at=2000), output(40.0)], 41.0, 100.0, id="in whatever order they are read"),
        pytest.param([output(40.0), output(41.0, offset=1)], 41.0, 100.0, id="of one time, by the offset"),
        pytest.param([output(findings=[finding("held", None), finding()])], 40.0, 100.0, id="the model was held too"),
        pytest.param([output(findings=[finding("fenced", None), finding()])], 40.0, 100.0, id="unfenced since"),
        pytest.param([output(findings=[finding("jump2", None)])], 40.0, None, id="it has no last value"),
        pytest.param(
            [output(findings=[finding(), finding("hint", severity=Severity.WARNING, enforced=False)])],
            *(40.0, 100.0),
            id="what only warns says nothing against it",
        ),
    ],
)
def test_the_latest_blocked_value_becomes_the_reference(outputs, value, last):
    (change,) = chosen(*outputs).changes
    assert (change.entity, change.value, change.last) == ("a", value, last)


@pytest.mark.parametrize(
    ("outputs", "more", "reason"),
    [
        pytest.param([output()], {"fenced": ["v2"]}, "of the fenced version v2", id="a fenced version"),
        pytest.param([output()], {"approved": 1001}, "with a newer output that was approved", id="approved since"),
        pytest.param([output(findings=[finding(), finding("floor")])], {}, "fails floor too", id="another check"),
        pytest.param(
            [output(), output(1.0, at=2000, findings=[finding(), finding("floor")])],
            {},
            "fails floor too",
            id="the latest fails another check, and an earlier one does not count",
        ),
        pytest.param(
            [output(findings=[finding(), finding("floor", enforced=False)])], {}, "fails floor too", id="one in shadow"
        ),
        pytest.param([output(findings=[finding("held", None)])], {}, "that no max_change check", id="only held"),
        pytest.param([output(math.nan)], {}, "without a number there", id="no number"),
    ],
)
def test_what_something_else_speaks_against_is_left_out(outputs, more, reason):
    found = chosen(*outputs, **more)
    assert not found.changes
    ((told, count),) = found.left_out.items()
    assert reason in told
    assert count == 1
    assert found.nothing().startswith("No blocked value of the segment cameras can be accepted. Left out: 1 entity ")


def test_an_earlier_approved_output_is_what_it_was_held_against():
    """One of the same time too: outputs of one millisecond have no order across topics."""
    assert chosen(output(at=1000), approved=1000).changes
    assert chosen(output(at=1000), approved=1).changes


def test_other_segments_are_not_touched_and_are_named():
    found = OfSegment("cameras")
    found.take_blocked("lenses", "b", output())
    found.take_blocked(None, "c", output())
    assert (found.blocked, found.others) == ({}, {"lenses"})


def test_a_person_is_told_how_many_entities_change_and_how_far():
    found = OfSegment("cameras")
    for entity, value, last in (("a", 40.0, 100.0), ("b", 50.0, 100.0), ("c", 300.0, 100.0), ("d", 7.0, None)):
        found.take_blocked("cameras", entity, output(value, findings=[finding(last=last)]))
    found.take_blocked("cameras", "e", output(1.0, findings=[finding(), finding("floor")]))
    assert choose(found, "value", ["jump"], ()).in_words() == (
        "The next value of 4 entities of the segment cameras is held against the latest one that was blocked: "
        "0.4 to 3 times the last approved one, 0.5 in the middle; 1 without a last approved one. "
        "Farthest: c, from 100 to 300. Left out: 1 entity whose latest output fails floor too."
    )


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.floats(1, 1e6)), max_size=30), st.randoms())
def test_the_order_of_reading_changes_nothing(rows, random):
    """Each partition is read by itself, and fetches come in any order."""
    outputs = [(entity, output(value, at=at, offset=n)) for n, (entity, at, value) in enumerate(rows)]

    def read(some):
        found = OfSegment("cameras")
        for entity, one in some:
            found.take_blocked("cameras", entity, one)
        return choose(found, "value", ["jump"], ())

    shuffled = random.sample(outputs, len(outputs))
    assert read(outputs) == read(shuffled)
