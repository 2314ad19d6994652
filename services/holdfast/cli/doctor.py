"""`holdfast doctor`: look at the whole installation, and say what to do about each thing that is wrong."""

import platform
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError
from pydantic import ValidationError

from holdfast.adapters import at_rest
from holdfast.adapters.alertmanager import Alertmanager, AlertmanagerError
from holdfast.adapters.commands import routes_in_kafka
from holdfast.adapters.judged_by import judged_by
from holdfast.adapters.malformed import find_malformed
from holdfast.adapters.policies import load_policies, unlike_their_files
from holdfast.adapters.redis import RedisUnavailable, RouteMirror
from holdfast.core.duration import format_duration
from holdfast.core.errors import describe
from holdfast.core.fail_open import ends, unchecked
from holdfast.core.keyless import ADVICE as KEYLESS_ADVICE
from holdfast.core.keyless import is_told
from holdfast.core.misplaced import ADVICE as MISPLACED_ADVICE
from holdfast.core.model_state import ModelState
from holdfast.core.policy import PolicyError
from holdfast.core.progress import Committed, Removed, where_to_go_on
from holdfast.core.topic_rules import partition_differences
from holdfast.core.trips import MAX_FENCED
from holdfast.core.version_budget import ADVICE as VERSIONS_ADVICE
from holdfast.kafka.counterparts import Counterparts
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.kafka.offsets import look_at_group
from holdfast.kafka.open_transactions import held_partitions
from holdfast.kafka.reading import bounds, read_latest
from holdfast.kafka.retention import ROLES as VERDICT_ROLES
from holdfast.kafka.retention import kept_for
from holdfast.kafka.topic_settings import FIX, Described, setting_differences, settings_of
from holdfast.kafka.topic_settings import describe as describe_topics
from holdfast.kafka.topics import describe_topics as partition_counts
from holdfast.kafka.topics import topic_id_of
from holdfast.settings import OF_INPUT, Settings, SettingsError
from holdfast_schemas import Route, utc_now

MAX_SKEW = timedelta(seconds=2)
"""Between this machine's clock and another's; expiries and freshness checks depend on it."""
MANY_FENCED = MAX_FENCED * 3 // 4
LATELY = timedelta(minutes=15)
"""How far back malformed records are counted."""
LATEST = 5_000
"""Malformed records that are looked at in each partition, at most."""
LATEST_TALLIES = 5_000
"""Offsets of each partition of the control topic in which the guards' policies are looked for."""
TAKE_UP_WITHIN = timedelta(seconds=30)
"""How long a guard may go on with the policy before after a change of the files."""
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
        "versions", Health.OK, f"holdfast {version('holdfast-guard')}, Python {platform.python_version()}, {libraries}"
    )
    yield _policies(settings)
    for diagnosis in _unchecked(settings):
        yield diagnosis
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
            "policies", Health.FAILED, str(error), "Correct it; services that run keep the policies they have."
        )
    if not policies:
        return Diagnosis(
            "policies",
            Health.WARNING,
            f"there is none in {settings.policies}",
            "Without one every prediction is blocked; write policies/<model>.toml.",
        )
    if unlike := unlike_their_files(settings.policies):
        advice = "Rename the file after its model, or correct `model` in it; a model without a policy is blocked."
        return Diagnosis("policies", Health.WARNING, "; ".join(unlike), advice)
    return Diagnosis("policies", Health.OK, ", ".join(sorted(policy.id for policy in policies.values())))


def _unchecked(settings: Settings) -> Iterator[Diagnosis]:
    """The switches that let outputs pass."""
    try:
        policies = list(load_policies(settings.policies).policies.values())
    except PolicyError:  # Said before.
        policies = []
    now = utc_now()
    in_force = [policy.at(now) for policy in policies]
    if found := unchecked(in_force, no_policy_approves=settings.guard.approves_without_policy(now)):
        yield Diagnosis(
            "policies",
            Health.WARNING,
            f"some outputs pass unchecked: {'; '.join(found)}",
            "Close what was opened for a moment: guard.no_policy = 'block' in the configuration, mode = 'enforce' in "
            "the policy. A model that is not to be blocked yet is better in mode = 'shadow', which counts what fails.",
        )
    for sentence in ends(policies, now, settings.guard.no_policy_until):
        yield Diagnosis("policies", Health.OK, sentence)


