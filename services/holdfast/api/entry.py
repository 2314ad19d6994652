"""Who is let into the API: by a bearer token, by a session of the console, or as the owner of the unix socket.

A session is opened by a token, or by the OpenID Connect provider of `api.oidc`. There is always a credential. Without
configured tokens and provider it is `api.start_token`, which `holdfast up` makes, or the unix socket; with none of them
the API does not start.
"""

import getpass
import hmac
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from holdfast.adapters.service import ServiceError
from holdfast.api.openid import AWAY, ID_TOKEN, PROVIDER, STATE, Provider, SignInError
from holdfast.api.sessions import LEAST_KEY_BYTES, Codes, Session, Sessions
from holdfast.api.tokens import Principal, Role, Tokens, digest_of, owner_of
from holdfast.core.actors import actor_key, actor_name
from holdfast.core.claims import NO_MODEL, NO_NAME, NO_ROLE, Person
from holdfast.login import is_loopback
from holdfast.metrics import ACCESS_REFUSED, SIGN_INS
from holdfast.settings import ApiSettings, SettingsError
from holdfast_schemas import utc_now

log = structlog.get_logger("holdfast.entry")
NO_CREDENTIAL, UNKNOWN, EXPIRED, ROLE, MODEL = (
    "no_credential",
    "unknown_credential",
    "expired_token",
    "role",
    "model",
)
_OF_SIGN_INS = (STATE, PROVIDER, ID_TOKEN, AWAY, NO_NAME, NO_ROLE, NO_MODEL)
TELL_EVERY = 1.0
"""Seconds between two log lines about refusals: a flood of them must not fill the log. All are counted."""


