"""Bearer tokens: who may command what. Only hashes are kept; a token has 256 bits, so SHA-256 is enough for it."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

import structlog

from holdfast.settings import ApiSettings, SettingsError
from holdfast_schemas import Action

log = structlog.get_logger("holdfast.access")


class Role(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


MAY_SEND: dict[Role, frozenset[Action]] = {
    Role.VIEWER: frozenset(),
    # They let a version that was found bad come back.
    Role.OPERATOR: frozenset(Action) - {Action.UNFENCE, Action.UNDO_TRIPS},
    Role.ADMIN: frozenset(Action),
}
"""The commands of each role; every role may read everything."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_LINE = re.compile(rf"({_NAME.pattern})\s+([a-z]+)\s+sha256:([0-9a-f]{{64}})")
_PREFIX = "hf_"
"""Lets scanners for leaked secrets find a token."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the actor of every command that is sent, and what this role may do."""

    name: str
    role: Role

    def may(self, action: Action) -> bool:
        return action in MAY_SEND[self.role]


class StartToken:
    """What lets people in where no tokens are configured: known to who started the API, or can read its terminal.

    Another user of the machine, a page in the browser or a proxy on it reach the port, and do not have it.
    """

    def __init__(self, settings: ApiSettings) -> None:
        given = settings.start_token
        self.text = given.get_secret_value() if given is not None else make_start_token()

    def fits(self, token: str) -> bool:
        return hmac.compare_digest(_digest(token), _digest(self.text))


def make_start_token() -> str:
    return secrets.token_urlsafe(24)


def login_link(host: str, port: int, token: str) -> str:
    """Where a browser is let in by it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/login?token={quote(token, safe='')}"


def create_token(name: str, role: Role) -> tuple[str, str]:
    """A new token, and the line that lets it in. Raises ValueError for a name that cannot be an actor."""
    if _NAME.fullmatch(name) is None or name == "holdfast":
        raise ValueError(
            f"{name!r} cannot name a person or a pipeline; use letters, digits and ._@+- (and not 'holdfast')"
        )
    token = _PREFIX + secrets.token_urlsafe(32)
    return token, f"{name} {role.value} sha256:{_digest(token)}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _parse(lines: Sequence[str], where: str) -> list[tuple[str, Principal]]:
    """Digest and principal of each line. Raises SettingsError."""
    found: list[tuple[str, Principal]] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or match[2] not in set(Role) or match[1] == "holdfast":
            # The line is not repeated: somebody may have put the token itself there.
            raise SettingsError(f"{where}, line {number}, is no token's line. Make one with: holdfast api token create")
        found.append((match[3], Principal(match[1], Role(match[2]))))
    return found


class Tokens:
    """The tokens in force; the file is read again when it changes, so that taking a line out ends its token.

    A file that does not load is refused: the old tokens stay, and a log line says so.
    """

    def __init__(self, settings: ApiSettings) -> None:
        """Raises SettingsError."""
        self._fixed = _parse(settings.tokens, "api.tokens")
        self._file = settings.tokens_file
        self._stamp: tuple[int, int] | None = None
        self._refused: tuple[int, int] | None = None
        self._from_file: list[tuple[str, Principal]] = []
        if self._file is not None:
            self._stamp = _stamp(self._file)
            self._from_file = _read(self._file)
            if not (self._from_file or self._fixed):
                raise SettingsError(
                    f"The tokens file {self._file} has no token. Make one with: holdfast api token create"
                )
        self.configured = self._file is not None or bool(self._fixed)

    def find(self, token: str) -> Principal | None:
        """Whose token this is. Takes as long whether or not, and wherever, it is found."""
        self._refresh()
        digest, found = _digest(token), None
        for known, principal in (*self._fixed, *self._from_file):
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def _refresh(self) -> None:
        if self._file is None:
            return
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._from_file = _read(self._file)
            # Only now: a file that could not be read must be tried again, for a token may have been taken out.
            self._stamp = stamp
            log.info("tokens read", file=str(self._file), count=len(self._from_file))
        except SettingsError as error:
            if stamp != self._refused:
                log.error("changed tokens refused, the old ones stay", error=str(error))
            self._refused = stamp


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)


def _read(path: Path) -> list[tuple[str, Principal]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"The tokens file {path} cannot be read: {reason}. Check api.tokens_file.") from None
    return _parse(text.splitlines(), str(path))
