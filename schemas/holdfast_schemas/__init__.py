"""The wire contract of Holdfast: what is in each topic, in Redis and in the headers."""

from holdfast_schemas._base import Contract, Name, NonEmpty, PolicyId, Said, UtcTime, utc_now
from holdfast_schemas.control import (
    Action,
    AuditRecord,
    Command,
    ControlRecord,
    Outcome,
    ShadowTally,
    Tally,
    parse_control,
)
from holdfast_schemas.incident import (
    ALERT_NAMES,
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    Sample,
)
from holdfast_schemas.prediction import Prediction
from holdfast_schemas.reference import MAX_REFERENCES, AcceptedValue, Reference, UsedReference
from holdfast_schemas.route import Route, RouteState, redis_route_key, redis_state_key
from holdfast_schemas.topics import MAX_VALUE_BYTES, TOPICS, Party, Topic
from holdfast_schemas.verdict import (
    ApprovedHeaders,
    BlockedHeaders,
    DeletedHeaders,
    Finding,
    Header,
    MalformedHeaders,
    Severity,
    Verdict,
)

__all__ = [
    "ALERT_NAMES",
    "MAX_REFERENCES",
    "MAX_VALUE_BYTES",
    "TOPICS",
    "AcceptedValue",
    "Action",
    "ApprovedHeaders",
    "AuditRecord",
    "BlockedHeaders",
    "Command",
    "Contract",
    "ControlRecord",
    "DeletedHeaders",
    "Finding",
    "Header",
    "Incident",
    "IncidentAction",
    "IncidentSeverity",
    "IncidentStatus",
    "MalformedHeaders",
    "Name",
    "NonEmpty",
    "Outcome",
    "Party",
    "PolicyId",
    "Prediction",
    "Reference",
    "Route",
    "RouteState",
    "Said",
    "Sample",
    "Severity",
    "ShadowTally",
    "Tally",
    "Topic",
    "UsedReference",
    "UtcTime",
    "Verdict",
    "parse_control",
    "redis_route_key",
    "redis_state_key",
    "utc_now",
]
