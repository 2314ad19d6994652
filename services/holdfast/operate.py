"""`holdfast route`, `incidents` and `blocked`: what people and pipelines see and command."""

import asyncio
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.adapters.commands import await_verdict_on, read_incidents, read_routes, send_command
from holdfast.release import Answer, Blocked, Released, find_blocked, release
from holdfast.settings import Settings, load_settings
from holdfast.terminal import (
    ActorOption,
    ConfigOption,
    JsonOption,
    ReasonOption,
    Refused,
    duration,
    login_name,
    perform,
    run,
    show,
)
from holdfast_schemas import Action, AuditRecord, Command, Finding, Incident, IncidentStatus, Outcome, Route, utc_now

route_app = typer.Typer(help="See and change which version of a model serves.", no_args_is_help=True)
blocked_app = typer.Typer(help="See what was blocked, and release what should not have been.", no_args_is_help=True)
incidents_app = typer.Typer(help="See, acknowledge and resolve incidents.", no_args_is_help=True)

_STATE_STYLE = {"auto": "green", "pinned": "yellow", "held": "bold red"}
_SEVERITY_STYLE = {"critical": "bold red", "error": "red", "warning": "yellow", "info": "cyan"}


# What is


def _models(model: str, settings: Settings) -> Mapping[str, Route]:
    routes = run(read_routes(settings))
    if model not in routes:
        known = ", ".join(sorted(routes)) or "none yet"
        raise Refused(f"There is no route for the model {model!r}. Models with a route: {known}.")
    return {model: routes[model]}


