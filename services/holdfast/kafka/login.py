"""Why Kafka cannot be used: a login that was refused, a certificate, an ACL, or nobody there."""

import asyncio
import ssl
from typing import Any

import structlog
from aiokafka import client
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator, collect_hosts, create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from holdfast.login import renewed
from holdfast.oauth import TokenUnavailable
from holdfast.settings import KafkaSettings

log = structlog.get_logger("holdfast.kafka")

ATTEMPT_WITHIN = 5.0
"""Seconds for one attempt to connect and log in."""


def renew_logins() -> None:
    """Have aiokafka's clients log in with what the files of secrets and certificates hold at each new connection."""
    client.create_conn = _connect


async def _connect(*address: Any, **options: Any) -> AIOKafkaConnection:
    for name in ("ssl_context", "sasl_plain_password"):
        # A file may be half written; if the old one is not taken any more, the broker says so.
        options[name] = renewed(
            options.get(name), lambda error: log.warning("the login is used as it was", error=str(error))
        )
    return await create_conn(*address, **options)


async def explain(kafka: KafkaSettings, error: Exception) -> str:
    """What keeps Kafka from being used, in one sentence, and what to do, in another.

    aiokafka tells a login that was refused from brokers that are away only in its log: hence one more attempt.
    """
    if isinstance(error, KafkaConnectionError | NodeNotReadyError | OSError):
        error = await first_failure(kafka) or error
    where = f"Kafka at {kafka.bootstrap_servers}"
    match error:
        case TokenUnavailable():
            return str(error)
        case ssl.SSLCertVerificationError():
            return (
                f"{where} showed a certificate that is not accepted: {error.verify_message.rstrip('.')}. Give the CA "
                "that signed it as kafka.ssl_ca_file, and addresses that it names as kafka.bootstrap_servers."
            )
        case ssl.SSLError():
            return (
                f"{where} and this client did not agree on TLS: {(error.reason or str(error)).lower()}. Check that "
                f"the listener speaks {kafka.security_protocol}, and kafka.ssl_cert_file if it asks for a certificate."
            )
        case SaslAuthenticationFailed() | IllegalSaslStateError() | UnsupportedSaslMechanismError():
            return (
                f"{where} refused the login by {kafka.sasl_mechanism}: {_said(error)}. "
                "Check the credentials under [kafka], and that the broker knows them."
            )
        case LoginInterrupted():
            return (
                f"{where} takes connections, but ends them or stays silent before they can be used. Check that the "
                f"listener speaks {kafka.security_protocol}, the client's certificate or the token's life, and its log."
            )
        case KafkaConnectionError() | NodeNotReadyError() | OSError():
            return (
                f"No Kafka broker answers at {kafka.bootstrap_servers}. Start it, or set kafka.bootstrap_servers "
                "(HOLDFAST_KAFKA__BOOTSTRAP_SERVERS)."
            )
        case (
            TopicAuthorizationFailedError()
            | GroupAuthorizationFailedError()
            | ClusterAuthorizationFailedError()
            | TransactionalIdAuthorizationFailed()
        ):
            return (
                f"{where} does not permit this: {type(error).__name__}, {_said(error)}. "
                "Grant this login what its role needs: holdfast acls kafka"
            )
        case _:
            return f"{where} refused: {_said(error)}. Check its log."


class LoginInterrupted(KafkaError):  # type: ignore[misc]  # noqa: N818  it reads as what happened
    """The broker took the connection, and then closed it or said nothing."""


class _RefusableToken(OAuthAuthenticator):  # type: ignore[misc]
    async def step(self, payload: bytes | None) -> Any:
        # aiokafka takes any answer to a token for a yes, and then wonders at a closed connection; an answer that is
        # not empty says why it was refused (RFC 7628, 3.2.2).
        if payload:
            raise SaslAuthenticationFailed(payload.decode("utf-8", "replace"))
        return await super().step(payload)


class _Attempt(AIOKafkaConnection):  # type: ignore[misc]
    def authenticator_oauth(self) -> OAuthAuthenticator:
        return _RefusableToken(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


async def first_failure(kafka: KafkaSettings) -> Exception | None:
    """What goes wrong at the first broker that can be reached, or None when nothing does."""
    options = kafka.client_options()
    failure: Exception | None = None
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        attempt = _Attempt(host, port, client_id="holdfast", **options)
        reached = False
        try:
            async with asyncio.timeout(ATTEMPT_WITHIN):
                _, writer = await asyncio.open_connection(host, port)
                reached = True
                writer.close()
                await attempt.connect()
                # A login that is over at once, as with an expired token, shows in the first request after it.
                await attempt.send(MetadataRequest([]))
            return None
        except (KafkaError, OSError) as error:  # TimeoutError is an OSError
            said_why = not isinstance(error, KafkaConnectionError | OSError) or isinstance(error, ssl.SSLError)
            failure = LoginInterrupted(*error.args) if reached and not said_why else error
        finally:
            attempt.close()
        if reached:
            break
    return failure


def _said(error: Exception) -> str:
    """What an error says, without its number."""
    said = " ".join(map(str, error.args)).strip().rstrip(".")
    return said or type(error).__name__
