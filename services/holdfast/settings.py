"""Configuration: one TOML file, `holdfast.toml`, and environment variables over it."""

import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from holdfast.core.claims import EVERY_MODEL, Rules
from holdfast.core.command_signature import CommandSigner, CommandVerifier
from holdfast.core.duration import Duration
from holdfast.core.end_of_switch import end_of_switch
from holdfast.core.errors import HoldfastError
from holdfast.core.names import Addresses, Host, PlainName, TopicName
from holdfast.core.route_signature import RouteSigner, RouteVerifier
from holdfast.core.toml_text import parse_toml
from holdfast.login import is_loopback, renewable, secret, tls_context
from holdfast.redis_url import check_redis_url
from holdfast_schemas import MAX_VALUE_BYTES, TOPICS, Name, UtcTime

T = TypeVar("T")


class SettingsError(HoldfastError):
    """The configuration is refused."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class KafkaSettings(_Section):
    """Where Kafka is, and how to log in. Each secret may come from a file instead, which is read at every use."""

    bootstrap_servers: Addresses = "localhost:9092"
    session_timeout: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=10)
    """How long a worker may be silent before its partitions go to another."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_password_file: Path | None = None
    oauth_token_url: str | None = None
    """Where OAUTHBEARER gets its tokens, by client credentials."""
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_client_secret_file: Path | None = None
    oauth_scope: str | None = None
    oauth_audience: str | None = None
    oauth_ca_file: Path | None = None
    """Of the token endpoint; the system's authorities without it."""
    ssl_ca_file: Path | None = None
    """Of the brokers; the system's authorities without it."""
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    ssl_key_password: SecretStr | None = None
    ssl_key_password_file: Path | None = None
    allow_password_without_tls: bool = False

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        protocol, mechanism = self.security_protocol, self.sasl_mechanism
        given = self.model_dump(exclude_none=True)
        login = sorted(key for key in given if key.startswith(("sasl_", "oauth_")))
        if login and not protocol.startswith("SASL_"):
            raise ValueError(
                f"{login[0]} is set, but security_protocol is {protocol}, which would send "
                "no login; set security_protocol = 'SASL_SSL'"
            )
        tls = sorted(key for key in given if key.startswith("ssl_"))
        if tls and not protocol.endswith("SSL"):
            raise ValueError(
                f"{tls[0]} is set, but security_protocol is {protocol}, which is without TLS; "
                f"set security_protocol = '{'SASL_SSL' if protocol.startswith('SASL') else 'SSL'}'"
            )
        if protocol == "SASL_PLAINTEXT" and not self.allow_password_without_tls:
            raise ValueError(
                "SASL_PLAINTEXT sends the login without TLS; use SASL_SSL, or set "
                "allow_password_without_tls = true where the network is trusted"
            )
        for key in ("sasl_password", "oauth_client_secret", "ssl_key_password"):
            _not_twice(self, key)
        if self.ssl_key_file and not self.ssl_cert_file:
            raise ValueError("ssl_key_file is the key of a client certificate; set ssl_cert_file too")
        if protocol.startswith("SASL_"):
            self._needs_its_credentials(mechanism)
        return self

    def _needs_its_credentials(self, mechanism: str | None) -> None:
        if mechanism is None:
            raise ValueError(f"{self.security_protocol} needs a sasl_mechanism; set it to what the brokers offer")
        if mechanism != "OAUTHBEARER":
            if not (self.sasl_username and (self.sasl_password or self.sasl_password_file)):
                raise ValueError(f"{mechanism} needs sasl_username, and sasl_password or sasl_password_file; set both")
            if self.oauth_token_url:
                raise ValueError(f"oauth_token_url is for OAUTHBEARER, not for {mechanism}; remove one of them")
            return
        url = urlsplit(self.oauth_token_url or "")
        if not (url.hostname and self.oauth_client_id and (self.oauth_client_secret or self.oauth_client_secret_file)):
            raise ValueError(
                "OAUTHBEARER needs oauth_token_url, oauth_client_id, and oauth_client_secret or "
                "oauth_client_secret_file; set all three"
            )
        if self.sasl_username or self.sasl_password or self.sasl_password_file:
            raise ValueError("OAUTHBEARER takes no sasl_username and no sasl_password; remove them")
        if url.username or url.password:
            raise ValueError("oauth_token_url holds a login; use oauth_client_id and oauth_client_secret")
        if url.scheme != "https" and not is_loopback(url.hostname) and not self.allow_password_without_tls:
            raise ValueError(
                f"the client secret would go to {url.hostname} without TLS; use an https:// oauth_token_url, or set "
                "allow_password_without_tls = true where the network is trusted"
            )

    @cached_property
    def token_provider(self) -> Any:
        """One for all clients that are opened with these settings, so that they share a token."""
        from holdfast.oauth import TokenProvider

        return TokenProvider(
            self.oauth_token_url or "",
            self.oauth_client_id or "",
            lambda: secret("oauth_client_secret_file", self.oauth_client_secret, self.oauth_client_secret_file) or "",
            scope=self.oauth_scope,
            audience=self.oauth_audience,
            tls=lambda: tls_context(self.oauth_ca_file),
        )

    def _tls_context(self) -> ssl.SSLContext:
        key_password = secret("ssl_key_password_file", self.ssl_key_password, self.ssl_key_password_file)
        return tls_context(self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file, key_password)

    def _password(self) -> str:
        return secret("sasl_password_file", self.sasl_password, self.sasl_password_file) or ""

    def client_options(self) -> dict[str, Any]:
        """What every aiokafka client is opened with; what is of files is renewed with each new connection.

        Raises SettingsError for files that cannot be used.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        try:
            if self.security_protocol.endswith("SSL"):
                options["ssl_context"] = renewable(self._tls_context)
            if self.sasl_mechanism is not None:
                options["sasl_mechanism"] = self.sasl_mechanism
            if self.sasl_mechanism == "OAUTHBEARER":
                options["sasl_oauth_token_provider"] = self.token_provider
            elif self.sasl_mechanism is not None:
                options["sasl_plain_username"] = self.sasl_username
                options["sasl_plain_password"] = renewable(self._password)
        except ValueError as error:
            raise SettingsError(f"Kafka's login cannot be used: {error}.") from None
        return options


class RedisSettings(_Section):
    """Where Redis is, and how to log in; the login and the TLS files may also be part of the URL."""

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    url_file: Path | None = None
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    sentinel_password_file: Path | None = None
    ssl_ca_file: Path | None = None
    """Of the server; the system's authorities without it."""
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    ssl_key_password: SecretStr | None = None
    ssl_key_password_file: Path | None = None
    allow_password_without_tls: bool = False
    reassert_every: Duration = timedelta(seconds=1)
    route_key_file: Path | None = None
    """The switch's: an Ed25519 private key in PEM, by which it signs every route."""
    route_public_key_file: Path | None = None
    """Its public key, or several: `holdfast doctor` compares what Redis holds with it."""

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        for key in ("url", "password", "sentinel_password", "ssl_key_password"):
            _not_twice(self, key)
        if self.username and not (self.password or self.password_file):
            raise ValueError("username needs password or password_file; set one")
        if self.ssl_key_file and not self.ssl_cert_file:
            raise ValueError("ssl_key_file is the key of a client certificate; set ssl_cert_file too")
        if self.url_file is None and self.password_file is None and self.sentinel_password_file is None:
            self._whole_url(None)
        return self

    def _whole_url(self, key_password: str | None) -> str:
        """Raises ValueError."""
        url = urlsplit(secret("url_file", self.url, self.url_file) or "")
        options: dict[str, object] = {
            "ssl_ca_certs": self.ssl_ca_file,
            "ssl_certfile": self.ssl_cert_file,
            "ssl_keyfile": self.ssl_key_file,
            "ssl_password": key_password,
        }
        if any(options.values()) and not url.scheme.startswith("rediss"):
            raise ValueError("ssl_ files are set, but the URL is without TLS; write rediss:// or rediss+…://")
        if (self.sentinel_username or self.sentinel_password or self.sentinel_password_file) and (
            not url.scheme.endswith("+sentinel")
        ):
            raise ValueError("the login of Sentinels is set, but the URL names none; write redis+sentinel://")
        options["sentinel_username"] = self.sentinel_username
        options["sentinel_password"] = secret(
            "sentinel_password_file", self.sentinel_password, self.sentinel_password_file
        )
        query = "&".join([*filter(None, [url.query]), urlencode({k: v for k, v in options.items() if v})]).strip("&")
        place = url.netloc
        password = secret("password_file", self.password, self.password_file)
        if password is not None:
            place = f"{quote(self.username or '', safe='')}:{quote(password, safe='')}@{place.rpartition('@')[2]}"
        whole = urlunsplit(url._replace(netloc=place, query=query))
        check_redis_url(whole, allow_password_without_tls=self.allow_password_without_tls)
        return whole

    def connection_url(self) -> str:
        """What every Redis client is opened with: the URL with the login and the TLS files.

        Raises SettingsError for what cannot be used.
        """
        try:
            key_password = secret("ssl_key_password_file", self.ssl_key_password, self.ssl_key_password_file)
            tls_context(self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file, key_password)
            return self._whole_url(key_password)
        except ValueError as error:
            raise SettingsError(f"The login to Redis cannot be used: {error}.") from None

    def route_signer(self) -> RouteSigner | None:
        """What signs routes; None: nothing does. Raises SettingsError for a file that cannot be used."""
        return _of_key_file("redis.route_key_file", self.route_key_file, RouteSigner)

    def route_verifier(self) -> RouteVerifier | None:
        """What tells whether a route is signed; None: no key is given. Raises SettingsError."""
        return _of_key_file("redis.route_public_key_file", self.route_public_key_file, RouteVerifier)


