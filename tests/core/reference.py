"""The obviously right guard: one record at a time, plain Python, no batches, no arrays.

It knows one policy of the contract's own shape. What it answers is what the real one must answer.
"""

import json
import math
import re
import statistics
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime


def equal(one, other):
    """Two numbers that differ by a billionth are equal."""
    return abs(one - other) <= 5e-10 * abs(one) + 5e-10 * abs(other)


def inside(value, low, high):
    """Whether the bounds hold; a number that differs from its bound by a billionth of it is at the bound."""
    above_low = value >= low or low - value <= 1e-9 * abs(low)
    return above_low and (value <= high or value - high <= 1e-9 * abs(high))


def at_least(one, other):
    return one > other or equal(one, other)


def above(one, other):
    return one > other and not equal(one, other)


CONDITIONS = {
    "value >= 1.02 * cost": (("value", "cost"), lambda value, cost: at_least(value, finite(1.02 * cost))),
    "0 < value <= list_price or cost == 0": (
        ("value", "list_price", "cost"),
        lambda value, list_price, cost: (above(value, 0) and at_least(list_price, value)) or equal(cost, 0),
    ),
    "not (value / cost > 3)": (("value", "cost"), lambda value, cost: not above(finite(value / cost), 3)),
    "outputs.low <= outputs.high": (("outputs.low", "outputs.high"), lambda low, high: at_least(high, low)),
}
"""Expressions, the names that they read, and what they mean. Division by zero and overflow are failures."""


class Malformed(Exception):  # noqa: N818  the word of the contract
    pass


class NotANumber(Exception):  # noqa: N818  arithmetic that ends nowhere
    pass


def finite(number):
    if not math.isfinite(number):
        raise NotANumber
    return number


def unique(pairs):
    if len({key for key, _ in pairs}) < len(pairs):
        raise Malformed("a key stands twice")
    return dict(pairs)


def whole(text):
    return -0.0 if text == "-0" else int(text)


CONTRACT = (
    *("prediction_id", "model", "model_version", "entity_id"),
    *("value", "outputs", "currency", "predicted_at", "segment"),
)


def caseless(key):
    return key.translate({0x17F: "s", 0x212A: "k", 0x131: "i", 0x130: "i"}).lower()


def walk(node):
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


LARGEST = 1.7976931348623157e308


