"""Incidents as alerts: what identifies one, which sample is shown, how long a text can get; and the settings."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.adapters.alertmanager import Alert, Alertmanager, AlertmanagerError, alert
from holdfast.settings import SettingsError, load_settings
from holdfast_schemas import (
    MAX_INTEGER,
    Finding,
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    RouteState,
    Sample,
    Severity,
)

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
LASTS = timedelta(minutes=15)
MAX_ANNOTATION = 4000
"""Characters; PagerDuty and Slack take far more, and nobody reads as much at night."""


def a_finding(seen: Any, limit: Any, check: str = "c", *, enforced: bool = True) -> Finding:
    return Finding(check=check, severity=Severity.ERROR, enforced=enforced, field="value", seen=seen, limit=limit)


def an_incident(*samples: tuple[Any, Finding], **changes: Any) -> Incident:
    fields: dict[str, Any] = {
        "incident_id": "i-1",
        "dedup_key": "holdfast/pricing/v42",
        "status": IncidentStatus.TRIGGERED,
        "severity": IncidentSeverity.CRITICAL,
        "model": "pricing",
        "bad_version": "v42",
        "routed_to": "v41",
        "action": IncidentAction.SWITCHED,
        "opened_at": NOW,
        "seen": 50,
        "blocked": 37,
        "blocked_by_check": {"c": 37},
        "samples": tuple(Sample(source="p/0/1", prediction=p, findings=(f,)) for p, f in samples),
        "policy": "pricing@0123456789ab",
        "runbook_url": "https://runbooks.example/x.md",
    }
    return Incident(**fields | changes)


def as_alert(incident: Incident, now: datetime = NOW) -> Alert:
    return alert(incident, console_url="https://console.example/", now=now, lasts=LASTS)


def test_a_page_names_the_policy_change_before_the_trip() -> None:
    """With the command that undoes it; without such a change, and once it is resolved, it says nothing of a policy."""
    changed = {"policy_since": NOW - timedelta(seconds=4), "policy_before": "pricing@00000000001d"}
    told = as_alert(an_incident(**changed))["annotations"]["description"]
    assert "The policy pricing@0123456789ab was taken up 4s before, in place of pricing@00000000001d." in told
    assert "holdfast policy undo-trips pricing --policy pricing@0123456789ab --reason" in told
    resolved = an_incident(**changed, status=IncidentStatus.RESOLVED, resolved_at=NOW)
    for quiet in (an_incident(), resolved):
        assert "policy" not in as_alert(quiet)["annotations"]["description"]


@pytest.mark.parametrize(
    ("findings", "worst"),
    [
        # 100 for 13,000 is worse than 20,000 for 13,000, although the distance is less.
        ([a_finding(20_000, {"max": 13_000}), a_finding(100.0, {"min": 12_000.0})], 1),
        ([a_finding(240.0, {"min": 250.0}), a_finding(9.6, {"min": 250.0}), a_finding(100.0, {"min": 250.0})], 1),
        ([a_finding(1.0, {"min": 10.0}), a_finding(-1.0, {"min": 10.0})], 1),
        ([a_finding(1.0, {"min": 10.0}), a_finding("nan", "a finite number")], 1),
        ([a_finding(1e300, {"max": 10.0}), a_finding("-inf", None)], 1),
        ([a_finding("v42", "fenced at epoch 3"), a_finding(9.0, {"min": 10.0})], 1),
        ([a_finding({"value": 1.0, "cost": 9.0}, "value >= cost"), a_finding(9.0, {"min": 10.0})], 1),
        ([a_finding(1.0, {"min": 10.0}, enforced=False), a_finding(9.0, {"min": 10.0})], 1),
        ([a_finding(True, {"min": 10.0}), a_finding(9.0, {"min": 10.0})], 1),
        ([a_finding(10**400, {"max": 10.0}), a_finding(11.0, {"max": 10.0})], 0),
        ([a_finding(None, "a value")], 0),
    ],
)
def test_the_worst_sample_is_the_one_farthest_from_its_limit(findings: list[Finding], worst: int) -> None:
    """By ratio rather than by distance; what blocked goes before what only watched."""
    incident = an_incident(*(({"entity_id": f"SKU-{n}"}, finding) for n, finding in enumerate(findings)))
    assert as_alert(incident)["annotations"]["worst_sample"].startswith(f"SKU-{worst}: value ")


@pytest.mark.parametrize(
    ("prediction", "finding", "words"),
    [
        (
            {"entity_id": "SKU-1"},
            a_finding(9.600000001, {"min": 250.0, "max": 25000.0}),
            "SKU-1: value 9.600000001, expected 250 to 25,000 (c)",
        ),
        ({"other": 1}, a_finding("inf", None), "p/0/1: value inf (c)"),
        ("not JSON", a_finding(None, "a value"), "p/0/1: value nothing, expected a value (c)"),
        ({"entity_id": 7}, a_finding("USD", ["EUR", "GBP"]), "7: value USD, expected EUR or GBP (c)"),
        ({"entity_id": "a\nb"}, a_finding({"x": 1.0}, "x > 2"), "a b: value x 1, expected x > 2 (c)"),
    ],
)
def test_a_sample_reads_as_a_sentence(prediction: Any, finding: Finding, words: str) -> None:
    """Entity, field, what was seen and what the limit is; without an entity, where the prediction is."""
    assert as_alert(an_incident((prediction, finding)))["annotations"]["worst_sample"] == words


@pytest.mark.parametrize(
    ("action", "routed_to", "name", "says"),
    [
        (IncidentAction.SWITCHED, "v41", "HoldfastVersionSwitched", "v41 serves instead"),
        (IncidentAction.FENCED, "v41", "HoldfastVersionFenced", "the route did not change"),
        (IncidentAction.HELD, None, "HoldfastRouteHeld", "no version may serve"),
    ],
)
def test_what_was_done_names_the_alert(action: IncidentAction, routed_to: str | None, name: str, says: str) -> None:
    made = as_alert(an_incident(action=action, routed_to=routed_to))
    assert made["labels"]["alertname"] == name
    assert says in made["annotations"]["summary"]


SWITCHED, FENCED, HELD = IncidentAction.SWITCHED, IncidentAction.FENCED, IncidentAction.HELD
OVER = {"status": IncidentStatus.RESOLVED, "resolved_at": NOW, "resolved_by": "holdfast"}


@pytest.mark.parametrize(
    ("action", "routed_to", "state", "serves", "more", "summary"),
    [
        (SWITCHED, "v41", None, None, {}, "pricing v42 was bad and is fenced, v41 serves instead"),
        (SWITCHED, "v41", "auto", "v41", {}, "pricing v42 was bad and is fenced, v41 serves instead"),
        (SWITCHED, "v41", "pinned", "v40", {}, "pricing v42 was bad and is fenced, v40 serves now"),
        (SWITCHED, "v41", "auto", "v41", OVER, "pricing v42 was bad and was fenced, v41 serves instead"),
        (
            SWITCHED,
            "v41",
            "held",
            None,
            {},
            "pricing v42 was bad and is fenced, and the model is held by now: no version may serve",
        ),
        (FENCED, "v41", None, None, {}, "pricing v42 was bad and is fenced, the route did not change"),
        (FENCED, "v41", "auto", "v41", {}, "pricing v42 was bad and is fenced, the route did not change"),
        (FENCED, "v41", "auto", "v43", {}, "pricing v42 was bad and is fenced, v43 serves now"),
        (FENCED, None, "auto", None, {}, "pricing v42 was bad and is fenced, no version serves"),
        (HELD, None, None, None, {}, "pricing is held: v42 was bad, and no version may serve"),
        (HELD, None, "held", None, {}, "pricing is held: v42 was bad, and no version may serve"),
        (HELD, None, "auto", "v43", OVER, "pricing was held because v42 was bad, v43 serves now"),
    ],
)
def test_a_page_says_what_serves_now(
    action: IncidentAction, routed_to: str | None, state: str | None, serves: str | None, more: Any, summary: str
) -> None:
    """Not what served when the incident was opened; an incident from before that was followed says what it knows."""
    route = {"route_state": state and RouteState(state), "serves": serves}
    annotations = as_alert(an_incident(action=action, routed_to=routed_to, blocked=0, seen=0, **route, **more))[
        "annotations"
    ]
    assert annotations["summary"] == summary
    blocks_all = (
        "Every output of pricing is blocked until a version is promoted or resumed." in annotations["description"]
    )
    assert blocks_all is (state == "held" or (action is HELD and state is None))
    for other in {"v40", "v41", "v43"} - {serves if state else routed_to}:
        assert f"{other} serves" not in annotations["summary"] + annotations["description"]


def test_a_page_says_what_consumers_have_and_why_it_is_over() -> None:
    """Only blocked outputs reached nobody: those of the bad version that passed its checks are counted."""
    lines = as_alert(an_incident(**OVER, resolved_because="the route is held no longer: v43 serves"))["annotations"][
        "description"
    ].splitlines()
    assert "Resolved by holdfast at 2026-11-24 10:00:00.000 UTC: the route is held no longer: v43 serves." in lines
    assert "Approved before: at least 13. Consumers may have acted on these." in lines
    all_blocked = as_alert(an_incident(seen=37))["annotations"]["description"]
    assert "onsumers" not in all_blocked


@pytest.mark.parametrize(
    ("changes", "starts", "ends"),
    [
        ({}, NOW, NOW + LASTS),
        ({"opened_at": NOW - timedelta(days=3)}, NOW - timedelta(days=3), NOW + LASTS),
        # A switch whose clock is ahead, or went back: what ends in the future fires on, and Alertmanager refuses an
        # end before the start.
        ({"opened_at": NOW + timedelta(hours=1)}, NOW, NOW + LASTS),
        (
            {
                "status": IncidentStatus.RESOLVED,
                "opened_at": NOW + timedelta(hours=1),
                "resolved_at": NOW + timedelta(hours=2),
            },
            NOW,
            NOW,
        ),
        ({"status": IncidentStatus.RESOLVED, "resolved_at": NOW + timedelta(hours=1)}, NOW, NOW),
        ({"status": IncidentStatus.RESOLVED, "resolved_at": NOW}, NOW, NOW),
        ({"status": IncidentStatus.RESOLVED, "resolved_at": NOW - timedelta(hours=1)}, NOW, NOW),
        ({"status": IncidentStatus.RESOLVED}, NOW, NOW),
    ],
)
def test_an_open_incident_ends_later_and_a_resolved_one_when_it_was(
    changes: dict[str, Any], starts: datetime, ends: datetime
) -> None:
    made = as_alert(an_incident(**changes))
    assert (datetime.fromisoformat(made["startsAt"]), datetime.fromisoformat(made["endsAt"])) == (starts, ends)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}\Z")
incidents = st.builds(
    Incident,
    incident_id=st.text(min_size=1),
    dedup_key=st.text(min_size=1, max_size=500),
    status=st.sampled_from(IncidentStatus),
    severity=st.sampled_from(IncidentSeverity),
    model=names,
    bad_version=names,
    routed_to=st.none() | names,
    action=st.sampled_from(IncidentAction),
    opened_at=st.just(NOW),
    first_blocked_at=st.none() | st.just(NOW),
    switched_at=st.none() | st.just(NOW),
    acknowledged_at=st.none() | st.just(NOW),
    acknowledged_by=st.none() | st.text(max_size=1000),
    resolved_at=st.none() | st.just(NOW),
    resolved_by=st.none() | st.text(max_size=1000),
    resolved_because=st.none() | st.text(max_size=1000),
    route_state=st.none() | st.sampled_from(RouteState),
    serves=st.none() | names,
    seen=st.integers(0, MAX_INTEGER),
    blocked=st.integers(0, MAX_INTEGER),
    blocked_by_check=st.dictionaries(st.text(max_size=2000), st.integers(0, 10**12), max_size=20),
    samples=st.lists(
        st.builds(
            Sample,
            source=st.just("p/0/1"),
            prediction=anything | st.just({"entity_id": "x" * 100_000}),
            findings=st.lists(
                st.builds(
                    Finding,
                    check=st.text(max_size=2000),
                    severity=st.sampled_from(Severity),
                    enforced=st.booleans(),
                    field=st.none() | st.text(max_size=2000),
                    seen=anything | st.just("y" * 100_000),
                    limit=anything | st.just({"min": 1.0, "max": 2.0}),
                    unit=st.none() | st.text(),
                ),
                max_size=3,
            ).map(tuple),
        ),
        max_size=5,
    ).map(tuple),
    policy=st.just("pricing@0123456789ab"),
    runbook_url=st.just("https://runbooks.example/x.md"),
)


@given(incidents, incidents)
def test_every_incident_has_words_within_bounds_and_an_identity_that_stays(one: Incident, other: Incident) -> None:
    """Whatever predictions say; nothing that may change in an incident's life is a label."""
    made = as_alert(one)
    json.dumps(made, allow_nan=False).encode()
    assert all(0 < len(text) <= MAX_ANNOTATION for text in made["annotations"].values())
    lasting = {"incident_id", "dedup_key", "severity", "model", "bad_version", "action"}
    later = one.model_copy(
        update={name: getattr(other, name) for name in type(one).model_fields if name not in lasting}
    )
    assert as_alert(later, NOW + timedelta(hours=1))["labels"] == made["labels"]


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ({"alertmanager_urls": []}, "names no Alertmanager"),
        ({"alertmanager_urls": ["alertmanager:9093"]}, "no http address"),
        ({"alertmanager_urls": ["http://am:9093", "http://am:9093/"]}, "names an Alertmanager twice"),
        ({"alertmanager_urls": ["https://ada:hunter2@am:9093"]}, "holds a login"),
        ({"username": "ada"}, "a login needs username, and password or password_file"),
        ({"password": "hunter2"}, "a login needs username, and password or password_file"),
        ({"username": "ada", "password": "hunter2", "password_file": "p"}, "password and password_file are both set"),
        ({"username": "ada", "password": "hunter2", "bearer_token": "hunter2"}, "a password and a bearer token"),
        ({"alertmanager_urls": ["http://am:9093"], "bearer_token": "hunter2"}, "would go to am without TLS"),
        ({"ssl_key_file": "k"}, "set ssl_cert_file too"),
        ({"alert_lasts": "1m"}, "less than three times resend_every"),
    ],
)
def test_settings_that_would_tell_nobody_or_everybody_are_refused(notify: dict[str, Any], says: str) -> None:
    """Naming what to do, and without the secret."""
    with pytest.raises(SettingsError) as refused:
        load_settings(notify=notify)
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("notify", "content", "says"),
    [
        ({"bearer_token_file": "secret"}, None, "cannot be read"),
        ({"bearer_token_file": "secret"}, "", "is empty"),
        ({"bearer_token_file": "secret"}, "hunter2\nhunter2", "not one line of ASCII text"),
        ({"username": "ada", "password_file": "secret"}, None, "cannot be read"),
        ({"ssl_ca_file": "secret"}, "hunter2", "cannot be used"),
    ],
)
def test_a_secret_that_cannot_be_used_is_said_at_once(
    notify: dict[str, Any], content: str | None, says: str, tmp_path: Path
) -> None:
    """Naming the setting, and never quoting it."""
    if content is not None:
        (tmp_path / "secret").write_text(content)
    settings = load_settings(notify={k: str(tmp_path / v) if v == "secret" else v for k, v in notify.items()})
    with pytest.raises(AlertmanagerError) as refused:
        Alertmanager("http://localhost:9093", settings.notify)
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)