def _of_key_file(key: str, file: Path | None, make: Callable[[bytes], T]) -> T | None:
    if file is None:
        return None
    try:
        return make(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"{key} {file} cannot be read: {error.strerror}. Let this process read it.") from None
    except ValueError as error:
        raise SettingsError(f"{key} {file} cannot be used: {error}.") from None


def _not_twice(section: _Section, key: str) -> None:
    if key in section.model_fields_set and getattr(section, key) is not None and getattr(section, f"{key}_file"):
        raise ValueError(f"{key} and {key}_file are both set; remove one")


class TopicNames(_Section):
    predictions: TopicName = TOPICS["predictions"].default_name
    approved: TopicName = TOPICS["approved"].default_name
    blocked: TopicName = TOPICS["blocked"].default_name
    malformed: TopicName = TOPICS["malformed"].default_name
    control: TopicName = TOPICS["control"].default_name
    releases: TopicName = TOPICS["releases"].default_name
    state: TopicName = TOPICS["state"].default_name
    routes: TopicName = TOPICS["routes"].default_name
    references: TopicName = TOPICS["references"].default_name
    incidents: TopicName = TOPICS["incidents"].default_name
    audit: TopicName = TOPICS["audit"].default_name

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.model_dump().values())
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two topics are named {name!r}; give each its own name")
        return self


