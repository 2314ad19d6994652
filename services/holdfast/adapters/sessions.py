"""Sessions of browsers: a signed cookie that names a token and its own end, but does not hold the token.

The cookie is `v1.OWNER.ISSUED.NONCE.MAC`. Every instance of the API that has the same key reads it. It is over at its
end, with its token, and with a sign-out, which the instance that took it remembers until the end of the session.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from datetime import timedelta

_VERSION = "v1"
LEAST_KEY_BYTES = 32
CODE_LASTS = 60.0
"""Seconds."""
_MOST_CODES = 100


class Sessions:
    def __init__(self, key: bytes | None, lasts: timedelta, clock: Callable[[], float] = time.time) -> None:
        """Without a `key` the sessions end with this process."""
        self._key = key or secrets.token_bytes(LEAST_KEY_BYTES)
        self._lasts, self._clock = lasts.total_seconds(), clock
        self._ended: dict[str, float] = {}
        """By nonce of a session that was signed out: when it would have ended."""

    def open(self, owner: str) -> str:
        """Return the cookie of a new session."""
        said = f"{_VERSION}.{owner}.{int(self._clock())}.{secrets.token_hex(16)}"
        return f"{said}.{self._mac(said)}"

    def owner(self, cookie: str) -> str | None:
        """Return what the session names its token by; None where it is over, or not ours."""
        found = self._read(cookie)
        return found[0] if found is not None else None

    def close(self, cookie: str) -> None:
        """End a session before its time."""
        now = self._clock()
        for nonce in [nonce for nonce, ends in self._ended.items() if ends <= now]:
            del self._ended[nonce]
        if (found := self._read(cookie)) is not None:
            self._ended[found[1]] = found[2]

    def _read(self, cookie: str) -> tuple[str, str, float] | None:
        """Owner, nonce and end."""
        said, _, mac = cookie.rpartition(".")
        if not cookie.isascii() or not hmac.compare_digest(self._mac(said), mac):
            return None
        _, owner, issued, nonce = said.split(".")
        age = self._clock() - int(issued)
        # A clock that was set back makes no session longer than a minute.
        if not -60 <= age < self._lasts or nonce in self._ended:
            return None
        return owner, nonce, int(issued) + self._lasts

    def _mac(self, said: str) -> str:
        return hmac.new(self._key, said.encode(), hashlib.sha256).hexdigest()


class Codes:
    """Codes that sign one browser in, once, within a minute: what a browser is started with may be seen by others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    def make(self, owner: str) -> str:
        now = self._clock()
        self._known = {code: known for code, known in self._known.items() if known[1] > now}
        if len(self._known) >= _MOST_CODES:
            del self._known[next(iter(self._known))]
        code = f"once_{secrets.token_urlsafe(24)}"
        self._known[_hash(code)] = (owner, now + CODE_LASTS)
        return code

    def use(self, code: str) -> str | None:
        """Return whose code this is, and forget it."""
        owner, ends = self._known.pop(_hash(code), (None, 0.0))
        return owner if ends > self._clock() else None


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode("utf-8", "surrogateescape")).hexdigest()