class Entry:
    def __init__(self, settings: ApiSettings, console_url: str = "") -> None:
        """Raises SettingsError for tokens or a key that cannot be read, ServiceError where nobody could come in."""
        self.tokens = Tokens(settings)
        self.configured = self.tokens.configured or settings.oidc is not None
        """Whether people and pipelines have credentials of their own."""
        self._local: Principal | None = None
        self._start_digest = ""
        if not self.configured and settings.start_token is not None:
            if not is_loopback(settings.host):
                raise ServiceError(
                    f"api.start_token is for this machine, and api.host is {settings.host}. Make tokens with `holdfast "
                    "api token create` and name their file in api.tokens_file, or set api.host to 127.0.0.1."
                )
            self._local = _admin(getpass.getuser)
            self._start_digest = digest_of(settings.start_token.get_secret_value())
        elif not self.configured and settings.unix_socket is None:
            raise ServiceError(
                "No credential is configured, so the API would let nobody in, and does not start. Make a token with "
                "`holdfast api token create` and name its file in api.tokens_file, or set api.oidc or api.unix_socket; "
                "`holdfast up` makes a credential by itself."
            )
        self._local_names: frozenset[str] = frozenset()
        if settings.unix_socket is not None:
            # Now, and not at the first request.
            self._local_names = frozenset({"root", _admin(lambda: _name_of(os.getuid())).key})
        key, oidc = _key(settings.session_key_file), settings.oidc
        self.sessions = Sessions(
            key, settings.session_lasts, person_lasts=oidc.session_lasts if oidc is not None else None
        )
        self.provider = Provider(oidc, console_url, self.sessions.key) if oidc is not None else None
        self.takes_tokens = self.tokens.configured or self._local is not None
        self.codes = Codes()
        self._told_at, self._untold = 0.0, 0
        for outcome in ("accepted", "refused"):
            SIGN_INS.labels(outcome)
        for reason in (NO_CREDENTIAL, UNKNOWN, EXPIRED, ROLE, MODEL, *_OF_SIGN_INS):
            ACCESS_REFUSED.labels(reason)

    def who(self, bearer: str | None, cookie: str | None, peer: int | None = None) -> Principal | None:
        """Who comes with this token, else with this session, else over the unix socket as this user."""
        return self._judge(bearer, cookie, peer)[0]

    def _judge(self, bearer: str | None, cookie: str | None, peer: int | None) -> tuple[Principal | None, str]:
        """Who that is, or why nobody."""
        if bearer:
            found = self._of_token(bearer)
        elif cookie:
            session = self.sessions.read(cookie)
            found = self._of_session(session) if session is not None else None
        elif peer is not None:
            try:
                return _admin(lambda: _name_of(peer)), ""
            except ServiceError:  # The name of this user was taken away since the start.
                return None, UNKNOWN
        else:
            return None, NO_CREDENTIAL
        if found is None:
            return None, UNKNOWN
        return (None, EXPIRED) if found.is_over(utc_now()) else (found, "")

    def require(self, bearer: str | None, cookie: str | None, peer: int | None, came_from: str) -> Principal | None:
        """The same, counted and told."""
        found, reason = self._judge(bearer, cookie, peer)
        if found is None:
            self.refuse(reason, came_from)
        return found

    def refuse(self, reason: str, came_from: str, **facts: str) -> None:
        """Count a refusal, and tell it unless another was told just now."""
        ACCESS_REFUSED.labels(reason).inc()
        if reason == NO_CREDENTIAL:  # Every first visit of a browser.
            return
        now = time.monotonic()
        if now < self._told_at + TELL_EVERY:
            self._untold += 1
            return
        log.warning("access refused", reason=reason, client=came_from, not_told_before=self._untold, **facts)
        self._told_at, self._untold = now, 0

    def _of_token(self, token: str) -> Principal | None:
        if self._local is not None:
            return self._local if hmac.compare_digest(digest_of(token), self._start_digest) else None
        return self.tokens.find(token)

    def _of_owner(self, owner: str) -> Principal | None:
        if self._local is not None:
            return self._local if owner == owner_of(self._start_digest) else None
        return self.tokens.of_owner(owner)

    def _of_session(self, session: Session) -> Principal | None:
        if session.person is None:
            return self._of_owner(session.owner)
        if self.provider is None or session.owner != self.provider.rules_id or self._is_taken(session.person.name):
            return None
        person, ends = session.person, datetime.fromtimestamp(session.ends, UTC)
        return Principal(person.name, Role(person.role), person.models, ends)

    def _is_taken(self, name: str) -> bool:
        """Whether somebody has this name who does not come by the provider: nobody may be taken for a pipeline."""
        return actor_key(name) in self._local_names or self.tokens.has_name(name)

    # Browsers

    def sign_in(self, text: str, came_from: str) -> str | None:
        """Return the cookie of a new session for a token or a code; None where nobody has it."""
        owner = self.codes.use(text) or owner_of(digest_of(text))
        found = self._of_owner(owner)
        if found is None or found.is_over(utc_now()):
            SIGN_INS.labels("refused").inc()
            self.refuse(UNKNOWN if found is None else EXPIRED, came_from, at="sign-in")
            return None
        SIGN_INS.labels("accepted").inc()
        log.info("signed in", actor=found.name, role=found.role.value, client=came_from)
        return self.sessions.open(owner)

    async def finish_sign_in(self, query: Mapping[str, str], cookie: str, came_from: str) -> tuple[str, str]:
        """Return the cookie of a new session for who comes back from the provider, and the path that was wanted.

        Raises SignInError.
        """
        if self.provider is None:
            raise SignInError(STATE, "Nobody signs in here through a provider. Sign in with a token.")
        try:
            done = await self.provider.finish(query, cookie)
            self._refuse_taken(done.person)
        except SignInError as error:
            self.refuse_sign_in(error, came_from)
            raise
        SIGN_INS.labels("accepted").inc()
        log.info(
            "signed in",
            actor=done.person.name,
            role=done.person.role,
            client=came_from,
            issuer=self.provider.settings.issuer,
            subject=done.subject[:300],
        )
        return self.sessions.open(self.provider.rules_id, done.person), done.wanted

    def refuse_sign_in(self, error: SignInError, came_from: str) -> None:
        SIGN_INS.labels("refused").inc()
        self.refuse(error.reason, came_from, at="sign-in", why=error.why)

    def _refuse_taken(self, person: Person) -> None:
        if self._is_taken(person.name):
            raise SignInError(
                NO_NAME,
                f"{person.name} is the name of a token or of a user of this machine, so nobody else may act under it. "
                "Ask an administrator to give that token another name.",
            )

    def sign_out(self, cookie: str, came_from: str) -> None:
        found = self.who(None, cookie)
        self.sessions.close(cookie)
        if found is not None:
            log.info("signed out", actor=found.name, client=came_from)

    def code(self, token: str) -> str | None:
        """Return a code that signs a browser in once as who has this token."""
        found = self._of_token(token)
        if found is None or found.is_over(utc_now()):
            return None
        return self.codes.make(owner_of(digest_of(token)))


def _name_of(user: int) -> str:
    import pwd  # Not on Windows, where no unix socket is served.

    return pwd.getpwuid(user).pw_name


def _admin(name: Callable[[], str]) -> Principal:
    """The user whose process this is, or who opened its socket. Raises ServiceError where that user has no name."""
    try:
        return Principal(actor_name(name()), Role.ADMIN)
    except (OSError, KeyError, ValueError):
        raise ServiceError(
            "There is no login name that commands could be sent in. Make a token with: holdfast api token create"
        ) from None


def _key(file: Path | None) -> bytes | None:
    """Raises SettingsError."""
    if file is None:
        return None
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"The key of sessions {file} cannot be read: {error.strerror}. Check api.session_key_file."
        ) from None
    if len(key) < LEAST_KEY_BYTES:
        raise SettingsError(
            f"The key of sessions {file} has {len(key)} bytes, and {LEAST_KEY_BYTES} are needed. Make one with: "
            "openssl rand -hex 32"
        )
    return key
