"""Who has asked to force the release of a prediction, and waits for a second person.

A wish stands in the audit: the guard's answer to the command of the first person names the prediction. So a guard that
starts again, or takes the partition over, knows it.
"""

from datetime import datetime, timedelta

from holdfast.core.actors import actor_key
from holdfast.core.approvals import ASKED_FOR, MOST_ASKED, Asked

MOST_PREDICTIONS = 50_000
"""Predictions of one partition that wait; the one that was asked for first makes room."""


class ForcedWishes:
    """Of one partition of the predictions."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[str, Asked]] = {}

    def add(self, source: str, actor: str, at: datetime) -> None:
        """Note the wish; a later one of the same person takes the place of the earlier one."""
        wishes = self._asked.pop(source, {})
        wishes.pop(actor_key(actor), None)
        wishes[actor_key(actor)] = Asked(actor=actor, at=at)
        if len(wishes) > MOST_ASKED:
            del wishes[next(iter(wishes))]
        self._asked[source] = wishes
        if len(self._asked) > MOST_PREDICTIONS:
            del self._asked[next(iter(self._asked))]

    def of_somebody_else(self, source: str, actor: str, now: datetime) -> Asked | None:
        """The wish of another person that still waits; the earliest one. One of the future is of another clock."""
        waiting = (
            wish
            for key, wish in self._asked.get(source, {}).items()
            if key != actor_key(actor) and timedelta(0) <= now - wish.at < ASKED_FOR
        )
        return min(waiting, key=lambda wish: wish.at, default=None)
