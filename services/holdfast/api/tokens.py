"""Bearer tokens: who may command what. Only hashes are kept; a token has 256 bits, so SHA-256 is enough for it.

A token's line is `NAME ROLE sha256:HASH`, and may say more: `expires=2027-01-31T00:00:00Z`, `models=pricing,fraud`.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from holdfast.core.actors import actor_key, is_reserved
from holdfast.metrics import TOKEN_CHANGES
from holdfast.settings import ApiSettings, SettingsError
from holdfast_schemas import Action, Name

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
_LINE = re.compile(rf"({_NAME.pattern})\s+([a-z]+)\s+sha256:([0-9a-f]{{64}})((?:\s+[a-z]+=\S+)*)")
_MODEL = TypeAdapter[str](Name)
_PREFIX = "hf_"
"""Lets scanners for leaked secrets find a token."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the actor of every command that is sent, and what this role may do."""

    name: str
    role: Role
    models: frozenset[str] | None = None
    """The models that it may see and command; None: all."""
    expires: datetime | None = None

    def may(self, action: Action) -> bool:
        return action in MAY_SEND[self.role]

    def may_release(self, *, force: bool) -> bool:
        """Whether it may ask the guards for releases; with `force` of what fails the policy, too."""
        return self.role is Role.ADMIN or (self.role is Role.OPERATOR and not force)

    def sees(self, model: str) -> bool:
        return self.models is None or model in self.models

    def is_over(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now

    @property
    def key(self) -> str:
        """What limits are counted by: the same for all tokens of one name."""
        return actor_key(self.name)


def make_start_token() -> str:
    return _PREFIX + secrets.token_urlsafe(24)


def login_link(host: str, port: int, token: str | None = None) -> str:
    """Where a browser is let in by it. Browsers send nothing of what is behind the `#`, so no log has it."""
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  compared, not bound
    link = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/login"
    return link if token is None else f"{link}#{token}"


def create_token(
    name: str, role: Role, *, expires: datetime | None = None, models: Collection[str] = ()
) -> tuple[str, str]:
    """Return a new token, and the line that lets it in.

    Raises ValueError for a name that cannot be an actor, and for a model that cannot be one.
    """
    if _NAME.fullmatch(name) is None or is_reserved(name):
        raise ValueError(
            f"{name!r} cannot name a person or a pipeline; use letters, digits and ._@+- (and not 'holdfast')"
        )
    token = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role.value} sha256:{digest_of(token)}"
    if expires is not None:
        line += f" expires={expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if models:
        line += f" models={','.join(sorted(_model(one) for one in set(models)))}"
    return token, line


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def owner_of(digest: str) -> str:
    """What a session names its token by."""
    return hashlib.sha256(f"session:{digest}".encode()).hexdigest()[:32]


def _model(text: str) -> str:
    try:
        return _MODEL.validate_python(text)
    except ValidationError:
        raise ValueError(f"{text!r} cannot be the name of a model") from None


def _principal(match: re.Match[str]) -> Principal:
    """Raises ValueError."""
    if is_reserved(match[1]):
        raise ValueError("the name is that of automatic decisions")
    models, expires = None, None
    members = [text.partition("=")[::2] for text in match[4].split()]
    if len(dict(members)) < len(members):
        raise ValueError("a member stands twice")
    for member, text in members:
        if member == "models":
            models = frozenset(_model(one) for one in text.split(","))
        elif member == "expires":
            expires = datetime.fromisoformat(text)
            if expires.tzinfo is None:
                raise ValueError("the time has no zone")
        else:
            # A limit that this version does not know must not be left out.
            raise ValueError("a member is unknown")
    return Principal(match[1], Role(match[2]), models, expires)


def _parse(lines: Sequence[str], where: str) -> dict[str, Principal]:
    """The principal of each digest. Raises SettingsError."""
    found: dict[str, Principal] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            found[match[3]] = _principal(match)
        except ValueError:
            # The line is not repeated: somebody may have put the token itself there.
            raise SettingsError(
                f"{where}, line {number}, is no token's line. Make one with: holdfast api token create"
            ) from None
    return found


