"""Characters that nobody sees are shown."""

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.visible import ESCAPES, visible


def test_every_invisible_format_character_has_an_escape() -> None:
    """Of the Unicode that this Python knows: bidi overrides and isolates, zero-width characters, tags."""
    hidden = {c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in {"Cf", "Zl", "Zp"}}
    assert hidden <= ESCAPES.keys()
    assert visible("a\u202eb\u2066c\U000e0041") == "a\\u202eb\\u2066c\\U000e0041"


@given(st.text())
def test_what_can_be_seen_stays(text: str) -> None:
    """Letters of every script, marks and emoji are themselves."""
    shown = visible(text)
    assert shown.translate(ESCAPES) == shown
    if not ESCAPES.keys() & set(map(ord, text)):
        assert shown == text
