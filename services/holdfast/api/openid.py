"""People sign in at the console through an OpenID Connect provider: the authorization code flow with PKCE (RFC 7636).

`begin` gives the address of the provider's page, and a signed cookie that ties the answer to this browser. `finish`
takes what the browser came back with, exchanges the code for an ID token over a connection of our own, verifies it, and
says who that is; the userinfo endpoint is asked for what the ID token leaves out. Nothing is kept in between: nonce and
verifier are made of the state and a key that only the instances of the API have, so any of them can finish what another
began. A state is finished once.

What the provider says of itself, and its keys, are read when they are needed, and kept for an hour. Every answer of it
is bounded in time and bytes. Where it is away, the page says so, and tokens let people in as before.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import structlog
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet

from holdfast.core.claims import ClaimsError, Person, claim, person_of
from holdfast.core.errors import HoldfastError, describe
from holdfast.login import is_loopback, secret, tls_context
from holdfast.settings import OidcSettings, SettingsError

log = structlog.get_logger("holdfast.oidc")
CALLBACK = "/login/oidc/callback"
ALGORITHMS = (
    *(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)),
    "EdDSA",
    "Ed25519",
)
"""Of signatures: asymmetric ones only. By any other, who knows a public key could sign."""
BEGUN_LASTS = 600
"""Seconds that a person has at the provider's page."""
TIMEOUT = 5.0
"""Seconds for one answer of the provider."""
WITHIN = 15.0
"""Seconds for all that one sign-in asks of the provider."""
AT_ONCE = 10
"""Sign-ins that ask the provider at once; one more is told to come again."""
MAX_BYTES = 512 * 1024
"""Of one answer."""
MAX_KEYS = 100
KEPT = 3600.0
"""Seconds that what the provider says of itself, and its keys, are kept."""
AGAIN_AFTER = 5.0
"""Seconds until the provider is asked again after it did not answer, or after its keys were read."""
LEEWAY = 60
"""Seconds that the provider's clock may differ."""
MAX_WANTED = 1000
"""Characters of the path to go to afterwards; a longer one is left out."""
_MOST_USED = 10_000
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,60}")
STATE, PROVIDER, ID_TOKEN, AWAY = "oidc_state", "oidc_provider", "oidc_id_token", "oidc_away"
"""Why a sign-in is refused, beside what `core/claims.py` says."""


class SignInError(HoldfastError):
    """Nobody was let in. The message is for the person; `why` is for the log."""

    def __init__(self, reason: str, message: str, why: str = "") -> None:
        super().__init__(message)
        # What the provider or the browser said may hold line breaks.
        self.reason, self.why = reason, " ".join((why or message).split())


@dataclass(frozen=True, slots=True)
class Begun:
    address: str
    """Where the browser goes."""
    cookie: str


@dataclass(frozen=True, slots=True)
class Finished:
    person: Person
    subject: str
    """Who that is at the provider, for ever."""
    wanted: str
    """Where the person wanted to go."""


@dataclass(frozen=True, slots=True)
class _Endpoints:
    authorization: str
    token: str
    keys: str
    userinfo: str | None
    secret_in_body: bool


@dataclass(frozen=True, slots=True)
class _Tokens:
    id_token: str
    access_token: str | None


