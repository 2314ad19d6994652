"""Configuration: one TOML file, `holdfast.toml`, and environment variables over it."""

import os
import socket
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from holdfast.core.duration import Duration
from holdfast_schemas import TOPICS


class SettingsError(Exception):
    """The configuration is refused; the message is one sentence of what is wrong and one of what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class KafkaSettings(_Section):
    bootstrap_servers: str = "localhost:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    allow_password_without_tls: bool = False

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Self:
        wants_sasl = self.sasl_mechanism or self.sasl_username or self.sasl_password
        if wants_sasl and not self.security_protocol.startswith("SASL_"):
            raise ValueError(
                f"a SASL login is configured, but security_protocol is {self.security_protocol}, which would send "
                "none; set security_protocol = 'SASL_SSL'"
            )
        if self.security_protocol == "SASL_PLAINTEXT" and not self.allow_password_without_tls:
            raise ValueError(
                "SASL_PLAINTEXT sends the login without TLS; use SASL_SSL, or set "
                "allow_password_without_tls = true where the network is trusted"
            )
        if self.security_protocol.startswith("SASL_") and not (
            self.sasl_mechanism and self.sasl_username and self.sasl_password
        ):
            raise ValueError(
                f"{self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password; set all three"
            )
        return self

    def client_options(self) -> dict[str, Any]:
        """What every aiokafka client is opened with."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.endswith("SSL"):
            from aiokafka.helpers import create_ssl_context

            options["ssl_context"] = create_ssl_context(
                cafile=self.ssl_ca_file, certfile=self.ssl_cert_file, keyfile=self.ssl_key_file
            )
        if self.sasl_password is not None:
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.sasl_username
            options["sasl_plain_password"] = self.sasl_password.get_secret_value()
        return options


class RedisSettings(_Section):
    url: SecretStr = SecretStr("redis://localhost:6379/0")
    reassert_every: Duration = timedelta(seconds=1)


class TopicNames(_Section):
    predictions: str = TOPICS["predictions"].default_name
    approved: str = TOPICS["approved"].default_name
    blocked: str = TOPICS["blocked"].default_name
    malformed: str = TOPICS["malformed"].default_name
    control: str = TOPICS["control"].default_name
    state: str = TOPICS["state"].default_name
    routes: str = TOPICS["routes"].default_name
    incidents: str = TOPICS["incidents"].default_name
    audit: str = TOPICS["audit"].default_name

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.model_dump().values())
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two topics are named {name!r}; give each its own name")
        return self


class TopicSettings(_Section):
    """What `holdfast topics create` makes."""

    partitions: Annotated[int, Field(ge=1)] = 12
    control_partitions: Annotated[int, Field(ge=1)] = 6
    replication_factor: Annotated[int, Field(ge=1)] = 1


class GuardSettings(_Section):
    group: str = "holdfast-guard"
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    no_policy: Literal["block", "approve"] = "block"
    max_batch_records: Annotated[int, Field(ge=1, le=100_000)] = 5000
    max_record_bytes: Annotated[int, Field(ge=1024)] = 1_000_000
    """A larger value goes to malformed."""
    restore_records: Annotated[int, Field(ge=0)] = 2_000_000
    """How much of the tail of each approved partition is read back into the memory."""
    max_entities: Annotated[int, Field(ge=1)] = 2_000_000
    """Remembered for each partition and field; beyond it the oldest are forgotten."""
    give_up_after: Duration = timedelta(minutes=5)
    """How long a partition keeps failing before the worker stops."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    health_host: str = "127.0.0.1"


class SwitchSettings(_Section):
    group: str = "holdfast-switch"
    tick_every: Duration = timedelta(milliseconds=500)
    give_up_after: Duration = timedelta(minutes=5)
    runbook_url: str = "https://holdfast.invalid/runbooks"
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8001
    health_host: str = "127.0.0.1"


class NotifySettings(_Section):
    alertmanager_urls: list[str] = ["http://localhost:9093"]
    """Every member of the Alertmanager cluster; each gets every alert."""
    resend_every: Duration = timedelta(seconds=30)
    """Open incidents are sent again, so that an Alertmanager that restarted knows them."""
    console_url: str = "http://localhost:8080"
    """Where people reach the console; alerts link to it."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8002
    health_host: str = "127.0.0.1"


class ApiSettings(_Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    tokens_file: Path | None = None
    """Hashed bearer tokens; without it the API serves on loopback only."""
    commands_per_minute: Annotated[int, Field(ge=1)] = 30
    """For each token."""


class ReleaseSettings(_Section):
    max_age: Duration = timedelta(hours=1)
    """An older prediction is never released: an hour-old price is no price."""


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
    policies: Path = Path("policies")
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    log_format: Literal["auto", "console", "json"] = "auto"

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the configuration. Raises SettingsError, naming the file or variable and the key."""
    if config is not None:
        os.environ["HOLDFAST_CONFIG"] = str(config)
    named = os.environ.get("HOLDFAST_CONFIG")
    if named is not None and not Path(named).is_file():
        raise SettingsError(f"The configuration file {named} is not there. Check --config or HOLDFAST_CONFIG.")
    _refuse_unknown_variables()
    try:
        return Settings(**overrides)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{named or 'holdfast.toml'} is not TOML: {error}. Mend the line named.") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"there is no such key; the keys here are {_keys_beside(first['loc'])}"
        where = f"{named or 'holdfast.toml'} or the environment"
        raise SettingsError(f"Configuration refused ({where}): {key}: {message}.") from None


def _keys_beside(location: tuple[int | str, ...]) -> str:
    section: Any = Settings
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
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
