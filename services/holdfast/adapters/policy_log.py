"""What a worker has to write to the audit about the policies that it takes up and refuses.

An event is noted before the policies are in force, and stays here until a transaction with it is committed. Every
transaction that carries verdicts carries all that waits, so no verdict of a policy is written before the record that it
was taken up. Several partitions may write the same record: its `audit_id` is the same.
"""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from holdfast.core.policy_events import PolicyEvent, PolicyRefusal, audit_of, model_of
from holdfast_schemas import AuditRecord, utc_now

KEPT = 100
"""Changes of one model that wait at most. Nothing is judged while they wait, so only the latest ones matter."""
KEPT_REFUSALS = 1000
CLAIMED_FOR = 5.0
"""Seconds that partitions without records leave the writing to the one that has begun it."""


class PolicyLog:
    """Safe to use from the thread that reads policies and from the event loop."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._changes: dict[str, deque[AuditRecord]] = {}
        self._refusals: deque[AuditRecord] = deque(maxlen=KEPT_REFUSALS)
        self._claimed_until = 0.0

    def note(self, events: Sequence[PolicyEvent]) -> None:
        """Something happened to the policies."""
        with self._lock:
            for event in events:
                record = audit_of(event, worker=self._worker, audit_id=uuid.uuid4().hex, at=utc_now(), epoch=0)
                if isinstance(event, PolicyRefusal):
                    self._refusals.append(record)
                else:
                    self._changes.setdefault(model_of(event), deque(maxlen=KEPT)).append(record)

    def waiting(self, epoch_of: Callable[[str], int], *, idle: bool = False) -> list[AuditRecord]:
        """What must be written now, in the order in which it happened; `idle`: by a partition without verdicts."""
        if not self._changes and not self._refusals:
            return []
        with self._lock:
            now = time.monotonic()
            if idle and now < self._claimed_until:
                return []
            self._claimed_until = now + CLAIMED_FOR
            found = [record for records in (*self._changes.values(), self._refusals) for record in records]
        found.sort(key=lambda record: record.at)
        return [record.model_copy(update={"epoch": epoch_of(record.model)}) for record in found]

    def written(self, audit_ids: Iterable[str]) -> None:
        """These are committed."""
        done = set(audit_ids)
        if not done:
            return
        with self._lock:
            for model, records in list(self._changes.items()):
                kept = [record for record in records if record.audit_id not in done]
                if kept:
                    self._changes[model] = deque(kept, maxlen=KEPT)
                else:
                    del self._changes[model]
            self._refusals = deque((one for one in self._refusals if one.audit_id not in done), maxlen=KEPT_REFUSALS)
            self._claimed_until = 0.0
