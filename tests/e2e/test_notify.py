"""Incidents on the topic reach people through a real Alertmanager, whatever is down in whatever order."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from backends import GENEROUS, AlertmanagerServer, BackendError, DockerKafka, Kafka, RealKafka, Receiver
from e2e.stack import Stack, Worker

PASSWORD = "s3cret-pass"
PASSWORD_BCRYPT = "$2b$04$adMoK3h/6zB/ZkG4l6phG./NPXgv39FdGxDncQ3DlCVlKRsN6pgg6"
NOWHERE = "redis://127.0.0.1:1/0"


class Webhook(Receiver):
    """What a person would be told."""

    def pages(self, incident: dict[str, Any]) -> list[str]:
        """The status of every message about this incident, in order."""
        return [body["status"] for body in self._about(incident)]

    def alert(self, incident: dict[str, Any]) -> dict[str, Any]:
        """The incident as the last message about it told it."""
        (alert,) = self._about(incident)[-1]["alerts"]
        return dict(alert)

    def _about(self, incident: dict[str, Any]) -> list[Any]:
        bodies = [request.body for request in list(self.requests)]
        return [body for body in bodies if body["groupLabels"]["incident_id"] == incident["incident_id"]]


@pytest.fixture
def receiver() -> Iterator[Webhook]:
    with Webhook() as receiver:
        yield receiver


def configuration(receiver: Webhook) -> str:
    return f"""