OF_INPUT = ("predictions", "approved", "blocked", "malformed", "releases")
"""The roles of topics that each input has for itself."""


class InputSettings(_Section):
    """A further topic of predictions, which may carry these models and no other topic may, with its own verdicts.

    Guards and verifiers of it are processes of their own, which are started with `--input` and its name.
    """

    topic: TopicName
    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    name: PlainName = ""
    """How commands call it; the topic's name unless it is given."""
    approved: TopicName = ""
    """Of this and the following topics: the topic's name with the role behind it, unless it is given."""
    blocked: TopicName = ""
    malformed: TopicName = ""
    releases: TopicName = ""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("topic"), str):
            return given
        topic = given["topic"]
        return {"name": topic} | {role: f"{topic}.{role}" for role in OF_INPUT if role != "predictions"} | given

    def topics(self) -> dict[str, str]:
        """By role."""
        return {role: self.topic if role == "predictions" else str(getattr(self, role)) for role in OF_INPUT}


class TopicSettings(_Section):
    """What `holdfast topics create` makes."""

    partitions: Annotated[int, Field(ge=1)] = 12
    control_partitions: Annotated[int, Field(ge=1)] = 6
    replication_factor: Annotated[int, Field(ge=1)] = 1


ENTITY_BYTES = 256
"""What remembering one entity takes, with its id or the hash that stands for it; benchmarks/memory.py measures it."""


