"""The table of topics: who writes what to whom, and with which settings they are created."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from holdfast_schemas._base import Contract
from holdfast_schemas.control import AuditRecord, Command, Tally
from holdfast_schemas.incident import Incident
from holdfast_schemas.prediction import Prediction
from holdfast_schemas.reference import Reference
from holdfast_schemas.release import ReleaseCommand
from holdfast_schemas.route import Route
from holdfast_schemas.verdict import ApprovedHeaders, BlockedHeaders, MalformedHeaders

MIB = 1024 * 1024
MAX_VALUE_BYTES = 3 * MIB
"""What is written of a value at most: the rest of a record of 4 MiB is for its key and headers."""
HOUR_MS = 3_600_000


class Party(StrEnum):
    """Who writes and reads topics. Each has a login of its own, and its rights follow from the table below."""

    PRODUCER = "producer"
    """The services that make predictions."""
    GUARD = "guard"
    SWITCH = "switch"
    NOTIFY = "notify"
    API = "api"
    OPERATOR = "operator"
    """The command line where it reads Kafka itself: people who see and diagnose. They command through the API."""
    BREAK_GLASS = "break-glass"
    """An operator who also commands straight to Kafka, for a laptop and for when the API is away."""
    CONSUMER = "consumer"
    """The systems downstream that act on approved predictions."""
    AUDITOR = "auditor"
    """Judges again what was approved, and changes nothing."""
    ADMIN = "admin"
    """Creates the topics."""


PEOPLE = (Party.OPERATOR, Party.BREAK_GLASS)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `like_predictions` ones have as many partitions as `predictions`: order per key survives."""

    role: str
    default_name: str
    key: str
    messages: tuple[type[Contract], ...]
    """What the values are; empty where they are not for others to read, or are as they came."""
    writers: tuple[Party, ...]
    readers: tuple[Party, ...]
    summary: str
    headers: type[Contract] | None = None
    """The headers that Holdfast adds."""
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int = 7 * 24 * HOUR_MS
    partitions: Literal["predictions", "control"] | int = "predictions"
    max_message_bytes: int = 4 * MIB
    """Above the 1 MiB of predictions, so that a record still fits with our headers."""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """The topic's configuration, as Kafka names it.

        `compression.type=uncompressed` makes the broker unpack what producers send: a batch that unpacks to
        more than `max.message.bytes` is refused there, and never reaches a worker's memory.
        """
        retention = {} if self.cleanup == "compact" else {"retention.ms": str(self.retention_ms)}
        return {
            "cleanup.policy": self.cleanup,
            "compression.type": "uncompressed",
            "max.message.bytes": str(self.max_message_bytes),
            **retention,
            **self.extra,
        }


_BROKER_TIME = {"message.timestamp.type": "LogAppendTime"}
"""Fences and tallies are compared in time by `holdfast audit`: one clock for both, not those of the services."""
TIME_LIMITS = ("message.timestamp.before.max.ms", "message.timestamp.after.max.ms")
NO_TIME_LIMIT = str(2**63 - 1)
_PRODUCERS_TIME = {"message.timestamp.type": "CreateTime", **dict.fromkeys(TIME_LIMITS, NO_TIME_LIMIT)}
"""A verdict has its prediction's time, whatever the broker's defaults are: what `predictions` has taken, fits."""
_COMPACTED = {"min.cleanable.dirty.ratio": "0.1", "segment.ms": str(HOUR_MS)}

TOPICS: dict[str, Topic] = {
    topic.role: topic
    for topic in (
        Topic(
            "predictions",
            "predictions",
            "entity_id",
            (Prediction,),
            (Party.PRODUCER,),
            (Party.GUARD, Party.AUDITOR),
            "What the models say, unchecked.",
            max_message_bytes=MIB,
        ),
        Topic(
            "approved",
            "predictions.approved",
            "entity_id",
            (Prediction,),
            # This is the gate: what people release is written by a guard, too.
            (Party.GUARD,),
            (Party.CONSUMER, Party.GUARD, *PEOPLE, Party.AUDITOR),
            "What passed, byte for byte; read it with isolation level read_committed.",
            ApprovedHeaders,
            extra=_PRODUCERS_TIME,
        ),
        Topic(
            "blocked",
            "predictions.blocked",
            "entity_id",
            (Prediction,),
            (Party.GUARD,),
            (Party.GUARD, Party.API, *PEOPLE, Party.AUDITOR),
            "What did not pass, byte for byte, with the findings in the headers.",
            BlockedHeaders,
            extra=_PRODUCERS_TIME,
        ),
        Topic(
            "malformed",
            "predictions.malformed",
            "as it came",
            (),
            (Party.GUARD, Party.SWITCH),
            (Party.GUARD, Party.API, *PEOPLE, Party.AUDITOR),
            "What could not be decoded, as it came, with the reason in the headers.",
            MalformedHeaders,
            extra=_PRODUCERS_TIME,
        ),
        Topic(
            "control",
            "holdfast.control",
            "model",
            (Tally, Command),
            (Party.GUARD, Party.API, Party.BREAK_GLASS),
            (Party.SWITCH, Party.API, Party.GUARD, *PEOPLE, Party.AUDITOR),
            "One total order for each model of what guards saw and what people ask for.",
            partitions="control",
            extra=_BROKER_TIME,
        ),
        Topic(
            "releases",
            "holdfast.releases",
            "model",
            (ReleaseCommand,),
            (Party.API, Party.BREAK_GLASS),
            (Party.GUARD,),
            "What people ask the guards to release; the partition is that of the predictions.",
        ),
        Topic(
            "state",
            "holdfast.state",
            "model",
            (),
            (Party.SWITCH,),
            (Party.SWITCH, Party.API, *PEOPLE),
            "The switch's own memory, restored from here; private to it.",
            cleanup="compact",
            partitions="control",
            extra=_COMPACTED,
        ),
        Topic(
            "routes",
            "holdfast.routes",
            "model",
            (Route,),
            (Party.SWITCH,),
            (Party.GUARD, Party.API, *PEOPLE, Party.AUDITOR),
            "The latest record of a model is its route: guards obey it, Redis mirrors it.",
            cleanup="compact",
            partitions=1,
            extra=_COMPACTED | _BROKER_TIME,
        ),
        Topic(
            "references",
            "holdfast.references",
            "model, entity_id and field",
            (Reference,),
            # The guard's are of what was released, in the same transaction.
            (Party.SWITCH, Party.GUARD),
            (Party.GUARD, *PEOPLE),
            "What people accepted as an entity's next reference; the latest record of a key counts.",
            cleanup="compact",
            partitions=1,
            extra=_COMPACTED | _BROKER_TIME,
        ),
        Topic(
            "incidents",
            "holdfast.incidents",
            "incident_id",
            (Incident,),
            (Party.SWITCH,),
            (Party.NOTIFY, Party.API, *PEOPLE),
            "Each update is the full incident; the latest one counts.",
            retention_ms=90 * 24 * HOUR_MS,
            partitions=1,
        ),
        Topic(
            "audit",
            "holdfast.audit",
            "model",
            (AuditRecord,),
            # The guard's are of releases, in the same transaction, and of policies.
            (Party.GUARD, Party.SWITCH),
            (Party.GUARD, Party.API, *PEOPLE, Party.AUDITOR),
            "The outcome of every command, every automatic decision, every release, and every change of a policy.",
            retention_ms=365 * 24 * HOUR_MS,
            partitions=1,
        ),
    )
}
