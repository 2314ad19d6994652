"""Notify: every open incident is known to every Alertmanager, until it is resolved.

Level-triggered: what is sent follows from what is, not from which record came last. On start the whole of
`holdfast.incidents` is read (the latest record of each incident counts), then its end is followed. Hence there
are no offsets to keep and none to lose: no consumer group, no commit, and a process that was killed anywhere begins
again with everything. Two may run at once; their alerts are the same ones.

Each Alertmanager has a task of its own that compares what is with what that Alertmanager has accepted: a change goes
out at once, and every `resend_every` all that is open goes out again, because Alertmanager forgets what it is
not told. A failure is retried for ever and uses nothing up. A resolved incident is sent until it was accepted, and
for `alert_lasts` after it was resolved, in case the Alertmanager restarts before it has told people; after a start
those of the last five days are sent once more.

While Kafka is away, the incidents that are known are still sent. An incident that stays open longer than the
topic's retention (90 days) without an update is unknown to the next process: lengthen it if yours do.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from holdfast import metrics
from holdfast.adapters.alertmanager import Alertmanager, AlertmanagerError, AlertsRefused, alert
from holdfast.adapters.service import ServiceError, run_service
from holdfast.core.errors import describe, first_flaw
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.follow import Follower
from holdfast.kafka.login import explain
from holdfast.kafka.reading import KeyOrder
from holdfast.kafka.topics import check_topics, partitions_of
from holdfast.settings import Settings
from holdfast_schemas import Incident, IncidentStatus, utc_now

log = structlog.get_logger("holdfast.notify")

RESOLVED_KEPT = timedelta(days=5)
"""As long as Alertmanager by default remembers what it has told people (its `--data.retention`): within it, an
incident that it never heard the end of may still be open at PagerDuty."""
ALERTS_A_REQUEST = 64
FIRST_BACKOFF = 0.2
LAST_BACKOFF = 5.0
CHECK_KAFKA_EVERY = 5.0
CAUGHT_UP_WITHIN = 90.0
"""Seconds; a transaction that a killed switch left open keeps back what comes after it for up to a minute."""


class Incidents:
    """The incidents as they are, by id: all that are open, and those resolved within `RESOLVED_KEPT`."""

    def __init__(self) -> None:
        self.by_id: dict[str, Incident] = {}
        self._skipped: set[tuple[int, int]] = set()

    def decode(self, records: Sequence[ConsumerRecord], order: KeyOrder) -> dict[str, Incident]:
        """The latest readable state of each incident. A record that cannot be read is skipped.

        The records are of one partition; `order` leaves out what is older than a record of another one.
        """
        latest: dict[str, Incident] = {}
        done: set[bytes] = set()
        records = [record for record in records if not order.is_outdated(record)]
        # Backwards: while its counts rise an incident is written again and again, and only the last one matters.
        for record in reversed(records):
            if record.key in done:
                continue
            try:
                incident = Incident.model_validate_json(record.value or b"")
            except ValidationError as error:
                self._report_broken(record, error)
                continue
            latest.setdefault(incident.incident_id, incident)
            if record.key == incident.incident_id.encode():
                done.add(record.key)
        return latest

    def take(self, latest: Mapping[str, Incident]) -> bool:
        """Whether anything changed."""
        new = {
            key: incident
            for key, incident in latest.items()
            if incident != (known := self.by_id.get(key)) and not (known is None and _long_over(incident))
        }
        self.by_id.update(new)
        return bool(new)

    def forget(self, incident_ids: Sequence[str]) -> None:
        for incident_id in incident_ids:
            del self.by_id[incident_id]

    def _report_broken(self, record: ConsumerRecord, error: ValidationError) -> None:
        where = record.partition, record.offset
        if where in self._skipped:
            return  # Met again on a new reading from the start.
        self._skipped.add(where)
        metrics.BAD_INCIDENTS.inc()
        log.error(
            "incident record skipped; no alert was sent",
            reason=first_flaw(error),
            source=f"{record.topic}/{record.partition}/{record.offset}",
            key=(record.key or b"").decode("utf-8", "replace"),
        )


def is_open(incident: Incident) -> bool:
    return incident.status is not IncidentStatus.RESOLVED


def _resolved_for(incident: Incident, now: datetime) -> timedelta:
    return now - (incident.resolved_at or incident.opened_at)


def _long_over(incident: Incident) -> bool:
    return not is_open(incident) and _resolved_for(incident, utc_now()) > RESOLVED_KEPT


class Courier:
    """Brings the incidents to one Alertmanager, whatever becomes of the others."""

    def __init__(self, url: str, settings: Settings, incidents: Incidents) -> None:
        self._settings, self._incidents = settings.notify, incidents
        self._alertmanager = Alertmanager(url, settings.notify)
        self._accepted: dict[str, Incident] = {}
        self._changed = asyncio.Event()
        self.trouble: str | None = "nothing was sent yet"
        self._name = url.partition("://")[2]
        for outcome in ("accepted", "refused", "failed"):
            metrics.NOTIFICATIONS.labels(self._name, outcome)
        metrics.LAST_NOTIFICATION.labels(self._name).set(0)
        metrics.UNSENT_INCIDENTS.labels(self._name).set_function(lambda: len(self._unsent()))

    def wake(self) -> None:
        self._changed.set()

    def has_accepted(self, incident: Incident) -> bool:
        return self._accepted.get(incident.incident_id) == incident

    def forget(self, incident_ids: Sequence[str]) -> None:
        for incident_id in incident_ids:
            self._accepted.pop(incident_id, None)

    def _unsent(self) -> list[Incident]:
        return [incident for incident in self._incidents.by_id.values() if not self.has_accepted(incident)]

    async def run(self) -> None:
        """Runs until cancelled."""
        due, delay = 0.0, FIRST_BACKOFF
        try:
            while True:
                self._changed.clear()
                started = time.monotonic()
                everything = started >= due
                try:
                    trouble = await self._send(self._everything() if everything else self._unsent())
                    if everything:
                        due = started + self._settings.resend_every.total_seconds()
                except AlertmanagerError as error:
                    trouble = str(error)
                except Exception as error:
                    # A defect must not end this: silence would look like health.
                    trouble = describe(error)
                self._report(trouble)
                if trouble is not None:
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                    delay = min(2 * delay, LAST_BACKOFF)
                    continue
                delay = FIRST_BACKOFF
                metrics.LAST_NOTIFICATION.labels(self._name).set_to_current_time()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), max(0.0, due - time.monotonic()))
        finally:
            await self._alertmanager.close()

    def _everything(self) -> list[Incident]:
        now = utc_now()
        return [
            incident
            for incident in self._incidents.by_id.values()
            if is_open(incident)
            or _resolved_for(incident, now) < self._settings.alert_lasts
            or not self.has_accepted(incident)
        ]

    async def _send(self, incidents: Sequence[Incident]) -> str | None:
        """Send them all, or with none ask whether they would be taken; return why one was refused.

        One that is refused keeps none of the others. Raises AlertmanagerError.
        """
        refusal: str | None = None
        for start in range(0, len(incidents) or 1, ALERTS_A_REQUEST):
            part = incidents[start : start + ALERTS_A_REQUEST]
            try:
                await self._hand_over(part)
            except AlertsRefused:
                for incident in part:
                    try:
                        await self._hand_over([incident])
                    except AlertsRefused as error:
                        metrics.NOTIFICATIONS.labels(self._name, "refused").inc()
                        refusal = f"{incident.incident_id}: {error}"
        return refusal

    async def _hand_over(self, incidents: Sequence[Incident]) -> None:
        now, lasts = utc_now(), self._settings.alert_lasts
        try:
            alerts = [alert(one, console_url=self._settings.console_url, now=now, lasts=lasts) for one in incidents]
        except Exception as error:
            raise AlertsRefused(f"An incident cannot be put into words: {describe(error)}. Please report it.") from None
        try:
            await self._alertmanager.post(alerts)
        except AlertsRefused:
            raise
        except AlertmanagerError:
            metrics.NOTIFICATIONS.labels(self._name, "failed").inc(len(incidents))
            raise
        metrics.NOTIFICATIONS.labels(self._name, "accepted").inc(len(incidents))
        for incident in incidents:
            before = self._accepted.get(incident.incident_id)
            if before is None or before.status is not incident.status:
                log.info(
                    "incident delivered",
                    id=incident.incident_id,
                    status=incident.status.value,
                    key=incident.dedup_key,
                    alertmanager=self._name,
                )
            self._accepted[incident.incident_id] = incident

    def _report(self, trouble: str | None) -> None:
        """Log a trouble when it begins or changes, and when it is over; not with every attempt."""
        if trouble != self.trouble:
            if trouble is not None:
                log.error("incidents do not reach an Alertmanager; trying on", alertmanager=self._name, error=trouble)
            else:
                log.info("the Alertmanager takes incidents", alertmanager=self._name)
        self.trouble = trouble


class Notify:
    """The service: the incidents, kept by following the topic, and a courier to each Alertmanager."""

    def __init__(self, settings: Settings) -> None:
        """Raises ServiceError for a login or a CA file that cannot be used."""
        self.settings = settings
        self.incidents = Incidents()
        try:
            self.couriers = [Courier(url, settings, self.incidents) for url in settings.notify.alertmanager_urls]
        except AlertmanagerError as error:
            raise ServiceError(str(error)) from None
        self._kafka_trouble: str | None = "reading the incidents"

    async def start(self) -> None:
        """Raises KafkaUnavailable."""
        await check_topics(self.settings, ["incidents"])

    async def run(self) -> None:
        """Runs until cancelled; raises what ended one of its parts, which nothing should."""
        parts = [asyncio.create_task(part) for part in (self._keep_following(), *(one.run() for one in self.couriers))]
        try:
            ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            # Not a TaskGroup: it takes no notice of a task that a library has cancelled.
            raise ServiceError(f"A part of notify ended by itself ({_end_of(ended.pop())}). Start notify again.")
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def stop(self) -> None:
        """What was not sent yet is sent by the next process."""

    async def _keep_following(self) -> None:
        delay = FIRST_BACKOFF
        while True:
            started = time.monotonic()
            # In a task of its own: what aiokafka cancels of it must not end this.
            attempt = asyncio.create_task(self._follow())
            try:
                await asyncio.wait([attempt])
            finally:
                attempt.cancel()
            error = None if attempt.cancelled() else attempt.exception()
            if isinstance(error, KafkaError | OSError):
                trouble = await explain(self.settings.kafka, error)
            else:
                trouble = str(error) if isinstance(error, KafkaUnavailable) else _end_of(attempt)
            if self._kafka_trouble != trouble:
                log.error("incidents cannot be read; those known are still sent", error=trouble)
            self._kafka_trouble = trouble
            if time.monotonic() - started > 2 * LAST_BACKOFF:  # It did work for a while.
                delay = FIRST_BACKOFF
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LAST_BACKOFF)

    async def _follow(self) -> None:
        """Read everything, then go on reading. Raises what ended it, and KafkaUnavailable when Kafka is away."""
        pending, order = dict[str, Incident](), KeyOrder()

        def take(records: Sequence[ConsumerRecord]) -> None:
            pending.update(self.incidents.decode(records, order))
            # Of the history only the end counts: what was open in between must not be told.
            if follower.caught_up.is_set():
                self._take(pending)
                pending.clear()

        topic = self.settings.topics.incidents
        partitions = await partitions_of(self.settings.kafka, topic)
        follower = Follower(self.settings.kafka, take)
        following = asyncio.create_task(follower.follow({topic: partitions}))
        checking: asyncio.Task[Any] = asyncio.create_task(follower.caught_up.wait())
        try:
            await asyncio.wait([following, checking], return_when=asyncio.FIRST_COMPLETED)
            if checking.done():
                take([])
                log.info("incidents are read", open=sum(map(is_open, self.incidents.by_id.values())))
                self._kafka_trouble = None
            while not following.done():
                checking.cancel()
                checking = asyncio.create_task(self._check(follower))
                await asyncio.wait([following, checking], return_when=asyncio.FIRST_COMPLETED)
                if checking.done():
                    checking.result()
                    await asyncio.wait([following], timeout=CHECK_KAFKA_EVERY)
            following.result()
        finally:
            checking.cancel()
            following.cancel()
            await asyncio.wait([following], timeout=2.0)

    async def _check(self, follower: Follower) -> None:
        """Raises KafkaUnavailable when Kafka is away, or gives this process not all that it has.

        A consumer whose broker is away only reads nothing.
        """
        try:
            await asyncio.wait_for(follower.catch_up(), CAUGHT_UP_WITHIN)
        except TimeoutError:
            raise KafkaUnavailable(
                "Kafka answers, but the incidents are not read to their end. They are read again from the start."
            ) from None

    def _take(self, latest: Mapping[str, Incident]) -> None:
        if self.incidents.take(latest):
            for courier in self.couriers:
                courier.wake()
        over = [
            key
            for key, incident in self.incidents.by_id.items()
            if _long_over(incident) and all(courier.has_accepted(incident) for courier in self.couriers)
        ]
        self.incidents.forget(over)
        for courier in self.couriers:
            courier.forget(over)

    def not_ready(self) -> str | None:
        """Why notify does not do its work, or None: it reads the incidents, and one Alertmanager takes them."""
        if self._kafka_trouble is not None:
            return self._kafka_trouble
        if all(courier.trouble is not None for courier in self.couriers):
            return f"no Alertmanager takes incidents: {self.couriers[0].trouble}"
        return None


def _end_of(task: asyncio.Task[None]) -> str:
    """How a task ended, in words."""
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    return describe(error) if error is not None else "it returned"


async def serve(settings: Settings) -> None:
    """Run notify until it is told to stop. Raises KafkaUnavailable, ServiceError."""
    notify = Notify(settings)
    await run_service(
        "notify",
        settings,
        host=settings.notify.health_host,
        port=settings.notify.health_port,
        start=notify.start,
        run=notify.run,
        stop=notify.stop,
        ready=notify.not_ready,
    )
