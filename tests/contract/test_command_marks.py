"""What the switch writes into the audit of how a command came."""

from datetime import UTC, datetime

import pytest

from holdfast.core.breaker import BreakerPolicy
from holdfast.core.command_signature import Through
from holdfast.core.decide import decide
from holdfast.core.model_state import ModelState
from holdfast.core.turn import Decision
from holdfast.switch import _with_marks
from holdfast_schemas import Action, Command

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def obeyed(state: ModelState | None, command_id: str, actor: str = "ann") -> Decision:
    command = Command(
        command_id=command_id, model="pricing", action=Action.PROMOTE, version="v1", actor=actor, reason="x"
    )
    return decide(state, command, NOW, BreakerPolicy(), new_id=command_id, runbook_url="")


@pytest.mark.parametrize("through", list(Through))
@pytest.mark.parametrize("actor", ["ann", "Holdfast"])
def test_the_audit_of_a_command_says_how_it_came(through: Through, actor: str) -> None:
    """Of a refused one too; the state that is written keeps it."""
    marked = _with_marks(obeyed(None, "c-1", actor), None, {"c-1": through, "c-2": Through.API})
    assert [audit.through for audit in marked.audits] == [through.value]
    assert marked.state is not None
    assert ModelState.model_validate_json(marked.state.to_json()).commands["c-1"].through == through.value


def test_a_copy_does_not_change_what_was_said_of_the_first() -> None:
    """The answer to a command that comes again is the record of the first one."""
    first = _with_marks(obeyed(None, "c-1"), None, {"c-1": Through.API})
    again = _with_marks(obeyed(first.state, "c-1"), first.state, {"c-1": Through.KAFKA})
    assert again.audits == first.audits
    assert again.audits[0].through == "api"


def test_where_commands_are_not_signed_nothing_is_said() -> None:
    plain = obeyed(None, "c-1")
    assert _with_marks(plain, None, {}) is plain
    assert plain.audits[0].through is None
