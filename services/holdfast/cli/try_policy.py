"""`holdfast check --try` and `--event`: what each check would say of real events. It creates and changes nothing."""

import heapq
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from rich.console import Console
from rich.text import Text

from holdfast.adapters.policies import load_policies
from holdfast.cli.terminal import Refused, table
from holdfast.core.findings import in_words
from holdfast.core.trial import Absent, Event, Trial, Tried, try_events
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.reading import read_to_end
from holdfast.kafka.topics import describe_topics
from holdfast.settings import Settings
from holdfast_schemas import utc_now


@dataclass(frozen=True, slots=True)
class _Given:
    """An event that did not come from Kafka."""

    value: bytes
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


async def try_topic(settings: Settings, topic: str, count: int) -> Trial:
    """Judge the newest `count` events of a topic. Raises KafkaUnavailable, PolicyError, Refused."""
    policies = load_policies(settings.policies)
    newest: list[tuple[int, int, int, ConsumerRecord]] = []

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            entry = (record.timestamp, record.offset, record.partition, record)
            if len(newest) < count:
                heapq.heappush(newest, entry)
            else:
                heapq.heappushpop(newest, entry)

    try:
        partitions = (await describe_topics(settings.kafka, [topic]))[topic]
    except KafkaUnavailable as error:
        if "does not exist" not in str(error):
            raise
        raise Refused(f"There is no topic {topic}. Name the topic that the predictions are written to.") from None
    try:
        await read_to_end(settings.kafka, [TopicPartition(topic, n) for n in range(partitions)], take, tail=count)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    if not newest:
        raise Refused(f"The topic {topic} holds no event that can be tried. Send some, then try again.")
    chosen = sorted((entry[3] for entry in newest), key=lambda record: (record.partition, record.offset))
    events = [Event(f"{topic}/{one.partition}/{one.offset}", one.partition, one) for one in chosen]
    return _try(settings, policies, events)


def try_file(settings: Settings, path: Path) -> Trial:
    """Judge the event of a file, or those of its lines, at this moment; `-` is the standard input.

    Raises PolicyError, Refused.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise Refused(
            f"{path} cannot be read: {error.strerror}. Name a file with an event, or one in each line."
        ) from None
    values = [content]
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        lines = [line for line in content.splitlines() if line.strip()]
        # One event may be broken over lines, and not be JSON.
        if len(lines) > 1 and all(line.lstrip()[:1] in (b"{", b"[") for line in lines):
            values = lines
    if not content.strip():
        raise Refused(f"{path} is empty. Name a file with an event, or one in each line.")
    now = utc_now()
    events = [Event(f"{path}:{number}", 0, _Given(value), now, has_key=False) for number, value in enumerate(values, 1)]
    return _try(settings, load_policies(settings.policies), events)


def _try(settings: Settings, policies: Any, events: Sequence[Event]) -> Trial:
    return try_events(
        policies,
        events,
        max_record_bytes=settings.guard.max_record_bytes,
        approve_without_policy=settings.guard.approves_without_policy(utc_now()),
    )


def facts(trial: Trial) -> dict[str, Any]:
    """For printing: JSON values."""
    return {
        "events": len(trial.tried),
        "decoded": trial.decoded,
        "approved": trial.approved,
        "blocked": trial.decoded - trial.approved,
        "malformed": {kind: {"count": count, "first": first} for kind, (count, first) in trial.reasons().items()},
        "checks": {
            model: {name: {word: counts[word] for word in _WORDS} for name, counts in checks.items()}
            for model, checks in trial.answers.items()
        },
        "absent_fields": [
            {
                "model": one.model,
                "field": one.field,
                "path": one.path,
                "checks": list(one.checks),
                "events": one.events,
                "instead": one.instead,
                "similar": list(one.similar),
            }
            for one in trial.absent
        ],
        "memory": "empty",
        "each": [_event(one) for one in trial.tried],
    }


_WORDS = ("pass", "fail", "unknown")


def _event(one: Tried) -> dict[str, Any]:
    if one.malformed is not None:
        return {
            "source": one.source,
            "verdict": "malformed",
            "kind": one.malformed.kind.value,
            "reason": one.malformed.reason,
        }
    return {
        "source": one.source,
        "verdict": "approved" if one.approved else "blocked",
        "model": one.model,
        "model_version": one.version,
        "entity_id": one.entity,
        "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in one.findings],
    }


def display(trial: Trial, console: Console) -> None:
    """For people: each event in a line, then the totals."""
    rows = table("event", "entity", "version", "verdict", "why")
    for one in trial.tried:
        if one.malformed is not None:
            rows.add_row(one.source, "", "", Text("malformed", style="bold red"), Text(one.malformed.reason))
            continue
        verdict = Text("approved", style="green") if one.approved else Text("blocked", style="red")
        why = "\n".join(_why(finding.enforced, in_words(finding)) for finding in one.findings)
        rows.add_row(one.source, Text(one.entity), Text(one.version), verdict, Text(why))
    console.print(rows)
    console.print()
    for model, checks in trial.answers.items():
        totals = table(f"check of {model}", *_WORDS)
        for name, counts in checks.items():
            totals.add_row(name, *(f"{counts[word]:,}" for word in _WORDS))
        if checks:
            console.print(totals)
            console.print()
    for kind, (count, first) in trial.reasons().items():
        console.print(f"{count:,} malformed ({kind}). The first: {first}.", soft_wrap=True)
    for absent in trial.absent:
        console.print(Text(_absent(absent), style="yellow"), soft_wrap=True)
    blocked = trial.decoded - trial.approved
    console.print(
        f"{len(trial.tried):,} events: {trial.approved:,} approved, {blocked:,} blocked, "
        f"{len(trial.tried) - trial.decoded:,} malformed.",
        soft_wrap=True,
    )
    console.print(
        "The memory was empty at the first event: max_change and outlier compare only with these events. Nothing was "
        "written.",
        soft_wrap=True,
    )


def _why(enforced: bool, words: str) -> str:
    return words if enforced else f"{words}, reported only"


def _absent(one: Absent) -> str:
    at = "" if one.path == one.field else f" (at {one.path})"
    readers = f"{'check' if len(one.checks) == 1 else 'checks'} {', '.join(one.checks)}"
    what = (
        f"stands in none of the {one.events:,} events"
        if one.instead == "nothing"
        else f"is {one.instead}, not a number"
    )
    similar = f" There is {' and '.join(one.similar)} beside it." if one.similar else ""
    return f"{one.model}: {one.field}{at}, which {readers} reads, {what}.{similar} Correct the name or the mapping."
