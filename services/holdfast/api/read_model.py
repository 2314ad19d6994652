"""What is going on, in memory, as the topics tell it: what the API answers from and the console shows.

Bounded: of incidents and audit records the latest are kept, of predictions only counts of the last minute.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

import msgspec
import structlog
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from holdfast.adapters.decisions import NUMEROUS
from holdfast.adapters.malformed import Found
from holdfast.adapters.policies_here import PoliciesHere
from holdfast.core.model_state import ModelState
from holdfast.core.policy_events import POLICY_ACTIONS, is_same_again
from holdfast.core.record import time_of
from holdfast.kafka.reading import KeyOrder, key_of
from holdfast.settings import TopicNames
from holdfast_schemas import MAX_IN_BATCH, AuditRecord, Incident, IncidentStatus, Route, utc_now

log = structlog.get_logger("holdfast.board")
HISTORY = 60
"""Seconds of rates that are kept."""
COUNTS_EVERY = 5.0
"""Seconds after which a model whose counts alone have changed is shown again."""
TAKE_UP_WITHIN = timedelta(minutes=1)
"""How long guards may go on with the policy before, and how long it is told that one of them did."""
STEADY = 5
"""Seconds that a rate is the mean of."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_IN_BATCH)]


class _Counts(msgspec.Struct):
    """What is read of a tally; its samples are not."""

    type: str
    model: str = ""
    policy: str = ""
    approved: _Count = 0
    blocked: _Count = 0


_decode_counts = msgspec.json.Decoder(_Counts).decode


