"""A partition of requests for releases, on topics in memory: what is written for each, and what is remembered."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from core.test_route_signature import PRIVATE, PUBLIC
from holdfast.adapters import releases
from holdfast.adapters.releases import Ledger, ReleaseWork
from holdfast.core.accepted import References
from holdfast.core.command_signature import CommandSigner, CommandVerifier
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicySet, parse_policy
from holdfast.core.record import UnreadableBatch
from holdfast.kafka.refusals import Refusal
from holdfast.kafka.transaction import Write
from holdfast.settings import Settings

POLICY = parse_policy(
    {"model": "pricing", "checks": [{"name": "floor", "kind": "range", "field": "value", "min": 10}]}, "a test"
)


class Follower:
    def __init__(self) -> None:
        self.routes: dict[str, Any] = {}
        self.references = References()

    async def catch_up(self) -> None:
        """Everything is known."""


class Service:
    """What a partition asks of its service."""

    def __init__(self) -> None:
        self.settings, self.follower = Settings(), Follower()
        self.counts = {"audit": 1, "references": 1}
        self.reading = asyncio.Lock()
        self.verifier: CommandVerifier | None = None

    def policies(self) -> PolicySet:
        return PolicySet.of([POLICY])

    def partitions_by_key(self) -> int:
        return 0

    def memory_of(self, partition: int) -> Memory | None:
        return Memory()


class Topics:
    """The topics, and one partition of the requests, which goes on as a worker does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logs: dict[TopicPartition, list[ConsumerRecord]] = {}
        self.work = ReleaseWork(Service(), 0)  # type: ignore[arg-type]
        self.fails: Exception | None = None
        self.reads = 0

        async def pick(
            _: object, tp: TopicPartition, offsets: Sequence[int], *, most_bytes: int
        ) -> dict[int, ConsumerRecord]:
            if self.fails is not None:
                raise self.fails
            return {record.offset: record for record in self.log(tp) if record.offset in offsets}

        async def read_to_end(
            _: object,
            tps: Sequence[TopicPartition],
            take: Callable[[Sequence[ConsumerRecord]], None],
            *,
            start: int = 0,
            **options: Any,
        ) -> dict[TopicPartition, int]:
            self.reads += 1
            for tp in tps:
                if records := self.log(tp)[start:]:
                    take(records)
            return {tp: len(self.log(tp)) for tp in tps}

        monkeypatch.setattr(releases, "pick", pick)
        monkeypatch.setattr(releases, "read_to_end", read_to_end)

    def log(self, tp: TopicPartition) -> list[ConsumerRecord]:
        return self.logs.setdefault(tp, [])

    def append(
        self, topic: str, value: bytes | None, key: bytes | None = b"k", headers: Any = (), later: int = 0
    ) -> ConsumerRecord:
        tp = TopicPartition(topic, 0)
        at = round(datetime.now(UTC).timestamp() * 1000) + later
        record = ConsumerRecord(*tp, len(self.log(tp)), at, 0, key, value, None, -1, -1, tuple(headers))
        self.log(tp).append(record)
        return record

    def block(self, value: float, source: int) -> int:
        """The offset in the blocked topic."""
        event = {"prediction_id": "p", "model": "pricing", "model_version": "v1", "entity_id": "E", "value": value}
        headers = {"verdict": "blocked", "model": "pricing", "model-version": "v1", "source": f"predictions/0/{source}"}
        given = [(f"holdfast-{name}", text.encode()) for name, text in headers.items()]
        return self.append("predictions.blocked", json.dumps(event).encode(), f"E{source}".encode(), given).offset

    def ask(self, command_id: str, *sources: int, **more: Any) -> ConsumerRecord:
        """For releases of what is blocked; the offsets are those of the sources."""
        command = {
            "command_id": command_id,
            "action": "release",
            "model": "pricing",
            "predictions": [{"source": f"predictions/0/{n}", "offset": n} for n in sources],
            "actor": "ann",
            "reason": "a sale",
            **more,
        }
        return self.append("holdfast.releases", json.dumps(command).encode())

    def writes(self, record: ConsumerRecord | UnreadableBatch) -> list[Write]:
        """What the partition would write for it."""
        asyncio.run(self.work.prepare([record]))
        return self.work.process([record])

    def carry_out(self, record: ConsumerRecord | UnreadableBatch) -> dict[str, int]:
        """How many records of each topic were written for it; they stand."""
        writes = self.writes(record)
        counts: dict[str, int] = {}
        for write in writes:
            for _, key, value, headers in write.records:  # type: ignore[misc]
                self.append(write.topic, value, key, headers)
                counts[write.topic] = counts.get(write.topic, 0) + 1
        asyncio.run(self.work.committed({}))
        return counts

    def answers(self) -> list[tuple[str, list[str]]]:
        """By command, in their order: the id, and the answers; its detail where it was refused as a whole."""
        records = [json.loads(r.value) for r in self.log(TopicPartition("holdfast.audit", 0)) if r.key == b"pricing"]
        return [
            (one["command_id"], [a["answer"] for a in one["answers"]] if "answers" in one else [one["detail"]])
            for one in records
            if "source" not in one
        ]


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    return Topics(monkeypatch)