class GuardSettings(_Section):
    group: PlainName = "holdfast-guard"
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    start_from: str = "latest"
    """Where a new installation begins: `latest` (what is in predictions already stays unchecked), `earliest`, or a
    time with its zone, such as 2026-11-24T10:00:00Z. It is read once, at the first start of all."""
    no_policy: Literal["block", "approve"] = "block"
    no_policy_until: UtcTime | None = None
    """When `approve` ends by itself: from then on outputs of models without a policy are blocked."""
    tombstones: Literal["malformed", "pass"] = "malformed"
    """A record with a key and without a value deletes its key for consumers of a compacted topic: `pass` writes it to
    the approved topic too. It names no model, so no policy can say it."""
    max_batch_records: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    max_record_bytes: Annotated[int, Field(ge=1024, le=MAX_VALUE_BYTES)] = 1_000_000
    """A larger value goes to malformed."""
    max_batch_bytes: Annotated[int, Field(ge=1024 * 1024)] = 32 * 1024 * 1024
    """Of records of one partition that are unpacked and judged together; the batch that reaches it is the last one."""
    max_in_flight_bytes: Annotated[int, Field(ge=1024 * 1024)] = 256 * 1024 * 1024
    """Of verdicts of all partitions that are on their way to Kafka; with that much no partition unpacks more."""
    restore_records: Annotated[int, Field(ge=0)] = 2_000_000
    """How much of the tail of each approved partition is read back into the memory, in offsets: the marker of each
    transaction takes one too."""
    max_entities: Annotated[int, Field(ge=1)] = 2_000_000
    """Remembered of each partition; beyond it the models that have most forget those approved least recently."""
    max_remembered_bytes: Annotated[int, Field(ge=1024 * 1024)] = 1024 * 1024 * 1024
    """Of entities that a guard with every partition may remember: each partition has its share of it, at about 256
    bytes for an entity."""
    release_max_age: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(hours=1)
    """An older prediction is never released, whoever asks: an hour-old price is not a price."""
    partitioner: Literal["murmur2", "other"] = "murmur2"
    """What the producers of predictions choose partitions by. With `other`, the same one for all of them, keys are not
    held against murmur2."""
    give_up_after: Duration = timedelta(minutes=5)
    """How long a partition keeps failing before the worker stops, unless its other partitions go on."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    health_host: Host = "127.0.0.1"

    def entities_of_partition(self, partitions: int) -> int:
        """How many entities are remembered of one of so many partitions. The verifier reckons with the same number."""
        return max(1, min(self.max_entities, self.max_remembered_bytes // ENTITY_BYTES // max(1, partitions)))

    def approves_without_policy(self, now: datetime) -> bool:
        """Whether outputs of models without a policy pass at that time."""
        return self.no_policy == "approve" and (self.no_policy_until is None or now < self.no_policy_until)

    @field_validator("no_policy_until", mode="before")
    @classmethod
    def _has_a_zone(cls, at: Any) -> Any:
        return end_of_switch(at)

    @model_validator(mode="after")
    def _ends_an_approval(self) -> Self:
        if self.no_policy_until is not None and self.no_policy == "block":
            raise ValueError(
                'no_policy_until is the end of no_policy = "approve", and no_policy is "block"; set it, or leave '
                "no_policy_until out"
            )
        return self

    @field_validator("start_from")
    @classmethod
    def _place_or_time(cls, text: str) -> str:
        if text in ("latest", "earliest"):
            return text
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("it is not latest, earliest or a time such as 2026-11-24T10:00:00Z") from None
        if at.tzinfo is None:
            raise ValueError("the time has no zone; write it as in 2026-11-24T10:00:00Z")
        return text


class SwitchSettings(_Section):
    group: PlainName = "holdfast-switch"
    tick_every: Duration = timedelta(milliseconds=500)
    give_up_after: Duration = timedelta(minutes=5)
    approvals: Literal[1, 2] = 1
    """How many people must ask for what loosens: unfence, resume, reference accept, policy undo, and releases by
    force, which the guards answer. With 2 the first command is refused and remembered, and the same one of somebody
    else within 30 minutes is carried out."""
    runbook_url: str = ""
    """Where people find the runbooks; empty: at the API, which serves them below `notify.console_url`. One that ends
    in a slash is a folder: incidents name the page of their kind in it."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8001
    health_host: Host = "127.0.0.1"


