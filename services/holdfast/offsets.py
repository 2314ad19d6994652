"""`holdfast offsets`: how far guards and switch have come, and where a partition goes on.

A new position is committed in a transaction of the partition's own transactional id. Kafka takes that while the
service runs, and it fences the worker that has the partition: the worker ends its batch unpublished, opens again, and
reads where to go on. So nothing needs to be stopped, and no batch is cut in two.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from rich.console import Console
from rich.table import Table

from holdfast.adapters.evidence import Evidence
from holdfast.adapters.kafka import KafkaUnavailable, bounds, partitions_of
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.offsets import committed_offset
from holdfast.adapters.topic_ids import topic_ids
from holdfast.core.progress import Committed
from holdfast.settings import Settings, load_settings
from holdfast.terminal import ConfigOption, JsonOption, Refused, perform, run, show

offsets_app = typer.Typer(help="See how far guards and switch have come, and say where to go on.", no_args_is_help=True)

WITHIN = 20.0
"""Seconds for one partition: as long as a worker's transaction may stay open."""


class Service(StrEnum):
    GUARD = "guard"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class Place:
    """One partition of what a service reads. `committed` is None before the service has begun there."""

    partition: int
    committed: int | None
    first: int
    end: int

    @property
    def waiting(self) -> int:
        return self.end - max(self.first, self.first if self.committed is None else self.committed)


def _read_by(settings: Settings, service: Service) -> tuple[str, str]:
    """The topic and the group."""
    if service is Service.GUARD:
        return settings.topics.predictions, settings.guard.group
    return settings.topics.control, settings.switch.group


async def places(settings: Settings, service: Service) -> list[Place]:
    """How far a service has come. Raises KafkaUnavailable."""
    topic, group = _read_by(settings, service)
    consumer = AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **settings.kafka.client_options())
    try:
        tps = [TopicPartition(topic, number) for number in range(await partitions_of(settings.kafka, topic))]
        firsts, ends = await bounds(settings.kafka, tps, None, "read_uncommitted")
        await consumer.start()
        return [Place(tp.partition, await committed_offset(consumer, tp), firsts[tp], ends[tp]) for tp in tps]
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await consumer.stop()


async def set_offsets(
    settings: Settings, service: Service, partitions: list[int], to: str, *, force: bool
) -> dict[int, int]:
    """Commit where the service goes on; the new offset by partition, of all of them where none is named.

    Raises Refused, and KafkaUnavailable.
    """
    topic, group = _read_by(settings, service)
    if service is Service.GUARD and settings.guard.delivery == "at_least_once" and await _members(settings, group):
        raise Refused(
            "Guards run, and with guard.delivery = at_least_once they would write their own offsets over these. Stop "
            "them, and run the command again."
        )
    known = await places(settings, service)
    if strange := sorted(set(partitions) - {place.partition for place in known}):
        raise Refused(f"{topic} has no partition {strange[0]}; it has 0 to {len(known) - 1}.")
    chosen = [place for place in known if place.partition in partitions or not partitions]
    wanted = {place.partition: await _offset_of(settings, topic, place, to) for place in chosen}
    if not force:
        await _refuse_what_repeats(settings, service, chosen, wanted)
    try:
        for place in chosen:
            await asyncio.wait_for(_commit(settings, service, place.partition, wanted[place.partition]), WITHIN)
    except TimeoutError:
        raise KafkaUnavailable(
            f"Kafka did not take the offset within {WITHIN:g} s. See its log, then run the command again."
        ) from None
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return wanted


async def _members(settings: Settings, group: str) -> int:
    admin = AIOKafkaAdminClient(**settings.kafka.client_options())
    try:
        await admin.start()
        (response,) = await admin.describe_consumer_groups([group])
        return len(response.groups[0][5])
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await admin.close()


async def _offset_of(settings: Settings, topic: str, place: Place, to: str) -> int:
    if to in ("earliest", "latest"):
        return place.first if to == "earliest" else place.end
    if to.isdecimal():
        if not place.first <= int(to) <= place.end:
            raise Refused(
                f"Partition {place.partition} of {topic} has offsets {place.first} to {place.end}; {to} is not among "
                "them. Name one that is."
            )
        return int(to)
    try:
        since = datetime.fromisoformat(to)
    except ValueError:
        since = None
    if since is None or since.tzinfo is None:
        raise Refused(f"--to {to} is not an offset, earliest, latest, or a time such as 2026-11-24T10:00:00Z.")
    tp = TopicPartition(topic, place.partition)
    return (await bounds(settings.kafka, [tp], since, "read_committed"))[0][tp]


async def _refuse_what_repeats(
    settings: Settings, service: Service, chosen: list[Place], wanted: dict[int, int]
) -> None:
    evidence = Evidence(settings)
    for place in chosen:
        done = place.committed or 0
        if service is Service.GUARD:
            last = (await evidence.of(place.partition)).last
            done = max(done, 0 if last is None else last + 1)
        to = wanted[place.partition]
        if max(to, place.first) < min(done, place.end):
            what = "approve outputs" if service is Service.GUARD else "count tallies and obey commands"
            raise Refused(
                f"Partition {place.partition} was checked up to offset {done}. From offset {to} the {service} would "
                f"{what} a second time. Name {done} or a later offset, or add --force."
            )


async def _commit(settings: Settings, service: Service, partition: int, offset: int) -> None:
    topic, group = _read_by(settings, service)
    producer = AIOKafkaProducer(
        transactional_id=f"{group}-{topic}-{partition}", enable_idempotence=True, **settings.kafka.client_options()
    )
    await producer.start()
    try:
        topic_id = (await topic_ids(producer.client, [topic])).get(topic)
        metadata = Committed(offset, is_position=True, topic_id=topic_id).metadata()
        async with producer.transaction():
            await producer.send_offsets_to_transaction(
                {TopicPartition(topic, partition): OffsetAndMetadata(offset, metadata)}, group
            )
    finally:
        await producer.stop()


ServiceArgument = Annotated[Service, typer.Argument(help="Whose offsets.")]


@offsets_app.command("show")
def offsets_show(
    service: ServiceArgument = Service.GUARD, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Print by partition how far it was checked, and how many offsets wait."""
    found = perform(lambda: run(places(load_settings(config), service)))

    def display(console: Console) -> None:
        table = Table("partition", "first", "goes on at", "end", "waiting")
        for place in found:
            committed = "not begun" if place.committed is None else str(place.committed)
            table.add_row(str(place.partition), str(place.first), committed, str(place.end), str(place.waiting))
        console.print(table)

    facts: list[dict[str, Any]] = [
        {
            "partition": place.partition,
            "first": place.first,
            "committed": place.committed,
            "end": place.end,
            "waiting": place.waiting,
        }
        for place in found
    ]
    show(as_json, facts, display)


@offsets_app.command("set")
def offsets_set(
    service: ServiceArgument,
    to: Annotated[str, typer.Option("--to", help="An offset, earliest, latest, or a time: 2026-11-24T10:00:00Z.")],
    partition: Annotated[list[int] | None, typer.Option(help="One partition, repeatable; all without it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where something would be checked again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a service goes on; it may run meanwhile.

    What lies before that offset without a verdict stays without one.
    """

    def action() -> dict[int, int]:
        settings = load_settings(config)
        result: dict[int, int] = run(set_offsets(settings, service, partition or [], to, force=force))
        return result

    done = perform(action)

    def display(console: Console) -> None:
        for number, offset in done.items():
            console.print(f"Partition {number} goes on at offset {offset}.")

    show(as_json, {str(number): offset for number, offset in done.items()}, display)