async def _kafka(settings: Settings, routes: dict[str, Route]) -> AsyncIterator[Diagnosis]:
    """Fills `routes`, too."""
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **settings.kafka.client_options())
    try:
        await admin.start()
        brokers = len((await admin.describe_cluster())["brokers"])
        yield Diagnosis(
            "kafka", Health.OK, f"{brokers} broker{'s' if brokers != 1 else ''} at {settings.kafka.bootstrap_servers}"
        )
        described = await describe_topics(admin, settings)
        counts = described.partitions
        async for diagnosis in _about_topics(described, admin):
            yield diagnosis
        single = [name for name, replicas in described.replicas.items() if replicas < 2]
        if single:
            yield Diagnosis(
                "topics",
                Health.WARNING,
                f"{_count(single, 'topic')} with one replica: a lost disk loses all that is in there",
                "In production set topic_settings.replication_factor = 3 before creating them, or add replicas.",
            )
        services = (("guard", settings.guard.group, "predictions"), ("switch", settings.switch.group, "control"))
        async for diagnosis in _about_services(settings, admin, described, services):
            yield diagnosis
        for one in settings.of_inputs()[1:]:
            async for diagnosis in _input(one, admin):
                yield diagnosis
    finally:
        await admin.close()
    if "routes" in counts:
        routes.update(await routes_in_kafka(settings))
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
    if {"malformed", "predictions"} <= counts.keys():
        async for diagnosis in _as_far_as_told("malformed", _malformed(settings)):
            yield diagnosis
    if "control" in counts:
        async for diagnosis in _as_far_as_told("policies", _judged_by(settings, counts["control"])):
            yield diagnosis
    if "state" in counts:
        async for diagnosis in _as_far_as_told("breakers", _breakers(settings, counts["state"])):
            yield diagnosis
        async for diagnosis in _as_far_as_told("keys", _keys(settings, counts["state"])):
            yield diagnosis


async def _input(settings: Settings, admin: AIOKafkaAdminClient) -> AsyncIterator[Diagnosis]:
    """Look at the topics and the guards of a further input."""
    described = await describe_topics(admin, settings, OF_INPUT)
    async for diagnosis in _about_topics(described, admin):
        yield diagnosis
    services = (("guard", settings.guard.group, "predictions"),)
    async for diagnosis in _about_services(settings, admin, described, services):
        yield diagnosis


async def _about_topics(described: Described, admin: AIOKafkaAdminClient) -> AsyncIterator[Diagnosis]:
    """Look at which topics there are, and at their settings."""
    for diagnosis in _topics(described):
        yield diagnosis
    for looked_at in (_topic_settings(described, admin), _old_timestamps(described, admin)):
        async for diagnosis in _as_far_as_told("topics", looked_at):
            yield diagnosis


async def _about_services(
    settings: Settings,
    admin: AIOKafkaAdminClient,
    described: Described,
    services: Sequence[tuple[str, str, str]],
) -> AsyncIterator[Diagnosis]:
    """Look at how far services are, by name, group and role of the topic, and whether guards answer for releases."""
    names, counts = described.names, described.partitions
    for service, group, role in services:
        if role in counts:
            looked_at = _group(settings, admin, service, group, names[role], counts[role])
            async for diagnosis in _as_far_as_told(service, looked_at):
                yield diagnosis
    if "releases" in counts:
        tps = [TopicPartition(names["releases"], number) for number in range(counts["releases"])]
        async for diagnosis in _as_far_as_told("releases", _releases(settings, admin, tps)):
            yield diagnosis


async def _malformed(settings: Settings) -> AsyncIterator[Diagnosis]:
    """What could not be decoded of late, and why."""
    since = utc_now() - LATELY
    found = await find_malformed(settings, since, limit=1, tail=LATEST)
    if not found.count:
        yield Diagnosis("malformed", Health.OK, f"every record of the last {format_duration(LATELY)} could be decoded")
        return
    counts = await partition_counts(settings.kafka, [one.topics.predictions for one in settings.of_inputs()])
    tps = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
    starts, ends = await bounds(settings.kafka, tps, since, "read_committed")
    came = max(found.count, sum(ends[tp] - starts[tp] for tp in tps))
    reasons = "; ".join(f"{count:,} {kind}: {found.reasons[kind]}" for kind, count in found.kinds.most_common(3))
    more = f"; and {len(found.kinds) - 3} more kinds" if len(found.kinds) > 3 else ""
    yield Diagnosis(
        "malformed",
        # Where next to nothing can be decoded, consumers get nothing.
        Health.FAILED if found.count >= 10 and found.count > 0.9 * came else Health.WARNING,
        f"{found.count:,} of about {came:,} records of the last {format_duration(LATELY)} could not be decoded "
        f"({reasons}{more})",
        "See them: holdfast malformed list. Correct the producer or the policy's [fields], and try that on real "
        "events: holdfast check --try TOPIC",
    )


