"""By which policies the guards judge, as their tallies say."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from holdfast.core.record import time_of
from holdfast.kafka.reading import read_to_end
from holdfast.settings import Settings


class _JudgedBy(msgspec.Struct):
    type: str
    model: str = ""
    policy: str = ""
    worker: str = ""


_decode = msgspec.json.Decoder(_JudgedBy).decode


async def judged_by(
    settings: Settings, partitions: int, since: datetime, tail: int
) -> dict[str, dict[str, tuple[str, datetime]]]:
    """By model and guard the policy of its latest tally, and when Kafka got it; of `tail` offsets of each partition of
    the control topic at most. Raises KafkaError.
    """
    found: dict[str, dict[str, tuple[str, datetime]]] = {}

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            try:
                tally = _decode(record.value or b"")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue  # The switch says so.
            if tally.type == "tally":
                found.setdefault(tally.model, {})[tally.worker] = (tally.policy, time_of(record.timestamp))

    tps = [TopicPartition(settings.topics.control, number) for number in range(partitions)]
    await read_to_end(settings.kafka, tps, take, since=since, tail=tail)
    return found
