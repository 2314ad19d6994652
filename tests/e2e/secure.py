"""A Kafka, a Redis and an Alertmanager that trust nobody: TLS, a login for everyone, ACLs; and a token endpoint."""

import base64
import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import trustme
from cryptography.hazmat.primitives import serialization
from joserfc import jwk, jwt

from backends import AlertmanagerServer, RealKafka, RedisServer
from holdfast.adapters.embedded import free_port
from holdfast_schemas import Party

ISSUER, AUDIENCE = "https://idp.test", "kafka"


def password(party: str) -> str:
    """What nobody may ever find in a log or an answer."""
    return f"hunter2-{party}-kafka"


class Certificates:
    """One authority of the test's own, and what it issues, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ca = folder, trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))
        self.other_ca = folder / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(str(self.other_ca))

    def issue(self, name: str, *hosts: str, key_password: str | None = None) -> tuple[Path, Path]:
        """A certificate in this name, and its key as PKCS #8."""
        issued = self._ca.issue_cert(*(hosts or (f"{name}.test",)), common_name=name)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        plain = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if key_password is not None:
            encryption = serialization.BestAvailableEncryption(key_password.encode())
        key.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
        return cert, key


class SecureKafka(RealKafka):
    """`sasl` is for everyone: SCRAM, PLAIN or OAUTHBEARER over TLS. `mtls` asks for a client certificate.

    `bootstrap` is the test's own way in, with every right. Each party has its password.
    """

    def __init__(self, certificates: Certificates, jwks: Path) -> None:
        self.certificates = certificates
        sasl, mtls = free_port(), free_port()
        self.sasl, self.mtls = f"127.0.0.1:{sasl}", f"127.0.0.1:{mtls}"
        cert, key = certificates.issue("broker", "127.0.0.1")
        chain = certificates.folder / "broker-chain.pem"
        chain.write_bytes(key.read_bytes() + cert.read_bytes())
        login = "org.apache.kafka.common.security"
        plain = " ".join(f'user_holdfast-{party}="{password(party)}"' for party in Party)
        super().__init__(
            {
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT"
                ),
                "inter.broker.listener.name": "PLAINTEXT",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(chain),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(certificates.ca),
                "listener.name.ssl.ssl.client.auth": "required",
                "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
                "listener.name.sasl_ssl.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER",
                "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
                "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required {plain};",
                "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": (
                    f"{login}.oauthbearer.OAuthBearerLoginModule required;"
                ),
                "listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class": (
                    f"{login}.oauthbearer.OAuthBearerValidatorCallbackHandler"
                ),
                # By default Kafka 4.1.0 checks neither signature nor audience nor expiry of a token.
                "sasl.oauthbearer.jwt.validator.class": f"{login}.oauthbearer.BrokerJwtValidator",
                # A connection lasts as long as its token.
                "listener.name.sasl_ssl.oauthbearer.connections.max.reauth.ms": "3600000",
                "sasl.oauthbearer.jwks.endpoint.url": jwks.as_uri(),
                "sasl.oauthbearer.expected.issuer": ISSUER,
                "sasl.oauthbearer.expected.audience": AUDIENCE,
                "sasl.oauthbearer.clock.skew.seconds": "0",
            }
        )
        for key_ in ("listeners", "advertised.listeners"):
            self.properties[key_] += f",SASL_SSL://{self.sasl},SSL://{self.mtls}"
        self.java_options = (
            f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}",
            f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.files={jwks}",
        )
        users = [f"{kind}=[name=holdfast-{party},password={password(party)}]" for party in Party for kind in _SCRAM]
        users += [f"{kind}=[name={user},password={password(user)}]" for user in OF_AN_INPUT for kind in _SCRAM]
        self.format_arguments = tuple(word for user in users for word in ("--add-scram", user))

    def login(self, party: str, **changes: Any) -> dict[str, Any]:
        """The section `kafka` of a party's configuration: SCRAM over TLS; a change to None leaves the key out."""
        whole = {
            "bootstrap_servers": self.sasl,
            "security_protocol": "SASL_SSL",
            "ssl_ca_file": str(self.certificates.ca),
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": f"holdfast-{party}",
            "sasl_password": password(party),
        } | changes
        return {key: value for key, value in whole.items() if value is not None}


