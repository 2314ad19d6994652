"""A finding in words: the one place that says to people what was seen and what was expected.

The console, the command line and the alerts use it. `seen` and `limit` hold anything that JSON can, since others may
have written them; every text here is one line of bounded length and holds no notation of a programming language.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from holdfast_schemas import Finding, Sample

LONGEST = 120
"""Characters of a text that a producer wrote."""
LONGEST_LINE = 300
_MOST_PARTS = 10
"""Parts of a list or of a group of values that are named; the others are counted."""
_OPEN = (None, "inf", "-inf")
"""Bounds that bound nothing."""


def in_words(finding: Finding) -> str:
    """`value 9.6 USD, expected at least 250 USD (price_floor)`."""
    field = f"{_line(finding.field)} " if finding.field else ""
    wanted = expected(finding)
    wanted = f", expected {wanted}" if wanted else ""
    return cut(f"{field}{saw(finding)}{wanted} ({_line(finding.check)})", LONGEST_LINE)


def saw(finding: Finding) -> str:
    """What was seen: `9.6 USD`, `nan`, `value 10, features.cost nothing`."""
    unit = f" {_line(finding.unit)}" if finding.unit and _number(finding.seen) is not None else ""
    return cut(words(finding.seen) + unit, LONGEST_LINE)


def expected(finding: Finding) -> str:
    """What the check wanted: `at least 10 USD`, `10 to 25,000 USD`, `USD or EUR`; empty where it does not say."""
    limit, unit = finding.limit, f" {_line(finding.unit)}" if finding.unit else ""
    match limit:
        case None:
            text = ""
        case Mapping():
            text = _bounds(limit, unit)
        case str():
            text = _line(limit, LONGEST_LINE)
        case Sequence():
            text = _listed([words(one) for one in limit], " or ", 1)
        case _:
            text = words(limit) + unit
    return cut(text, LONGEST_LINE)


def _bounds(limit: Mapping[str, Any], unit: str) -> str:
    rest = dict(limit)
    low, high = rest.pop("min", None), rest.pop("max", None)
    parts: list[str] = []
    if low not in _OPEN and high not in _OPEN:
        parts.append(f"{words(low)} to {words(high)}{unit}")
    elif low not in _OPEN:
        parts.append(f"at least {words(low)}{unit}")
    elif high not in _OPEN:
        parts.append(f"at most {words(high)}{unit}")
    if "max_age" in rest:
        parts.append(f"at most {words(rest.pop('max_age'))} old")
    if "max_ahead" in rest:
        parts.append(f"at most {words(rest.pop('max_ahead'))} ahead")
    if "sum" in rest:
        parts.append(f"a sum of {words(rest.pop('sum'))}")
    text = ", ".join(parts)
    if rest:
        told = _group(rest)
        text = f"{text} ({told})" if text else told
    return text or "any number"


def words(value: object) -> str:
    """A value as JSON can hold it: `13,000`, `129.99`, `yes`, `nothing`, `value 10, cost 9`."""
    match value:
        case None:
            text = "nothing"
        case bool():
            text = "yes" if value else "no"
        case int() | float():
            text = _digits(value)
        case str():
            text = _line(value) or "an empty text"
        case Mapping():
            text = _group(value)
        case Sequence():
            text = _listed([words(one) for one in value[:_MOST_PARTS]], ", ", len(value)) if value else "an empty list"
        case _:
            text = _line(str(value))
    return cut(text, LONGEST_LINE)


def _group(values: Mapping[str, Any]) -> str:
    named = [f"{_line(str(name))} {words(one)}" for name, one in list(values.items())[:_MOST_PARTS]]
    return _listed(named, ", ", len(values)) if named else "nothing"


def _listed(named: Sequence[str], between: str, count: int) -> str:
    if not named:
        return "nothing"
    shown = list(named[:_MOST_PARTS])
    left = max(len(named), count) - len(shown)
    return between.join(shown) + (f" and {left:,} more" if left else "")


def _digits(value: float) -> str:
    """Ten digits: two numbers that a check told apart read differently."""
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    try:
        return f"{float(value):,.10g}" if abs(value) < 10**15 else f"{float(value):.10g}"
    except OverflowError:
        return "more than 1e+308" if value > 0 else "less than -1e+308"


def _line(text: str, longest: int = LONGEST) -> str:
    return cut(" ".join(text.split()), longest)


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, with an ellipsis where it is longer than that."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def entity(sample: Sample) -> str:
    """Which entity the sample is of, where it says; else an empty text."""
    return _named(sample.entity_id, sample, "entity_id")


def prediction_id(sample: Sample) -> str:
    """Which prediction the sample is, where it says; else an empty text."""
    return _named(sample.prediction_id, sample, "prediction_id")


def _named(read: str | None, sample: Sample, name: str) -> str:
    # A guard of an earlier version did not read it by the policy's mapping.
    prediction = sample.prediction
    said = prediction.get(name) if read is None and isinstance(prediction, Mapping) else read
    return _line(str(said)) if isinstance(said, str | int) and not isinstance(said, bool) else ""


# The worst of them


def worst(samples: Iterable[Sample]) -> tuple[Sample, Finding] | None:
    """The finding that is farthest from its limit, and its sample; one that blocked goes before one that did not."""
    found = [(sample, finding) for sample in samples for finding in sample.findings]
    return max(found, key=lambda pair: (pair[1].enforced, deviation(pair[1])), default=None)


def worst_first(samples: Iterable[Sample]) -> list[Sample]:
    """By the worst finding of each."""

    def rank(sample: Sample) -> tuple[bool, float]:
        return max(((one.enforced, deviation(one)) for one in sample.findings), default=(False, -math.inf))

    return sorted(samples, key=rank, reverse=True)


def deviation(finding: Finding) -> float:
    """How far a number is beyond its bound, on a scale on which 100 times too low is as far as 100 times too high.

    NaN and the infinities are farther than every number; what has no numeric bound is nearer than all.
    """
    if finding.seen in ("nan", "inf", "-inf"):
        return math.inf
    seen, limit = _number(finding.seen), finding.limit
    if seen is None or not isinstance(limit, Mapping):
        return -1.0
    low, high = _number(limit.get("min")), _number(limit.get("max"))
    if low is not None and seen < low:
        return math.asinh(low) - math.asinh(seen)
    if high is not None and seen > high:
        return math.asinh(seen) - math.asinh(high)
    return -1.0


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
