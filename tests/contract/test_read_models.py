"""What readers of the topics hold in memory: bounded, and none of it lost to records that are not ours."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import Kafka
from holdfast.adapters import decisions
from holdfast.adapters.decisions import is_numerous, read_decisions
from holdfast.adapters.policies import known_models
from holdfast.api.read_model import Board
from holdfast.guard import RouteFollower
from holdfast.kafka.reading import KeyOrder, read_latest
from holdfast.settings import KafkaSettings, TopicNames, load_settings
from holdfast.switch import Mirror
from holdfast_schemas import AuditRecord, Outcome, ReleaseAnswer, Route, RouteState

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def record(
    value: bytes | None, key: bytes | None, *, topic: str = "t", partition: int = 0, offset: int = 0, at: int = 0
) -> ConsumerRecord:
    return ConsumerRecord(topic, partition, offset, at, 0, key, value, None, 0, 0, ())


def audit(number: int, action: str) -> bytes:
    return AuditRecord(
        audit_id=f"{action}-{number}",
        at=NOW + timedelta(seconds=number),
        model="pricing",
        actor="ann",
        action=action,
        outcome=Outcome.APPLIED,
        reason="because",
        detail="done",
        command_id=f"c-{number}" if action != "release" else None,
        epoch=1,
    ).to_json()


def test_a_big_release_does_not_push_older_decisions_out() -> None:
    """Releases hold half of the room at most; of both the latest are kept, and nothing of the rest."""
    board, topics = Board(TopicNames(), keep_incidents=100, keep_audit=100), TopicNames()

    def take(*values: bytes) -> None:
        board.take([record(value, b"pricing", topic=topics.audit) for value in values])

    take(*(audit(number, "promote") for number in range(40)))
    take(*(audit(number, "release") for number in range(5000)))
    assert [key for key in board.audit if key.startswith("promote")] == [f"promote-{number}" for number in range(40)]
    assert list(board.audit)[-1] == "release-4999"
    assert len(board.audit) == 100
    take(*(audit(number, "promote") for number in range(40, 140)))
    kept = [key for key in board.audit if key.startswith("promote")]
    assert len(board.audit) == 100
    assert kept == [f"promote-{number}" for number in range(140 - len(kept), 140)]
    assert len(kept) >= 50
    assert set(board.changed) == {f"audit/{key}" for key in board.audit}
    assert len(board.outcomes) == len(kept)


def test_the_answer_to_a_release_is_kept_without_its_predictions() -> None:
    """Its detail counts them."""
    board, topics = Board(TopicNames(), keep_incidents=100, keep_audit=100), TopicNames()
    whole = AuditRecord.model_validate_json(audit(1, "release"))
    answers = tuple(ReleaseAnswer(source=f"predictions/0/{number}", answer="released") for number in range(500))
    answered = whole.model_copy(update={"answers": answers, "command_id": "c-1"})
    board.take([record(answered.to_json(), b"pricing", topic=topics.audit)])
    assert board.audit[whole.audit_id] == board.outcomes["c-1"] == answered.model_copy(update={"answers": None})


HISTORIES = st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=12)
"""Runs of decisions and of released predictions, and how long each is."""


def written(runs: list[tuple[bool, int]]) -> list[bytes]:
    actions = [action for released, count in runs for action in ["release" if released else "promote"] * count]
    return [audit(number, action) for number, action in enumerate(actions)]


def shown(*values: bytes, keep: int = 100) -> list[str]:
    """The decisions that the read model holds after these audit records."""
    board, topics = Board(TopicNames(), keep_incidents=100, keep_audit=keep), TopicNames()
    for value in values:
        board.take([record(value, b"pricing", topic=topics.audit)])
    return [key for key in board.audit if not key.startswith("release")]


@settings(max_examples=50)
@given(HISTORIES)
def test_the_same_decisions_are_held_before_and_after_a_restart(runs: list[tuple[bool, int]]) -> None:
    """After one, the latest decisions and the latest released predictions are read, and no others."""
    values = written(runs)
    decisions = [value for value in values if not is_numerous(value)][-100:]
    releases = [value for value in values if is_numerous(value)][-100:]
    read_again = [value for value in values if value in {*decisions, *releases}]
    assert shown(*read_again) == shown(*values)


@pytest.mark.real_kafka
async def test_decisions_are_found_behind_a_release_of_any_size(
    kafka: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are held, over many stretches of the topic, in their order, and each once; of releases the latest."""
    monkeypatch.setattr(decisions, "STRETCH", 70)
    values = written([(False, 150), (True, 2000), (False, 3), (True, 900)])
    await kafka.create_topic(unique, 2)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=unique) as producer:
        for start in range(0, len(values), 100):
            async with producer.transaction():
                for value in values[start : start + 100]:
                    await producer.send(unique, value, key=b"pricing", partition=1)
    taken: list[ConsumerRecord] = []
    tps = [TopicPartition(unique, number) for number in range(2)]
    ends = await read_decisions(
        KafkaSettings(bootstrap_servers=kafka.bootstrap), tps, lambda records: taken.extend(records), keep=100
    )
    found = [(record.partition, json.loads(record.value)["audit_id"]) for record in taken]
    numbers = [*range(53, 150), *range(2150, 2153)]
    expected = [(1, f"promote-{number}") for number in numbers]
    expected += [(1, f"release-{number}") for number in range(2953, 3053)]
    assert found == expected
    # The marker of each transaction takes an offset too.
    assert ends == {tps[0]: 0, tps[1]: len(values) + 31}
    assert {(record.topic, record.key) for record in taken} == {(unique, b"pricing")}