class NotifySettings(_Section):
    alertmanager_urls: list[str] = ["http://localhost:9093"]
    """Every member of the Alertmanager cluster; each gets every alert. The login below is for all of them."""
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    bearer_token: SecretStr | None = None
    bearer_token_file: Path | None = None
    """Files are read again for each request, so that a secret may be renewed."""
    ssl_ca_file: Path | None = None
    """Of the Alertmanagers; the system's authorities without it."""
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    allow_password_without_tls: bool = False
    resend_every: Duration = timedelta(seconds=30)
    """Open incidents are sent again, so that an Alertmanager that restarted knows them."""
    alert_lasts: Duration = timedelta(minutes=15)
    """How long an Alertmanager keeps an open incident that nobody sends again. It then tells people that the
    incident is over: longer than it takes to bring notify back."""
    console_url: str = "http://localhost:8080"
    """Where people reach the console; alerts link to it."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8002
    health_host: Host = "127.0.0.1"

    @field_validator("alertmanager_urls")
    @classmethod
    def _usable_urls(cls, urls: list[str]) -> list[str]:
        if not urls:
            raise ValueError("it names no Alertmanager, so nobody would be told; give at least one address")
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("an address is no http address; write them as in 'http://alertmanager:9093'")
            if parts.username or parts.password:
                raise ValueError("an address holds a login; set notify.username and notify.password_file instead")
        trimmed = [url.rstrip("/") for url in urls]
        if len(set(trimmed)) < len(trimmed):
            raise ValueError("it names an Alertmanager twice; name each once")
        return trimmed

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        for key in ("password", "bearer_token"):
            _not_twice(self, key)
        password, token = self.password or self.password_file, self.bearer_token or self.bearer_token_file
        if bool(self.username) != bool(password):
            raise ValueError("a login needs username, and password or password_file; set both, or neither")
        if password and token:
            raise ValueError("a password and a bearer token are both set; remove one")
        if self.ssl_key_file and not self.ssl_cert_file:
            raise ValueError("ssl_key_file is the key of a client certificate; set ssl_cert_file too")
        for url in map(urlsplit, self.alertmanager_urls):
            private = url.scheme == "https" or is_loopback(url.hostname or "")
            if (password or token) and not private and not self.allow_password_without_tls:
                raise ValueError(
                    f"the login would go to {url.hostname} without TLS; use an https:// address, or set "
                    "allow_password_without_tls = true where the network is trusted"
                )
        return self

    @model_validator(mode="after")
    def _resent_before_it_ends(self) -> Self:
        if self.alert_lasts < 3 * self.resend_every:
            raise ValueError(
                "alert_lasts is less than three times resend_every, so that open incidents would end in between; "
                "lengthen alert_lasts"
            )
        return self


MOST_MODELS_BYTES = 2000
"""Of the names of models that sessions of people are limited to: browsers keep cookies of 4 KB."""


class OidcSettings(_Section):
    """The OpenID Connect provider by which people sign in at the console, and who they are here."""

    issuer: str
    """As the provider writes it itself; what else is needed is read from below it."""
    client_id: Annotated[str, Field(min_length=1)]
    client_secret: SecretStr | None = None
    client_secret_file: Path | None = None
    """Without a secret this is a public client, which PKCE protects alone."""
    scopes: str = "openid profile email"
    name_claim: Annotated[str, Field(min_length=1)] = "preferred_username"
    """The claim of the ID token that names a person in the audit. People must not be able to choose it freely."""
    roles_claim: Annotated[str, Field(min_length=1)]
    """The path of the claim with a person's roles or groups: `groups`, `realm_access.roles`."""
    roles: Annotated[dict[str, Literal["viewer", "operator", "admin"]], Field(min_length=1)]
    """The role of each value of it. The one that may do most counts; nobody without a role gets in."""
    models_claim: str = ""
    """The path of the claim that says which models a person may see; without it, that of the roles."""
    models: dict[str, tuple[Literal["*"] | Name, ...]] | None = None
    """The models of each value of it; `*`: all. Without this, everybody sees all models."""
    ssl_ca_file: Path | None = None
    """Of the provider; the system's authorities without it."""
    session_lasts: Duration = timedelta(hours=4)
    """When a person must sign in again, if not before by `api.session_lasts`: until then what the provider said holds,
    also where an account was locked there meanwhile."""
    title: str = ""
    """What the sign-in page calls the provider; without it, the host of the issuer."""

    @property
    def rules(self) -> Rules:
        return Rules(self.name_claim, self.roles_claim, self.roles, self.models_claim, self.models)

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        _not_twice(self, "client_secret")
        issuer = urlsplit(self.issuer)
        if issuer.scheme not in ("http", "https") or not issuer.hostname or issuer.query or issuer.fragment:
            raise ValueError("issuer is not an address; write it as in 'https://idp.example'")
        if issuer.username or issuer.password:
            raise ValueError("issuer holds a login; set client_id and client_secret_file instead")
        if issuer.scheme != "https" and not is_loopback(issuer.hostname):
            raise ValueError(
                f"anybody between here and {issuer.hostname} could say who signs in, because issuer is without TLS; "
                "write https://"
            )
        if "openid" not in self.scopes.split():
            raise ValueError("scopes has no openid, so the provider would not say who signs in; add it")
        if self.models is None and self.models_claim:
            raise ValueError("models_claim is set, but no value of it is mapped; write [api.oidc.models]")
        named = {model for models in (self.models or {}).values() for model in models} - {EVERY_MODEL}
        if sum(len(model.encode()) + 4 for model in named) > MOST_MODELS_BYTES:
            raise ValueError(
                f"models names more than {MOST_MODELS_BYTES:,} bytes of models, which no cookie holds; let '*' stand "
                "for all of them, or split the installation"
            )
        return self