class Provider:
    def __init__(
        self, settings: OidcSettings, console_url: str, key: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        """`console_url` is where browsers reach us. Raises SettingsError."""
        self.settings = settings
        self.title = settings.title or urlsplit(settings.issuer).hostname or settings.issuer
        self.begin_at = f"{console_url.rstrip('/')}/login/oidc"
        self.rules_id = _rules_id(settings)
        """The same for the same provider and rules: a session that was given by others is over."""
        self._redirect_to = f"{console_url.rstrip('/')}{CALLBACK}"
        self._key, self._clock = hmac.digest(key, b"holdfast sign-in", "sha256"), clock
        self._used: dict[str, float] = {}
        """By state that was finished: when its cookie ends."""
        self._asking, self._lock = asyncio.Semaphore(AT_ONCE), asyncio.Lock()
        self._endpoints: _Endpoints | None = None
        self._keys: KeySet | None = None
        self._endpoints_at = self._keys_at = self._failed_at = float("-inf")
        self._failure = ""
        try:
            self._tls = tls_context(settings.ssl_ca_file)
            self._client_secret()
        except ValueError as error:
            raise SettingsError(f"api.oidc cannot be used: {error}.") from None

    async def begin(self, wanted: str) -> Begun:
        """`wanted` is a path of our own. Raises SignInError."""
        async with self._turn():
            endpoints = await self._known()
        state = secrets.token_urlsafe(32)
        challenge = _base64(hashlib.sha256(self._made_of(state, "verifier").encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self._redirect_to,
            "scope": self.settings.scopes,
            "state": state,
            "nonce": self._made_of(state, "nonce"),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        joint = "&" if "?" in endpoints.authorization else "?"
        said = f"{state}.{int(self._clock())}.{_base64((wanted if len(wanted) <= MAX_WANTED else '/').encode())}"
        return Begun(f"{endpoints.authorization}{joint}{urlencode(query)}", f"{said}.{self._made_of(said, 'cookie')}")

    async def finish(self, query: Mapping[str, str], cookie: str) -> Finished:
        """`query` is what the browser came back with. Raises SignInError."""
        state, wanted = self._begun(query.get("state", ""), cookie)
        if query.get("iss", self.settings.issuer) != self.settings.issuer:
            raise self._refused(PROVIDER, "the answer is of another issuer")
        if "error" in query:
            raise self._refused(PROVIDER, f"{_plain(query['error'])}: {query.get('error_description', '')[:300]}")
        async with self._turn():
            tokens = await self._exchange(query.get("code", ""), self._made_of(state, "verifier"))
            claims = await self._verified(tokens.id_token, self._made_of(state, "nonce"))
            claims = await self._completed(claims, tokens.access_token)
        try:
            person = person_of(claims, self.settings.rules)
        except ClaimsError as error:
            raise SignInError(error.reason, str(error), f"{error} The subject is {claims['sub'][:200]}.") from None
        return Finished(person, claims["sub"], wanted)

    # The browser

    def _begun(self, state: str, cookie: str) -> tuple[str, str]:
        """The state, and where the person wanted to go, of a sign-in that this browser began. Raises SignInError."""
        now = self._clock()
        said, _, mac = cookie.rpartition(".")
        ours = cookie.isascii() and hmac.compare_digest(self._made_of(said, "cookie"), mac)
        begun, at, wanted = said.split(".") if ours else ("", "0", "")
        same = state.isascii() and hmac.compare_digest(begun, state)
        if not (ours and same and -LEEWAY <= now - int(at) < BEGUN_LASTS) or begun in self._used:
            why = (
                "it was finished before"
                if ours and begun in self._used
                else "state and cookie do not agree, or are old"
            )
            raise SignInError(
                STATE,
                "This sign-in was not begun in this browser, took longer than ten minutes, or is over. Sign in again "
                f"at {self.begin_at.removesuffix('/oidc')}.",
                why,
            )
        self._used = {one: ends for one, ends in self._used.items() if ends > now}
        if len(self._used) >= _MOST_USED:
            del self._used[next(iter(self._used))]
        self._used[begun] = int(at) + BEGUN_LASTS
        return begun, base64.urlsafe_b64decode(wanted + "==").decode()

    def _made_of(self, text: str, what: str) -> str:
        return _base64(hmac.digest(self._key, f"{what}:{text}".encode(), "sha256"))

    # The provider

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Room and time for what one sign-in asks: a provider that hangs must not keep other requests from an answer.

        Raises SignInError.
        """
        if self._asking.locked():
            raise self._away(f"{AT_ONCE} sign-ins ask it already")
        try:
            async with self._asking, asyncio.timeout(WITHIN):
                yield
        except TimeoutError:
            raise self._away("it took too long") from None

    async def _exchange(self, code: str, verifier: str) -> _Tokens:
        """The tokens for a code. Raises SignInError."""
        endpoints, client_secret = await self._known(), self._client_secret_now()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_to,
            "code_verifier": verifier,
        }
        login = None
        if client_secret is None or endpoints.secret_in_body:
            form |= {
                "client_id": self.settings.client_id,
                **({"client_secret": client_secret} if client_secret else {}),
            }
        else:
            # Encoded as RFC 6749, 2.3.1 has it.
            login = httpx.BasicAuth(quote(self.settings.client_id, safe=""), quote(client_secret, safe=""))
        status, answer = await self._ask("POST", endpoints.token, data=form, auth=login)
        if status >= 500:
            raise self._away(f"its token endpoint answered with status {status}")
        if "error" in answer:
            why = f"{_plain(answer['error'])}: {str(answer.get('error_description', ''))[:300]}"
            raise self._refused(PROVIDER, why)
        id_token = answer.get("id_token")
        if status != 200 or not isinstance(id_token, str):
            raise self._refused(PROVIDER, f"its token endpoint answered with status {status} and no ID token")
        access_token = answer.get("access_token")
        return _Tokens(id_token, access_token if isinstance(access_token, str) else None)

    async def _verified(self, id_token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token (OpenID Connect Core, 3.1.3.7). Raises SignInError."""
        try:
            try:
                claims = jwt.decode(id_token, await self._key_set(), ALGORITHMS).claims
            except (InvalidKeyIdError, BadSignatureError):
                # The provider may have changed its keys.
                claims = jwt.decode(id_token, await self._key_set(changed=True), ALGORITHMS).claims
            jwt.JWTClaimsRegistry(
                now=int(self._clock()),
                leeway=LEEWAY,
                iss={"essential": True, "value": self.settings.issuer},
                sub={"essential": True},
                aud={"essential": True, "value": self.settings.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(claims)
            audience, party = claims["aud"], claims.get("azp")
            several = isinstance(audience, list) and len(audience) > 1
            if not isinstance(claims["nonce"], str) or (party is None and several):
                raise ValueError("nonce is not a text, or azp is missing beside several audiences")
            if party is not None and party != self.settings.client_id:
                raise ValueError("azp is another client")
        except (JoseError, ValueError, RecursionError) as error:
            raise self._refused(ID_TOKEN, f"its ID token is refused: {describe(error)}") from None
        return claims

    async def _completed(self, claims: dict[str, Any], access_token: str | None) -> dict[str, Any]:
        """The claims, with those of the userinfo endpoint where the ID token lacks one that the rules read.

        Raises SignInError.
        """
        rules, endpoints = self.settings.rules, await self._known()
        wanted = (rules.name_claim, rules.roles_claim, rules.models_claim or rules.roles_claim)
        known = all(claim(claims, path) is not None for path in wanted)
        if known or access_token is None or endpoints.userinfo is None:
            return claims
        headers = {"Authorization": f"Bearer {access_token}"}
        status, more = await self._ask("GET", endpoints.userinfo, headers=headers)
        if status != 200 or more.get("sub") != claims["sub"]:
            raise self._refused(PROVIDER, f"its userinfo was answered with status {status}, or is of another person")
        return {**more, **claims}

    async def _known(self) -> _Endpoints:
        """Where the provider is asked what. Raises SignInError."""
        async with self._lock:
            now = self._clock()
            if self._endpoints is not None and now < self._endpoints_at + KEPT:
                return self._endpoints
            if now < self._failed_at + AGAIN_AFTER:
                raise self._away(self._failure)
            try:
                self._endpoints = await self._discover()
            except SignInError as error:
                self._failed_at, self._failure = now, error.why
                raise
            self._endpoints_at = now
            return self._endpoints

    async def _discover(self) -> _Endpoints:
        issuer = self.settings.issuer
        status, said = await self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if status != 200:
            raise self._away(f"its configuration was answered with status {status}")
        if said.get("issuer") != issuer:
            # Only the log says what it is: the page is for everybody.
            raise self._away(f"it calls itself {str(said.get('issuer'))[:200]!r}; set api.oidc.issuer to exactly that")
        found: list[str] = []
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            address = said.get(name)
            if not isinstance(address, str) or not _is_private(address, issuer):
                raise self._away(f"its configuration has no {name}, or one without TLS")
            found.append(address)
        userinfo = said.get("userinfo_endpoint")
        if not isinstance(userinfo, str) or not _is_private(userinfo, issuer):
            userinfo = None
        methods = said.get("token_endpoint_auth_methods_supported")
        in_body = isinstance(methods, list) and "client_secret_basic" not in methods
        return _Endpoints(found[0], found[1], found[2], userinfo, in_body)

    async def _key_set(self, *, changed: bool = False) -> KeySet:
        """The keys of the provider; with `changed` they are read again, unless that was just now."""
        endpoints = await self._known()
        async with self._lock:
            age = self._clock() - self._keys_at
            if self._keys is None or age >= KEPT or (changed and age >= AGAIN_AFTER):
                status, said = await self._ask("GET", endpoints.keys)
                listed = said.get("keys")
                if status != 200 or not isinstance(listed, list):
                    raise self._away(f"its keys were answered with status {status}, or are not a list")
                self._keys = KeySet([key for one in listed[:MAX_KEYS] if (key := _key(one)) is not None])
                self._keys_at = self._clock()
            return self._keys

    async def _ask(self, method: str, address: str, **options: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer. Raises SignInError."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                httpx.AsyncClient(verify=self._tls, timeout=TIMEOUT, headers=headers) as client,
                client.stream(method, address, **options) as answer,
            ):
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise self._away(f"{address} answered with more than {MAX_BYTES:,} bytes")
            said = json.loads(body)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._away(f"{address} cannot be reached: {describe(error)}") from None
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise self._away(f"{address} answered with status {answer.status_code} and no JSON object")
        return answer.status_code, said

    def _client_secret(self) -> str | None:
        """Raises ValueError."""
        return secret("client_secret_file", self.settings.client_secret, self.settings.client_secret_file)

    def _client_secret_now(self) -> str | None:
        try:
            return self._client_secret()
        except ValueError as error:
            raise self._away(str(error)) from None

    def _away(self, why: str) -> SignInError:
        message = f"{self.title} cannot be asked who you are just now. Try again in a moment, or sign in with a token."
        return SignInError(AWAY, message, why)

    def _refused(self, reason: str, why: str) -> SignInError:
        what = "answered with an ID token that is refused" if reason == ID_TOKEN else "did not let this sign-in through"
        message = f"{self.title} {what}. Sign in again; if it stays so, an administrator finds why in the API's log."
        return SignInError(reason, message, why)


def _rules_id(settings: OidcSettings) -> str:
    said = settings.model_dump(include={"issuer", "client_id", "name_claim", "roles_claim", "roles"})
    said["models"] = [settings.models_claim, settings.models]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _key(said: Any) -> Key | None:
    """A public key that can verify signatures; None for what else stands in a key set."""
    if not isinstance(said, dict) or said.get("kty") not in ("RSA", "EC", "OKP") or said.get("use", "sig") != "sig":
        return None
    try:
        return KeySet.registry_cls.import_key(said)
    except (JoseError, ValueError, TypeError):
        return None


def _is_private(address: str, issuer: str) -> bool:
    """Whether it is with TLS; on this machine it may be without, where the issuer is."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    local = urlsplit(issuer).scheme == "http" and is_loopback(parts.hostname or "")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and local))


def _plain(text: object) -> str:
    """A code of an error; what else stands there is not repeated."""
    return str(text) if _PLAIN.fullmatch(str(text)) else "an error"


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
