"""Where the configuration and the policies are, and what is said where they cannot be read."""

import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from holdfast.adapters.policies import PolicyStore, load_policies
from holdfast.cli import doctor
from holdfast.cli.main import app
from holdfast.core.policy import PolicyError
from holdfast.settings import SettingsError, load_settings

BOM = "\ufeff"
POLICY = 'model = "pricing"\n[[checks]]\nkind = "range"\nname = "bounds"\nfield = "value"\nmin = 1\nmax = 10\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is not where the configuration is."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setenv("HOLDFAST_CONFIG", "unset")
    monkeypatch.delenv("HOLDFAST_CONFIG")
    return working


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A folder with a configuration, and policies beside it."""
    folder = tmp_path / "etc"
    (folder / "policies").mkdir(parents=True)
    (folder / "policies" / "pricing.toml").write_text(POLICY)
    (folder / "holdfast.toml").write_text("")
    return folder


@pytest.mark.parametrize(
    "said", ["", 'policies = "policies"', 'policies = "./policies"', 'policies = "{etc}/policies"']
)
def test_policies_are_relative_to_the_configuration_file(etc: Path, said: str) -> None:
    """Also where the file does not name them; an absolute path stays."""
    (etc / "holdfast.toml").write_text(said.format(etc=etc))
    settings = load_settings(etc / "holdfast.toml")
    assert settings.policies.resolve() == (etc / "policies").resolve()
    assert load_policies(settings.policies).policies


def test_policies_of_the_environment_are_relative_to_the_working_directory(
    etc: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every path that a shell is given."""
    monkeypatch.setenv("HOLDFAST_POLICIES", "mine")
    assert load_settings(etc / "holdfast.toml").policies == Path("mine")


def test_without_a_configuration_file_the_policies_are_in_the_working_directory() -> None:
    """The defaults hold."""
    assert load_settings().policies == Path("policies")


def test_a_mark_before_configuration_and_policy_is_accepted(etc: Path) -> None:
    """As editors on Windows write them."""
    (etc / "holdfast.toml").write_text(f'{BOM}policies = "policies"\n', encoding="utf-8")
    (etc / "policies" / "pricing.toml").write_text(BOM + POLICY, encoding="utf-8")
    assert list(load_policies(load_settings(etc / "holdfast.toml").policies).policies) == ["pricing"]


def loop(path: Path) -> None:
    """Something that cannot be read, also by root."""
    if path.is_dir():
        path.rename(path.with_suffix(".away"))
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(path)


def test_an_unreadable_configuration_is_a_sentence(etc: Path, elsewhere: Path) -> None:
    """Named or found in the working directory, and also a folder of that name."""
    loop(etc / "holdfast.toml")
    with pytest.raises(SettingsError, match=r"holdfast.toml cannot be read: .*\. Let this process read it"):
        load_settings(etc / "holdfast.toml")
    os.environ.pop("HOLDFAST_CONFIG")
    loop(elsewhere / "holdfast.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()
    (elsewhere / "holdfast.toml").unlink()
    (elsewhere / "holdfast.toml").mkdir()
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings()


def test_unreadable_policies_are_a_sentence(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that this process may not list is not an empty one; a file that it may not read is named."""
    loop(etc / "policies" / "pricing.toml")
    with pytest.raises(PolicyError, match=r"pricing.toml is a link that leads to itself; put a file there"):
        load_policies(etc / "policies")

    def forbidden(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(PolicyError, match=r"policies: cannot be read: Permission denied; let this process read it"):
        load_policies(etc / "policies")


def test_check_says_so_with_exit_code_1(etc: Path) -> None:
    """No `{}` for policies that nobody could read, and no unexpected failure."""
    runner = CliRunner()
    done = runner.invoke(app, ["check", "--config", str(etc / "holdfast.toml")])
    assert done.exit_code == 0
    assert next(iter(json.loads(done.stdout)["policies"])).startswith("pricing@")
    loop(etc / "policies")
    done = runner.invoke(app, ["check", "--config", str(etc / "holdfast.toml")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cannot be read" in done.stderr
    assert "Unexpected" not in done.stderr


def test_unquoted_paths_are_told_with_the_quotes(etc: Path) -> None:
    """In the configuration and in a policy."""
    (etc / "holdfast.toml").write_text("policies = policies/x\n")
    with pytest.raises(SettingsError, match=r'is not TOML: .*line 1.*write policies = "…"'):
        load_settings(etc / "holdfast.toml")
    (etc / "policies" / "pricing.toml").write_text(f"{POLICY}[fields]\nvalue = price.amount\n")
    with pytest.raises(PolicyError, match=r'pricing.toml: not TOML: .*write key = "…"'):
        load_policies(etc / "policies")


def test_two_policies_for_a_model_are_refused_with_the_names_of_both_files(etc: Path) -> None:
    """A copy that was meant to be another model."""
    (etc / "policies" / "pricing-copy.toml").write_text(POLICY)
    with pytest.raises(
        PolicyError, match=r"pricing.toml and .*pricing-copy.toml are both for the model 'pricing'; keep"
    ):
        load_policies(etc / "policies")


@pytest.mark.parametrize(
    ("file", "model", "warned"),
    [
        ("pricing.toml", "pricing", False),
        ("pricnig.toml", "pricing", True),
        ("pricing.toml", "Pricing", True),
        ("eu-pricing.toml", "eu/pricing", False),
        ("eu-pricing.toml", "eu:pricing", False),
        ("model.v1.toml", "model.v1", False),
    ],
)
def test_a_model_unlike_its_files_name_is_said(etc: Path, file: str, model: str, warned: bool) -> None:
    """By `check`, by doctor, and in the log of what follows policies; it is no mistake."""
    (etc / "policies" / "pricing.toml").unlink()
    (etc / "policies" / file).write_text(POLICY.replace('"pricing"', json.dumps(model)))
    done = CliRunner().invoke(app, ["check", "--config", str(etc / "holdfast.toml")])
    said = f"{file} is for the model {model}: check that this is meant"
    assert done.exit_code == 0
    assert any(said in warning for warning in json.loads(done.stdout)["warnings"]) is warned
    found = doctor._policies(load_settings(etc / "holdfast.toml"))
    assert (found.health is doctor.Health.WARNING, said in found.finding) == (warned, warned)
    with capture_logs() as lines:
        PolicyStore(etc / "policies")
    assert any(said in line["event"] for line in lines) is warned
