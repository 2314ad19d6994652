"""One installation for all tests here: real services, a real Prometheus and Alertmanager, and models in every state."""

import asyncio
import contextlib
import json
import re
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import backends
from e2e.stack import POLICY, Stack, Worker
from holdfast.adapters.embedded import free_port

ALERTS = backends.ROOT / "alerts"
NOBODY = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"
"""An Alertmanager that keeps what it is told to itself."""
HELD = ("HoldfastRouteHeld", "HoldfastRouteStaysHeld")
PINNED = ("HoldfastPinForgotten",)
FENCED = ("HoldfastVersionFenced",)
"""In the models of these runbooks no version is left, one is pinned, or one went bad beside the active one. In all
others v2 went bad while it served, and v1 serves again."""
SHADOW = """
[[checks]]
name = "cheap"
kind = "range"
field = "value"
min = 50.0
mode = "shadow"
"""


def runbooks() -> dict[str, Path]:
    return {path.stem: path for path in sorted((ALERTS / "runbooks").glob("*.md")) if path.stem != "README"}


def model_of(runbook: str) -> str:
    """A runbook whose commands change something has a model of its own; the others look at one together."""
    changes = r"^holdfast (route (?!show)|incidents (?!list|show))|^redis-cli .* DEL "
    return (
        runbook.removeprefix("Holdfast").lower()
        if re.search(changes, runbooks()[runbook].read_text(), re.M)
        else "calm"
    )


class Prometheus(backends.ServerProcess):
    """With the configuration of this repository, but for the addresses, and every other second instead of every 15."""

    name = "prometheus"

    def __init__(self, workers: Iterable[Worker], alertmanager: backends.AlertmanagerServer) -> None:
        super().__init__()
        self.address, alerts_to = f"127.0.0.1:{free_port()}", f"127.0.0.1:{alertmanager.port}"
        self.url = f"http://{self.address}"
        targets: dict[str, list[str]] = {"alertmanager": [alerts_to], "prometheus": [self.address]}
        for worker in workers:
            targets.setdefault(f"holdfast-{worker.name}", []).append(f"127.0.0.1:{worker.port}")
        self.configuration = yaml.safe_load((ALERTS / "prometheus.yml").read_text())
        self.configuration["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        self.configuration["rule_files"] = [str(ALERTS / "rules.yml")]
        self.configuration["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alerts_to]}]}]
        self.configuration["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
            for job in self.configuration["scrape_configs"]
            if job["job_name"] in targets
        ]

    def command(self) -> list[str]:
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(self.configuration))
        data = f"--storage.tsdb.path={self.folder / 'data'}"
        return ["prometheus", f"--config.file={path}", data, f"--web.listen-address={self.address}"]

    def get(self, path: str, **parameters: str) -> bytes:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=10) as answer:  # noqa: S310  our own http
            return bytes(answer.read())

    def answers(self) -> bool:
        try:
            return bool(self.get("/-/ready"))
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query. Raises AssertionError with what Prometheus says against it."""
        answer = json.loads(self.get("/api/v1/query", query=expression))
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@dataclass
class Installation:
    stack: Stack
    workers: dict[str, Worker]
    prometheus: Prometheus
    alertmanager: backends.AlertmanagerServer
    redis_url: str
    incidents: dict[str, str] = field(default_factory=dict)
    """The id of the incident of each model."""


@contextlib.asynccontextmanager
async def install(kafka: backends.Kafka, redis_url: str, folder: Path) -> AsyncIterator[Installation]:
    """Two guards, switch, notify, api and audit, with a model for each runbook in the state that it speaks of."""
    models = {model_of(name): name for name in runbooks()}
    with backends.AlertmanagerServer(NOBODY) as alertmanager:
        settings = {"notify": {"alertmanager_urls": [alertmanager.url]}}
        policies = dict.fromkeys(models, SHADOW + POLICY)
        async with Stack(kafka, redis_url, policies, folder=folder, settings=settings) as stack:
            names = ("guard", "guard", "switch", "notify", "api", "audit")
            workers = [worker for name in names for worker in await stack.start(name, ready=False)]
            await stack.ready(*workers)
            with Prometheus(workers, alertmanager) as prometheus:
                by_name = dict(zip(names, workers, strict=True))
                found = Installation(stack, by_name, prometheus, alertmanager, redis_url)
                await asyncio.gather(*(_prepare(found, *one) for one in models.items()))
                trickle = asyncio.create_task(_trickle(stack))
                # Beside them itself and Alertmanager.
                scraped = lambda: len(prometheus.query("up == 1")) == len(workers) + 2  # noqa: E731
                await stack.until(scraped, "Prometheus has looked at every service")
                yield found
                trickle.cancel()


async def _trickle(stack: Stack) -> None:
    """Rates are of what happens while Prometheus looks."""
    while True:
        await stack.send([stack.prediction("calm", "v1", "SKU-1", 130.0), stack.prediction("calm", "v2", "SKU-2", 1.0)])
        await asyncio.sleep(0.5)


async def _prepare(installation: Installation, model: str, runbook: str) -> None:
    stack = installation.stack

    async def send(version: str, value: float) -> None:
        await stack.send([stack.prediction(model, version, f"SKU-{i % 8}", value) for i in range(30)])

    await stack.command(model, "promote", "v1")
    if runbook not in HELD:
        await send("v1", 45.0)
        await stack.until(lambda: len(stack.tallies(model)) > 0, f"{model} is judged")
        await asyncio.sleep(0.2)  # good_after
        await send("v1", 130.0)
        good = lambda: any(audit["action"] == "earned_good" for audit in stack.audits(model))  # noqa: E731
        await stack.until(good, f"v1 of {model} is good")
        if runbook not in FENCED:
            await stack.command(model, "promote", "v2")
    await send("v1" if runbook in HELD else "v2", 1.0)
    await stack.until(lambda: stack.incidents(model), f"{model} has an incident")
    installation.incidents[model] = stack.incidents(model)[-1]["incident_id"]
    if runbook in PINNED:
        await stack.command(model, "pin")
