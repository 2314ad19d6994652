"""What `[api.oidc]` may say, and that it is a credential."""

import re
from pathlib import Path
from typing import Any

import pytest

from backends import ROOT
from holdfast.api.entry import Entry
from holdfast.api.openid import Provider
from holdfast.settings import OidcSettings, Settings, SettingsError, load_settings

SECRET = "correct-horse-battery"
WHOLE = {
    "issuer": "https://idp.example/realms/corp",
    "client_id": "holdfast",
    "client_secret": SECRET,
    "roles_claim": "groups",
    "roles": {"ops": "operator"},
}


def written(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}


def toml(section: dict[str, Any], console_url: str = "https://holdfast.example") -> str:
    tables = {key: value for key, value in section.items() if isinstance(value, dict)}
    lines = [f"[notify]\nconsole_url = '{console_url}'", "[api.oidc]"]
    lines += [f"{key} = {value!r}" for key, value in section.items() if key not in tables]
    for key, table in tables.items():
        lines += [f"[api.oidc.{key}]", *(f"{one!r} = {value!r}" for one, value in table.items())]
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CONFIG", "")
    monkeypatch.delenv("HOLDFAST_CONFIG")


def loaded(folder: Path, text: str) -> Settings:
    path = folder / "holdfast.toml"
    path.write_text(text)
    return load_settings(path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an issuer in clear": ({"issuer": "http://idp.example"}, "issuer is without TLS; write https://"),
    "no issuer": ({"issuer": None}, "api.oidc.issuer: it is missing; set it"),
    "an issuer that is not an address": ({"issuer": "idp.example"}, "issuer is not an address"),
    "an issuer with a query": ({"issuer": "https://idp.example/?a=b"}, "issuer is not an address"),
    "an issuer with a login": ({"issuer": f"https://ann:{SECRET}@idp.example"}, "issuer holds a login"),
    "no client": ({"client_id": ""}, "api.oidc.client_id"),
    "a secret and its file": ({"client_secret_file": "s"}, "client_secret and client_secret_file are both set"),
    "no claim of roles": ({"roles_claim": None}, "api.oidc.roles_claim: it is missing; set it"),
    "no mapping": ({"roles": None}, "api.oidc.roles: it is missing; set it"),
    "an empty mapping": ({"roles": {}}, "api.oidc.roles"),
    "a role that does not exist": ({"roles": {"ops": "king"}}, "api.oidc.roles.ops"),
    "scopes without openid": ({"scopes": "profile"}, "scopes has no openid"),
    "a claim of models without a mapping": ({"models_claim": "teams"}, "no value of it is mapped"),
    "a model that cannot be one": ({"models": {"ops": ["a b"]}}, "api.oidc.models.ops"),
    "more models than a cookie holds": (
        {"models": {"ops": [f"model-{number}" for number in range(300)]}},
        "which no cookie holds",
    ),
    "a key that does not exist": ({"isuer": "x"}, "there is no such key; the keys here are client_id, client_secret"),
}


@pytest.mark.parametrize(("changes", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_let_in_the_wrong_people_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    """In one sentence that names the key, and without the secret."""
    with pytest.raises(SettingsError) as refused:
        loaded(tmp_path, toml(written(**changes)))
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


def test_what_the_document_shows_is_taken(tmp_path: Path) -> None:
    """People copy it; and what stands in comments of holdfast.toml."""
    document = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (shown,) = [one for one in re.findall(r"```toml\n(.*?)```", document, re.DOTALL) if "[api.oidc]" in one]
    oidc = loaded(tmp_path, shown).api.oidc
    assert oidc is not None
    assert set(oidc.roles.values()) == {"viewer", "operator", "admin"}
    assert oidc.models is not None
    example = (ROOT / "holdfast.toml").read_text(encoding="utf-8").partition("# [api.oidc]")
    lines = [line.removeprefix("# ") for line in example[2].strip().splitlines() if line.startswith("# ")]
    assert loaded(tmp_path, "\n".join(["[api.oidc]", *lines])).api.oidc is not None


@pytest.mark.parametrize(
    ("console_url", "taken"),
    [
        ("https://holdfast.example", True),
        ("http://localhost:8080", True),
        ("http://127.0.0.1:8080/", True),
        ("http://holdfast.example", False),
        ("", False),
    ],
)
def test_who_signs_in_comes_back_with_tls_or_stays_on_this_machine(
    console_url: str, taken: bool, tmp_path: Path
) -> None:
    if taken:
        assert loaded(tmp_path, toml(WHOLE, console_url)).api.oidc is not None
        return
    with pytest.raises(SettingsError, match="would come back without TLS"):
        loaded(tmp_path, toml(WHOLE, console_url))


def test_a_provider_is_a_credential_and_its_secret_stays_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token is needed beside it; a start token counts no more. The secret may come from the environment."""
    monkeypatch.setenv("HOLDFAST_API__OIDC__CLIENT_SECRET", SECRET)
    settings = loaded(tmp_path, toml(written(client_secret=None, issuer="http://127.0.0.1:9/")))
    assert settings.api.oidc is not None
    assert SECRET not in repr(settings) + settings.model_dump_json()
    start = settings.api.model_copy(update={"start_token": OidcSettings.model_validate(WHOLE).client_secret})
    entry = Entry(start, "https://holdfast.example")
    assert (entry.configured, entry.takes_tokens) == (True, False)
    assert entry.who(SECRET, None) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"client_secret": None, "client_secret_file": "missing"}, "client_secret_file missing cannot be read"),
        ({"ssl_ca_file": "missing"}, "the CA file missing cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_the_start(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=rf"^api\.oidc cannot be used: {says}"):
        Provider(OidcSettings.model_validate(written(**changes)), "https://holdfast.example", b"k" * 32)
