"""The demo as a person runs it: it ends by itself, says what happened, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from backends import GENEROUS

pytestmark = pytest.mark.timeout(400)

DEMO = [sys.executable, "-m", "holdfast.cli", "demo"]


def run_demo(*arguments, tmp_path):
    """The finished process; its temporary files are under `tmp_path`."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.run(
        [*DEMO, *arguments], capture_output=True, text=True, timeout=370, env=environment, check=False
    )


def processes_of(tmp_path):
    """Every process whose command line or folder is of this run."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(tmp_path) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def nothing_is_left(tmp_path):
    end = time.monotonic() + 10
    while time.monotonic() < end and (processes_of(tmp_path) or list(tmp_path.iterdir())):
        time.sleep(0.1)
    return not processes_of(tmp_path) and not list(tmp_path.iterdir())


def check_facts(facts):
    """What the demo promises, whichever servers it ran on."""
    assert facts["ok"], facts["failures"]
    assert facts["bad_outputs_approved"] == 0
    assert facts["blocked"]["v2"] == facts["produced"]["v2"] > 0
    assert facts["approved"]["v1"] > 500
    assert facts["route"] == {"version": "v1", "state": "auto"}
    assert facts["ms_from_first_bad_prediction_to_switch"] > 0
    assert facts["would_have_cost_usd"] > 100_000
    worst = facts["evidence"][0]
    assert worst["sold_for_usd"] > 10_000
    assert worst["offered_for_usd"] < 11
    incident = facts["incident"]
    assert (incident["bad_version"], incident["routed_to"], incident["action"]) == ("v2", "v1", "switched")
    assert len(incident["samples"]) > 0
    assert incident["blocked"] == facts["blocked"]["v2"]
    assert [d["action"] for d in facts["decisions"]] == ["promote", "earned_good", "promote", "trip"]


def test_the_demo_needs_nothing_but_python(tmp_path, monkeypatch):
    """Embedded servers, whatever the environment names; JSON and nothing else on standard output; nothing is left."""
    monkeypatch.setenv("HOLDFAST_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("HOLDFAST_POLICIES", "/nowhere")
    done = run_demo("--rate", "200", "--json", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    check_facts(json.loads(done.stdout))
    assert nothing_is_left(tmp_path)


@pytest.mark.real_kafka
def test_the_demo_runs_on_real_servers(kafka, redis_server, tmp_path):
    """The same facts on a real broker, with committed reads."""
    done = run_demo(
        "--kafka", kafka.bootstrap, "--redis", redis_server.url, "--rate", "1000", "--json", tmp_path=tmp_path
    )
    assert done.returncode == 0, done.stderr
    check_facts(json.loads(done.stdout))
    assert nothing_is_left(tmp_path)


def test_the_demo_fails_when_the_guard_does_not_block(tmp_path):
    """In shadow mode absurd prices are approved: exit code 1, and a sentence that says so."""
    done = run_demo("--sabotage", "--rate", "200", "--json", tmp_path=tmp_path)
    assert done.returncode == 1
    assert "were approved, although every one is absurd" in done.stderr
    assert "Traceback" not in done.stderr
    assert not json.loads(done.stdout)["ok"]
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_cleans_up(number, tmp_path):
    """Ctrl-C or SIGTERM in the middle: guard, switch, Kafka, Redis and every file are gone."""
    process = subprocess.Popen(
        DEMO, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "earns `good`" in line:
            break
    assert processes_of(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert nothing_is_left(tmp_path)


def test_a_demo_that_is_killed_leaves_no_process(tmp_path):
    """SIGKILL in the middle: its services and servers notice that it is gone."""
    process = subprocess.Popen(DEMO, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "earns `good`" in line:
            break
    assert processes_of(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + GENEROUS
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_a_demo_without_a_broker_says_so(tmp_path):
    """One sentence of what happened and one of what to do."""
    done = run_demo("--kafka", "127.0.0.1:1", tmp_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("(HOLDFAST_KAFKA__BOOTSTRAP_SERVERS).")
    assert "Traceback" not in done.stderr
