"""The checker on histories that are right, and on such as are broken in one place: each kind must be found."""

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.written import Rec, write_verdicts
from holdfast.core.condemned import is_condemned
from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import remember
from holdfast.core.memory import Memory
from holdfast.core.policy import Policy, PolicySet, parse_policy
from holdfast.verify import ledger
from holdfast.verify.ledger import VERDICTS, Frontier, Kind, Ledger, RouteHistory, Rules, Stream, identity
from holdfast_schemas import MAX_VALUE_BYTES, Header, Route, RouteState, Tally

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
SECOND = 1000


def policy(**checks: Any) -> Policy:
    found = [
        {"name": "bounds", "kind": "range", "field": "value", "min": 10, "max": 1000},
        {"name": "cheap", "kind": "range", "field": "value", "min": 50, "mode": "shadow"},
        {"name": "jump", "kind": "max_change", "field": "value", "down": 0.5, "up": 3.0},
        {"name": "fresh", "kind": "freshness", "max_age": "1h", "unknown": "pass"},
    ]
    return parse_policy({"model": "pricing", "checks": found, **checks}, "a test")


POLICY = policy()
WITHOUT_JUMP = policy(checks=[check.model_dump() for check in POLICY.checks if check.name != "jump"])


@dataclasses.dataclass
class History:
    """What a correct guard makes of `predictions`, in batches; the tests then break it."""

    predictions: list[Rec] = dataclasses.field(default_factory=list)
    out: dict[Stream, list[Rec]] = dataclasses.field(default_factory=lambda: {stream: [] for stream in VERDICTS})
    tallies: list[tuple[Tally, int]] = dataclasses.field(default_factory=list)
    routes: list[tuple[Route, int]] = dataclasses.field(default_factory=list)
    rules: Rules = dataclasses.field(default_factory=lambda: Rules("predictions"))
    committed: int = 0
    policies: Sequence[Policy] = ()
    audited: list[int] = dataclasses.field(default_factory=list)
    """Offsets of predictions that the audit names as released."""
    complete_from_ms: int | None = None

    def write(self, stream: Stream, record: Rec, headers: Sequence[tuple[str, bytes]]) -> None:
        self.out[stream].append(dataclasses.replace(record, offset=2 * len(self.out[stream]), headers=tuple(headers)))

    def renumber(self) -> None:
        for stream in VERDICTS:
            self.out[stream] = [
                dataclasses.replace(record, offset=2 * place) for place, record in enumerate(self.out[stream])
            ]

    def violations(
        self, *, start: int = 0, chunk: int = 3, late: float = 100.0, from_latest: bool = False
    ) -> list[Kind]:
        """The kinds found, each as often as it was; everything arrives in pieces of `chunk` records.

        `from_latest`: checking began where the topic ended then.
        """
        routes = RouteHistory()
        for route, at in self.routes:
            routes.add(route.model, route, at)
        policies = {policy.id: PolicySet.of([policy]) for policy in (POLICY, WITHOUT_JUMP, *self.policies)}
        self.ledger = Ledger(
            0,
            start,
            older=(0 if from_latest else None) if start == 0 else self.out[Stream.APPROVED][-1].offset + 2,
            rules=self.rules,
            routes=routes,
            policy=policies.get,
        )
        self.ledger.releases.complete_from_ms = self.complete_from_ms
        for offset in self.audited:
            self.ledger.releases.add_audited(offset)
        streams: dict[Stream, list[Rec]] = {
            Stream.PREDICTIONS: [r for r in self.predictions if r.offset >= start],
            **self.out,
        }
        ends = {stream: (records[-1].offset + 2 if records else 0) for stream, records in self.out.items()}
        positions = dict.fromkeys(Stream, 0)
        found = []
        for round_, committed in enumerate([self.committed // 2, self.committed, self.committed]):
            self.ledger.expect(Frontier(committed, ends))
            for entry, at in self.tallies if round_ == 0 else ():
                self.ledger.add_tally(entry, at)
            progress = True
            while progress:
                progress = False
                for stream in Stream:
                    if not self.ledger.wants(stream, positions[stream]):
                        continue
                    # More than was asked for, as from Kafka.
                    piece = [r for r in streams[stream] if positions[stream] <= r.offset][:chunk]
                    self.ledger.add(stream, piece, now=0.0)
                    read = piece[-1].offset + 1 if piece else 0
                    end = 0 if len(piece) == chunk else self.ledger.target(stream)
                    positions[stream] = max(read, end, positions[stream])
                    progress = True
                found += self.ledger.advance(positions, tallies_read=True)
            found += self.ledger.finish(positions, stale=late if round_ == 2 else -1.0)
        self.details = [violation.describe() for violation in found]
        return [violation.kind for violation in found]


def prediction(offset: int, entity: str, value: Any, version: str = "v1", **more: Any) -> Rec:
    event = {"prediction_id": f"p{offset}", "model": "pricing", "model_version": version, "entity_id": entity}
    return Rec(offset, NOW_MS + offset, entity.encode(), json.dumps({**event, "value": value, **more}).encode())


def history(
    predictions: Sequence[Rec],
    *,
    batch: int = 4,
    at: Callable[[int], datetime] | None = None,
    by: Callable[[int], Policy] = lambda _: POLICY,
    restarts: int | None = None,
    restores: int = 10,
    partitions: int = 0,
    route: Route | None = None,
) -> History:
    """Judge as the guard does, with the same core, and write down what it writes; `at` and `by` are of each batch.

    `partitions` is how many there are, if keys tell; `route` is what the guard knows of routes.

    Before the batch `restarts` the guard starts again, and reads the
    last `restores` offsets back.
    """
    made = History(list(predictions))
    memory, policies = Memory(), PolicySet.of([])
    for number, first in enumerate(range(0, len(predictions), batch)):
        now = at(number) if at else NOW + timedelta(seconds=number)
        if policies.policies.get("pricing") is not by(number):
            memory, policies = Memory(), PolicySet.of([by(number)])
            for _, before in decode_by_model(
                policies, [r.value for r in made.out[Stream.APPROVED] if not is_condemned(r.headers)]
            )[0]:
                remember(memory, before.columns, by(number))
        if number == restarts:
            approved = made.out[Stream.APPROVED]
            memory, tail = Memory(), [r for r in approved if r.offset >= 2 * len(approved) - restores]
            for _, before in decode_by_model(policies, [r.value for r in tail if not is_condemned(r.headers)])[0]:
                remember(memory, before.columns, by(number))
        written = write_verdicts(
            predictions[first : first + batch], policies, memory, now, partitions=partitions, route=route
        )
        written.learn()
        for stream, records in written.out.items():
            for record in records:
                made.write(stream, record, record.headers)
        made.tallies += [(tally, int(now.timestamp() * 1000)) for tally in written.tallies]
    made.committed, made.policies = predictions[-1].offset + 1, [by(0)]
    return made


@pytest.fixture
def right() -> History:
    """Twenty predictions of two versions and five entities: most approved, some blocked, one malformed."""
    records = [prediction(i, f"E{i % 5}", 100 + i, f"v{1 + i % 2}") for i in range(20)]
    for i, value in ((3, 5.0), (9, 5000.0), (12, 40.0), (17, 900.0)):
        records[i] = prediction(i, f"E{i % 5}", value, f"v{1 + i % 2}")
    records[6] = dataclasses.replace(records[6], value=b"{")
    return history(records)


def test_a_right_history_has_no_violation(right: History) -> None:
    """Whatever the sizes of the pieces in which it is read."""
    assert {stream: len(records) for stream, records in right.out.items()} == {
        Stream.APPROVED: 15,
        Stream.BLOCKED: 4,
        Stream.MALFORMED: 1,
    }
    for chunk in (1, 2, 3, 7, 100):
        assert right.violations(chunk=chunk) == [], right.details
        assert (right.ledger.checked, right.ledger.settled(), right.ledger.unjudged) == (20, 20, 0)


@pytest.mark.parametrize("stream", list(VERDICTS))
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_prediction_without_a_verdict_is_lost(right: History, stream: Stream, place: str) -> None:
    """Wherever it would have gone; its tally, where it has one, does not add up either."""
    del right.out[stream][0 if place == "first" else -1]
    found = right.violations()
    assert found.count(Kind.LOST) == 1, right.details
    assert set(found) <= {Kind.LOST, Kind.TALLY}


def test_everything_lost_is_lost(right: History) -> None:
    """An offset that was moved past unchecked predictions."""
    right.out, right.tallies = {stream: [] for stream in VERDICTS}, []
    assert right.violations() == [Kind.LOST] * 20


def test_what_was_there_before_the_first_start_is_not_lost() -> None:
    """Unless checking began at the first record; and a record that nobody checked is found in front of the others."""
    before = [prediction(i, f"E{i}", 100) for i in range(5)]
    made = history([prediction(5 + i, f"E{i % 3}", 100) for i in range(9)])
    made.predictions = [*before, *made.predictions]
    assert made.violations(from_latest=True) == [], made.details
    assert made.violations() == [Kind.LOST] * 5
    forged = dataclasses.replace(made.out[Stream.APPROVED][0], value=b'{"forged": 1}')
    made.out[Stream.APPROVED].insert(0, forged)
    made.renumber()
    assert made.violations(from_latest=True) == [Kind.UNCHECKED], made.details


def test_what_is_not_committed_is_not_lost(right: History) -> None:
    """The guard has not come there yet."""
    right.predictions.append(prediction(20, "E0", 120))
    assert right.violations() == []


@pytest.mark.parametrize("stream", list(VERDICTS))
def test_a_second_verdict_is_a_repetition(right: History, stream: Stream) -> None:
    """At once or later; with at-least-once delivery it is allowed."""
    right.out[stream].append(right.out[stream][0])
    right.renumber()
    assert right.violations() == [Kind.REPEATED], right.details
    right.rules = dataclasses.replace(right.rules, exactly_once=False)
    assert right.violations() == [], right.details


def test_approved_and_blocked_is_a_repetition(right: History) -> None:
    """A prediction has one verdict: which of the two is the second cannot be told."""
    record = right.predictions[0]
    named = [*right.out[Stream.APPROVED][0].headers, (Header.SOURCE.value, b"predictions/0/0")]
    right.write(Stream.BLOCKED, record, named)
    assert Kind.UNCHECKED in (found := right.violations()) or Kind.REPEATED in found


def test_a_repeated_batch_is_found_whole() -> None:
    """A transaction that was committed twice: each record, and its tally."""
    made = history([prediction(i, f"E{i}", 100) for i in range(4)])
    made.out[Stream.APPROVED] *= 2
    made.tallies *= 2
    made.renumber()
    assert sorted(made.violations()) == [Kind.REPEATED] * 4 + [Kind.TALLY]


def test_verdicts_of_one_key_in_the_wrong_order_are_found(right: History) -> None:
    """E0's at 0 and 5 change places."""
    approved = right.out[Stream.APPROVED]
    places = [i for i, record in enumerate(approved) if record.key == b"E0"][:2]
    approved[places[0]], approved[places[1]] = approved[places[1]], approved[places[0]]
    right.renumber()
    assert Kind.OUT_OF_ORDER in right.violations()


def test_other_keys_may_change_places(right: History) -> None:
    """Nobody is promised an order between keys."""
    approved = right.out[Stream.APPROVED]
    approved[0], approved[1] = approved[1], approved[0]
    right.renumber()
    assert right.violations() == []


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("holdfast-verdict", b"approved")],
        [("holdfast-verdict", b"blocked"), ("holdfast-policy", POLICY.id.encode())],
        "as a guard's",
    ],
)
def test_a_record_that_no_prediction_stands_behind_was_not_checked(right: History, headers: Any) -> None:
    """Someone else than a guard wrote to the approved topic, with our headers or without."""
    if headers == "as a guard's":
        headers = right.out[Stream.APPROVED][0].headers
    right.write(Stream.APPROVED, prediction(500, "E0", 130), headers)
    assert right.violations() == [Kind.UNCHECKED], right.details


