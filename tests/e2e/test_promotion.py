"""`holdfast route promote --wait`, as the pipeline that releases a model sees it."""

import asyncio
import contextlib
import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio
import yaml
from mlflow import MlflowClient

from backends import GENEROUS, ROOT, ServerProcess, free_port
from e2e.commands import holdfast, start
from e2e.stack import POLICY, Stack

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="module")]

MODELS = ("good", "json", "bad", "left", "slow", "registered")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    """A guard and a switch for all tests of this file; each test has a model of its own, on which v1 serves."""
    folder = tmp_path_factory.mktemp("promotion")
    async with Stack(kafka, redis_server.url, dict.fromkeys(MODELS, POLICY), folder=folder) as stack:
        await stack.start("guard", "switch")
        for model in MODELS:
            await stack.command(model, "promote", "v1")
        yield stack
    for process in Pipeline.started:
        process.kill()  # One that a failed test left waiting.


UNSEEN = "Warning: No output of v2 was seen so far: check that its name is right.\n"


class Pipeline:
    """The command while it waits, and the lines that it has written."""

    started = []

    def __init__(self, stack, *arguments):
        self.process = start(stack.folder / "base.toml", "route", "promote", *arguments, "-r", "release 7")
        Pipeline.started.append(self.process)

    async def line(self):
        return (await asyncio.to_thread(self.process.stdout.readline)).rstrip("\n")

    async def end(self):
        out, errors = await asyncio.to_thread(self.process.communicate, timeout=GENEROUS)
        assert "Traceback" not in errors
        return self.process.returncode, out.splitlines(), errors


async def serve(stack, model, version, value=100.0, count=40):
    await stack.send([stack.prediction(model, version, f"SKU-{n % 10}", value) for n in range(count)])


async def until_good(stack, model, version):
    """Predictions until the version has earned it."""
    while not any(a["action"] == "earned_good" and a["version"] == version for a in stack.audits(model)):
        await serve(stack, model, version, count=10)
        await asyncio.sleep(0.1)


async def test_good_is_exit_code_0(stack):
    """A line when it serves, a line for each change on the way, and a line when it is good."""
    waiting = Pipeline(stack, "good", "v2", "--wait")
    first = await waiting.line()
    assert re.fullmatch(r"\d\d:\d\d:\d\d applied: v2 is active; no output of it was seen so far, .*", first)
    await stack.command("good", "pin", "v2")
    assert (await waiting.line()).endswith("applied: v2 serves on, pinned: a test")
    await until_good(stack, "good", "v2")
    code, lines, errors = await waiting.end()
    assert (code, errors) == (0, UNSEEN)
    assert [line[9:] for line in lines] == ["applied: v2 is active and good"]
    again = await holdfast(stack.folder / "base.toml", "route", "promote", "good", "v2", "-r", "x", "--wait")
    assert again.code == 1
    assert "refused: the route is pinned; unpin it first" in again.out


async def test_json_is_a_line_for_each_change(stack):
    """Each is a whole audit record."""
    waiting = Pipeline(stack, "json", "v2", "--wait", "--json")
    first = json.loads(await waiting.line())
    assert (first["action"], first["outcome"], first["version"]) == ("promote", "applied", "v2")
    await until_good(stack, "json", "v2")
    code, lines, _ = await waiting.end()
    assert code == 0
    assert [json.loads(line)["action"] for line in lines] == ["earned_good"]


async def test_fenced_is_exit_code_1_at_once(stack):
    """With what the breaker saw."""
    await until_good(stack, "bad", "v1")
    waiting = Pipeline(stack, "bad", "v2", "--wait")
    await waiting.line()
    await serve(stack, "bad", "v2", value=1.0)
    code, lines, errors = await waiting.end()
    assert code == 1
    assert errors.startswith("Warning: No output of v2 was ever seen")
    assert "refused: v2 was fenced: v2 tripped: " in lines[-1]
    refused = await holdfast(stack.folder / "base.toml", "route", "promote", "bad", "v2", "-r", "x", "--wait")
    assert (refused.code, refused.out[9:]) == (
        1,
        "refused: v2 is fenced; unfence it first, or choose another version\n",
    )


async def test_left_is_exit_code_1(stack):
    """Somebody else promoted another version meanwhile."""
    waiting = Pipeline(stack, "left", "v2", "--wait")
    await waiting.line()
    await stack.command("left", "promote", "v3")
    code, lines, _ = await waiting.end()
    assert code == 1
    assert lines[-1].endswith("refused: v2 was left before it was good: v3 serves, because a test")


