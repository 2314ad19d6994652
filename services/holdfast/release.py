"""Asking for releases: what waits is looked up, and the guards are asked to judge it again.

A person's login may write neither what is approved nor the audit: it writes commands to `holdfast.releases`, at most
500 predictions in each, in the partition of the predictions. A guard answers each of them in the audit, by the policies
that are in force there. Where `api.url` is set, the API does all of this, in the name of the token.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from holdfast.adapters import through_api
from holdfast.adapters.blocked import Blocked
from holdfast.adapters.commands import parse_stored, signed
from holdfast.adapters.malformed import MalformedRecord
from holdfast.adapters.policies import load_policies
from holdfast.core.command_signature import CommandSigner
from holdfast.core.errors import HoldfastError
from holdfast.core.malformed import Identity
from holdfast.core.policy import EMPTY, PolicyError
from holdfast.core.releases import RELEASE, RETRY, Answer
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.reading import close, read_to_end, reader
from holdfast.kafka.topics import check_topics
from holdfast.settings import Settings
from holdfast_schemas import MAX_RELEASES, AuditRecord, Finding, ReleaseCommand, WaitingPrediction

MAX_BYTES = 8 * 1024 * 1024
"""Of the records that one command names: a guard holds them all at once."""


class NotAnswered(KafkaUnavailable):
    """No guard answered in time; what was asked for may be done later."""


class RefusedByGuard(KafkaUnavailable):
    """A guard refused a command as a whole."""


class TooMany(HoldfastError):  # noqa: N818  the message says what to do
    """More predictions fit than may be asked for at once."""


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


@dataclass(frozen=True, slots=True)
class Listed:
    """A blocked prediction as it is listed; `prediction` is its contents, which the API does not show."""

    source: str
    at: datetime
    version: str
    findings: tuple[Finding, ...]
    entity_id: str | None
    prediction_id: str | None
    prediction: Any = None


def _reader_of(settings: Settings, model: str) -> Callable[[Blocked], Identity]:
    """What reads who a blocked prediction is, by the policy's mapping, or the contract's where there is no policy."""
    try:
        policies = load_policies(settings.policies)
    except PolicyError:  # A person's machine need not have the policies.
        policies = EMPTY
    shape = policies.shapes[policies.shape_of_model.get(model, 0)]
    return lambda one: shape.identity_of(one.record.value)


async def find_blocked(settings: Settings, wanted: Wanted, *, limit: int) -> tuple[int, list[Listed]]:
    """How many blocked predictions are wanted, and the latest `limit` of them, oldest first.

    Raises KafkaUnavailable, ApiUnavailable.
    """
    if through_api.is_configured(settings):
        query = {"model": wanted.model, "version": wanted.version, "check": wanted.check, "limit": min(limit, 500)}
        found = await through_api.blocked(settings, wanted.since, query)
        return found["total"], [
            Listed(
                one["source"],
                datetime.fromisoformat(one["at"]),
                one["version"],
                _findings(one),
                one.get("entity_id"),
                one.get("prediction_id"),
            )
            for one in found["items"]
        ]
    return await find_in_kafka(settings, wanted, limit=limit, with_contents=True)


async def find_in_kafka(
    settings: Settings, wanted: Wanted, *, limit: int, with_contents: bool = False
) -> tuple[int, list[Listed]]:
    """The same, always from Kafka. Raises KafkaUnavailable."""
    settings = settings.of_model(wanted.model)
    count, latest = 0, list[tuple[datetime, int, int, Listed]]()
    identity_of = await asyncio.to_thread(_reader_of, settings, wanted.model)

    def keep(page: list[Blocked]) -> None:
        nonlocal count, latest
        count += len(page)
        # Of a page, what is not among its latest is not among the latest of all.
        page = sorted(page, key=lambda one: (one.at, one.record.partition, one.record.offset))[-limit:]
        latest += [(one.at, one.record.partition, one.record.offset, listed(one)) for one in page]
        latest = sorted(latest, key=lambda one: one[:3])[-limit:]

    def listed(one: Blocked) -> Listed:
        who = identity_of(one)
        contents = one.facts()["prediction"] if with_contents else None
        return Listed(one.source, one.at, one.version, one.findings, who.entity_id, who.prediction_id, contents)

    try:
        counts = await check_topics(settings, ["blocked"])
        await _each_page(settings, wanted, range(counts["blocked"]), keep)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return count, [one for _, _, _, one in latest]


async def release(settings: Settings, wanted: Wanted, asked: Asked) -> Answers:
    """Ask the guards to release what is wanted of what was blocked; see `ask_guards`."""
    return await _ask(settings, wanted, asked, RELEASE)


async def retry(settings: Settings, wanted: Wanted, asked: Asked) -> Answers:
    """Ask the guards to decode and judge again what could not be decoded; see `ask_guards`."""
    return await _ask(settings, wanted, asked, RETRY)


async def _ask(settings: Settings, wanted: Wanted, asked: Asked, action: str) -> Answers:
    if not through_api.is_configured(settings):
        return await ask_guards(settings, wanted, asked, action, command_id=os.urandom(12).hex())
    body = {
        "model": wanted.model,
        "reason": asked.reason,
        "version": wanted.version,
        "check": wanted.check,
        "sources": sorted(wanted.sources),
        "force": asked.force,
        "superseded": asked.superseded,
        "dry_run": asked.dry_run,
    }
    said = await through_api.ask_for_releases(settings, action, wanted.since, body)
    results = [Released(one["source"], one["answer"], _findings(one)) for one in said["predictions"]]
    return Answers(said["command_id"], results)


def _findings(one: dict[str, Any]) -> tuple[Finding, ...]:
    return tuple(Finding.model_validate_json(json.dumps(finding)) for finding in one.get("findings", []))


async def ask_guards(
    settings: Settings,
    wanted: Wanted,
    asked: Asked,
    action: str,
    *,
    command_id: str,
    most: int | None = None,
    signer: CommandSigner | None = None,
) -> Answers:
    """Write the commands to Kafka, and wait until the guards have answered each of them.

    Where nothing is wanted no command is written, and there are no results. Where something is found, every other
    source that was named is answered too. Raises KafkaUnavailable; NotAnswered when no guard answers in time: the
    commands may be carried out later; RefusedByGuard; TooMany, before anything is written, for more than `most`.
    """
    settings = settings.of_model(wanted.model)
    role = "malformed" if action == RETRY else "blocked"
    try:
        counts = await check_topics(settings, [role, "releases", "audit"])
        places = await _find(settings, wanted, role, counts[role])
        if not places:
            return Answers(command_id)
        if most is not None and len(places) > most:
            raise TooMany(
                f"{len(places):,} predictions fit, and at most {most:,} are asked for at once. Ask for fewer: by "
                "version, by check, by a shorter time, or by their sources."
            )
        if (highest := max(place.partition for place in places)) >= counts["releases"]:
            raise KafkaUnavailable(
                f"The topic {settings.topics.releases} has {counts['releases']} partitions, and there are blocked or "
                f"malformed predictions in partition {highest}. Add partitions: holdfast topics create --fix"
            )
        parts = list(_parts(places))
        commands = [
            (some[0].partition, _command(part_id(command_id, number, len(parts)), wanted, asked, action, some))
            for number, some in enumerate(parts)
        ]
        audits = await _send(settings, counts["audit"], commands, command_id, asked.wait, signer)
    except KafkaError as error:
        raise KafkaUnavailable(
            f"{await explain(settings.kafka, error)} What was asked for may be done later; ask again: nothing is "
            "released twice."
        ) from None
    return answers_of(command_id, [audits[command.command_id] for _, command in commands], wanted.sources)


def part_id(command_id: str, number: int, count: int) -> str:
    """The id of one command of several that are asked for together."""
    return f"{command_id}.{number}-of-{count}"


def answers_of(command_id: str, audits: Sequence[AuditRecord], named: frozenset[str]) -> Answers:
    """What the records that answer all parts say. Raises RefusedByGuard."""
    results: list[Released] = []
    for audit in audits:
        if audit.answers is None:
            raise RefusedByGuard(
                f"A guard refused the command {audit.command_id}: {audit.detail}. Correct that, and ask again: "
                "nothing is released twice."
            )
        results += [Released(one.source, one.answer, one.findings) for one in audit.answers]
    if results:
        missing = named - {result.source for result in results}
        results += [Released(source, Answer.NOT_FOUND) for source in sorted(missing)]
    return Answers(command_id, results)


async def read_answers(settings: Settings, command_id: str, some_part: str, since: datetime) -> list[AuditRecord]:
    """The records that answered a command, part by part, as the audit has them since a time.

    `some_part` is the id of any part. Raises KafkaUnavailable; NotAnswered where a part has no answer.
    """
    count = int(some_part.rpartition("-of-")[2])
    found: dict[str, AuditRecord] = {}
    left = {part_id(command_id, number, count) for number in range(count)}

    def take(records: Sequence[ConsumerRecord]) -> None:
        _take_answers(settings, records, command_id, left, found)

    try:
        counts = await check_topics(settings, ["audit"])
        tps = [TopicPartition(settings.topics.audit, number) for number in range(counts["audit"])]
        await read_to_end(settings.kafka, tps, take, since=since)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    if left - found.keys():
        raise NotAnswered(
            f"Of the command {command_id} the guards have answered {len(found):,} of {count:,} parts. What it was "
            "answered is in the audit; ask again: nothing is released twice."
        )
    return [found[part_id(command_id, number, count)] for number in range(count)]


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
    settings: Settings,
    audits: int,
    commands: Sequence[tuple[int, ReleaseCommand]],
    command_id: str,
    wait: float,
    signer: CommandSigner | None,
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
            topic, value = settings.topics.releases, command.to_json()
            headers = signed(signer, topic, value)
            await producer.send_and_wait(topic, value, command.model.encode(), partition, headers=headers)
        while left:
            async with asyncio.timeout(wait):
                some = await _next_answers(settings, answers, command_id, left)
            found |= some
            left -= some.keys()
    except TimeoutError:
        answered = f"{len(found):,} of {len(commands):,} parts" if found else "nothing"
        raise NotAnswered(
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
            _take_answers(settings, records, command_id, left, found)
    return found


def _take_answers(
    settings: Settings,
    records: Sequence[ConsumerRecord],
    command_id: str,
    left: set[str],
    found: dict[str, AuditRecord],
) -> None:
    """Add to `found` what answers the commands of these ids."""
    for record in records:
        # Others may be by a newer Holdfast, which this one cannot read.
        if command_id.encode() in (record.value or b""):
            audit = parse_stored(AuditRecord, settings.topics.audit, str(record.key, "utf-8"), record.value)
            # One with a source tells of a released prediction, and not of the command.
            if audit.command_id in left and audit.source is None:
                found[audit.command_id] = audit
