"""`holdfast route`, `incidents` and `blocked`: what people and pipelines see and command."""

import asyncio
import os
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.adapters.commands import (
    follow_promotion,
    read_incidents,
    read_routes,
    read_state,
    read_states,
    send_command,
)
from holdfast.adapters.policies import known_models
from holdfast.cli.confirm import YesOption, confirm
from holdfast.cli.released import WAIT, WaitOption, show_released
from holdfast.cli.terminal import (
    ActorOption,
    ConfigOption,
    JsonOption,
    ReasonOption,
    Refused,
    duration,
    name,
    perform,
    run,
    show,
    show_line,
    table,
    warn,
    who_acts,
)
from holdfast.core import findings
from holdfast.core.consequences import Consequence, consequence
from holdfast.core.findings import cut
from holdfast.core.incidents import is_held, serving, what_consumers_have, what_was_done
from holdfast.core.policy_change import advice
from holdfast.core.releases import Answer
from holdfast.release import Answers, Asked, Listed, Wanted, find_blocked, release
from holdfast.settings import Settings, load_settings
from holdfast_schemas import (
    AcceptedValue,
    Action,
    AuditRecord,
    Command,
    Finding,
    Incident,
    IncidentAction,
    IncidentStatus,
    Outcome,
    Route,
    RouteState,
    utc_now,
)

route_app = typer.Typer(help="See and change which version of a model serves.", no_args_is_help=True)
blocked_app = typer.Typer(help="See what was blocked, and release what should not have been.", no_args_is_help=True)
incidents_app = typer.Typer(help="See, acknowledge and resolve incidents.", no_args_is_help=True)
_STATE_STYLE = {"auto": "green", "pinned": "yellow", "held": "bold red"}
_SEVERITY_STYLE = {"critical": "bold red", "error": "red", "warning": "yellow", "info": "cyan"}
ModelArgument = Annotated[str, typer.Argument(help="The model.", metavar="MODEL", parser=name)]


# What is


def refuse_unknown(model: str, known: Collection[str]) -> None:
    if model not in known:
        there_are = ", ".join(sorted(known)) or "none yet"
        raise Refused(
            f"There is no model {model!r}. Models with a route or a policy here: {there_are}. Check the name, or write "
            "its policy."
        )


