"""The console: what an on-call person sees of the board, as HTML.

One rendering serves the page and its updates. An update carries, for a view, the order of what is shown in each list
and the HTML of what has changed since the update before; the page's script puts that in place.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from holdfast.adapters.malformed import LATELY, LATEST, Found
from holdfast.adapters.policies_here import PolicyHere
from holdfast.api.read_model import Board
from holdfast.api.tokens import Principal
from holdfast.core import findings, incidents
from holdfast.core.commands import refusal
from holdfast.core.duration import format_duration
from holdfast.core.keyless import is_told
from holdfast.core.model_state import Version, VersionState
from holdfast.core.policy_change import advice
from holdfast.core.shadow import Report
from holdfast.core.visible import ESCAPES
from holdfast_schemas import (
    Action,
    Incident,
    IncidentSeverity,
    IncidentStatus,
    Route,
    RouteState,
    utc_now,
)

STATIC = {
    name: (files("holdfast.api.console").joinpath(name).read_bytes(), kind)
    for name, kind in (
        ("console.css", "text/css"),
        ("console.js", "text/javascript"),
        ("login.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    )
}
"""Content and media type of what the pages load, by name."""


class View(BaseModel):
    """What somebody looks at: the query of the page's address."""

    model_config = ConfigDict(frozen=True)

    q: Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)] = ""
    """Only what has this in its model, versions, id, people or reasons."""
    resolved: bool = False
    """Resolved incidents too."""
    incidents: int = Field(20, ge=1, le=1000)
    models: int = Field(50, ge=1, le=1000)
    decisions: int = Field(20, ge=1, le=1000)
    """How many of each list at most."""

    def address(self, **changes: Any) -> str:
        """The same view, but for `changes`."""
        changed = self.model_copy(update=changes).model_dump(mode="json", exclude_defaults=True)
        return "/?" + urlencode(changed) if changed else "/"


@dataclass(frozen=True, slots=True)
class Offer:
    """A command that fits how things stand, and what will happen."""

    action: Action
    label: str
    title: str
    effect: str
    model: str
    version: str = ""
    incident: str = ""
    policy: str = ""
    danger: bool = False
    wants: str = ""
    """What may be given beside the reason: `version`, `until`."""


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """One model, as it is shown."""

    name: str
    route: Route | None
    ends_at: datetime | None
    versions: Sequence[tuple[str, Version]]
    open: Sequence[Incident]
    history: Sequence[tuple[int, int]] | None
    """None: no prediction of it came since this process began."""
    approved: float
    blocked: float
    offers: Sequence[Offer]
    version_offers: dict[str, Sequence[Offer]]
    keyless: int
    """Predictions without a key; 0 where the last one was long ago."""
    policy: PolicyHere | None
    """By the files here."""
    other_policy: str | None
    """By which a guard judges instead."""


@dataclass(frozen=True, slots=True)
class _List:
    """One of the page's lists: what is shown of it, in order, by the id of its element; and when it changed."""

    shown: dict[str, Any]
    revisions: dict[str, int]
    total: int