APPROVED, AUDIT, MALFORMED = "predictions.approved", "holdfast.audit", "predictions.malformed"


def test_a_command_is_carried_out_once(topics: Topics) -> None:
    """Also where it comes again to a worker that has restored: the audit names it."""
    for number, value in enumerate((20.0, 5.0)):
        topics.block(value, number)
    assert topics.carry_out(topics.ask("c-1", 0, 1)) == {APPROVED: 1, AUDIT: 2}
    assert topics.carry_out(topics.ask("c-1", 0, 1, force=True)) == {}
    asyncio.run(topics.work.restore())
    assert topics.carry_out(topics.ask("c-1", 0, 1, force=True)) == {}
    assert topics.carry_out(topics.ask("c-2", 0, 1, force=True)) == {APPROVED: 1, AUDIT: 2}
    assert topics.answers() == [("c-1", ["released", "still_fails"]), ("c-2", ["already_released", "released"])]


def test_force_waits_for_a_second_person(topics: Topics) -> None:
    """Also where another worker has answered the first one: the audit names who asked for what. A dry run asks for
    nothing. What passes the policy needs nobody else.
    """
    topics.work._settings = Settings.model_validate({"switch": {"approvals": 2}})
    for number, value in enumerate((20.0, 5.0, 6.0)):
        topics.block(value, number)
    topics.carry_out(topics.ask("c-1", 1, 2, force=True, dry_run=True, actor="bob"))
    assert topics.carry_out(topics.ask("c-2", 0, 1, force=True)) == {APPROVED: 1, AUDIT: 2}
    topics.carry_out(topics.ask("c-3", 1, force=True, actor="Ann "))
    asyncio.run(topics.work.restore())
    topics.carry_out(topics.ask("c-4", 1, force=True, actor="ann"))
    assert topics.carry_out(topics.ask("c-5", 1, 2, force=True, actor="bob")) == {APPROVED: 1, AUDIT: 2}
    waiting, would = "needs_second_person", "would_need_second_person"
    assert [answers for _, answers in topics.answers()] == [
        [would, would],
        ["released", waiting],
        [waiting],
        [waiting],
        ["released", waiting],
    ]
    records = [json.loads(record.value) for record in topics.log(TopicPartition(AUDIT, 0))]
    (refused,) = [one for one in records if one["command_id"] == "c-3"]
    assert refused["outcome"] == "refused"
    assert refused["detail"].endswith("somebody else must ask for the same by force within 30m")
    (forced,) = [one for one in records if one["command_id"] == "c-5" and "source" in one]
    assert forced["actor"] == "bob"
    assert "although it fails floor; ann had asked for it at 20" in forced["detail"]
    # The wish that was left over is bob's.
    topics.carry_out(topics.ask("c-6", 2, force=True, actor="cid"))
    assert topics.answers()[-1] == ("c-6", ["released"])


@pytest.mark.parametrize(("signed", "through"), [(True, "api"), (False, "kafka")])
def test_the_audit_says_how_a_request_came(topics: Topics, signed: bool, through: str) -> None:
    """Of the whole command, of each prediction, and of a refusal."""
    topics.work._releases.verifier = CommandVerifier(PUBLIC)
    topics.block(20.0, 0)
    for asked in (topics.ask("c-1", 0), topics.ask("c-2", 0, actor="Holdfast")):
        topic, value, at = "holdfast.releases", asked.value or b"", asked.timestamp
        header = CommandSigner(PRIVATE).header(topic, value, at)
        topics.carry_out(topics.append(topic, value, headers=[header] if signed else []))
    said = [json.loads(record.value)["through"] for record in topics.log(TopicPartition(AUDIT, 0))]
    assert said == [through] * 3


