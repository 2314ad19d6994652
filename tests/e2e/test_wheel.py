"""The wheel, installed into a clean environment as a user would."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from backends import ROOT
from e2e.test_demo import check_facts

pytestmark = pytest.mark.timeout(400)


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_demo_runs_from_the_wheel(tmp_path: Path) -> None:
    """Its name is that of the distribution; the command is `holdfast`, and the extra brings the embedded servers."""
    built = run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("holdfast_guard-*.whl")
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    assert b"Name: holdfast-guard\n" in zipfile.ZipFile(wheel).read(metadata)
    environment = tmp_path / "environment"
    uv = (sys.executable, "-m", "uv")
    for command in (
        (*uv, "venv", "--quiet", "--python", sys.executable, environment),
        (*uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python"),
    ):
        ours = f"holdfast-guard[embedded] @ {wheel.as_uri()}"
        more = ("--constraint", ROOT / "requirements.lock", ours) if "install" in command else ()
        done = run(*command, *more)
        assert done.returncode == 0, done.stderr
    # Not in the checkout: nothing of it may be needed.
    demo = run(environment / "bin" / "holdfast", "demo", "--rate", "200", "--json", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    check_facts(json.loads(demo.stdout))
