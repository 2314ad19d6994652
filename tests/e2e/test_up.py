"""`holdfast up`: the whole stack as one process group, which ends as a whole, however it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest
from aiokafka import AIOKafkaProducer

from backends import GENEROUS
from e2e.stack import POLICY, Stack
from holdfast.adapters.embedded import free_port
from holdfast.cli.browser import one_use_code

SERVICES = ("guard", "switch", "notify", "api")


class Up:
    """The command on a folder of its own, and all processes that belong to it."""

    def __init__(self, folder, *arguments, **environment):
        self.folder, self.console_port = folder, free_port()
        (folder / "policies").mkdir()
        (folder / "policies" / "pricing.toml").write_text(f'model = "pricing"\n{POLICY}')
        sections = "".join(f"[{name}]\nhealth_port = {free_port()}\n" for name in ("guard", "switch", "notify"))
        self.config = folder / "holdfast.toml"
        self.config.write_text(
            f"policies = {json.dumps(str(folder / 'policies'))}\n"
            f"[topic_settings]\npartitions = 2\ncontrol_partitions = 1\n{sections}[api]\nport = {self.console_port}\n"
        )
        self.environment = {**os.environ, "TMPDIR": str(folder), **environment}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.cli", "up", "--config", str(self.config), *arguments],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def processes(self):
        """Every process of this run; its folder is on each command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def service(self, name):
        """The process itself, not its guardian."""
        return next(p for p in self.processes() if p.cmdline()[1:4] == ["-m", "holdfast", name])

    def nothing_is_left(self):
        deadline = time.monotonic() + GENEROUS
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()

    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "holdfast.cli", *arguments, "--config", str(self.config)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=GENEROUS,
            check=False,
        )

    def log(self):
        return (self.folder / "log").read_text()


@pytest.fixture
def up(tmp_path):
    """On embedded servers, once everything is ready; the facts that it told are in `facts`."""
    # A proxy, as many environments have one, does not reach the services of this machine.
    up = Up(tmp_path, "--embedded", "--json", http_proxy="http://127.0.0.1:1")
    try:
        line = up.process.stdout.readline()
        assert line, up.log()
        up.facts = json.loads(line)
        up.environment.update(up.facts["environment"])
        yield up
    finally:
        for process in up.processes():
            process.kill()
        up.process.wait()
        up.process.stdout.close()


def test_the_stack_of_a_laptop(up):
    """It says where the console is and how to reach its servers; commands work; SIGTERM ends all of it."""
    assert all(up.service(name).is_running() for name in SERVICES)
    assert up.facts["console"] == f"http://127.0.0.1:{up.console_port}"
    assert up.facts["login"].startswith(f"{up.facts['console']}/login#hf_")
    assert httpx.get(f"{up.facts['console']}/api/v1/routes", timeout=GENEROUS).status_code == 401
    token = up.facts["login"].partition("#")[2]
    for name in ("guard", "switch", "notify"):
        assert token not in up.service(name).environ().values(), name
    # What a browser is started with signs in once.
    with httpx.Client(base_url=up.facts["console"], timeout=GENEROUS, follow_redirects=True) as browser:
        form = {"token": one_use_code("127.0.0.1", up.console_port, token)}
        assert (browser.post("/login", data=form).url.path, browser.get("/").status_code) == ("/", 200)
        browser.post("/logout")
        assert browser.get("/").url.path == "/login"
        assert browser.post("/login", data=form).status_code == 401
        assert browser.post("/login", data={"token": token}).url.path == "/"
    assert token not in up.log()
    promoted = up.run("route", "promote", "pricing", "v1", "-r", "first", "--json")
    assert json.loads(promoted.stdout)["detail"].startswith("v1 is active"), promoted.stderr
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(GENEROUS) == 0
    assert up.nothing_is_left()
    assert "Traceback" not in up.log()


async def send(bootstrap, events):
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for at_ms, event in enumerate(events, round(time.time() * 1000)):
            value, key = json.dumps(event).encode(), event["entity_id"].encode()
            await producer.send_and_wait("predictions", value, key=key, timestamp_ms=at_ms)


async def test_what_was_blocked_is_found_on_the_embedded_broker(up):
    """It looks for no times and tells little of itself: no command may take that for `there is nothing`."""
    events = [Stack.prediction("pricing", "v1", f"E{number}", value) for number, value in enumerate((0.01, 0.02, 50.0))]
    await send(up.facts["environment"]["HOLDFAST_KAFKA__BOOTSTRAP_SERVERS"], events)
    listed = {}
    deadline = time.monotonic() + GENEROUS
    while listed.get("count") != 2 and time.monotonic() < deadline:
        shown = await asyncio.to_thread(up.run, "blocked", "list", "pricing", "--json")
        listed = json.loads(shown.stdout)
    assert [one["prediction"]["value"] for one in listed["predictions"]] == [0.01, 0.02]
    diagnoses = json.loads((await asyncio.to_thread(up.run, "doctor", "--json")).stdout)
    failed = {one["area"] for one in diagnoses if one["health"] == "failed"}
    assert failed == {"alertmanager"}, diagnoses


def test_one_service_ending_ends_the_others(up):
    """Which one it was is said, with exit code 1."""
    up.service("switch").kill()
    assert up.process.wait(GENEROUS) == 1
    assert up.log().rstrip().endswith("The switch ended, so the other services were stopped too; its message is above.")
    assert up.nothing_is_left()


def test_a_guardian_that_is_killed_leaves_nothing(up):
    """Its service goes with it."""
    guardian = up.service("api").parent()
    guardian.kill()
    assert up.process.wait(GENEROUS) == 1
    assert up.nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(up, number):
    """Ctrl-C, and even kill -9 of the parent."""
    up.process.send_signal(number)
    assert up.process.wait(GENEROUS) == (130 if number == signal.SIGINT else -number)
    assert up.nothing_is_left()


@pytest.mark.real_kafka
def test_on_servers_that_are_there(kafka, redis_server, tmp_path, unique):
    """Topics are made, and a person's lines name the console."""
    topics = ("predictions", "approved", "blocked", "malformed", "control", "state", "routes", "incidents", "audit")
    up = Up(
        tmp_path,
        HOLDFAST_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap,
        HOLDFAST_REDIS__URL=redis_server.url,
        HOLDFAST_GUARD__GROUP=f"{unique}-guard",
        HOLDFAST_SWITCH__GROUP=f"{unique}-switch",
        **{f"HOLDFAST_TOPICS__{role.upper()}": f"{unique}.{role}" for role in topics},
    )
    try:
        link = f"Everything runs. Console: http://127.0.0.1:{up.console_port}/login#hf_"
        assert up.process.stdout.readline().startswith(link)
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(GENEROUS) == 0
        assert up.nothing_is_left()
    finally:
        for process in up.processes():
            process.kill()
        up.process.stdout.close()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"HOLDFAST_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"},
            "No Kafka broker answers at 127.0.0.1:1. Start it, or set",
        ),
        ({"HOLDFAST_SWITCH__HEALTH_PORT": "0"}, "switch.health_port is 0, so `up` could not ask"),
    ],
)
def test_what_it_cannot_run_on_is_said(tmp_path, environment, said):
    """Nothing is started."""
    up = Up(tmp_path, **environment)
    assert up.process.wait(GENEROUS) == 1
    assert up.log().startswith(said)
    assert up.nothing_is_left()
    up.process.stdout.close()
