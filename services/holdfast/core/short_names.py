"""Names of entities in a bounded form, for evidence that only has to tell entities apart."""

import hashlib

LONGEST = 64
"""Bytes of a name in UTF-8 that is kept as it is."""


def short(name: str) -> str:
    """Return the name, or a hash of it where it is long or needs escapes in JSON; the same name gives the same text."""
    if len(name) <= LONGEST and name.isprintable():
        raw = name.encode("utf-8", "surrogatepass")
        if len(raw) <= LONGEST and b'"' not in raw and b"\\" not in raw:
            return name
    else:
        raw = name.encode("utf-8", "surrogatepass")
    return f"sha256:{hashlib.sha256(raw).hexdigest()[:32]}"
