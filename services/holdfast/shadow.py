"""`holdfast shadow report`: what the checks in shadow would have blocked, and whether a version would have tripped."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.adapters.commands import read_routes
from holdfast.adapters.kafka import KafkaUnavailable, check_topics, partition_for, read_to_end
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.policies import known_models, load_policies
from holdfast.core import findings
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.policy import Policy, PolicyError
from holdfast.core.record import time_of
from holdfast.core.shadow import VersionInShadow, report
from holdfast.operate import ModelArgument, SinceOption, refuse_unknown
from holdfast.settings import Settings, load_settings
from holdfast.terminal import ConfigOption, JsonOption, perform, run, show
from holdfast_schemas import Tally, parse_control, utc_now

shadow_app = typer.Typer(help="See what checks in shadow would have done.", no_args_is_help=True)


async def read_tallies(settings: Settings, model: str, since: datetime) -> list[tuple[datetime, Tally]]:
    """The tallies of one model since then, each with the time at which Kafka got it. Raises KafkaUnavailable."""
    found: list[tuple[datetime, Tally]] = []

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if record.key == model.encode() and b'"tally"' in (record.value or b""):
                try:
                    tally = parse_control(record.value)
                except ValidationError:
                    continue  # The switch says so.
                if isinstance(tally, Tally):
                    found.append((time_of(record.timestamp), tally))

    try:
        counts = await check_topics(settings, ["control"])
        tp = TopicPartition(settings.topics.control, partition_for(model, counts["control"]))
        await read_to_end(settings.kafka, [tp], take, since=since)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return found


def in_shadow(policy: Policy | None) -> list[str]:
    """The checks of a policy that would block, and do not because of shadow."""
    if policy is None:
        return []
    return [one.name for one in policy.active_checks() if one.would_block and not policy.enforces(one)]


def _policy_of(settings: Settings, model: str) -> Policy | None:
    try:
        return load_policies(settings.policies).policies.get(model)
    except PolicyError:  # A person's machine need not have the policies.
        return None


def facts_of(versions: Mapping[str, VersionInShadow]) -> list[dict[str, Any]]:
    """For printing: JSON values."""
    return [
        {
            "version": name,
            "seen": one.seen,
            "approved": one.approved,
            "would_block": one.would_block,
            "by_check": dict(one.by_check.most_common()),
            "by_segment": {check: dict(counts.most_common()) for check, counts in one.by_segment.items()},
            "would_trip_at": one.would_trip_at.isoformat() if one.would_trip_at is not None else None,
            "would_trip": one.would_trip or None,
            "samples": [sample.model_dump(mode="json", exclude_none=True) for sample in one.samples],
        }
        for name, one in versions.items()
    ]


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

    async def look(settings: Settings) -> list[tuple[datetime, Tally]]:
        refuse_unknown(model, known_models(settings.policies, await read_routes(settings)))
        return await read_tallies(settings, model, utc_now() - since)

    def action() -> tuple[Policy | None, dict[str, VersionInShadow]]:
        settings = load_settings(config)
        tallies = [one for one in run(look(settings)) if version in (None, one[1].model_version)]
        policy = _policy_of(settings, model)
        return policy, report(tallies, policy.breaker if policy is not None else BreakerPolicy())

    policy, versions = perform(action)
    checks = in_shadow(policy)
    facts = {"model": model, "checks_in_shadow": checks, "versions": facts_of(versions)}
    show(as_json, facts, lambda console: _display(console, model, policy, versions))


def _display(console: Console, model: str, policy: Policy | None, versions: Mapping[str, VersionInShadow]) -> None:
    checks = in_shadow(policy)
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
