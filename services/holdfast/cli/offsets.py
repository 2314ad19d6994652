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

from holdfast.cli.terminal import ConfigOption, InputOption, JsonOption, Refused, perform, run, show
from holdfast.core.progress import Committed
from holdfast.kafka.begin import taken_in
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.evidence import Evidence, Judged
from holdfast.kafka.login import explain
from holdfast.kafka.offsets import committed_progress
from holdfast.kafka.reading import bounds, close
from holdfast.kafka.topic_ids import topic_ids
from holdfast.kafka.topics import partitions_of
from holdfast.kafka.transaction import transactional_id
from holdfast.settings import Settings, load_settings

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
    """How many records of these have verdicts, or may have them."""

    def in_words(self) -> str:
        """What happens, as a sentence."""
        place = f"{self.topic}/{self.partition}: the {self.service} goes on at offset {self.after:,}"
        if self.repeated:
            return f"{place}; up to {self.repeated:,} records from there on {self._again()}."
        if self.passed_over:
            return f"{place}; up to {self.passed_over:,} records before it stay unchecked, and are never approved."
        return f"{place}."

    def refusal(self) -> str:
        """Why it is not done without force."""
        return (
            f"{self.topic}/{self.partition} was worked through up to offset {self.after + self.repeated - 1}: from "
            f"offset {self.after} on, up to {self.repeated:,} records {self._again()}. Choose offset "
            f"{self.after + self.repeated} or a later one; --force does it all the same"
        )

    def _again(self) -> str:
        if self.service == Service.SWITCH:
            return "count a second time, and commands among them may be carried out again"
        return "are judged a second time, and what passes is approved twice"


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
    evidence = Evidence(settings)
    try:
        return [move_of(one, targets[one.partition], await _judged(settings, one, evidence)) for one in chosen]
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None


async def _judged(settings: Settings, one: Position, evidence: Evidence) -> Judged:
    """How far a partition was worked through, as what was written tells: the group's offset may be lost, or moved."""
    if one.service == Service.GUARD:
        return await evidence.of(one.partition)
    known = await taken_in(settings, one.partition)
    last = known.handled if known.handled >= 0 else None
    return Judged(known.states > 0, last, complete=last is not None or known.made_again or not known.states)


def move_of(one: Position, after: int, judged: Judged) -> Move:
    """What it means that the partition goes on at `after`."""
    # What was removed is passed over too.
    before = max(one.first, judged.up_to(None)) if one.committed is None else one.committed
    repeated = min(judged.up_to(one.committed), one.end) - after
    return Move(one.service, one.topic, one.partition, one.committed, after, max(0, after - before), max(0, repeated))


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
    """Commit them, each in a transaction of the partition's own producer.

    A group with members takes ordinary commits only from these. The transaction also ends what the partition's worker
    is writing: it goes back to what is committed, which is this.

    Raises Refused where nothing would be repeated by the plan, and the worker has gone on beyond the new offset since;
    KafkaUnavailable.
    """
    group, topic = _group_and_topic(settings, service)
    consumer = AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **settings.kafka.client_options())
    try:
        await consumer.start()
        for move in moves:
            tp = TopicPartition(topic, move.partition)
            producer = AIOKafkaProducer(
                transactional_id=transactional_id(group, tp), acks="all", **settings.kafka.client_options()
            )
            await producer.start()
            try:
                # From here on the worker commits nothing, unless it opens the partition again, which fences this one.
                now = await committed_progress(consumer, tp)
                if not move.repeated and now is not None and now.offset != move.before and now.offset > move.after:
                    raise Refused(
                        f"{topic}/{move.partition}: the {service} has gone on to offset {now.offset} meanwhile. This "
                        "partition, and those with a higher number, were left as they are; do it again for them."
                    )
                ids = await topic_ids(producer.client, [topic])
                note = Committed(move.after, is_position=True, topic_id=ids.get(topic)).metadata()
                async with producer.transaction():
                    await producer.send_offsets_to_transaction({tp: OffsetAndMetadata(move.after, note)}, group)
            finally:
                await close(producer)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await close(consumer)


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
def offsets_show(config: ConfigOption = None, input_name: InputOption = None, as_json: JsonOption = False) -> None:
    """Show up to which offset each partition is checked, and how much waits."""
    found = perform(lambda: run(positions(load_settings(config, input_name=input_name), list(Service))))

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
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also where outputs that have a verdict are judged, and may be approved, a second time."
        ),
    ] = False,
    config: ConfigOption = None,
    input_name: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a partition goes on, also while its service runs.

    Records that are passed over get no verdict and are never approved. An offset before records that have a verdict
    already is refused, unless you say yes at a terminal or give --force: they would be judged, and approved, a second
    time. It needs the rights of that service's own login in Kafka.
    """

    def action() -> list[Move]:
        settings = load_settings(config, input_name=input_name)
        moves = run(plan(settings, service, partition or [], to))
        asks = sys.stdin.isatty() and not yes
        if not force and not asks and (again := [move for move in moves if move.repeated]):
            raise Refused(f"{'; '.join(move.refusal() for move in again)}. Nothing was changed.")
        if asks:
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