class ApiSettings(_Section):
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    tokens_file: Path | None = None
    """Lines of `holdfast api token create`; read again when it changes."""
    tokens: list[str] = []
    """The same lines, for those who have no file."""
    start_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Without any token: lets in who has this one, as the login name, on loopback only. `holdfast up` makes one."""
    unix_socket: Path | None = None
    """Also serve on this socket, which only the user of this process can open: who connects is let in as that user."""
    url: str | None = None
    """Where the command line finds the API. With it, commands, releases and what is read of routes, incidents, blocked
    and malformed predictions go through the API, in the name of the token below; without it, straight to Kafka."""
    token: SecretStr | None = None
    token_file: Path | None = None
    """The command line's own token."""
    ssl_ca_file: Path | None = None
    """Of the API that `url` names; the system's authorities without it."""
    command_key_file: Path | None = None
    """The API's: an Ed25519 private key in PEM, by which it signs every command that it sends."""
    command_public_key_file: Path | None = None
    """Its public key, or several, for switch and guards: they record what is not signed as straight to Kafka."""
    session_lasts: Duration = timedelta(hours=12)
    """When a browser must sign in again."""
    oidc: OidcSettings | None = None
    session_key_file: Path | None = None
    """32 bytes or more with which sessions are signed, the same for all instances of the API. Without it each process
    makes its own: a restart signs all browsers out, and one instance does not know the sessions of another."""
    streams: Annotated[int, Field(ge=1)] = 200
    """Open pages of the console that are kept live at once."""
    streams_per_person: Annotated[int, Field(ge=1)] = 10
    requests_at_once: Annotated[int, Field(ge=1)] = 100
    """Requests that are worked on at once; /health, /ready and /metrics are answered beyond it."""
    commands_per_minute: Annotated[int, Field(ge=1)] = 30
    """For each token."""
    outcome_within: Duration = timedelta(seconds=15)
    """How long a request waits for the switch to answer its command."""
    keep_incidents: Annotated[int, Field(ge=100)] = 5000
    keep_audit: Annotated[int, Field(ge=100)] = 10_000
    """How many of the latest are held in memory; the topics have all."""

    @model_validator(mode="after")
    def _token_is_safe(self) -> Self:
        _not_twice(self, "token")
        if self.url is None:
            return self
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError("url is not an address; write it as in 'https://holdfast.example'")
        if url.username or url.password:
            raise ValueError("url holds a login; set api.token_file instead")
        if url.scheme != "https" and not is_loopback(url.hostname):
            raise ValueError(f"the token would go to {url.hostname} without TLS; write https://")
        return self

    def command_signer(self) -> CommandSigner | None:
        """What signs commands; None: nothing does. Raises SettingsError for a file that cannot be used."""
        return _of_key_file("api.command_key_file", self.command_key_file, CommandSigner)

    def command_verifier(self) -> CommandVerifier | None:
        """What tells whether a command is the API's; None: no key is given. Raises SettingsError."""
        return _of_key_file("api.command_public_key_file", self.command_public_key_file, CommandVerifier)