route: {{receiver: webhook, group_by: [incident_id], group_wait: 10ms, group_interval: 100ms, repeat_interval: 1h}}
receivers: [{{name: webhook, webhook_configs: [{{url: "{receiver.url}", send_resolved: true}}]}}]
"""


@pytest.fixture
def alertmanager(receiver: Webhook) -> Iterator[AlertmanagerServer]:
    """One that tells the receiver at once."""
    try:
        server = AlertmanagerServer(configuration(receiver))
    except BackendError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
async def stack(kafka: Kafka, tmp_path: Path) -> AsyncIterator[Stack]:
    async with Stack(kafka, NOWHERE, {}, folder=tmp_path) as stack:
        yield stack


def notify_settings(*urls: str, **more: Any) -> dict[str, Any]:
    own = {"alertmanager_urls": list(urls), "resend_every": "1s", "console_url": "https://holdfast.example/console"}
    return {"notify": {**own, **more}}


def an_incident(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "incident_id": uuid.uuid4().hex,
        "dedup_key": "holdfast/pricing/v42",
        "status": "triggered",
        "severity": "critical",
        "model": "pricing",
        "bad_version": "v42",
        "routed_to": "v41",
        "action": "switched",
        "opened_at": now,
        "first_blocked_at": now,
        "switched_at": now,
        "seen": 50,
        "blocked": 37,
        "blocked_by_check": {"price_floor": 37},
        "samples": [
            {
                "source": "predictions/0/17",
                "prediction": {"entity_id": "SKU-1", "value": 9.6},
                "findings": [
                    {
                        "check": "price_floor",
                        "severity": "error",
                        "enforced": True,
                        "field": "value",
                        "seen": 9.6,
                        "limit": {"min": 250.0},
                        "unit": "USD",
                    }
                ],
            }
        ],
        "policy": "pricing@0123456789ab",
        "runbook_url": "https://runbooks.example/HoldfastVersionSwitched.md",
        **changes,
    }


def resolved(incident: dict[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {**incident, "status": "resolved", "resolved_at": now, "resolved_by": "ada"}


async def publish(stack: Stack, *incidents: dict[str, Any]) -> None:
    for incident in incidents:
        await stack.send([incident], role="incidents", key=incident["incident_id"].encode())


def known(server: AlertmanagerServer) -> dict[str, dict[str, Any]]:
    """What an Alertmanager holds as active, by incident; empty while it does not answer."""
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"{server.url}/api/v2/alerts", trust_env=False)
        return {alert["labels"]["incident_id"]: alert for alert in answer.json()}
    return {}


async def test_a_page_says_what_happened_once_and_is_over_when_it_is(
    stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook
) -> None:
    """Every label and annotation is there; updates and an acknowledgement change the text and page nobody."""
    await stack.start("notify", settings=notify_settings(alertmanager.url))
    incident = an_incident()
    await publish(stack, incident)
    await stack.until(lambda: receiver.pages(incident), "the page")
    alert = receiver.alert(incident)
    assert alert["labels"] == {
        "alertname": "HoldfastVersionSwitched",
        "severity": "critical",
        "service": "holdfast",
        "model": "pricing",
        "bad_version": "v42",
        "dedup_key": "holdfast/pricing/v42",
        "incident_id": incident["incident_id"],
    }
    link = f"https://holdfast.example/console/?q={incident['incident_id']}"
    description = alert["annotations"].pop("description")
    assert alert["annotations"] == {
        "summary": "pricing v42 was bad and is fenced, v41 serves instead (37 of 50 outputs blocked)",
        "status": "triggered",
        "policy": "pricing@0123456789ab",
        "routed_to": "v41",
        "serves": "v41",
        "worst_sample": "SKU-1: value 9.6 USD, expected at least 250 USD (price_floor)",
        "runbook_url": "https://runbooks.example/HoldfastVersionSwitched.md",
        "console_url": link,
    }
    assert "Blocked: 37 of 50 (by price_floor 37)." in description
    assert "Worst: SKU-1: value 9.6 USD, expected at least 250 USD (price_floor)." in description
    assert alert["generatorURL"] == link
    assert datetime.fromisoformat(alert["startsAt"]) == datetime.fromisoformat(incident["opened_at"])

    seized = {"status": "acknowledged", "acknowledged_by": "ada", "acknowledged_at": datetime.now(UTC).isoformat()}
    await publish(stack, {**incident, "seen": 90, "blocked": 77}, {**incident, "seen": 95, "blocked": 80, **seized})
    later = await stack.until(
        lambda: (
            (found := known(alertmanager).get(incident["incident_id"]))
            and found["annotations"]["status"] == "acknowledged"
            and found
        ),
        "the acknowledgement is shown",
    )
    assert later["annotations"]["acknowledged_by"] == "ada"
    assert later["annotations"]["description"].startswith("ada has it since ")
    assert "(80 of 95 outputs blocked)" in later["annotations"]["summary"]
    assert later["labels"] == alert["labels"]

    await publish(stack, resolved(incident))
    await stack.until(lambda: "resolved" in receiver.pages(incident), "the end")
    assert receiver.pages(incident) == ["firing", "resolved"]
    assert receiver.alert(incident)["annotations"]["resolved_by"] == "ada"


async def test_a_page_follows_the_route_until_it_is_over(
    stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook, unique: str
) -> None:
    """A hold that a promotion ended is not paged again, also not by a notify that starts later; a page names the
    version that serves now.
    """
    settings = {**notify_settings(alertmanager.url), "switch": {"tick_every": "200ms"}}
    notify, _ = await stack.start("notify", "switch", settings=settings)

    async def trip(version: str) -> dict[str, Any]:
        before = len(stack.incidents(unique))
        await stack.send([critical_tally(unique, version)], role="control")
        return await stack.until(  # type: ignore[no-any-return]
            lambda: next((one for one in stack.incidents(unique)[before:] if one["bad_version"] == version), None)
        )

    def says(incident: dict[str, Any], text: str) -> Any:
        alert = known(alertmanager).get(incident["incident_id"])
        return alert and text in alert["annotations"]["summary"]

    await stack.command(unique, "promote", "v1")
    held = await trip("v1")
    await stack.until(lambda: says(held, f"{unique} is held: v1 was bad, and no version may serve"))
    await stack.command(unique, "promote", "v2")
    await stack.until(lambda: "resolved" in receiver.pages(held), "the end of the hold")
    over = receiver.alert(held)["annotations"]
    assert over["summary"].startswith(f"{unique} was held because v1 was bad, v2 serves now")
    assert (over["resolved_by"], over["resolved_because"]) == ("holdfast", "the route is held no longer: v2 serves")

    canary = await trip("canary")
    await stack.until(lambda: says(canary, "canary was bad and is fenced, the route did not change"))
    await stack.command(unique, "promote", "v3")
    await stack.until(lambda: says(canary, "canary was bad and is fenced, v3 serves now"))
    await stack.command(unique, "hold")
    await stack.until(lambda: says(canary, "and the model is held by now: no version may serve"))

    told = len(receiver.pages(held))
    await asyncio.to_thread(notify.restart)
    await stack.ready(notify)
    await stack.command(unique, "resume", "v3")
    await stack.until(lambda: says(canary, "v3 serves now"), "the notify that was started again tells of changes")
    assert held["incident_id"] not in known(alertmanager)
    assert receiver.pages(held)[told:].count("firing") == 0


def critical_tally(model: str, version: str) -> dict[str, Any]:
    counts = {"seen": 5, "approved": 4, "blocked": 1, "failed": 1, "critical": 1}
    where = {
        "worker": "guard-1",
        "partition": 0,
        "first_offset": 0,
        "last_offset": 5,
        "at": datetime.now(UTC).isoformat(),
    }
    checks = {"blocked_by_check": {"floor": 1}, "entities": ["SKU-1"]}
    named = {"model": model, "model_version": version, "policy": f"{model}@5f1c0a9be217"}
    return {"type": "tally", **named, **where, **counts, **checks}


async def test_a_version_that_trips_again_is_news(
    stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook
) -> None:
    """Resolved and found bad once more in the same moment: a page for each, and the second stays open."""
    await stack.start("notify", settings=notify_settings(alertmanager.url))
    first, second = an_incident(), an_incident()
    await publish(stack, first)
    await stack.until(lambda: receiver.pages(first), "the first page")
    await publish(stack, resolved(first), second)
    await stack.until(lambda: receiver.pages(first) == ["firing", "resolved"], "the end of the first")
    await stack.until(lambda: receiver.pages(second), "the second page")
    assert set(known(alertmanager)) == {second["incident_id"]}
    assert receiver.pages(second) == ["firing"]


async def test_an_alertmanager_that_is_down_gets_everything_once_it_is_up(
    stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook
) -> None:
    """Down before notify starts, and frozen later: what was opened and resolved meanwhile is told."""
    alertmanager.kill()
    (notify,) = await stack.start("notify", settings=notify_settings(alertmanager.url), ready=False)
    incident = an_incident()
    await publish(stack, incident)
    name = alertmanager.url.partition("://")[2]
    await stack.until(lambda: notify.metric("holdfast_unsent_incidents", alertmanager=name) == 1, "one waits")
    await stack.until(lambda: notify.metric("holdfast_notifications_total", outcome="failed") >= 2, "it is retried")
    assert notify.get("/ready")[0] == 503
    assert "does not answer" in notify.get("/ready")[1]
    assert notify.metric("holdfast_last_notification_timestamp_seconds", alertmanager=name) == 0
    alertmanager.start()
    await stack.until(lambda: receiver.pages(incident), "the page")
    await stack.ready(notify)
    assert notify.metric("holdfast_last_notification_timestamp_seconds") > time.time() - 3600

    alertmanager.pause()
    await publish(stack, resolved(incident))
    failed = notify.metric("holdfast_notifications_total", outcome="failed")
    await stack.until(lambda: notify.metric("holdfast_notifications_total", outcome="failed") > failed, "no answer")
    alertmanager.resume()
    await stack.until(lambda: receiver.pages(incident) == ["firing", "resolved"], "the end")
    await stack.until(lambda: notify.metric("holdfast_unsent_incidents", alertmanager=name) == 0, "none waits")
    # One line when it begins and one when it is over, not one for each attempt.
    assert len(notify.told("the Alertmanager takes incidents")) == 2


async def test_an_alertmanager_that_forgot_is_told_again(
    stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook
) -> None:
    """After a crash it knows nothing; within the resend period it knows what is open, and nothing else."""
    await stack.start("notify", settings=notify_settings(alertmanager.url))
    ours, over = an_incident(), an_incident(dedup_key="holdfast/pricing/v40", bad_version="v40")
    await publish(stack, ours, over)
    await stack.until(lambda: receiver.pages(ours) and receiver.pages(over), "both pages")
    await publish(stack, resolved(over))
    await stack.until(lambda: "resolved" in receiver.pages(over), "the end of one")
    alertmanager.kill()
    alertmanager.start()
    await stack.until(lambda: known(alertmanager), "it knows again")
    assert set(known(alertmanager)) == {ours["incident_id"]}


async def test_one_sick_alertmanager_delays_nobody(
    stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook
) -> None:
    """One refuses connections and one never answers: the third gets a thousand incidents and their ends."""
    with AlertmanagerServer(configuration(receiver)) as frozen:
        frozen.pause()
        urls = "http://127.0.0.1:1", frozen.url, alertmanager.url
        (notify,) = await stack.start("notify", settings=notify_settings(*urls))
        incidents = [an_incident(model=f"m{number}", bad_version="v1") for number in range(1000)]
        await asyncio.gather(*(publish(stack, incident) for incident in incidents))
        await stack.until(lambda: len(known(alertmanager)) == 1000, "all are known")
        await publish(stack, resolved(incidents[0]))
        await stack.until(lambda: receiver.pages(incidents[0]) == ["firing", "resolved"], "the end of one")
        name = frozen.url.partition("://")[2]
        assert notify.metric("holdfast_unsent_incidents", alertmanager=name) == 1000
        frozen.resume()
        await stack.until(lambda: len(known(frozen)) == 999, "those that are open reach the other too")


async def test_kill_9_loses_nothing(stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook) -> None:
    """What was opened and resolved while no notify ran is told by the next; what was long over is not."""
    (notify,) = await stack.start("notify", settings=notify_settings(alertmanager.url))
    before, during = an_incident(), an_incident(action="held", routed_to=None)
    ages_ago = (datetime.now(UTC) - timedelta(days=30)).isoformat()
    ancient = resolved(an_incident(opened_at=ages_ago)) | {"resolved_at": ages_ago}
    await publish(stack, ancient, before)
    await stack.until(lambda: receiver.pages(before), "the first page")
    notify.kill()
    await publish(stack, during, resolved(before))
    alertmanager.kill()
    notify.start()
    alertmanager.start()
    await stack.until(lambda: receiver.pages(during), "the page of what happened meanwhile")
    assert receiver.alert(during)["labels"]["alertname"] == "HoldfastRouteHeld"
    told = {before["incident_id"]: "resolved", during["incident_id"]: "triggered"}
    # The page may be there before notify has written that it was taken.
    await stack.until(
        lambda: {line["id"]: line["status"] for line in notify.told("incident delivered")} == told, "both are delivered"
    )


async def test_two_at_once_page_once(stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook) -> None:
    """Their alerts have the same labels, so that Alertmanager takes them for one; either may be killed."""
    first, _ = await stack.start("notify", "notify", settings=notify_settings(alertmanager.url))
    incident = an_incident()
    await publish(stack, incident)
    await stack.until(
        lambda: all(worker.told("incident delivered", id=incident["incident_id"]) for worker in stack.workers),
        "both have sent it",
    )
    assert len(known(alertmanager)) == 1
    first.kill()
    await publish(stack, resolved(incident))
    await stack.until(lambda: "resolved" in receiver.pages(incident), "the end")
    assert receiver.pages(incident) == ["firing", "resolved"]


BROKEN = [b"", None, b"\xff\xfe", b"[]", b"{}", json.dumps(an_incident() | {"severity": "page"}).encode()]


async def test_a_broken_record_is_put_aside(stack: Stack, alertmanager: AlertmanagerServer, receiver: Webhook) -> None:
    """A metric and a line name it, and those around it are told, whether it was there at the start or came later."""
    early, late = an_incident(), an_incident(model="ranking")
    # An update that is broken does not take away what was known of its incident.
    await publish(stack, early)
    await stack.send([b"{"], role="incidents", key=early["incident_id"].encode())
    await stack.send(BROKEN, role="incidents", key=b"broken")
    (notify,) = await stack.start("notify", settings=notify_settings(alertmanager.url))
    await stack.send(BROKEN, role="incidents", key=b"\xff")
    await publish(stack, late)
    await stack.until(lambda: receiver.pages(early) and receiver.pages(late), "both pages")
    assert notify.metric("holdfast_incidents_malformed_total") == 1 + 2 * len(BROKEN)
    lines = notify.told("incident record skipped; no alert was sent")
    assert len(lines) == 1 + 2 * len(BROKEN)
    assert {"severity: Input should be 'critical', 'error', 'warning' or 'info'"} <= {line["reason"] for line in lines}
    assert len(known(alertmanager)) == 2


async def test_an_incident_that_is_refused_keeps_back_no_other(stack: Stack) -> None:
    """An Alertmanager that takes all but one gets all but one, and that one is tried on and counted."""
    with Receiver(lambda body: 400 if any(alert["labels"]["model"] == "cursed" for alert in body) else 200) as picky:
        (notify,) = await stack.start("notify", settings=notify_settings(picky.url))
        incidents = [an_incident(model=model) for model in ("a", "cursed", "b", "c")]
        await publish(stack, *incidents)
        await stack.until(
            lambda: {"a", "b", "c"} == {one["labels"]["model"] for r in list(picky.requests) for one in r.body},
            "the others have come",
        )
        await stack.until(
            lambda: notify.metric("holdfast_notifications_total", outcome="refused") >= 2, "the one is tried on"
        )
        assert notify.metric("holdfast_unsent_incidents") == 1
        assert "refuses an alert" in notify.get("/ready")[1]


async def test_the_login_is_over_tls_and_never_shown(stack: Stack, receiver: Webhook, tmp_path: Path) -> None:
    """A password and a CA from files; a wrong password is said, and a mended file is taken up without a restart."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    (tmp_path / "web.yml").write_text(
        f"tls_server_config: {{cert_file: {tmp_path}/cert.pem, key_file: {tmp_path}/key.pem}}\n"
        f"basic_auth_users: {{notify: '{PASSWORD_BCRYPT}'}}\n"
    )
    secret = tmp_path / "password"
    secret.write_text("wrong-pass\n")
    with AlertmanagerServer(configuration(receiver), f"--web.config.file={tmp_path}/web.yml") as server:
        (notify,) = await stack.start(
            "notify",
            settings=notify_settings(
                server.url.replace("http:", "https:"),
                username="notify",
                password_file=str(secret),
                ssl_ca_file=str(tmp_path / "ca.pem"),
            ),
            ready=False,
        )
        await stack.until(lambda: "refuses the login" in notify.get("/ready")[1], "the login is refused")
        incident = an_incident()
        await publish(stack, incident)
        secret.write_text(f"{PASSWORD}\n")
        await stack.until(lambda: receiver.pages(incident), "the page")
        secret.unlink()
        await stack.until(lambda: "cannot be read" in notify.get("/ready")[1], "the file is missed")
        assert not any(word in notify.log.read_text() for word in ("wrong-pass", PASSWORD))