class Rates:
    """Approved and blocked predictions of each of the last seconds, by the clock of this process."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=HISTORY + 1)

    def add(self, second: int, approved: int, blocked: int) -> None:
        if self._seconds and self._seconds[-1][0] > second + STEADY:
            self._seconds.clear()  # The clock was set back: these would count as now until it is there again.
        if self._seconds and self._seconds[-1][0] >= second:
            last = self._seconds.pop()
            second, approved, blocked = last[0], last[1] + approved, last[2] + blocked
        self._seconds.append((second, approved, blocked))

    def history(self, now: int) -> list[tuple[int, int]]:
        """(approved, blocked) of each of the `HISTORY` seconds before `now`, the oldest first."""
        known = {second: (approved, blocked) for second, approved, blocked in self._seconds}
        return [known.get(second, (0, 0)) for second in range(now - HISTORY, now)]

    def per_second(self, now: int) -> tuple[float, float]:
        """The mean of the last `STEADY` whole seconds."""
        recent = self.history(now)[-STEADY:]
        return sum(a for a, _ in recent) / STEADY, sum(b for _, b in recent) / STEADY


class Board:
    """Routes and version ledgers by model, incidents and audit records by id, rates by model.

    `revision` rises with each change, and `changed` says at which revision a thing changed last.
    """

    def __init__(self, topics: TopicNames, *, keep_incidents: int, keep_audit: int) -> None:
        self._keep_incidents, self._keep_audit = keep_incidents, keep_audit
        self._takers: dict[str, Callable[[Sequence[ConsumerRecord]], None]] = {
            topics.routes: lambda records: self._latest(records, self._take_route),
            topics.state: lambda records: self._latest(records, self._take_state),
            topics.incidents: lambda records: self._latest(records, self._take_incident),
            topics.audit: self._take_audit,
            topics.control: self._take_control,
        }
        self._orders: dict[str, KeyOrder] = {}
        self.routes: dict[str, Route] = {}
        self.states: dict[str, ModelState] = {}
        self.incidents: dict[str, Incident] = {}
        self.audit: dict[str, AuditRecord] = {}
        self._of_policies: dict[str, AuditRecord] = {}
        """By model, the last thing that happened to its policy: guards that say the same again are not shown."""
        self._releases: deque[str] = deque()
        """The audit ids of what is numerous: one release has thousands, and they hold half of the room at most."""
        self.outcomes: dict[str, AuditRecord] = {}
        """Audit records by command id."""
        self.rates: dict[str, Rates] = {}
        self.malformed = Found()
        self.policies = PoliciesHere()
        self.no_policy_approves = False
        """By the configuration here, which guards share."""
        self.no_policy_until: datetime | None = None
        """When that ends by itself."""
        self._policies_since: dict[str, datetime] = {}
        """By policy id: since when the files say so."""
        self.other_policy: dict[str, tuple[str, datetime]] = {}
        """By model: the policy by which a guard judges although the files here hold another, and when it last did."""
        self._counts_due: dict[str, float] = {}
        self.revision = 0
        self.changed: dict[str, int] = {}
        """By `model/<model>`, `incident/<id>` and `audit/<id>`."""
        self._next_change = asyncio.Event()

    @property
    def models(self) -> set[str]:
        return self.routes.keys() | self.states.keys()

    def approves_without_policy(self, now: datetime) -> bool:
        """Whether outputs of models without a policy pass."""
        return self.no_policy_approves and (self.no_policy_until is None or now < self.no_policy_until)

    async def change(self) -> None:
        """Wait for the next change."""
        await self._next_change.wait()

    async def outcome(self, command_id: str) -> AuditRecord:
        """Wait until the switch has answered a command."""
        while (found := self.outcomes.get(command_id)) is None:
            await self.change()
        return found

    def open_incidents(self) -> list[Incident]:
        return [one for one in self.incidents.values() if one.status is not IncidentStatus.RESOLVED]

    def take_malformed(self, found: Found) -> None:
        """What could not be decoded in the last minutes."""
        if (found.count, found.kinds, found.reasons) == (
            self.malformed.count,
            self.malformed.kinds,
            self.malformed.reasons,
        ):
            return
        self.malformed = found
        self._note("malformed")
        self._tell()

    def take_policies(self, here: PoliciesHere) -> None:
        """What the policy files say."""
        if here == self.policies:
            return
        before, self.policies = self.policies, here
        self._policies_since = {one.id: self._policies_since.get(one.id, utc_now()) for one in here.policies.values()}
        for model in before.policies.keys() | here.policies.keys():
            if before.policies.get(model) != here.policies.get(model):
                self.other_policy.pop(model, None)
                self._note(f"model/{model}")
        self._note("policies")
        self._tell()

    def _judged_by(self, model: str, policy: str, at: datetime) -> None:
        """Note by which policy a guard judged."""
        here, (other, last) = self.policies.policies.get(model), self.other_policy.get(model, ("", at))
        if here is None:
            return
        if policy != here.id and at > self._policies_since[here.id] + TAKE_UP_WITHIN:
            self.other_policy[model] = (policy, at)
            if policy != other:
                self._note(f"model/{model}")
        elif other and at > last + TAKE_UP_WITHIN:
            del self.other_policy[model]
            self._note(f"model/{model}")

    def _tell(self) -> None:
        waiting, self._next_change = self._next_change, asyncio.Event()
        waiting.set()

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Take over records of one partition."""
        self._takers[records[0].topic](records)
        self._tell()

    def _note(self, thing: str) -> None:
        self.revision += 1
        self.changed[thing] = self.revision

    def _latest(self, records: Sequence[ConsumerRecord], take: Callable[[str, bytes | None], None]) -> None:
        """Give `take` only the last record of each key: years of updates are read at the start."""
        order = self._orders.setdefault(records[0].topic, KeyOrder())
        for record in {record.key: record for record in records if not order.is_outdated(record)}.values():
            if (key := key_of(record)) is not None:
                _tolerantly(record, partial(_of_key, take, key))

    def _take_route(self, model: str, value: bytes | None) -> None:
        if value is None:
            self.routes.pop(model, None)
        else:
            self.routes[model] = Route.model_validate_json(value)
        self._note(f"model/{model}")

    def _take_state(self, model: str, value: bytes | None) -> None:
        if value is None:
            self.states.pop(model, None)
        else:
            fresh = ModelState.model_validate_json(value)
            known = self.states.get(model)
            self.states[model] = fresh
            just_counts = known is not None and _decided(known) == _decided(fresh)
            if just_counts and time.monotonic() < self._counts_due.get(model, 0.0):
                return
            self._counts_due[model] = time.monotonic() + COUNTS_EVERY
        self._note(f"model/{model}")

    def _take_incident(self, incident_id: str, value: bytes | None) -> None:
        if value is None:
            self.incidents.pop(incident_id, None)
            self.changed.pop(f"incident/{incident_id}", None)
            return
        incident = Incident.model_validate_json(value)
        self.incidents[incident_id] = incident
        self._note(f"incident/{incident_id}")
        # Its model is shown with the number of its open incidents.
        self._note(f"model/{incident.model}")
        if len(self.incidents) > self._keep_incidents:
            resolved = (key for key, one in self.incidents.items() if one.status is IncidentStatus.RESOLVED)
            oldest = next(resolved, None) or next(iter(self.incidents))
            del self.incidents[oldest]
            self.changed.pop(f"incident/{oldest}", None)

    def _take_audit(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            _tolerantly(record, self._take_decision)

    def _take_decision(self, record: ConsumerRecord) -> None:
        audit = AuditRecord.model_validate_json(record.value)
        if audit.answers is not None:
            # The detail counts them; of thousands of releases each has hundreds.
            audit = audit.model_copy(update={"answers": None})
        if audit.command_id is not None:
            self.outcomes[audit.command_id] = audit
        if audit.audit_id in self.audit:
            # A repeated command is answered with the record of the first.
            return
        if audit.action in POLICY_ACTIONS:
            before = self._of_policies.pop(audit.model, None)
            self._of_policies[audit.model] = audit
            if len(self._of_policies) > self._keep_audit:
                del self._of_policies[next(iter(self._of_policies))]
            if before is not None and is_same_again(before, audit):
                return
        self.audit[audit.audit_id] = audit
        if audit.action in NUMEROUS:
            self._releases.append(audit.audit_id)
        self._note(f"audit/{audit.audit_id}")
        if len(self.audit) > self._keep_audit:
            full = len(self._releases) > self._keep_audit // 2
            oldest = self.audit.pop(self._releases[0] if full else next(iter(self.audit)))
            if oldest.action in NUMEROUS:
                self._releases.popleft()
            self.changed.pop(f"audit/{oldest.audit_id}", None)
            self.outcomes.pop(oldest.command_id or "", None)

    def _take_control(self, records: Sequence[ConsumerRecord]) -> None:
        second = int(time.time())
        for record in records:
            try:
                counts = _decode_counts(record.value or b"")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue  # The switch says what is wrong with it.
            # Only models that are routed are shown, so that names do not fill the memory.
            if counts.type == "tally" and counts.model in self.models:
                self.rates.setdefault(counts.model, Rates()).add(second, counts.approved, counts.blocked)
                self._judged_by(counts.model, counts.policy, time_of(record.timestamp))


def _of_key(take: Callable[[str, bytes | None], None], key: str, record: ConsumerRecord) -> None:
    take(key, record.value)


def _decided(state: ModelState) -> Any:
    """What of a model's state changes by a decision; the rest changes with every batch."""
    return (
        state.ends_at,
        state.held_by_person,
        state.resume_to,
        [(name, v.state, v.activated, v.fence_at) for name, v in sorted(state.versions.items())],
    )


def _tolerantly(record: ConsumerRecord, take: Callable[[ConsumerRecord], None]) -> None:
    """A record that cannot be read is logged and left out: people need the rest all the more."""
    try:
        take(record)
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        log.warning("record left out", topic=record.topic, offset=record.offset, reason=reason)
