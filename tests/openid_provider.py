"""An OpenID Connect provider of the tests' own, on this machine: Authlib's server, with PKCE that it requires.

    with OpenIdProvider({"ann": {"preferred_username": "ann", "groups": ["ops"]}}) as provider:
        ...  # provider.issuer, provider.answer(address, "ann")

Its sign-in page has a button for each of its people. `forge` replaces the ID tokens that it would give.
"""

import base64
import json
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import flask
import httpx
import werkzeug.serving
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, grants
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import OpenIDCode
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from holdfast.adapters.embedded import free_port

CLIENT, SECRET = "holdfast", "the secret+of/the console"


@dataclass
class _Client(ClientMixin):
    method: str
    redirect_uris: list[str]

    def get_client_id(self) -> str:
        return CLIENT

    def get_default_redirect_uri(self) -> str:
        return self.redirect_uris[0]

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self.method

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "authorization_code"


@dataclass
class _Code(AuthorizationCodeMixin):
    code: str
    subject: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str | None
    code_challenge_method: str | None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> None:
        return None

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


class OpenIdProvider:
    def __init__(
        self,
        people: Mapping[str, Mapping[str, Any]],
        redirect_uris: list[str],
        method: str = "client_secret_basic",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`people`: the claims of each subject. `method`: how the client authenticates; `none`: a public client."""
        self.people = dict(people)
        self.port = free_port()
        self.issuer = f"{'http' if tls is None else 'https'}://localhost:{self.port}"
        self.key: RSAKey | ECKey = RSAKey.generate_key(2048, {"kid": "first"})
        self.others: list[dict[str, Any]] = []
        """More keys that are published."""
        self.metadata: dict[str, Any] = {}
        """Put over what the provider says of itself."""
        self.thin: set[str] = set()
        """Claims that are not in ID tokens; the userinfo endpoint has them."""
        self.userinfo_of: str | None = None
        """Whose claims it gives, instead of those of the person who asks."""
        self.forge: Callable[[dict[str, Any]], str] | None = None
        self.asked: Counter[str] = Counter()
        self._browser = httpx.Client(verify=False)  # noqa: S501  it is this test's own
        self._client = _Client(method, redirect_uris)
        self._codes: dict[str, _Code] = {}
        self._given: dict[str, str] = {}
        """The subject of each access token."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = werkzeug.serving.make_server("127.0.0.1", self.port, self._app(), threaded=True, ssl_context=tls)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._browser.close()

    def answer(self, address: str, subject: str) -> str:
        """Sign in at the page of this address; where the browser is sent then."""
        answer = self._browser.post(address, data={"subject": subject})
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def sign(self, claims: dict[str, Any], key: Any = None, alg: str = "RS256", kid: str | None = "first") -> str:
        header = {"alg": alg, **({"kid": kid} if kid is not None else {})}
        return jwt.encode(header, claims, key or self.key, [alg])

    def _app(self) -> flask.Flask:
        provider = self

        class Grant(grants.AuthorizationCodeGrant):
            TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")

            def save_authorization_code(self, code: str, request: Any) -> None:
                data = request.payload.data
                provider._codes[code] = _Code(
                    code,
                    request.user,
                    request.payload.redirect_uri,
                    request.payload.scope,
                    data.get("nonce"),
                    data.get("code_challenge"),
                    data.get("code_challenge_method"),
                )

            def query_authorization_code(self, code: str, client: Any) -> _Code | None:
                return provider._codes.get(code)

            def delete_authorization_code(self, authorization_code: _Code) -> None:
                del provider._codes[authorization_code.code]

            def authenticate_user(self, authorization_code: _Code) -> str:
                return authorization_code.subject

        class Challenge(CodeChallenge):
            SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

            def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
                if not grant.request.payload.data.get("code_challenge"):
                    raise OAuth2Error("this provider requires PKCE")
                super().validate_code_challenge(grant, redirect_uri)

        class Tokens(OpenIDCode):
            def exists_nonce(self, nonce: str, request: Any) -> bool:
                return any(code.nonce == nonce for code in provider._codes.values())

            def resolve_client_private_key(self, client: Any) -> Any:
                return provider.key

            def get_client_algorithm(self, client: Any) -> str:
                return "ES256" if isinstance(provider.key, ECKey) else "RS256"

            def get_client_claims(self, client: Any) -> dict[str, Any]:
                return {"iss": provider.issuer}

            def get_encode_header(self, client: Any) -> dict[str, Any]:
                return {"alg": self.get_client_algorithm(client), "kid": provider.key.kid}

            def generate_user_info(self, user: str, scope: str) -> dict[str, Any]:
                said = {"sub": user, **provider.people[user]}
                return {name: value for name, value in said.items() if name not in provider.thin}

            def encode_id_token(self, token: Any, request: Any) -> str:
                signed = super().encode_id_token(token, request)
                if provider.forge is None:
                    return signed
                claims = jwt.decode(signed, provider.key, ["RS256", "ES256"]).claims
                return provider.forge(claims)

        app = flask.Flask("provider")
        server = AuthorizationServer(
            app,
            query_client=lambda client_id: provider._client if client_id == CLIENT else None,
            save_token=lambda token, request: provider._given.update({token["access_token"]: request.user}),
        )
        server.register_grant(Grant, [Tokens(require_nonce=True), Challenge(required=True)])

        @app.before_request
        def count() -> None:
            provider.asked[flask.request.path] += 1

        @app.get("/.well-known/openid-configuration")
        def configuration() -> Any:
            return {
                "issuer": provider.issuer,
                "authorization_endpoint": f"{provider.issuer}/authorize",
                "token_endpoint": f"{provider.issuer}/token",
                "jwks_uri": f"{provider.issuer}/keys",
                "userinfo_endpoint": f"{provider.issuer}/userinfo",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256", "ES256"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": [provider._client.method],
                **provider.metadata,
            }

        @app.get("/keys")
        def keys() -> Any:
            return {"keys": [*KeySet([provider.key]).as_dict(private=False)["keys"], *provider.others]}

        @app.get("/userinfo")
        def userinfo() -> Any:
            subject = provider._given.get(flask.request.headers.get("Authorization", "").removeprefix("Bearer "))
            if subject is None:
                return {"error": "invalid_token"}, 401
            subject = provider.userinfo_of or subject
            return {"sub": subject, **provider.people[subject]}

        @app.route("/authorize", methods=["GET", "POST"])
        def authorize() -> Any:
            if flask.request.method == "POST":
                subject = flask.request.form["subject"]
                grant = server.get_consent_grant(end_user=subject)
                return server.create_authorization_response(grant_user=subject, grant=grant)
            buttons = "".join(f'<button name="subject" value="{one}">{one}</button>' for one in provider.people)
            return f'<title>The provider</title><link rel="icon" href="data:,"><form method="post">{buttons}</form>'

        @app.post("/token")
        def token() -> Any:
            return server.create_token_response()

        return app


def unsigned(claims: dict[str, Any]) -> str:
    """An ID token of `alg: none`."""
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), ""])