async def _judged_by(settings: Settings, partitions: int) -> AsyncIterator[Diagnosis]:
    """Whether the guards judge by what the policy files say."""
    found = await judged_by(settings, partitions, utc_now() - LATELY, LATEST_TALLIES)
    try:
        policies = load_policies(settings.policies).policies
    except PolicyError:  # The files have a diagnosis of their own.
        in_force = sorted({policy for guards in found.values() for policy, _ in guards.values()})
        if in_force:
            yield Diagnosis("policies", Health.OK, f"the guards judge by {', '.join(in_force)}")
        return
    changed_ns = max((one.modified_ns for one in at_rest.stamps(settings.policies).values()), default=0)
    since = datetime.fromtimestamp(changed_ns / 1e9, UTC) + TAKE_UP_WITHIN
    for model, policy in sorted(policies.items()):
        others = {other for other, at in found.get(model, {}).values() if other != policy.id and at > since}
        if others:
            yield Diagnosis(
                "policies",
                Health.WARNING,
                f"guards judge {model} by {', '.join(sorted(others))}, and the files in {settings.policies} have "
                f"{policy.id}",
                "If the guards read these files, they refused them, and their log says why; a table may have lost too "
                "many rows: write the whole table, or set max_table_shrink = 1.0 if it is whole.",
            )


def _state(value: bytes) -> ModelState | None:
    """What the switch wrote; None where it cannot be read."""
    try:
        return ModelState.model_validate_json(value)
    except ValidationError:
        return None


async def _keys(settings: Settings, partitions: int) -> AsyncIterator[Diagnosis]:
    """Which models' predictions came without a key of late."""
    latest = await read_latest(settings.kafka, settings.topics.state, range(partitions))
    states: list[tuple[str, ModelState]] = []
    for model, value in sorted(latest.items()):
        if (state := _state(value)) is not None:
            states.append((model, state))
            continue
        yield Diagnosis(
            "state",
            Health.FAILED,
            f"the state of {model} in {settings.topics.state} cannot be read",
            "Only the switch may write there. See who else may, with the lines of holdfast acls kafka.",
        )
    now = utc_now()
    keyless = [(model, state) for model, state in states if is_told(state.keyless_at, now)]
    for model, state in keyless:
        yield Diagnosis(
            "keys",
            Health.WARNING,
            f"{state.keyless:,} predictions of {model} had no key, the last one at "
            f"{state.keyless_at:%Y-%m-%d %H:%M:%S} UTC",
            f"{KEYLESS_ADVICE}.",
        )
    if not keyless:
        yield Diagnosis("keys", Health.OK, "no prediction came without a key within a day")
    for model, state in states:
        if is_told(state.others_at, now):
            yield Diagnosis(
                "versions",
                Health.WARNING,
                f"{state.others:,} predictions of {model} were of more versions than are counted one by one, the last "
                f"one at {state.others_at:%Y-%m-%d %H:%M:%S} UTC: these versions cannot trip",
                f"{VERSIONS_ADVICE}.",
            )
    misplaced = [(model, state) for model, state in states if is_told(state.misplaced_at, now)]
    for model, state in misplaced:
        yield Diagnosis(
            "partitioner",
            Health.WARNING,
            f"{state.misplaced:,} keys of {model} that were looked at are not in their partition by murmur2, the "
            f"last one at {state.misplaced_at:%Y-%m-%d %H:%M:%S} UTC: where producers differ in it, the last "
            "values of an entity are not known in each of its partitions",
            f"{MISPLACED_ADVICE}.",
        )
    if not misplaced and settings.guard.partitioner == "murmur2":
        yield Diagnosis("partitioner", Health.OK, "every key that was looked at within a day is in its partition")