def test_what_was_not_committed_is_done_again(topics: Topics) -> None:
    """Nothing is remembered of a transaction that failed."""
    topics.block(20.0, 0)
    asked = topics.ask("c-1", 0)
    assert topics.writes(asked)
    asyncio.run(topics.work.restore())
    assert topics.carry_out(asked) == {APPROVED: 1, AUDIT: 2}
    assert topics.answers() == [("c-1", ["released"])]


@pytest.mark.parametrize("lost", ["audit", "approved"])
def test_either_topic_tells_what_was_released_before(topics: Topics, lost: str) -> None:
    """The approved one may be compacted, and a record of the audit unreadable."""
    topics.block(20.0, 0)
    topics.carry_out(topics.ask("c-1", 0))
    topics.log(TopicPartition(AUDIT if lost == "audit" else APPROVED, 0)).clear()
    asyncio.run(topics.work.restore())
    assert APPROVED not in topics.carry_out(topics.ask("c-2", 0, force=True, superseded=True))
    assert topics.answers()[-1] == ("c-2", ["already_released"])


def test_what_is_not_a_request_is_set_aside(topics: Topics) -> None:
    """With the reason, where malformed records are; so is a batch that cannot be read."""
    for value in (b"{", None, b'{"command_id": "c"}'):
        assert topics.carry_out(topics.append("holdfast.releases", value)) == {MALFORMED: 1}
    assert topics.carry_out(UnreadableBatch(3, 5, 0, "it is broken")) == {MALFORMED: 1}
    reasons = [dict(record.headers)["holdfast-error"] for record in topics.log(TopicPartition(MALFORMED, 0))]
    assert all(b"not a request for releases: " in reason for reason in reasons[:3])
    assert b"cannot be read: it is broken" in reasons[3]


def test_a_command_that_cannot_be_judged_is_refused_and_the_next_one_is_answered(topics: Topics) -> None:
    """Whatever is wrong with what it names: it is answered in words, and stops nothing. An outage is waited for."""
    topics.block(20.0, 0)
    topics.fails = ValueError("broken")
    assert topics.carry_out(topics.ask("c-1", 0)) == {AUDIT: 1}
    topics.fails = releases.TooManyBytesError("too much")
    assert topics.carry_out(topics.ask("c-2", 0)) == {AUDIT: 1}
    topics.fails = releases.KafkaUnavailable("away")
    with pytest.raises(releases.KafkaUnavailable):
        topics.writes(topics.ask("c-3", 0))
    topics.fails = TimeoutError()
    assert topics.carry_out(topics.ask("c-5", 0)) == {AUDIT: 1}
    topics.fails = None
    assert topics.carry_out(topics.ask("c-4", 0, actor="Holdfast ")) == {AUDIT: 1}
    told = dict(topics.answers())
    assert "what it is judged by cannot be read: " in told["c-1"][0]
    assert "broken" in told["c-1"][0]
    assert told["c-2"] == ["too much"]
    assert "names automatic decisions" in told["c-4"][0]
    assert "could not be read within" in told["c-5"][0]


def test_what_a_topic_does_not_take_is_not_released(topics: Topics) -> None:
    """The others of the command are; where the audit refuses its record, the whole command is answered in short."""
    for number in range(2):
        topics.block(20.0, number)
    asked = topics.ask("c-1", 0, 1)
    topics.writes(asked)
    assert topics.work.refused([Refusal(APPROVED, 1, "it is larger than max.message.bytes there")])
    asyncio.run(topics.work.restore())
    assert topics.carry_out(asked) == {APPROVED: 1, AUDIT: 2}
    topics.block(20.0, 2)
    asked = topics.ask("c-2", 2)
    topics.writes(asked)
    assert topics.work.refused([Refusal(AUDIT, 1, "too large")])
    asyncio.run(topics.work.restore())
    topics.writes(asked)
    assert not topics.work.refused([Refusal(AUDIT, 0, "too large")]), "nothing shorter can be written"
    assert topics.carry_out(asked) == {AUDIT: 1}
    told = dict(topics.answers())
    assert told["c-1"] == ["released", "not_written"]
    assert "does not take its records: too large" in told["c-2"][0]


