"""What `holdfast.control` and `holdfast.audit` carry: tallies, commands, and the outcome of each decision."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from holdfast_schemas._base import BatchCount, Contract, Count, Name, NonEmpty, PolicyId, Said, UtcTime
from holdfast_schemas.incident import Sample
from holdfast_schemas.reference import MAX_REFERENCES, AcceptedValue
from holdfast_schemas.release import MAX_RELEASES, ReleaseAnswer

MAX_TALLY_ENTITIES = 32
OTHERS = "holdfast:others"
"""The version of a tally that counts several versions together. Predictions that name it are malformed."""


def _require_type(schema: dict[str, Any]) -> None:
    """The record's `type` is never left out: it tells tallies and commands apart."""
    schema["required"] = ["type", *schema["required"]]


class ShadowTally(Contract):
    """What checks in shadow would have blocked of the approved predictions of one tally."""

    failed: BatchCount
    """Approved predictions that a check of severity `error` or `critical` would have blocked."""
    critical: BatchCount = 0
    """Of `failed`, those that a `critical` check failed."""
    by_segment: dict[str, dict[str, BatchCount]] = {}
    """Failures by check and segment, where a check reads the segment; 32 segments at most, by name."""
    entities: Annotated[tuple[str, ...], Field(max_length=MAX_TALLY_ENTITIES)] = ()
    """Distinct entities among `failed`, at most 32."""
    samples: Annotated[tuple[Sample, ...], Field(max_length=2)] = ()
    """The worst of them."""


class Tally(Contract):
    """What one guard saw of one model version in one batch; written in the transaction of its verdicts."""

    model_config = ConfigDict(json_schema_extra=_require_type)

    type: Literal["tally"] = "tally"
    model: Name
    model_version: Name
    policy: Annotated[str, Field(max_length=300)]
    """`pricing@<12 hex digits of the policy's content>`"""
    at: UtcTime
    """The guard's clock when it judged the batch."""
    worker: str
    partition: Count
    """The partition of the predictions."""
    first_offset: Count
    last_offset: Count
    topic_id: str | None = None
    """Kafka's id of the topic of the predictions; a topic that is made again has another. Absent where brokers tell
    none."""
    seen: BatchCount
    approved: BatchCount
    blocked: BatchCount
    failed: BatchCount
    """Predictions blocked by an enforced check of severity `error` or `critical`: what the breaker counts.
    Outputs blocked because of a fence or a hold are in `blocked` only."""
    critical: BatchCount = 0
    """Of `failed`, those that a `critical` check failed."""
    blocked_by_check: dict[str, BatchCount] = {}
    shadow_by_check: dict[str, BatchCount] = {}
    """Failures that did not block, because of shadow mode or severity."""
    shadow: ShadowTally | None = None
    """Absent where no check in shadow would have blocked anything."""
    unknown_by_check: dict[str, BatchCount] = {}
    entities: Annotated[tuple[str, ...], Field(max_length=MAX_TALLY_ENTITIES)] = ()
    """Distinct entities among `failed`, at most 32."""
    approved_entities: Annotated[tuple[str, ...], Field(max_length=MAX_TALLY_ENTITIES)] = ()
    """Distinct entities among `approved`, at most 32: how many a small model has."""
    versions: Annotated[BatchCount, Field(ge=1)] = 1
    """How many versions it counts: more than one where `model_version` is `holdfast:others`, the versions of a batch
    beyond those that are counted one by one. Neither entities nor samples are given of them."""
    promoted: bool = True
    """False: no output of the version is approved, because it was never promoted, or does not serve."""
    keyless: BatchCount = 0
    """Of `seen`, those whose record had no key: their order and their entities' memory are not kept."""
    misplaced: BatchCount = 0
    """Of `seen`, those whose key was looked at and belongs in another partition by murmur2. Only some keys are."""
    first_blocked_at: UtcTime | None = None
    """Kafka timestamp of the first blocked prediction."""
    samples: Annotated[tuple[Sample, ...], Field(max_length=5)] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.seen != self.approved + self.blocked:
            raise ValueError(f"{self.approved} approved and {self.blocked} blocked are not {self.seen} seen")
        if not self.critical <= self.failed <= self.blocked:
            raise ValueError(f"{self.critical} critical of {self.failed} failed of {self.blocked} blocked cannot be")
        return self