async def test_too_long_is_exit_code_1(stack):
    """Neither good nor bad within the time: said, and the version goes on serving."""
    waiting = Pipeline(stack, "slow", "v2", "--wait", "--timeout", "1s")
    code, _, errors = await waiting.end()
    assert code == 1
    assert errors.startswith(
        f"{UNSEEN}v2 has not earned good within the time given, and was not fenced either. It goes on"
    )
    assert stack.route("slow")["version"] == "v2"


class MlflowServer(ServerProcess):
    """A real registry on SQLite."""

    name = "mlflow"
    start_within = 180.0  # It makes its database first, in a hundred steps.

    def __init__(self):
        super().__init__()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self):
        store = f"sqlite:///{self.folder}/registry.db"
        options = ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        return ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", sys.executable, "-m", "mlflow", "server", *options]

    def kill(self):
        # It serves from a process of its own.
        children = psutil.Process(self.pid).children(recursive=True) if self.running else []
        super().kill()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()

    def answers(self):
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        return False


@pytest.fixture(scope="module")
def mlflow_server():
    with MlflowServer() as server:
        client = MlflowClient(server.url)
        client.create_registered_model("registered")
        for _ in range(3):
            client.create_model_version("registered", source="s3://models/registered")
        client.set_registered_model_alias("registered", "champion", "2")
        client.set_registered_model_alias("registered", "challenger", "3")
        client.set_model_version_tag("registered", "3", "holdfast.version", "2026.11.24-rc1")
        client.create_model_version("registered", source="s3://models/registered")
        client.set_model_version_tag("registered", "4", "holdfast.version", "the new one")
        yield server


@pytest.mark.timeout(400)
async def test_the_version_comes_from_an_mlflow_registry(stack, mlflow_server):
    """By alias or number; a tag may give the name that predictions carry. What is not there is said."""
    config, variables = stack.folder / "base.toml", {"MLFLOW_TRACKING_URI": mlflow_server.url}

    async def promote(uri, **more):
        arguments = ["registered", "--from-mlflow", uri, "-r", "x", "--json"]
        return await holdfast(config, "route", "promote", *arguments, **{**variables, **more})

    for uri, version in (
        ("models:/registered@champion", "2"),
        ("models:/registered/1", "1"),
        ("models:/registered@challenger", "2026.11.24-rc1"),
    ):
        said = await promote(uri)
        assert (said.code, said.facts["version"]) == (0, version)
        assert said.facts["detail"].startswith(f"{version} is active")
    for uri in ("models:/registered@nobody", "models:/nothing@champion", "models:/registered/77"):
        said = await promote(uri)
        assert (said.code, said.out) == (1, "")
        assert f"The MLflow registry at {mlflow_server.url} has no {uri}: " in said.flat()
    misnamed = await promote("models:/registered/4")
    assert misnamed.code == 1
    assert "has the tag holdfast.version='the new one', which is no version. Set it to what" in misnamed.flat()
    away = await promote("models:/registered@champion", MLFLOW_TRACKING_URI="http://ci:hunter2@127.0.0.1:1")
    assert away.code == 1
    assert away.err.startswith("The MLflow registry at http://127.0.0.1:1 does not answer. Start it, or set")


WORKFLOW = ROOT / "examples" / "github-actions" / "promote.yml"


@pytest.mark.timeout(400)
async def test_the_example_workflow_runs(stack, mlflow_server, tmp_path):
    """Its steps, as they are written, on a real installation: 0 when the version is good."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    (job,) = workflow["jobs"].values()
    await until_good(stack, "registered", stack.route("registered")["version"])
    steps = [step for step in job["steps"] if "holdfast" in step.get("run", "") and "pip" not in step["run"]]
    assert steps
    inputs = {"model": "registered", "alias": "champion"}
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOLDFAST_CONFIG": str(stack.folder / "base.toml"),
        "MLFLOW_TRACKING_URI": mlflow_server.url,
        "GITHUB_ACTOR": "alice",
        "GITHUB_RUN_ID": "7",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "MODEL": inputs["model"],
        "ALIAS": inputs["alias"],
    }

    # Only where bash is named does GitHub let a pipe fail with its first command.
    assert workflow["defaults"]["run"]["shell"] == "bash"

    def run(step):
        # Values come through the environment: an input within the script would be a way to inject commands.
        assert "${{" not in step["run"]
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=GENEROUS,
            check=False,
        )

    serving = asyncio.create_task(until_good(stack, "registered", "2"))
    for step in steps:
        done = await asyncio.to_thread(run, step)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
    await serving
    last = [a for a in stack.audits("registered") if a["action"] == "promote"][-1]
    # Here without an API, whose token would say who acts.
    assert (last["actor"], last["version"]) == (getpass.getuser(), "2")
    assert "run 7 by alice" in last["reason"]
