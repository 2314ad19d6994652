"""`holdfast doctor`: look at the whole installation, and say what to do about each thing that is wrong."""

import platform
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from importlib.metadata import version

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError, IncompatibleBrokerVersion, KafkaError

from holdfast.adapters.alertmanager import Alertmanager, AlertmanagerError
from holdfast.adapters.commands import read_routes
from holdfast.adapters.kafka import KafkaUnavailable, reader
from holdfast.adapters.kafka_login import explain
from holdfast.adapters.policies import load_policies
from holdfast.adapters.redis import RedisUnavailable, RouteMirror
from holdfast.core.errors import describe
from holdfast.core.policy import PolicyError
from holdfast.core.routing import MAX_FENCED
from holdfast.settings import Settings, SettingsError
from holdfast_schemas import TOPICS, Route, Topic, utc_now

MAX_SKEW = timedelta(seconds=2)
"""Between this machine's clock and another's; expiries and freshness checks depend on it."""
MANY_FENCED = MAX_FENCED * 3 // 4
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
    routes: dict[str, Route] = {}
    try:
        async for diagnosis in _kafka(settings, routes):
            yield diagnosis
    except (KafkaUnavailable, SettingsError) as error:
        yield _failed("kafka", str(error))
    except KafkaError as error:
        yield _failed("kafka", await explain(settings.kafka, error))
    except Exception as error:
        yield _failed("kafka", f"it could not be looked at: {describe(error)}. See the broker's log and version.")
    async for diagnosis in _redis(settings, routes):
        yield diagnosis
    for url in settings.notify.alertmanager_urls:
        yield await _alertmanager(settings, url)


def _failed(area: str, sentences: str) -> Diagnosis:
    finding, _, advice = sentences.partition(". ")
    return Diagnosis(area, Health.FAILED, finding.removesuffix("."), advice)


def _policies(settings: Settings) -> Diagnosis:
    try:
        policies = load_policies(settings.policies).policies
    except PolicyError as error:
        return Diagnosis(
            "policies", Health.FAILED, str(error), "Mend it; services that run keep the policies they have."
        )
    if not policies:
        return Diagnosis(
            "policies",
            Health.WARNING,
            f"there is none in {settings.policies}",
            "Without one every prediction is blocked; write policies/<model>.toml.",
        )
    return Diagnosis("policies", Health.OK, ", ".join(sorted(policy.id for policy in policies.values())))


async def _kafka(settings: Settings, routes: dict[str, Route]) -> AsyncIterator[Diagnosis]:
    """Fills `routes`, too."""
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **settings.kafka.client_options())
    try:
        await admin.start()
        brokers = len((await admin.describe_cluster())["brokers"])
        yield Diagnosis(
            "kafka", Health.OK, f"{brokers} broker{'s' if brokers != 1 else ''} at {settings.kafka.bootstrap_servers}"
        )
        names = {role: getattr(settings.topics, role) for role in TOPICS}
        found = {t["topic"]: t for t in await admin.describe_topics(list(names.values())) if not t["error_code"]}
        counts = {role: len(found[name]["partitions"]) for role, name in names.items() if name in found}
        for diagnosis in _topics(names, counts):
            yield diagnosis
        settings_of_topics = _topic_settings({names[role]: TOPICS[role] for role in counts}, admin)
        async for diagnosis in _as_far_as_told("topics", settings_of_topics):
            yield diagnosis
        single = [name for name, topic in found.items() if len(topic["partitions"][0]["replicas"]) < 2]
        if single:
            yield Diagnosis(
                "topics",
                Health.WARNING,
                f"{_count(single, 'topic')} with one replica: a lost disk loses all that is in there",
                "In production set topic_settings.replication_factor = 3 before creating them, or add replicas.",
            )
        services = (("guard", settings.guard.group, "predictions"), ("switch", settings.switch.group, "control"))
        for service, group, role in services:
            if role in counts:
                looked_at = _group(settings, admin, service, group, names[role], counts[role])
                async for diagnosis in _as_far_as_told(service, looked_at):
                    yield diagnosis
    finally:
        await admin.close()
    if "routes" in counts:
        routes.update(await read_routes(settings))
        held = sorted(model for model, route in routes.items() if route.state == "held")
        if held:
            yield Diagnosis(
                "routes",
                Health.WARNING,
                f"held, so that everything is blocked: {', '.join(held)}",
                "See why, then promote a version or resume: holdfast route show",
            )
        else:
            yield Diagnosis("routes", Health.OK, f"{_count(routes, 'model')} with a route, none of them held")
        for model, route in sorted(routes.items()):
            if len(route.fenced) > MANY_FENCED:
                yield Diagnosis(
                    "routes",
                    Health.WARNING,
                    f"{len(route.fenced)} versions of {model} are fenced; at {MAX_FENCED} that never served the next "
                    "bad one holds the model",
                    f"Unfence those that nobody sends any more: holdfast route unfence {model} VERSION --reason …",
                )