OF_AN_INPUT = ("prices-holdfast-producer", "prices-holdfast-consumer")
"""The logins of an input with the name `prices`, beside those of the parties."""
_SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")


class SecureRedis(RedisServer):
    """With a port for TLS beside the one without; clients need no certificate."""

    def __init__(self, certificates: Certificates) -> None:
        self.tls_port = free_port()
        cert, key = certificates.issue("redis", "127.0.0.1")
        super().__init__(
            *("--tls-port", str(self.tls_port), "--tls-auth-clients", "optional"),
            *("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificates.ca)),
        )

    @property
    def tls_url(self) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}/0"


class SecureAlertmanager(AlertmanagerServer):
    """With TLS and one login: `notify`, with `ALERTMANAGER_PASSWORD`. It tells nobody. Raises BackendError."""

    def __init__(self, certificates: Certificates) -> None:
        cert, key = certificates.issue("alertmanager", "127.0.0.1")
        web = certificates.folder / "alertmanager-web.yml"
        web.write_text(
            f"tls_server_config: {{cert_file: {cert}, key_file: {key}}}\n"
            f"basic_auth_users: {{notify: '{_ALERTMANAGER_BCRYPT}'}}\n"
        )
        super().__init__("{route: {receiver: nobody}, receivers: [{name: nobody}]}", f"--web.config.file={web}")
        self._ca = certificates.ca

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def alerts(self) -> list[dict[str, Any]]:
        """The labels of each alert that it has."""
        login, tls = ("notify", ALERTMANAGER_PASSWORD), ssl.create_default_context(cafile=self._ca)
        found = httpx.get(f"{self.url}/api/v2/alerts", auth=login, verify=tls).raise_for_status().json()
        return [alert["labels"] for alert in found]


ALERTMANAGER_PASSWORD = "hunter2-alertmanager"
_ALERTMANAGER_BCRYPT = "$2b$04$.2AN50twkAYdCg0I0UPDgupmTZ2/yd/u/A.gtyapC3u8f7FhjDXty"


class TokenEndpoint:
    """Gives signed tokens to the parties that know their password; `lasts` is their life in seconds."""

    def __init__(self) -> None:
        self.key = jwk.generate_key("RSA", 2048, {"kid": "one", "use": "sig", "alg": "RS256"}, auto_kid=False)
        self.lasts, self.claims, self.given = 300.0, dict[str, Any](), 0
        self.answer: tuple[int, bytes] | None = None
        """Instead of a token."""

    def write_jwks(self, path: Path) -> Path:
        path.write_text(json.dumps({"keys": [self.key.as_dict(private=False)]}))
        return path

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Its URL."""
        handler = type("Handler", (_TokenHandler,), {"endpoint": self})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/token"
        finally:
            server.shutdown()
            server.server_close()

    def token(self, client: str) -> dict[str, Any]:
        now = time.time()
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": client, "iat": now, "exp": now + self.lasts, **self.claims}
        self.given += 1
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        return {"access_token": signed, "token_type": "Bearer", "expires_in": self.lasts}


class _TokenHandler(http.server.BaseHTTPRequestHandler):
    endpoint: TokenEndpoint

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(encoded if kind == "Basic" else "").decode().partition(":")
        if self.endpoint.answer is not None:
            self._say(*self.endpoint.answer)
        elif form.get("grant_type") != ["client_credentials"]:
            self._say(400, b'{"error": "unsupported_grant_type"}')
        elif secret != password(client.removeprefix("holdfast-")):
            self._say(401, b'{"error": "invalid_client", "error_description": "unknown client or wrong secret"}')
        else:
            self._say(200, json.dumps(self.endpoint.token(client)).encode())

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""