@pytest.mark.real_kafka
async def test_kafka_away_is_said_and_keeps_nothing_back(
    fresh_kafka: RealKafka | DockerKafka, alertmanager: AlertmanagerServer, receiver: Webhook, tmp_path: Path
) -> None:
    """Meanwhile what is known is still sent, to an Alertmanager that forgot too; afterwards what is new comes."""
    async with Stack(fresh_kafka, NOWHERE, {}, folder=tmp_path) as stack:
        (notify,) = await stack.start("notify", settings=notify_settings(alertmanager.url))
        old, new = an_incident(), an_incident(model="ranking")
        await publish(stack, old)
        await stack.until(lambda: receiver.pages(old), "the page")
        await asyncio.to_thread(fresh_kafka.stop)
        await stack.until(lambda: "No Kafka broker answers" in notify.get("/ready")[1], "not ready, and why")
        alertmanager.kill()
        alertmanager.start()
        await stack.until(lambda: old["incident_id"] in known(alertmanager), "it is told without Kafka")

        refused = await asyncio.to_thread(_start_in_vain, notify)
        assert refused.returncode == 1
        assert "No Kafka broker answers at" in refused.stderr
        assert "Traceback" not in refused.stderr

        await asyncio.to_thread(fresh_kafka.start)
        await publish(stack, new)
        await stack.until(lambda: receiver.pages(new), "the page of what is new")
        await stack.ready(notify)
        assert not notify.told("stopped on an error")


def _start_in_vain(notify: Worker) -> subprocess.CompletedProcess[str]:
    other = notify.config.with_name("other.toml")
    other.write_text(notify.config.read_text().replace(f"health_port = {notify.port}", "health_port = 0"))
    command = [sys.executable, "-m", "holdfast.cli", "notify", "--config", str(other)]
    return subprocess.run(command, capture_output=True, text=True, timeout=GENEROUS, check=False)
