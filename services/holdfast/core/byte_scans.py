"""Scans of raw JSON bytes for what msgspec reads in another way than other programs do."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.one_event import _MAX_DIGITS
from holdfast.core.second_places import ODD_LETTERS


def suspect_rows(raws: Sequence[bytes | None], refused: Sequence[int]) -> list[int]:
    """The positions, but the `refused`, of records that may hold what msgspec overlooks."""
    positions: Sequence[int] = range(len(raws))
    values: Sequence[Any] = raws
    if refused:
        out = set(refused)
        positions = [i for i in positions if i not in out]
        values = [values[i] for i in positions]
    found: list[int] = []
    joined = b"\n".join(values)
    if b"\\" in joined or not _is_utf8(joined):
        odd = [b"\\" in value or not _is_utf8(value) for value in values]
        found = [i for i, is_odd in zip(positions, odd, strict=True) if is_odd]
        positions = [i for i, is_odd in zip(positions, odd, strict=True) if not is_odd]
        values = [value for value, is_odd in zip(values, odd, strict=True) if not is_odd]
        joined = b"\n".join(values)
    if not joined.isascii() and any(letter in joined for letter in ODD_LETTERS):
        found += [i for i, value in zip(positions, values, strict=True) if _ODD_KEY.search(value)]
    if values:
        found += [positions[row] for row in _ambiguous(joined, list(map(len, values)))]
    return found


def negative_zeros(raws: Sequence[bytes | None], values: Sequence[Any], outputs: Sequence[Any]) -> list[int]:
    """The positions of records that may hold the integer -0 as an output."""
    found: list[int] = []
    if 0.0 in values:
        found = [i for i, value in enumerate(values) if value == 0.0]
    if any(outputs):
        found += [i for i, given in enumerate(outputs) if given]
    return sorted({i for i in found if (raw := raws[i]) is not None and b"-0" in raw and _NEGATIVE_ZERO.search(raw)})


_ODD_KEY = re.compile(rb'"[^"]*(?:%s)[^"]*"\s*:' % b"|".join(ODD_LETTERS))
_NEGATIVE_ZERO = re.compile(rb"-0[,\]}\s]")


def _ambiguous(joined: bytes, lengths: Sequence[int]) -> list[int]:
    """The rows of records that may hold a key twice in one object, or a number that no double holds.

    `joined` are lines of such `lengths`, valid JSON objects without escapes, so that quotes open and close in turn.
    """
    # Eight bytes around, so that a word can be read before and behind every place.
    text = bytes(8) + joined + bytes(8)
    letters = np.frombuffer(text, dtype=np.uint8)
    starts = np.full(len(lengths) + 1, 8, dtype=np.intp)
    starts[1:] += np.cumsum(np.array(lengths) + 1)
    rows = _NOWHERE if _all_have_the_keys_of_the_first(text, letters, starts) else _repeating(text, letters, starts)
    huge = _exponents(letters)
    if max(lengths) > _MAX_DIGITS:
        # A run of more digits covers one of these blocks whole.
        blocks = letters[: len(letters) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
        digits = np.flatnonzero((blocks - ord("0") < 10).all(axis=1))
        huge = np.concatenate((huge, digits * _BLOCK))
    if len(huge):
        rows = np.concatenate((rows, np.searchsorted(starts, huge, side="right") - 1))
    return sorted(set(rows.tolist()))


def _all_have_the_keys_of_the_first(text: bytes, letters: NDArray[np.uint8], starts: NDArray[np.intp]) -> bool:
    """Whether all records plainly have as many keys as the first, in its order, and no two of them alike but for case.

    A key is told by its last eight bytes, which of a shorter one begin with the quote before it. Keys with other
    letters than those of ASCII are not plain.
    """
    quotes, following = letters[:-1] == ord('"'), letters[1:]
    if (quotes & (following <= ord(" "))).any():
        return False  # A colon may stand behind the blank.
    # A text that begins with a colon passes for a key, and so differs from the first record or is one more key there.
    closes = np.flatnonzero(quotes & (following == ord(":")))
    count = len(starts) - 1
    each, odd = divmod(len(closes), count)
    if odd or not each or (closes[::each] < starts[:-1]).any() or (closes[each - 1 :: each] >= starts[1:]).any():
        return False
    sizes = [min(8, close - text.rfind(b'"', 0, close)) for close in closes[:each].tolist()]
    masks = np.array([_LAST_BYTES[size] for size in sizes], dtype=np.uint64)
    keys = _words(text)[closes - 8].reshape(count, each) & masks
    if not (keys == keys[0]).all() or (keys[0] & _HIGH_BITS).any():
        return False
    # Two keys that may differ only in case are looked at, too.
    return len(set((keys[0] | _SMALL_LETTERS).tolist())) == each


def _words(text: bytes) -> NDArray[np.uint64]:
    """The eight bytes from each place on, the first one lowest."""
    return np.ndarray((len(text) - 7,), dtype="<u8", buffer=text, strides=(1,))


def _exponents(letters: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The places of exponents without a minus, outside of texts."""
    after_digit = ((letters[1:] | 0x20) == ord("e")) & (letters[:-1] - ord("0") < 10)
    if not after_digit.any():
        return _NOWHERE
    places = np.flatnonzero(after_digit) + 1
    places = places[letters[places + 1] != ord("-")]
    outside: NDArray[np.intp] = places[np.searchsorted(_quotes(letters), places) % 2 == 0]
    return outside


def _quotes(letters: NDArray[np.uint8]) -> NDArray[np.intp]:
    return np.flatnonzero(letters == ord('"'))


def _repeating(text: bytes, letters: NDArray[np.uint8], starts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The rows in which a key may stand twice, in one case or in two.

    Keys are told by their length and their first and last eight bytes.
    """
    quotes, words = _quotes(letters), _words(text)
    opens, closes = quotes[0::2] + 1, quotes[1::2]
    after = closes + 1
    while (white := (following := letters[after]) <= ord(" ")).any():
        after = after + white
    keys = np.flatnonzero(following == ord(":"))
    opens, closes = opens[keys], closes[keys]
    lengths = closes - opens
    signs = (words[opens] | _SMALL_LETTERS) & _FIRST_BYTES.take(lengths, mode="clip")
    signs ^= lengths.view(np.uint64) * _ODDER
    signs ^= np.where(lengths > 8, words[closes - 8] | _SMALL_LETTERS, 0) * _ODD
    rows = np.searchsorted(starts, opens, side="right") - 1
    order = np.lexsort((signs, rows))
    rows, signs = rows[order], signs[order]
    repeated: NDArray[np.intp] = rows[1:][(rows[1:] == rows[:-1]) & (signs[1:] == signs[:-1])]
    return repeated


_NOWHERE = np.zeros(0, dtype=np.intp)
_BLOCK = 128
_FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], dtype=np.uint64)
_LAST_BYTES = [((1 << 8 * size) - 1) << 8 * (8 - size) for size in range(9)]


def _is_utf8(raw: bytes) -> bool:
    if not raw.isascii():
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True


_HIGH_BITS, _SMALL_LETTERS = np.uint64(0x8080808080808080), np.uint64(0x2020202020202020)
_ODD, _ODDER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
