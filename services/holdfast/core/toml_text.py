"""TOML as people write it: with a mark of the byte order in front, and with the mistakes that they make."""

import re
import tomllib
from typing import Any

_AT = re.compile(r"\(at line (\d+), column \d+\)$")
_KEY = re.compile(r"\s*([\w.\"'-]+)\s*=\s*(.*?)\s*(?:\s#.*)?$")
_BOOLEANS = {"True": "true", "False": "false", "yes": "true", "no": "false", "None": "", "null": ""}


def parse_toml(text: str) -> dict[str, Any]:
    """Parse it. Raises ValueError in words, which name the line, and the quotes where those are missing."""
    text = text.removeprefix("\ufeff")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{error}{_advice(text, str(error))}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _advice(text: str, error: str) -> str:
    """What to write instead, where that can be told."""
    at = _AT.search(error)
    lines = text.splitlines()
    if at is None or not 0 < int(at[1]) <= len(lines):
        return ""
    line = _KEY.match(lines[int(at[1]) - 1])
    if line is None:
        return ""
    key, value = line[1], line[2]
    if value in _BOOLEANS:
        instead = _BOOLEANS[value]
        return f": write {key} = {instead}" if instead else f": leave the line with {key} out where it has no value"
    if value.startswith('"') and "\\" in value:
        return f": a backslash in double quotes begins an escape; write {key} = '…' in single quotes"
    if value and value[0] not in "\"'[{" and re.fullmatch(r"[^\"'=\[\]{},]*[A-Za-z/][^\"'=\[\]{},]*", value):
        return f': a text stands in quotes: write {key} = "…"'  # The value may be a secret.
    return ""
