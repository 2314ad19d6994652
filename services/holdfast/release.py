"""Asking for releases: what waits is looked up, and the guards are asked to judge it again.

A person's login may write neither what is approved nor the audit: it writes commands to `holdfast.releases`, at most
500 predictions in each, in the partition of the predictions. A guard answers each of them in the audit, by the policies
that are in force there.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from holdfast.adapters.blocked import Blocked
from holdfast.adapters.commands import parse_stored
from holdfast.adapters.kafka import KafkaUnavailable, check_topics, close, read_to_end, reader
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.malformed import MalformedRecord
from holdfast.adapters.policies import load_policies
from holdfast.core.malformed import Identity
from holdfast.core.policy import EMPTY, PolicyError
from holdfast.core.releases import RELEASE, RETRY, Answer
from holdfast.settings import Settings
from holdfast_schemas import MAX_RELEASES, AuditRecord, Finding, ReleaseCommand, WaitingPrediction

MAX_BYTES = 8 * 1024 * 1024
"""Of the records that one command names: a guard holds them all at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which predictions are meant; `since` is about when the prediction was written."""

    model: str
    since: datetime
    version: str | None = None
    check: str | None = None
    sources: frozenset[str] = frozenset()

    def fits(self, one: Blocked) -> bool:
        return (
            one.model == self.model
            and one.at >= self.since
            and self.version in (None, one.version)
            and (self.check is None or any(self.check == finding.check for finding in one.findings))
            and (not self.sources or one.source in self.sources)
        )

    def may_fit(self, one: MalformedRecord) -> bool:
        """Whether a malformed record can be one of these: a guard decodes it, and may find it to be another model's."""
        return (
            one.at >= self.since and one.model in ("", self.model) and (not self.sources or one.source in self.sources)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """How a person asks, beside the predictions."""

    actor: str
    reason: str
    force: bool = False
    superseded: bool = False
    dry_run: bool = False
    wait: float = 30.0
    """Seconds to wait for the next answer."""


@dataclass(frozen=True, slots=True)
class Released:
    """What a guard answers to one prediction; `findings` are what fails the policy that is in force."""

    source: str
    answer: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """What the guards answer. The parts of the command have ids that begin with `command_id`."""

    command_id: str
    results: list[Released] = field(default_factory=list)


class _Place(NamedTuple):
    """Where a record stands that waits for its release."""

    partition: int
    offset: int
    source: str
    size: int


async def _each_page(
    settings: Settings,
    wanted: Wanted,
    partitions: Sequence[int],
    on_page: Callable[[list[Blocked]], Awaitable[None] | None],
) -> None:
    """Hand over what is wanted, in the order of each partition, as much at a time as a fetch brings."""

    def take(records: Sequence[ConsumerRecord]) -> Awaitable[None] | None:
        page: list[Blocked] = []
        for record in records:
            try:
                one = Blocked.of(record)
            except ValueError:
                continue  # What no guard wrote is nobody's prediction.
            if wanted.fits(one):
                page.append(one)
        return on_page(page) if page else None

    tps = [TopicPartition(settings.topics.blocked, number) for number in partitions]
    await read_to_end(settings.kafka, tps, take, since=wanted.since)


def reader_of(settings: Settings, model: str) -> Callable[[Blocked], Identity]:
    """What reads who a blocked prediction is, by the policy's mapping, or the contract's where there is no policy."""
    try:
        policies = load_policies(settings.policies)
    except PolicyError:  # A person's machine need not have the policies.
        policies = EMPTY
    shape = policies.shapes[policies.shape_of_model.get(model, 0)]
    return lambda one: shape.identity_of(one.record.value)


async def find_blocked(settings: Settings, wanted: Wanted, *, limit: int) -> tuple[int, list[Blocked]]:
    """How many blocked predictions are wanted, and the latest `limit` of them, oldest first.

    Raises KafkaUnavailable.
    """
    settings = settings.of_model(wanted.model)
    count, latest = 0, list[Blocked]()

    def keep(page: list[Blocked]) -> None:
        nonlocal count, latest
        count += len(page)
        latest = sorted([*latest, *page], key=lambda one: (one.at, one.record.partition, one.record.offset))[-limit:]

    try:
        counts = await check_topics(settings, ["blocked"])
        await _each_page(settings, wanted, range(counts["blocked"]), keep)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return count, latest


async def release(settings: Settings, wanted: Wanted, asked: Asked) -> Answers:
    """Ask the guards to release what is wanted of what was blocked; see `_ask`."""
    return await _ask(settings, wanted, asked, RELEASE)


async def retry(settings: Settings, wanted: Wanted, asked: Asked) -> Answers:
    """Ask the guards to decode and judge again what could not be decoded; see `_ask`."""
    return await _ask(settings, wanted, asked, RETRY)


async def _ask(settings: Settings, wanted: Wanted, asked: Asked, action: str) -> Answers:
    """Write the commands, and wait until the guards have answered each of them.

    Where nothing is wanted no command is written, and there are no results. Where something is found, every other
    source that was named is answered too. Raises KafkaUnavailable, also when no guard answers in time: the commands may
    be carried out later.
    """
    settings = settings.of_model(wanted.model)
    role = "malformed" if action == RETRY else "blocked"
    command_id = os.urandom(12).hex()
    try:
        counts = await check_topics(settings, [role, "releases", "audit"])
        places = await _find(settings, wanted, role, counts[role])
        if not places:
            return Answers(command_id)
        if (most := max(place.partition for place in places)) >= counts["releases"]:
            raise KafkaUnavailable(
                f"The topic {settings.topics.releases} has {counts['releases']} partitions, and there are blocked or "
                f"malformed predictions in partition {most}. Add partitions: holdfast topics create --fix"
            )
        commands = [
            (some[0].partition, _command(f"{command_id}.{number}", wanted, asked, action, some))
            for number, some in enumerate(_parts(places))
        ]
        audits = await _send(settings, counts["audit"], commands, command_id, asked.wait)
    except KafkaError as error:
        raise KafkaUnavailable(
            f"{await explain(settings.kafka, error)} What was asked for may be done later; ask again: nothing is "
            "released twice."
        ) from None
    results: list[Released] = []
    for _, command in commands:
        audit = audits[command.command_id]
        if audit.answers is None:
            raise KafkaUnavailable(
                f"A guard refused the command {command.command_id}: {audit.detail}. Correct that, and ask again: "
                "nothing is released twice."
            )
        results += [Released(one.source, one.answer, one.findings) for one in audit.answers]
    if results:
        missing = wanted.sources - {result.source for result in results}
        results += [Released(source, Answer.NOT_FOUND) for source in sorted(missing)]
    return Answers(command_id, results)


async def _find(settings: Settings, wanted: Wanted, role: str, partitions: int) -> list[_Place]:
    """Where the records of what is wanted stand, partition by partition."""
    found: list[_Place] = []

    def place(source: str, record: ConsumerRecord) -> _Place:
        return _Place(record.partition, record.offset, source, _size(record))

    def take_blocked(page: list[Blocked]) -> None:
        found.extend(place(one.source, one.record) for one in page)

    def take_malformed(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            try:
                one = MalformedRecord.of(record, settings.topics.predictions)
            except ValueError:
                continue
            if wanted.may_fit(one):
                found.append(place(one.source, record))

    if role == "blocked":
        await _each_page(settings, wanted, range(partitions), take_blocked)
    else:
        tps = [TopicPartition(settings.topics.malformed, number) for number in range(partitions)]
        await read_to_end(settings.kafka, tps, take_malformed, since=wanted.since)
    return sorted(found)


def _size(record: ConsumerRecord) -> int:
    return len(record.key or b"") + len(record.value or b"") + sum(len(value or b"") for _, value in record.headers)


def _parts(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    """As many at a time as fit into one command, of one partition."""
    part: list[_Place] = []
    size = 0
    for place in places:
        too_much = len(part) == MAX_RELEASES or size + place.size > MAX_BYTES
        if part and (too_much or part[0].partition != place.partition):
            yield part
            part, size = [], 0
        part.append(place)
        size += place.size
    if part:
        yield part


def _command(command_id: str, wanted: Wanted, asked: Asked, action: str, some: Sequence[_Place]) -> ReleaseCommand:
    return ReleaseCommand(
        command_id=command_id,
        action="retry" if action == RETRY else "release",
        model=wanted.model,
        version=wanted.version,
        predictions=tuple(WaitingPrediction(source=one.source, offset=one.offset) for one in some),
        actor=asked.actor,
        reason=asked.reason,
        force=asked.force,
        superseded=asked.superseded,
        dry_run=asked.dry_run,
    )


async def _send(
    settings: Settings, audits: int, commands: Sequence[tuple[int, ReleaseCommand]], command_id: str, wait: float
) -> dict[str, AuditRecord]:
    """Write the commands, and return the audit record that answers each of them, by its id."""
    tps = [TopicPartition(settings.topics.audit, number) for number in range(audits)]
    answers = reader(settings.kafka, fetch_max_wait_ms=50)
    producer = AIOKafkaProducer(enable_idempotence=True, acks="all", **settings.kafka.client_options())
    found: dict[str, AuditRecord] = {}
    left = {command.command_id for _, command in commands}
    try:
        await answers.start()
        await producer.start()
        answers.assign(tps)
        # From here on, before the commands are written, so that no answer is missed.
        for tp, end in (await answers.end_offsets(tps)).items():
            answers.seek(tp, end)
        for partition, command in commands:
            await producer.send_and_wait(
                settings.topics.releases, command.to_json(), key=command.model.encode(), partition=partition
            )
        while left:
            async with asyncio.timeout(wait):
                some = await _next_answers(settings, answers, command_id, left)
            found |= some
            left -= some.keys()
    except TimeoutError:
        answered = f"{len(found):,} of {len(commands):,} parts" if found else "nothing"
        raise KafkaUnavailable(
            f"The command {command_id} was written, but the guards have answered {answered} of it, and no more within "
            f"{wait:g} s. Nothing is lost: a guard carries it out as soon as it can. See whether one runs: holdfast "
            "doctor. Then ask again to see what was done: nothing is released twice."
        ) from None
    finally:
        await close(producer)
        await close(answers)
    return found


async def _next_answers(
    settings: Settings, answers: AIOKafkaConsumer, command_id: str, left: set[str]
) -> dict[str, AuditRecord]:
    """Wait for answers to these commands; at least one."""
    found: dict[str, AuditRecord] = {}
    while not found:
        for records in (await answers.getmany(timeout_ms=1000)).values():
            for record in records:
                # Others may be by a newer Holdfast, which this one cannot read.
                if command_id.encode() in (record.value or b""):
                    audit = parse_stored(AuditRecord, settings.topics.audit, str(record.key, "utf-8"), record.value)
                    # One with a source tells of a released prediction, and not of the command.
                    if audit.command_id in left and audit.source is None:
                        found[audit.command_id] = audit
    return found
