"""Fetches that name a topic by its id, so that nothing of another topic of the same name is ever read.

aiokafka fetches by name: a consumer that slept while its topic was deleted and made again goes on in the new one at
the old one's offset. Version 13 of Kafka's Fetch request (KIP-516; brokers from 3.1 on) names the id, and the broker
refuses one that it no longer has. To the consumer the refusal is an offset out of range, which a consumer made with
`auto_offset_reset="none"` raises from `getmany`; `Ids.refused` tells the two apart. From older brokers topics are
fetched by name, as before.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from holdfast.kafka.topic_ids import Uuid

_API_KEY, _VERSION = 1, 13
_OFFSET_OUT_OF_RANGE = 1
_UNKNOWN_TOPIC_ID, _INCONSISTENT_TOPIC_ID = 100, 103
_READS_LIKE = 11
"""The version of the answer that aiokafka knows and that has the same members."""


class Ids:
    """The ids by which a consumer fetches, by topic. `refused`: the topics whose id the broker does not have."""

    def __init__(self, ids: Mapping[str, str | None]) -> None:
        self.by_name = {name: topic_id for name, topic_id in ids.items() if topic_id is not None}
        self.by_id = {topic_id: name for name, topic_id in self.by_name.items()}
        self.refused: set[str] = set()

    def update(self, topic: str, topic_id: str | None) -> None:
        """Fetch this topic by another id from now on."""
        self.by_id.pop(self.by_name.pop(topic, ""), None)
        if topic_id is not None:
            self.by_name[topic], self.by_id[topic_id] = topic_id, topic
        self.refused.discard(topic)


def fetch_by_id(consumer: AIOKafkaConsumer, ids: Mapping[str, str | None]) -> Ids:
    """Let a consumer that has started, and has no assignment yet, fetch these topics by their ids."""
    fetcher, known = consumer._fetcher, Ids(ids)
    by_name = fetcher._get_actions_per_node

    def actions(assignment: Any) -> Any:
        requests, *others = by_name(assignment)
        return [(node, _FetchById(request, known)) for node, request in requests], *others

    fetcher._get_actions_per_node = actions
    return known


_ANSWER_PARTITION = (
    ("partition", Int32),
    ("error_code", Int16),
    ("highwater_offset", Int64),
    ("last_stable_offset", Int64),
    ("log_start_offset", Int64),
    (
        "aborted_transactions",
        CompactArray(("producer_id", Int64), ("first_offset", Int64), ("tags", TaggedFields)),
    ),
    ("preferred_read_replica", Int32),
    ("message_set", CompactBytes),
    ("tags", TaggedFields),
)


class _Answer(Response):  # type: ignore[misc]
    API_KEY = _API_KEY
    API_VERSION = _VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("partitions", CompactArray(*_ANSWER_PARTITION)), ("tags", TaggedFields)),
        ),
        ("tags", TaggedFields),
    )


_REQUEST_PARTITION = (
    ("partition", Int32),
    ("current_leader_epoch", Int32),
    ("fetch_offset", Int64),
    ("last_fetched_epoch", Int32),
    ("log_start_offset", Int64),
    ("max_bytes", Int32),
    ("tags", TaggedFields),
)


class _Struct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = _API_KEY
    API_VERSION = _VERSION
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_time", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("partitions", CompactArray(*_REQUEST_PARTITION)), ("tags", TaggedFields)),
        ),
        (
            "forgotten_topics_data",
            CompactArray(("topic_id", Uuid), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
        ),
        ("rack_id", CompactString("utf-8")),
        ("tags", TaggedFields),
    )


class _ReadableAnswer(NamedTuple):
    """As the fetcher reads it."""

    API_VERSION: int
    topics: list[tuple[str, list[tuple[Any, ...]]]]


class _Reader:
    """Decodes an answer, with names in place of ids."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def decode(self, data: BytesIO) -> _ReadableAnswer:
        answer = _Answer.decode(data)
        return _ReadableAnswer(
            _READS_LIKE,
            [
                (name, [self._readable(name, partition) for partition in partitions])
                for topic_id, partitions, _ in answer.topics
                if (name := self._ids.by_id.get(topic_id)) is not None
            ],
        )

    def _readable(self, name: str, partition: tuple[Any, ...]) -> tuple[Any, ...]:
        number, code, highwater, stable, start, aborted, replica, messages, _ = partition
        if code in (_UNKNOWN_TOPIC_ID, _INCONSISTENT_TOPIC_ID):
            self._ids.refused.add(name)
            code = _OFFSET_OUT_OF_RANGE
        aborts = [(producer_id, first_offset) for producer_id, first_offset, _ in aborted or ()]
        return number, code, highwater, stable, start, aborts, replica, messages or b""


class _FetchById(FetchRequest):  # type: ignore[misc]
    """The same fetch, by ids where they are known and the broker takes them."""

    def __init__(self, request: FetchRequest, ids: Ids) -> None:
        self.__dict__.update(vars(request))
        self._ids = ids

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        first, last = versions.get(_API_KEY, (0, 0))
        if not first <= _VERSION <= last or any(topic not in self._ids.by_name for topic, _ in self._topics):
            return super().prepare(versions)
        topics: list[tuple[Any, ...]] = [
            (
                self._ids.by_name[topic],
                [(number, -1, offset, -1, -1, most, {}) for number, offset, most in partitions],
                {},
            )
            for topic, partitions in self._topics
        ]
        # A session's id of 0 and epoch of -1: no session.
        struct = _Struct(
            -1, self._max_wait_ms, self._min_bytes, self._max_bytes, self._isolation_level, 0, -1, topics, [],
            self._rack_id, {},
        )  # fmt: skip
        # Of this request alone, for it knows the names.
        struct.__dict__["RESPONSE_TYPE"] = _Reader(self._ids)
        return struct
