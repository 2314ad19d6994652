"""What becomes of an event's bytes: a row, a malformed record with its reason, or a number that is none."""

import json

import pytest

from core.alike import Real, failures, policy_of, raw
from holdfast.core.decode import Shape

PLAIN = policy_of('model = "pricing"\n')
READING = policy_of(
    """
model = "pricing"
[[checks]]
name = "cost"
kind = "range"
field = "features.cost"
min = 0
unknown = "pass"
[[checks]]
name = "segments"
kind = "range"
max = 1e9
unknown = "pass"
segment.cameras = {max = 1e8}
[[checks]]
name = "fresh"
kind = "freshness"
max_age = "1d"
unknown = "pass"
"""
)
FINE = raw()


def with_member(text):
    return FINE[:-1] + b"," + text.encode() + b"}"


NEIGHBOURS = {
    "alone": [],
    "beside fine ones": [FINE] * 3,
    "beside a malformed one": [FINE, b"{", FINE],
    "beside an escape": [FINE, raw(entity_id="é")],
    "beside many": [FINE] * 999,
    "beside its like": None,
    "beside one with as many keys": [with_member('"most":1,"more":2')],
    "beside long ones": [FINE, with_member(f'"more":"{"x" * 150_000}"'), FINE],
}


def verdict(event, neighbours=(), policy=READING):
    """`approved`, `malformed`, or the names of the checks that blocked."""
    answer = Real(policy).judge([*neighbours, event])[-1]
    return answer if answer == "malformed" else "approved" if answer[0] else ",".join(sorted(failures(answer)))


def put(number):
    return FINE.replace(b"10.0", number.encode())


