"""An event that a program could read in another way than the one that is checked is malformed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.alike import policy_of
from core.reference import Malformed, caseless, decode
from holdfast.core.decode import Shape
from holdfast.core.grouping import decode_by_model
from holdfast.core.malformed import MalformedKind
from holdfast.core.policy import PolicySet

SCORES = policy_of('model = "scores"\n[[checks]]\nname = "f"\nkind = "range"\nmin = 0\nmax = 1\n')
PRICES = 'model = "prices"\n[[checks]]\nname = "f"\nkind = "range"\nmin = 10\nmax = 1000\n[fields]\n{}\n'
ELSEWHERE = 'model = "meta.model"\nmodel_version = "meta.version"\nentity_id = "meta.sku"\nvalue = "prices"\n'
IDENTITY = {"prediction_id": "p", "model": "scores", "model_version": "v1", "entity_id": "a"}
META = {"model": "prices", "version": "v7", "sku": "SKU-1"}


def told(event, *policies):
    """Which model the event is of, or why it is malformed, and the version to blame."""
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    groups, flaws = decode_by_model(PolicySet.of([*policies]), [raw])
    if flaws:
        assert flaws[0].kind is MalformedKind.AMBIGUOUS, flaws[0]
        return flaws[0].reason, flaws[0].blames({policy.model for policy in policies})
    return groups[0][0], None


def mapped(fields, ambiguous="malformed"):
    return policy_of(f'ambiguous = "{ambiguous}"\n' + PRICES.format(fields))


def test_an_event_of_two_shapes_is_malformed_and_the_reason_names_both():
    """It would be approved as a score of 0.5 and used as a price of 0.01. No version can be blamed for it."""
    both = {**IDENTITY, "value": 0.5, "meta": META, "prices": 0.01}
    reason, blamed = told(both, SCORES, mapped(ELSEWHERE))
    assert "`prices` holds the number 0.01" in reason
    assert "events that the policy of prices maps" in reason
    assert blamed == ("scores", "v1")
    # Either one alone is what it is.
    assert told({**IDENTITY, "value": 0.5}, SCORES, mapped(ELSEWHERE)) == ("scores", None)
    assert told({"prediction_id": "p", "meta": META, "prices": 50}, SCORES, mapped(ELSEWHERE)) == ("prices", None)


def test_also_where_both_read_the_same_value():
    """A score of 0.5 was checked, and a price of 0.5 was not."""
    shared = mapped(ELSEWHERE.replace('value = "prices"\n', ""))
    reason, blamed = told({**IDENTITY, "value": 0.5, "meta": META}, SCORES, shared)
    assert '`meta.model` names the text "prices"' in reason
    assert blamed is None
    # A model that has its events elsewhere is no second reading.
    assert told({**IDENTITY, "value": 0.5, "meta": META | {"model": "x"}}, SCORES, shared) == ("scores", None)


AMOUNT = 'value = "price.amount"'
MINE = IDENTITY | {"model": "prices"}


@pytest.mark.parametrize(
    ("fields", "more", "words"),
    [
        (AMOUNT, {"price": {"amount": 50}, "value": 0.01}, "`price.amount` holds the number 50, and `value`, the"),
        (AMOUNT, {"price": {"amount": 50}, "value": "0.01"}, 'holds the text "0.01"'),
        (AMOUNT, {"price": {"amount": 50}, "outputs": {"price": 0.01}}, "no check reads it"),
        ('outputs = "out"', {"out": {"p": 1}, "outputs": {"p": 2}, "value": 50}, "`outputs`, the contract's place"),
        ('entity_id = "sku"', {"sku": "b", "value": 50}, '`sku` holds the text "b", and `entity_id`'),
        ('currency = "money.unit"', {"money": {"unit": "USD"}, "currency": "JPY", "value": 50}, "`currency`"),
        ('segment = "kind"', {"kind": "bags", "segment": "cameras", "value": 50}, "`segment`"),
    ],
)  # fmt: skip
def test_a_second_value_at_the_contracts_place_is_malformed(fields, more, words):
    """Where the policy maps the field to another one."""
    reason, blamed = told(MINE | more, mapped(fields))
    assert words in reason
    assert blamed == ("prices", "v1")
    assert told(MINE | more, mapped(fields, "pass")) == ("prices", None)


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        (AMOUNT, {"price": {"amount": 50}}),
        (AMOUNT, {"price": {"amount": 50}, "value": 50.0}),
        (AMOUNT, {"price": {"amount": 50, "value": 0.01}}),
        (AMOUNT, {"price": {"amount": 50}, "value": None}),
        (AMOUNT, {"price": {"amount": 50}, "value": "good"}),
        (AMOUNT, {"price": {"amount": 50}, "value": {"to": "us"}}),
        (AMOUNT, {"price": {"amount": 50}, "outputs": {}}),
        ('value = "value.amount"', {"value": {"amount": 50}}),
        ('value = { path = "price", as = "decimal_text" }', {"price": "50.0", "value": 50}),
        ('entity_id = "sku"', {"sku": "a", "value": 50}),
        ('entity_id = "sku"', {"sku": 12, "entity_id": "12", "value": 50}),
        ('"features.cost" = "inputs.cost"', {"inputs": {"cost": 1}, "features": {"cost": 2}, "value": 50}),
    ],
)
def test_what_says_the_same_or_nothing_is_harmless(fields, more):
    """The same value, null, an object on the way, a text that is no number."""
    assert told(MINE | more, mapped(fields)) == ("prices", None)


def test_an_output_beside_a_mapped_one_is_malformed_unless_a_check_reads_it():
    """Both may be of use, but not one that nobody looks at."""
    toml = (
        'model = "prices"\n[[checks]]\nname = "f"\nkind = "range"\nfield = "{}"\nmin = 1\n[fields]\noutputs = "out"\n'
    )
    event = MINE | {"out": {"p": 5}, "value": 2}
    assert "`value` holds the number 2, beside the outputs" in told(event, policy_of(toml.format("outputs.p")))[0]
    assert told(event, policy_of(toml.format("value"))) == ("prices", None)


def test_the_version_is_blamed_unless_it_is_the_one_in_question():
    """Two models or two versions: nobody can say which."""
    reason, blamed = told(MINE | {"value": 50, "v": "v2"}, mapped('model_version = "v"'))
    assert '`v` holds the text "v2", and `model_version`' in reason
    assert blamed is None


def test_two_mappings_in_force_know_of_each_other():
    """Each is told of the other's outputs; a policy may say that this is right."""
    checks = '[[checks]]\nname = "f"\nkind = "range"\nmin = 0\n'
    scores = f'ambiguous = "{{}}"\nmodel = "scores"\n{checks}[fields]\nvalue = "score"\n'
    event = IDENTITY | {"score": 0.5, "price": 0.01}
    prices = mapped('value = "price"')
    reason, _ = told(event, policy_of(scores.format("malformed")), prices)
    assert "`price` holds the number 0.01, which is the value of events that the policy of prices maps" in reason
    assert told(event, policy_of(scores.format("pass")), prices) == ("scores", None)
    assert "`score`" in told(event | {"model": "prices"}, policy_of(scores.format("pass")), prices)[0]


