"""When a version trips: limits to the count, and what cannot make it trip."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

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


class AnyArrivals(RuleBasedStateMachine):
    """The window against plain lists of tallies, one for each tenth of it."""

    @initialize()
    def begin(self):
        self.window, self.now, self.tenths = Window(), NOW, []

    @rule(
        seen=st.integers(1, 60),
        share=st.sampled_from([0, 0, 0.05, 0.06, 1]),
        partition=st.integers(0, 2),
        first=st.integers(0, 6),
        critical=st.sampled_from([False] * 9 + [True]),
    )
    def arrive(self, seen, share, partition, first, critical):
        failed = int(seen * share)
        entities = [f"e{i}" for i in range(first, first + min(failed, 4))]
        one = tally(seen, failed, partition=partition, entities=entities, critical=failed if critical else 0)
        self.forget()
        if not self.tenths or self.now - self.tenths[-1][0] >= POLICY.window / BUCKETS:
            self.tenths.append((self.now, []))
        self.tenths[-1][1].append(one)
        self.window = self.window.add(one, self.now, POLICY)

    @rule(ms=st.sampled_from([1, 100, 2999, 3000, 10_000, 29_999, 30_000, 60_000]))
    def wait(self, ms):
        self.now += timedelta(milliseconds=ms)
        self.forget()

    def forget(self):
        self.tenths = [tenth for tenth in self.tenths if self.now - tenth[0] < POLICY.window]

    @property
    def tallies(self):
        return [one for _, several in self.tenths for one in several]

    @invariant()
    def nothing_is_lost_and_nothing_kept(self):
        window = self.window.at(self.now, POLICY)
        for count in ("seen", "blocked", "failed"):
            assert getattr(window, count) == sum(getattr(one, count) for one in self.tallies)
        assert window.blocked_by_check.get("floor", 0) == sum(one.failed for one in self.tallies)
        assert len(window.buckets) <= BUCKETS + 1

    @invariant()
    def it_trips_on_enough_evidence_and_on_nothing_else(self):
        failing = [one for one in self.tallies if one.failed]
        seen, failed = sum(one.seen for one in self.tallies), sum(one.failed for one in failing)
        enough = (
            seen >= POLICY.min_seen
            and 20 * failed > seen  # max_blocked_ratio is 0.05
            and len({entity for one in failing for entity in one.entities}) >= POLICY.min_entities
            and len({one.partition for one in failing})
            >= min(POLICY.min_partitions, len({one.partition for one in self.tallies}))
        )
        critical = any(one.critical for one in self.tallies)
        assert (self.window.at(self.now, POLICY).trips(POLICY) is not None) is (enough or critical)

    @invariant()
    def it_survives_the_topic(self):
        assert Window.model_validate_json(self.window.model_dump_json(exclude_defaults=True)) == self.window


AnyArrivals.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyArrivals = AnyArrivals.TestCase
