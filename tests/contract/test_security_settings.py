"""Logins and TLS in the configuration: what is refused, where secrets come from, and that they stay secret."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from holdfast.client import SyncRouteReader
from holdfast.settings import Settings, SettingsError, load_settings

SECRET = "correct-horse-battery"


def configured(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "holdfast.toml"
    path.write_text(text)
    return load_settings(path)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CONFIG", "")  # load_settings sets it, and it must not outlive the test
    monkeypatch.delenv("HOLDFAST_CONFIG")


SCRAM = f"sasl_mechanism = 'SCRAM-SHA-512'\nsasl_username = 'guard'\nsasl_password = '{SECRET}'"
OAUTH = f"""security_protocol = 'SASL_SSL'
sasl_mechanism = 'OAUTHBEARER'
oauth_client_id = 'guard'
oauth_client_secret = '{SECRET}'"""

REFUSED = {
    "a login without SASL": (f"[kafka]\n{SCRAM}", "security_protocol is PLAINTEXT"),
    "a login over TLS only": (f"[kafka]\nsecurity_protocol = 'SSL'\n{SCRAM}", "security_protocol is SSL"),
    "SCRAM without TLS": (f"[kafka]\nsecurity_protocol = 'SASL_PLAINTEXT'\n{SCRAM}", "without TLS"),
    "a CA file without TLS": ("[kafka]\nssl_ca_file = 'ca.pem'", "without TLS"),
    "a key without certificate": (
        "[kafka]\nsecurity_protocol = 'SSL'\nssl_key_file = 'key.pem'",
        "set ssl_cert_file too",
    ),
    "no mechanism": ("[kafka]\nsecurity_protocol = 'SASL_SSL'", "needs a sasl_mechanism"),
    "no password": (
        "[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nsasl_username = 'guard'",
        "PLAIN needs sasl_username, and sasl_password",
    ),
    "a password and its file": (
        f"[kafka]\nsecurity_protocol = 'SASL_SSL'\n{SCRAM}\nsasl_password_file = 'p'",
        "sasl_password and sasl_password_file are both set",
    ),
    "no token endpoint": (f"[kafka]\n{OAUTH}", "OAUTHBEARER needs oauth_token_url"),
    "a token endpoint in clear": (f"[kafka]\n{OAUTH}\noauth_token_url = 'http://idp.example/token'", "without TLS"),
    "a login in the token endpoint": (
        f"[kafka]\n{OAUTH}\noauth_token_url = 'https://guard:{SECRET}@idp.example/token'",
        "oauth_token_url holds a login",
    ),
    "an unknown mechanism": (f"[kafka]\nsasl_mechanism = '{SECRET}'", "Input should be 'PLAIN'"),
    "a Redis password in clear": (f"[redis]\nurl = 'redis://u:{SECRET}@redis.example'", "without verified TLS"),
    "a Redis password in clear, beside the URL": (
        f"[redis]\nurl = 'redis://redis.example'\npassword = '{SECRET}'",
        "without verified TLS",
    ),
    "Redis with TLS that verifies nothing": (
        f"[redis]\nurl = 'rediss://u:{SECRET}@redis.example?ssl_cert_reqs=none'",
        "without verified TLS",
    ),
    "Redis with TLS to anybody": (
        f"[redis]\nurl = 'rediss://u:{SECRET}@redis.example?ssl_check_hostname=false'",
        "without verified TLS",
    ),
    "Redis with a CA file without TLS": ("[redis]\nssl_ca_file = 'ca.pem'", "write rediss://"),
    "a Redis URL that is none": (f"[redis]\nurl = 'redis://:{SECRET}@h:port'", "the Redis URL cannot be used"),
    "a Redis user without password": ("[redis]\nusername = 'switch'", "username needs password"),
}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_give_a_secret_away_is_refused(text: str, says: str, tmp_path: Path) -> None:
    """Each with a sentence that names the section and never the secret."""
    with pytest.raises(SettingsError) as refused:
        configured(tmp_path, text)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


ALLOWED = {
    "SCRAM with TLS": f"[kafka]\nsecurity_protocol = 'SASL_SSL'\n{SCRAM}",
    "SCRAM without TLS, by name": (
        f"[kafka]\nsecurity_protocol = 'SASL_PLAINTEXT'\nallow_password_without_tls = true\n{SCRAM}"
    ),
    "OAUTHBEARER": f"[kafka]\n{OAUTH}\noauth_token_url = 'https://idp.example/token'",
    "a token endpoint on this machine": f"[kafka]\n{OAUTH}\noauth_token_url = 'http://127.0.0.1:9/token'",
    "a Redis password on this machine": f"[redis]\nurl = 'redis://u:{SECRET}@localhost'",
    "a Redis password on this machine, by IPv6": f"[redis]\nurl = 'redis://u:{SECRET}@[::1]:6379'",
    "a Redis password with TLS": f"[redis]\nurl = 'rediss://u:{SECRET}@redis.example'",
    "a Redis password by socket": f"[redis]\nurl = 'unix://u:{SECRET}@/run/redis.sock'",
    "a Redis password in clear, by name": (
        f"[redis]\nurl = 'redis://u:{SECRET}@redis.example'\nallow_password_without_tls = true"
    ),
}


@pytest.mark.parametrize("text", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_keeps_a_secret_is_taken(text: str, tmp_path: Path) -> None:
    """And shows it neither in its repr nor in what `check` prints."""
    settings = configured(tmp_path, text)
    settings.kafka.client_options()
    settings.redis.connection_url()
    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()


def test_secrets_come_from_files_as_they_are_at_the_time(tmp_path: Path) -> None:
    """A mounted secret that is rotated is taken up by the next connection; the line's end is not part of it."""
    kafka, redis = tmp_path / "kafka", tmp_path / "redis"
    kafka.write_text("first\n")
    redis.write_text("p@ss/w:rd?\n")
    settings = configured(
        tmp_path,
        f"[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nsasl_username = 'guard'\n"
        f"sasl_password_file = '{kafka}'\n"
        f"[redis]\nurl = 'rediss://old:old@redis.example:6380/2?socket_timeout=1'\nusername = 'switch'\n"
        f"password_file = '{redis}'",
    )
    assert settings.kafka.client_options()["sasl_plain_password"] == "first"
    kafka.write_text("second\n")
    assert settings.kafka.client_options()["sasl_plain_password"] == "second"
    url = "rediss://switch:p%40ss%2Fw%3Ard%3F@redis.example:6380/2?socket_timeout=1"
    assert settings.redis.connection_url() == url


