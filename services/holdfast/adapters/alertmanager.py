"""Incidents as alerts of Alertmanager's v2 API.

An alert's labels are its identity: they never change while an incident lives, and every notify gives the same.
The incident's id is one of them, since a version that trips again is news although the last time is just over.
What changes (status, counts, who has it) is in the annotations. Every text is bounded.
"""

import base64
import json
import math
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from holdfast.login import secret, tls_context
from holdfast.settings import NotifySettings
from holdfast_schemas import ALERT_NAMES, Finding, Incident, IncidentAction, IncidentStatus, Sample

Alert = dict[str, Any]

TIMEOUT = httpx.Timeout(5.0, connect=2.0)
MAX_NAME = 80
"""Characters of an entity or a value in a text."""
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
                raise AlertmanagerError("notify.bearer_token is not one line of ASCII text. Write it anew.")
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
        "acknowledged_by": incident.acknowledged_by,
        "resolved_by": incident.resolved_by,
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
    bad = f"{incident.model} {incident.bad_version}"
    match incident.action:
        case IncidentAction.SWITCHED:
            text = f"{bad} was bad and is fenced, {incident.routed_to or 'another version'} serves instead"
        case IncidentAction.FENCED:
            text = f"{bad} was bad and is fenced, the route did not change"
        case IncidentAction.HELD:
            text = f"{incident.model} is held: {incident.bad_version} was bad, and no version may serve"
    if incident.blocked:
        text += f" ({incident.blocked:,} of {incident.seen:,} outputs blocked)"
    return cut(text, 2 * MAX_TEXT)


def _description(incident: Incident) -> str:
    lines = []
    if incident.status is IncidentStatus.ACKNOWLEDGED:
        lines.append(f"{incident.acknowledged_by or 'Somebody'} has it{_at(' since', incident.acknowledged_at)}.")
    if incident.status is IncidentStatus.RESOLVED:
        lines.append(f"Resolved by {incident.resolved_by or 'somebody'}{_at(' at', incident.resolved_at)}.")
    match incident.action:
        case IncidentAction.SWITCHED:
            lines.append(f"The route moved from {incident.bad_version} to {incident.routed_to or 'another version'}.")
        case IncidentAction.FENCED:
            serving = f": {incident.routed_to} serves" if incident.routed_to else ""
            lines.append(f"{incident.bad_version} was not active, so the route stays{serving}.")
        case IncidentAction.HELD:
            lines.append(f"Every output of {incident.model} is blocked until a version is promoted or resumed.")
    lines.append(f"Blocked: {incident.blocked:,} of {incident.seen:,}{_by_check(incident.blocked_by_check)}.")
    if worst := _worst_sample(incident.samples):
        lines.append(f"Worst: {worst}.")
    times = _at("First blocked at", incident.first_blocked_at), _at("route changed at", incident.switched_at)
    if told := ", ".join(time for time in times if time):
        lines.append(f"{told}.")
    return "\n".join(cut(line, 2 * MAX_TEXT) for line in lines)


def _at(words: str, time: datetime | None) -> str:
    return f"{words} {time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC" if time else ""


def _by_check(blocked: Mapping[str, int]) -> str:
    ranked = sorted(blocked.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{cut(check, MAX_NAME)} {count:,}" for check, count in ranked[:MAX_CHECKS]]
    if len(ranked) > MAX_CHECKS:
        named.append(f"and {len(ranked) - MAX_CHECKS} more checks")
    return f" (by {', '.join(named)})" if named else ""


def _worst_sample(samples: Sequence[Sample]) -> str:
    """The finding that is farthest from its limit, in words; empty without evidence."""
    found = [(sample, finding) for sample in samples for finding in sample.findings]
    if not found:
        return ""
    sample, finding = max(found, key=lambda pair: (pair[1].enforced, _deviation(pair[1])))
    entity = sample.prediction.get("entity_id") if isinstance(sample.prediction, dict) else None
    field = f"{finding.field} " if finding.field else ""
    unit = f" {finding.unit}" if finding.unit else ""
    return cut(
        f"{_words(entity) if entity is not None else sample.source}: {field}{_words(finding.seen)}{unit}, "
        f"limit {_words(finding.limit)}{unit} (check {finding.check})",
        2 * MAX_TEXT,
    )


def _deviation(finding: Finding) -> float:
    """How far a number is beyond its bound, on a scale on which 100 times too low is as far as 100 times too high.

    A number that is none is farther than every number; what has no numeric bound is nearer than all.
    """
    if finding.seen in ("nan", "inf", "-inf"):
        return math.inf
    seen, limit = _number(finding.seen), finding.limit
    if seen is None or not isinstance(limit, dict):
        return -1.0
    low, high = _number(limit.get("min")), _number(limit.get("max"))
    if low is not None and seen < low:
        return math.asinh(low) - math.asinh(seen)
    if high is not None and seen > high:
        return math.asinh(seen) - math.asinh(high)
    return -1.0


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _words(value: object) -> str:
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, dict):
        text = ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    elif isinstance(value, str):
        text = value
    else:
        text = "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return cut(" ".join(text.split()), MAX_NAME if isinstance(value, str) else 2 * MAX_NAME)


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
