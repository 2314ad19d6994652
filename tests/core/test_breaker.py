"""When a version trips: limits to the count, and what cannot make it trip."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.breaker import BUCKETS, BreakerPolicy, Window
from holdfast_schemas import Tally

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
POLICY = BreakerPolicy(min_seen=50, min_entities=5, min_partitions=2, max_blocked_ratio=0.05)


def tally(seen=10, failed=0, *, partition=0, entities=None, critical=0, version="v2", at=NOW):
    """A guard's report; `failed` predictions of as many entities unless they are named."""
    entities = [f"e{i}" for i in range(min(failed, 32))] if entities is None else entities
    return Tally(
        model="pricing",
        model_version=version,
        policy="pricing@000000000000",
        at=at,
        worker="w",
        partition=partition,
        first_offset=0,
        last_offset=seen,
        seen=seen,
        approved=seen - failed,
        blocked=failed,
        failed=failed,
        critical=critical,
        blocked_by_check={"floor": failed} if failed else {},
        entities=tuple(entities),
    )


def window(*tallies, policy=POLICY, now=NOW):
    result = Window()
    for one in tallies:
        result = result.add(one, now, policy)
    return result


def two_partitions(seen, failed, **more):
    """`failed` of `seen`, spread over two partitions."""
    return (
        tally(seen // 2, failed // 2, **more),
        tally(
            seen - seen // 2,
            failed - failed // 2,
            partition=1,
            entities=[f"f{i}" for i in range(min(failed, 32))],
            **more,
        ),
    )


@pytest.mark.parametrize(
    ("case", "tallies", "trips"),
    [
        ("nothing was seen", (), False),
        ("all is well", two_partitions(1000, 0), False),
        ("one fewer than min_seen", two_partitions(49, 49), False),
        ("exactly min_seen", two_partitions(50, 50), True),
        ("exactly at the ratio", two_partitions(200, 10), False),
        ("one above the ratio", two_partitions(200, 11), True),
        ("a ratio that has no exact binary form, exactly met", two_partitions(300, 15), False),
        ("one entity retried fifty times", (tally(50, 50, entities=["e"]),), False),
        (
            "one entity on two partitions retried fifty times",
            (tally(50, 50, entities=["e"]), tally(50, 50, entities=["e"], partition=1)),
            False,
        ),
        (
            "four entities, one too few",
            (tally(50, 50, entities="abc"), tally(50, 50, entities="cd", partition=1)),
            False,
        ),
        ("five entities", (tally(50, 50, entities="abc"), tally(50, 50, entities="cde", partition=1)), True),
        ("one sick partition of two", (tally(100, 100), tally(100, 0, partition=1)), False),
        ("the only partition there is", (tally(100, 100),), True),
        ("one critical failure", (tally(1, 1, critical=1),), True),
    ],
)
def test_the_breaker_trips_on_enough_evidence_only(case, tallies, trips):
    """Too few to tell is an answer; `max_blocked_ratio` is exceeded, not met; witnesses are counted, not repeats."""
    assert (window(*tallies).trips(POLICY) is not None) is trips, case


def test_what_is_older_than_the_window_does_not_count():
    """Failures leave the window after its length, within one bucket."""
    full = window(*two_partitions(100, 100))
    assert full.at(NOW + POLICY.window - timedelta(milliseconds=1), POLICY).trips(POLICY)
    assert not full.at(NOW + POLICY.window, POLICY).trips(POLICY)


def test_the_clocks_of_the_guards_do_not_move_the_window():
    """A tally counts when it arrives, whatever time a guard with a wrong clock wrote into it."""
    for skew in (timedelta(hours=-1), timedelta(hours=1)):
        assert window(*two_partitions(100, 100, at=NOW + skew)).trips(POLICY)


def test_a_clock_that_goes_back_neither_loses_nor_keeps_failures_for_ever():
    """Buckets from the future count as of now, and leave one window later."""
    ahead = window(*two_partitions(100, 100), now=NOW + timedelta(hours=1))
    back = ahead.add(tally(1), NOW, POLICY)
    assert back.trips(POLICY)
    assert not back.at(NOW + POLICY.window, POLICY).trips(POLICY)


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 100), st.data()), max_size=60))
def test_the_window_counts_what_arrived_within_it(arrivals):
    """Against a plain list: never less than the last (window - one bucket), never more than the window."""
    now, kept, windowed = NOW, [], Window()
    for step_ms, seen, data in arrivals:
        now += timedelta(milliseconds=step_ms)
        failed = data.draw(st.integers(0, seen))
        kept.append((now, seen, failed))
        windowed = windowed.add(tally(seen, failed), now, POLICY)
        at_least = [a for a in kept if now - a[0] < POLICY.window * (BUCKETS - 1) / BUCKETS]
        at_most = [a for a in kept if now - a[0] < POLICY.window]
        assert sum(a[1] for a in at_least) <= windowed.seen <= sum(a[1] for a in at_most)
        assert sum(a[2] for a in at_least) <= windowed.failed <= sum(a[2] for a in at_most)
        assert len(windowed.buckets) <= BUCKETS + 1
