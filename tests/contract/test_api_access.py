"""Who is let into the API, before anything is served."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.adapters.access import Principal, Role, Tokens
from holdfast.settings import ApiSettings, SettingsError

HOLDFAST = [sys.executable, "-m", "holdfast.cli"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "holdfast.example"])  # noqa: S104  it is refused
def test_without_tokens_another_host_is_refused(host: str, tmp_path: Path) -> None:
    """One sentence of why, and one of what to do."""
    (tmp_path / "holdfast.toml").write_text(f'[api]\nhost = "{host}"\n')
    arguments = ["api", "--config", str(tmp_path / "holdfast.toml")]
    done = subprocess.run([*HOLDFAST, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Without tokens the API would let anybody who reaches {host} command it")
    assert "holdfast api token create" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tokens_line_lets_it_in_and_its_text_is_kept_nowhere() -> None:
    """What the command line prints is a token and the hash of it; a role that does not exist is a usage error."""
    create = [*HOLDFAST, "api", "token", "create", "--json", "--name", "ann", "--role"]
    made = json.loads(subprocess.run([*create, "operator"], capture_output=True, check=True).stdout)
    assert made["line"] == f"ann operator sha256:{hashlib.sha256(made['token'].encode()).hexdigest()}"
    tokens = Tokens(ApiSettings(tokens=[made["line"]]))
    assert tokens.find(made["token"]) == Principal("ann", Role.OPERATOR)
    assert tokens.find(made["token"] + " ") is None
    assert subprocess.run([*create, "king"], capture_output=True, check=False).returncode == 2
    with pytest.raises(SettingsError, match=r"api\.tokens, line 1, is no token's line\.") as refused:
        Tokens(ApiSettings(tokens=[made["token"]]))
    assert made["token"] not in str(refused.value)


def test_a_token_that_was_taken_out_ends_although_the_file_could_not_be_read_at_first(tmp_path: Path) -> None:
    """As when there are too many open files."""
    lines = [f"{name} admin sha256:{hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("ann", "eve")]
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
