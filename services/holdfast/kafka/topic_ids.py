"""A topic is its id, not its name: a name may be given to another topic later. aiokafka knows only names.

The ids come with version 10 of Kafka's Metadata request (KIP-516; brokers from 2.8 on). Other brokers tell none.
"""

import base64
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_NO_ID = bytes(16)
UNKNOWN_TOPIC_OR_PARTITION = 3


class Uuid(AbstractType[str]):  # type: ignore[misc]
    """The 16 bytes of an id, as Kafka's tools print them: URL-safe Base64 without padding."""

    @classmethod
    def encode(cls, value: str) -> bytes:
        return base64.urlsafe_b64decode(f"{value}==") if value else _NO_ID

    @classmethod
    def decode(cls, data: BytesIO) -> str:
        found = data.read(16)
        return "" if found == _NO_ID else base64.urlsafe_b64encode(found).decode().rstrip("=")


_PARTITION = (
    ("error_code", Int16),
    ("partition_index", Int32),
    ("leader_id", Int32),
    ("leader_epoch", Int32),
    ("replica_nodes", CompactArray(Int32)),
    ("isr_nodes", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)
_BROKER = (
    ("node_id", Int32),
    ("host", CompactString("utf-8")),
    ("port", Int32),
    ("rack", CompactString("utf-8")),
    ("tags", TaggedFields),
)
_TOPIC = (
    ("error_code", Int16),
    ("name", CompactString("utf-8")),
    ("topic_id", Uuid),
    ("is_internal", Boolean),
    ("partitions", CompactArray(*_PARTITION)),
    ("topic_authorized_operations", Int32),
    ("tags", TaggedFields),
)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(*_BROKER)),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        ("topics", CompactArray(*_TOPIC)),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([("", name, {}) for name in self._topics], False, False, False, {})

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        first, last = versions.get(self.API_KEY, (0, 0))
        if not first <= _MetadataRequestStruct.API_VERSION <= last:
            raise IncompatibleBrokerVersion("this broker does not tell the ids of topics")
        return super().prepare(versions)


async def topic_ids(
    asks: AIOKafkaConsumer | AIOKafkaClient, topics: Iterable[str], *, node: int | None = None
) -> dict[str, str | None]:
    """The id of each topic: None where the broker tells none, and no entry where the topic does not exist.

    `asks` is started. `node`: the broker to ask; any without it. Raises KafkaError.
    """
    client = getattr(asks, "_client", asks)
    wanted = list(topics)
    try:
        answer = await client.send(client.get_random_node() if node is None else node, _MetadataRequest(wanted))
    except IncompatibleBrokerVersion:
        return dict.fromkeys(wanted)
    found: dict[str, str | None] = {}
    for code, name, topic_id, *_ in answer.topics:
        if not code:
            found[name] = topic_id or None
        elif code != UNKNOWN_TOPIC_OR_PARTITION:
            raise for_code(code)(name)
    return found


def is_another(known: str | None, topic_id: str | None) -> bool:
    """Whether both ids are known and differ."""
    return known is not None and topic_id is not None and known != topic_id
