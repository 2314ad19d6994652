"""Who is let into the API, before anything is served."""

import hashlib
import json
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
