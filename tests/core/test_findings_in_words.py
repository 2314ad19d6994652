"""A finding in words, and the incident that it belongs to: one sentence for people, whatever was seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.findings import deviation, entity, expected, in_words, saw, words, worst, worst_first
from holdfast_schemas import Finding, Sample, Severity


def finding(seen=None, limit=None, *, check="floor", field="value", unit=None, enforced=True):
    return Finding(
        check=check, severity=Severity.ERROR, enforced=enforced, field=field, seen=seen, limit=limit, unit=unit
    )


@pytest.mark.parametrize(
    ("limit", "unit", "says"),
    [
        ({"min": 10}, None, "at least 10"),
        ({"min": 10.0}, "USD", "at least 10 USD"),
        ({"max": 0.95}, None, "at most 0.95"),
        ({"min": 250.0, "max": 25000.0}, "USD", "250 to 25,000 USD"),
        ({"min": 5e307, "max": "inf", "last": 1e308}, None, "at least 5e+307 (last 1e+308)"),
        ({"min": "-inf", "max": "inf"}, None, "any number"),
        ({"min": 6499.5, "max": 38997.0, "last": 12999.0}, "USD", "6,499.5 to 38,997 USD (last 12,999)"),
        ({"sum": 1, "tolerance": 1e-6}, None, "a sum of 1 (tolerance 1e-06)"),
        ({"max_age": "1h", "max_ahead": "5s"}, None, "at most 1h old, at most 5s ahead"),
        ({"something": {"new": [1, None, True]}}, None, "something new 1, nothing, yes"),
        (["USD", "EUR"], None, "USD or EUR"),
        ([1.0], None, "1"),
        ([], None, "nothing"),
        ("value >= 1.02 * cost", None, "value >= 1.02 * cost"),
        ("a row in the table", None, "a row in the table"),
        (3, "USD", "3 USD"),
        (None, None, ""),
        ({}, None, "any number"),
    ],
)
def test_a_limit_reads_as_what_was_expected(limit, unit, says):
    assert expected(finding(limit=limit, unit=unit)) == says


@pytest.mark.parametrize(
    ("seen", "unit", "says"),
    [
        (9.6, "USD", "9.6 USD"),
        (12999, None, "12,999"),
        (14.99999, None, "14.99999"),
        (1e308, None, "1e+308"),
        (10**400, None, "inf"),
        ("nan", "USD", "nan"),
        ("", None, "an empty text"),
        ("a\n b", None, "a b"),
        (True, None, "yes"),
        (None, "USD", "nothing"),
        ({"value": 10.0, "features.cost": None}, None, "value 10, features.cost nothing"),
        ([0.1, 0.2], None, "0.1, 0.2"),
        (list(range(12)), None, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"),
        ("x" * 500, None, "x" * 119 + "…"),
    ],
)
def test_what_was_seen_reads_as_text(seen, unit, says):
    assert saw(finding(seen, unit=unit)) == says


def test_a_finding_is_one_sentence():
    """With its field, what was seen, what was expected, and the check; what is not known is left out."""
    assert in_words(finding(9.6, {"min": 250.0}, unit="USD")) == "value 9.6 USD, expected at least 250 USD (floor)"
    assert in_words(finding("inf", check="non_finite")) == "value inf (non_finite)"
    assert in_words(finding("v42", "not fenced", field=None, check="fenced")) == "v42, expected not fenced (fenced)"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=100), inner, max_size=12),
    max_leaves=20,
)


@given(anything, anything | st.dictionaries(st.sampled_from(["min", "max", "last", "sum", "max_age", "x"]), anything))
def test_every_finding_has_words(seen, limit):
    """One line of bounded length, whatever producers or other writers put there; it also has a rank."""
    one = finding(seen, limit, unit="USD")
    for text in (in_words(one), saw(one), expected(one), words(limit)):
        assert len(text) <= 300
        assert "\n" not in text
    deviation(one)


def test_words_are_no_notation_of_python():
    """Dictionaries, lists, None and booleans, also inside of each other."""
    one = finding({"a": [None, True, {"b": "c"}]}, {"min": 10, "of": {"x": [False]}})
    text = in_words(one)
    assert not set("{}[]'\"") & set(text)
    assert not {"None", "True", "False"} & set(text.replace(",", " ").split())


def test_the_worst_sample_comes_first():
    """By ratio; what blocked before what only watched; samples without a finding last."""
    samples = [
        Sample(source=f"p/0/{number}", prediction=prediction, findings=findings)
        for number, (prediction, findings) in enumerate(
            [
                ({"entity_id": "none"}, ()),
                ({"entity_id": 7}, (finding(9.0, {"min": 10.0}),)),
                ({"entity_id": "watched"}, (finding(1e9, {"max": 10.0}, enforced=False),)),
                ("not JSON", (finding(1.0, {"min": 10.0}),)),
            ]
        )
    ]
    sample, found = worst(samples)
    assert (sample.source, found.seen) == ("p/0/3", 1.0)
    assert [entity(one) for one in worst_first(samples)] == ["", "7", "watched", "none"]
    assert worst([samples[0]]) is None
