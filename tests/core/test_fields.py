"""How a policy's `[fields]` says where a field stands and how it is written; nothing is guessed."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.alike import Real, failures, policy_of, raw
from holdfast.core.decode import Shape
from holdfast.core.grouping import decode_by_model
from holdfast.core.mapping import FieldMapping, Reading, format_path, parse_path
from holdfast.core.policy import PolicyError, PolicySet

CHECKS = """
[[checks]]
name = "floor"
kind = "range"
min = 10
[[checks]]
name = "cost"
kind = "range"
field = "features.cost"
max = 100
unknown = "pass"
[[checks]]
name = "fresh"
kind = "freshness"
max_age = "1d"
unknown = "pass"
"""


def answer(fields, **members):
    """`malformed` or the names of the failed checks, of an event under these `[fields]`."""
    policy = policy_of(f'model = "pricing"\n[fields]\n{fields}\n{CHECKS}')
    (found,) = Real(policy).judge([raw(**members)])
    return found if found == "malformed" else ",".join(sorted(failures(found)))


SECONDS = 1795514400
"""2026-11-24T10:00:00Z, which is now."""


@pytest.mark.parametrize(
    ("reading", "written", "expected"),
    [
        ("epoch_s", SECONDS, ""),
        ("epoch_s", SECONDS - 86_400.5, "fresh"),
        ("epoch_s", SECONDS - 86_400, ""),
        # The year 58,868, which no clock means.
        ("epoch_s", SECONDS * 1000, "malformed"),
        ("epoch_s", 10**300, "malformed"),
        ("epoch_s", "1795514400", "malformed"),
        ("epoch_s", "2026-11-24T10:00:00Z", "malformed"),
        ("epoch_s", True, "malformed"),
        ("epoch_ms", SECONDS * 1000, ""),
        ("epoch_ms", SECONDS * 1000 - 86_400_001, "fresh"),
        ("epoch_ms", SECONDS, "fresh"),
        ("epoch_ms", float("nan"), "malformed"),
        ("epoch_ms", float("inf"), "malformed"),
        ("utc", "2026-11-24T10:00:00", ""),
        ("utc", "2026-11-23T09:59:59", "fresh"),
        ("utc", "2026-11-24T11:00:00+01:00", ""),
        ("utc", SECONDS, "malformed"),
        ("utc", "10:00", "malformed"),
    ],
)
def test_a_time_is_read_as_the_policy_says(reading, written, expected):
    """Seconds, milliseconds, or a text without a zone: each only where the policy names it."""
    assert answer(f'predicted_at = {{ path = "ts", as = "{reading}" }}', ts=written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("12.50", ""),
        ("10", ""),
        ("9.99", "floor"),
        ("1e3", ""),
        (12.5, ""),
        (9, "floor"),
        ("-0.00", "floor,negative_zero"),
        ("1e999", "non_finite"),
        ("9" * 400, "non_finite"),
        *(
            (text, "malformed")
            for text in ("NaN", "Infinity", "", " 12", "12 ", "+12", "012", "1_000", "1,000", "12.", ".5", "0x1", "٣")
        ),
        (True, "malformed"),
        (["12"], "malformed"),
        ("1" * 1001, "malformed"),
    ],
)
def test_a_decimal_in_a_text_is_a_number_where_the_policy_says_so(written, expected):
    """As JSON would write it, and no other text."""
    assert answer('value = { path = "amount", as = "decimal_text" }', value=None, amount=written) == expected


def test_outputs_and_features_may_be_decimals_in_texts_too():
    """All outputs of the object; a feature that holds another text stays a text."""
    outputs = 'outputs = { path = "scores", as = "decimal_text" }'
    assert answer(outputs, scores={"p": ["0.5", 0.5], "q": "1"}) == ""
    assert answer(outputs, scores={"p": "-0"}) == "negative_zero"
    assert answer(outputs, scores={"p": "1e999"}) == "non_finite"
    assert answer(outputs, scores={"p": "x"}) == "malformed"
    for feature in (
        '"features.cost" = { path = "cost", as = "decimal_text" }',
        'features = { path = "f", as = "decimal_text" }',
    ):
        for cost, expected in (
            ("99.5", ""),
            ("100.5", "cost"),
            ("dear", ""),
            (100.5, "cost"),
            ("1e999", "cost,non_finite"),
        ):
            assert answer(feature, cost=cost, f={"cost": cost}) == expected


def test_without_the_option_nothing_of_it_is_read():
    """The contract's own way stays strict."""
    assert answer('value = "amount"', value=None, amount="12.50") == "malformed"
    assert answer('predicted_at = "ts"', ts=SECONDS) == "malformed"
    assert answer('predicted_at = "ts"', ts="2026-11-24T10:00:00") == "malformed"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ('predicted_at = "ts"', 'write `predicted_at = { path = "ts", as = "epoch_ms" }` in [fields]'),
        ("predicted_at = '\"t.s\"'", 'write `predicted_at = { path = \'"t.s"\', as = "epoch_ms" }` in [fields]'),
        ('predicted_at = "no_zone"', 'as = "utc"'),
        ('predicted_at = "seconds"', 'as = "epoch_s"'),
        ('value = "amount"', 'as = "decimal_text"'),
    ],
)
def test_the_reason_says_which_option_would_read_it(fields, says):
    """The person who wrote the mapping is told what to write."""
    policies = PolicySet.of([policy_of(f'model = "pricing"\n[fields]\n{fields}\n{CHECKS}')])
    event = raw(
        ts=SECONDS * 1000, no_zone="2026-11-24T10:00:00", seconds=SECONDS, amount="1.5", **{"t.s": SECONDS * 1000}
    )
    _, found = decode_by_model(policies, [event])
    assert says in found[0].reason


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("value", ("value",)),
        ("price.amount", ("price", "amount")),
        ('"meta.data".price', ("meta.data", "price")),
        ('a."b".c', ("a", "b", "c")),
        (r'"say \"hi\"".x', ('say "hi"', "x")),
        (r'"back\\slash"', ("back\\slash",)),
        ("with space.and-dash.$", ("with space", "and-dash", "$")),
    ],
)
def test_a_path_is_a_row_of_keys(path, keys):
    """A key with a dot or a quote in it stands in quotes."""
    assert parse_path(path) == keys


