"""What the console says of the state of things, rendered from a read model without servers."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from aiokafka.structs import ConsumerRecord

from holdfast.adapters.policies_here import PoliciesHere, PolicyHere
from holdfast.api.console import Console, View
from holdfast.api.read_model import Board
from holdfast.api.tokens import Principal, Role
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.model_state import ModelState, Version, VersionState
from holdfast.core.policy import parse_policy
from holdfast.core.shadow import Report
from holdfast.settings import TopicNames
from holdfast_schemas import (
    AuditRecord,
    Finding,
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    Outcome,
    Route,
    RouteState,
    Sample,
    Severity,
    ShadowTally,
    Tally,
)

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def a_route(model: str = "pricing", version: str | None = "v41", state: RouteState = RouteState.AUTO) -> Route:
    return Route(model=model, version=version, epoch=3, state=state, reason="release", actor="ci", since=NOW)


def an_incident(**changes: Any) -> Incident:
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
        "policy": "pricing@0123456789ab",
        "runbook_url": "https://runbooks.example/x.md",
        "route_state": RouteState.AUTO,
        "serves": "v41",
    }
    return Incident(**fields | changes)


def page(*things: Route | Incident | ModelState | PoliciesHere, view: View | None = None) -> str:
    board = Board(TopicNames(), keep_incidents=100, keep_audit=100)
    for one in things:
        match one:
            case PoliciesHere():
                board.take_policies(one)
            case Route():
                board.routes[one.model] = one
            case ModelState():
                board.states[one.model] = one
            case Incident():
                board.incidents[one.incident_id] = one
    return Console(board).page(view or View(), Principal("ann", Role.ADMIN), may_leave=False)


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


ACKNOWLEDGED = {"status": IncidentStatus.ACKNOWLEDGED, "acknowledged_by": "ann", "acknowledged_at": NOW}
RESOLVED = {"status": IncidentStatus.RESOLVED, "resolved_by": "ann", "resolved_at": NOW}
WARNING = {"severity": IncidentSeverity.WARNING}
HELD = a_route(version=None, state=RouteState.HELD)


@pytest.mark.parametrize(
    ("things", "says", "look"),
    [
        ([], "No model yet", "fine"),
        ([a_route()], "All is well", "fine"),
        ([a_route(), an_incident(**RESOLVED)], "All is well", "fine"),
        ([a_route(), an_incident()], "1 incident needs somebody", "bad"),
        ([a_route(), an_incident(**WARNING)], "1 incident needs somebody", "bad"),
        ([a_route(), an_incident(**ACKNOWLEDGED)], "1 critical incident is open", "bad"),
        ([a_route(), an_incident(**ACKNOWLEDGED, **WARNING)], "1 incident is open", "look"),
        ([HELD], "1 model is held", "bad"),
        ([HELD, an_incident(**ACKNOWLEDGED)], "1 model is held", "bad"),
    ],
)
def test_all_is_well_only_where_nothing_is_open(things: list[Any], says: str, look: str) -> None:
    """Whether somebody has acknowledged it or not; red over what is critical or needs somebody."""
    html = page(*things)
    assert re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)[1].strip() == says  # type: ignore[index]
    assert f'class="headline {look}"' in html


def test_a_model_without_a_version_is_named() -> None:
    """All may be well with it, but no version of it serves."""
    assert "No incident is open. pricing has no version yet." in text(page(a_route(version=None)))
    assert "Every model has a version that serves." in text(page(a_route()))


def test_a_card_says_what_serves_now_and_what_consumers_have() -> None:
    """A version that was fenced since is not named as serving; what passed the checks was not blocked."""
    shown = text(page(HELD, an_incident(route_state=RouteState.HELD, serves=None)))
    assert "The route moved from v42 to v41. Every output of pricing is blocked until" in shown
    assert "37 of 50 outputs blocked (74 %). Approved before: at least 13. Consumers may have acted on these." in shown
    moved = text(page(a_route(version="v40"), an_incident(serves="v40")))
    assert "The route moved from v42 to v41. v40 serves now." in moved


def test_a_resolved_card_says_why() -> None:
    over = an_incident(action=IncidentAction.HELD, **RESOLVED, resolved_because="the route is held no longer")
    assert "“the route is held no longer” ann" in text(page(a_route(), over, view=View(resolved=True)))


def test_counts_since_activation_are_labelled_so() -> None:
    """And shown only of versions that were activated: of the others nothing is counted."""
    state = ModelState(
        model="pricing",
        versions={
            "v41": Version(state=VersionState.GOOD, activated=3, active_since=NOW, approved=1234),
            "v42": Version(state=VersionState.FENCED, activated=2, active_since=NOW),
            "canary": Version(),
        },
    )
    html = page(a_route(), state)
    assert "Approved since activation" in text(html)
    assert 'title="since 2026-11-24 10:00:00 UTC">1,234<' in html
    counts = re.findall(r'<td class="right"><span[^>]*>([^<]*)</span></td>', html)
    assert (counts[0], {ord(one) for one in counts[1:]}) == ("1,234", {0x2013})


def test_evidence_is_in_words() -> None:
    """No notation of a programming language, whatever the limits look like."""
    found = (
        Finding(check="floor", severity=Severity.ERROR, enforced=True, field="value", seen=1.0, limit={"min": 10}),
        Finding(
            check="rule",
            severity=Severity.ERROR,
            enforced=True,
            seen={"value": 1.0, "features.cost": None},
            limit={"of": {"x": [None]}},
        ),
    )
    samples = (Sample(source="p/0/1", prediction={"entity_id": "SKU-1"}, findings=found),)
    shown = text(page(a_route(), an_incident(samples=samples)))
    assert "floor value 1 at least 10" in shown
    assert "value 1, features.cost nothing of x nothing" in shown
    assert "{" not in shown


def test_predictions_without_a_key_are_told_of_for_a_day() -> None:
    """In the model's row and in words below it; not those of long ago."""
    recent = ModelState(model="pricing", keyless=1200, keyless_at=datetime.now(UTC))
    shown = text(page(a_route(), recent))
    assert "pricing no keys" in shown
    assert "1,200 predictions had no key" in shown
    old = recent.model_copy(update={"keyless_at": datetime.now(UTC) - timedelta(days=2)})
    assert "had no key" not in text(page(a_route(), old))