def moment(text):
    """An RFC 3339 time."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text, re.ASCII):
        raise ValueError(text)
    return datetime.fromisoformat(text.upper())


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def decode(raw, policy):
    """The event, or Malformed."""
    if raw is None:
        raise Malformed("no value")
    try:
        event = json.loads(raw.decode(), object_pairs_hook=unique, parse_int=whole)
        json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from None
    if not isinstance(event, dict):
        raise Malformed("not an object")
    for name in ("prediction_id", "model", "model_version", "entity_id"):
        if isinstance(event.get(name), int) and not isinstance(event[name], bool) and abs(event[name]) < 10**308:
            event[name] = str(event[name])
        if not isinstance(event.get(name), str) or not 1 <= len(event[name]) <= 1000:
            raise Malformed(name)
    for end in (event["entity_id"][0], event["entity_id"][-1]):
        if unicodedata.category(end) in ("Zs", "Zl", "Zp", "Cc", "Cf") or end in "\u034f\u115f\u1160\u2800\u3164\uffa0":
            raise Malformed("entity_id")
    read = {name for check in policy.active_checks() for name in check.reads()}
    for where, names in (
        (event, CONTRACT),
        (event.get("outputs"), {name.removeprefix("outputs.") for name in read if name.startswith("outputs.")}),
    ):
        spelt = Counter(caseless(key) for key in where) if isinstance(where, dict) else {}
        if any(spelt[caseless(name)] > 1 for name in names if spelt):
            raise Malformed("two keys differ only in case")
    if event["model"] == policy.model and not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}", event["model_version"]
    ):
        raise Malformed("model_version")
    if event.get("value") is not None and not is_number(event["value"]):
        raise Malformed("value")
    outputs = event.get("outputs")
    if outputs is not None:
        if not isinstance(outputs, dict):
            raise Malformed("outputs")
        for output in outputs.values():
            if (
                output is not None
                and not is_number(output)
                and not (isinstance(output, list) and all(map(is_number, output)))
            ):
                raise Malformed("outputs")
    if event.get("value") is None and not any(output is not None for output in (outputs or {}).values()):
        raise Malformed("no output")
    # What is read of the contract's other fields has the contract's types; features are the producer's business.
    for name in {name for check in policy.active_checks() for name in (*check.texts(), *check.anything())}:
        seen = event.get(name) if name in ("segment", "currency", "predicted_at") else None
        if seen is not None and not isinstance(seen, str):
            raise Malformed(name)
        if name == "predicted_at" and seen is not None:
            try:
                moment(seen)
            except ValueError:
                raise Malformed(name) from None
    if event.get("features") is not None and not isinstance(event["features"], dict) and reads_features(policy):
        raise Malformed("features")
    return event


def reads_features(policy):
    return any(
        name.startswith("features.")
        for check in policy.active_checks()
        for name in (*check.numbers(), *check.texts(), *check.anything())
    )


def look(event, name):
    """The field, or None; a feature may lie deeper."""
    if name in event and "." not in name:
        return event[name]
    parent, _, leaf = name.partition(".")
    inside = event.get(parent) if leaf else None
    return inside.get(leaf) if isinstance(inside, dict) else None


def double(value):
    """The number as a double, infinite where no finite one holds it."""
    return float(value) if abs(value) <= LARGEST else (math.inf if value > 0 else -math.inf)


def number(event, name):
    """The field as a number, infinite where no double holds it; None where it is none."""
    seen = look(event, name)
    if not is_number(seen) or seen != seen:
        return None
    return double(seen)


def total(parts):
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):
        return math.nan


@dataclass
class Reference:
    """Judges records in order; `verdicts` are (approved, [(check, enforced)]) or the word malformed."""

    policy: object
    fenced: tuple = ()
    held: bool = False
    last: dict = field(default_factory=dict)
    recent: dict = field(default_factory=dict)
    approved: dict = field(default_factory=dict)

    def judge(self, raws, now):
        """Record by record."""
        return [self.one(raw, now) for raw in raws]

    def one(self, raw, now):
        try:
            event = decode(raw, self.policy)
        except Malformed:
            return "malformed"
        found = []
        infinite = lambda part: any(is_number(node) and not abs(node) <= LARGEST for node in walk(part))  # noqa: E731
        if infinite(event):
            read = {name for check in self.policy.active_checks() for name in check.reads()}
            if event["model"] != self.policy.model:
                read = set()
            decides = any(infinite(look(event, name)) for name in {"value", "outputs", *read})
            found.append(("non_finite", decides or self.policy.non_finite == "all"))
        outputs = [event.get("value"), *(event.get("outputs") or {}).values()]
        parts = [part for output in outputs for part in (output if isinstance(output, list) else [output])]
        if any(isinstance(part, float) and part == 0 and math.copysign(1, part) < 0 for part in parts):
            found.append(("negative_zero", True))
        if event["model"] != self.policy.model:
            return False, [*found, ("no_policy", True)]
        if self.held:
            found.append(("held", True))
        if event["model_version"] in self.fenced:
            found.append(("fenced", True))
        for check in self.policy.active_checks():
            answer = getattr(self, check.kind)(check, event, now)
            if answer == "fail" or (answer == "unknown" and check.unknown == "fail"):
                found.append((check.name, self.policy.enforces(check)))
        approved = not any(enforced for _, enforced in found)
        condemning = {check.name for check in self.policy.active_checks() if check.severity in ("error", "critical")}
        if approved and not any(name in condemning for name, _ in found):
            for check in self.policy.active_checks():
                if check.kind == "max_change" and (value := number(event, check.field)) is not None:
                    self.last[check.field, event["entity_id"]] = value
                    self.approved.setdefault(check.field, []).append(value)
            for name in {check.field for check in self.policy.active_checks() if check.kind == "outlier"}:
                if (value := number(event, name)) is not None:
                    self.recent.setdefault((name, event.get("segment")), []).append(value)
        return approved, found

    def range(self, check, event, now):
        value = number(event, check.field)
        if (check.currency or check.in_currency) and event.get("currency") is not None:
            if event["currency"] != check.in_currency and event["currency"] not in check.currency:
                return "fail"
        elif check.currency or check.in_currency:
            return "unknown"
        if value is None:
            return "unknown"
        bounds = check.segment.get(event.get("segment")) if check.segment else None
        low = check.min if bounds is None or bounds.min is None else bounds.min
        high = check.max if bounds is None or bounds.max is None else bounds.max
        if check._table is not None:
            row = check._table.index.get(event["entity_id"])
            if row is not None:
                own_low, own_high = float(check._table.low[row]), float(check._table.high[row])
                low = low if math.isnan(own_low) else own_low
                high = high if math.isnan(own_high) else own_high
            elif low is None and high is None and check.unlisted == "fail":
                in_currency = check.in_currency or event.get("currency")
                if event.get("currency") == in_currency:
                    return "fail"
        currency = event.get("currency")
        if currency in check.currency:
            low, high = check.currency[currency].min, check.currency[currency].max
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        return "pass" if inside(value, low, high) else "fail"

    def max_change(self, check, event, now):
        value, last = number(event, check.field), self.last.get((check.field, event["entity_id"]))
        if value is None or last is None or last == 0:
            out_of_reach = check.unknown == "auto" and value is not None and not self.in_reach(check.field, value)
            return "fail" if out_of_reach else "unknown"
        ends = sorted(
            (last * (0.0 if check.down is None else check.down), last * (math.inf if check.up is None else check.up))
        )
        return "pass" if inside(value, *ends) else "fail"

    def in_reach(self, name, value):
        """Whether a value of a newcomer is like those of the other entities."""
        known = [one for one in self.approved.get(name, ()) if one]
        if len({entity for field, entity in self.last if field == name}) < 3 or not known:
            return True
        least, greatest = min(map(abs, known)), max(map(abs, known))
        if min(known) < 0 < max(known):
            return abs(value) <= 30 * greatest
        factor = max(30, greatest / least)
        sign = 1 if known[0] > 0 else -1
        return least / factor <= sign * value <= greatest * factor

    def expression(self, check, event, now):
        names, condition = CONDITIONS[check.expression]
        values = [number(event, n if n == "value" or "." in n else f"features.{n}") for n in names]
        if None in values:
            return "unknown"
        try:
            return "pass" if condition(*values) else "fail"
        except (NotANumber, ZeroDivisionError, OverflowError):
            return "fail"

    def one_of(self, check, event, now):
        seen = look(event, check.field)
        if seen is None:
            return "unknown"
        same = any(seen == value and isinstance(seen, bool) == isinstance(value, bool) for value in check.values)
        return "pass" if same else "fail"

    def freshness(self, check, event, now):
        if event.get("predicted_at") is None:
            return "unknown"
        at = moment(event["predicted_at"])
        return "pass" if now - check.max_age <= at <= now + check.max_ahead else "fail"

    def simplex(self, check, event, now):
        if check.field == "outputs":
            if event.get("outputs") is None:
                return "unknown"
            parts = [part for part in event["outputs"].values() if is_number(part)]
        else:
            parts = look(event, check.field)
        if not isinstance(parts, list):
            return "unknown"
        parts = [double(part) for part in parts]
        tolerance = check.tolerance
        good = (
            parts
            and (check.length is None or len(parts) == check.length)
            and all(inside(part, -tolerance, 1 + tolerance) for part in parts)
            and inside(total(parts), 1 - tolerance, 1 + tolerance)
        )
        return "pass" if good else "fail"

    def outlier(self, check, event, now):
        value = number(event, check.field)
        tail = self.recent.get((check.field, event.get("segment")), [])[-check.window :]
        if value is None:
            return "unknown"
        if check.log:
            if value <= 0:
                return "fail"
            tail, value = [math.log(one) for one in tail if one > 0], math.log(value)
        if len(tail) < check.min_values:
            return "unknown"
        centre = statistics.median(tail)
        spread = statistics.median([abs(one - centre) for one in tail])
        if not 0 < spread < math.inf:
            return "unknown"
        return "fail" if 0.6745 * abs(value - centre) / spread > check.max_score * (1 + 1e-9) else "pass"

    def required(self, check, event, now):
        return "fail" if any(look(event, name) in (None, "") for name in check.fields) else "pass"
