"""Reads what was blocked and approved of the entities of one segment."""

from collections.abc import Sequence
from datetime import datetime

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from holdfast.adapters.blocked import Blocked
from holdfast.core.grouping import Batch, decode_by_model
from holdfast.core.policy import PolicySet
from holdfast.core.record import Record, produced_at
from holdfast.core.segment_references import BlockedOutput, OfSegment
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.reading import read_to_end
from holdfast.kafka.topics import check_topics
from holdfast.settings import Settings


async def read_segment(
    settings: Settings, policies: PolicySet, model: str, segment: str, field: str, since: datetime
) -> OfSegment:
    """Read the blocked outputs of that model and segment since then, and whether newer ones were approved.

    Raises KafkaUnavailable; PolicyError where the policies' events have no place for a segment.
    """
    found = OfSegment(segment)
    # No check need read it.
    with_segment = PolicySet.of([*policies.policies.values()], texts=["segment"])

    def take_blocked(records: Sequence[ConsumerRecord]) -> None:
        known: list[Blocked] = []
        for record in records:
            try:
                one = Blocked.of(record)
            except ValueError:
                continue  # No guard wrote it.
            if one.model == model and one.at >= since:
                known.append(one)
        for batch in _batches(with_segment, model, [one.record.value for one in known]):
            values, segments = batch.columns.numbers(field), batch.columns.values("segment")
            entities = batch.columns.values("entity_id")
            for row, position in enumerate(batch.positions):
                one, record = known[position], known[position].record
                at_ms = round(one.at.timestamp() * 1000)
                order = (at_ms, record.partition, record.offset)
                output = BlockedOutput(one.version, float(values[row]), at_ms, order, one.findings)
                found.take_blocked(segments[row], entities[row], output)

    def take_approved(records: Sequence[Record]) -> None:
        for batch in _batches(policies, model, [record.value for record in records]):
            entities = batch.columns.values("entity_id")
            for row, position in enumerate(batch.positions):
                found.take_approved(entities[row], produced_at(records[position]))

    try:
        settings = settings.of_model(model)
        counts = await check_topics(settings, ["blocked", "approved"])
        blocked, approved = settings.topics.blocked, settings.topics.approved
        tps = [TopicPartition(blocked, number) for number in range(counts["blocked"])]
        await read_to_end(settings.kafka, tps, take_blocked, since=since)
        if found.blocked:
            tps = [TopicPartition(approved, number) for number in range(counts["approved"])]
            await read_to_end(settings.kafka, tps, take_approved, since=since, complete=True, plain=True)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return found


def _batches(policies: PolicySet, model: str, raws: Sequence[bytes | None]) -> list[Batch]:
    """What can be decoded and is of the model."""
    groups, _ = decode_by_model(policies, raws) if raws else ([], {})
    return [batch for name, batch in groups if name == model]
