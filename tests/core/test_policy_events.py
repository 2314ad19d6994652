"""What the audit says of a worker's policies, and that nothing is judged by one before it is said."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord

from core.alike import policy_of
from holdfast.adapters.policies import PolicyStore
from holdfast.adapters.policy_log import PolicyLog
from holdfast.api.read_model import Board
from holdfast.core.policy_events import PolicyChange, PolicyRefusal, audit_of, changes, model_of
from holdfast.settings import TopicNames
from holdfast_schemas import AuditRecord, Outcome

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
CHECK = '[[checks]]\nname = "floor"\nkind = "range"\nmin = 1\n'


def policy(mode: str = "enforce", model: str = "pricing"):
    return policy_of(f'model = "{model}"\nmode = "{mode}"\n{CHECK}')


def said(event) -> AuditRecord:
    return audit_of(event, worker="guard-1", audit_id="a", at=NOW, epoch=7)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (None, "enforce", "is in force"),
        (None, "off", 'is in force; its mode is "off", so no check runs'),
        ("enforce", "off", '; its mode was "enforce" and is "off", so no check runs'),
        ("off", "enforce", '; its mode was "off" and is "enforce"'),
        ("enforce", "shadow", '; its mode was "enforce" and is "shadow", so no check blocks'),
    ],
)
def test_a_change_says_which_policy_and_which_mode(before: str | None, after: str, words: str) -> None:
    """In words, and as members of the record."""
    old, new = policy(before) if before else None, policy(after)
    record = said(PolicyChange(old, new, "ann"))
    assert record.detail.startswith(f"{new.id} is in force")
    assert record.detail.endswith(words)
    assert (old is None) or f"in place of {old.id}" in record.detail
    assert (record.policy, record.policy_before) == (new.id, old.id if old else None)
    assert (record.mode, record.mode_before) == (after, before)
    assert (record.action, record.outcome, record.epoch) == ("policy_taken_up", Outcome.APPLIED, 7)


def test_who_did_it_is_the_author_else_the_worker() -> None:
    """The worker is named in both cases."""
    for author, actor in (("ann", "ann"), (None, "guard-1")):
        record = said(PolicyChange(policy(), None, author))
        assert (record.actor, record.worker, record.action) == (actor, "guard-1", "policy_removed")
        assert record.detail.endswith("is no longer in force, and the model has no policy")


@pytest.mark.parametrize(
    ("model", "kept"), [("pricing", "pricing"), (None, "none"), ("a b", "none"), ("", "none"), ("x" * 201, "none")]
)
def test_a_refusal_is_of_a_model_where_its_name_can_be_used(model: str | None, kept: str) -> None:
    """Its reason is cut, and the record is never refused itself."""
    record = said(PolicyRefusal("x" * 5000, model))
    assert (record.model, record.action, record.outcome) == (kept, "policy_refused", Outcome.REFUSED)
    assert len(record.detail) == 1000


def test_only_what_differs_is_a_change() -> None:
    """By the id, which follows from the content."""
    one, same, other = policy(), policy(), policy("off")
    assert changes({"pricing": one}, {"pricing": same}) == []
    (found,) = changes({"pricing": one}, {"pricing": other})
    assert (found.before, found.after) == (one, other)
    assert [model_of(change) for change in changes({"pricing": one}, {"fraud": policy(model="fraud")})] == [
        "fraud",
        "pricing",
    ]


def test_a_record_waits_until_it_is_committed() -> None:
    """Every transaction with verdicts has it; partitions without verdicts leave it to the one that has begun."""
    log = PolicyLog("guard-1")
    log.note([PolicyChange(None, policy()), PolicyRefusal("broken", "fraud")])
    first = log.waiting(lambda model: 3 if model == "pricing" else 0)
    assert [(one.model, one.epoch) for one in first] == [("pricing", 3), ("fraud", 0)]
    assert log.waiting(lambda _: 3, idle=True) == []
    again = log.waiting(lambda _: 3)
    assert [one.audit_id for one in again] == [one.audit_id for one in first]
    log.note([PolicyChange(policy(), policy("off"))])
    log.written(one.audit_id for one in first)
    (left,) = log.waiting(lambda _: 3, idle=True)
    assert left.mode == "off"
    log.written([left.audit_id])
    assert log.waiting(lambda _: 3) == []


def test_what_waits_is_bounded() -> None:
    """While Kafka is away nothing is judged, so that only the latest matter."""
    log = PolicyLog("guard-1")
    for number in range(3000):
        log.note([PolicyChange(None, policy("off")), PolicyRefusal("broken", f"m{number}")])
    log.note([PolicyChange(None, policy())])
    found = log.waiting(lambda _: 0)
    assert len(found) == 1100
    assert [one.mode for one in found if one.model == "pricing"][-1] == "enforce"


def test_a_store_tells_of_every_change_before_it_is_in_force(tmp_path: Path) -> None:
    """Of a mode that was off for a moment, of a refusal once, and of the author that the folder names."""
    path, author = tmp_path / "pricing.toml", tmp_path / "AUTHOR"
    told: list[tuple[str, str | None, str | None]] = []

    def note(events) -> None:
        for event in events:
            in_force = store[0].current.policies["pricing"].mode if store else None
            told.append((said(event).action, event.author, in_force))

    store: list[PolicyStore] = []
    path.write_text(f'model = "pricing"\n{CHECK}')
    store.append(PolicyStore(tmp_path, on_events=note))
    author.write_text("ann@example\nof the pricing team\n")
    path.write_text(f'model = "pricing"\nmode = "off"\n{CHECK}')
    assert store[0].reload()
    author.write_text("Holdfast ")
    path.write_text(f'model = "pricing"\n{CHECK}')
    assert store[0].reload()
    assert store[0].reload()
    path.write_text("model = ")
    assert not store[0].reload()
    assert not store[0].reload()
    path.unlink()
    assert store[0].reload()
    assert told == [
        ("policy_at_start", None, None),
        ("policy_taken_up", "ann@example", "enforce"),
        ("policy_taken_up", None, "off"),
        ("policy_refused", None, "enforce"),
        ("policy_removed", None, "enforce"),
    ]


def test_a_board_shows_what_several_guards_say_once() -> None:
    """And again what happens again after something else."""
    board, topics = Board(TopicNames(), keep_incidents=100, keep_audit=100), TopicNames()
    one, off = policy(), policy("off")
    events = [
        PolicyChange(None, one, at_start=True),
        PolicyChange(None, one, at_start=True),
        PolicyChange(one, off),
        PolicyChange(one, off),
        PolicyChange(None, one, at_start=True),
        PolicyRefusal("broken", "pricing"),
        PolicyRefusal("broken", "pricing"),
        PolicyRefusal("broken otherwise", "pricing"),
    ]
    for number, event in enumerate(events):
        value = audit_of(event, worker=f"guard-{number}", audit_id=f"a{number}", at=NOW, epoch=1).to_json()
        board.take([ConsumerRecord(topics.audit, 0, number, 0, 0, b"pricing", value, None, 0, 0, ())])
    assert list(board.audit) == ["a0", "a2", "a4", "a5", "a7"]