def test_a_url_in_a_file_is_held_to_the_same_rules(tmp_path: Path) -> None:
    """It is known only when it is used, and refused then."""
    (tmp_path / "url").write_text(f"redis://:{SECRET}@redis.example")
    settings = configured(tmp_path, f"[redis]\nurl_file = '{tmp_path / 'url'}'")
    with pytest.raises(SettingsError, match="without verified TLS") as refused:
        settings.redis.connection_url()
    assert SECRET not in str(refused.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """What is wrong with them, in one sentence; an encrypted key without a password asks nobody on the terminal."""
    empty, ca, cert = tmp_path / "empty", tmp_path / "ca.pem", tmp_path / "cert.pem"
    empty.write_text("\n")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("guard").cert_chain_pems[0].write_to_path(str(cert))
    cases = {
        f"ssl_ca_file = '{tmp_path / 'none'}'": "none cannot be used: No such file or directory",
        f"ssl_ca_file = '{empty}'": "empty cannot be used",
        f"ssl_ca_file = '{ca}'\nssl_cert_file = '{cert}'": "and its key in it cannot be used",
        f"ssl_ca_file = '{ca}'\nssl_key_password_file = '{tmp_path / 'none'}'": "ssl_key_password_file",
        f"ssl_ca_file = '{ca}'\nssl_key_password_file = '{empty}'": "is empty; write the secret into it",
    }
    for text, says in cases.items():
        settings = configured(tmp_path, f"[kafka]\nsecurity_protocol = 'SSL'\n{text}\n")
        with pytest.raises(SettingsError) as refused:
            settings.kafka.client_options()
        assert says in str(refused.value), text
        settings = configured(tmp_path, f"[redis]\nurl = 'rediss://redis.example'\n{text}\n")
        with pytest.raises(SettingsError) as refused:
            settings.redis.connection_url()
        assert says in str(refused.value), text


def test_serving_code_is_held_to_the_same_rules() -> None:
    """A reader of routes does not send its password where others can read it, unless it is allowed by name."""
    url = f"redis://serving:{SECRET}@redis.example"
    with pytest.raises(ValueError, match="without verified TLS") as refused:
        SyncRouteReader(url, "pricing")
    assert SECRET not in str(refused.value)
    SyncRouteReader(url, "pricing", allow_password_without_tls=True)
    SyncRouteReader(f"rediss://serving:{SECRET}@redis.example?ssl_ca_certs=ca.pem", "pricing")


def test_check_prints_no_secret(tmp_path: Path) -> None:
    """Neither as text nor as JSON, from the file and from the environment."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "password").write_text(f"{SECRET}-file")
    config = tmp_path / "holdfast.toml"
    config.write_text(
        f"policies = '{tmp_path / 'policies'}'\n"
        f"[kafka]\n{OAUTH}\noauth_token_url = 'https://idp.example/token'\nssl_key_password = '{SECRET}-key'\n"
        f"[redis]\nurl = 'rediss://u:{SECRET}-url@redis.example'\npassword_file = '{tmp_path / 'password'}'\n"
    )
    environment = {**os.environ, "HOLDFAST_REDIS__SSL_KEY_PASSWORD": f"{SECRET}-environment"}
    for arguments in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.cli", "check", "--config", str(config), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["settings"]["kafka"]["oauth_client_id"] == "guard"
        assert SECRET not in done.stdout + done.stderr


def test_an_environment_variable_that_is_no_json_is_refused_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole section may be given as JSON."""
    monkeypatch.setenv("HOLDFAST_KAFKA", '{"sasl_password": "' + SECRET)
    with pytest.raises(SettingsError, match="kafka") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_a_refusal_is_one_line_whatever_the_keys_hold(tmp_path: Path) -> None:
    """A line break in a key of the file does not become one on the terminal."""
    with pytest.raises(SettingsError, match=r"kafka\.two lines: there is no such key") as refused:
        configured(tmp_path, '[kafka]\n"two\\nlines" = 1\n')
    assert len(str(refused.value).splitlines()) == 1
