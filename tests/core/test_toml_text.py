"""Configuration and policies are read as people write them."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.toml_text import parse_toml


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("policies = policies/x", 'write policies = "…"'),
        ('model = "m"\n[fields]\nvalue = price.amount', 'line 3.*write value = "…"'),
        ("url_file = /run/secrets/url # a comment", 'write url_file = "…"'),
        ('path = "C:\\users\\me"', "write path = '…' in single quotes"),
        ("embedded = True", "write embedded = true"),
        ("embedded = no", "write embedded = false"),
        ("reason = None", "leave the line with reason out"),
        ("password = s3cret", 'write password = "…"'),
    ],
)
def test_a_mistake_is_told_with_what_to_write(text: str, advice: str) -> None:
    """Unquoted paths, Windows paths, and other languages' booleans; a secret is not repeated."""
    with pytest.raises(ValueError, match=advice) as error:
        parse_toml(text)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("text", ["a = ", "a = 1.2.3", "a = [1,", "= 1", "a = 'x", "a = 1\na = 2", "[a\nb = 1"])
def test_what_has_no_advice_says_what_the_parser_says(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(tomllib.TOMLDecodeError) as parser:
        tomllib.loads(text)
    with pytest.raises(ValueError, match=r".") as error:
        parse_toml(text)
    assert str(error.value) == str(parser.value)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    """As editors on Windows write it."""
    assert parse_toml("\ufeffmodel = 'pricing'") == {"model": "pricing"}


@given(st.text(alphabet="ab=.\"'[]{}\\/# \n\ufeff0", max_size=40))
def test_any_text_is_parsed_or_refused_in_words(text: str) -> None:
    """The advice never fails, and never changes what is accepted."""
    try:
        expected = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        expected = None
    if expected is None:
        with pytest.raises(ValueError, match=r"."):
            parse_toml(text)
    else:
        assert parse_toml(text) == expected
