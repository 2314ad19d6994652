"""The Alertmanager configuration: who is told of what, and in which words, by a real Alertmanager."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from backends import ROOT, AlertmanagerServer, BackendError, Receiver, Request, until
from holdfast.adapters.alertmanager import Alertmanager, alert
from holdfast.settings import NotifySettings
from holdfast_schemas import Finding, Incident, Sample

FOLDER = ROOT / "alerts"
TEXT = (FOLDER / "alertmanager.yml").read_text(encoding="utf-8")
SECRETS = {"pagerduty_routing_key": "R" * 32, "slack_api_url": "", "webhook_token": "T0KEN"}


def amtool(*arguments: str | Path) -> str:
    if shutil.which("amtool") is None:
        pytest.skip("amtool is not here; on Debian and Ubuntu: apt-get install prometheus-alertmanager")
    done = subprocess.run(["amtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alertmanager_takes_its_configuration() -> None:
    """As amtool sees it, templates included."""
    assert "1 templates" in amtool("check-config", "alertmanager.yml")


def test_secrets_are_only_in_files() -> None:
    """Each file that is named is described at the top, and no key holds a secret itself."""
    files = set(re.findall(r"_file: /etc/alertmanager/secrets/(\S+)", TEXT))
    assert files == set(SECRETS) == set(re.findall(r"^#   /etc/alertmanager/secrets/(\S+)", TEXT, re.MULTILINE))
    inline = r"^ *-? *(routing_key|service_key|api_url|slack_api_url|credentials|password|bearer_token):"
    assert re.findall(inline, TEXT, re.MULTILINE) == []


@pytest.mark.parametrize(
    ("severity", "receivers"),
    [
        ("critical", "webhook,pagerduty,slack"),
        ("error", "webhook,pagerduty,slack"),
        ("warning", "webhook,slack"),
        ("info", "webhook,slack"),
        ("something else", "webhook,slack"),
    ],
)
@pytest.mark.parametrize("labels", [("incident_id=1", "model=pricing"), ("service=guard",)])
def test_severity_decides_who_is_told(severity: str, receivers: str, labels: tuple[str, ...]) -> None:
    """Of incidents as of what Prometheus tells; nothing is told to nobody."""
    told = amtool("config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}", *labels)
    assert told.strip() == receivers


class Told(NamedTuple):
    """A running Alertmanager with the configuration of the repository, and the three whom it tells."""

    server: AlertmanagerServer
    receiver: Receiver

    def requests(self, path: str) -> list[Request]:
        return [request for request in list(self.receiver.requests) if request.path.startswith(path)]

    async def post(self, *alerts: dict[str, Any]) -> None:
        client = Alertmanager(self.server.url, NotifySettings())
        try:
            await client.post(alerts)
        finally:
            await client.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """As it is, but for the addresses, the folder of the secrets, and how long it waits for more."""
    with Receiver() as receiver:
        for name, secret in SECRETS.items():
            (tmp_path / name).write_text(secret or f"{receiver.url}/slack")
        text = TEXT.replace("/etc/alertmanager/secrets", str(tmp_path)).replace(
            "https://webhook.holdfast.invalid", f"{receiver.url}/webhook"
        )
        text = re.sub(r"group_wait: \w+", "group_wait: 200ms", text)
        text = re.sub(r"group_interval: \w+", "group_interval: 100ms", text)
        document = yaml.safe_load(text)
        document["global"] = {"pagerduty_url": f"{receiver.url}/pagerduty"}
        try:
            server = AlertmanagerServer(yaml.safe_dump(document))
        except BackendError as error:
            pytest.skip(str(error))
        shutil.copy(FOLDER / "holdfast.tmpl", server.folder)
        with server:
            yield Told(server, receiver)


def an_alert(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    finding = {"check": "price_floor", "severity": "error", "enforced": True, "field": "value", "seen": 9.6}
    incident = {
        "incident_id": "i-1",
        "dedup_key": "holdfast/pricing/v42",
        "status": "triggered",
        "severity": "critical",
        "model": "pricing",
        "bad_version": "v42",
        "routed_to": "v41",
        "action": "switched",
        "opened_at": now,
        "seen": 50,
        "blocked": 37,
        "blocked_by_check": {"price_floor": 37},
        "samples": (
            Sample(
                source="predictions/0/17",
                prediction={"entity_id": "<!channel> & co"},
                findings=(Finding.model_validate({**finding, "limit": {"min": 250.0}}, strict=False),),
            ),
        ),
        "policy": "pricing@0123456789ab",
        "runbook_url": "https://runbooks.example/HoldfastVersionSwitched.md",
        **changes,
    }
    return alert(
        Incident.model_validate(incident, strict=False),
        console_url="https://console.example",
        now=now,
        lasts=timedelta(minutes=15),
    )


async def test_a_page_a_message_and_a_hook(told: Told) -> None:
    """Each has the words that somebody can act on; when it is over each hears that too."""
    await told.post(an_alert())
    await until(lambda: all(map(told.requests, ("/pagerduty", "/slack", "/webhook"))))
    page = told.requests("/pagerduty")[0].body
    assert (page["routing_key"], page["event_action"]) == (SECRETS["pagerduty_routing_key"], "trigger")
    summary = "pricing v42 was bad and is fenced, v41 serves instead (37 of 50 outputs blocked)"
    payload = page["payload"]
    assert (payload["severity"], payload["summary"]) == ("critical", summary)
    assert (payload["class"], payload["component"]) == ("HoldfastVersionSwitched", "pricing")
    details = payload["custom_details"]
    assert details["runbook"] == "https://runbooks.example/HoldfastVersionSwitched.md"
    assert details["worst"] == "<!channel> & co: value 9.6, expected at least 250 (price_floor)"
    assert "The route moved from v42 to v41." in details["what"]
    assert page["client_url"] == "https://console.example/?q=i-1"
    assert [link["text"] for link in page["links"]] == ["Runbook", "Console"]

    (message,) = told.requests("/slack")[0].body["attachments"]
    assert message["title"] == f"CRITICAL: {summary}"
    assert (message["color"], message["title_link"]) == ("danger", "https://console.example/?q=i-1")
    # What a prediction says mentions nobody.
    assert "&lt;!channel&gt; &amp; co: value 9.6" in message["text"]
    assert "<!channel>" not in str(message)
    assert "<https://runbooks.example/HoldfastVersionSwitched.md|Runbook>" in message["text"]

    hook = told.requests("/webhook")[0]
    assert hook.headers["Authorization"] == "Bearer T0KEN"
    assert hook.body["alerts"][0]["labels"]["bad_version"] == "v42"

    await told.post(an_alert(status="resolved", resolved_at=datetime.now(UTC), resolved_by="ada"))
    await until(lambda: all(len(told.requests(path)) > 1 for path in ("/pagerduty", "/slack", "/webhook")))
    over = told.requests("/pagerduty")[-1].body
    assert (over["event_action"], over["dedup_key"]) == ("resolve", page["dedup_key"])
    (message,) = told.requests("/slack")[-1].body["attachments"]
    assert (message["title"], message["color"]) == (f"Resolved: {summary.replace('is fenced', 'was fenced')}", "good")


@pytest.mark.parametrize("severity", ["critical", "error"])
async def test_each_incident_is_a_page_of_its_own_and_ours_is_its_severity(told: Told, severity: str) -> None:
    """PagerDuty pages nobody for news of what somebody has acknowledged; in Slack a model's incidents are together."""
    await told.post(an_alert(severity=severity), an_alert(severity=severity, incident_id="i-2", bad_version="v43"))
    # On a busy machine one of the two may come too late for the first message.
    title = f"{severity.upper()}: 2 alerts of pricing"
    await until(lambda: len(told.requests("/pagerduty")) == 2 and title in str(told.requests("/slack")))
    pages = [request.body for request in told.requests("/pagerduty")]
    assert len({page["dedup_key"] for page in pages}) == 2
    assert {page["payload"]["severity"] for page in pages} == {severity}
    (message,) = told.requests("/slack")[-1].body["attachments"]
    assert message["title"] == title
    assert ("v42 was bad" in message["text"], "v43 was bad" in message["text"]) == (True, True)


