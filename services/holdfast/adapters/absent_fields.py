"""Fields that a policy reads and no event of its model has: a mistyped name with `unknown = "pass"` checks nothing."""

from dataclasses import dataclass, field

from holdfast import metrics
from holdfast.core.columns import Columns
from holdfast.core.policy import Policy

ENOUGH = 1_000
"""Events of a model without the field, before it is called absent."""


@dataclass(slots=True)
class _Watched:
    policy_id: str
    fields: tuple[str, ...]
    """Those that are watched at all."""
    unseen: set[str] = field(default_factory=set)
    events: int = 0


@dataclass(slots=True)
class AbsentFields:
    """What one worker has seen since a policy was taken up. A field that was seen once is not looked at again."""

    _watched: dict[str, _Watched] = field(default_factory=dict)

    def look(self, policy: Policy, columns: Columns) -> None:
        """Take in a batch of the policy's model, and set the metric."""
        watched = self._watched.get(policy.model)
        if watched is None or watched.policy_id != policy.id:
            for name in watched.fields if watched is not None else ():
                metrics.ABSENT_FIELDS.remove(policy.model, name)
            names = tuple(dict.fromkeys(name for check in policy.active_checks() for name in check.reads()))
            watched = self._watched[policy.model] = _Watched(policy.id, names, set(names))
            for name in names:
                metrics.ABSENT_FIELDS.labels(policy.model, name).set(0)
        if not watched.unseen:
            return
        watched.unseen = {name for name in watched.unseen if not columns.has(name)}
        before, watched.events = watched.events, watched.events + len(columns)
        for name in watched.fields:
            absent = name in watched.unseen and watched.events >= ENOUGH
            if absent or before >= ENOUGH:
                metrics.ABSENT_FIELDS.labels(policy.model, name).set(absent)
