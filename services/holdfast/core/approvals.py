"""A second person for commands that loosen: what blocks or holds outputs ends only when two people want it.

The first command is refused and remembered. The same wish of somebody else within `ASKED_FOR` is carried out. A wish is
the action and what it is about; the reasons and the ends may differ, and the earlier end counts.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from holdfast.core.actors import actor_key
from holdfast.core.duration import format_duration
from holdfast_schemas import Action, Command, Contract, UtcTime

LOOSENS = frozenset((Action.UNFENCE, Action.RESUME, Action.ACCEPT_REFERENCE, Action.UNDO_TRIPS))
ASKED_FOR = timedelta(minutes=30)
"""How long a wish waits for the second person."""
MOST_ASKED = 8
"""Wishes of one model that wait at once; the oldest makes room."""


class Asked(Contract):
    """A wish that waits for a second person."""

    actor: str
    at: UtcTime
    expires_at: UtcTime | None = None
    """The end that the first person gave to it."""


def wish(command: Command) -> str:
    """What is asked for: the same for two commands of which either may approve the other."""
    about = command.model_copy(update={"command_id": "-", "actor": "-", "reason": "-", "expires_at": None})
    return f"{command.action.value}-{hashlib.sha256(about.to_json()).hexdigest()[:32]}"


def still_asked(asked: Mapping[str, Asked], now: datetime) -> dict[str, Asked]:
    """The wishes that still wait. One of the future is of a clock that was set back, and waits no longer."""
    return {key: one for key, one in asked.items() if timedelta(0) <= now - one.at < ASKED_FOR}


def ask(asked: Mapping[str, Asked], command: Command, now: datetime) -> tuple[dict[str, Asked], str]:
    """Return the wishes with this one, and what its person is told."""
    waiting, key = still_asked(asked, now), wish(command)
    first = waiting.get(key) or Asked(actor=command.actor, at=now, expires_at=command.expires_at)
    others = [(name, one) for name, one in waiting.items() if name != key]
    within = format_duration(ASKED_FOR)
    told = f"{command.action.value} needs a second person: somebody else must ask for the same within {within}"
    return dict([*others[-(MOST_ASKED - 1) :], (key, first)]), told


def approved(asked: Mapping[str, Asked], command: Command, now: datetime) -> tuple[Command, Asked] | None:
    """Return the command as two people want it, and the first wish; None: nobody else has asked for it."""
    first = still_asked(asked, now).get(wish(command))
    if first is None or actor_key(first.actor) == actor_key(command.actor):
        return None
    ends = [one for one in (first.expires_at, command.expires_at) if one is not None]
    return command.model_copy(update={"expires_at": min(ends, default=None)}), first