def test_a_command_that_fails_three_times_is_answered(topics: Topics) -> None:
    """And one that cannot even be read is set aside."""
    topics.block(20.0, 0)
    asked = topics.ask("c-1", 0)
    topics.writes(asked)
    (write,) = topics.work.poison(asked, ValueError("x"))
    assert "could not be processed in three attempts" in json.loads(write.records[0][2])["detail"]  # type: ignore[index,misc]
    broken = topics.append("holdfast.releases", b"{")
    topics.writes(broken)
    assert topics.work.poison(broken, ValueError("x"))[0].topic == MALFORMED


def test_an_answer_of_any_size_can_be_written(topics: Topics) -> None:
    """Of many findings no more is told than fits: which checks they are."""
    event = {"prediction_id": "p", "model": "pricing", "model_version": "v1", "entity_id": "E"}
    for number in range(500):
        outputs = {f"{'x' * 150}{n}": "NaN" for n in range(12)}
        given = {"model": "pricing", "model-version": "v1", "source": f"predictions/0/{number}"}
        headers = [(f"holdfast-{name}", text.encode()) for name, text in given.items()]
        value = json.dumps({**event, "value": 5.0, "outputs": outputs}).encode().replace(b'"NaN"', b"NaN")
        topics.append("predictions.blocked", value, b"%d" % number, headers)
    assert topics.carry_out(topics.ask("c-1", *range(500))) == {AUDIT: 1}
    (record,) = topics.log(TopicPartition(AUDIT, 0))
    assert len(record.value) < 1_000_000
    assert topics.answers() == [("c-1", ["still_fails"] * 500)]


def test_the_next_command_reads_only_what_came_since(topics: Topics) -> None:
    """The audit once, and the approved topic on from where it was read; all of it again for another worker."""
    for number in range(3):
        topics.block(20.0, number)
    topics.carry_out(topics.ask("c-1", 0))
    assert topics.reads == 2
    topics.carry_out(topics.ask("c-2", 1))
    assert topics.reads == 3
    asyncio.run(topics.work.restore())
    topics.carry_out(topics.ask("c-3", 2))
    assert topics.reads == 5


def test_many_keys_are_not_kept(topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only those that the command names are looked at, and what overtakes them is found."""
    monkeypatch.setattr(releases, "MOST_KEYS", 3)
    topics.block(20.0, 0)
    for number in range(10):
        topics.append(APPROVED, b"{}", b"E%d" % number, [("holdfast-model", b"pricing")], later=1000)
    topics.block(20.0, 11)
    topics.carry_out(topics.ask("c-1", 0))
    topics.carry_out(topics.append("holdfast.releases", topics.ask("c-2", 11).value.replace(b"11}", b"1}")))
    assert [found for _, found in topics.answers()] == [["superseded"], ["released"]]


@pytest.mark.parametrize(
    ("value", "released", "answered", "unclear"),
    [
        ({"action": "release", "outcome": "applied", "source": "predictions/0/1"}, {"predictions/0/1"}, set(), set()),
        ({"action": "retry", "outcome": "applied", "source": "predictions/0/1"}, {"predictions/0/1"}, set(), set()),
        ({"action": "release", "outcome": "applied", "source": "predictions/1/1"}, set(), set(), set()),
        ({"action": "release", "outcome": "refused", "source": "predictions/0/1"}, set(), set(), set()),
        ({"action": "hold", "outcome": "applied", "reason": '"release"', "command_id": "c"}, set(), set(), set()),
        ({"action": "release", "outcome": "refused", "command_id": "c"}, set(), {"c"}, set()),
        (b'{"action": "release", "source": "predictions/0/1"', set(), set(), {"predictions/0/1"}),
        (b'{"action": "release", "source": "predictions/1/1"', set(), set(), set()),
        (b'{"action": "release", "outcome": 7}', set(), set(), set()),
        (b'\xff"release"', set(), set(), set()),
        (b"", set(), set(), set()),
    ],
)
def test_what_an_audit_record_says(
    value: dict[str, str] | bytes, released: set[str], answered: set[str], unclear: set[str]
) -> None:
    ledger = Ledger("predictions/0/")
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    ledger.take([ConsumerRecord("holdfast.audit", 0, 0, 0, 0, b"k", raw, None, -1, -1, ())])
    assert (ledger.released, ledger.answered, ledger.unclear) == (released, answered, unclear)