class Console:
    """Renders the board for people."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._environment = Environment(
            loader=PackageLoader("holdfast.api.console", "."),
            autoescape=True,
            # Before the text is escaped for HTML.
            finalize=lambda value: value.translate(ESCAPES) if isinstance(value, str) else value,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "number": number,
            "rate": rate,
            "share": share,
            "utc": utc,
            "ago": ago,
            "saw": findings.saw,
            "expected": findings.expected,
            "worst": findings.worst,
            "worst_first": findings.worst_first,
            "entity": findings.entity,
            "prediction_id": findings.prediction_id,
            "what_was_done": incidents.what_was_done,
            "how_it_stands": incidents.how_it_stands,
            "what_consumers_have": incidents.what_consumers_have,
            "policy_advice": advice,
            "spark": spark,
        }
        self._environment.globals |= {"incident_offers": _incident_offers, "in_shadow": in_shadow}
        self._parts: Any = self._environment.get_template("parts.html").module

    def page(self, view: View, who: Principal, *, may_leave: bool) -> str:
        """The whole page; the state of things reads without any script."""
        lists = self._lists(view, who)
        return self._environment.get_template("page.html").render(
            view=view,
            who=who,
            may_leave=may_leave,
            now=utc_now(),
            headline=self._parts.headline(self._headline(who)),
            rendered={
                name: [self._render(name, key, thing, who) for key, thing in one.shown.items()]
                for name, one in lists.items()
            },
            more={name: self._parts.more(name, len(one.shown), one.total, view) for name, one in lists.items()},
        )

    def shadow_page(self, model: str, since: str, report: Report) -> str:
        """What checks in shadow would have blocked; the version seen last comes first."""
        return self.other_page(
            "shadow.html",
            model=model,
            since=since,
            policy=self._board.policies.policies.get(model),
            first=report.first,
            versions=report.facts()[::-1],
        )

    def other_page(self, name: str, **facts: Any) -> str:
        return self._environment.get_template(name).render(**facts)

    def update(self, view: View, who: Principal, sent: dict[str, int]) -> dict[str, Any]:
        """What to change on a page that shows everything in `sent`; notes there what it shows then."""
        lists = self._lists(view, who)
        html = {"headline": str(self._parts.headline(self._headline(who)))}
        for name, one in lists.items():
            html[f"{name}-more"] = str(self._parts.more(name, len(one.shown), one.total, view))
            for key, thing in one.shown.items():
                if sent.get(key) != one.revisions[key]:
                    sent[key] = one.revisions[key]
                    html[key] = str(self._render(name, key, thing, who))
        for gone in sent.keys() - {key for one in lists.values() for key in one.shown}:
            del sent[gone]
        return {"lists": {name: list(one.shown) for name, one in lists.items()}, "html": html}

    def rates(self, who: Principal) -> dict[str, Any]:
        """Of the last whole second, by model: approved and blocked, and the same on average of the last few."""
        now = int(time.time())
        return {
            "second": now - 1,
            "models": {
                name: [*rates.history(now)[-1], *rates.per_second(now)]
                for name, rates in self._board.rates.items()
                if who.sees(name)
            },
        }

    # What is shown

    def _lists(self, view: View, who: Principal) -> dict[str, _List]:
        board = self._board
        open_of = self._open_by_model()
        shown = [
            one
            for one in board.incidents.values()
            if who.sees(one.model)
            and (view.resolved or one.status is not IncidentStatus.RESOLVED or one.incident_id == view.q)
            and _matches(view.q, one.model, one.bad_version, one.incident_id, one.routed_to)
        ]
        shown.sort(key=_incident_rank)
        models = [
            name
            for name in board.models
            if who.sees(name)
            and _matches(view.q, name, *_versions_of(board, name), *(one.incident_id for one in open_of.get(name, ())))
        ]
        models.sort(key=lambda name: (_model_rank(board.routes.get(name), open_of.get(name, ())), name))
        decisions = [
            one
            for one in reversed(board.audit.values())
            if who.sees(one.model)
            and _matches(view.q, one.model, one.version, one.actor, one.action, one.reason, one.incident_id)
        ]
        return {
            "incidents": self._cut(
                [(one.incident_id, f"incident/{one.incident_id}", one) for one in shown], view.incidents
            ),
            "models": self._cut([(f"model:{name}", f"model/{name}", name) for name in models], view.models),
            "decisions": self._cut(
                [(f"decision:{one.audit_id}", f"audit/{one.audit_id}", one) for one in decisions], view.decisions
            ),
        }

    def _cut(self, found: Sequence[tuple[str, str, Any]], limit: int) -> _List:
        kept = found[:limit]
        revisions = {key: self._board.changed.get(thing, 0) for key, thing, _ in kept}
        return _List({key: thing for key, _, thing in kept}, revisions, len(found))

    def _open_by_model(self) -> dict[str, list[Incident]]:
        found: dict[str, list[Incident]] = {}
        for incident in self._board.open_incidents():
            found.setdefault(incident.model, []).append(incident)
        return found

    def _render(self, name: str, key: str, thing: Any, who: Principal) -> Any:
        match name:
            case "models":
                return self._parts.model(key, self._model(thing, who))
            case "incidents":
                return self._parts.incident(key, thing, [o for o in _incident_offers(thing) if who.may(o.action)])
            case _:
                return self._parts.decision(key, thing)

    def _model(self, name: str, who: Principal) -> ModelSeen:
        board, now = self._board, int(time.time())
        route, state, rates = board.routes.get(name), board.states.get(name), board.rates.get(name)
        versions = list((state.versions if state is not None else {}).items())
        versions.sort(key=lambda one: _version_rank(one[0], one[1], route))

        def offered(offers: Sequence[Offer]) -> list[Offer]:
            return [o for o in offers if state is not None and who.may(o.action) and refusal(state, o.action) is None]

        approved, blocked = rates.per_second(now) if rates is not None else (0.0, 0.0)
        return ModelSeen(
            name=name,
            route=route,
            ends_at=state.ends_at if state is not None else None,
            versions=versions,
            open=sorted((one for one in board.open_incidents() if one.model == name), key=_incident_rank),
            history=rates.history(now) if rates is not None else None,
            approved=approved,
            blocked=blocked,
            offers=offered(_model_offers(name, route, state.resume_to if state is not None else None)),
            policy=board.policies.policies.get(name),
            other_policy=board.other_policy.get(name, (None, None))[0],
            keyless=state.keyless if state is not None and is_told(state.keyless_at, utc_now()) else 0,
            version_offers={v: offered(_version_offers(name, v, known, route)) for v, known in versions},
        )

    def _headline(self, who: Principal) -> dict[str, Any]:
        board, now = self._board, int(time.time())
        routes = [one for one in board.routes.values() if who.sees(one.model)]
        still_open = [one for one in board.open_incidents() if who.sees(one.model)]
        rates = [one.per_second(now) for name, one in board.rates.items() if who.sees(name)]
        # Neither says of which models it is.
        malformed = board.malformed if who.models is None else Found()
        return {
            "models": sum(map(who.sees, board.models)),
            "held": sorted(one.model for one in routes if one.state is RouteState.HELD),
            "pinned": sum(one.state is RouteState.PINNED for one in routes),
            "triggered": sum(one.status is IncidentStatus.TRIGGERED for one in still_open),
            "critical": sum(one.severity is IncidentSeverity.CRITICAL for one in still_open),
            "open": len(still_open),
            "unserved": sorted(name for name in self._unserved() if who.sees(name)),
            "policies_refused": board.policies.refused if who.models is None else None,
            "no_policy_approves": board.approves_without_policy(utc_now()),
            "no_policy_until": board.no_policy_until,
            "malformed": malformed,
            "malformed_lately": format_duration(LATELY),
            # As many as one look reads: there may be more.
            "malformed_cut": malformed.count >= LATEST,
            "approved": sum(a for a, _ in rates),
            "blocked": sum(b for _, b in rates),
        }

    def _unserved(self) -> Iterator[str]:
        """The models that are not held and have no version."""
        for name in self._board.models:
            route = self._board.routes.get(name)
            if route is None or (route.version is None and route.state is not RouteState.HELD):
                yield name


# What comes first


def _matches(q: str, *texts: str | None) -> bool:
    return not q or any(q.lower() in text.lower() for text in texts if text)


def _versions_of(board: Board, name: str) -> list[str]:
    state = board.states.get(name)
    return list(state.versions) if state is not None else []


def _incident_rank(one: Incident) -> tuple[int, int, float]:
    """Open before resolved, nobody's before somebody's, worse before better, new before old."""
    status = [IncidentStatus.TRIGGERED, IncidentStatus.ACKNOWLEDGED, IncidentStatus.RESOLVED].index(one.status)
    return status, list(IncidentSeverity).index(one.severity), -one.opened_at.timestamp()


def _model_rank(route: Route | None, still_open: Sequence[Incident]) -> int:
    """Trouble first."""
    if route is not None and route.state is RouteState.HELD:
        return 0
    if any(one.status is IncidentStatus.TRIGGERED for one in still_open):
        return 1
    if still_open:
        return 2
    return 3 if route is not None and route.state is RouteState.PINNED else 4


def _version_rank(name: str, version: Version, route: Route | None) -> tuple[bool, int, int, str]:
    """The active one first, then those that could serve, the latest first."""
    states = [VersionState.GOOD, VersionState.CANDIDATE, VersionState.FENCED]
    active = route is not None and route.version == name
    return not active, states.index(version.state), -(version.activated or 0), name


# What may be done


def _model_offers(name: str, route: Route | None, resume_to: str | None) -> list[Offer]:
    active, good = (route.version, route.last_good) if route is not None else (None, None)
    back_to = (
        f"The route moves to {good}, the last good version."
        if good
        else ("No other version has earned good, so the route will be held: every output is blocked.")
    )
    return [
        Offer(
            Action.ROLLBACK,
            "Roll back",
            f"Roll back {name}",
            f"{active} is fenced: every output of it is blocked from now on. {back_to}",
            name,
            danger=True,
        ),
        Offer(
            Action.RESUME,
            "Resume",
            f"Resume {name}",
            f"{resume_to or 'The last good version'} serves again, unless it is fenced; then the last good one does.",
            name,
        ),
        Offer(
            Action.HOLD,
            "Hold",
            f"Hold {name}",
            "No version serves: every output is blocked, and serving code uses its fallback, until the hold ends.",
            name,
            danger=True,
            wants="until",
        ),
        Offer(
            Action.UNPIN,
            "Unpin",
            f"Unpin {name}",
            f"{active} stays active, and versions may be promoted again.",
            name,
        ),
        Offer(
            Action.PIN,
            "Pin",
            f"Pin {name}",
            "The version named serves, and nothing else is promoted, until the pin ends. If it trips, it is still "
            "fenced and the route moves.",
            name,
            version=active or "",
            wants="version until",
        ),
        Offer(
            Action.PROMOTE,
            "Promote",
            f"Promote a version of {name}",
            "The version named serves from now on, also where no output of it was seen so far: check its name. It is "
            "good once enough of its outputs were approved for long enough.",
            name,
            wants="version",
        ),
    ]


def _version_offers(name: str, version: str, known: Version, route: Route | None) -> list[Offer]:
    active = route is not None and route.version == version
    if known.state is VersionState.FENCED:
        return [_unfence(name, version)]
    fence = Offer(
        Action.FENCE,
        "Fence",
        f"Fence {version} of {name}",
        f"Every output of {version} is blocked from now on"
        + (", and the route moves to the last good version." if active else ". It is not active, so the route stays."),
        name,
        version=version,
        danger=True,
    )
    promote = Offer(
        Action.PROMOTE,
        "Promote",
        f"Promote {version} of {name}",
        f"{version} serves from now on, instead of {(route.version if route is not None else None) or 'nothing'}.",
        name,
        version=version,
    )
    good = Offer(
        Action.GOOD,
        "Declare good",
        f"Declare {version} of {name} good",
        f"On your word {version} is good, although it has not earned it yet: when a later version goes bad, the route "
        "comes back to it.",
        name,
        version=version,
    )
    if active:
        return [good, fence] if known.state is VersionState.CANDIDATE else [fence]
    return [promote, fence]


def _unfence(name: str, version: str) -> Offer:
    return Offer(
        Action.UNFENCE,
        "Unfence",
        f"Unfence {version} of {name}",
        f"{version} is a candidate again: its outputs are judged, no longer blocked as a whole. Its incident is "
        "resolved.",
        name,
        version=version,
        danger=True,
        wants="until",
    )


def _incident_offers(one: Incident) -> list[Offer]:
    if one.status is IncidentStatus.RESOLVED:
        return []
    what = f"{one.bad_version} of {one.model}"
    acknowledge = Offer(
        Action.ACKNOWLEDGE,
        "Acknowledge",
        f"Acknowledge the incident of {what}",
        "Others see that you are looking at it. Nothing else changes.",
        one.model,
        version=one.bad_version,
        incident=one.incident_id,
    )
    resolve = Offer(
        Action.RESOLVE,
        "Resolve",
        f"Resolve the incident of {what}",
        f"The incident is closed. {one.bad_version} stays fenced.",
        one.model,
        version=one.bad_version,
        incident=one.incident_id,
    )
    first = [acknowledge] if one.status is IncidentStatus.TRIGGERED else []
    return [*first, resolve, _unfence(one.model, one.bad_version), *_undo(one)]


def _undo(one: Incident) -> list[Offer]:
    """Where the policy was changed shortly before."""
    if one.policy_since is None:
        return []
    undo = Offer(
        Action.UNDO_TRIPS,
        "Undo the policy's trips",
        f"Undo the trips of {one.model} under {one.policy}",
        "Put the right policy back first. Every version that tripped under this policy is no longer fenced, and is "
        "good again if it was; their incidents are resolved. The version that served before serves again, unless "
        "something else has moved the route since.",
        one.model,
        policy=one.policy,
        danger=True,
    )
    return [undo]


# How it is written


def in_shadow(model: str, policy: PolicyHere | None) -> str:
    """What of a model's policy blocks nothing, in words; empty: every check that should block does."""
    if policy is None:
        return ""
    until = f" It enforces from {policy.mode_until:%Y-%m-%d %H:%M} UTC on." if policy.mode_until is not None else ""
    if policy.mode == "shadow":
        return f"{model} is in shadow: no check of it blocks.{until}"
    if policy.mode == "off":
        return f"The checks of {model} are off: none of them runs.{until}"
    shadow = ""
    if policy.in_shadow:
        shadow = f"Checks in shadow, which block nothing: {', '.join(policy.in_shadow)}."
        if len(policy.in_shadow) == 1:
            shadow = f"The check {policy.in_shadow[0]} is in shadow: it blocks nothing."
    off = f"Checks that are off, and do not run: {', '.join(policy.off)}." if policy.off else ""
    return " ".join(filter(None, (shadow, off)))