@route_app.command("show")
def route_show(
    model: Annotated[
        str | None, typer.Argument(help="One model; all without it.", metavar="MODEL", parser=name)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version of each model serves, from Kafka."""

    def action() -> list[tuple[Route, datetime | None]]:
        settings = load_settings(config)
        routes = run(read_routes(settings))
        if model is not None and model not in routes:
            refuse_unknown(model, known_models(settings.policies, routes))
            raise Refused(f"{model} has no route yet. Give it one: holdfast route promote {model} VERSION --reason …")
        shown = [routes[model]] if model is not None else [route for _, route in sorted(routes.items())]
        chosen = any(route.state is not RouteState.AUTO for route in shown)
        states = run(read_states(settings)) if chosen else {}
        return [(route, states[route.model].ends_at if route.model in states else None) for route in shown]

    routes = perform(action)

    def display(console: Console) -> None:
        if not routes:
            console.print("No model has a route yet. Give it one: holdfast route promote MODEL VERSION --reason …")
        for route, ends_at in routes:
            console.print(_route_panel(route, ends_at))

    show(
        as_json,
        [{**route.model_dump(mode="json"), "ends_at": to_jsonable_python(ends_at)} for route, ends_at in routes],
        display,
    )


def _route_panel(route: Route, ends_at: datetime | None) -> Panel:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("serves", Text(route.version or "nothing", style="bold" if route.version else "bold red"))
    rows.add_row("state", Text(route.state.value, style=_STATE_STYLE[route.state.value]))
    if ends_at is not None:
        rows.add_row("until", f"{ends_at:%Y-%m-%d %H:%M:%S} UTC")
    if route.version is not None:
        rows.add_row("after a trip", f"{route.last_good} would serve" if route.last_good else "nothing would: held")
    rows.add_row("fenced", ", ".join(route.fenced) or "none")
    rows.add_row("since", f"{route.since:%Y-%m-%d %H:%M:%S} UTC, epoch {route.epoch}")
    rows.add_row("by", Text(route.actor))
    rows.add_row("because", Text(route.reason))
    if route.incident_id:
        rows.add_row("incident", route.incident_id)
    return Panel(rows, title=Text(route.model, style="bold"), title_align="left")


# Commands


class _Spec(NamedTuple):
    help: str
    version: str
    """`needed`, `optional` or `none`."""
    lasts: str = ""
    """Help on how long it lasts; empty where it has no end."""


_FOR = "End by itself after, say, 30m or 2h."
_ROUTE_COMMANDS = {
    Action.PROMOTE: _Spec("Let a version serve.", "needed"),
    Action.PIN: _Spec(
        "Fix the version: no other is promoted until unpin. A trip still moves the route.", "optional", _FOR
    ),
    Action.UNPIN: _Spec("Let Holdfast switch automatically again.", "none"),
    Action.ROLLBACK: _Spec("Leave the active version, fence it, and go back to the last good one.", "optional"),
    Action.HOLD: _Spec("Let no version serve; everything is blocked.", "none", _FOR),
    Action.RESUME: _Spec("End a hold.", "optional"),
    Action.FENCE: _Spec("Block every output of a version.", "needed"),
    Action.UNFENCE: _Spec(
        "Let a fenced version be a candidate again.", "needed", "Fence it again after, say, 30m or 2h."
    ),
    Action.GOOD: _Spec(
        "Declare the version that serves good, on your word: a trip of a later one goes back to it.", "needed"
    ),
}
_MAY_SURPRISE = {Action.PROMOTE, Action.PIN, Action.RESUME, Action.ROLLBACK, Action.FENCE}


def send(
    settings: Settings,
    action: Action,
    model: str,
    *,
    reason: str,
    actor: str | None,
    version: str | None = None,
    lasts: timedelta | None = None,
    incident_id: str | None = None,
    policy: str | None = None,
    references: tuple[AcceptedValue, ...] = (),
    yes: bool = False,
) -> AuditRecord:
    """Send a command, after a question where its effect may surprise. Raises Refused."""
    by_token = settings.api.url is not None
    command = Command(
        command_id=os.urandom(12).hex(),
        model=model,
        action=action,
        version=version,
        incident_id=incident_id,
        policy=policy,
        references=references,
        actor=who_acts(settings, actor),
        reason=reason,
        expires_at=None if lasts is None else utc_now() + lasts,
    )

    async def look() -> Consequence | None:
        if not by_token:  # The API knows better which models there are, and refuses others.
            refuse_unknown(model, known_models(settings.policies, await read_routes(settings)))
        if action not in _MAY_SURPRISE:
            return None
        return consequence(await read_state(settings, model), action, model, version)

    confirm(run(look()), yes=yes)
    return run(send_command(settings, command))


def answer(audit: AuditRecord, as_json: bool) -> None:
    """Print the outcome; a refusal ends with exit code 1."""
    past_the_api = "; the audit says that it came straight to Kafka" if audit.through == "kafka" else ""
    show(
        as_json,
        audit.model_dump(mode="json", exclude_none=True),
        lambda console: console.print(
            f"{audit.outcome.value}: {audit.detail}{past_the_api}", markup=False, soft_wrap=True
        ),
    )
    if audit.outcome is Outcome.REFUSED:
        raise typer.Exit(1)


def _add_route_command(action: Action, spec: _Spec) -> None:
    def command(
        context: typer.Context,
        model: ModelArgument,
        reason: ReasonOption,
        version: Annotated[
            str | None,
            typer.Argument(help="The version.", metavar="VERSION", hidden=spec.version == "none", parser=name),
        ] = None,
        actor: ActorOption = None,
        lasts: Annotated[
            timedelta | None,
            typer.Option("--for", help=spec.lasts, hidden=not spec.lasts, metavar="TIME", parser=duration),
        ] = None,
        yes: YesOption = False,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        if lasts is not None and not spec.lasts:
            context.fail(f"{action.value} has no end; leave out --for.")
        if spec.version == "needed" and version is None:
            context.fail(f"{action.value} needs a version: holdfast route {action.value} {model} VERSION --reason …")
        if spec.version == "none" and version is not None:
            context.fail(f"{action.value} takes no version; leave out {version}.")
        answer(
            perform(
                lambda: send(
                    load_settings(config),
                    action,
                    model,
                    reason=reason,
                    actor=actor,
                    version=version,
                    lasts=lasts,
                    yes=yes,
                )
            ),
            as_json,
        )

    route_app.command(action.value, help=spec.help)(command)


@route_app.command("promote", help=_ROUTE_COMMANDS[Action.PROMOTE].help)
def route_promote(
    context: typer.Context,
    model: ModelArgument,
    reason: ReasonOption,
    version: Annotated[
        str | None, typer.Argument(help="The version; not with --from-mlflow.", metavar="VERSION", parser=name)
    ] = None,
    from_mlflow: Annotated[
        str | None, typer.Option(help="Read the version from an MLflow registry: models:/NAME@ALIAS or models:/NAME/3.")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Wait until the version is good (exit 0), or is fenced or left (exit 1). One line a change."
        ),
    ] = False,
    timeout: Annotated[
        timedelta, typer.Option(help="How long to wait at most.", metavar="TIME", parser=duration, show_default="1h")
    ] = timedelta(hours=1),
    actor: ActorOption = None,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    if (version is None) == (from_mlflow is None):
        context.fail("Give either a VERSION or --from-mlflow.")

    def action() -> AuditRecord:
        settings = load_settings(config)
        wanted = version
        if from_mlflow is not None:
            from holdfast.adapters.mlflow import registered_version

            wanted = registered_version(from_mlflow)
        audit = send(settings, Action.PROMOTE, model, reason=reason, actor=actor, version=wanted, yes=yes)
        if not wait:
            return audit
        _print_change(audit, as_json)
        return run(_wait_for(settings, audit, timeout, as_json)) if audit.outcome is Outcome.APPLIED else audit

    audit = perform(action)
    if not wait:
        answer(audit, as_json)
    elif audit.outcome is Outcome.REFUSED:
        raise typer.Exit(1)


def _print_change(audit: AuditRecord, as_json: bool) -> None:
    facts = audit.model_dump(mode="json", exclude_none=True)
    show_line(as_json, facts, f"{audit.at:%H:%M:%S} {audit.outcome.value}: {audit.detail}")


async def _wait_for(settings: Settings, promoted: AuditRecord, at_most: timedelta, as_json: bool) -> AuditRecord:
    change = promoted
    try:
        async with asyncio.timeout(at_most.total_seconds()):
            async for change in follow_promotion(settings, promoted):
                _print_change(change, as_json)
    except TimeoutError:
        # A reader waits in silence where Kafka is away; this says so.
        await read_routes(settings)
        raise Refused(
            f"{promoted.version} has not earned good within the time given, and was not fenced either. "
            f"It goes on serving; see whether it gets predictions: holdfast route show {promoted.model}"
        ) from None
    return change


for _action, _spec in _ROUTE_COMMANDS.items():
    if _action is not Action.PROMOTE:
        _add_route_command(_action, _spec)


# Incidents


@incidents_app.command("list")
def incidents_list(
    model: Annotated[str | None, typer.Option(help="Of one model.", metavar="MODEL", parser=name)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the open incidents, newest first."""

    def action() -> list[Incident]:
        settings = load_settings(config)
        incidents = list(run(read_incidents(settings, warn)).values())
        if model is not None and all(model != incident.model for incident in incidents):
            refuse_unknown(model, known_models(settings.policies, run(read_routes(settings))))
        return [
            incident
            for incident in sorted(incidents, key=lambda incident: incident.opened_at, reverse=True)
            if model in (None, incident.model) and (everything or incident.status is not IncidentStatus.RESOLVED)
        ]

    incidents = perform(action)

    def display(console: Console) -> None:
        if not incidents:
            console.print("No incident." if everything else "No open incident.")
            return
        rows = table("id", "opened", "model", "bad version", "done", "blocked", "status")
        for column in (0, 1, 5, 6):
            rows.columns[column].no_wrap = True
        for incident in incidents:
            rows.add_row(
                incident.incident_id[:8],
                f"{incident.opened_at:%m-%d %H:%M}",
                incident.model,
                Text(incident.bad_version, style=_SEVERITY_STYLE[incident.severity.value]),
                _what_was_done(incident),
                f"{incident.blocked:,}",
                _STATUS[incident.status],
            )
        console.print(rows)

    show(as_json, [incident.model_dump(mode="json", exclude_none=True) for incident in incidents], display)


_STATUS = {
    IncidentStatus.TRIGGERED: "open",
    IncidentStatus.ACKNOWLEDGED: "acked",
    IncidentStatus.RESOLVED: "resolved",
}


def _what_was_done(incident: Incident) -> str:
    switched = incident.action is IncidentAction.SWITCHED
    done = f"switched to {incident.routed_to}" if switched else incident.action.value
    if incident.action is IncidentAction.HELD or incident.status is IncidentStatus.RESOLVED:
        return done
    if is_held(incident):
        return f"{done}, held now"
    return done if serving(incident) == incident.routed_to else f"{done}, {serving(incident) or 'nothing'} serves now"


def _what_serves(incident: Incident) -> str:
    if is_held(incident):
        return "nothing: the model is held"
    return serving(incident) or "no version"


def _find(settings: Settings, prefix: str) -> Incident:
    """By id, or by an unambiguous beginning of it. Raises Refused."""
    if not prefix:
        raise Refused("Name the incident by its id, or the beginning of it. See their ids: holdfast incidents list")
    incidents = run(read_incidents(settings, warn))
    whole = [incidents[prefix]] if prefix in incidents else []
    found = whole or [incident for key, incident in incidents.items() if key.startswith(prefix)]
    if len(found) != 1:
        what = "is not known" if not found else f"fits {len(found)} incidents"
        raise Refused(f"The incident {prefix} {what}. See their ids: holdfast incidents list --all")
    return found[0]


IdArgument = Annotated[str, typer.Argument(help="The incident's id, or its beginning.")]


@incidents_app.command("show")
def incidents_show(incident_id: IdArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one incident with its evidence."""
    incident = perform(lambda: _find(load_settings(config), incident_id))

    def display(console: Console) -> None:
        is_open = incident.status is not IncidentStatus.RESOLVED
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        facts.add_row("status", incident.status.value)
        facts.add_row("severity", Text(incident.severity.value, style=_SEVERITY_STYLE[incident.severity.value]))
        facts.add_row("done", what_was_done(incident))
        facts.add_row("serves now" if is_open else "served then", _what_serves(incident))
        facts.add_row("opened", f"{incident.opened_at:%Y-%m-%d %H:%M:%S} UTC")
        if incident.first_blocked_at:
            facts.add_row("first blocked", f"{incident.first_blocked_at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC")
        facts.add_row("blocked", f"{incident.blocked:,} of {incident.seen:,}")
        if approved := what_consumers_have(incident):
            facts.add_row("consumers", f"{approved}.")
        facts.add_row(
            "by check", ", ".join(f"{check} {n:,}" for check, n in incident.blocked_by_check.items()) or "none"
        )
        facts.add_row("policy", incident.policy or "none")
        if told := advice(incident):
            facts.add_row("", told)
        facts.add_row("runbook", incident.runbook_url)
        if incident.acknowledged_by:
            facts.add_row("acknowledged", f"by {incident.acknowledged_by}")
        if incident.resolved_by:
            because = f": {incident.resolved_because}" if incident.resolved_because else ""
            facts.add_row("resolved", f"by {incident.resolved_by}{because}")
        evidence = table("entity", "what was blocked", "prediction and source")
        for sample in incident.samples:
            place = Text("\n".join(filter(None, (findings.prediction_id(sample), sample.source))))
            evidence.add_row(Text(findings.entity(sample)), _seen(sample.findings), place)
        body = Group(facts, "", evidence) if incident.samples else facts
        console.print(Panel(body, title=Text(incident.dedup_key, style="bold"), title_align="left"))

    show(as_json, incident.model_dump(mode="json", exclude_none=True), display)


def _incident_command(action: Action, incident_id: str, reason: str, actor: str | None, config: Path | None) -> Any:
    def perform_it() -> AuditRecord:
        settings = load_settings(config)
        incident = _find(settings, incident_id)
        return send(
            settings,
            action,
            incident.model,
            reason=reason,
            actor=actor,
            version=incident.bad_version,
            incident_id=incident.incident_id,
        )

    return perform(perform_it)


@incidents_app.command("ack")
def incidents_ack(
    incident_id: IdArgument,
    reason: ReasonOption,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that somebody is looking at it."""
    answer(_incident_command(Action.ACKNOWLEDGE, incident_id, reason, actor, config), as_json)


@incidents_app.command("resolve")
def incidents_resolve(
    incident_id: IdArgument,
    reason: ReasonOption,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close it; the version stays fenced."""
    answer(_incident_command(Action.RESOLVE, incident_id, reason, actor, config), as_json)


# Blocked predictions

SinceOption = Annotated[
    timedelta,
    typer.Option(
        "--since",
        help="How far back to look, as in 30m or 2h.",
        metavar="TIME",
        parser=duration,
        show_default="1h",
    ),
]
VersionOption = Annotated[str | None, typer.Option("--version", help="Of one version.", metavar="VERSION")]
CheckOption = Annotated[str | None, typer.Option("--check", help="That failed this check.", metavar="CHECK")]


def _seen(found: Sequence[Finding]) -> Text:
    """One line for each finding."""
    return Text("\n".join(map(findings.in_words, found)), overflow="fold")


def _wanted(
    model: str, since: timedelta, version: str | None, check: str | None, sources: Iterable[str] = ()
) -> Wanted:
    return Wanted(model, utc_now() - since, version, check, frozenset(sources))


async def _nothing_blocked(settings: Settings, model: str) -> str:
    """A sentence for a model of which nothing was found. Raises Refused where the model is not known at all."""
    refuse_unknown(model, known_models(settings.policies, await read_routes(settings)))
    return f"Nothing of {model} that fits was blocked in that time."


@blocked_app.command("list")
def blocked_list(
    model: ModelArgument,
    since: SinceOption = timedelta(hours=1),
    version: VersionOption = None,
    check: CheckOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print, the latest.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List blocked predictions with what was found."""

    async def find(settings: Settings) -> tuple[int, list[Listed], str]:
        count, found = await find_blocked(settings, _wanted(model, since, version, check), limit=limit)
        return count, found, "" if found else await _nothing_blocked(settings, model)

    count, found, nothing = perform(lambda: run(find(load_settings(config))))

    def display(console: Console) -> None:
        if not found:
            console.print(nothing, markup=False)
            return
        rows = table("at", "version", "entity", "source", "what was found")
        for one in found:
            entity = Text(cut(one.entity_id or ""))
            rows.add_row(f"{one.at:%H:%M:%S}", Text(one.version), entity, Text(one.source), _seen(one.findings))
        console.print(rows)
        console.print(f"{count:,} blocked" + (f"; the latest {len(found):,} are shown." if count > len(found) else "."))

    predictions = [
        {
            "source": one.source,
            "at": one.at.isoformat(),
            "model": model,
            "model_version": one.version,
            "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in one.findings],
            "prediction": one.prediction,
            "entity_id": one.entity_id,
            "prediction_id": one.prediction_id,
        }
        for one in found
    ]
    show(as_json, {"count": count, "predictions": predictions}, display)


@blocked_app.command("release")
def blocked_release(
    model: ModelArgument,
    reason: ReasonOption,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only this one: topic/partition/offset, as `blocked list` shows it; repeatable."),
    ] = None,
    since: SinceOption = timedelta(hours=1),
    version: VersionOption = None,
    check: CheckOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also what still fails today's policy.")] = False,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also where a newer output of the same entity was approved since.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be released.")] = False,
    wait: WaitOption = WAIT,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the guards to judge blocked predictions again, and to approve what passes.

    A guard judges by the policies in force there. Each prediction is released once at most, and never when it is older
    than guard.release_max_age. `max_change` holds later outputs of the entity against a released one, unless a newer
    one was approved or its version is fenced.

    Exit code 1 when any of them is not released. A command that no guard answers in time is carried out later.
    """

    async def find_and_release(settings: Settings, who: str) -> Answers:
        asked = Asked(who, reason, force, superseded, dry_run, wait.total_seconds())
        answers = await release(settings, _wanted(model, since, version, check, source or ()), asked)
        if not answers.results:
            raise Refused(f"{await _nothing_blocked(settings, model)} See what was: holdfast blocked list {model}")
        return answers

    show_released(
        perform(lambda: run(find_and_release(settings := load_settings(config), who_acts(settings, actor)))),
        as_json=as_json,
        heading="what still fails",
        why=findings.in_words,
        words={Answer.STILL_FAILS: "still failing", Answer.STILL_MALFORMED: "malformed"},
        advice=_ADVICE,
    )


_ADVICE: dict[str, str] = {
    Answer.STILL_FAILS: "What still fails is released with --force, in your name.",
    Answer.NOT_FOUND: "Not found: not among what was blocked and fits the other options; a longer --since finds more.",
}