def here(**policy: Any) -> PoliciesHere:
    """The policy of pricing, as the files say it."""
    return PoliciesHere({"pricing": PolicyHere.of(parse_policy({"model": "pricing", **policy}, "pricing.toml"))})


def floor(name: str = "floor", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "range", "min": 10, **more}


@pytest.mark.parametrize(
    ("policy", "tag", "sentence"),
    [
        ({"mode": "shadow", "checks": [floor()]}, "pricing shadow", "pricing is in shadow: no check of it blocks."),
        (
            {"checks": [floor(), floor("low", mode="shadow")]},
            "pricing 1 in shadow",
            "The check low is in shadow: it blocks nothing.",
        ),
        (
            {"checks": [floor("a", mode="shadow"), floor("b", mode="shadow"), floor()]},
            "pricing 2 in shadow",
            "Checks in shadow, which block nothing: a, b.",
        ),
        ({"mode": "off", "checks": [floor()]}, "pricing checks off", "The checks of pricing are off"),
    ],
)
def test_what_is_in_shadow_is_said(policy: dict[str, Any], tag: str, sentence: str) -> None:
    """In the model's row, and in words below it with the way to the report."""
    html = page(a_route(), here(**policy))
    assert tag in text(html)
    assert sentence in text(html)
    assert ('href="/shadow?model=pricing"' in html) == (policy.get("mode") != "off")


@pytest.mark.parametrize("checks", [[], [floor()], [floor(), floor("soft", severity="warning", mode="shadow")]])
def test_what_is_enforced_is_not_said_to_be_in_shadow(checks: list[dict[str, Any]]) -> None:
    """Nor a check that would not block either way."""
    assert "shadow" not in page(a_route(), here(checks=checks)).lower()


def test_refused_policies_are_told_above_everything() -> None:
    """With the reason; what guards judge by meanwhile is the policies before."""
    html = page(a_route(), PoliciesHere(refused="policies/pricing.toml: breaker.window: write '10m'"))
    assert re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)[1].strip() == "The new policies are refused"  # type: ignore[index]
    assert 'class="headline look"' in html
    assert "guards keep the policies they have. policies/pricing.toml: breaker.window: write" in text(html)


def tally(policy: str, at: datetime, **changes: Any) -> Tally:
    fields: dict[str, Any] = {
        "model": "pricing",
        "model_version": "v41",
        "policy": policy,
        "at": at,
        "worker": "w",
        "partition": 0,
        "first_offset": 0,
        "last_offset": 99,
        "seen": 100,
        "approved": 100,
        "blocked": 0,
        "failed": 0,
    }
    return Tally(**fields | changes)