@pytest.mark.parametrize("neighbours", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (FINE, "approved"),
        (put("1e2"), "approved"),
        (put("1" + "0" * 308), "segments"),
        (put("0"), "approved"),
        (put("-0"), "negative_zero"),
        (put("-0").replace(b"-0", b"-0 "), "negative_zero"),
        (raw(value=0, note="-0, -0}"), "approved"),
        (raw(predicted_at="2026-01-09T10:00:00-01:00", value=0), "fresh"),
        (with_member('"outputs":{"p":-0}'), "negative_zero"),
        (with_member('"outputs":{"p":[0.5,-0]}'), "negative_zero"),
        (with_member('"outputs":{"p":[0.5,0]},"more":-0'), "approved"),
        (with_member('"features":{"cost":-0}'), "approved"),
        (FINE.replace(b'"a"', b"-0"), "approved"),
        # Numbers that are not finite: they block in an output and in what a check reads, and nowhere else
        (put("NaN"), "non_finite"),
        (put("Infinity"), "non_finite,segments"),
        (put("-Infinity"), "non_finite"),
        (put("1e999"), "non_finite,segments"),
        (put("-1E+999"), "non_finite"),
        (put("1" + "0" * 309), "non_finite,segments"),
        (put("9" * 5000), "non_finite,segments"),
        (put("-0.0"), "negative_zero"),
        (put("-1e-400"), "negative_zero"),
        (with_member('"more":1e999'), "approved"),
        (with_member('"more":[[{"x":-1e400}]]'), "approved"),
        (with_member('"more":NaN'), "approved"),
        (with_member(f'"more":{"9" * 310}'), "approved"),
        (with_member('"more":"1e999 NaN Infinity"'), "approved"),
        (with_member(f'"more":"{"9" * 400}"'), "approved"),
        (with_member('"more":1e-999'), "approved"),
        (with_member('"features":{"cost":1e999}'), "non_finite"),
        (with_member('"features":{"other":1e999}'), "approved"),
        (with_member('"outputs":{"p":[0.5,-0.0]}'), "negative_zero"),
        # What is no number
        (put('"10"'), "malformed"),
        (put('"1.5"'), "malformed"),
        (put("true"), "malformed"),
        (put("[1]"), "malformed"),
        (put("01"), "malformed"),
        (put("+1"), "malformed"),
        (put(".5"), "malformed"),
        (put("1."), "malformed"),
        (put("0x1"), "malformed"),
        (put("null"), "malformed"),
        (with_member('"outputs":{"p":"1.5"}'), "malformed"),
        (with_member('"outputs":{"p":[null]}'), "malformed"),
        # A key that stands twice, wherever, plainly or behind an escape
        (with_member('"value":11'), "malformed"),
        (with_member('"model":"pricing"'), "malformed"),
        (with_member('"\\u0076alue":11'), "malformed"),
        (with_member('"more":1,"more":1'), "malformed"),
        (with_member('"more" :1,\n"more"\t:2'), "malformed"),
        (with_member('"features":{"cost":1,"cost":1}'), "malformed"),
        (with_member('"features":{"other":1,"other":2}'), "malformed"),
        (with_member('"more":[{"x":1,"x":1}]'), "malformed"),
        (with_member('"a_long_feature_1":1,"a_long_feature_1":1'), "malformed"),
        (with_member('"a_long_feature_1":1,"a_long_feature_2":1'), "approved"),
        (with_member('"a_long_feature_1":1,"b_long_feature_1":1'), "approved"),
        *((with_member(f'"{key}":1,"{key}":1'), "malformed") for key in ("", "a", "7letter", "8letters", "9_letters")),
        (with_member('"9_letters":1,"9-letters":1,"8letters":1,"letters":1,"etters":1'), "approved"),
        (with_member('"more":":","most":":"'), "approved"),
        *((b'{"' + key + b'":1,' + FINE[1:], "approved") for key in (b":", b":a", b"a:", b":more_letters")),
        (with_member('"more":":","more":":"'), "malformed"),
        (with_member('"more" : 1 , "most" : " :"'), "approved"),
        (with_member('"features":{"value":1,"model":"x"}'), "approved"),
        (with_member('"more":[{"x":1},{"x":1}]'), "approved"),
        (with_member('"more":"\\"value\\":1"'), "approved"),
        (with_member('"more":"value","most":"value"'), "approved"),
        # Bytes
        (b"", "malformed"),
        (b"null", "malformed"),
        (b"[1]", "malformed"),
        (b"{}", "malformed"),
        (FINE + b"x", "malformed"),
        (FINE + FINE, "malformed"),
        (FINE + b"\n", "approved"),
        (b"\xef\xbb\xbf" + FINE, "malformed"),
        (FINE.replace(b'"p"', b'"\xff"'), "malformed"),
        (with_member('"more":"x"').replace(b'"x"', b'"\xed\xa0\x80"'), "malformed"),
        (raw(entity_id="\ud800"), "malformed"),
        (with_member('"more":"\\ud83d\\ude00"'), "approved"),
        (with_member('"more":"\x01"'), "malformed"),
        (with_member('"more":' + "[" * 10_000 + "]" * 10_000), "malformed"),
        (with_member('"more":' + '{"a":' * 10_000 + "1" + "}" * 10_000), "malformed"),
        (None, "malformed"),
        # Required fields
        *((raw(**{name: None}), "malformed") for name in ("prediction_id", "model", "model_version", "entity_id")),
        *((raw(**{name: ""}), "malformed") for name in ("prediction_id", "model", "model_version", "entity_id")),
        # An integer is an identity as its decimal text; no other number is
        *((raw(**{name: 7}), "approved") for name in ("prediction_id", "model_version", "entity_id")),
        (raw(model=7), "no_policy"),
        (raw(entity_id=10**40), "approved"),
        (raw(entity_id=-5), "approved"),
        (raw(model_version=-5), "malformed"),
        (put('10,"x":1').replace(b'"a"', b"1" * 309), "malformed"),
        *((raw(**{name: 7.0}), "malformed") for name in ("prediction_id", "model", "model_version", "entity_id")),
        *((raw(**{name: True}), "malformed") for name in ("prediction_id", "model", "model_version", "entity_id")),
        *((raw(**{name: [7]}), "malformed") for name in ("prediction_id", "model", "model_version", "entity_id")),
        (raw(entity_id="x" * 1000), "approved"),
        (raw(entity_id="x" * 1001), "malformed"),
        (raw(model_version="v 1"), "malformed"),
        (raw(model_version="{v1}"), "malformed"),
        (raw(model_version="v" * 201), "malformed"),
        (raw(model_version="2026-11-24/a:b@c+d"), "approved"),
        (raw(value=None), "malformed"),
        (raw(value=None, outputs={}), "malformed"),
        (raw(value=None, outputs={"p": 1}), "approved"),
        # The types of the contract, where a policy reads the field; features are of any type
        (raw(segment=5), "malformed"),
        (raw(predicted_at="2026-11-24T10:00:00"), "malformed"),
        (raw(predicted_at="yesterday"), "malformed"),
        (raw(predicted_at=1795514400), "malformed"),
        (raw(features={"cost": "1.5"}), "approved"),
        (raw(features=[]), "malformed"),
    ],
)
def test_an_event_gets_the_same_answer_whatever_its_neighbours_are(event, expected, neighbours):
    """Traps: NaN passes every test, 1e999 is infinity, "1.5" passes a lax parser, the second of two keys wins."""
    assert verdict(event, [event] * 5 if neighbours is None else neighbours) == expected


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (b"\xff", "the value is not UTF-8: byte 0 is 0xff"),
        (b"nope", "the value is not JSON: Expecting value at byte 0"),
        (b"7", "the value is a JSON int, not an object"),
        (None, "the record has no value"),
        (with_member('"value":1'), "the key 'value' stands twice"),
        (with_member('"more":' + "[" * 10_000 + "]" * 10_000), "the value is nested too deeply"),
        (raw(entity_id="\ud800"), "a text holds half of a surrogate pair, which is no character"),
        (
            raw(value=None),
            "neither value nor outputs is given: nothing stands at `value`, and nothing stands at `outputs`",
        ),
        (
            put("null"),
            "neither value nor outputs is given: at `value` stands null, and nothing stands at `outputs`",
        ),
        (raw(entity_id=None), "it lacks the required field `entity_id`: nothing stands at `entity_id`"),
        (
            raw(entity_id=True),
            "expected a text of 1 to 1000 characters or an integer for `entity_id`, got the JSON true",
        ),
        (
            put('"10"'),
            (
                'expected a number for `value`, got the text "10"; if that is right, write `value = { path = "value", '
                'as = "decimal_text" }` in [fields]'
            ),
        ),
        (put('"NaN"'), 'expected a number for `value`, got the text "NaN"'),
        (put("{}"), "expected a number for `value`, got an object with 0 keys"),
        (put('"' + "x" * 500 + '"'), 'expected a number for `value`, got the text "' + "x" * 59 + "…"),
        (
            raw(value=None, outputs={"p": None}),
            (
                "neither value nor outputs is given: nothing stands at `value`, and at `outputs` stands an object with "
                "1 keys"
            ),
        ),
        (
            b"\x00\x00\x00\x00\x07" + FINE,
            (
                "the value begins with the framing of a schema registry (byte 0, then the schema's id 7), and JSON "
                "behind it: Holdfast reads plain JSON; let the producer write JSON without a registry's serializer, or "
                "put a converter before Holdfast"
            ),
        ),
    ],
)
def test_a_malformed_record_says_why(event, reason):
    """One sentence, in the terms of the event."""
    assert Shape().decode([event]).malformed[0].reason == reason


