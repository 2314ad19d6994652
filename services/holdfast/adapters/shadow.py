"""The shadow report of a model, from the tallies in the control topic."""

from collections.abc import Sequence
from datetime import datetime

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from holdfast.core.breaker import BreakerPolicy
from holdfast.core.record import time_of
from holdfast.core.shadow import Report
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.partitioner import partition_for
from holdfast.kafka.reading import read_to_end
from holdfast.kafka.topics import check_topics
from holdfast.settings import Settings
from holdfast_schemas import Tally, parse_control


async def read_report(
    settings: Settings,
    model: str,
    since: datetime,
    breaker: BreakerPolicy,
    *,
    version: str | None = None,
    tail: int | None = None,
) -> Report:
    """What checks in shadow found since then, of all versions or one; of `tail` offsets at most, the latest.

    The time of a tally is that at which Kafka got it. Raises KafkaUnavailable.
    """
    found = Report(breaker)

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if record.key == model.encode() and b'"tally"' in (record.value or b""):
                try:
                    tally = parse_control(record.value)
                except ValidationError:
                    continue  # The switch says so.
                if isinstance(tally, Tally) and version in (None, tally.model_version):
                    found.add(time_of(record.timestamp), tally)

    try:
        counts = await check_topics(settings, ["control"])
        tp = TopicPartition(settings.topics.control, partition_for(model, counts["control"]))
        await read_to_end(settings.kafka, [tp], take, since=since, tail=tail)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return found
