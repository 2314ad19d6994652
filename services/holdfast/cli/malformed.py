"""`holdfast malformed`: see what could not be decoded and why, and judge it again."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from holdfast.adapters import through_api
from holdfast.adapters.malformed import UNNAMED, Found, MalformedRecord, find_malformed
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
    table,
    who_acts,
)
from holdfast.core.findings import in_words
from holdfast.core.malformed import CHECK, MalformedKind
from holdfast.core.releases import Answer
from holdfast.release import Answers, Asked, Wanted, retry
from holdfast.settings import Settings, load_settings
from holdfast_schemas import Finding, utc_now

malformed_app = typer.Typer(
    help="See records that could not be decoded, and judge them again once their mapping is right.",
    no_args_is_help=True,
)
SinceOption = Annotated[
    timedelta,
    typer.Option("--since", help="How far back to look, as in 30m or 2h.", metavar="TIME", parser=duration),
]


def _kind(text: str) -> str:
    kinds = (*(kind.value for kind in MalformedKind), UNNAMED)
    if text not in kinds:
        raise typer.BadParameter(f"{text!r} is not a kind of reason; the kinds are {', '.join(kinds)}")
    return text


async def _find(settings: Settings, since: datetime, model: str | None, kind: str | None, limit: int) -> Found:
    """Through the API where it is configured, which tells no contents. Raises KafkaUnavailable, ApiUnavailable."""
    if not through_api.is_configured(settings):
        return await find_malformed(settings, since, model=model, kind=kind, limit=limit)
    query = {"model": model, "kind": kind, "limit": min(limit, 500)}
    told = await through_api.malformed(settings, since, query)
    latest = [
        MalformedRecord(
            one["source"],
            datetime.fromisoformat(one["at"]),
            one["kind"],
            one["reason"],
            one.get("model", ""),
            one.get("version", ""),
        )
        for one in told["items"]
    ]
    return Found(told["total"], Counter(told["kinds"]), told["first_reasons"], latest)


@malformed_app.command("list")
def malformed_list(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Of one model, where its version is to blame; all without it.", metavar="MODEL", parser=name
        ),
    ] = None,
    since: SinceOption = timedelta(hours=1),
    kind: Annotated[
        str | None, typer.Option(help="Of one kind of reason, such as wrong_type.", metavar="KIND", parser=_kind)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print, the latest.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List records that could not be decoded, with the reasons."""

    def action() -> Found:
        return run(_find(load_settings(config), utc_now() - since, model, kind, limit))

    found = perform(action)

    def display(console: Console) -> None:
        if not found.count:
            console.print("No record that fits was malformed in that time.")
            return
        rows = table("at", "version", "source", "reason")
        for one in found.latest:
            version = f"{one.model} {one.version}" if one.model else ""
            rows.add_row(f"{one.at:%H:%M:%S}", Text(version), Text(one.source), Text(one.reason))
        console.print(rows)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.most_common())
        shown = f"; the latest {len(found.latest):,} are shown" if found.count > len(found.latest) else ""
        console.print(f"{found.count:,} malformed ({kinds}){shown}.", soft_wrap=True)
        console.print("See what a policy makes of real events: holdfast check --try TOPIC", soft_wrap=True)

    facts = {
        "count": found.count,
        "kinds": dict(found.kinds),
        "first_reasons": found.reasons,
        "records": [one.facts() for one in found.latest],
    }
    show(as_json, facts, display)


@malformed_app.command("retry")
def malformed_retry(
    model: Annotated[str, typer.Argument(help="The model.", metavar="MODEL", parser=name)],
    reason: ReasonOption,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only this one: topic/partition/offset, as `malformed list` shows it; repeatable."),
    ] = None,
    since: SinceOption = timedelta(hours=1),
    version: Annotated[str | None, typer.Option("--version", help="Of one version.", metavar="VERSION")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what can be decoded and fails today's policy.")] = False,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also where a newer output of the same entity was approved since.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be released.")] = False,
    wait: WaitOption = WAIT,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the guards to decode and judge malformed records again, and to approve what passes.

    A guard judges by the policies in force there. Each record is released once at most, and never when it is older than
    guard.release_max_age. What still cannot be decoded, or fails a check, stays where it is.

    Exit code 1 when any of them is not released. A command that no guard answers in time is carried out later.
    """

    def action() -> Answers:
        settings = load_settings(config)
        asked = Asked(who_acts(settings, actor), reason, force, superseded, dry_run, wait.total_seconds())
        wanted = Wanted(model, utc_now() - since, version, None, frozenset(source or ()))
        answers = run(retry(settings, wanted, asked))
        if not answers.results:
            raise Refused(
                f"Nothing that fits and could be {model}'s was malformed in that time. See what was: "
                "holdfast malformed list --since 1d"
            )
        return answers

    show_released(
        perform(action),
        as_json=as_json,
        heading="why",
        why=_why,
        words={Answer.STILL_FAILS: "can be decoded and fail a check", Answer.STILL_MALFORMED: "still malformed"},
        advice=_ADVICE,
    )


_ADVICE: dict[str, str] = {
    Answer.STILL_FAILS: "What fails a check is released with --force, in your name.",
    Answer.STILL_MALFORMED: (
        "Still malformed: correct the [fields] of the policy, and try it on real events: holdfast check --try TOPIC"
    ),
    Answer.NOT_FOUND: "Not found: not malformed, or the other options leave it out; a longer --since finds more.",
}


def _why(finding: Finding) -> str:
    return str(finding.seen) if finding.check == CHECK else in_words(finding)