@route_app.command("show")
def route_show(
    model: Annotated[str | None, typer.Argument(help="One model; all without it.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version of each model serves, from Kafka."""

    def action() -> list[Route]:
        settings = load_settings(config)
        routes = run(read_routes(settings)) if model is None else _models(model, settings)
        return [route for _, route in sorted(routes.items())]

    routes = perform(action)

    def display(console: Console) -> None:
        if not routes:
            console.print("No model has a route yet. Give it one: holdfast route promote MODEL VERSION --reason …")
        for route in routes:
            console.print(_route_panel(route))

    show(as_json, [route.model_dump(mode="json") for route in routes], display)


def _route_panel(route: Route) -> Panel:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("serves", Text(route.version or "nothing", style="bold" if route.version else "bold red"))
    rows.add_row("state", Text(route.state.value, style=_STATE_STYLE[route.state.value]))
    rows.add_row("last good", route.last_good or "none")
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
    version: str  # needed, optional or none
    ends: bool = False


_ROUTE_COMMANDS = {
    Action.PROMOTE: _Spec("Let a version serve.", "needed"),
    Action.PIN: _Spec("Fix the version; automatic switching is off until unpin.", "optional", ends=True),
    Action.UNPIN: _Spec("Let Holdfast switch automatically again.", "none"),
    Action.ROLLBACK: _Spec("Leave the active version, fence it, and go back to the last good one.", "optional"),
    Action.HOLD: _Spec("Let no version serve; everything is blocked.", "none", ends=True),
    Action.RESUME: _Spec("End a hold.", "optional"),
    Action.FENCE: _Spec("Block every output of a version.", "needed"),
    Action.UNFENCE: _Spec("Let a fenced version be a candidate again.", "needed", ends=True),
}


def _send(
    settings: Settings,
    action: Action,
    model: str,
    *,
    reason: str,
    actor: str | None,
    version: str | None = None,
    lasts: str | None = None,
    incident_id: str | None = None,
) -> AuditRecord:
    try:
        command = Command(
            command_id=os.urandom(12).hex(),
            model=model,
            action=action,
            version=version,
            incident_id=incident_id,
            actor=login_name(actor),
            reason=reason,
            expires_at=None if lasts is None else utc_now() + duration(lasts, "--for"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(f"{first['loc'][0]}: {first['msg']}. Nothing was sent.") from None
    return run(send_command(settings, command))


def _answer(audit: AuditRecord, as_json: bool) -> None:
    """Print the outcome; a refusal ends with exit code 1."""
    show(
        as_json,
        audit.model_dump(mode="json", exclude_none=True),
        lambda console: console.print(f"{audit.outcome.value}: {audit.detail}", markup=False, soft_wrap=True),
    )
    if audit.outcome is Outcome.REFUSED:
        raise typer.Exit(1)


def _add_route_command(action: Action, spec: _Spec) -> None:
    def command(
        context: typer.Context,
        model: Annotated[str, typer.Argument(help="The model.")],
        reason: ReasonOption,
        version: Annotated[str | None, typer.Argument(help=f"The version ({spec.version}).")] = None,
        actor: ActorOption = None,
        lasts: Annotated[
            str | None, typer.Option("--for", help="End by itself after, say, 30m or 2h.", hidden=not spec.ends)
        ] = None,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        if spec.version == "needed" and version is None:
            context.fail(f"{action.value} needs a version: holdfast route {action.value} {model} VERSION --reason …")
        if spec.version == "none" and version is not None:
            context.fail(f"{action.value} takes no version; leave out {version}.")
        _answer(
            perform(
                lambda: _send(
                    load_settings(config), action, model, reason=reason, actor=actor, version=version, lasts=lasts
                )
            ),
            as_json,
        )

    route_app.command(action.value, help=spec.help)(command)


@route_app.command("promote", help=_ROUTE_COMMANDS[Action.PROMOTE].help)
def route_promote(
    model: Annotated[str, typer.Argument(help="The model.")],
    reason: ReasonOption,
    version: Annotated[str | None, typer.Argument(help="The version.")] = None,
    from_mlflow: Annotated[
        str | None, typer.Option(help="Read the version from an MLflow registry: models:/NAME@ALIAS or models:/NAME/3.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the version is good (exit 0), or is left or fenced (exit 1).")
    ] = False,
    timeout: Annotated[str, typer.Option(help="How long to wait at most.")] = "1h",
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    if (version is None) == (from_mlflow is None):
        raise typer.BadParameter("give either a VERSION or --from-mlflow")

    def action() -> AuditRecord:
        settings = load_settings(config)
        wanted = version
        if from_mlflow is not None:
            from holdfast.adapters.mlflow import registered_version

            wanted = registered_version(from_mlflow)
        audit = _send(settings, Action.PROMOTE, model, reason=reason, actor=actor, version=wanted)
        if wait and audit.outcome is Outcome.APPLIED:
            return run(_wait_for(settings, audit, duration(timeout, "--timeout").total_seconds()))
        return audit

    _answer(perform(action), as_json)


async def _wait_for(settings: Settings, promoted: AuditRecord, seconds: float) -> AuditRecord:
    try:
        async with asyncio.timeout(seconds):
            return await await_verdict_on(settings, promoted)
    except TimeoutError:
        raise Refused(
            f"{promoted.version} has not earned good within the time given, and was not fenced either. "
            f"See whether it gets predictions: holdfast route show {promoted.model}"
        ) from None


for _action, _spec in _ROUTE_COMMANDS.items():
    if _action is not Action.PROMOTE:
        _add_route_command(_action, _spec)


# Incidents


@incidents_app.command("list")
def incidents_list(
    model: Annotated[str | None, typer.Option(help="Of one model.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the open incidents, newest first."""
    incidents = [
        incident
        for incident in perform(lambda: run(read_incidents(load_settings(config)))).values()
        if model in (None, incident.model) and (everything or incident.status is not IncidentStatus.RESOLVED)
    ]
    incidents.sort(key=lambda incident: incident.opened_at, reverse=True)

    def display(console: Console) -> None:
        if not incidents:
            console.print("No incident." if everything else "No open incident.")
            return
        table = Table("opened", "model", "bad version", "what was done", "blocked", "status", "id")
        for incident in incidents:
            table.add_row(
                f"{incident.opened_at:%m-%d %H:%M:%S}",
                incident.model,
                Text(incident.bad_version, style=_SEVERITY_STYLE[incident.severity.value]),
                _what_was_done(incident),
                f"{incident.blocked:,} of {incident.seen:,}",
                incident.status.value,
                incident.incident_id[:12],
            )
        console.print(table)

    show(as_json, [incident.model_dump(mode="json", exclude_none=True) for incident in incidents], display)


def _what_was_done(incident: Incident) -> str:
    return f"{incident.action.value} to {incident.routed_to}" if incident.routed_to else incident.action.value


def _find(settings: Settings, name: str) -> Incident:
    """By id, or by an unambiguous beginning of it. Raises Refused."""
    incidents = run(read_incidents(settings))
    found = [incident for key, incident in incidents.items() if key.startswith(name)]
    if len(found) != 1:
        what = "is not known" if not found else f"fits {len(found)} incidents"
        raise Refused(f"The incident {name} {what}. See their ids: holdfast incidents list --all")
    return found[0]


IdArgument = Annotated[str, typer.Argument(help="The incident's id, or its beginning.")]


@incidents_app.command("show")
def incidents_show(incident_id: IdArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one incident with its evidence."""
    incident = perform(lambda: _find(load_settings(config), incident_id))

    def display(console: Console) -> None:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        facts.add_row("status", incident.status.value)
        facts.add_row("severity", Text(incident.severity.value, style=_SEVERITY_STYLE[incident.severity.value]))
        facts.add_row("done", _what_was_done(incident))
        facts.add_row("opened", f"{incident.opened_at:%Y-%m-%d %H:%M:%S} UTC")
        if incident.first_blocked_at:
            facts.add_row("first blocked", f"{incident.first_blocked_at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC")
        facts.add_row("blocked", f"{incident.blocked:,} of {incident.seen:,}")
        facts.add_row(
            "by check", ", ".join(f"{check} {n:,}" for check, n in incident.blocked_by_check.items()) or "none"
        )
        facts.add_row("policy", incident.policy or "none")
        facts.add_row("runbook", incident.runbook_url)
        if incident.acknowledged_by:
            facts.add_row("acknowledged", f"by {incident.acknowledged_by}")
        if incident.resolved_by:
            facts.add_row("resolved", f"by {incident.resolved_by}")
        evidence = Table("entity", "check", "field", "seen", "limit", "source", title="Evidence", title_justify="left")
        for sample in incident.samples:
            entity = sample.prediction.get("entity_id", "") if isinstance(sample.prediction, dict) else ""
            for finding in sample.findings:
                evidence.add_row(
                    Text(str(entity)),
                    finding.check,
                    finding.field or "",
                    Text(str(finding.seen)),
                    Text(str(finding.limit)),
                    sample.source,
                )
        body = Group(facts, evidence) if incident.samples else facts
        console.print(Panel(body, title=Text(incident.dedup_key, style="bold"), title_align="left"))

    show(as_json, incident.model_dump(mode="json", exclude_none=True), display)


def _incident_command(action: Action, incident_id: str, reason: str, actor: str | None, config: Path | None) -> Any:
    def perform_it() -> AuditRecord:
        settings = load_settings(config)
        incident = _find(settings, incident_id)
        return _send(
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
    _answer(_incident_command(Action.ACKNOWLEDGE, incident_id, reason, actor, config), as_json)


@incidents_app.command("resolve")
def incidents_resolve(
    incident_id: IdArgument,
    reason: ReasonOption,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close it; the version stays fenced."""
    _answer(_incident_command(Action.RESOLVE, incident_id, reason, actor, config), as_json)


# Blocked predictions

ModelArgument = Annotated[str, typer.Argument(help="The model.")]
SinceOption = Annotated[str, typer.Option("--since", help="How far back to look, as in 30m or 2h.")]
VersionOption = Annotated[str | None, typer.Option("--version", help="Of one version.")]
CheckOption = Annotated[str | None, typer.Option("--check", help="That failed this check.")]


def _seen(findings: Sequence[Finding]) -> Text:
    return Text("; ".join(f"{f.check}: {f.field or ''} {f.seen}, limit {f.limit}" for f in findings))


@blocked_app.command("list")
def blocked_list(
    model: ModelArgument,
    since: SinceOption = "1h",
    version: VersionOption = None,
    check: CheckOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print, the latest.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List blocked predictions with what was found."""

    def action() -> list[Blocked]:
        settings = load_settings(config)
        return run(find_blocked(settings, model, within=duration(since, "--since"), version=version, check=check))

    found = perform(action)

    def display(console: Console) -> None:
        if not found:
            console.print(f"Nothing of {model} was blocked in the last {since}.")
            return
        table = Table("at", "version", "source", "findings", title=f"{len(found):,} blocked", title_justify="left")
        for one in found[-limit:]:
            table.add_row(f"{one.at:%H:%M:%S}", one.version, one.source, _seen(one.findings))
        console.print(table)

    show(as_json, [one.facts() for one in found[-limit:]], display)


@blocked_app.command("release")
def blocked_release(
    model: ModelArgument,
    reason: ReasonOption,
    source: Annotated[list[str] | None, typer.Option(help="Only this one: topic/partition/offset; repeatable.")] = None,
    since: SinceOption = "1h",
    version: VersionOption = None,
    check: CheckOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also what still fails today's policy.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be released.")] = False,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge blocked predictions again by today's policy, and approve what passes.

    Exit code 1 when any of them is not released.
    """

    def action() -> list[Released]:
        settings = load_settings(config)
        who = login_name(actor)
        if not reason.strip():
            raise Refused("A release needs a reason; say why with --reason.")

        async def find_and_release() -> list[Released]:
            found = await find_blocked(
                settings,
                model,
                within=duration(since, "--since"),
                version=version,
                check=check,
                sources=source or (),
            )
            if not found:
                raise Refused(
                    f"Nothing of {model} that fits was blocked in the last {since}; see: holdfast blocked list"
                )
            return await release(settings, found, actor=who, reason=reason, force=force, dry_run=dry_run)

        return run(find_and_release())

    results = perform(action)
    counts = Counter(result.answer.value for result in results)

    def display(console: Console) -> None:
        for result in results:
            if result.answer is Answer.STILL_FAILS:
                console.print(Text.assemble(result.blocked.source, " still fails: ", _seen(result.findings)))
        console.print(", ".join(f"{count:,} {answer}" for answer, count in counts.items()) + ".")

    facts = {
        "counts": dict(counts),
        "predictions": [
            {
                "source": result.blocked.source,
                "answer": result.answer.value,
                "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in result.findings],
            }
            for result in results
        ],
    }
    show(as_json, facts, display)
    if any(result.answer not in (Answer.RELEASED, Answer.WOULD_BE_RELEASED) for result in results):
        raise typer.Exit(1)
