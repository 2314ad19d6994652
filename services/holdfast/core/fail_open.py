"""What a configuration lets pass unchecked, in words: people forget the switches that they have set for a moment."""

from collections.abc import Iterable

from holdfast.core.policy import Policy


def unchecked(policies: Iterable[Policy], *, no_policy_approves: bool) -> list[str]:
    """A clause for each switch that is open, those that let most pass first."""
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