async def test_an_alert_of_prometheus_reads_well_too(told: Told) -> None:
    """It has no model, no console and no status."""
    labels = {"alertname": "HoldfastGuardDown", "severity": "critical", "service": "guard"}
    annotations = {
        "summary": "No guard works",
        "description": "No guard is ready.",
        "runbook_url": "https://runbooks.example/HoldfastGuardDown.md",
    }
    await told.post({"labels": labels, "annotations": annotations, "generatorURL": "https://prometheus.example/graph"})
    await until(lambda: told.requests("/pagerduty") and told.requests("/slack"))
    page = told.requests("/pagerduty")[0].body
    assert (page["payload"]["summary"], page["payload"]["severity"]) == ("No guard works", "critical")
    assert page["client_url"] == "https://prometheus.example/graph"
    (message,) = told.requests("/slack")[0].body["attachments"]
    assert message["title"] == "CRITICAL: No guard works"
    assert message["text"].startswith("*HoldfastGuardDown*: No guard works\nNo guard is ready.")


async def test_what_is_held_back_while_a_model_is_held(told: Told) -> None:
    """Further versions of the same model found bad, and nothing else: least of all one that was serving."""
    others = {
        "fenced": an_alert(incident_id="fenced", action="fenced", bad_version="v43"),
        "switched": an_alert(incident_id="switched", bad_version="v44"),
        "elsewhere": an_alert(incident_id="elsewhere", action="fenced", model="ranking"),
    }
    await told.post(an_alert(incident_id="held", action="held", routed_to=None), *others.values())
    await until(lambda: len(told.requests("/pagerduty")) == 3)
    async with httpx.AsyncClient(trust_env=False) as client:
        known = (await client.get(f"{told.server.url}/api/v2/alerts")).json()
    held_back = {one["labels"]["incident_id"] for one in known if one["status"]["inhibitedBy"]}
    assert held_back == {"fenced"}
    assert not any("v43" in str(request.body) for request in told.requests("/pagerduty"))