def test_a_guard_that_judges_by_another_policy_is_told_of_until_none_does() -> None:
    """Not at once after a change: guards need a moment to take it up."""
    topics, files = TopicNames(), here(checks=[floor()])
    board = Board(topics, keep_incidents=100, keep_audit=100)
    board.routes["pricing"] = a_route()
    board.take_policies(files)

    def judged(policy: str, seconds: float) -> str:
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        value = tally(policy, at).model_dump_json(exclude_none=True).encode()
        when = int(at.timestamp() * 1000)
        record = ConsumerRecord(topics.control, 0, 0, when, 0, b"pricing", value, None, 7, len(value), [])
        revision = board.revision
        board.take([record])
        shown = text(Console(board).page(View(), Principal("ann", Role.ADMIN), may_leave=False))
        said = "A guard judges by pricing@0123456789ab , and the files here have " + files.policies["pricing"].id
        told.append((said in shown, board.revision > revision))
        return shown

    told: list[tuple[bool, bool]] = []
    here_id, other = files.policies["pricing"].id, "pricing@0123456789ab"
    for policy, seconds in ((other, 5), (here_id, 100), (other, 101), (other, 102), (here_id, 103), (here_id, 170)):
        judged(policy, seconds)
    # Said or not, and whether an open page is brought up to date.
    assert told == [(False, False), (False, False), (True, True), (True, False), (True, False), (False, True)]


def test_the_shadow_report_is_a_page() -> None:
    """What would have been blocked by check and segment, the worst, and whether it would have tripped."""
    board, report = Board(TopicNames(), keep_incidents=100, keep_audit=100), Report(BreakerPolicy())
    board.take_policies(here(mode="shadow", checks=[floor()]))
    found = Finding(check="floor", severity=Severity.ERROR, enforced=False, field="value", seen=1.0, limit={"min": 10})
    shadow = ShadowTally(
        failed=40,
        by_segment={"floor": {"DE": 30, "<FR>": 10}},
        entities=tuple(f"SKU-{n}" for n in range(10)),
        samples=(Sample(source="p/0/1", prediction={"entity_id": "SKU-1"}, findings=(found,)),),
    )
    report.add(NOW, tally("pricing@0123456789ab", NOW, shadow=shadow, shadow_by_check={"floor": 40, "soft": 2}))
    html = Console(board).shadow_page("pricing", "1h", report)
    shown = text(html)
    assert "pricing is in shadow: no check of it blocks." in shown
    assert "40 of 100 approved outputs would have been blocked (40 %). It would have tripped at" in shown
    assert "40 of 100 failed within" in shown
    assert "floor 40 DE 30 , &lt;FR&gt; 10 soft 2" in shown
    assert "SKU-1 floor value 1 at least 10" in shown
    empty = text(Console(board).shadow_page("other", "15m", Report(BreakerPolicy())))
    assert "The API has no policy of other." in empty
    assert "No output of it was judged in that time." in empty


def test_what_passes_unchecked_is_on_the_page() -> None:
    """Models without a policy, where those are approved, and checks that are off beside others that run."""
    board = Board(TopicNames(), keep_incidents=100, keep_audit=100)
    board.routes["pricing"] = a_route()
    off = here(checks=[floor(), floor(name="ceiling", mode="off")])
    board.take_policies(off)

    def shown() -> str:
        return text(Console(board).page(View(), Principal("ann", Role.ADMIN), may_leave=False))

    assert "Checks that are off, and do not run: ceiling." in shown()
    assert "without a policy" not in shown()
    board.no_policy_approves = True
    assert "Every output of a model without a policy is approved unchecked" in shown()
    assert "All is well" not in shown()
    board.no_policy_until = datetime.now(UTC) + timedelta(days=1)
    assert "in the configuration, until" in shown()
    board.no_policy_until = datetime.now(UTC)
    assert "without a policy" not in shown()


@pytest.mark.parametrize(("through", "told"), [("kafka", True), ("api", False), (None, False)])
def test_what_came_straight_to_kafka_is_marked(through: Literal["api", "kafka"] | None, told: bool) -> None:
    """In the time line, beside the name that it gave itself."""
    board = Board(TopicNames(), keep_incidents=100, keep_audit=100)
    board.routes["pricing"] = a_route()
    board.audit["a"] = AuditRecord(
        audit_id="a",
        at=NOW,
        model="pricing",
        actor="the-cfo",
        action="hold",
        outcome=Outcome.APPLIED,
        reason="x",
        detail="no version serves",
        through=through,
        epoch=4,
    )
    shown = text(Console(board).page(View(), Principal("ann", Role.ADMIN), may_leave=False))
    assert "the-cfo" in shown
    assert ("straight to Kafka" in shown) is told