@given(st.lists(st.text(min_size=1).filter(bool), min_size=1, max_size=4))
def test_every_key_can_be_written(keys):
    """Whatever a producer calls its members."""
    assert parse_path(format_path(tuple(keys))) == tuple(keys)


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", 'a"b', '"a', '"a"b', '""', '"a\\x"'])
def test_what_is_not_a_path_is_refused(path):
    """With an example of one that is."""
    with pytest.raises(ValueError, match="is not a dotted path: write keys with dots between them"):
        parse_path(path)


def test_a_key_with_a_dot_in_it_can_be_read():
    """The mapping of issue and docs, on a real event."""
    assert answer("value = '\"meta.data\".price'", value=None, **{"meta.data": {"price": 12}}) == ""
    assert answer("value = '\"meta.data\".price'", value=None, **{"meta.data": {"price": 2}}) == "floor"
    assert answer("value = '\"meta.data\".price'", value=None, meta={"data": {"price": 12}}) == "malformed"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            'value = { path = "x", as = "epoch_ms" }',
            "'value' cannot be read as 'epoch_ms'; for this field there are: decimal_text",
        ),
        ('predicted_at = { path = "x", as = "decimal_text" }', "for this field there are: epoch_s, epoch_ms, utc"),
        ('segment = { path = "x", as = "utc" }', "for this field there are: none"),
        ('value = { path = "x", like = "utc" }', "'value' has no key 'like'; the keys here are path, as"),
        ('value = { as = "decimal_text" }', "'value' has no path"),
        ('features.cost = "x"', 'needs quotes, as in "features.cost" = "…"'),
        ("value = 5", "'value' needs a path"),
        ('"outputs.p" = "x"', "'outputs.p' cannot be mapped by itself; map `outputs`"),
        ('value = { path = "a..b" }', "'a..b' is not a dotted path"),
    ],
)
def test_a_mistake_in_the_mapping_is_refused_with_what_is_allowed(fields, says):
    """Nothing of it is ignored."""
    with pytest.raises(PolicyError) as refused:
        policy_of(f'model = "pricing"\n[fields]\n{fields}\n{CHECKS}')
    assert says in str(refused.value)


