"""TOML as people write it: with a mark of the byte order in front, and with the mistakes that they make."""

import re
import tomllib
from typing import Any

_AT = re.compile(r"\(at line (\d+), column \d+\)$")
_KEY = re.compile(r"\s*([\w.\"'-]+)\s*=\s*(.*?)\s*(?:\s#.*)?$")
_BOOLEANS = {"True": "true", "False": "false", "yes": "true", "no": "false", "None": "", "null": ""}


_QUOTING = {
    "Cannot declare": "A table is declared twice",
    "Cannot mutate immutable namespace": "A table that is complete is written to again",
    "Cannot redefine namespace": "A table is declared twice",
    "Duplicate inline table key": "A key stands twice in an inline table",
    "Found invalid character": "Found an invalid character",
    "Illegal character": "Found an invalid character",
}
"""How the parser's messages begin that hold a piece of the text, and what is said instead."""


def parse_toml(text: str, *, quote: bool = True) -> dict[str, Any]:
    """Parse it. Raises ValueError in words, which name the line, and the quotes where those are missing.

    Without `quote` they hold nothing of the text, not even a key.
    """
    text = text.removeprefix("\ufeff")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = str(error) if quote else _without_quotes(str(error))
        raise ValueError(f"{said}{_advice(text, str(error), quote=quote)}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _without_quotes(error: str) -> str:
    for beginning, instead in _QUOTING.items():
        if error.startswith(beginning):
            at = error.rpartition(" (at ")[2]
            return f"{instead} (at {at}"
    return error


def _advice(text: str, error: str, *, quote: bool) -> str:
    """What to write instead, where that can be told."""
    at = _AT.search(error)
    lines = text.splitlines()
    if at is None or not 0 < int(at[1]) <= len(lines):
        return ""
    line = _KEY.match(lines[int(at[1]) - 1])
    if line is None:
        return ""
    key, value = line[1] if quote else "key", line[2]
    if value in _BOOLEANS:
        instead = _BOOLEANS[value]
        return f": write {key} = {instead}" if instead else f": leave the line with {key} out where it has no value"
    if value.startswith('"') and "\\" in value:
        return f": a backslash in double quotes begins an escape; write {key} = '…' in single quotes"
    if value and value[0] not in "\"'[{" and re.fullmatch(r"[^\"'=\[\]{},]*[A-Za-z/][^\"'=\[\]{},]*", value):
        return f': a text stands in quotes: write {key} = "…"'  # The value may be a secret.
    return ""
