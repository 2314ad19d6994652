"""Tokens for SASL/OAUTHBEARER, by the client credentials grant (RFC 6749, 4.4)."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import quote

import structlog
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

log = structlog.get_logger("holdfast.oauth")

RENEW_AT = 0.8
"""Of a token's life: then the next one is asked for."""
ASSUMED_LIFE = 300.0
"""Seconds, for a token that comes without `expires_in`."""
TIMEOUT = 5.0
"""Seconds for one answer of the token endpoint."""


class TokenUnavailable(KafkaError):  # type: ignore[misc]  # noqa: N818
    """There is no token to log in with; the message says why, and what to do.

    A KafkaError, because aiokafka tries again after one, and its tasks die of anything else.
    """


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """One token for all clients of this process, renewed before it expires.

    While the endpoint is away the token at hand is used to its end. Works from any thread and event loop.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: Callable[[], str],
        *,
        scope: str | None = None,
        audience: str | None = None,
        tls: Callable[[], ssl.SSLContext],
    ) -> None:
        self._url, self._client_id, self._client_secret = url, client_id, client_secret
        self._scope, self._audience, self._tls = scope, audience, tls
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = self._expires_at = 0.0  # on the monotonic clock

    async def token(self) -> str:
        """The token to log in with. Raises TokenUnavailable."""
        return await asyncio.to_thread(self._current)

    def _current(self) -> str:
        with self._lock:
            if time.monotonic() >= self._renew_at:
                try:
                    self._fetch()
                except TokenUnavailable as error:
                    if time.monotonic() >= self._expires_at:
                        raise
                    log.warning("the token could not be renewed, and is used until it expires", error=str(error))
            return self._token

    def _fetch(self) -> None:
        import httpx

        asked_at = time.monotonic()
        form = {"grant_type": "client_credentials", "scope": self._scope, "audience": self._audience}
        where = f"The token endpoint {self._url}"
        try:
            answer = httpx.post(
                self._url,
                data={name: value for name, value in form.items() if value},
                # Encoded as RFC 6749, 2.3.1 has it.
                auth=(quote(self._client_id, safe=""), quote(self._client_secret(), safe="")),
                verify=self._tls(),
                timeout=TIMEOUT,
            )
        except httpx.HTTPError as error:
            raise TokenUnavailable(
                f"{where} cannot be reached: {str(error) or type(error).__name__}. "
                "Check kafka.oauth_token_url, and kafka.oauth_ca_file for its certificate."
            ) from None
        except ValueError as error:  # a file that cannot be used
            raise TokenUnavailable(f"No token can be asked for: {error}.") from None
        try:
            document = answer.json()
            if "error" in document:
                reason = ": ".join(str(document[key]) for key in ("error", "error_description") if document.get(key))
                raise TokenUnavailable(
                    f"{where} refused the client {self._client_id}: {reason}. "
                    "Check kafka.oauth_client_id, its secret and kafka.oauth_scope."
                )
            self._token, life = str(document["access_token"]), float(document.get("expires_in") or ASSUMED_LIFE)
        except (KeyError, TypeError, ValueError):
            raise TokenUnavailable(
                f"{where} answered with status {answer.status_code} and no token. "
                "Check kafka.oauth_token_url, and its log."
            ) from None
        self._renew_at, self._expires_at = asked_at + RENEW_AT * life, asked_at + life
