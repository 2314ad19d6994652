"""Topics as they are on the broker: whether they are there, their settings, and how those are corrected."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

from holdfast.core.topic_rules import Difference, Setting, differences, partition_differences
from holdfast.kafka.errors import KafkaUnavailable, TopicsMismatch
from holdfast.kafka.login import explain
from holdfast.kafka.topics import LEADER_WITHIN
from holdfast.settings import Settings
from holdfast_schemas import TOPICS, Party

log = structlog.get_logger("holdfast.kafka")

FIX = "holdfast topics create --fix"


@dataclass(frozen=True, slots=True)
class Described:
    """Topics by role, as far as they exist and this login may see them."""

    names: dict[str, str]
    partitions: dict[str, int]
    replicas: dict[str, int]

    @property
    def missing(self) -> list[str]:
        return [name for role, name in self.names.items() if role not in self.partitions]


async def describe(admin: AIOKafkaAdminClient, settings: Settings, roles: Iterable[str] = tuple(TOPICS)) -> Described:
    """Which of the topics there are."""
    names = {role: str(getattr(settings.topics, role)) for role in roles}
    found = {t["topic"]: t["partitions"] for t in await admin.describe_topics([*names.values()]) if not t["error_code"]}
    there = {role: found[name] for role, name in names.items() if name in found}
    return Described(
        names,
        {role: len(partitions) for role, partitions in there.items()},
        {role: len(partitions[0]["replicas"]) for role, partitions in there.items()},
    )


async def settings_of(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> dict[str, dict[str, Setting]]:
    """The settings of each topic that exists. Raises KafkaError; IncompatibleBrokerVersion where nothing answers it."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]
    found: dict[str, dict[str, Setting]] = {}
    for response in await admin.describe_configs(resources) if resources else []:
        for code, message, _, name, entries in response.resources:
            if code == UnknownTopicOrPartitionError.errno:
                continue
            if code:
                raise for_code(code)(message or name)
            # The fourth says where a setting comes from, the topic itself being 1; in the first version of the answer
            # it is whether it is a default.
            chosen = 0 if response.API_VERSION < 1 else 1
            found[name] = {key: Setting(value or "", source == chosen) for key, value, _, source, *_ in entries}
    return found


async def setting_differences(admin: AIOKafkaAdminClient, described: Described) -> list[Difference]:
    """What differs from what Holdfast needs. Raises KafkaError."""
    found: list[Difference] = []
    settings = await settings_of(admin, (described.names[role] for role in described.partitions))
    for role, replicas in described.replicas.items():
        name = described.names[role]
        found += differences(role, name, settings.get(name, {}), replicas)
    return found


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fit_topics` found and did: what it corrected, and what differs still and is worth a look."""

    corrected: list[Difference]
    left: list[Difference]


async def fit_topics(settings: Settings, *, fix: bool = False) -> Fitted:
    """Compare the topics that exist with what Holdfast needs, and with `fix` correct them.

    Raises TopicsMismatch, with a sentence for each difference, where one endangers something and is not corrected;
    KafkaUnavailable when Kafka cannot be asked.
    """
    admin = AIOKafkaAdminClient(request_timeout_ms=30_000, **settings.kafka.client_options())
    try:
        await admin.start()
        described = await describe(admin, settings)
        found = [*partition_differences(described.names, described.partitions)]
        found += await setting_differences(admin, described)
        correctable = [one for one in found if one.correctable] if fix else []
        if correctable:
            await _correct(admin, correctable)
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await admin.close()
    left = [one for one in found if one not in correctable]
    if serious := [one for one in left if one.serious]:
        does = f"Correct them: {FIX}" if not fix else "Correct them with Kafka's own tools."
        raise TopicsMismatch(f"{'; '.join(one.sentence() for one in serious)}. {does}")
    return Fitted(correctable, left)


async def _correct(admin: AIOKafkaAdminClient, found: Iterable[Difference]) -> None:
    changes: dict[str, dict[str, str]] = {}
    grown: dict[str, int] = {}
    for one in found:
        if one.key == "partitions":
            await admin.create_partitions({one.topic: NewPartitions(int(one.wanted))})
            grown[one.topic] = int(one.wanted)
        else:
            changes.setdefault(one.topic, {})[one.key] = one.wanted
    await set_settings(admin, changes)
    deadline = time.monotonic() + LEADER_WITHIN
    while grown and time.monotonic() < deadline:
        # The broker that is asked next may not know them yet.
        described = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics([*grown])}
        grown = {topic: count for topic, count in grown.items() if described.get(topic, 0) < count}
        await asyncio.sleep(0.05)


def compacted_roles(party: Party) -> list[str]:
    """The topics that this party reads or writes and that must be compacted."""
    return [
        role
        for role, topic in TOPICS.items()
        if topic.cleanup == "compact" and party in (*topic.readers, *topic.writers)
    ]


async def refuse_uncompacted(settings: Settings, party: Party) -> None:
    """Raise TopicsMismatch where a topic that this party reads or writes and that must be compacted is not.

    Where a broker or its ACLs do not let the settings be seen, that is logged, and the service starts.
    """
    roles = compacted_roles(party)
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **settings.kafka.client_options())
    try:
        await admin.start()
        described = await describe(admin, settings, roles)
        found = [one for one in await setting_differences(admin, described) if one.key == "cleanup.policy"]
    except (IncompatibleBrokerVersion, TopicAuthorizationFailedError) as error:
        log.warning(
            "whether the topics are compacted cannot be seen",
            topics=[str(getattr(settings.topics, role)) for role in roles],
            error=type(error).__name__,
            to_do="grant DescribeConfigs on them (holdfast acls kafka), or look with Kafka's own tools",
        )
        return
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await admin.close()
    if found:
        raise TopicsMismatch(f"{'; '.join(one.sentence() for one in found)}. Correct it: {FIX}")


async def set_settings(admin: AIOKafkaAdminClient, changes: Mapping[str, Mapping[str, str]]) -> None:
    """Set these settings of these topics and leave all others as they are. Raises KafkaError for the first refusal."""
    if not changes:
        return
    answer = await admin._send_request(IncrementalAlterConfigsRequest(changes))
    for code, message, _, name in answer.responses:
        if code:
            raise for_code(code)(message or name)


# aiokafka's own `alter_configs` takes all settings that are not named away.


class _IncrementalAlterConfigsResponse(Response):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class _IncrementalAlterConfigsRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _IncrementalAlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("config_operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class IncrementalAlterConfigsRequest(Request[_IncrementalAlterConfigsRequest]):  # type: ignore[misc]
    """Sets some settings of topics: https://kafka.apache.org/protocol#The_Messages_IncrementalAlterConfigs."""

    API_KEY = 44
    SET = 0

    def __init__(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        self._changes = changes

    def build(self, request_struct_class: Any) -> Any:
        resources = [
            (int(ConfigResourceType.TOPIC), name, [(key, self.SET, value) for key, value in settings.items()])
            for name, settings in self._changes.items()
        ]
        return request_struct_class(resources, False)
