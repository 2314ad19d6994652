"""Send a command and wait for its outcome; read what the switch has published.

Through the API where `api.url` is set, else straight from and to Kafka.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from holdfast.adapters import through_api
from holdfast.core.command_signature import CommandSigner
from holdfast.core.errors import first_flaw
from holdfast.core.model_state import ModelState, VersionState
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.partitioner import partition_for
from holdfast.kafka.reading import close, read_latest, reader
from holdfast.kafka.topics import check_topics
from holdfast.settings import Settings
from holdfast_schemas import AuditRecord, Command, Contract, Incident, Outcome, Route, utc_now

T = TypeVar("T", bound=Contract)
OUTCOME_WITHIN = 15.0
"""Seconds to wait for the switch."""


async def send_command(settings: Settings, command: Command) -> AuditRecord:
    """Write the command to `holdfast.control` and return its audit record.

    Raises KafkaUnavailable, also when no switch answers in time; the command may then still be applied later; and
    ApiUnavailable.
    """
    if through_api.is_configured(settings):
        return await through_api.send(settings, command)
    counts = await check_topics(settings, ["control", "audit"])
    tps = [TopicPartition(settings.topics.audit, number) for number in range(counts["audit"])]
    answers = reader(settings.kafka, fetch_max_wait_ms=50)
    producer = AIOKafkaProducer(enable_idempotence=True, **settings.kafka.client_options())
    try:
        await answers.start()
        await producer.start()
        answers.assign(tps)
        # From here on, before the command is written, so that its outcome cannot be missed.
        for tp, end in (await answers.end_offsets(tps)).items():
            answers.seek(tp, end)
        await producer.send_and_wait(settings.topics.control, command.to_json(), key=command.model.encode())
        async with asyncio.timeout(OUTCOME_WITHIN):
            while True:
                for records in (await answers.getmany(timeout_ms=1000)).values():
                    for record in records:
                        # Others may be by a newer Holdfast, which this one cannot read.
                        if command.command_id.encode() in (record.value or b""):
                            audit = parse_stored(AuditRecord, settings.topics.audit, command.model, record.value)
                            if audit.command_id == command.command_id:
                                return audit
    except TimeoutError:
        raise KafkaUnavailable(
            f"The command was written, but no switch answered within {OUTCOME_WITHIN:g} s. Start a switch: it will "
            f"be carried out then (command {command.command_id}); see: holdfast route show {command.model}"
        ) from None
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await close(producer)
        await close(answers)


def signed(signer: CommandSigner | None, topic: str, value: bytes) -> list[tuple[str, bytes]]:
    """The headers of a command."""
    return [signer.header(topic, value, int(time.time() * 1000))] if signer is not None else []


class CommandWriter:
    """Writes commands to `holdfast.control` through one producer that stays open, signed where there is a key."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a key that cannot be used."""
        self._settings = settings
        self._signer = settings.api.command_signer()
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def write(self, command: Command) -> None:
        """Return once the broker has the command. Raises KafkaUnavailable; it may be written nevertheless."""
        try:
            if self._producer is None:
                async with self._starting:
                    if self._producer is None:
                        self._producer = await self._open()
            topic, value = self._settings.topics.control, command.to_json()
            headers = signed(self._signer, topic, value)
            await self._producer.send_and_wait(topic, value, key=command.model.encode(), headers=headers)
        except KafkaError as error:
            # After some errors a producer takes nothing any more.
            await self.close()
            raise KafkaUnavailable(await explain(self._settings.kafka, error)) from None

    async def _open(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(enable_idempotence=True, **self._settings.kafka.client_options())
        try:
            await producer.start()
        except BaseException:
            # Also when the caller waits no longer: each attempt has connections of its own.
            await close(producer)
            raise
        return producer

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await close(producer)


async def follow_promotion(settings: Settings, promoted: AuditRecord) -> AsyncIterator[AuditRecord]:
    """One record for each change of the route of a version that was promoted, until its fate is known.

    The last record has the action `earned_good` (`applied`) once the version is good, and `fenced` or `left`
    (`refused`) as soon as it serves no longer. Raises KafkaUnavailable.
    """
    version = promoted.version or ""
    epoch, in_shadow = promoted.epoch, False
    follow = through_api.follow_state if through_api.is_configured(settings) else _follow_state
    async with contextlib.aclosing(follow(settings, promoted.model)) as states:
        async for state in states:
            if state.route is None or state.route.epoch < promoted.epoch:
                continue
            change = _fate(version, state, state.route)
            if change is None and not in_shadow and (told := _fails_in_shadow(version, state)) is not None:
                in_shadow = True
                waits = {"at": utc_now(), "action": "waiting", "detail": told, "epoch": state.route.epoch}
                yield promoted.model_copy(update=waits)
            if change is None and state.route.epoch == epoch:
                continue
            epoch = state.route.epoch
            action, outcome, detail = change or (
                "waiting",
                Outcome.APPLIED,
                f"{version} serves on, {state.route.state.value}: {state.route.reason}",
            )
            yield promoted.model_copy(
                update={"at": utc_now(), "action": action, "outcome": outcome, "detail": detail, "epoch": epoch}
            )
            if change is not None:
                return


async def _follow_state(settings: Settings, model: str) -> AsyncGenerator[ModelState, None]:
    """Every state that the switch writes of the model, from the beginning. Raises KafkaUnavailable."""
    counts = await check_topics(settings, ["state"])
    tp = TopicPartition(settings.topics.state, partition_for(model, counts["state"]))
    states = reader(settings.kafka, fetch_max_wait_ms=200)
    try:
        await states.start()
        states.assign([tp])
        await states.seek_to_beginning(tp)
        while True:
            for record in (await states.getmany(tp, timeout_ms=1000)).get(tp, []):
                if record.key == model.encode() and record.value is not None:
                    yield parse_stored(ModelState, settings.topics.state, model, record.value)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await close(states)


def _fails_in_shadow(version: str, state: ModelState) -> str | None:
    """Why the version does not earn good although it is approved; None: it may."""
    known = state.versions.get(version)
    if known is None or not known.window.nearly_all_fail_in_shadow:
        return None
    return (
        f"{version} does not earn good for now: {known.window.shadow_failed:,} of its last {known.window.seen:,} "
        f"outputs fail checks in shadow; see: holdfast shadow report {state.model}"
    )


def _fate(version: str, state: ModelState, route: Route) -> tuple[str, Outcome, str] | None:
    """What a promotion has come to, or None while that is open."""
    known = state.versions.get(version)
    if known is not None and known.state is VersionState.FENCED:
        return "fenced", Outcome.REFUSED, f"{version} was fenced: {route.reason}"
    if route.version != version:
        now = f"{route.version} serves" if route.version else "the route is held"
        return "left", Outcome.REFUSED, f"{version} was left before it was good: {now}, because {route.reason}"
    if known is not None and known.state is VersionState.GOOD:
        return "earned_good", Outcome.APPLIED, f"{version} is active and good"
    return None


async def read_routes(settings: Settings) -> dict[str, Route]:
    """The routes of all models as they are now. Raises KafkaUnavailable, ApiUnavailable."""
    if through_api.is_configured(settings):
        return await through_api.routes(settings)
    return await routes_in_kafka(settings)


async def routes_in_kafka(settings: Settings) -> dict[str, Route]:
    """The same, always from Kafka. Raises KafkaUnavailable."""
    return await _latest(settings, "routes", Route)


async def read_states(settings: Settings) -> dict[str, ModelState]:
    """What the switch knows of each model. Raises KafkaUnavailable, ApiUnavailable."""
    if through_api.is_configured(settings):
        return await through_api.states(settings)
    return await _latest(settings, "state", ModelState)


async def read_state(settings: Settings, model: str) -> ModelState | None:
    """What the switch knows of one model; None: nothing. Raises KafkaUnavailable, ApiUnavailable."""
    if through_api.is_configured(settings):
        return (await through_api.states(settings, model)).get(model)
    counts = await check_topics(settings, ["state"])
    topic = settings.topics.state
    try:
        latest = await read_latest(settings.kafka, topic, [partition_for(model, counts["state"])])
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return parse_stored(ModelState, topic, model, latest[model]) if model in latest else None


async def read_incidents(settings: Settings, left_out: Callable[[str], None]) -> dict[str, Incident]:
    """Every incident within the topic's retention, as it is now, by id. Raises KafkaUnavailable.

    Of one that cannot be read `left_out` is told: people need the rest all the more.
    """
    if through_api.is_configured(settings):
        return await through_api.incidents(settings, left_out)
    return await _latest(settings, "incidents", Incident, left_out)


async def _latest(
    settings: Settings, role: str, kind: type[T], left_out: Callable[[str], None] | None = None
) -> dict[str, T]:
    counts = await check_topics(settings, [role])
    topic = getattr(settings.topics, role)
    try:
        latest = await read_latest(settings.kafka, topic, range(counts[role]))
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    found: dict[str, T] = {}
    for key, value in latest.items():
        try:
            found[key] = parse_stored(kind, topic, key, value)
        except KafkaUnavailable as error:
            if left_out is None:
                raise
            left_out(str(error))
    return found


def parse_stored(kind: type[T], topic: str, key: str, value: bytes) -> T:
    """What Holdfast has written. Raises KafkaUnavailable where that cannot be read."""
    try:
        return kind.model_validate_json(value)
    except ValidationError as error:
        raise KafkaUnavailable(
            f"The record of {key!r} in {topic} cannot be read: {first_flaw(error)}. Only Holdfast may write there; if "
            "a newer one did, use that version here too."
        ) from None
