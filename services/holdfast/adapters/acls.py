"""Who may do what in Kafka and in Redis: it follows from the table of topics and the configuration."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.core.grants import Grant
from holdfast.kafka.topic_settings import compacted_roles
from holdfast.settings import Settings
from holdfast_schemas import TOPICS, Party, redis_route_key, redis_state_key
from holdfast_schemas.route import REDIS_CHANNEL
from holdfast_schemas.topics import PEOPLE

PRINCIPALS: dict[Party, str] = {party: f"User:holdfast-{party}" for party in Party}
"""The login of each party, unless another is named."""


_OF_AN_INPUT = frozenset((Party.PRODUCER, Party.CONSUMER, Party.SWITCH))
"""The parties whose login is for one input, and the switch, which puts malformed control records into one topic."""


def grants(settings: Settings, principals: Mapping[Party, str] = PRINCIPALS) -> list[Grant]:
    """Everything that the parties need, and nothing more.

    In Kafka, a right to read or write a topic includes describing it, and a right to write includes writing
    idempotently. A group of consumers must have a name that begins like the consumer's principal without its `User:`.

    Each of `inputs` has a producer and a consumer of its own, whose logins begin with its name, as
    User:prices-holdfast-producer: so a producer is bound to the models of its input.
    """
    inputs = settings.of_inputs()
    names = {role: str(getattr(settings.topics, role)) for role in TOPICS}
    found: list[Grant] = []

    def of_all(roles: Iterable[str]) -> list[str]:
        """The topics of these roles, of every input."""
        return list(dict.fromkeys(str(getattr(one.topics, role)) for role in roles for one in inputs))

    def grant(
        party: Party,
        kind: Literal["topic", "group", "transactional-id"],
        names: Sequence[str],
        *operations: str,
        prefixed: bool = False,
        principal: str = "",
    ) -> None:
        if names:
            found.append(Grant(party, principal or principals[party], kind, tuple(names), operations, prefixed))

    for party in Party:
        of = (lambda roles: [names[role] for role in roles]) if party in _OF_AN_INPUT else of_all
        grant(party, "topic", of(role for role, topic in TOPICS.items() if party in topic.readers), "Read")
        grant(party, "topic", of(role for role, topic in TOPICS.items() if party in topic.writers), "Write")
    for one in inputs[1:]:
        # In front, since a consumer's groups begin with its name: no other consumer's name may begin so.
        producer, consumer = (
            f"User:{one.input}-{principals[party].removeprefix('User:')}" for party in (Party.PRODUCER, Party.CONSUMER)
        )
        grant(Party.PRODUCER, "topic", [one.topics.predictions], "Write", principal=producer)
        grant(Party.CONSUMER, "topic", [one.topics.approved], "Read", principal=consumer)
        own = [consumer.removeprefix("User:")]
        grant(Party.CONSUMER, "group", own, "Read", prefixed=True, principal=consumer)
    for party in (Party.GUARD, Party.SWITCH):
        # They start only where these are compacted.
        grant(party, "topic", [names[role] for role in compacted_roles(party)], "DescribeConfigs")
    guards, switch = [one.guard.group for one in inputs], settings.switch.group
    releases = [one.release_group for one in inputs]
    grant(Party.GUARD, "group", [*guards, *releases], "Read")
    for one in inputs:
        of_guard = ((one.guard.group, one.topics.predictions), (one.release_group, one.topics.releases))
        for group, topic in of_guard:
            grant(Party.GUARD, "transactional-id", [f"{group}-{topic}-"], "Write", prefixed=True)
    # How long the topics of verdicts keep what is written to them.
    judged = of_all(("predictions", "approved", "blocked", "malformed"))
    grant(Party.GUARD, "topic", judged, "DescribeConfigs")
    grant(Party.SWITCH, "group", [switch], "Read")
    grant(Party.SWITCH, "transactional-id", [f"{switch}-{names['control']}-"], "Write", prefixed=True)
    # What `holdfast doctor` looks at.
    for party in PEOPLE:
        grant(party, "topic", of_all(TOPICS), "Describe", "DescribeConfigs")
        grant(party, "group", [*guards, *releases, switch], "Describe")
    grant(Party.CONSUMER, "group", [principals[Party.CONSUMER].removeprefix("User:")], "Read", prefixed=True)
    # How far the guard has come, which the auditor holds against what it reads.
    grant(Party.AUDITOR, "group", guards, "Describe")
    # Whether they are compacted.
    grant(Party.AUDITOR, "topic", judged, "DescribeConfigs")
    # To correct with `--fix` what somebody else has made.
    grant(Party.ADMIN, "topic", of_all(TOPICS), "Create", "Describe", "DescribeConfigs", "Alter", "AlterConfigs")
    return sorted(found, key=lambda one: list(Party).index(Party(one.party)))


def monitor_grants(principal: str) -> list[Grant]:
    """What an exporter of lags needs: to see topics and groups and how far they are. It reads no record."""
    return [
        Grant("monitor", principal, "topic", ("*",), ("Describe", "DescribeConfigs")),
        Grant("monitor", principal, "group", ("*",), ("Describe",)),
    ]


@dataclass(frozen=True, slots=True)
class RedisUser:
    """A user of Redis' ACL, still without a password: nobody can log in until it has one."""

    name: str
    commands: tuple[str, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        """As `ACL SETUSER` and an ACL file take them; Redis 6.2 and later."""
        keys = (f"~{redis_route_key('*')}", f"~{redis_state_key('*')}")
        commands = tuple(f"+{command}" for command in self.commands)
        return ("on", "resetkeys", *keys, "resetchannels", f"&{REDIS_CHANNEL}", "-@all", *commands)

    def command(self) -> str:
        """The line for a shell that makes it."""
        return shlex.join(["redis-cli", "ACL", "SETUSER", self.name, *self.rules])


REDIS_USERS = (
    # EVALSHA runs the script that compares epochs; the commands from TYPE on are what the script calls. In a cluster
    # a client asks which node has which slots.
    RedisUser(
        "holdfast-switch",
        (
            *("ping", "select", "cluster|slots", "command", "evalsha", "script|exists", "script|load"),
            *("type", "get", "hgetall", "del", "set", "hset", "publish"),
        ),
    ),
    # Serving code; HGET and TIME are for `holdfast doctor`.
    RedisUser(
        "holdfast-serving",
        ("ping", "select", "cluster|slots", "command", "get", "hgetall", "subscribe", "unsubscribe", "hget", "time"),
    ),
)
