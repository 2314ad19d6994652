"""What a configuration lets pass unchecked, in words: people forget the switches that they have set for a moment."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from holdfast.core.policy import Policy


def unchecked(policies: Iterable[Policy], *, no_policy_approves: bool) -> list[str]:
    """A clause for each switch that is open, those that let most pass first. The policies are those in force now."""
    found = []
    if no_policy_approves:
        found.append("every output of a model without a policy is approved (guard.no_policy)")
    ordered = sorted(policies, key=lambda policy: policy.model)
    found += [f"none of the checks of {policy.model} runs (mode)" for policy in ordered if policy.mode == "off"]
    for policy in ordered:
        if off := policy.checks_off():
            what = "the check" if len(off) == 1 else "the checks"
            found.append(f"{what} {', '.join(off)} of {policy.model} {'is' if len(off) == 1 else 'are'} off")
        if policy.versions == "any" and policy.mode != "off":
            found.append(f"outputs of {policy.model} pass whether or not somebody promoted their version (versions)")
        if policy.ignores_keys():
            found.append(f"the keys of the records of {policy.model} are not looked at (off_key)")
        if policy.ambiguous == "pass" and policy.mode != "off":
            found.append(f"events of {policy.model} that can be read in two ways pass (ambiguous)")
    return found


def ends(policies: Iterable[Policy], now: datetime, no_policy_until: datetime | None = None) -> Iterator[str]:
    """A sentence, without its stop, for each switch that ends by itself, or has ended."""
    if no_policy_until is not None:
        yield (
            f"models without a policy are approved until {_time(no_policy_until)}, and blocked from then on"
            if now < no_policy_until
            else f"guard.no_policy_until has passed ({_time(no_policy_until)}), so models without a policy are "
            "blocked; take no_policy and no_policy_until out of the configuration"
        )
    for policy in sorted(policies, key=lambda policy: policy.model):
        if (end := policy.mode_until) is None:
            continue
        yield (
            f'{policy.model} has mode = "{policy.mode}" until {_time(end)}, and enforces from then on'
            if now < end
            else f"mode_until of {policy.model} has passed ({_time(end)}), so its checks are enforced; take mode and "
            "mode_until out of its policy"
        )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