def test_integers_are_identities_of_their_digits():
    """As long as they are, among texts too: an entity is the same whether a producer writes it as text or number."""
    big = 123456789012345678901234567890
    policies = PolicySet.of([])
    events = [raw(entity_id=4711, model_version=3, prediction_id=big), raw(entity_id="4711"), raw(entity_id=big)]
    for batch in (events, events[:1], events * 400, [b"{", *events]):
        ((_, found),), _ = decode_by_model(policies, batch)
        assert set(found.columns.values("entity_id")) <= {"4711", str(big)}
        assert found.columns.values("model_version")[0] == "3"
    jump = 'model = "pricing"\n[[checks]]\nname = "jump"\nkind = "max_change"\nup = 2\n'
    first, second = Real(policy_of(jump)).judge([raw(entity_id=4711), raw(entity_id="4711", value=100.0)])
    assert (first[0], second[0]) == (True, False)


def test_a_mapping_is_part_of_the_policys_id_and_survives_printing():
    """`holdfast check` prints it as the file writes it."""
    one, other = (
        policy_of(f'model = "pricing"\n[fields]\nvalue = {{ path = "x"{more} }}\n')
        for more in ("", ', as = "decimal_text"')
    )
    assert one.id != other.id
    assert one.remembered_fields() == other.remembered_fields() == frozenset()
    assert other.model_dump(mode="json")["fields"] == {"value": {"path": "x", "as": "decimal_text"}}
    assert Shape({"value": FieldMapping(path="x", reading=Reading.DECIMAL_TEXT)}).path("value") == "x"


def test_a_number_that_is_not_finite_decides_only_where_it_is_read():
    """In a feature that no check reads it is reported; `non_finite = "all"` blocks it there too."""
    unread = raw(features={"cost": 5, "score": 1}).replace(b'"score": 1', b'"score": NaN')
    read = raw(features={"cost": 5}).replace(b'"cost": 5', b'"cost": NaN')
    value = raw(value=5).replace(b'"value": 5', b'"value": NaN')
    for key, expected in (
        ("", [True, False, False]),
        ('non_finite = "read"\n', [True, False, False]),
        ('non_finite = "all"\n', [False] * 3),
    ):
        real = Real(policy_of(f'model = "pricing"\n{key}{CHECKS}'))
        answers = real.judge([unread, read, value])
        assert [one[0] for one in answers] == expected
        assert all("non_finite" in failures(one) for one in answers)
        (told,) = real.tallies
        assert told.shadow_by_check.get("non_finite", 0) + told.blocked_by_check["non_finite"] == 3
    with pytest.raises(PolicyError, match="non_finite"):
        policy_of('model = "pricing"\nnon_finite = "none"')
    # Where no check runs, the output still counts.
    off = Real(policy_of(f'model = "pricing"\nmode = "off"\n{CHECKS}'))
    assert [one[0] for one in off.judge([unread, read, value])] == [True, True, False]


def test_the_clock_of_these_tests_is_what_they_say():
    """So that no case passes for another reason."""
    assert datetime.fromtimestamp(SECONDS, UTC).isoformat() == "2026-11-24T10:00:00+00:00"
    assert json.loads(raw())["value"] == 10.0