CASES = [
    b'{"prediction_id":"p","model":"scores","model_version":"v1","entity_id":"a","value":0.5,"Value":0.01}',
    b'{"prediction_id":"p","model":"scores","model_version":"v1","entity_id":"a","VALUE":0.01,"value":0.5}',
    b'{"prediction_id":"p","model":"scores","MODEL_VERSION":"v2","model_version":"v1","entity_id":"a","value":0.5}',
    b'{"prediction_id":"p","model":"scores","model_version":"v1","entity_id":"a","Entity_id":"b","value":0.5}',
    b'{"prediction_id":"p","model":"scores","model_version":"v1","entity_id":"a","value":0.5,"\\u0056alue":0.01}',
    '{"prediction_id":"p","model":"scores","model_version":"v1","entity_id":"a","value":0.5,"output\u017f":{"p":1}'
    ',"outputs":{"p":1}}'.encode(),
    '{"prediction_id":"p","model":"scores","model_version":"v1","entity_id":"a","ent\u0131ty_id":"b","value":0.5}'.encode(),
]  # fmt: skip


@pytest.mark.parametrize("event", CASES)
@pytest.mark.parametrize("beside", [b"", CASES[0].replace(b',"Value":0.01', b',"Valve":0.01'), b"{"])
def test_two_keys_that_differ_only_in_case_are_malformed(event, beside):
    """Many programs read either; whatever stands beside the event in its batch."""
    raws = [one for one in (beside, event, beside) if one]
    _, flaws = decode_by_model(PolicySet.of([SCORES]), raws)
    reason = flaws[raws.index(event)].reason
    assert "differ only in case" in reason
    assert "scores" in str(flaws[raws.index(event)].identity)


def test_such_keys_elsewhere_are_the_producers_business():
    """In features, and in outputs that no check reads."""
    event = IDENTITY | {"value": 0.5, "features": {"a": 1, "A": 2}, "outputs": {"x": 1, "X": 2}, "note": 1, "Note": 2}
    assert told(event, SCORES) == ("scores", None)
    reading = policy_of('model = "scores"\n[[checks]]\nname = "f"\nkind = "range"\nfield = "outputs.x"\nmin = 0\n')
    assert "'x' and 'X'" in told(event, reading)[0]


KEYS = st.sampled_from(
    ["value", "Value", "VALUE", "va\u0131ue", "outputs", "Output\u017f", "segment", "Segment", "x", "é"]
)
PLAIN = Shape(texts=["segment"])
READS = policy_of('model = "scores"\n[[checks]]\nname = "f"\nkind = "one_of"\nfield = "segment"\nvalues = ["x"]\n')


@settings(max_examples=300)
@given(st.lists(st.lists(st.tuples(KEYS, st.just(1) | st.just("x")), max_size=4), min_size=1, max_size=6))
def test_a_batch_is_read_as_each_of_its_events(several):
    """The quick way overlooks no two keys that differ in case, and suspects nothing that the strict one lets pass."""
    raws = []
    for pairs in several:
        members = [*IDENTITY.items(), *((key, seen) for key, seen in pairs if caseless(key) != "outputs" or seen == 1)]
        body = ",".join(f"{json.dumps(key, ensure_ascii=False)}:{json.dumps(seen)}" for key, seen in members)
        raws.append(f"{{{body}}}".replace('"outputs":1', '"outputs":{"p":1}').encode())
    decoded = PLAIN.decode(raws)
    for row, raw in enumerate(raws):
        try:
            decode(raw, READS)
            right = True
        except Malformed:
            right = False
        assert (row not in decoded.malformed and row not in decoded.ambiguous) == right, raw