class ReleaseSettings(_Section):
    max_age: Annotated[Duration, Field(gt=timedelta(0))] | None = None
    """The earlier name of `guard.release_max_age`: the guards go by it where that is not set."""


class AuditSettings(_Section):
    look_back: Duration = timedelta(hours=1)
    """How far before its start the service begins to compare."""
    fence_within: Duration = timedelta(seconds=10)
    """How long after a fence was written a guard may still judge without it."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8003
    health_host: Host = "127.0.0.1"


class Settings(BaseSettings):
    """The whole configuration, with every default filled in."""

    model_config = SettingsConfigDict(
        env_prefix="HOLDFAST_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    topics: TopicNames = TopicNames()
    topic_settings: TopicSettings = TopicSettings()
    guard: GuardSettings = GuardSettings()
    switch: SwitchSettings = SwitchSettings()
    notify: NotifySettings = NotifySettings()
    api: ApiSettings = ApiSettings()
    release: ReleaseSettings = ReleaseSettings()
    audit: AuditSettings = AuditSettings()
    inputs: tuple[InputSettings, ...] = ()
    """Further topics of predictions; what `topics` names is the input of all models that no other one carries."""
    input: PlainName | None = None
    """Which of `inputs` this process works on; without it, that of `topics`."""
    policies: Path = Path("policies")
    worker: PlainName = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    log_format: Literal["auto", "console", "json"] = "auto"

    @field_validator("policies", mode="before")
    @classmethod
    def _a_folder(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():
            raise ValueError("it is empty; name the folder of the policies")
        return path

    @model_validator(mode="after")
    def _groups_are_two(self) -> Self:
        if self.guard.group == self.switch.group:
            raise ValueError(f"guard.group and switch.group are both {self.guard.group!r}; give each its own name")
        if self.release_group == self.switch.group:
            raise ValueError(
                f"switch.group is {self.switch.group!r}, which is the group of the guards' releases; give it another "
                "name"
            )
        return self

    @model_validator(mode="after")
    def _comes_back_safely(self) -> Self:
        url = urlsplit(self.notify.console_url)
        if self.api.oidc is None or url.scheme == "https" or is_loopback(url.hostname or ""):
            return self
        raise ValueError(
            f"api.oidc is set, and notify.console_url is {self.notify.console_url!r}, so who signs in would come back "
            "without TLS; write the https:// address of the console"
        )

    @model_validator(mode="after")
    def _inputs_are_apart(self) -> Self:
        topics = Counter(self.topics.model_dump().values())
        for one in self.inputs:
            topics.update(one.topics().values())
        names = Counter(one.name for one in self.inputs)
        models = Counter(model for one in self.inputs for model in one.models)
        for what, counts in (("topics", topics), ("inputs", names)):
            for name, count in counts.items():
                if count > 1:
                    raise ValueError(f"two {what} are named {name!r}; give each its own name")
        for model, count in models.items():
            if count > 1:
                raise ValueError(f"two inputs carry the model {model!r}; a model has one input")
        if self.input is not None and self.input not in names:
            known = ", ".join(names) or "none; write [[inputs]]"
            raise ValueError(f"there is no input {self.input!r}; the inputs are {known}")
        return self

    def carries(self, model: str) -> bool:
        """Whether the input of this process may carry the model."""
        return self._input_by_model.get(model) == self.input

    @cached_property
    def _input_by_model(self) -> dict[str, str]:
        return {model: one.name for one in self.inputs for model in one.models}

    def of_input(self, name: str) -> Self:
        """Return the settings as processes of that input have them: with its topics and a group of its own.

        Raises SettingsError where there is no such input.
        """
        for one in self.inputs:
            if one.name == name:
                return self.model_copy(
                    update={
                        "input": name,
                        "topics": self.topics.model_copy(update=one.topics()),
                        "guard": self.guard.model_copy(update={"group": f"{self.guard.group}-{name}"}),
                    }
                )
        known = ", ".join(one.name for one in self.inputs)
        raise SettingsError(
            f"There is no input {name!r}. The inputs are {known}."
            if known
            else f"There is no input {name!r}, for the configuration has no [[inputs]]."
        )

    def of_model(self, model: str) -> Self:
        """Return the settings of the input that carries the model.

        Raises SettingsError where `input` names another one.
        """
        name = self._input_by_model.get(model)
        if name == self.input:
            return self
        if self.input is None:
            return self.of_input(str(name))
        whose = f"of the input {name}" if name is not None else "of no input"
        raise SettingsError(f"{model} is {whose}, and this is about {self.input}. Leave `input` out.")

    def of_inputs(self) -> tuple[Self, ...]:
        """Return the settings of each input, that of `topics` first."""
        return (self, *(self.of_input(one.name) for one in self.inputs)) if self.input is None else (self,)

    @property
    def release_max_age(self) -> timedelta:
        """How old a prediction may be that is released."""
        if self.release.max_age is None or "release_max_age" in self.guard.model_fields_set:
            return self.guard.release_max_age
        return self.release.max_age

    @property
    def release_group(self) -> str:
        """The consumer group of the guards that answers requests for releases."""
        return f"{self.guard.group}-releases"

    @property
    def runbook_url(self) -> str:
        """Where incidents link to, unless the policy of their model says otherwise."""
        return self.switch.runbook_url or f"{self.notify.console_url.rstrip('/')}/runbooks/"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("HOLDFAST_CONFIG", "holdfast.toml"))
        return init_settings, env_settings, InitSettingsSource(settings_cls, _from_file(path))


def _from_file(path: Path) -> dict[str, Any]:
    """What the configuration file says, or nothing where there is none. Raises SettingsError.

    `policies` is relative to the file, also where the file does not name it.
    """
    try:
        data = parse_toml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(
            f"The configuration file {path} cannot be read: {error.strerror}. Let this process read it, or name "
            "another file with --config or HOLDFAST_CONFIG."
        ) from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise SettingsError(f"{path} is not TOML: {error}. Correct that line.") from None
    policies = data.get("policies", str(Settings.model_fields["policies"].default))
    if isinstance(policies, str) and policies:
        data["policies"] = str(path.parent / policies)
    return data


def load_settings(config: Path | None = None, *, input_name: str | None = None, **overrides: Any) -> Settings:
    """Read the configuration, as processes of that input have it. Raises SettingsError, naming the key and where it is.

    Without `input_name` the input is what the configuration says, or the one of `topics`.
    """
    if config is not None:
        os.environ["HOLDFAST_CONFIG"] = str(config)
    named = os.environ.get("HOLDFAST_CONFIG")
    if named is not None and not _is_there(Path(named)):
        raise SettingsError(f"The configuration file {named} is not there. Check --config or HOLDFAST_CONFIG.")
    _refuse_unknown_variables()
    try:
        settings = Settings(**overrides)
        name = input_name or settings.input
        return settings if name is None else settings.of_input(name)
    except SourceError as error:
        # What could not be parsed may hold a secret; the message names only the section.
        raise SettingsError(f"Configuration refused: {error}. Write JSON, or one variable for each key.") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"there is no such key; the keys here are {_keys_beside(first['loc'])}"
        elif first["type"] == "missing":
            message = "it is missing; set it"
        where = f"{named or 'holdfast.toml'} or the environment"
        named_key = f" {key}:" if key else ""
        raise SettingsError(f"Configuration refused ({where}):{named_key} {message}.") from None


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # Reading it says what is wrong.
    return True


def _keys_beside(location: tuple[int | str, ...]) -> str:
    section: Any = Settings
    # A number is a place in a list of such sections.
    for part in (one for one in location[:-1] if isinstance(one, str)):
        section = section.model_fields[part].annotation
        section = next((one for one in get_args(section) if hasattr(one, "model_fields")), section)
    return ", ".join(sorted(section.model_fields))


def _refuse_unknown_variables() -> None:
    known = {"HOLDFAST_CONFIG"} | {f"HOLDFAST_{name.upper()}" for name in Settings.model_fields}
    for variable in os.environ:
        if variable.startswith("HOLDFAST_TEST_") or variable == "HOLDFAST_REFUSE_SKIPS":
            continue
        if variable.startswith("HOLDFAST_") and variable.split("__")[0] not in known:
            raise SettingsError(
                f"The environment variable {variable} names no setting. The sections are "
                f"{', '.join(sorted(Settings.model_fields))}."
            )
