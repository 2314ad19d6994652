"""`holdfast check`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.adapters.policies import load_policies, unlike_their_files
from holdfast.cli.terminal import ConfigOption, JsonOption, perform, run, show
from holdfast.core.fail_open import ends
from holdfast.core.open_ends import open_ends
from holdfast.core.trial import Trial
from holdfast.settings import load_settings
from holdfast_schemas import utc_now


def check(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    topic: Annotated[
        str | None, typer.Option("--try", help="Judge the newest events of this topic.", metavar="TOPIC")
    ] = None,
    event: Annotated[
        Path | None,
        typer.Option("--event", help="Judge the event of this file, or one in each line; - reads the standard input."),
    ] = None,
    records: Annotated[int, typer.Option(min=1, max=10_000, help="With --try: how many events.")] = 100,
) -> None:
    """Validate configuration and policies, and print them with every default filled in.

    The warnings say what a policy leaves open: a limit that the producer chooses, a segment that escapes its bounds.

    With --try or --event, decode and judge real events, and print what each check would say of them. This works
    without any topic of Holdfast, and writes nothing. The exit code is 1 when no event could be decoded.
    """
    if topic is not None and event is not None:
        raise typer.BadParameter("--try and --event exclude each other")
    if topic is not None or event is not None:
        from holdfast.cli import try_policy

        def judge_events() -> Trial:
            settings = load_settings(config)
            if topic is not None:
                return run(try_policy.try_topic(settings, topic, records))
            assert event is not None  # noqa: S101
            return try_policy.try_file(settings, event)

        trial = perform(judge_events)
        show(as_json, try_policy.facts(trial), lambda console: try_policy.display(trial, console))
        if not trial.decoded:
            raise typer.Exit(1)
        return

    def action() -> dict[str, Any]:
        settings = load_settings(config)
        policies, now = load_policies(settings.policies).policies, utc_now()
        return {
            "settings": settings.model_dump(mode="json"),
            "policies": {p.id: p.model_dump(mode="json", exclude_none=True) for p in policies.values()},
            "warnings": [
                *(f"{p.model}: {why}" for p in policies.values() if (why := p.at(now).why_it_cannot_trip())),
                *(f"{p.model}: {what}" for p in policies.values() for what in open_ends(p.eventually())),
                *ends(policies.values(), now, settings.guard.no_policy_until),
                *unlike_their_files(settings.policies),
            ],
        }

    facts = perform(action)
    show(as_json, facts, lambda console: console.print_json(data=facts))