class Action(StrEnum):
    """What a command asks for. `good` declares the version that serves good, on a person's word; `undo_trips` takes
    back what trips under one policy did; `accept_reference` sets what entities' next values are held against."""

    PROMOTE = "promote"
    PIN = "pin"
    UNPIN = "unpin"
    ROLLBACK = "rollback"
    HOLD = "hold"
    RESUME = "resume"
    FENCE = "fence"
    UNFENCE = "unfence"
    GOOD = "good"
    UNDO_TRIPS = "undo_trips"
    ACCEPT_REFERENCE = "accept_reference"
    ACKNOWLEDGE = "acknowledge"
    RESOLVE = "resolve"


class Command(Contract):
    """What a person or a pipeline asks for; `actor` and `reason` are never blank.

    A member that the contract does not name is refused: a misspelt `expires_at` would change what is asked for.
    """

    model_config = ConfigDict(json_schema_extra=_require_type, extra="forbid")

    type: Literal["command"] = "command"
    command_id: NonEmpty
    model: Name
    action: Action
    version: Name | None = None
    incident_id: NonEmpty | None = None
    """For `acknowledge` and `resolve`; without it the open incident of `version` is meant."""
    policy: PolicyId | None = None
    """For `undo_trips`: the policy whose trips are undone; without it that of the latest trip."""
    references: Annotated[tuple[AcceptedValue, ...], Field(max_length=MAX_REFERENCES)] = ()
    """For `accept_reference`: the values."""
    actor: Said
    reason: Said
    expires_at: UtcTime | None = None
    """When a pin, a hold or an unfence ends by itself."""


ControlRecord = Annotated[Tally | Command, Field(discriminator="type")]
_CONTROL: TypeAdapter[Tally | Command] = TypeAdapter(ControlRecord)


def parse_control(value: bytes) -> Tally | Command:
    """Parse one record of `holdfast.control`. Raises pydantic.ValidationError."""
    return _CONTROL.validate_json(value)


class Outcome(StrEnum):
    APPLIED = "applied"
    REFUSED = "refused"


class AuditRecord(Contract):
    """A record of `holdfast.audit`, keyed by model: one command's outcome, or one automatic decision."""

    audit_id: str
    at: UtcTime
    model: Name
    actor: str
    """The person or pipeline; `holdfast` for automatic decisions."""
    action: str
    """A command's action, or `trip`, `earned_good`, `expired`, `resolved` (an incident that is no longer so), or a
    person's `release` or `retry`; of a guard, `policy_at_start`, `policy_taken_up`,
    `policy_removed` or `policy_refused`."""
    version: str | None = None
    outcome: Outcome
    reason: str
    """Why it was asked for; for an automatic decision, what caused it."""
    detail: str
    """What happened, or why it was refused and what to do instead."""
    command_id: str | None = None
    incident_id: str | None = None
    source: str | None = None
    """Of a released prediction: its `topic/partition/offset`. The record that answers the whole command has none."""
    answers: Annotated[tuple[ReleaseAnswer, ...], Field(max_length=MAX_RELEASES)] | None = None
    """Of a command that asks for releases: what became of each prediction."""
    through: Literal["api", "kafka"] | None = None
    """Of a command: `api` where the API has signed it, `kafka` where it came straight to Kafka, by a login for
    emergencies. Absent where commands are not signed, and of automatic decisions."""
    epoch: Count
    """The model's epoch after the decision."""
    policy: str | None = None
    """Of a policy that was taken up: its id."""
    policy_before: str | None = None
    """Of a policy that was taken up or removed: the id of the one that it replaces."""
    mode: str | None = None
    """Of a policy that was taken up: its mode."""
    mode_before: str | None = None
    """The mode of the policy that it replaces."""
    worker: str | None = None
    """Of what happened to a policy: the guard that says so."""
