"""`holdfast shadow report`: what the checks in shadow would have blocked, and whether a version would have tripped."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.adapters.commands import read_routes
from holdfast.adapters.policies import known_models, load_policies
from holdfast.adapters.shadow import read_report
from holdfast.cli.route import ModelArgument, SinceOption, refuse_unknown
from holdfast.cli.terminal import ConfigOption, JsonOption, perform, run, show
from holdfast.core import findings
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.policy import Policy, PolicyError
from holdfast.core.shadow import Report, VersionFacts, VersionInShadow
from holdfast.settings import Settings, load_settings
from holdfast_schemas import utc_now

shadow_app = typer.Typer(help="See what checks in shadow would have done.", no_args_is_help=True)


def _policy_of(settings: Settings, model: str) -> Policy | None:
    try:
        return load_policies(settings.policies).at(utc_now()).policies.get(model)
    except PolicyError:  # A person's machine need not have the policies.
        return None


@shadow_app.command("report")
def shadow_report(
    model: ModelArgument,
    since: SinceOption = timedelta(hours=1),
    version: Annotated[str | None, typer.Option("--version", help="Of one version.", metavar="VERSION")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what checks in shadow would have blocked: by check, version and segment, with the worst examples.

    It also replays the breaker as if those checks were enforced, by the breaker of your own policy files, and says
    whether and when each version would have tripped.
    """

    async def look(settings: Settings, breaker: BreakerPolicy) -> Report:
        refuse_unknown(model, known_models(settings.policies, await read_routes(settings)))
        return await read_report(settings, model, utc_now() - since, breaker, version=version)

    def action() -> tuple[Policy | None, Report]:
        settings = load_settings(config)
        policy = _policy_of(settings, model)
        return policy, run(look(settings, policy.breaker if policy is not None else BreakerPolicy()))

    policy, report = perform(action)
    facts = {
        "model": model,
        "checks_in_shadow": _in_shadow(policy),
        "versions": [_facts(one) for one in report.facts()],
    }
    show(as_json, facts, lambda console: _display(console, model, policy, report.versions))


def _in_shadow(policy: Policy | None) -> list[str]:
    return list(policy.checks_in_shadow()) if policy is not None else []


def _facts(version: VersionFacts) -> dict[str, Any]:
    """For printing: JSON values."""
    return {"would_trip_at": None, "would_trip": None, **version.model_dump(mode="json", exclude_none=True)}


def _display(console: Console, model: str, policy: Policy | None, versions: Mapping[str, VersionInShadow]) -> None:
    checks = _in_shadow(policy)
    if policy is not None and policy.mode == "shadow":
        console.print(f"{model} is in shadow: no check of it blocks.")
    elif checks:
        console.print(f"Checks of {model} in shadow: {', '.join(checks)}.")
    elif policy is not None:
        console.print(f"No check of {model} is in shadow by the policy here.")
    if not versions:
        console.print("No output of it was judged in that time.")
    for name, one in versions.items():
        console.print(Text(f"\n{name}", style="bold"))
        console.print(f"  would have blocked {one.would_block:,} of {one.approved:,} approved outputs")
        if one.would_trip_at is not None:
            console.print(f"  would have tripped at {one.would_trip_at:%Y-%m-%d %H:%M:%S} UTC: {one.would_trip}")
        elif one.would_block:
            console.print("  would not have tripped")
        if one.by_check:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="underline")
            for column in ("check", "failed", "segments"):
                table.add_column(column, overflow="fold")
            for check, count in one.by_check.most_common():
                segments: Mapping[str, int] = one.by_segment.get(check, {})
                ranked = sorted(segments.items(), key=lambda pair: -pair[1])[:5]
                table.add_row(Text(check), f"{count:,}", Text(", ".join(f"{s} {n:,}" for s, n in ranked)))
            console.print(table)
        for sample in one.samples:
            if (worst := findings.worst([sample])) is not None:
                console.print(f"  {findings.entity(sample) or sample.source}: {findings.in_words(worst[1])}")
