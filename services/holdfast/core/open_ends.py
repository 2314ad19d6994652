"""What a policy leaves open: values that pass because nothing bounds them.

`holdfast check` and doctor say it. Nothing here decides about an output.
"""

from holdfast.core.checks.base import Check
from holdfast.core.checks.condition import ExpressionCheck
from holdfast.core.checks.max_change import MaxChangeCheck
from holdfast.core.checks.one_of import OneOfCheck
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.checks.range import RangeCheck
from holdfast.core.policy import Policy


def open_ends(policy: Policy) -> list[str]:
    """A sentence for each thing that the policy leaves open, and what to do about it."""
    return [*_segments(policy), *_limits(policy), *_keys(policy), *_second_places(policy)]


def _segments(policy: Policy) -> list[str]:
    escaped = [
        check.name
        for check in policy.active_checks()
        if isinstance(check, OutlierCheck) or (isinstance(check, RangeCheck) and check.segment)
    ]
    closed = any(
        isinstance(check, OneOfCheck) and check.field == "segment" and check.unknown == "fail"
        for check in policy.active_checks()
        if policy.enforces(check)
    )
    if not escaped or policy.segments or closed:
        return []
    return [
        (
            "an output whose segment is unknown, absent or in another case escapes the bounds of its segment in "
            f"{', '.join(escaped)}: list all segments in `segments`"
        )
    ]


def _limits(policy: Policy) -> list[str]:
    bounded = {name for check in policy.active_checks() if policy.enforces(check) for name in _bounds(check)}
    readers: dict[str, list[str]] = {}
    for check in policy.active_checks():
        if isinstance(check, ExpressionCheck) and len(check.numbers()) > 1:
            for name in check.numbers():
                if name.startswith("features."):
                    readers.setdefault(name, []).append(check.name)
    return [
        f"{', '.join(checks)} takes {name} as a limit, and no check bounds it: an event that says "
        f"{name.removeprefix('features.')} = -1e9 may pass. Add a range check with field = {name!r}, min and max"
        for name, checks in readers.items()
        if name not in bounded
    ]


def _bounds(check: Check) -> tuple[str, ...]:
    """The fields that the check bounds on both sides."""
    match check:
        case RangeCheck():
            return (check.field,) if check.min is not None and check.max is not None else ()
        case OneOfCheck() | MaxChangeCheck() | OutlierCheck():
            return (check.field,)
        case ExpressionCheck():
            return check.numbers() if len(check.numbers()) == 1 else ()
        case _:
            return ()


def _keys(policy: Policy) -> list[str]:
    lenient = [
        check.name
        for check in policy.active_checks()
        if isinstance(check, MaxChangeCheck | OutlierCheck) and check.unknown == "pass"
    ]
    if lenient and policy.off_key == "unknown":
        return [
            (
                f"an output whose record has another key than its entity's passes {', '.join(lenient)}, because "
                "unknown passes there: set off_key = 'block'"
            )
        ]
    if not policy.ignores_keys():
        return []
    escaped = ", ".join(policy.checks_with_memory())
    return [
        (
            f"keys are not looked at (off_key = 'pass'), so an entity under another key escapes {escaped}: "
            "say in `key` what the key is"
        )
    ]


def _second_places(policy: Policy) -> list[str]:
    if policy.ambiguous != "pass" or policy.mode == "off":
        return []
    return ["an event that can be read in two ways passes (ambiguous = 'pass'), and only one of them is checked"]