def number(value: float) -> str:
    """As people read it: `13,000`, `129.99`, `0.5`."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100_000 or abs(value) < 0.001:
        return f"{value:.4g}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"


def rate(value: float) -> str:
    """Of how many a second; the page's script says the same."""
    return f"{value:,.1f}".removesuffix(".0") if value < 100 else f"{value:,.0f}"


def share(part: int, whole: int) -> str:
    """`90 %`; not 100 when something is missing, and not 0 when something is there."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    return f"{min(max(percent, 0.1), 99.9 if part < whole else 100):.3g} %"


def utc(at: datetime, now: datetime | None = None) -> str:
    """The time of day, with the date unless it is of the last 12 hours."""
    recent = abs((now or utc_now()) - at) < timedelta(hours=12)
    return f"{at:%H:%M:%S} UTC" if recent else f"{at:%Y-%m-%d %H:%M} UTC"


def ago(at: datetime, now: datetime | None = None) -> str:
    """`just now`, `3 min ago`, `in 2 h`; the page's script says the same."""
    seconds = ((now or utc_now()) - at).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if abs(seconds) >= size * (2 if unit == "s" else 1):
            count = f"{int(abs(seconds) // size)} {unit}"
            return f"{count} ago" if seconds > 0 else f"in {count}"
    return "just now"


def spark(history: Sequence[tuple[int, int]]) -> dict[str, str]:
    """The paths of a sparkline, 2 wide for each second and 28 high: blocked from the ground, approved on top of it."""
    top = max((a + b for a, b in history), default=0) or 1
    paths: dict[str, list[str]] = {"approved": [], "blocked": []}
    for second, (approved, blocked) in enumerate(history):
        x, ground = 2 * second + 1, 28.0
        for name, count in (("blocked", blocked), ("approved", approved)):
            if count:
                height = max(1.5, 26 * count / top)
                paths[name].append(f"M{x} {ground:.1f}v-{height:.1f}")
                ground -= height
    return {name: "".join(parts) for name, parts in paths.items()}
