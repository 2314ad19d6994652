"""Every number of every contract has a bound, and a reader leaves out the record that breaks it."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

import holdfast.core
from holdfast.api.console import Console, View
from holdfast.api.read_model import Board
from holdfast.api.tokens import Principal, Role
from holdfast.core import findings
from holdfast.settings import TopicNames
from holdfast_schemas import (
    MAX_IN_BATCH,
    MAX_INTEGER,
    TOPICS,
    AcceptedValue,
    AuditRecord,
    Contract,
    Incident,
    Prediction,
    Route,
    Tally,
    parse_control,
)

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
HUGE = 10**400
AT = NOW.isoformat()
ROUTE = {"model": "pricing", "version": "v1", "epoch": 3, "state": "auto", "reason": "r", "actor": "ci", "since": AT}
FINDING = {"check": "price_floor", "severity": "error", "enforced": True, "field": "value", "seen": 0.01, "limit": 10}
SAMPLE = {"source": "predictions/0/1", "prediction": {"value": 0.01}, "findings": [FINDING], "value": 0.01}
TALLY = {
    "type": "tally",
    "model": "pricing",
    "model_version": "v1",
    "policy": "pricing@0123456789ab",
    "at": AT,
    "worker": "w",
    "partition": 0,
    "first_offset": 0,
    "last_offset": 9,
    "seen": 10,
    "approved": 9,
    "blocked": 1,
    "failed": 1,
    "samples": [SAMPLE],
}
INCIDENT = {
    "incident_id": "i-1",
    "dedup_key": "holdfast/pricing/v1",
    "status": "triggered",
    "severity": "critical",
    "model": "pricing",
    "bad_version": "v1",
    "action": "held",
    "opened_at": AT,
    "seen": 10,
    "blocked": 1,
    "blocked_by_check": {"price_floor": 1},
    "samples": [SAMPLE],
    "policy": "pricing@0123456789ab",
    "runbook_url": "https://runbooks.example/",
}
AUDIT = {
    "audit_id": "a-1",
    "at": AT,
    "model": "pricing",
    "actor": "ann",
    "action": "hold",
    "outcome": "applied",
    "reason": "r",
    "detail": "d",
    "epoch": 3,
}


def contracts() -> list[type[Contract]]:
    """All of the wire, and the state that the switch keeps."""
    for module in pkgutil.iter_modules(holdfast.core.__path__, "holdfast.core."):
        importlib.import_module(module.name)
    found: list[type[Contract]] = [Contract]
    for one in found:
        found += [kind for kind in one.__subclasses__() if kind not in found]
    return [kind for kind in found if kind.__module__.startswith(("holdfast_schemas.", "holdfast.core."))]


def integers(schema: Any) -> Iterator[dict[str, Any]]:
    match schema:
        case dict():
            if schema.get("type") == "integer":
                yield schema
            for one in schema.values():
                yield from integers(one)
        case list():
            for one in schema:
                yield from integers(one)


@pytest.mark.parametrize("kind", contracts(), ids=lambda kind: kind.__name__)
def test_every_whole_number_of_a_contract_has_a_bound(kind: type[Contract]) -> None:
    """But for the identities of a prediction, which are read as texts."""
    if kind is Prediction:
        return
    for one in integers(kind.model_json_schema()):
        assert 0 <= one["minimum"] <= one["maximum"] <= MAX_INTEGER


@pytest.mark.parametrize(
    ("kind", "record", "member", "most"),
    [
        (Tally, TALLY, "last_offset", MAX_INTEGER),
        (Tally, TALLY, "partition", MAX_INTEGER),
        (Tally, TALLY, "keyless", MAX_IN_BATCH),
        (Tally, TALLY, "misplaced", MAX_IN_BATCH),
        (Route, ROUTE, "epoch", MAX_INTEGER),
        (AuditRecord, AUDIT, "epoch", MAX_INTEGER),
        (Incident, INCIDENT, "seen", MAX_INTEGER),
        (Incident, INCIDENT, "blocked", MAX_INTEGER),
    ],
)
def test_a_number_at_its_bound_is_taken_and_one_beyond_is_not(
    kind: type[Contract], record: dict[str, Any], member: str, most: int
) -> None:
    """And neither is a negative one, nor one that no machine word holds."""
    taken = kind.model_validate_json(json.dumps({**record, member: most}))
    assert getattr(taken, member) == most
    for refused in (most + 1, -1, HUGE, -HUGE):
        with pytest.raises(ValidationError):
            kind.model_validate_json(json.dumps({**record, member: refused}))


@pytest.mark.parametrize("value", ["1e400", "-1e400", "NaN", "Infinity", str(HUGE)])
def test_a_float_is_finite(value: str) -> None:
    for kind, record in (
        (AcceptedValue, f'{{"entity_id":"SKU-1","value":{value}}}'),
        (Prediction, f'{{"prediction_id":"p","model":"m","model_version":"v","entity_id":"e","value":{value}}}'),
    ):
        with pytest.raises(ValidationError):
            kind.model_validate_json(record)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), str(2**63)),
        (str(-(2**63)), str(-(2**63))),
        (str(10**40 - 1), str(10**40 - 1)),
        (str(10**40), "inf"),
        (str(-HUGE), "-inf"),
        ("1e400", "inf"),
        ("NaN", "nan"),
        (f'{{"a":[{HUGE},true,null,"t",1.5]}}', {"a": ["inf", True, None, "t", 1.5]}),
    ],
)
def test_evidence_with_a_number_out_of_reach_is_kept_as_text(written: str, read: Any) -> None:
    """A producer can write any number: the tally that shows it as evidence must not be lost for it."""
    sample = {
        **SAMPLE,
        "prediction": "HERE",
        "value": "HERE",
        "findings": [{**FINDING, "seen": "HERE", "limit": "HERE"}],
    }
    tally = parse_control(json.dumps({**TALLY, "samples": [sample]}).replace('"HERE"', written).encode())
    assert isinstance(tally, Tally)
    (kept,) = tally.samples
    assert kept.prediction == kept.value == kept.findings[0].seen == kept.findings[0].limit == read
    assert parse_control(tally.to_json()) == tally
    assert findings.worst(tally.samples) is not None
    assert findings.in_words(kept.findings[0])


FORGED = {
    "a tally": ("control", {**TALLY, "seen": HUGE, "approved": HUGE, "blocked": 0, "failed": 0}),
    "a tally that adds up": ("control", {**TALLY, "approved": HUGE, "seen": HUGE + 1}),
    "a negative tally": ("control", {**TALLY, "approved": -5}),
    "a route": ("routes", {**ROUTE, "epoch": HUGE}),
    "an incident": ("incidents", {**INCIDENT, "incident_id": "i-2", "seen": HUGE, "blocked": HUGE}),
    "an incident's check": ("incidents", {**INCIDENT, "incident_id": "i-2", "blocked_by_check": {"c": HUGE}}),
    "an audit record": ("audit", {**AUDIT, "audit_id": "a-2", "epoch": HUGE}),
    "a state": ("state", {"model": "pricing", "keyless": HUGE}),
    "a version's state": ("state", {"model": "pricing", "versions": {"v9": {"approved": HUGE, "activated": HUGE}}}),
}


@pytest.mark.parametrize(("role", "forged"), FORGED.values(), ids=FORGED)
def test_the_console_goes_on_after_a_forged_number(role: str, forged: dict[str, Any]) -> None:
    """Whoever wrote it: the record is left out, and what is known is shown."""
    board = Board(TopicNames(), keep_incidents=100, keep_audit=100)
    state = {"model": "pricing", "versions": {"v1": {"approved": 9}}}
    for known in (("state", state), ("routes", ROUTE), ("incidents", INCIDENT), ("audit", AUDIT), ("control", TALLY)):
        take(board, *known)
    before = (dict(board.routes), dict(board.states), dict(board.incidents), dict(board.audit))
    take(board, role, forged)
    assert (board.routes, board.states, board.incidents, board.audit) == before
    console, who = Console(board), Principal("ann", Role.ADMIN)
    html = console.page(View(), who, may_leave=False)
    assert "v1" in html
    assert "pricing" in console.update(View(), who, {})["html"]["model:pricing"]
    assert console.rates(who)["models"]["pricing"]


def take(board: Board, role: str, document: dict[str, Any]) -> None:
    names, topic = TopicNames(), TOPICS[role]
    key = document.get(topic.key, document["model"]).encode()
    value = json.dumps(document).encode()
    board.take([ConsumerRecord(getattr(names, role), 0, 0, 0, 0, key, value, None, len(key), len(value), ())])
