"""`holdfast offsets`: where the guard and the switch go on, partition by partition."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from pydantic import AwareDatetime, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from holdfast.adapters.kafka import KafkaUnavailable, bounds, close, partitions_of, transactional_id
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.offsets import committed_progress
from holdfast.adapters.topic_ids import topic_ids
from holdfast.core.progress import Committed
from holdfast.settings import Settings, load_settings
from holdfast.terminal import ConfigOption, JsonOption, Refused, perform, run, show

offsets_app = typer.Typer(help="See and set where the guard and the switch go on.", no_args_is_help=True)


class Service(StrEnum):
    GUARD = "guard"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class Position:
    """A partition of a service's topic: the first offset, the end of what is committed, the end, and where it stands.

    `committed` is None where nothing was committed yet.
    """

    service: str
    topic: str
    partition: int
    first: int
    stable_end: int
    end: int
    committed: int | None

    @property
    def waits(self) -> int:
        """Offsets that are not checked yet."""
        return max(0, self.end - max(self.first, self.committed or 0))


@dataclass(frozen=True, slots=True)
class Move:
    """What setting an offset does."""

    service: str
    topic: str
    partition: int
    before: int | None
    after: int
    passed_over: int
    repeated: int

    def in_words(self) -> str:
        """What happens, as a sentence."""
        place = f"{self.topic}/{self.partition}: the {self.service} goes on at offset {self.after:,}"
        if self.passed_over:
            return f"{place}; up to {self.passed_over:,} records before it stay unchecked, and are never approved."
        if self.repeated:
            return f"{place}; up to {self.repeated:,} records behind it are checked a second time."
        return f"{place}."


async def positions(settings: Settings, services: Sequence[Service]) -> list[Position]:
    """Look at each partition. Raises KafkaUnavailable."""
    found: list[Position] = []
    for service in services:
        group, topic = _group_and_topic(settings, service)
        tps = [TopicPartition(topic, number) for number in range(await partitions_of(settings.kafka, topic))]
        firsts, stable_ends = await bounds(settings.kafka, tps, None, "read_committed")
        _, ends = await bounds(settings.kafka, tps, None, "read_uncommitted")
        committed = {
            tp: None if one is None else one.offset for tp, one in (await _committed(settings, group, tps)).items()
        }
        found += [
            Position(service.value, topic, tp.partition, firsts[tp], stable_ends[tp], ends[tp], committed[tp])
            for tp in tps
        ]
    return found


async def plan(settings: Settings, service: Service, partitions: Sequence[int], to: str) -> list[Move]:
    """What `set_offsets` would do. Raises Refused, KafkaUnavailable."""
    known = {one.partition: one for one in await positions(settings, [service])}
    if unknown := sorted(set(partitions) - known.keys()):
        raise Refused(f"{_group_and_topic(settings, service)[1]} has no partition {unknown[0]}. It has {len(known)}.")
    chosen = [known[number] for number in sorted(set(partitions) or known)]
    targets = await _targets(settings, chosen, to)
    return [_move(one, targets[one.partition]) for one in chosen]


def _move(one: Position, after: int) -> Move:
    stands_at = max(one.first, one.committed or 0)
    # What was removed is passed over too.
    passed_over = after - (one.committed if one.committed is not None else one.first)
    return Move(
        one.service, one.topic, one.partition, one.committed, after, max(0, passed_over), max(0, stands_at - after)
    )


async def _targets(settings: Settings, chosen: Sequence[Position], to: str) -> Mapping[int, int]:
    if to == "earliest":
        return {one.partition: one.first for one in chosen}
    if to == "latest":
        return {one.partition: one.stable_end for one in chosen}
    if to.isdecimal():
        for one in chosen:
            if not one.first <= int(to) <= one.stable_end:
                raise Refused(
                    f"{one.topic}/{one.partition} goes from offset {one.first} to {one.stable_end}, and {to} is not "
                    "between them. Choose one that is, earliest, or latest."
                )
        return {one.partition: int(to) for one in chosen}
    try:
        since: datetime = TypeAdapter[datetime](AwareDatetime).validate_python(to)
    except ValidationError:
        raise Refused(
            f"{to!r} is not a place to go on. Say earliest, latest, an offset, or a time like 2026-11-24T10:00:00Z."
        ) from None
    tps = [TopicPartition(one.topic, one.partition) for one in chosen]
    starts, _ = await bounds(settings.kafka, tps, since, "read_committed")
    return {tp.partition: starts[tp] for tp in tps}


async def set_offsets(settings: Settings, service: Service, moves: Sequence[Move]) -> None:
    """Commit them, each in a transaction of the partition's own producer. Raises KafkaUnavailable.

    A group with members takes ordinary commits only from these. The transaction also ends what the partition's worker
    is writing: it goes back to what is committed, which is this.
    """
    group, topic = _group_and_topic(settings, service)
    try:
        for move in moves:
            tp = TopicPartition(topic, move.partition)
            producer = AIOKafkaProducer(
                transactional_id=transactional_id(group, tp), acks="all", **settings.kafka.client_options()
            )
            await producer.start()
            try:
                ids = await topic_ids(producer.client, [topic])
                note = Committed(move.after, is_position=True, topic_id=ids.get(topic)).metadata()
                async with producer.transaction():
                    await producer.send_offsets_to_transaction({tp: OffsetAndMetadata(move.after, note)}, group)
            finally:
                await close(producer)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None


async def _committed(
    settings: Settings, group: str, tps: Sequence[TopicPartition]
) -> dict[TopicPartition, Committed | None]:
    consumer = AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **settings.kafka.client_options())
    try:
        await consumer.start()
        return {tp: await committed_progress(consumer, tp) for tp in tps}
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await close(consumer)


def _group_and_topic(settings: Settings, service: Service) -> tuple[str, str]:
    if service is Service.GUARD:
        return settings.guard.group, settings.topics.predictions
    return settings.switch.group, settings.topics.control


@offsets_app.command("show")
def offsets_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show up to which offset each partition is checked, and how much waits."""
    found = perform(lambda: run(positions(load_settings(config), list(Service))))

    def display(console: Console) -> None:
        table = Table("service", "partition", "first", "goes on at", "end", "waits")
        for one in found:
            goes_on = "nothing committed" if one.committed is None else f"{one.committed:,}"
            cells = [f"{one.first:,}", goes_on, f"{one.end:,}", f"{one.waits:,}"]
            table.add_row(one.service, f"{one.topic}/{one.partition}", *cells)
        console.print(table)

    show(as_json, [{**asdict(one), "waits": one.waits} for one in found], display)


@offsets_app.command("set")
def offsets_set(
    service: Annotated[Service, typer.Argument(help="Whose offsets.", metavar="guard|switch")],
    to: Annotated[str, typer.Option("--to", help="earliest, latest, an offset, or a time like 2026-11-24T10:00:00Z.")],
    partition: Annotated[
        list[int] | None, typer.Option("--partition", min=0, help="One partition; repeatable. All without it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a partition goes on, also while its service runs.

    Records that are passed over get no verdict and are never approved. Records that are gone back to are checked
    again, and get a second verdict. It needs the rights of that service's own login in Kafka.
    """

    def action() -> list[Move]:
        settings = load_settings(config)
        moves = run(plan(settings, service, partition or [], to))
        if not yes and sys.stdin.isatty():
            for move in moves:
                typer.echo(move.in_words(), err=True)
            if not typer.confirm("Do it?", err=True):
                raise Refused("Nothing was changed.")
        run(set_offsets(settings, service, moves))
        return moves

    moves = perform(action)

    def display(console: Console) -> None:
        for move in moves:
            console.print(move.in_words())

    show(as_json, [asdict(move) for move in moves], display)
