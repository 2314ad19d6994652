"""Names of who acts: people and pipelines, in commands, tokens and the audit.

A name is kept in one form: Unicode NFKC, one blank between words, none at the ends, no invisible characters. Names that
differ only in case name the same actor. `holdfast` names automatic decisions, so nobody may act under it, nor under a
name that a reader would take for it.
"""

import unicodedata

HOLDFAST = "holdfast"
"""The actor of automatic decisions."""
MAX_ACTOR = 1000
"""Characters of a name."""

_INVISIBLE = frozenset(("Cc", "Cf", "Co", "Cn", "Cs"))
"""Categories of characters that show nothing, or no fixed shape."""
_LOOK_ALIKES = str.maketrans(
    {
        "0": "o",
        "1": "l",
        "|": "l",
        # Cyrillic, Greek, Armenian and Latin letters that are drawn as those of the name.
        **dict.fromkeys("\u04bb\u0570\u043d", "h"),
        **dict.fromkeys("\u043e\u03bf\u0585\u03c3", "o"),
        **dict.fromkeys("\u04cf\u03b9\u0456\u0131\u0269", "l"),
        **dict.fromkeys("\u0501\u0257", "d"),
        **dict.fromkeys("\u0192\u03dd", "f"),
        **dict.fromkeys("\u0430\u03b1\u0251", "a"),
        **dict.fromkeys("\u0455\ua731", "s"),
        **dict.fromkeys("\u0442\u03c4\u0167", "t"),
        "i": "l",
    }
)


def actor_name(text: str) -> str:
    """Return the name in its one form. Raises ValueError, which says what is wrong and what to do."""
    name = " ".join(unicodedata.normalize("NFKC", text).split())
    if not name:
        raise ValueError("the name of the actor is blank; say who acts")
    if len(name) > MAX_ACTOR:
        raise ValueError(f"the name of the actor has more than {MAX_ACTOR:,} characters; shorten it")
    if any(unicodedata.category(character) in _INVISIBLE for character in name):
        raise ValueError("the name of the actor holds invisible characters; leave them out")
    if is_reserved(name):
        raise ValueError(f"{HOLDFAST!r} names automatic decisions; say who acts")
    return name


def actor_key(name: str) -> str:
    """What is the same for two names of one actor."""
    return unicodedata.normalize("NFKC", " ".join(unicodedata.normalize("NFKC", name).split()).casefold())


def is_reserved(name: str) -> bool:
    """Whether a reader would take the name for that of automatic decisions."""
    plain = unicodedata.normalize("NFKD", actor_key(name))
    letters = "".join(
        character for character in plain if not unicodedata.category(character).startswith(("M", "C", "Z", "P"))
    )
    return letters.translate(_LOOK_ALIKES) == HOLDFAST
