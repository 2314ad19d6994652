"""Who is let into the API, before anything is served."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from holdfast.adapters.service import ServiceError
from holdfast.api import tokens as access
from holdfast.api.entry import Entry
from holdfast.api.sessions import Codes, Sessions
from holdfast.api.tokens import Principal, Role, Tokens, create_token, digest_of, owner_of, revoke
from holdfast.metrics import REGISTRY
from holdfast.settings import ApiSettings, SettingsError
from holdfast_schemas import Action

HOLDFAST = [sys.executable, "-m", "holdfast.cli"]
NOW = datetime.now(UTC)


def count(name: str, registry: CollectorRegistry = REGISTRY, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "192.0.2.1", "holdfast.example"])  # noqa: S104
def test_without_a_credential_the_api_does_not_start(host: str, tmp_path: Path) -> None:
    """On this machine either: one sentence of why, and one of what to do."""
    (tmp_path / "holdfast.toml").write_text(f'[api]\nhost = "{host}"\n')
    arguments = ["api", "--config", str(tmp_path / "holdfast.toml")]
    done = subprocess.run([*HOLDFAST, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("No credential is configured, so the API would let nobody in, and does not start.")
    for way in ("holdfast api token create", "api.unix_socket", "holdfast up"):
        assert way in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_token_is_for_this_machine() -> None:
    with pytest.raises(ServiceError, match=r"is for this machine, and api\.host is 192\.0\.2\.1\. Make tokens"):
        Entry(ApiSettings.model_validate({"host": "192.0.2.1", "start_token": "the-one-of-my-laptop"}))


def test_a_tokens_line_lets_it_in_and_its_text_is_kept_nowhere() -> None:
    """What the command line prints is a token and the hash of it; a role that does not exist is a usage error."""
    create = [*HOLDFAST, "api", "token", "create", "--json", "--name", "ann", "--role"]
    limits = ["--for", "90d", "--model", "pricing", "--model", "fraud"]
    made = json.loads(subprocess.run([*create, "operator", *limits], capture_output=True, check=True).stdout)
    line = f"ann operator sha256:{hashlib.sha256(made['token'].encode()).hexdigest()} expires="
    assert made["line"].startswith(line)
    found = Tokens(ApiSettings(tokens=[made["line"]])).find(made["token"])
    assert found is not None
    assert (found.name, found.role, found.models) == ("ann", Role.OPERATOR, {"pricing", "fraud"})
    assert found.expires is not None
    assert timedelta(days=89) < found.expires - NOW < timedelta(days=91)
    assert subprocess.run([*create, "king"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    "name", ["holdfast", "Holdfast", "HOLDFAST", "holdfast ", "hold-fast", "h0ldfast", "hoIdfast", "", " ", "a b", "é"]
)
def test_a_token_cannot_have_the_name_of_another_kind_of_actor(name: str) -> None:
    """Neither is one made, nor is one taken that somebody wrote by hand."""
    with pytest.raises(ValueError, match="cannot name a person or a pipeline"):
        create_token(name, Role.ADMIN)
    with pytest.raises(SettingsError, match=r"api\.tokens, line 1, is no token's line"):
        Tokens(ApiSettings(tokens=[f"{name} admin sha256:{digest_of('t')}"]))


@pytest.mark.parametrize(
    "more",
    [
        "expires=tomorrow",
        "expires=2027-01-31",
        "expires=2027-01-31T00:00:00",
        "expires=",
        "models=",
        "models=a,",
        "models=a,b c",
        "models={a}",
        "model=pricing",
        "models=a models=b",
        "until=2027-01-31T00:00:00Z",
        "EXPIRES=2027-01-31T00:00:00Z",
    ],
)
def test_a_limit_that_is_not_understood_refuses_the_line(more: str) -> None:
    """Left out, it would make the token one without limits. The line is not repeated: it may hold the token."""
    token, line = create_token("ann", Role.VIEWER)
    with pytest.raises(SettingsError, match=r"api\.tokens, line 1, is no token's line\.") as refused:
        Tokens(ApiSettings(tokens=[f"{line} {more}"]))
    with pytest.raises(SettingsError):
        Tokens(ApiSettings(tokens=[token]))
    assert line not in str(refused.value)


def test_a_token_ends_at_its_time() -> None:
    """And its sessions with it."""
    soon, late = (create_token(name, Role.VIEWER, expires=NOW + timedelta(days=d)) for name, d in (("a", -1), ("b", 1)))
    entry = Entry(ApiSettings(tokens=[soon[1], late[1]]))
    before = count("holdfast_access_refused_total", reason="expired_token")
    assert entry.require(soon[0], None, None, "192.0.2.1") is None
    assert count("holdfast_access_refused_total", reason="expired_token") == before + 1
    found = entry.require(late[0], None, None, "192.0.2.1")
    assert found is not None
    assert not found.is_over(NOW)
    assert found.is_over(NOW + timedelta(days=2))
    assert entry.sign_in(soon[0], "192.0.2.1") is None
    session = entry.sessions.open(owner_of(digest_of(soon[0])))
    assert entry.who(None, session) is None


def test_a_token_that_was_taken_out_ends_although_the_file_could_not_be_read_at_first(tmp_path: Path) -> None:
    """As when there are too many open files."""
    lines = [f"{name} admin sha256:{digest_of(name)}\n" for name in ("ann", "eve")]
    file = tmp_path / "tokens"
    file.write_text("".join(lines))
    tokens = Tokens(ApiSettings(tokens_file=file))
    assert tokens.find("eve") == Principal("eve", Role.ADMIN)
    file.write_text(lines[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", _too_many_open_files)
        assert tokens.find("ann") == Principal("ann", Role.ADMIN)
    assert tokens.find("eve") is None


def _too_many_open_files(*_: object, **__: object) -> str:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_changes_of_tokens_are_told_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who came, who went, whose rights changed; and that a file was refused."""
    told: list[tuple[str, str | None]] = []
    for level in ("warning", "error", "info"):
        monkeypatch.setattr(access.log, level, lambda event, **facts: told.append((event, facts.get("actor"))))
    file, (_, ann), (_, bob) = tmp_path / "tokens", create_token("ann", Role.VIEWER), create_token("bob", Role.ADMIN)
    names = ("added", "removed", "changed", "refused")
    before = [count("holdfast_token_changes_total", change=name) for name in names]
    file.write_text(f"{ann}\n")
    tokens = Tokens(ApiSettings(tokens_file=file))
    for text in (f"{ann}\n{bob}\n", f"{ann.replace('viewer', 'admin')}\n{bob}\n", "nonsense\n", f"{ann}\n"):
        file.write_text(text)
        tokens.find("x")
    assert [pair for pair in told if pair[1]] == [
        ("token added", "bob"),
        ("token changed", "ann"),
        *sorted([("token changed", "ann"), ("token removed", "bob")], key=lambda pair: digest(pair[1], ann, bob)),
    ]
    after = [count("holdfast_token_changes_total", change=name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 2, 1]


def digest(name: str | None, *lines: str) -> str:
    return next(line.partition("sha256:")[2] for line in lines if line.startswith(f"{name} "))


def test_revoke_takes_out_the_lines_of_a_name_and_nothing_else(tmp_path: Path) -> None:
    """Comments, other people and the mode of the file stay; a file that the API refuses is not touched."""
    (ann, ann_line), (_, bob_line) = create_token("ann", Role.VIEWER), create_token("bob", Role.ADMIN)
    file = tmp_path / "tokens"
    file.write_text(f"# all of us\n{ann_line}\n{bob_line} # our pipeline\nAnn admin sha256:{digest_of('x')}\n")
    file.chmod(0o640)
    tokens = Tokens(ApiSettings(tokens_file=file))
    assert tokens.find(ann) is not None
    assert revoke(file, "eve") == 0
    assert revoke(file, "ann") == 2
    assert file.read_text() == f"# all of us\n{bob_line} # our pipeline\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert tokens.find(ann) is None
    file.write_text("nonsense\n")
    with pytest.raises(SettingsError):
        revoke(file, "bob")
    assert list(tmp_path.iterdir()) == [file]


def test_a_token_for_some_models_sees_and_commands_no_other() -> None:
    limited = Principal("ann", Role.ADMIN, frozenset({"pricing"}))
    assert limited.sees("pricing")
    assert limited.may(Action.HOLD)
    assert not limited.sees("fraud")
    assert Principal("ann", Role.ADMIN).sees("fraud")


# Sessions


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def sessions(key: bytes | None = b"k" * 32, clock: Any = None) -> Sessions:
    return Sessions(key, timedelta(hours=12), clock or Clock())


def owner(known: Sessions, cookie: str) -> str | None:
    found = known.read(cookie)
    return found.owner if found is not None else None


def test_a_session_ends_by_time_and_by_sign_out() -> None:
    """Whatever the browser still sends."""
    clock = Clock()
    known = sessions(clock=clock)
    one, other = known.open("me"), known.open("me")
    assert owner(known, one) == owner(known, other) == "me"
    known.close(one)
    assert owner(known, one) is None
    assert owner(known, other) == "me"
    clock.now += 12 * 3600 - 1
    assert owner(known, other) == "me"
    clock.now += 1
    assert owner(known, other) is None
    known.close(other)
    known.close("nonsense")


def test_a_session_holds_for_every_instance_with_the_key_and_for_no_other() -> None:
    cookie = sessions().open("me")
    assert owner(sessions(), cookie) == "me"
    assert owner(sessions(b"l" * 32), cookie) is None
    assert owner(sessions(None), cookie) is None


@pytest.mark.parametrize("place", range(5))
def test_a_session_that_was_changed_is_none(place: int) -> None:
    """Each part is signed."""
    known = sessions()
    parts = known.open("me").split(".")
    parts[place] = {1: "admin", 2: "1800000001"}.get(place, parts[place][:-1] + "0" + "0")
    assert owner(known, ".".join(parts)) is None


@pytest.mark.parametrize("cookie", ["", ".", "v1.me.0.n.", "é", "v1.me.0.n.é", "x" * 10_000, "a.b.c.d.e.f"])
def test_what_is_no_session_is_refused(cookie: str) -> None:
    assert owner(sessions(), cookie) is None
    sessions().close(cookie)


def test_a_code_works_once_and_for_a_minute() -> None:
    """And a flood of codes keeps only the latest."""
    clock = Clock()
    codes = Codes(clock)
    code = codes.make("me")
    assert codes.use("once_guess") is None
    assert codes.use(code) == "me"
    assert codes.use(code) is None
    late = codes.make("me")
    clock.now += 60
    assert codes.use(late) is None
    many = [codes.make(str(number)) for number in range(101)]
    assert codes.use(many[0]) is None
    assert codes.use(many[1]) == "1"


def test_a_sign_in_is_counted_and_holds_while_its_token_does(tmp_path: Path) -> None:
    """The cookie has neither the token nor its hash."""
    token, line = create_token("ann", Role.VIEWER)
    _, other = create_token("bob", Role.VIEWER)
    file = tmp_path / "tokens"
    file.write_text(f"{line}\n{other}\n")
    entry = Entry(ApiSettings(tokens_file=file))
    before = [count("holdfast_sign_ins_total", outcome=outcome) for outcome in ("accepted", "refused")]
    session = entry.sign_in(token, "192.0.2.1")
    assert session is not None
    assert entry.sign_in("hf_guess", "192.0.2.1") is None
    after = [count("holdfast_sign_ins_total", outcome=outcome) for outcome in ("accepted", "refused")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    assert token not in session
    assert digest_of(token) not in session
    assert entry.who(None, session) == Principal("ann", Role.VIEWER)
    assert entry.who(session, None) is None, "a session is no bearer token"
    assert entry.who(None, token) is None, "a token is no session"
    code = entry.code(token)
    assert code is not None
    by_code = entry.sign_in(code, "192.0.2.1")
    assert entry.who(None, by_code) == Principal("ann", Role.VIEWER)
    assert entry.sign_in(code, "192.0.2.1") is None
    assert entry.code("hf_guess") is None
    revoke(file, "ann")
    assert entry.who(None, session) is None
    assert entry.who(None, by_code) is None


@pytest.mark.parametrize(("content", "says"), [(b"short", "has 5 bytes, and 32 are needed"), (None, "cannot be read")])
def test_a_key_of_sessions_that_cannot_be_used_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    _, line = create_token("ann", Role.VIEWER)
    with pytest.raises(SettingsError, match=says):
        Entry(ApiSettings(tokens=[line], session_key_file=file))