async def _breakers(settings: Settings, partitions: int) -> AsyncIterator[Diagnosis]:
    """Whether each model's policy and traffic let its breaker trip."""
    try:
        policies = load_policies(settings.policies).at(utc_now()).policies
    except PolicyError:  # The policies have a diagnosis of their own.
        return
    states = await read_latest(settings.kafka, settings.topics.state, range(partitions))
    fine = True
    for model, policy in sorted(policies.items()):
        why = policy.why_it_cannot_trip()
        if why is None and model in states:
            state = _state(states[model])
            why = state.population.why_it_may_not_trip(utc_now(), policy.breaker) if state is not None else None
        if why is not None:
            finding, _, advice = why.partition(": ")
            fine = False
            yield Diagnosis("breakers", Health.WARNING, f"{model}: {finding}", f"{advice[0].upper()}{advice[1:]}.")
    if fine:
        yield Diagnosis("breakers", Health.OK, f"{_count(policies, 'model')} whose versions can trip")


def _count(things: Collection[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) != 1 else ''}"


def _topics(described: Described) -> Iterator[Diagnosis]:
    if described.missing:
        yield Diagnosis(
            "topics",
            Health.FAILED,
            f"missing, or not to be seen by this login: {', '.join(described.missing)}",
            "Create them: holdfast topics create",
        )
    unequal = [*partition_differences(described.names, described.partitions)]
    for one in unequal:
        yield Diagnosis("topics", Health.FAILED, one.sentence(), f"Give {one.topic} {one.wanted} too: {FIX}")
    if "predictions" in described.partitions:
        found = Counterparts(described.names, described.partitions)
        if found.held:
            yield Diagnosis(
                "guard", Health.FAILED, found.sentence(found.held), f"They go on by themselves after: {FIX}"
            )
    if not described.missing and not unequal:
        yield Diagnosis("topics", Health.OK, f"all {len(described.partitions)} are there, and their partitions fit")


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


async def _topic_settings(described: Described, admin: AIOKafkaAdminClient) -> AsyncIterator[Diagnosis]:
    """What endangers something has failed; what is only advisable is worth a look."""
    found = await setting_differences(admin, described)
    for one in found:
        by_hand = f"kafka-configs.sh --alter --topic {one.topic} --add-config {one.key}={one.wanted}"
        yield Diagnosis(
            "topics",
            Health.FAILED if one.serious else Health.WARNING,
            one.sentence(),
            f"Correct it: {FIX}" if one.correctable else f"To change it: {by_hand}",
        )
    if described.partitions and not any(one.serious for one in found):
        yield Diagnosis("topics", Health.OK, "their settings are those that safety rests on")


async def _old_timestamps(described: Described, admin: AIOKafkaAdminClient) -> AsyncIterator[Diagnosis]:
    """Which topics of verdicts keep records for less long than predictions."""
    roles = [role for role in ("predictions", *VERDICT_ROLES) if role in described.partitions]
    found = await settings_of(admin, [described.names[role] for role in roles])
    kept = {
        role: kept_for({key: setting.value for key, setting in found[described.names[role]].items()})
        for role in roles
        if described.names[role] in found
    }
    if "predictions" not in kept:
        return
    input_kept = kept.pop("predictions")
    for role, kept_ms in kept.items():
        if kept_ms is not None and (input_kept is None or input_kept > kept_ms):
            yield Diagnosis(
                "topics",
                Health.OK,
                f"{described.names[role]} keeps records for {format_duration(timedelta(milliseconds=kept_ms))}, less "
                f"long than {described.names['predictions']}: older predictions are written with the time of their "
                "verdict, and their own time in the header holdfast-produced-at",
            )


