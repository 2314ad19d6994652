"""Records that could not be decoded: what there is, and why."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from holdfast.core.errors import describe
from holdfast.core.record import produced_at, time_of
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.reading import read_to_end
from holdfast.kafka.topics import describe_topics
from holdfast.settings import Settings
from holdfast_schemas import Header, utc_now

log = structlog.get_logger("holdfast.malformed")

UNNAMED = "unnamed"
"""The kind of a record that a guard of an earlier version wrote."""


@dataclass(frozen=True, slots=True)
class MalformedRecord:
    """A record of the malformed topic that came from the predictions; model and version are empty where nobody is to
    blame."""

    source: str
    at: datetime
    kind: str
    reason: str
    model: str
    version: str
    record: ConsumerRecord | None = None
    """None where the API told of it."""

    @classmethod
    def of(cls, record: ConsumerRecord, predictions: str) -> "MalformedRecord":
        """Raises ValueError for a record that no guard wrote."""
        headers = {name: value or b"" for name, value in record.headers}
        source = headers.get(Header.SOURCE.value, b"").decode()
        # The switch puts control records there too.
        if source.rpartition("/")[0].rpartition("/")[0] != predictions:
            raise ValueError(source)
        return cls(
            source,
            time_of(produced_at(record)),
            headers.get(Header.ERROR_KIND.value, UNNAMED.encode()).decode("utf-8", "replace"),
            headers.get(Header.ERROR.value, b"").decode("utf-8", "replace"),
            headers.get(Header.MODEL.value, b"").decode("utf-8", "replace"),
            headers.get(Header.MODEL_VERSION.value, b"").decode("utf-8", "replace"),
            record,
        )

    def facts(self) -> dict[str, Any]:
        """For printing: JSON values."""
        return {
            "source": self.source,
            "at": self.at.isoformat(),
            "kind": self.kind,
            "reason": self.reason,
            "model": self.model or None,
            "model_version": self.version or None,
            "value": (self.record.value or b"")[:4096].decode("utf-8", "replace") if self.record is not None else None,
        }


@dataclass(slots=True)
class Found:
    """How many there are by kind, the first reason of each kind, and the latest records, oldest first."""

    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    latest: list[MalformedRecord] = field(default_factory=list)


async def find_malformed(
    settings: Settings,
    since: datetime,
    *,
    model: str | None = None,
    kind: str | None = None,
    limit: int = 50,
    tail: int | None = None,
) -> Found:
    """What could not be decoded since then, of all inputs; of `model`, what it is to blame for.

    Raises KafkaUnavailable.
    """
    found = Found()

    def take(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            try:
                one = MalformedRecord.of(record, predictions_of[record.topic])
            except ValueError:
                continue
            if one.at < since or model not in (None, one.model) or kind not in (None, one.kind):
                continue
            found.count += 1
            found.kinds[one.kind] += 1
            found.reasons.setdefault(one.kind, one.reason)
            found.latest.append(one)
        found.latest.sort(key=_place)
        del found.latest[: -limit or None]

    inputs = (settings.of_model(model),) if model is not None else settings.of_inputs()
    predictions_of = {one.topics.malformed: one.topics.predictions for one in inputs}
    try:
        counts = await describe_topics(settings.kafka, list(predictions_of))
        tps = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
        await read_to_end(settings.kafka, tps, take, since=since, tail=tail)
    except KafkaError as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    return found


def _place(one: MalformedRecord) -> tuple[datetime, int, int]:
    return (one.at, *((one.record.partition, one.record.offset) if one.record is not None else (0, 0)))


LATELY = timedelta(minutes=5)
LOOK_EVERY = 15.0
"""Seconds."""
LATEST = 200
"""Records of each partition that one look reads at most."""


async def watch_malformed(settings: Settings, tell: Callable[[Found], None]) -> None:
    """Look again and again at what could not be decoded lately, for good; an outage only delays it."""
    while True:
        try:
            tell(await find_malformed(settings, utc_now() - LATELY, limit=1, tail=LATEST))
        except (KafkaUnavailable, KafkaError, OSError, AssertionError) as error:
            # Also a login that may not read that topic.
            log.debug("malformed records could not be looked at", error=describe(error))
        await asyncio.sleep(LOOK_EVERY)
