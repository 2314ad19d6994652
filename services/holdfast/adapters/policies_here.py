"""What the policy files beside a service say, for a service that shows it and does not judge by it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from holdfast.adapters.policies import PolicyStore
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.checks.base import Mode
from holdfast.core.policy import Policy, PolicyError
from holdfast_schemas import utc_now

LOOK_EVERY = 15.0
"""Seconds until files that did not load at the start are read again."""


@dataclass(frozen=True, slots=True)
class PolicyHere:
    """What is shown of one policy; its tables are not kept."""

    id: str
    mode: Mode
    in_shadow: tuple[str, ...]
    """The checks that would block, and do not because of shadow."""
    breaker: BreakerPolicy
    off: tuple[str, ...] = ()
    """The checks that do not run, where the others do."""
    mode_until: datetime | None = None
    """When the mode ends by itself."""

    @classmethod
    def of(cls, policy: Policy) -> "PolicyHere":
        return cls(
            policy.id,
            policy.mode,
            policy.checks_in_shadow(),
            policy.breaker,
            policy.checks_off(),
            policy.mode_until,
        )


@dataclass(frozen=True, slots=True)
class PoliciesHere:
    """By model. `refused` says why what the files say now is not taken up: the guards refuse it by the same rules."""

    policies: Mapping[str, PolicyHere] = field(default_factory=dict)
    refused: str | None = None


async def watch_policies(folder: Path, tell: Callable[[PoliciesHere], None]) -> None:
    """Tell what the files say, now and whenever they change; runs until cancelled.

    A folder that is not there is not told of: the machine of an API need not have the policies.
    """
    loop = asyncio.get_running_loop()
    store: PolicyStore | None = None

    at_an_end: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal at_an_end
        if store is None:
            return
        now = utc_now()
        policies = store.current.at(now).policies
        tell(PoliciesHere({model: PolicyHere.of(policy) for model, policy in policies.items()}, store.refused))
        if at_an_end is not None:
            at_an_end.cancel()
        if ends := [policy.mode_until for policy in policies.values() if policy.mode_until is not None]:
            # At least once an hour, for the clock may be set.
            at_an_end = loop.call_later(min(3600.0, max(1.0, (min(ends) - now).total_seconds())), look)

    def changed(*_: object) -> None:
        loop.call_soon_threadsafe(look)  # The store reads in a thread.

    while store is None:
        try:
            store = await asyncio.to_thread(PolicyStore, folder, changed, changed)
        except PolicyError as error:
            if await asyncio.to_thread(folder.is_dir):
                tell(PoliciesHere(refused=str(error)))
            await asyncio.sleep(LOOK_EVERY)
    look()
    try:
        await store.follow()
    finally:
        if at_an_end is not None:
            at_an_end.cancel()
