"""What a command does that its name does not say: told before it is sent, to people who may not expect it."""

from dataclasses import dataclass

from holdfast.core.model_state import ModelState, last_good, was_seen
from holdfast_schemas import Action


@dataclass(frozen=True, slots=True)
class Consequence:
    """One sentence, and whether a person is asked before the command is sent."""

    text: str
    ask: bool = True


def consequence(state: ModelState | None, action: Action, model: str, version: str | None) -> Consequence | None:
    """What the command would do to this model beyond its name; None where there is nothing to add.

    `state` None: the switch knows nothing of the model.
    """
    active = state.route.version if state is not None and state.route is not None else None
    leaves = action is Action.FENCE and version == active
    if active is not None and state is not None and (leaves or (action is Action.ROLLBACK and version is None)):
        if last_good(state, leaving=active) is not None:
            return None
        return Consequence(
            f"No other version of {model} is good, so this holds the model: {active} is fenced, and every output of "
            f"{model} is blocked until a version is promoted."
        )
    serves = action in (Action.PROMOTE, Action.PIN, Action.RESUME)
    if serves and version is not None and version != active and not was_seen(state, version):
        known = sorted(name for name in state.versions if was_seen(state, name)) if state is not None else []
        if not known:
            return Consequence(f"No output of {version} was seen so far: check that its name is right.", ask=False)
        return Consequence(
            f"No output of {version} was ever seen, so nothing of it was judged: check that its name is right "
            f"({model} has {_some(known)}). Serving code is told to serve {version} from now on."
        )
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
