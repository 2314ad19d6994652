"""How many versions of one model are counted one by one.

A producer may name another version in each of its predictions. A version costs a tally in the guard and a step
of the model's state in the switch, and commands of other models wait behind it. So in each batch only some versions of
a model are counted one by one: those that the route names, then those with most predictions. All others are counted
together as `OTHERS`. Their outputs are judged and blocked as before, but none of these versions can trip by them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TypeVar

from holdfast_schemas import Route, Tally
from holdfast_schemas.control import OTHERS

GUARD_BUDGET = 32
"""Versions of a model with tallies of their own in one batch of predictions."""
SWITCH_BUDGET = 64
"""Versions of a model that one batch of control records steps one by one."""
ADVICE = (
    "Find the producer that puts another version into each prediction, and have it send the version's name; with one "
    "topic and login for each producer Kafka's access control says who may write"
)
_Rows = TypeVar("_Rows", bound=Sequence[int])


def counted_one_by_one(counts: Mapping[str, int], route: Route | None, budget: int) -> frozenset[str]:
    """The versions within the budget; `counts` are predictions by version."""
    names = set(counts) - {OTHERS}
    if len(names) <= budget:
        return frozenset(names)
    first = named_by(route)
    ranked = sorted(names, key=lambda name: (name not in first, -counts[name], name))
    return frozenset(ranked[:budget])


def named_by(route: Route | None) -> set[str | None]:
    """What has a place before all others."""
    return {route.version, route.last_good} if route is not None else set()


def with_others(rows: Mapping[str, Sequence[int]], own: Set[str]) -> tuple[dict[str, list[int]], int]:
    """Rows by version, those of versions without a place in `own` under `OTHERS`, and how many versions these are."""
    others = [name for name in rows if name not in own]
    result = {name: list(rows[name]) for name in rows if name in own}
    if others:
        result[OTHERS] = sorted(row for name in others for row in rows[name])
    return result, len(others)


def shared(count: Counter[str], tallies: Iterable[Tally]) -> Counter[str]:
    """The same counts by version, for these tallies: what belongs to none of their versions belongs to `OTHERS`."""
    own = Counter({one.model_version: count[one.model_version] for one in tallies if one.model_version != OTHERS})
    own[OTHERS] = count.total() - own.total()
    return own