def _count(things: Collection[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) != 1 else ''}"


def _topics(names: dict[str, str], counts: dict[str, int]) -> Iterator[Diagnosis]:
    missing = [name for role, name in names.items() if role not in counts]
    if missing:
        yield Diagnosis(
            "topics",
            Health.FAILED,
            f"missing, or not to be seen by this login: {', '.join(missing)}",
            "Create them: holdfast topics create",
        )
    unequal = 0
    for role, count in counts.items():
        base = TOPICS[role].partitions
        if isinstance(base, str) and base in counts and count < counts[base]:
            unequal += 1
            yield Diagnosis(
                "topics",
                Health.FAILED,
                f"{names[role]} has {count} partitions and {names[base]} has {counts[base]}",
                f"Give {names[role]} {counts[base]} too: order per key depends on equal numbers.",
            )
    if not missing and not unequal:
        yield Diagnosis("topics", Health.OK, f"all {len(counts)} are there, and their partitions fit")


async def _as_far_as_told(area: str, diagnoses: AsyncIterator[Diagnosis]) -> AsyncIterator[Diagnosis]:
    """The same, and a warning in place of the rest where the broker does not answer such a question."""
    try:
        async for diagnosis in diagnoses:
            yield diagnosis
    except IncompatibleBrokerVersion:
        yield Diagnosis(
            area,
            Health.WARNING,
            "this broker cannot be asked for their settings or members",
            "The embedded one never can; another one must be Kafka, or speak its protocol in full.",
        )


async def _topic_settings(topics: dict[str, Topic], admin: AIOKafkaAdminClient) -> AsyncIterator[Diagnosis]:
    well = True
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]):
        for _, _, _, name, entries in response.resources:
            actual = {entry[0]: entry[1] for entry in entries}
            # How long to keep records, and how to compact, is the operator's to choose.
            chosen_by_operator = {"retention.ms", "segment.ms", "min.cleanable.dirty.ratio"}
            wrong = {
                key: wanted
                for key, wanted in topics[name].settings.items()
                if key not in chosen_by_operator and actual.get(key) != wanted
            }
            if wrong:
                well = False
                alter = ",".join(f"{key}={wanted}" for key, wanted in wrong.items())
                yield Diagnosis(
                    "topics",
                    Health.FAILED,
                    f"{name} has {', '.join(f'{key}={actual.get(key)}' for key in wrong)}",
                    f"Set it with Kafka's tool: kafka-configs.sh --alter --topic {name} --add-config {alter}",
                )
    if topics and well:
        yield Diagnosis("topics", Health.OK, "their settings are those that Holdfast needs")


