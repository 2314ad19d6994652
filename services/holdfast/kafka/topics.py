"""Topics on the broker: found, checked against the configuration, and created."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    InvalidConfigurationError,
    KafkaError,
    LeaderNotAvailableError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from holdfast.kafka.errors import KafkaUnavailable, TopicsMismatch
from holdfast.kafka.login import explain
from holdfast.kafka.reading import close, reader
from holdfast.kafka.topic_ids import topic_ids
from holdfast.settings import KafkaSettings, Settings
from holdfast_schemas import TOPICS
from holdfast_schemas.topics import NO_TIME_LIMIT, TIME_LIMITS

LEADER_WITHIN = 15.0
"""Seconds until a topic that was made must be known to the broker that is asked, with leaders."""


async def topic_id_of(kafka: KafkaSettings, topic: str) -> str | None:
    """Kafka's id of a topic; None where the broker tells none, or the topic is not there. Raises KafkaError."""
    consumer = reader(kafka)
    await consumer.start()
    try:
        return (await topic_ids(consumer, [topic])).get(topic)
    finally:
        await close(consumer)


async def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions a topic has. Raises KafkaUnavailable."""
    return (await describe_topics(kafka, [topic]))[topic]


async def describe_topics(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """Partition count by topic. Raises KafkaUnavailable when Kafka cannot be reached or a topic is missing."""
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **kafka.client_options())
    try:
        await admin.start()
        found = {t["topic"]: t for t in await admin.describe_topics(list(topics))}
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(kafka, error)) from None
    finally:
        await admin.close()
    counts: dict[str, int] = {}
    for topic in topics:
        entry = found.get(topic)
        if entry is None or entry["error_code"]:
            if entry is not None and entry["error_code"] == TopicAuthorizationFailedError.errno:
                raise KafkaUnavailable(await explain(kafka, TopicAuthorizationFailedError(topic)))
            missing = entry is None or entry["error_code"] == UnknownTopicOrPartitionError.errno
            reason = (
                "does not exist" if entry is None or missing else f"answers {for_code(entry['error_code']).__name__}"
            )
            raise KafkaUnavailable(f"The topic {topic} {reason}. Create the topics with: holdfast topics create")
        counts[topic] = len(entry["partitions"])
    return counts


async def check_topics(settings: Settings, roles: Iterable[str]) -> dict[str, int]:
    """Partition count by role, once every needed topic is there and the counts fit. Raises KafkaUnavailable.

    A topic may have more partitions than it needs: so those of the verdicts are grown first, then predictions.
    """
    names = {role: getattr(settings.topics, role) for role in roles}
    counts = await describe_topics(settings.kafka, list(names.values()))
    by_role = {role: counts[name] for role, name in names.items()}
    for role in names:
        base = TOPICS[role].partitions
        if isinstance(base, str) and base in by_role and by_role[role] < by_role[base]:
            raise TopicsMismatch(
                f"The topic {names[role]} has {by_role[role]} partitions and {names[base]} has {by_role[base]}. "
                f"Give {names[role]} {by_role[base]} too: order per key depends on equal numbers."
            )
    return by_role


async def create_topics(settings: Settings) -> dict[str, str]:
    """Create what is missing, with the settings of the table. Returns `created` or `exists` by topic name."""
    admin = AIOKafkaAdminClient(request_timeout_ms=30_000, **settings.kafka.client_options())
    names = {role: getattr(settings.topics, role) for role in TOPICS}
    try:
        await admin.start()
        sizes = {
            "predictions": settings.topic_settings.partitions,
            "control": settings.topic_settings.control_partitions,
        }
        existing = set(await admin.list_topics())
        if settings.topics.predictions in existing:
            described = await admin.describe_topics([settings.topics.predictions])
            sizes["predictions"] = len(described[0]["partitions"])
        made = await create_all(
            admin,
            [
                NewTopic(
                    names[role],
                    sizes[topic.partitions] if isinstance(topic.partitions, str) else topic.partitions,
                    settings.topic_settings.replication_factor,
                    topic_configs=topic.settings,
                )
                for role, topic in TOPICS.items()
                if names[role] not in existing
            ],
        )
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(settings.kafka, error)) from None
    finally:
        await admin.close()
    return {name: made.get(name, "exists") for name in names.values()}


async def create_all(admin: AIOKafkaAdminClient, new: Sequence[NewTopic]) -> dict[str, str]:
    """Create topics, and wait until their leaders are known. Returns `created` or `exists` by name.

    Raises the broker's error of the first one that it refused.
    """
    if not new:
        return {}
    result: dict[str, str] = {}
    answers = list((await admin.create_topics(list(new))).topic_errors)
    # Brokers before 3.6 know one limit of timestamps instead of two.
    refused = {name for name, code, *_ in answers if code == InvalidConfigurationError.errno}
    if older := [_with_one_time_limit(topic) for topic in new if topic.name in refused]:
        answers = [answer for answer in answers if answer[0] not in refused]
        answers += (await admin.create_topics(older)).topic_errors
    for name, code, *message in answers:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise for_code(code)(*message)
        result[name] = "exists" if code else "created"
    deadline = time.monotonic() + LEADER_WITHIN
    while without := [topic for topic in await admin.describe_topics(list(result)) if _has_no_leader(topic)]:
        if time.monotonic() > deadline:
            raise for_code(without[0]["error_code"] or LeaderNotAvailableError.errno)(without[0]["topic"])
        await asyncio.sleep(0.05)
    return result


def _with_one_time_limit(topic: NewTopic) -> NewTopic:
    configs = {key: value for key, value in topic.topic_configs.items() if key not in TIME_LIMITS}
    if len(configs) < len(topic.topic_configs):
        configs["message.timestamp.difference.max.ms"] = NO_TIME_LIMIT
    return NewTopic(topic.name, topic.num_partitions, topic.replication_factor, topic_configs=configs)


def _has_no_leader(topic: Mapping[str, Any]) -> bool:
    return bool(topic["error_code"] or any(partition["error_code"] for partition in topic["partitions"]))