class Tokens:
    """The tokens in force; the file is read again when it changes, so that taking a line out ends its token.

    A file that does not load is refused: the old tokens stay, and a log line says so.
    """

    def __init__(self, settings: ApiSettings) -> None:
        """Raises SettingsError."""
        self._fixed = _parse(settings.tokens, "api.tokens")
        self._file = settings.tokens_file
        self._stamp: tuple[int, ...] | None = None
        self._refused: tuple[int, ...] | None = None
        self._from_file: dict[str, Principal] = {}
        if self._file is not None:
            self._stamp = _stamp(self._file)
            self._from_file = _read(self._file)
            if not (self._from_file or self._fixed):
                raise SettingsError(
                    f"The tokens file {self._file} has no token. Make one with: holdfast api token create"
                )
        self.configured = self._file is not None or bool(self._fixed)
        for change in ("added", "removed", "changed", "refused"):
            TOKEN_CHANGES.labels(change)

    def find(self, token: str) -> Principal | None:
        """Whose token this is, also after its end. Takes as long whether or not, and wherever, it is found."""
        self._refresh()
        digest, found = digest_of(token), None
        for known, principal in (*self._fixed.items(), *self._from_file.items()):
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def of_owner(self, owner: str) -> Principal | None:
        """Whose token a session names."""
        self._refresh()
        everyone = {**self._fixed, **self._from_file}
        return next((principal for digest, principal in everyone.items() if owner_of(digest) == owner), None)

    def has_name(self, name: str) -> bool:
        """Whether a token has this name, or one that differs only in case."""
        self._refresh()
        key = actor_key(name)
        return any(principal.key == key for principal in (*self._fixed.values(), *self._from_file.values()))

    def _refresh(self) -> None:
        if self._file is None:
            return
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            fresh = _read(self._file)
            # Only now: a file that could not be read must be tried again, for a token may have been taken out.
            self._stamp = stamp
        except SettingsError as error:
            if stamp != self._refused:
                log.error("changed tokens refused, the old ones stay", error=str(error))
                TOKEN_CHANGES.labels("refused").inc()
            self._refused = stamp
            return
        _tell_changes(self._from_file, fresh)
        self._from_file = fresh
        log.info("tokens read", file=str(self._file), count=len(fresh))


def _tell_changes(before: Mapping[str, Principal], now: Mapping[str, Principal]) -> None:
    for digest in sorted(before.keys() | now.keys()):
        old, new = before.get(digest), now.get(digest)
        if old == new or (principal := new or old) is None:
            continue
        change = "added" if old is None else "removed" if new is None else "changed"
        TOKEN_CHANGES.labels(change).inc()
        log.warning(
            f"token {change}",
            actor=principal.name,
            role=principal.role.value,
            models=sorted(principal.models) if principal.models is not None else "all",
            expires=principal.expires.isoformat() if principal.expires is not None else "never",
            token=digest[:8],
        )


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns)


def _read(path: Path) -> dict[str, Principal]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"The tokens file {path} cannot be read: {reason}. Check api.tokens_file.") from None
    return _parse(text.splitlines(), str(path))


def revoke(file: Path, name: str) -> int:
    """Take the lines of a name out of the tokens file, in one step, and return how many there were.

    The rest of the file stays as it is. Raises SettingsError.
    """
    _read(file)  # Not a file that the API refuses: it would go on with the tokens that it has.
    text = file.read_text(encoding="utf-8-sig")
    kept = [line for line in text.splitlines(keepends=True) if not _is_of(line, name)]
    count = len(text.splitlines()) - len(kept)
    if count:
        target = file.resolve()
        fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            fresh.touch(mode=0o600)
            fresh.chmod(target.stat().st_mode & 0o777)
            fresh.write_text("".join(kept), encoding="utf-8")
            fresh.replace(target)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise SettingsError(
                f"The tokens file {file} cannot be changed: {error.strerror}. Take the line out where it is made."
            ) from None
    return count


def _is_of(line: str, name: str) -> bool:
    said = line.partition("#")[0].split()
    return bool(said) and actor_key(said[0]) == actor_key(name)