@pytest.mark.real_kafka
async def test_how_far_back_decisions_are_looked_for_is_bounded_and_said(
    kafka: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "STRETCH", 50)
    monkeypatch.setattr(decisions, "FURTHEST", 300)
    await kafka.create_topic(unique, 1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for value in written([(False, 5), (True, 1000), (False, 2)]):
            await producer.send(unique, value)
    taken: list[ConsumerRecord] = []
    with structlog.testing.capture_logs() as logs:
        await read_decisions(
            KafkaSettings(bootstrap_servers=kafka.bootstrap),
            [TopicPartition(unique, 0)],
            lambda records: taken.extend(records),
            keep=100,
        )
    assert len(taken) == 102
    (told,) = logs
    assert told["event"].startswith("older decisions are not looked for")
    assert told["offsets"] == 350


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (audit(1, "release"), True),
        (audit(1, "retry"), True),
        (audit(1, "promote"), False),
        (audit(1, "promote").replace(b"because", b'\\"release\\"'), False),
        (b'{"action": "hold", "reason": "a \\"retry\\"", "detail": "release"}', False),
        (b'"release"', False),
        (b'{"release"', False),
        (b"\xff", False),
        (None, False),
    ],
)
def test_released_predictions_are_told_apart_from_decisions(value: bytes | None, expected: bool) -> None:
    assert is_numerous(value) is expected


def test_the_order_of_keys_is_remembered_for_those_met_last() -> None:
    """An older record of another partition is outdated; how many keys are remembered is bounded."""
    order = KeyOrder(remembered=3)
    assert not order.is_outdated(record(b"", b"a", partition=1, at=10))
    assert order.is_outdated(record(b"", b"a", partition=0, at=5))
    for number in range(1000):
        order.is_outdated(record(b"", b"k%d" % number))
    assert len(order._latest) == 3
    assert order.is_outdated(record(b"", b"k999", partition=1, at=-1))


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe"])
def test_a_route_record_without_a_usable_key_ends_no_guard(key: bytes | None) -> None:
    """A deletion of nothing deletes nothing; a route says itself which model it is of."""
    follower = RouteFollower(load_settings())
    route = Route(
        model="pricing", version="v1", epoch=1, state=RouteState.AUTO, reason="r", actor="a", since=NOW, fenced=("v0",)
    )
    follower.take([record(route.to_json(), b"pricing"), record(None, key)])
    assert follower.routes["pricing"].fenced == ("v0",)


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe"])
def test_the_read_model_leaves_out_records_without_a_usable_key(key: bytes | None) -> None:
    board, topics = Board(TopicNames(), keep_incidents=100, keep_audit=100), TopicNames()
    for topic in (topics.routes, topics.state, topics.incidents):
        board.take([record(b"{}", key, topic=topic), record(None, key, topic=topic)])
    assert (board.routes, board.states, board.incidents) == ({}, {}, {})


async def test_the_latest_of_each_key_is_read_past_records_without_a_usable_key(kafka: Kafka, unique: str) -> None:
    """As somebody else may have written before the topic was compacted."""
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap)
    await kafka.create_topic(unique, 1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for key, value in [(b"a", b"1"), (None, b"2"), (b"\xff", b"3"), (b"", b"4"), (b"a", b"5"), (b"b", b"6")]:
            await producer.send_and_wait(unique, value, key=key)
    assert await read_latest(settings, unique, [0]) == {"a": b"5", "b": b"6"}


def test_one_broken_policy_file_hides_no_other_model(tmp_path: Path) -> None:
    """Also not its own: by what it says, or by the name of the file where that cannot be read."""
    (tmp_path / "fine.toml").write_text('model = "fine"\n')
    (tmp_path / "broken.toml").write_text('model = "named"\n[[checks]]\nkind = "nothing"\n')
    (tmp_path / "unreadable.toml").write_text("model = \n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "bom.toml").write_bytes(b'\xef\xbb\xbfmodel = "with-bom"\n')
    (tmp_path / "notes.txt").write_text("nothing")
    assert known_models(tmp_path, ["routed"]) == {"routed", "fine", "named", "unreadable", "binary", "with-bom"}
    assert known_models(tmp_path / "nowhere", ["routed"]) == {"routed"}


@pytest.mark.parametrize("secret", ["redis://localhost:notaport", "http://localhost", "redis://[::1", ""])
async def test_a_changed_redis_url_that_cannot_be_used_leaves_the_login_as_it_is(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be half written; the switch goes on, and takes the next one that can be used."""
    file = tmp_path / "url"
    file.write_text("redis://127.0.0.1:1/0")
    (tmp_path / "holdfast.toml").write_text(f'[redis]\nurl_file = "{file}"\n')
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "holdfast.toml"))
    settings = load_settings()
    mirror = Mirror(settings)
    before = mirror._redis
    file.write_text(secret)
    await mirror._log_in_again()
    assert mirror._redis is before
    file.write_text("redis://127.0.0.1:2/0")
    await mirror._log_in_again()
    assert mirror._redis is not before
    await mirror._redis.close()