async def _group(
    settings: Settings, admin: AIOKafkaAdminClient, service: str, group: str, topic: str, partitions: int
) -> AsyncIterator[Diagnosis]:
    members, offsets = await look_at_group(admin, group)
    of = f" --input {settings.input}" if settings.input is not None else ""
    if members:
        yield Diagnosis(service, Health.OK, f"{members} in the group {group}")
    else:
        yield Diagnosis(service, Health.FAILED, f"none runs in the group {group}", f"Start one: holdfast {service}{of}")
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    if service == "guard" and not any(tp in offsets and offsets[tp].offset >= 0 for tp in tps):
        yield Diagnosis(
            service,
            Health.WARNING,
            f"the group {group} has no committed offset",
            "Where verdicts exist checking goes on behind them; a new installation begins by guard.start_from, which "
            f"is {settings.guard.start_from}.",
        )
    starts, ends = await bounds(settings.kafka, tps, None, "read_uncommitted")
    topic_id = await topic_id_of(settings.kafka, topic)
    begins = dict(starts)
    for tp in tps:
        if tp not in offsets or offsets[tp].offset < 0:
            continue
        committed = Committed.read(offsets[tp].offset, offsets[tp].metadata)
        go_on = where_to_go_on(committed, starts[tp], topic_id)
        if isinstance(go_on, Removed):
            yield Diagnosis(
                service,
                Health.FAILED,
                f"{topic}/{tp.partition} has stopped: the records from offset {go_on.first} to {go_on.last} were "
                "removed before it read them",
                "Lengthen the topic's retention, then say where to go on: "
                f"holdfast offsets set {service}{of} --partition {tp.partition} --to earliest",
            )
        elif go_on.offset > ends[tp]:
            yield Diagnosis(
                service,
                Health.FAILED,
                f"{topic}/{tp.partition} ends at offset {ends[tp]}, before {go_on.offset}, up to which it was checked",
                "Records were lost. See what the brokers' log says of unclean elections, then say where to go on "
                "(earliest needs --force, for it judges what is left of them again): "
                f"holdfast offsets set {service}{of} --partition {tp.partition} --to OFFSET",
            )
        else:
            begins[tp] = go_on.offset
    for held in await held_partitions(settings.kafka, tps):
        yield Diagnosis(service, Health.WARNING, held.describe(), held.advice(settings.kafka.bootstrap_servers))
    lag = sum(max(0, ends[tp] - begins[tp]) for tp in tps)
    if lag > MAX_LAG:
        advice = f"See its log and metrics; run more of them, up to {partitions}."
        yield Diagnosis(service, Health.WARNING, f"{lag:,} records of {topic} wait", advice)
    else:
        yield Diagnosis(service, Health.OK, f"{lag:,} records of {topic} wait")


async def _releases(
    settings: Settings, admin: AIOKafkaAdminClient, tps: Sequence[TopicPartition]
) -> AsyncIterator[Diagnosis]:
    """Whether guards answer those who ask for releases."""
    group = settings.release_group
    members, offsets = await look_at_group(admin, group)
    starts, ends = await bounds(settings.kafka, tps, None, "read_uncommitted")
    waits = sum(ends[tp] - max(starts[tp], offsets[tp].offset if tp in offsets else 0) for tp in tps)
    if not members:
        yield Diagnosis(
            "releases",
            Health.WARNING,
            f"no guard answers requests for releases (group {group}); {waits:,} wait",
            "Start a guard. Where one runs, its log says why; `holdfast acls kafka` prints the rights that it needs.",
        )
    elif waits > 0:
        advice = "Guards answer them in turn; see the guards' log where it stays so."
        yield Diagnosis("releases", Health.WARNING, f"{waits:,} requests for releases wait", advice)
    else:
        yield Diagnosis("releases", Health.OK, f"{members} in the group {group}, and no request waits")


async def _redis(settings: Settings, routes: dict[str, Route]) -> AsyncIterator[Diagnosis]:
    try:
        mirror, verifier = RouteMirror(settings.redis.connection_url()), settings.redis.route_verifier()
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
                f"holds a newer route than Kafka for {', '.join(newer)}: the topics were created again, or belong to "
                "another installation",
                "A running switch takes it back within seconds; see its log, and find out who else can write to Redis. "
                "If the topics were made again, restart the serving code: a reader never goes back to a lower epoch.",
            )
        if older:
            advice = "A running switch asserts them again within a second or so; see its log."
            yield Diagnosis("redis", Health.WARNING, f"is behind Kafka for {', '.join(older)}", advice)
        wrongly_signed = await mirror.wrongly_signed(sorted(routes), verifier) if verifier is not None else {}
        if wrongly_signed:
            found = "; ".join(f"the route of {model} {wrong}" for model, wrong in wrongly_signed.items())
            yield Diagnosis(
                "redis",
                Health.FAILED,
                found,
                "Readers with that key refuse it. Check that the switch has redis.route_key_file and that both files "
                "belong together; if they do, somebody else writes to Redis.",
            )
        if routes and not newer and not older and not wrongly_signed:
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
