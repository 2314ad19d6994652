"""Which entity ids are refused: those that begin or end with a blank or with a character that nobody sees.

`SKU-1` and `SKU-1 ` look alike and are two entities: the second has no last approved value, and no row in a table.
"""

import unicodedata
from collections.abc import Sequence

_VISIBLE = bytes(range(0x21, 0x7F))
_CATEGORIES = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf"))
"""Blanks and line ends, controls, and format characters, such as those of no width."""
_LOOK_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters, marks and symbols that are drawn as nothing: fillers and an empty Braille cell."""


def unclear_end(entity: str) -> str | None:
    """The first or last character of an entity id, where it is blank or cannot be seen; None: both are clear."""
    for character in (entity[:1], entity[-1:]):
        if character in _LOOK_BLANK or unicodedata.category(character) in _CATEGORIES:
            return character
    return None


def with_unclear_ends(entities: Sequence[str | None]) -> dict[int, str]:
    """By row, the blank or invisible character at an end of its entity id. None stands for no id."""
    try:
        # What is left of ids of visible ASCII characters are the line ends between them.
        left = "\n".join(entities).encode().translate(None, _VISIBLE)  # type: ignore[arg-type]
        if left == b"\n" * (len(entities) - 1):
            return {}
    except TypeError:
        pass
    return {
        row: found
        for row, entity in enumerate(entities)
        if entity is not None and (found := unclear_end(entity)) is not None
    }
