"""What the checker holds of large records: a bounded number of bytes, whatever it has to wait for."""

import dataclasses
import gc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.test_ledger import History, history, prediction
from core.written import Rec
from holdfast.core.policy import PolicySet
from holdfast.verify import ledger
from holdfast.verify.ledger import VERDICTS, Frontier, Kind, Ledger, RouteHistory, Rules, Stream

KIB = 1024
HELD = 64 * KIB
LARGEST = 16 * KIB


def bytes_held(one: Ledger) -> int:
    """Bytes of all byte strings that a ledger holds."""
    seen, left, total = set[int](), [one], 0
    while left:
        found = left.pop()
        if id(found) in seen or isinstance(found, type) or callable(found):
            continue
        seen.add(id(found))
        if isinstance(found, bytes):
            total += len(found)
        else:
            left += gc.get_referents(found)
    return total


class Reading:
    """Gives a ledger what it wants, a record at a time, and tallies only when they are needed, as the auditor does."""

    def __init__(self, made: History, *, held_bytes: int = HELD) -> None:
        self.made, self.peak, self.found = made, 0, list[str]()
        policies = {policy.id: PolicySet.of([policy]) for policy in made.policies}
        rules = dataclasses.replace(made.rules, held_bytes=held_bytes)
        self.ledger = Ledger(0, 0, older=None, rules=rules, routes=RouteHistory(), policy=policies.get)
        self.streams: dict[Stream, Sequence[Rec]] = {Stream.PREDICTIONS: made.predictions, **made.out}
        self.ends = {stream: records[-1].offset + 1 if records else 0 for stream, records in made.out.items()}
        self.tallies = list(made.tallies)
        self.positions, self.places = dict.fromkeys(Stream, 0), dict.fromkeys(Stream, 0)

    def run(self, *, tallies_last: bool = False) -> "Reading":
        made, one = self.made, self.ledger
        one.expect(Frontier(made.committed, self.ends))
        tallies = self.tallies
        while True:
            self.found += [str(found.kind) for found in one.advance(self.positions, tallies_read=not tallies)]
            self.peak = max(self.peak, bytes_held(one))
            wanted = [stream for stream in Stream if one.wants(stream, self.positions[stream])]
            for stream in wanted:
                self._read(stream)
            if tallies and (not wanted or (one.starved and not tallies_last)):
                one.add_tally(*tallies.pop(0))
            elif not wanted:
                break
        self.found += [str(found.kind) for found in one.finish(self.positions, stale=1.0)]
        return self

    def _read(self, stream: Stream) -> None:
        records, place = self.streams[stream], self.places[stream]
        if place < len(records):
            self.ledger.add(stream, records[place : place + 1], now=0.0)
            self.places[stream] += 1
        last = place + 1 >= len(records)
        self.positions[stream] = self.ledger.target(stream) if last else records[place].offset + 1


def large(offset: int, value: float, size: int, keys: int = 5) -> Rec:
    return prediction(offset, f"E{offset % keys}", value, ballast="x" * size)


APPROVED, BLOCKED = 100.0, 5.0


@pytest.mark.parametrize("tallies_last", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [APPROVED] * 60,
        [BLOCKED] * 60,
        [APPROVED, BLOCKED] * 30,
        [BLOCKED] * 30 + [APPROVED] * 30,
        [APPROVED] * 30 + [BLOCKED] * 30,
    ],
)
def test_large_records_are_held_up_to_a_bound(values: list[float], tallies_last: bool) -> None:
    """Of approved and blocked ones, in any order, and however long the tallies are in coming; all of it is compared."""
    made = history([large(i, value, LARGEST) for i, value in enumerate(values)], batch=20)
    one = Reading(made).run(tallies_last=tallies_last)
    assert one.found == []
    assert one.ledger.checked == len(values)
    # One more of each stream than fits, what is judged again together, and what a tally says.
    assert one.peak < HELD * 1.5 + 5 * LARGEST


