"""Who serves: one model's state, and the pure function that steps it.

Three kinds of event arrive in one order: a tally from a guard, a command from a person or a pipeline, and a tick
of the clock. `decide` answers with the new state and what to publish. Every standing of the route and what each
command does there is in `_REFUSED_IN` of `commands`; trips and fences work in all of them.

A version is `candidate` first, `good` once it has served as active long enough, and `fenced` when its breaker
trips or somebody says so; only an `unfence` ends a fence. When the active version is fenced the route moves to the
*last good*: the latest version that served as active, earned `good`, is not fenced and is not the one being left.
If there is no such version, or if there were too many switches in a while, the route is `held`: never "stay".

A held route remembers why. A hold by a person ends by a `resume` or at its own end; a hold by the breaker also ends
when a version is promoted, and is there again when a person's hold over it comes to its end. A pin that a person's hold
covers is in force again after it, unless its own end has passed, or another version serves then.
"""

from dataclasses import dataclass
from datetime import datetime

from holdfast.core.breaker import BreakerPolicy
from holdfast.core.commands import CommandTurn
from holdfast.core.model_state import ModelState
from holdfast.core.trips import Full
from holdfast.core.turn import Decision
from holdfast_schemas import Command, Tally


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Redis holds a higher epoch than the switch has decided, so readers have seen a route that is not its own."""

    epoch: int


def decide(
    state: ModelState | None,
    event: Tally | Command | Tick | Overtaken | Full,
    now: datetime,
    policy: BreakerPolicy,
    *,
    new_id: str,
    runbook_url: str,
    approvals: int = 1,
) -> Decision:
    """Step one model.

    `state` is None for a model that is met for the first time; a tick then does nothing. `new_id` is fresh for each
    call and names the incidents and audit records made by it. `now` is aware. Raises nothing for any event: a
    command that cannot be carried out is refused in its audit record and changes nothing else. A `runbook_url` that
    ends in a slash is a folder: incidents name the page of their kind in it. `approvals`: how many people must ask for
    what loosens, 1 or 2.
    """
    if state is None:
        if isinstance(event, Tick | Overtaken | Full):
            return Decision(None)
        state = ModelState(model=event.model)
    turn = CommandTurn(state, now, policy, new_id, runbook_url, approvals)
    match event:
        case Tally():
            turn.count(event)
        case Command():
            turn.obey(event)
        case Tick():
            turn.tick()
        case Overtaken():
            turn.overtake(event.epoch)
        case Full():
            turn.isolate(event)
    return turn.done()
