"""Sessions of browsers: a signed cookie that names a token, or a person whom a provider vouched for; and its own end.

The cookie is `v1.OWNER.ISSUED.NONCE.MAC` for a token, which it does not hold. For a person it is
`v2.OWNER.ISSUED.PERSON.NONCE.MAC`: `PERSON` holds name, role and models, `OWNER` the rules by which they were given.
Every instance of the API that has the same key reads it. It is over at its end, with its token or its rules, and with a
sign-out, which the instance that took it remembers until the end of the session.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from holdfast.core.claims import Person

COOKIE = "holdfast_session"

_OF_TOKEN, _OF_PERSON = "v1", "v2"
LEAST_KEY_BYTES = 32
CODE_LASTS = 60.0
"""Seconds."""
_MOST_CODES = 100


@dataclass(frozen=True, slots=True)
class Session:
    owner: str
    """What it names its token, or its rules, by."""
    person: Person | None
    """None: it is a token's."""
    ends: float
    """As seconds since 1970."""
    nonce: str


class Sessions:
    def __init__(
        self,
        key: bytes | None,
        lasts: timedelta,
        clock: Callable[[], float] = time.time,
        *,
        person_lasts: timedelta | None = None,
    ) -> None:
        """Without a `key` the sessions end with this process. Those of people last no longer than `person_lasts`."""
        self.key = key or secrets.token_bytes(LEAST_KEY_BYTES)
        self.lasts = lasts
        self.person_lasts = min(lasts, person_lasts or lasts)
        self._clock = clock
        self._ended: dict[str, float] = {}
        """By nonce of a session that was signed out: when it would have ended."""

    def open(self, owner: str, person: Person | None = None) -> str:
        """Return the cookie of a new session."""
        start = f"{_OF_TOKEN if person is None else _OF_PERSON}.{owner}.{int(self._clock())}"
        said = ".".join([start, *([_written(person)] if person is not None else []), secrets.token_hex(16)])
        return f"{said}.{self._mac(said)}"

    def read(self, cookie: str) -> Session | None:
        """Return the session; None where it is over, or not ours."""
        said, _, mac = cookie.rpartition(".")
        if not cookie.isascii() or not hmac.compare_digest(self._mac(said), mac):
            return None
        version, owner, issued, *more, nonce = said.split(".")
        person = _read(more[0]) if version == _OF_PERSON else None
        lasts = (self.lasts if person is None else self.person_lasts).total_seconds()
        age = self._clock() - int(issued)
        # A clock that was set back makes no session longer than a minute.
        if not -60 <= age < lasts or nonce in self._ended:
            return None
        return Session(owner, person, int(issued) + lasts, nonce)

    def close(self, cookie: str) -> None:
        """End a session before its time."""
        now = self._clock()
        for nonce in [nonce for nonce, ends in self._ended.items() if ends <= now]:
            del self._ended[nonce]
        if (found := self.read(cookie)) is not None:
            self._ended[found.nonce] = found.ends

    def _mac(self, said: str) -> str:
        return hmac.new(self.key, said.encode(), hashlib.sha256).hexdigest()


def _written(person: Person) -> str:
    models = sorted(person.models) if person.models is not None else None
    # Without `=`, which would have to be quoted in a cookie.
    return base64.urlsafe_b64encode(json.dumps([person.name, person.role, models]).encode()).decode().rstrip("=")


def _read(text: str) -> Person:
    name, role, models = json.loads(base64.urlsafe_b64decode(text + "=="))
    return Person(name, role, frozenset(models) if models is not None else None)


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
