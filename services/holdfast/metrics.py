"""The catalogue of metrics. No label ever carries an entity, a version or a prediction.

Every process of Holdfast exports the whole of it. What has no label is there from the start, as 0, also where it is
not that process's to count; hence a gauge always has a label, and is absent where nobody sets it. The services
show the label sets that they know in advance from their start: a counter that first appears as 1 has not increased.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

PREDICTIONS = Counter(
    "holdfast_predictions_total", "Predictions judged, by verdict.", ["model", "verdict"], registry=REGISTRY
)
FINDINGS = Counter(
    "holdfast_findings_total",
    "Failed checks; enforced ones blocked.",
    ["model", "check", "enforced"],
    registry=REGISTRY,
)
UNCHECKED = Counter(
    "holdfast_unchecked_total",
    "Predictions approved although no check of a policy ran: its mode is off, it has no active check, or the model has "
    "no policy.",
    ["model", "reason"],
    registry=REGISTRY,
)
UNKNOWN = Counter(
    "holdfast_unknown_total", "Checks that had not enough to tell.", ["model", "check"], registry=REGISTRY
)
MALFORMED = Counter(
    "holdfast_malformed_total",
    "Records that could not be decoded, by the model to blame (`none` where the record does not say) and the kind of "
    "reason.",
    ["model", "reason"],
    registry=REGISTRY,
)
KEYLESS = Counter(
    "holdfast_keyless_predictions_total",
    "Predictions judged whose record had no key: neither order nor memory is kept for their entities.",
    ["model"],
    registry=REGISTRY,
)
RESTAMPED = Counter(
    "holdfast_restamped_total",
    "Verdicts written with their own time, because the topic would have deleted them soon by the producer's.",
    ["topic"],
    registry=REGISTRY,
)
ABSENT_FIELDS = Gauge(
    "holdfast_absent_field",
    "1 where this worker has judged 1,000 events of the model by its policy and none had the field that the policy "
    "reads.",
    ["model", "field"],
    registry=REGISTRY,
)
MISPLACED = Counter(
    "holdfast_misplaced_keys_total",
    "Of the keys that were looked at, at most 16 in a batch, those not in their partition by murmur2.",
    ["model"],
    registry=REGISTRY,
)
COUNTED_TOGETHER = Counter(
    "holdfast_predictions_counted_together_total",
    "Predictions of versions beyond those that are counted one by one: judged, but no version can trip by them.",
    ["model"],
    registry=REGISTRY,
)
NOT_ALLOWED_HERE = Counter(
    "holdfast_predictions_not_allowed_here_total",
    "Predictions that were blocked because their topic may not carry their model.",
    ["topic"],
    registry=REGISTRY,
)
STATE_FULL = Counter(
    "holdfast_state_full_total",
    "Batches of control records that would have made a model's state larger than its record may be.",
    ["model"],
    registry=REGISTRY,
)
POISON = Counter(
    "holdfast_poison_records_total",
    "Records written to the malformed topic after three failed attempts.",
    registry=REGISTRY,
)
BATCH_SECONDS = Histogram(
    "holdfast_batch_judge_seconds", "Time to judge one batch.", buckets=_SECONDS, registry=REGISTRY
)
DELAY_SECONDS = Histogram(
    "holdfast_verdict_delay_seconds",
    "From the oldest prediction of a batch being written to its verdict being committed.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
LAG = Gauge("holdfast_guard_lag_records", "Predictions not yet judged.", ["partition"], registry=REGISTRY)
REMEMBERED = Gauge(
    "holdfast_remembered_entities",
    "Entities whose last approved value is known.",
    ["partition"],
    registry=REGISTRY,
)
POLICIES_REFUSED = Counter(
    "holdfast_policies_refused_total", "Changed policy files that did not load.", registry=REGISTRY
)
POLICIES_IN_FORCE = Gauge(
    "holdfast_policies_in_force",
    "1 while the policy files are in force as they are, 0 while the ones before stay because these did not load.",
    ["service"],
    registry=REGISTRY,
)
READY = Gauge("holdfast_ready", "1 while this process does its work.", ["service"], registry=REGISTRY)
PROGRESS = Gauge(
    "holdfast_progress_timestamp_seconds",
    "When a partition was opened, or last had a turn that went well, with or without records.",
    ["service", "partition"],
    registry=REGISTRY,
)
PARTITION_STOPPED = Gauge(
    "holdfast_partition_stopped",
    "1 while a partition cannot go on before a person says where; the others go on.",
    ["service", "partition"],
    registry=REGISTRY,
)
HELD_BACK = Gauge(
    "holdfast_held_by_transaction_seconds",
    "For how long one open transaction of another producer has held what lies behind it; 0 where none does.",
    ["service", "partition"],
    registry=REGISTRY,
)
TRIPS = Counter("holdfast_trips_total", "Versions found bad.", ["model"], registry=REGISTRY)
SWITCHES = Counter("holdfast_route_changes_total", "Records of a model's route.", ["model"], registry=REGISTRY)
ROUTE_HELD = Gauge("holdfast_route_held", "1 while no version may serve.", ["model"], registry=REGISTRY)
ROUTE_PINNED = Gauge("holdfast_route_pinned", "1 while a person's pin is in force.", ["model"], registry=REGISTRY)
ROUTE_EPOCH = Gauge(
    "holdfast_route_epoch",
    "The model's epoch: as the switch has decided it, and as each guard obeys it.",
    ["service", "model"],
    registry=REGISTRY,
)
ROUTE_MISMATCH = Gauge(
    "holdfast_route_mismatch",
    "1 where Redis held another or a newer route than Kafka when it was last looked at.",
    ["model"],
    registry=REGISTRY,
)
OPEN_INCIDENTS = Gauge(
    "holdfast_open_incidents",
    "Incidents not resolved, by status: triggered or acknowledged.",
    ["model", "status"],
    registry=REGISTRY,
)
COMMANDS = Counter("holdfast_commands_total", "Commands by outcome.", ["model", "action", "outcome"], registry=REGISTRY)
BAD_CONTROL = Counter(
    "holdfast_control_malformed_total", "Control records that could not be decoded.", registry=REGISTRY
)
REDIS_UP = Gauge("holdfast_redis_up", "1 while the routes could be mirrored.", ["service"], registry=REGISTRY)
REDIS_REPAIRS = Counter(
    "holdfast_redis_repairs_total",
    "Routes that Redis had lost or held wrong, and that were re-asserted.",
    registry=REGISTRY,
)
AUDIT_VIOLATIONS = Counter(
    "holdfast_audit_violations_total",
    "What `holdfast audit` found wrong, by kind: each one breaks a promise.",
    ["kind"],
    registry=REGISTRY,
)
AUDIT_CHECKED = Counter(
    "holdfast_audit_checked_total", "Predictions whose verdict was compared and judged again.", registry=REGISTRY
)
AUDIT_UNJUDGED = Counter(
    "holdfast_audit_unjudged_total",
    "Approved predictions that were not judged again, because their policy is not known here.",
    registry=REGISTRY,
)
AUDIT_GAPS = Counter(
    "holdfast_audit_gaps_total",
    "Times that not everything was compared: records were removed, a topic was made again, or too many waited.",
    registry=REGISTRY,
)
AUDIT_LAG = Gauge(
    "holdfast_audit_lag_records",
    "Predictions with a committed verdict that have not been compared.",
    ["partition"],
    registry=REGISTRY,
)
NOTIFICATIONS = Counter(
    "holdfast_notifications_total",
    "Incidents sent to an Alertmanager, re-sent ones too, by outcome: accepted, refused or failed.",
    ["alertmanager", "outcome"],
    registry=REGISTRY,
)
UNSENT_INCIDENTS = Gauge(
    "holdfast_unsent_incidents",
    "Incidents whose latest state the Alertmanager has not accepted.",
    ["alertmanager"],
    registry=REGISTRY,
)
LAST_NOTIFICATION = Gauge(
    "holdfast_last_notification_timestamp_seconds",
    "When the Alertmanager last took what it was sent, open incidents or none; 0 before the first time.",
    ["alertmanager"],
    registry=REGISTRY,
)
BAD_INCIDENTS = Counter(
    "holdfast_incidents_malformed_total",
    "Incident records that could not be decoded, and of which nobody is told.",
    registry=REGISTRY,
)
SIGN_INS = Counter(
    "holdfast_sign_ins_total",
    "Sign-ins at the console, by outcome: accepted or refused.",
    ["outcome"],
    registry=REGISTRY,
)
ACCESS_REFUSED = Counter(
    "holdfast_access_refused_total",
    "Requests to the API that were refused, by reason: no_credential, unknown_credential, expired_token, role, model; "
    "and sign-ins through a provider: oidc_state, oidc_provider, oidc_id_token, oidc_away, oidc_name, oidc_role, "
    "oidc_models.",
    ["reason"],
    registry=REGISTRY,
)
TOKEN_CHANGES = Counter(
    "holdfast_token_changes_total",
    "Changes of the tokens file while the API runs: added, removed or changed tokens, and refused files.",
    ["change"],
    registry=REGISTRY,
)
HTTP_REFUSED = Counter(
    "holdfast_http_refused_total",
    "Connections and requests that were ended or refused to keep room for others, by reason: slow_request, "
    "slow_reader, crowded, foreign_peer, busy, streams.",
    ["reason"],
    registry=REGISTRY,
)