@settings(max_examples=60)
@given(
    records=st.lists(
        st.tuples(st.sampled_from([APPROVED, 150.0, 400.0, BLOCKED]), st.integers(0, LARGEST)), min_size=1, max_size=60
    ),
    batch=st.integers(1, 30),
    held_bytes=st.sampled_from([1, 4 * KIB, HELD]),
    tallies_last=st.booleans(),
)
def test_any_bound_compares_everything_and_raises_no_alarm(
    records: list[tuple[float, int]], batch: int, held_bytes: int, tallies_last: bool
) -> None:
    """A small bound makes the checker read less at a time, and lets it overlook nothing."""
    made = history([large(i, value, size) for i, (value, size) in enumerate(records)], batch=batch)
    one = Reading(made, held_bytes=held_bytes).run(tallies_last=tallies_last)
    assert one.found == []
    assert (one.ledger.checked, one.ledger.unjudged, one.ledger.uncompared) == (len(records), 0, 0)


@pytest.mark.parametrize("held_bytes", [1, HELD])
@pytest.mark.parametrize("stream", [Stream.APPROVED, Stream.BLOCKED])
def test_what_is_wrong_is_found_at_any_bound(stream: Stream, held_bytes: int) -> None:
    """A verdict that is missing, and one that the policy does not give."""
    made = history([large(i, BLOCKED if i % 2 else APPROVED, LARGEST, 40) for i in range(40)], batch=20)
    if stream is Stream.BLOCKED:
        del made.out[stream][7]
        assert set(Reading(made, held_bytes=held_bytes).run().found) == {Kind.LOST, Kind.TALLY}
        return
    forged = dataclasses.replace(large(20, 2000.0, LARGEST, 40), offset=made.out[stream][10].offset)
    made.predictions[20] = dataclasses.replace(forged, offset=20)
    made.out[stream][10] = dataclasses.replace(forged, headers=made.out[stream][10].headers)
    assert Reading(made, held_bytes=held_bytes).run().found == [Kind.WRONGLY_APPROVED]


def test_a_producers_own_headers_and_a_blocked_value_are_not_held() -> None:
    """Nothing is compared with them once the record has been read."""
    made = history([large(i, BLOCKED, LARGEST) for i in range(20)], batch=20)
    theirs = [("trace", b"t" * LARGEST)]
    for stream in VERDICTS:
        made.out[stream] = [dataclasses.replace(r, headers=(*theirs, *r.headers)) for r in made.out[stream]]
    one = Reading(made)
    one.ledger.add(Stream.BLOCKED, made.out[Stream.BLOCKED], now=0.0)
    assert bytes_held(one.ledger) < 20 * KIB


@pytest.mark.parametrize("held_bytes", [1, 1000, HELD])
def test_what_comes_behind_a_lost_prediction_and_many_blocked_ones_is_no_forgery(
    held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict whose prediction cannot be looked for is passed over and counted, because the memory is full."""
    monkeypatch.setattr(ledger, "LIMIT", 3)
    made = history([large(i, BLOCKED if 0 < i < 40 else APPROVED, LARGEST, 50) for i in range(50)], batch=10)
    del made.out[Stream.APPROVED][0]
    one = Reading(made, held_bytes=held_bytes)
    for _ in range(30):
        one.run()
    assert sorted(one.found) == [Kind.LOST, *[Kind.TALLY] * (one.ledger.uncompared == 0)]
    assert one.ledger.settled() == 50
    assert (one.ledger.uncompared > 0) == (held_bytes < HELD)


def test_where_too_many_wait_on_a_compacted_topic_it_says_so_and_raises_no_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the last verdict of each key is left, far behind the predictions that can be held without one."""
    monkeypatch.setattr(ledger, "LIMIT", 3)
    monkeypatch.setattr(ledger, "MISSING_LIMIT", 10)
    made = history([prediction(i, f"E{i % 8}", APPROVED) for i in range(80)], batch=4)
    made.rules = Rules("predictions", compacted=frozenset({Stream.APPROVED}))
    made.out[Stream.APPROVED] = made.out[Stream.APPROVED][-8:]
    one = Reading(made)
    for _ in range(10):
        one.run()
    assert one.found == []
    assert one.ledger.uncompared > 0
    assert one.ledger.settled() == 80