@pytest.mark.parametrize("source", [b"", b"nonsense", b"predictions/1/3", b"predictions/0/500", b"other/0/1"])
def test_a_blocked_record_that_names_no_prediction_is_found(right: History, source: bytes) -> None:
    """Of another partition, of another topic, or of the future."""
    right.write(Stream.BLOCKED, prediction(500, "E0", 130), [(Header.SOURCE.value, source)])
    assert right.violations() == [Kind.UNCHECKED], right.details


@pytest.mark.parametrize(
    "header",
    [
        ("holdfast-findings", b"{"),
        ("holdfast-findings", b'{"check": "bounds"}'),
        ("holdfast-findings", b'[{"check": "bounds"}]'),
        ("holdfast-findings", b"\xff"),
        ("holdfast-findings", None),
        ("holdfast-verdict", None),
        ("holdfast-policy", None),
        ("trace", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [Stream.APPROVED, Stream.BLOCKED])
def test_headers_that_no_guard_writes_stop_nothing(right: History, stream: Stream, header: Any) -> None:
    """Whatever wrote them: the checker goes on, and says so."""
    first = right.out[stream][0]
    others = tuple(one for one in first.headers if one[0] != header[0])
    right.out[stream][0] = dataclasses.replace(first, headers=(*others, header))
    kinds = right.violations()
    if header[0] == "holdfast-findings" or (header[0] == "holdfast-verdict" and stream is Stream.APPROVED):
        assert Kind.UNCHECKED in kinds
    assert right.ledger.checked >= len(right.predictions) - 2


def test_of_a_value_that_no_topic_takes_the_beginning_is_kept() -> None:
    """It is the same prediction all the same; another beginning is not."""
    long = Rec(0, NOW_MS, b"k", b"x" * (MAX_VALUE_BYTES + 100))
    cut = dataclasses.replace(long, value=long.value[:MAX_VALUE_BYTES])
    assert identity(long, 0) == identity(cut, 0) != identity(dataclasses.replace(cut, value=b"y" * MAX_VALUE_BYTES), 0)


def test_a_malformed_control_record_is_not_the_guards(right: History) -> None:
    """The switch puts those aside in the same topic."""
    record = Rec(0, NOW_MS, b"pricing", b"?")
    right.write(Stream.MALFORMED, record, [(Header.SOURCE.value, b"holdfast.control/0/3")])
    assert right.violations() == []


@pytest.mark.parametrize("stream", [Stream.BLOCKED, Stream.MALFORMED])
def test_altered_bytes_are_found(right: History, stream: Stream) -> None:
    """What was blocked could be released later."""
    right.out[stream][0] = dataclasses.replace(right.out[stream][0], value=b'{"other": 1}')
    assert right.violations() == [Kind.ALTERED]


def approve(made: History, offset: int, tallies: bool = True) -> None:
    """Let what was blocked at `offset` be approved, with a tally that agrees."""
    source = f"predictions/0/{offset}".encode()
    blocked = next(r for r in made.out[Stream.BLOCKED] if (Header.SOURCE.value, source) in r.headers)
    made.out[Stream.BLOCKED].remove(blocked)
    headers = [(n, b"approved" if n == Header.VERDICT else v) for n, v in blocked.headers if n != Header.FINDINGS]
    verdict = dataclasses.replace(blocked, headers=[h for h in headers if h[0] != Header.SOURCE])
    order = {record.value: record.offset for record in made.predictions}
    made.out[Stream.APPROVED] = sorted([*made.out[Stream.APPROVED], verdict], key=lambda r: order[r.value])
    made.renumber()
    gone = json.loads(dict(blocked.headers)[Header.FINDINGS])
    for place, (one, at) in enumerate(made.tallies):
        version = dict(blocked.headers)[Header.MODEL_VERSION].decode()
        if one.model_version == version and one.first_offset <= offset <= one.last_offset:
            by_check, shadow = dict(one.blocked_by_check), dict(one.shadow_by_check)
            for finding in gone:
                counts = by_check if finding["enforced"] else shadow
                counts[finding["check"]] -= 1
            changed = one.model_copy(
                update={
                    "approved": one.approved + 1,
                    "blocked": one.blocked - 1,
                    "blocked_by_check": {k: v for k, v in by_check.items() if v},
                    "shadow_by_check": {k: v for k, v in shadow.items() if v},
                }
            )
            made.tallies[place] = (changed, at)


@pytest.mark.parametrize(("offset", "check"), [(3, "bounds"), (9, "bounds"), (12, "jump"), (17, "jump")])
def test_what_the_policy_blocks_was_wrongly_approved(right: History, offset: int, check: str) -> None:
    """Bounds, and a jump against the last approved value of the same entity, which the checker follows itself."""
    approve(right, offset)
    found = right.violations()
    assert Kind.WRONGLY_APPROVED in found, right.details
    assert any(f"/{offset}, pricing" in detail and check in detail for detail in right.details)


def test_a_stale_prediction_is_judged_at_the_time_of_its_batch() -> None:
    """The tally says when; today everything would be stale."""
    stale = (NOW - timedelta(hours=2)).isoformat()
    made = history(
        [prediction(0, "E0", 100, predicted_at=NOW.isoformat()), prediction(1, "E1", 100, predicted_at=stale)]
    )
    assert made.violations() == []
    approve(made, 1)
    assert made.violations() == [Kind.WRONGLY_APPROVED]


@pytest.mark.parametrize("value", [b'{"model": "pricing"}', b"{", b"[]", b""])
def test_what_cannot_be_decoded_was_wrongly_approved(right: History, value: bytes) -> None:
    """An approved record whose bytes no guard can have judged."""
    headers = right.out[Stream.APPROVED][0].headers
    right.predictions[0] = dataclasses.replace(right.predictions[0], value=value)
    right.out[Stream.APPROVED][0] = dataclasses.replace(right.out[Stream.APPROVED][0], value=value, headers=headers)
    assert right.violations() == [Kind.WRONGLY_APPROVED], right.details


def test_a_model_without_a_policy_was_wrongly_approved() -> None:
    """Unless the configuration says approve."""
    made = history([prediction(0, "E0", 100)])
    headers = [(n, b"none" if n == Header.POLICY else v) for n, v in made.out[Stream.APPROVED][0].headers]
    made.out[Stream.APPROVED][0] = dataclasses.replace(made.out[Stream.APPROVED][0], headers=headers)
    made.tallies = []
    assert made.violations() == [Kind.WRONGLY_APPROVED]
    made.rules = dataclasses.replace(made.rules, approve_without_policy=True)
    assert made.violations() == []


def test_an_unknown_policy_is_counted_as_not_judged(right: History) -> None:
    """It may have been replaced since: no violation."""
    for stream in (Stream.APPROVED, Stream.BLOCKED):
        right.out[stream] = [
            dataclasses.replace(r, headers=[(n, b"pricing@0" if n == Header.POLICY else v) for n, v in r.headers])
            for r in right.out[stream]
        ]
    assert right.violations() == []
    assert right.ledger.unjudged == 15


@pytest.mark.parametrize(
    ("fenced_at", "judged_at", "expected"),
    [(0, 10, []), (0, 10.001, [Kind.AFTER_FENCE]), (0, 3600, [Kind.AFTER_FENCE]), (5, 10, []), (11, 10, [])],
)
def test_approved_after_the_fence(fenced_at: float, judged_at: float, expected: list[Kind]) -> None:
    """Ten seconds after the fence was written a guard must know of it; the other version is not meant."""
    when = NOW + timedelta(seconds=judged_at)
    made = history([prediction(0, "E0", 100, "v1"), prediction(1, "E1", 100, "v2")], at=lambda _: when)
    made.routes = [(route(fenced=("v1",)), NOW_MS + int(fenced_at * SECOND))]
    assert made.violations() == expected


def test_both_clocks_must_say_that_it_was_after_the_fence() -> None:
    """The guard's may have jumped ahead, or the broker may have been frozen with the batch on its way."""
    made = history([prediction(0, "E0", 100)], at=lambda _: NOW + timedelta(hours=1))
    made.routes = [(route(fenced=("v1",)), NOW_MS)]
    assert made.violations() == [Kind.AFTER_FENCE]
    made.tallies = [(entry, NOW_MS + SECOND) for entry, _ in made.tallies]
    assert made.violations() == []


def test_a_held_model_approves_nothing() -> None:
    """Whatever the version."""
    made = history([prediction(0, "E0", 100)], at=lambda _: NOW + timedelta(minutes=1))
    made.routes = [(route(state=RouteState.HELD), NOW_MS)]
    assert made.violations() == [Kind.AFTER_FENCE]


def test_after_the_fence_ends_with_the_fence() -> None:
    """Unfenced and fenced again: the time counts from the second fence."""
    made = history([prediction(0, "E0", 100)], at=lambda _: NOW + timedelta(minutes=1))
    made.routes = [
        (route(fenced=("v1",)), NOW_MS),
        (route(), NOW_MS + 20 * SECOND),
        (route(fenced=("v1",)), NOW_MS + 55 * SECOND),
    ]
    assert made.violations() == []


def route(state: RouteState = RouteState.AUTO, fenced: tuple[str, ...] = ()) -> Route:
    return Route(model="pricing", epoch=1, state=state, reason="a test", actor="a test", since=NOW, fenced=fenced)


@pytest.mark.parametrize(
    "change",
    [
        {"seen": 3},
        {"approved": 0},
        {"blocked": 7},
        {"blocked_by_check": {"bounds": 9}},
        {"shadow_by_check": {"cheap": 1}},
        "missing",
        "twice",
    ],
    ids=str,
)
def test_a_tally_that_does_not_add_up_is_found(right: History, change: Any) -> None:
    """What the breaker counts is what the verdicts say."""
    if change == "missing":
        del right.tallies[2]
    elif change == "twice":
        right.tallies.insert(2, right.tallies[2])
    else:
        one, at = right.tallies[2]
        right.tallies[2] = (one.model_copy(update=change), at)
    found = right.violations()
    assert found, change
    assert set(found) == {Kind.TALLY}, right.details


def test_a_tally_of_nothing_is_found() -> None:
    """A batch that was aborted, whose tally is there all the same."""
    made = history([prediction(i, f"E{i}", 100) for i in range(8)])
    made.out[Stream.APPROVED] = made.out[Stream.APPROVED][:4]
    made.predictions = made.predictions[:4]
    assert made.violations() == [Kind.TALLY]


def release(right: History, **changes: str) -> int:
    """Write the first blocked record into the approved topic as released; the offset of its prediction."""
    blocked = right.out[Stream.BLOCKED][0]
    changed = {"holdfast-verdict": "released", **{f"holdfast-{name}": text for name, text in changes.items()}}
    right.write(Stream.APPROVED, blocked, [(n, changed[n].encode() if n in changed else v) for n, v in blocked.headers])
    return int(dict(blocked.headers)[Header.SOURCE].rpartition(b"/")[2])


def test_an_audited_release_is_legitimate(right: History) -> None:
    """It is approved a second time in a person's name, and a later jump against it is not held against anyone."""
    right.audited.append(release(right))
    assert right.violations() == [], right.details
    assert right.ledger.released == 1


def test_a_released_record_need_not_wait_for_what_it_names(right: History) -> None:
    """The checker may see it before it has read that prediction."""
    release(right, source="predictions/0/1000")
    right.audited.append(1000)
    assert right.violations() == [], right.details
    assert right.ledger.released == 1


@pytest.mark.parametrize(
    ("source", "audited", "kind"),
    [
        (None, False, Kind.UNCHECKED),
        ("predictions/0/100000", False, Kind.UNCHECKED),
        ("predictions/1/0", True, Kind.UNCHECKED),
        ("other/0/0", True, Kind.UNCHECKED),
        ("predictions/0", True, Kind.UNCHECKED),
    ],
    ids=["not audited", "never predicted", "of another partition", "of another topic", "without an offset"],
)
def test_a_forged_release_is_found(right: History, source: str | None, audited: bool, kind: Kind) -> None:
    """Whoever can write the approved topic cannot write the audit."""
    offset = release(right, **({"source": source} if source else {}))
    right.audited += [offset] * audited
    assert right.violations() == [kind], right.details
    assert "is called released" in right.details[0]


def test_another_value_in_the_name_of_an_audited_release_is_found(right: History) -> None:
    """Beside the record that the guard released, and by itself."""
    right.audited.append(release(right))
    forged = right.out[Stream.APPROVED][-1]
    right.write(Stream.APPROVED, dataclasses.replace(forged, value=b"{}"), forged.headers)
    assert sorted(right.violations()) == [Kind.ALTERED, Kind.REPEATED], right.details
    del right.out[Stream.APPROVED][-2]
    right.renumber()
    assert right.violations() == [Kind.ALTERED], right.details


def test_a_release_is_not_released_again(right: History) -> None:
    """The record that the guard wrote, a second time."""
    right.audited.append(release(right))
    release(right)
    assert right.violations() == [Kind.REPEATED], right.details


def test_what_the_audit_may_have_lost_is_no_violation(right: History) -> None:
    """It is counted as not compared; what is younger than the audit's first record must be named there."""
    release(right)
    for from_ms, expected in ((2 * NOW_MS, []), (0, [Kind.UNCHECKED])):
        right.complete_from_ms = from_ms
        assert right.violations() == expected, right.details
        assert right.ledger.uncompared == (not expected)


def test_a_reference_that_a_guard_may_not_have_had_is_not_held_against_it(right: History) -> None:
    """Further back than what a guard reads when it takes over a partition."""
    approve(right, 17)
    right.rules = dataclasses.replace(right.rules, restore_records=3)
    assert right.violations() == [], right.details
    right.rules = dataclasses.replace(right.rules, restore_records=100, max_entities=2)
    assert right.violations() == [], right.details


def test_what_was_approved_while_no_check_looked_is_known_to_the_guard() -> None:
    """A check is taken out and put back: meanwhile nothing is learnt here, and the guard reads it back."""
    values = (100, 110, 500, 510, 1000, 990)
    made = history(
        [prediction(i, "E", value) for i, value in enumerate(values)],
        batch=2,
        by=lambda number: WITHOUT_JUMP if number == 1 else POLICY,
    )
    assert len(made.out[Stream.APPROVED]) == len(values)
    assert made.violations() == [], made.details


def test_a_start_in_the_middle_leaves_out_what_came_before(right: History) -> None:
    """Approved records of earlier predictions fill the memory, and are no violation."""
    assert right.violations(start=8) == [], right.details
    assert right.ledger.checked == 12
    approve(right, 17)
    assert Kind.WRONGLY_APPROVED in right.violations(start=8), right.details


@pytest.mark.parametrize("start", range(1, 21))
def test_a_start_anywhere_finds_nothing_in_a_right_history(right: History, start: int) -> None:
    """In the middle of a batch, ahead of where the guard stands, or at the end, where nothing is left to match."""
    assert right.violations(start=start) == [], right.details
    assert right.ledger.checked == 20 - start


def test_predictions_with_the_same_bytes_are_told_apart_by_number() -> None:
    """A producer that sends one twice gets two verdicts, and one of them lost is lost."""
    twin = prediction(0, "E0", 100)
    made = history([dataclasses.replace(twin, offset=i) for i in range(6)], batch=2)
    assert made.violations() == []
    del made.out[Stream.APPROVED][3]
    made.renumber()
    found = made.violations()
    assert (found.count(Kind.LOST), Kind.TALLY in found) == (1, True)


values = st.sampled_from([5.0, 20.0, 60.0, 100.0, 250.0, 900.0, 2000.0])
events = st.lists(
    st.tuples(st.sampled_from("ABC"), values, st.sampled_from(["v1", "v2"]), st.booleans()), min_size=1, max_size=30
)


@given(events, st.integers(1, 9), st.integers(1, 40), st.data())
@settings(max_examples=150, deadline=None)
def test_any_right_history_is_right_and_any_record_taken_out_of_it_is_missed(
    drawn: list[tuple[str, float, str, bool]], batch: int, chunk: int, data: st.DataObject
) -> None:
    """However predictions, batches and reads fall; twins included."""
    records = [
        prediction(0 if twin else i, entity, value, version) for i, (entity, value, version, twin) in enumerate(drawn)
    ]
    records = [dataclasses.replace(record, offset=i) for i, record in enumerate(records)]
    made = history(records, batch=batch)
    assert made.violations(chunk=chunk) == [], made.details
    stream = data.draw(st.sampled_from([stream for stream in VERDICTS if made.out[stream]]))
    del made.out[stream][data.draw(st.integers(0, len(made.out[stream]) - 1))]
    made.renumber()
    assert Kind.LOST in made.violations(chunk=chunk), made.details


def test_a_start_in_the_middle_of_much_traffic_finds_the_first_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much was approved before, it is not waited for: predictions would pile up, and then count as lost."""
    for name, value in (("LIMIT", 20), ("FIRST_AMONG", 10), ("MISSING_LIMIT", 100)):
        monkeypatch.setattr(ledger, name, value)
    made = history([prediction(n, f"E{n % 7}", 100.0 if n % 5 else 5.0) for n in range(2000)], batch=50)
    assert made.violations(start=1000, chunk=20) == [], made.details
    assert made.ledger.checked > 900


@pytest.mark.parametrize("newest_first", [True, False])
def test_tallies_and_routes_of_a_topic_that_has_grown_come_in_any_order(newest_first: bool) -> None:
    predictions = [prediction(n, f"E{n % 3}", 100.0) for n in range(40)]
    made = history(predictions)
    made.tallies.sort(key=lambda entry: entry[0].first_offset, reverse=newest_first)
    fenced, free = (
        Route(model="pricing", epoch=n, state=RouteState.AUTO, reason="r", actor="a", since=NOW, fenced=fenced)
        for n, fenced in ((1, ("v1",)), (2, ()))
    )
    made.routes = [(fenced, NOW_MS - 900 * SECOND), (free, NOW_MS - 600 * SECOND)]
    if newest_first:
        made.routes.reverse()
    assert made.violations() == [], made.details
    made.routes = [(free, NOW_MS - 900 * SECOND), (fenced, NOW_MS - 600 * SECOND)]
    if newest_first:
        made.routes.reverse()
    assert set(made.violations()) == {Kind.AFTER_FENCE}


def test_a_route_that_was_removed_forbids_nothing() -> None:
    routes = RouteHistory()
    held = Route(model="pricing", epoch=1, state=RouteState.HELD, reason="r", actor="a", since=NOW)
    routes.add("pricing", held, NOW_MS)
    assert routes.forbidden_since("pricing", "v1", NOW_MS + 1) == NOW_MS
    routes.add("pricing", None, NOW_MS + 10)
    assert routes.forbidden_since("pricing", "v1", NOW_MS + 20) is None


ODD = policy(checks=[{"name": "odd", "kind": "outlier", "min_values": 10, "window": 20}])


def shifted(before: int, after: int, segment: str = "a") -> list[Rec]:
    """Values about 100, and then some about 200."""
    chance = random.Random(1)
    values = [100 + chance.random() for _ in range(before)] + [200 + chance.random() for _ in range(after)]
    return [prediction(n, f"E{n}", value, segment=segment) for n, value in enumerate(values)]


@pytest.mark.parametrize("restores", [10, 1000])
def test_recent_values_that_a_guard_may_not_have_read_back_are_no_reference(restores: int) -> None:
    made = history(shifted(100, 5), batch=5, by=lambda _: ODD, restarts=20, restores=restores)
    made.rules = dataclasses.replace(made.rules, restore_records=restores)
    assert made.violations() == [], made.details
    assert [len(records) for records in made.out.values()] == ([105, 0, 0] if restores == 10 else [100, 5, 0])


def test_recent_values_that_a_guard_has_are_a_reference() -> None:
    made = history(shifted(100, 5), batch=5, by=lambda _: ODD)
    for record in made.out.pop(Stream.BLOCKED):
        made.out[Stream.APPROVED].append(
            dataclasses.replace(record, headers=made.out[Stream.APPROVED][0].headers, offset=record.offset + 1000)
        )
    made.out[Stream.BLOCKED] = []
    assert Kind.WRONGLY_APPROVED in made.violations()


def test_a_segment_of_which_the_ledger_has_fewer_values_than_the_guard_tells_nothing() -> None:
    """It began later, and a rare segment's window reaches back before that."""
    rare = [dataclasses.replace(record, offset=n) for n, record in enumerate(shifted(12, 0, "rare"))]
    made = history([*rare, *(prediction(n, f"E{n}", 150.0, segment="rare") for n in range(12, 30))], by=lambda _: ODD)
    assert Kind.WRONGLY_APPROVED not in made.violations(start=8), made.details


def test_a_field_that_an_entitys_later_records_lack_may_be_unknown_to_a_guard() -> None:
    jump = policy(checks=[{"name": "jump", "kind": "max_change", "field": "features.a", "up": 2.0}])
    records = [
        prediction(0, "E", 1, features={"a": 100}),
        *(prediction(n, "E", 1) for n in range(1, 40)),
        prediction(40, "E", 1, features={"a": 1000}),
    ]
    made = history(records, batch=1, by=lambda _: jump, restarts=40)
    made.rules = dataclasses.replace(made.rules, restore_records=10)
    assert len(made.out[Stream.APPROVED]) == 41
    assert made.violations() == [], made.details


def test_what_could_not_be_decoded_adds_up_too() -> None:
    """A malformed record whose version is to blame is in that version's tally, and a tally without it is found."""
    records = [prediction(i, f"E{i % 5}", 100 + i, f"v{1 + i % 2}") for i in range(20)]
    for i, value in ((3, None), (9, "12.5"), (10, "NaN")):
        records[i] = prediction(i, f"E{i % 5}", value, f"v{1 + i % 2}")
    made = history(records)
    assert len(made.out[Stream.MALFORMED]) == 3
    for chunk in (1, 3, 100):
        assert made.violations(chunk=chunk) == [], made.details
    place = next(i for i, (one, _) in enumerate(made.tallies) if one.blocked)
    told, at = made.tallies[place]
    less = {"seen": told.seen - 1, "blocked": 0, "failed": 0, "blocked_by_check": {}}
    made.tallies[place] = told.model_copy(update=less), at
    assert made.violations() == [Kind.TALLY], made.details


def promoting(*versions: str) -> Route:
    return Route(
        model="pricing",
        version=versions[-1],
        epoch=1,
        state=RouteState.AUTO,
        reason="r",
        actor="a",
        since=NOW,
        promoted=versions,
    )


def of_two_versions() -> list[Rec]:
    """One entity, of which v2 says less and less, each within what the last one allows."""
    values = [(1000, "v1"), (700, "v2"), (500, "v2"), (900, "v1"), (400, "v2"), (800, "v1"), (600, "v2"), (700, "v1")]
    return [prediction(i, "E", value, version) for i, (value, version) in enumerate(values)]


@pytest.mark.parametrize("versions", ["promoted", "routed", "any"])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_checker_knows_which_versions_were_promoted(versions: str, known: bool, batch: int) -> None:
    """What a guard makes of a version that was not is right, and no reference for either of them."""
    route, rules = promoting("v1"), policy(versions=versions)
    made = history(of_two_versions(), batch=batch, by=lambda _: rules, route=route)
    made.routes = [(route, NOW_MS - 100_000)] if known else []
    assert made.violations() == [], made.details
    of_v2 = [r for r in made.out[Stream.APPROVED] if json.loads(r.value or b"")["model_version"] == "v2"]
    assert len(of_v2) == (3 if versions == "any" else 0)


@pytest.mark.parametrize(
    ("promoted_at", "found"),
    [(None, 4), (60, 4), (5, 0), (-60, 0)],
)
def test_what_is_approved_of_a_version_that_was_not_promoted_is_found(promoted_at: int | None, found: int) -> None:
    """Unless it was promoted before, or so soon afterwards that two clocks may differ about it; seconds."""
    rules = policy(versions="promoted", checks=[])
    made = history(of_two_versions(), batch=8, by=lambda _: rules)
    made.routes = [(promoting("v1"), NOW_MS - 100_000)]
    if promoted_at is not None:
        made.routes.append((promoting("v1", "v2"), NOW_MS + promoted_at * SECOND))
    assert made.violations() == [Kind.WRONGLY_APPROVED] * found, made.details


def test_a_finding_does_not_make_an_output_of_another_version_right() -> None:
    """Where the policy blocks it, a record that says otherwise was not written by a guard."""
    lenient, strict = policy(versions="any"), policy(versions="promoted")
    made = history(of_two_versions(), batch=8, by=lambda _: lenient, route=promoting("v1"))
    for stream, records in made.out.items():
        made.out[stream] = [
            dataclasses.replace(
                r, headers=tuple((n, strict.id.encode() if n == Header.POLICY.value else v) for n, v in r.headers)
            )
            for r in records
        ]
    made.policies = [strict]
    assert Kind.WRONGLY_APPROVED in made.violations()
