"""Incidents as alerts of Alertmanager's v2 API.

An alert's labels are its identity: they never change while an incident lives, and every notify gives the same.
The incident's id is one of them, since a version that trips again is news although the last time is just over.
What changes (status, counts, who has it) is in the annotations. Every text is bounded.
"""

import base64
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from holdfast.core import findings, incidents
from holdfast.core.findings import cut
from holdfast.core.policy_change import advice
from holdfast.login import secret, tls_context
from holdfast.settings import NotifySettings
from holdfast_schemas import ALERT_NAMES, Incident, IncidentStatus, Sample

Alert = dict[str, Any]

TIMEOUT = httpx.Timeout(5.0, connect=2.0)
MAX_TEXT = 300
MAX_CHECKS = 5
"""Checks named in a text; the others are counted."""


class AlertmanagerError(Exception):
    """The Alertmanager did not take the alerts; the message says why, and what to do, and holds no secret."""


class AlertsRefused(AlertmanagerError):  # noqa: N818  an answer, not a failure
    """An alert among them is wrong; the Alertmanager may have taken the others."""


class Alertmanager:
    """One Alertmanager. Raises AlertmanagerError at once for a login or a CA that cannot be read."""

    def __init__(self, url: str, settings: NotifySettings) -> None:
        self.url = url
        login = _Login(settings)
        login.header()
        try:
            tls = tls_context(settings.ssl_ca_file, settings.ssl_cert_file, settings.ssl_key_file)
        except ValueError as error:
            raise AlertmanagerError(f"Configuration refused: notify: {error}.") from None
        # What the environment says of proxies and logins was not meant for this.
        self._client = httpx.AsyncClient(verify=tls, auth=login, timeout=TIMEOUT, trust_env=False)

    async def post(self, alerts: Sequence[Alert]) -> None:
        """Hand over the alerts; with none it still tells whether they would be taken. Raises AlertmanagerError."""
        answer = await self._request("POST", "/api/v2/alerts", json=list(alerts))
        if answer.status_code in (400, 413, 422):
            raise AlertsRefused(f"{self.url} refuses an alert: {cut(answer.text.strip(), MAX_TEXT)}.")
        if answer.headers.get("content-type", "").startswith("text/html"):
            raise AlertmanagerError(f"{self.url} answers with a web page. Check notify.alertmanager_urls.")
        self._check(answer)

    async def clock(self) -> datetime | None:
        """Its time, if it says so, once it is ready. Raises AlertmanagerError."""
        answer = await self._request("GET", "/-/ready")
        self._check(answer)
        date = answer.headers.get("Date")
        return parsedate_to_datetime(date) if date else None

    async def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return await self._client.request(method, self.url + path, **content)
        except (httpx.HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise AlertmanagerError(
                f"{self.url} does not answer: {reason}. Start it, or set notify.alertmanager_urls."
            ) from None

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (401, 403):
            raise AlertmanagerError(
                f"{self.url} refuses the login (HTTP {answer.status_code}). Check notify.username, "
                "notify.password_file or notify.bearer_token_file."
            )
        if not answer.is_success:
            raise AlertmanagerError(
                f"{self.url} answers HTTP {answer.status_code}. See its log, and check notify.alertmanager_urls."
            )

    async def close(self) -> None:
        await self._client.aclose()


class _Login(httpx.Auth):
    def __init__(self, settings: NotifySettings) -> None:
        self._settings = settings

    def header(self) -> str | None:
        """The Authorization header. Raises AlertmanagerError."""
        s = self._settings
        try:
            token = secret("bearer_token_file", s.bearer_token, s.bearer_token_file)
            password = secret("password_file", s.password, s.password_file)
        except ValueError as error:
            raise AlertmanagerError(f"Configuration refused: notify.{error}.") from None
        if token is not None:
            # Refused here, because a client that refuses it would quote it.
            if not token.isprintable() or not token.isascii():
                raise AlertmanagerError("notify.bearer_token is not one line of ASCII text. Write it as one line.")
            return f"Bearer {token}"
        if password is not None:
            return "Basic " + base64.b64encode(f"{s.username}:{password}".encode()).decode()
        return None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if (header := self.header()) is not None:
            request.headers["Authorization"] = header
        yield request


def alert(incident: Incident, *, console_url: str, now: datetime, lasts: timedelta) -> Alert:
    """The incident as an alert: firing for `lasts` from `now` on, or ended when it was resolved."""
    # The switch's clock may be ahead: what ends in the future fires until then.
    starts = min(incident.opened_at, now)
    over = incident.status is IncidentStatus.RESOLVED
    ends = max(min(incident.resolved_at or now, now), starts) if over else now + lasts
    link = f"{console_url.rstrip('/')}/?q={quote(incident.incident_id, safe='')}"
    annotations = {
        "summary": _summary(incident),
        "description": _description(incident),
        "status": incident.status.value,
        "policy": incident.policy,
        "routed_to": incident.routed_to,
        "serves": incidents.serving(incident),
        "acknowledged_by": incident.acknowledged_by,
        "resolved_by": incident.resolved_by,
        "resolved_because": incident.resolved_because and cut(incident.resolved_because, MAX_TEXT),
        "worst_sample": _worst_sample(incident.samples),
        "runbook_url": incident.runbook_url,
        "console_url": link,
    }
    return {
        "labels": {
            "alertname": ALERT_NAMES[incident.action],
            "severity": incident.severity.value,
            "service": "holdfast",
            "model": incident.model,
            "bad_version": incident.bad_version,
            "dedup_key": incident.dedup_key,
            "incident_id": incident.incident_id,
        },
        "annotations": {name: text for name, text in annotations.items() if text},
        "startsAt": starts.isoformat(),
        "endsAt": ends.isoformat(),
        "generatorURL": link,
    }


def _summary(incident: Incident) -> str:
    text = incidents.headline(incident)
    if incident.blocked:
        text += f" ({incident.blocked:,} of {incident.seen:,} outputs blocked)"
    return cut(text, 2 * MAX_TEXT)


def _description(incident: Incident) -> str:
    lines = []
    if incident.status is IncidentStatus.ACKNOWLEDGED:
        lines.append(f"{incident.acknowledged_by or 'Somebody'} has it{_at(' since', incident.acknowledged_at)}")
    if incident.status is IncidentStatus.RESOLVED:
        because = f": {incident.resolved_because}" if incident.resolved_because else ""
        lines.append(f"Resolved by {incident.resolved_by or 'somebody'}{_at(' at', incident.resolved_at)}{because}")
    lines.append(incidents.what_was_done(incident))
    lines.append(incidents.how_it_stands(incident))
    lines.append(advice(incident))
    lines.append(f"Blocked: {incident.blocked:,} of {incident.seen:,}{_by_check(incident.blocked_by_check)}")
    lines.append(incidents.what_consumers_have(incident))
    if worst := _worst_sample(incident.samples):
        lines.append(f"Worst: {worst}")
    times = _at("First blocked at", incident.first_blocked_at), _at("route changed at", incident.switched_at)
    lines.append(", ".join(time for time in times if time))
    return "\n".join(f"{cut(line, 2 * MAX_TEXT)}." for line in lines if line)


def _at(words: str, time: datetime | None) -> str:
    return f"{words} {time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC" if time else ""


def _by_check(blocked: Mapping[str, int]) -> str:
    ranked = sorted(blocked.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{cut(check)} {count:,}" for check, count in ranked[:MAX_CHECKS]]
    if len(ranked) > MAX_CHECKS:
        named.append(f"and {len(ranked) - MAX_CHECKS} more checks")
    return f" (by {', '.join(named)})" if named else ""


def _worst_sample(samples: Sequence[Sample]) -> str:
    """The finding that is farthest from its limit, in words; empty without evidence."""
    if (worst := findings.worst(samples)) is None:
        return ""
    sample, finding = worst
    prediction = findings.prediction_id(sample)
    which = f"{findings.entity(sample) or sample.source}{f' (prediction {prediction})' if prediction else ''}"
    return cut(f"{which}: {findings.in_words(finding)}", 2 * MAX_TEXT)
