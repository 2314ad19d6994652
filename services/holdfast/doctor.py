"""`holdfast doctor`: look at the whole installation, and say what to do about each thing that is wrong."""

import asyncio
import email.utils
import platform
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from importlib.metadata import version

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from holdfast.adapters.commands import read_routes
from holdfast.adapters.kafka import KafkaUnavailable, check_topics, describe, reader, utc_now
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.policies import load_policies
from holdfast.adapters.redis import RedisUnavailable, RouteMirror
from holdfast.core.policy import PolicyError
from holdfast.settings import Settings, SettingsError
from holdfast_schemas import TOPICS, Route

MAX_SKEW = timedelta(seconds=2)
"""Between this machine's clock and another's; expiries and freshness checks depend on it."""
MAX_LAG = 10_000
"""Records that a group may be behind before it is worth a look."""


class Health(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at; `advice` is empty when it is well."""

    area: str
    health: Health
    finding: str
    advice: str = ""


async def diagnose(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Every area in turn; what is broken in one does not keep the others from being looked at."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("aiokafka", "faststream", "redis", "pydantic"))
    yield Diagnosis(
        "versions", Health.OK, f"holdfast {version('holdfast')}, Python {platform.python_version()}, {libraries}"
    )
    yield _policies(settings)
    routes: dict[str, Route] | None = None
    try:
        async for diagnosis in _kafka(settings):
            yield diagnosis
        routes = await read_routes(settings)
        held = sorted(model for model, route in routes.items() if route.state == "held")
        if held:
            yield Diagnosis(
                "routes",
                Health.WARNING,
                f"held, so that everything is blocked: {', '.join(held)}",
                "See why, then promote a version or resume: holdfast route show",
            )
        else:
            yield Diagnosis("routes", Health.OK, f"{len(routes)} models have a route, none is held")
    except (KafkaUnavailable, SettingsError) as error:
        finding, _, advice = str(error).partition(". ")
        yield Diagnosis("kafka", Health.FAILED, finding, advice)
    except KafkaError as error:
        finding, _, advice = (await explain(settings.kafka, error)).partition(". ")
        yield Diagnosis("kafka", Health.FAILED, finding, advice)
    async for diagnosis in _redis(settings, routes):
        yield diagnosis
    for url in settings.notify.alertmanager_urls:
        yield await asyncio.to_thread(_alertmanager, url)


def _policies(settings: Settings) -> Diagnosis:
    try:
        policies = load_policies(settings.policies).policies
    except PolicyError as error:
        return Diagnosis("policies", Health.FAILED, str(error), "Mend the file; the services keep the one before.")
    if not policies:
        return Diagnosis(
            "policies",
            Health.WARNING,
            f"there is none in {settings.policies}",
            "Without one every prediction is blocked; write policies/<model>.toml.",
        )
    return Diagnosis("policies", Health.OK, ", ".join(sorted(policy.id for policy in policies.values())))


async def _kafka(settings: Settings) -> AsyncIterator[Diagnosis]:
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **settings.kafka.client_options())
    try:
        await admin.start()
        brokers = len((await admin.describe_cluster())["brokers"])
        yield Diagnosis(
            "kafka", Health.OK, f"{brokers} broker{'s' if brokers != 1 else ''} at {settings.kafka.bootstrap_servers}"
        )
        counts = await check_topics(settings, TOPICS)
        yield Diagnosis("topics", Health.OK, f"all {len(counts)} are there, and their partitions fit")
        async for diagnosis in _topic_settings(settings, admin):
            yield diagnosis
        services = (("guard", settings.guard.group, "predictions"), ("switch", settings.switch.group, "control"))
        for service, group, role in services:
            async for diagnosis in _group(settings, admin, service, group, role, counts[role]):
                yield diagnosis
    finally:
        await admin.close()


async def _topic_settings(settings: Settings, admin: AIOKafkaAdminClient) -> AsyncIterator[Diagnosis]:
    names = {getattr(settings.topics, role): topic for role, topic in TOPICS.items()}
    wrong: list[str] = []
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for _, _, _, name, entries in response.resources:
            actual = {entry[0]: entry[1] for entry in entries}
            for key, wanted in names[name].settings.items():
                # How long to keep records, and how to compact, is the operator's to choose.
                chosen_by_operator = key in {"retention.ms", "segment.ms", "min.cleanable.dirty.ratio"}
                if not chosen_by_operator and actual.get(key) != wanted:
                    wrong.append(f"{name} has {key}={actual.get(key)}, not {wanted}")
    if wrong:
        yield Diagnosis(
            "topics",
            Health.FAILED,
            "; ".join(wrong),
            "Set them with Kafka's tool: kafka-configs.sh --alter --add-config",
        )
    else:
        yield Diagnosis("topics", Health.OK, "their settings are those that Holdfast needs")
    single = [t["topic"] for t in await admin.describe_topics(list(names)) if len(t["partitions"][0]["replicas"]) < 2]
    if single:
        yield Diagnosis(
            "topics",
            Health.WARNING,
            f"{len(single)} topics have one replica: a lost disk loses them",
            "In production set topic_settings.replication_factor = 3 before creating them, or add replicas.",
        )


async def _group(
    settings: Settings, admin: AIOKafkaAdminClient, service: str, group: str, role: str, partitions: int
) -> AsyncIterator[Diagnosis]:
    (response,) = await admin.describe_consumer_groups([group])
    members = len(response.groups[0][5])
    if members:
        yield Diagnosis(service, Health.OK, f"{members} in the group {group}")
    else:
        yield Diagnosis(service, Health.FAILED, f"none runs in the group {group}", f"Start one: holdfast {service}")
    topic = getattr(settings.topics, role)
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    offsets = await admin.list_consumer_group_offsets(group)
    consumer = reader(settings.kafka)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(tps)
        starts = await consumer.beginning_offsets(tps)
    finally:
        await consumer.stop()
    lag = sum(
        ends[tp] - (offsets[tp].offset if tp in offsets and offsets[tp].offset >= 0 else starts[tp]) for tp in tps
    )
    if lag > MAX_LAG:
        advice = f"See its log and metrics; run more of them, up to {partitions}."
        yield Diagnosis(service, Health.WARNING, f"{lag:,} records of {topic} wait", advice)
    else:
        yield Diagnosis(service, Health.OK, f"{lag:,} records of {topic} wait")


async def _redis(settings: Settings, routes: dict[str, Route] | None) -> AsyncIterator[Diagnosis]:
    try:
        mirror = RouteMirror(settings.redis.connection_url())
    except SettingsError as error:
        yield Diagnosis(
            "redis", Health.FAILED, str(error), "Serving code that uses the same files has the same trouble."
        )
        return
    try:
        yield _skew("redis", await mirror.clock())
        if routes is None:
            return
        epochs = await mirror.epochs(sorted(routes))
        older = [model for model, route in routes.items() if (epochs[model] or 0) < route.epoch]
        newer = [model for model, route in routes.items() if (epochs[model] or 0) > route.epoch]
        if newer:
            yield Diagnosis(
                "redis",
                Health.FAILED,
                f"holds a newer route than Kafka for {', '.join(newer)}: the topics were made anew, or are not its own",
                "If Kafka is right, delete the keys holdfast:{MODEL}:route and holdfast:{MODEL}:state; they come back.",
            )
        if older:
            advice = "A running switch asserts them again within a second or so; see its log."
            yield Diagnosis("redis", Health.WARNING, f"is behind Kafka for {', '.join(older)}", advice)
        if not newer and not older:
            yield Diagnosis("redis", Health.OK, f"agrees with Kafka on {len(routes)} routes")
    except RedisUnavailable as error:
        yield Diagnosis(
            "redis", Health.FAILED, str(error), "Guards go on obeying Kafka; serving code keeps its last answer."
        )
    finally:
        await mirror.close()


def _skew(area: str, theirs: datetime) -> Diagnosis:
    skew = utc_now() - theirs
    if abs(skew) > MAX_SKEW:
        finding = f"its clock is {skew.total_seconds():+.1f} s from this machine's"
        return Diagnosis(area, Health.WARNING, finding, "Set both by NTP; freshness checks and expiries depend on it.")
    return Diagnosis(area, Health.OK, "answers, and its clock agrees with this machine's")


def _alertmanager(url: str) -> Diagnosis:
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("it is no http address")
        with urllib.request.urlopen(f"{url.rstrip('/')}/-/ready", timeout=5) as answer:  # noqa: S310  checked above
            date = answer.headers.get("Date")
    except (OSError, ValueError, urllib.error.URLError) as error:
        return Diagnosis(
            "alertmanager",
            Health.FAILED,
            f"{url} does not answer: {describe(error)}",
            "Start it, or set notify.alertmanager_urls; nobody is paged until it answers.",
        )
    if date is None:
        return Diagnosis("alertmanager", Health.OK, f"{url} is ready")
    return _skew("alertmanager", email.utils.parsedate_to_datetime(date))