async def _group(
    settings: Settings, admin: AIOKafkaAdminClient, service: str, group: str, topic: str, partitions: int
) -> AsyncIterator[Diagnosis]:
    try:
        (response,) = await admin.describe_consumer_groups([group])
        members = len(response.groups[0][5])
        offsets = await admin.list_consumer_group_offsets(group)
    except GroupCoordinatorNotAvailableError:
        # A new cluster has no coordinator before the first group comes.
        members, offsets = 0, {}
    if members:
        yield Diagnosis(service, Health.OK, f"{members} in the group {group}")
    else:
        yield Diagnosis(service, Health.FAILED, f"none runs in the group {group}", f"Start one: holdfast {service}")
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer = reader(settings.kafka)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(tps)
        starts = await consumer.beginning_offsets(tps)
    finally:
        await consumer.stop()
    committed = {tp: offsets[tp].offset if tp in offsets else -1 for tp in tps}
    lost = [tp.partition for tp in tps if 0 <= committed[tp] < starts[tp]]
    if lost:
        yield Diagnosis(
            service,
            Health.FAILED,
            f"records of {topic} were removed before it read them, in partition {', '.join(map(str, lost))}",
            "Lengthen the topic's retention, and set the group's offset to where it shall go on.",
        )
    lag = sum(max(0, ends[tp] - max(committed[tp], starts[tp])) for tp in tps)
    if lag > MAX_LAG:
        advice = f"See its log and metrics; run more of them, up to {partitions}."
        yield Diagnosis(service, Health.WARNING, f"{lag:,} records of {topic} wait", advice)
    else:
        yield Diagnosis(service, Health.OK, f"{lag:,} records of {topic} wait")


async def _redis(settings: Settings, routes: dict[str, Route]) -> AsyncIterator[Diagnosis]:
    try:
        mirror = RouteMirror(settings.redis.connection_url())
    except (SettingsError, ValueError) as error:
        yield Diagnosis(
            "redis", Health.FAILED, str(error), "Serving code that uses the same files has the same trouble."
        )
        return
    try:
        yield _skew("redis", await mirror.clock())
        epochs = await mirror.epochs(sorted(routes))
        older = [model for model, route in routes.items() if (epochs[model] or 0) < route.epoch]
        newer = [model for model, route in routes.items() if (epochs[model] or 0) > route.epoch]
        if newer:
            yield Diagnosis(
                "redis",
                Health.FAILED,
                f"holds a newer route than Kafka for {', '.join(newer)}: the topics were made anew, or are not its own",
                "If Kafka is right, delete the keys holdfast:{MODEL}:route and holdfast:{MODEL}:state; they come back. "
                "Then restart the serving code: a reader never goes back to a lower epoch.",
            )
        if older:
            advice = "A running switch asserts them again within a second or so; see its log."
            yield Diagnosis("redis", Health.WARNING, f"is behind Kafka for {', '.join(older)}", advice)
        if routes and not newer and not older:
            yield Diagnosis("redis", Health.OK, f"agrees with Kafka on {_count(routes, 'route')}")
    except RedisUnavailable as error:
        yield Diagnosis(
            "redis", Health.FAILED, str(error), "Guards go on obeying Kafka; serving code keeps its last answer."
        )
    finally:
        await mirror.close()


def _skew(area: str, theirs: datetime) -> Diagnosis:
    skew = utc_now() - theirs
    if abs(skew) > MAX_SKEW:
        side = "behind" if skew > timedelta(0) else "ahead of"
        finding = f"its clock is {abs(skew).total_seconds():.1f} s {side} this machine's"
        return Diagnosis(area, Health.WARNING, finding, "Set both by NTP; freshness checks and expiries depend on it.")
    return Diagnosis(area, Health.OK, "answers, and its clock agrees with this machine's")


async def _alertmanager(settings: Settings, url: str) -> Diagnosis:
    try:
        alertmanager = Alertmanager(url, settings.notify)
        try:
            # Nothing is sent, but it tells whether it would be taken.
            await alertmanager.post([])
            clock = await alertmanager.clock()
        finally:
            await alertmanager.close()
    except AlertmanagerError as error:
        finding, _, advice = str(error).partition(". ")
        return Diagnosis("alertmanager", Health.FAILED, finding, f"{advice} Nobody is paged until it takes alerts.")
    if clock is None:
        return Diagnosis("alertmanager", Health.OK, f"{url} takes alerts")
    return _skew("alertmanager", clock)
