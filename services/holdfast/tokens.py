"""Tokens for SASL/OAUTHBEARER, by the client credentials grant (RFC 6749, 4.4)."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable

import structlog
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

log = structlog.get_logger("holdfast.tokens")

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
        from authlib.integrations.base_client import OAuthError
        from authlib.integrations.httpx_client import OAuth2Client

        asked_at = time.monotonic()
        more = {"audience": self._audience} if self._audience else {}
        try:
            with OAuth2Client(
                self._client_id, self._client_secret(), scope=self._scope, verify=self._tls(), timeout=TIMEOUT
            ) as client:
                answer = client.fetch_token(self._url, grant_type="client_credentials", **more)
            token, life = answer["access_token"], float(answer.get("expires_in") or ASSUMED_LIFE)
        except OAuthError as error:
            reason = " ".join(part for part in (error.error, error.description) if part)
            raise TokenUnavailable(
                f"The token endpoint {self._url} refused the client {self._client_id}: {reason}. "
                "Check kafka.oauth_client_id, its secret and kafka.oauth_scope."
            ) from None
        except httpx.HTTPStatusError as error:
            raise TokenUnavailable(
                f"The token endpoint {self._url} answered {error.response.status_code}. See its log."
            ) from None
        except httpx.HTTPError as error:
            raise TokenUnavailable(
                f"The token endpoint {self._url} cannot be reached: {str(error) or type(error).__name__}. "
                "Check kafka.oauth_token_url, and kafka.oauth_ca_file for its certificate."
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            # A secret's file that cannot be read says so itself.
            said = str(error) if type(error) is ValueError else "it answered something that is no token"
            raise TokenUnavailable(
                f"No token from {self._url}: {said}. Check kafka.oauth_token_url and the files named in [kafka]."
            ) from None
        self._token = str(token)
        self._renew_at, self._expires_at = asked_at + RENEW_AT * life, asked_at + life
