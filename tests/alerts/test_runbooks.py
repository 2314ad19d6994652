"""Every command of every runbook runs, on an installation in the state that the runbook speaks of."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from alerts.installation import HELD, Installation, model_of, runbooks
from alerts.queries import exported

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="package")]

done: set[tuple[str, str]] = set()
"""By what was run, and for which model: several runbooks begin with the same look around, which is taken once."""


def commands(text: str) -> list[tuple[str, bool]]:
    """Each line of each block marked `bash`, and whether it may be refused."""
    blocks = re.findall(r"^```bash( may-refuse)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(line, bool(may_refuse)) for may_refuse, block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("name", runbooks())
async def test_the_commands_of_a_runbook_run(name: str, installation: Installation) -> None:
    """In their order, each to exit code 0; one marked `may-refuse` may answer 1, with a sentence."""
    model = model_of(name)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOLDFAST_CONFIG": str(installation.stack.folder / "base.toml"),
        "MODEL": model,
        "VERSION": "v1" if name in HELD else "v2",
        "GOOD_VERSION": "v0",
        "INCIDENT": installation.incidents[model],
        "GUARD": f"http://127.0.0.1:{installation.workers['guard'].port}",
        "SWITCH": f"http://127.0.0.1:{installation.workers['switch'].port}",
        "PREDICTIONS": installation.stack.topic("predictions"),
        "REDIS_URL": installation.redis_url,
        "PROMETHEUS": installation.prometheus.url,
        "ALERTMANAGER": installation.alertmanager.url,
        "USER": "tester",
    }
    for line, may_refuse in commands(runbooks()[name].read_text()):
        this = (line, model if re.search(r"\$(MODEL|VERSION|GOOD_VERSION|INCIDENT)\b", line) else "")
        if this in done:
            continue
        done.add(this)
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            line,
            cwd=installation.stack.folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        assert process.returncode in ((0, 1) if may_refuse else (0,)), f"{line}\n{output}"
        assert output.strip() or line.startswith("sleep "), f"{line} printed nothing"
        assert "Traceback" not in output
        assert "Unexpected failure" not in output


@pytest.mark.parametrize("name", runbooks())
async def test_a_runbook_names_only_metrics_that_exist(name: str) -> None:
    """An empty answer of Prometheus must mean that nothing is wrong, not that a name is."""
    for line, _ in commands(runbooks()[name].read_text()):
        assert set(re.findall(r"\bholdfast_[a-z_]+", line)) <= set(exported()), line


async def test_what_the_commands_did_is_done(installation: Installation) -> None:
    """A runbook that only looked well would leave its model as it was."""
    stack = installation.stack

    def last(runbook: str) -> tuple[str | None, str]:
        route = stack.route(model_of(runbook))
        return route.get("version"), route["state"]

    assert last("HoldfastVersionSwitched") == ("v2", "auto")
    assert last("HoldfastRouteHeld") == ("v1", "auto")
    assert last("HoldfastRouteStaysHeld") == ("v0", "auto")
    assert last("HoldfastPinForgotten") == ("v1", "pinned")
    assert last("HoldfastPromiseBroken") == (None, "held")
    assert stack.incidents(model_of("HoldfastIncidentUnacknowledged"))[-1]["status"] == "acknowledged"
    assert stack.incidents(model_of("HoldfastVersionFenced"))[-1]["status"] == "resolved"