def test_a_reason_is_never_as_long_as_the_record():
    """It goes into a header."""
    event = with_member(f'"{"k" * 500_000}":1,"{"k" * 500_000}":1')
    (reason,) = Shape().decode([event]).malformed.values()
    assert "stands twice" in reason.reason
    assert len(reason.reason) < 2000


MAPPED = """
model = "pricing"
[fields]
prediction_id = "meta.id"
model = "meta.model.name"
model_version = "meta.model.version"
entity_id = "sku"
value = "offer.price"
features = "inputs"
segment = "offer.group"
[[checks]]
name = "floor"
kind = "range"
min = 10
segment.cameras = {min = 20}
[[checks]]
name = "above_cost"
kind = "expression"
expression = "value >= cost"
"""


def mapped(price=10, group="phones", cost=5, **more):
    event = {
        "meta": {"id": "p", "model": {"name": "pricing", "version": "v1"}},
        "sku": "a",
        "offer": {"price": price, "group": group},
        "inputs": {"cost": cost},
    }
    return json.dumps(event | more).encode()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (mapped(), "approved"),
        (mapped(price=9), "floor"),
        (mapped(group="cameras"), "floor"),
        (mapped(cost=11), "above_cost"),
        (mapped(price=None), "malformed"),
        (mapped(price="10"), "malformed"),
        (mapped(meta={"id": "p"}), "malformed"),
        (mapped(offer=10), "malformed"),
        (mapped(value="not ours to read"), "approved"),
        (mapped().replace(b'"price"', b'"price":1,"price"'), "malformed"),
        (raw(), "malformed"),
    ],
)
def test_events_of_another_shape_are_read_by_dotted_path(event, expected):
    """The policy's `[fields]` says where each field stands; nothing else of the event changes."""
    assert verdict(event, policy=policy_of(MAPPED)) == expected
