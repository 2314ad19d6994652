"""What the API does for a person who asks for releases: it asks the guards, once for each Idempotency-Key.

Reading what waits is work, so few requests are worked on at once, each for a bounded time. The answer to a key that
came before is the same: it is read from the audit, also after a restart and by another instance.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from holdfast.adapters.malformed import find_malformed
from holdfast.api.asked import Lasts, Reason, duration
from holdfast.api.http import ProblemError
from holdfast.api.reading import read_within
from holdfast.core.malformed import MalformedKind
from holdfast.core.releases import RELEASE, Answer
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.release import (
    Answers,
    Asked,
    NotAnswered,
    RefusedByGuard,
    TooMany,
    Wanted,
    answers_of,
    ask_guards,
    find_in_kafka,
    read_answers,
)
from holdfast.settings import Settings
from holdfast_schemas import AuditRecord, Count, Finding, Name, NonEmpty, SourceName, UtcTime, utc_now

MOST = 10_000
"""Predictions that one request may ask for."""
AT_ONCE = 4
"""Requests for releases that are worked on; most of the time they wait for the guards."""
LISTS_AT_ONCE = 2
WITHIN = 120.0
"""Seconds in which one request must be answered."""
LOOK_WITHIN = 20.0
"""Seconds in which a list must be read."""
KNOWN_FOR = 30.0
"""Seconds that an answer is kept here; then the audit has it."""
BEFORE = timedelta(minutes=5)
"""How long before a command's first known answer its others may stand in the audit."""
Kind = Literal["release", "retry"]


class AskRelease(BaseModel):
    """Which predictions to release; the guards judge each by the policies in force there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    reason: Reason = Field(description="Why; it is kept in the audit.")
    version: Name | None = Field(None, description="Of one version.")
    since: Lasts = Field("1h", description="How far back to look: 90s, 30m, 2h or 7d.")
    sources: Annotated[list[SourceName], Field(max_length=500)] = Field(
        [], description="Only these: `topic/partition/offset` of the predictions."
    )
    force: bool = Field(False, description="Also what fails today's policy; for administrators.")
    superseded: bool = Field(False, description="Also where a newer output of the same key was approved since.")
    dry_run: bool = Field(False, description="Only say what would be released.")


class AskBlockedRelease(AskRelease):
    check: Name | None = Field(None, description="That failed this check.")


class ReleasedOne(BaseModel):
    """What became of one prediction."""

    source: str
    answer: str = Field(description="`released`, `still_fails`, `superseded`, `too_old` and others; see the contract.")
    findings: list[Finding] = Field(description="What fails today's policy.")


class ReleaseDone(BaseModel):
    """What the guards answered; without predictions where nothing fits."""

    command_id: str
    counts: dict[str, int] = Field(description="How many had which answer.")
    predictions: list[ReleasedOne]


class OfBlocked(BaseModel):
    """Which blocked predictions to list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    version: Name | None = Field(None, description="Of one version.")
    check: Name | None = Field(None, description="That failed this check.")
    since: Lasts = Field("1h", description="How far back to look: 90s, 30m, 2h or 7d.")
    limit: int = Field(50, ge=1, le=500, description="How many at most, the latest.")


class BlockedOne(BaseModel):
    """A blocked prediction, without its contents."""

    source: NonEmpty
    at: UtcTime
    version: str
    entity_id: str | None = None
    prediction_id: str | None = None
    findings: list[Finding]


class BlockedList(BaseModel):
    """The latest that fit, oldest first, and how many there are."""

    items: list[BlockedOne]
    total: Count


class OfMalformed(BaseModel):
    """Which records that could not be decoded to list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name | None = Field(None, description="Of one model, where its version is to blame; all without it.")
    kind: MalformedKind | Literal["unnamed"] | None = Field(None, description="Of one kind of reason.")
    since: Lasts = Field("1h", description="How far back to look: 90s, 30m, 2h or 7d.")
    limit: int = Field(20, ge=1, le=500, description="How many at most, the latest.")


class MalformedOne(BaseModel):
    """A record that could not be decoded, without its contents; without a model where nobody is to blame."""

    source: NonEmpty
    at: UtcTime
    kind: str
    reason: str
    model: str | None = None
    version: str | None = None


class MalformedList(BaseModel):
    """The latest that fit, oldest first, how many there are by kind, and the first reason of each kind."""

    items: list[MalformedOne]
    total: Count
    kinds: dict[str, int]
    first_reasons: dict[str, str]


class ReleaseDesk:
    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a key that cannot be used."""
        self._settings = settings
        self._signer = settings.api.command_signer()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._lists_at_once = asyncio.Semaphore(LISTS_AT_ONCE)
        self._running: dict[str, asyncio.Task[Answers]] = {}
        """By command id; those that were answered lately, too."""

    def is_asking(self, command_id: str) -> bool:
        """Whether the answer to that command is on its way, or known."""
        return command_id in self._running

    async def release(
        self,
        kind: Kind,
        ask: AskRelease,
        actor: str,
        command_id: str,
        answered: AuditRecord | None,
        *,
        of_all_models: bool,
    ) -> ReleaseDone:
        """Ask the guards; `answered` is any record of the audit that answers the same command.

        Without `of_all_models` the answer does not say why records cannot be decoded: it is not known of which model
        they are. Raises ProblemError.
        """
        task = self._running.get(command_id)
        if task is None:
            task = asyncio.create_task(self._within(kind, ask, actor, command_id, answered))
            self._running[command_id] = task
            task.add_done_callback(partial(self._ended, command_id))
        try:
            # Who goes away does not end what others with the same key wait for.
            answers = await asyncio.shield(task)
        except RefusedByGuard as error:
            raise ProblemError(409, "refused", "The request was refused", str(error), command_id=command_id) from None
        except TooMany as error:
            raise ProblemError(409, "too-many", "Too many predictions", str(error)) from None
        except (NotAnswered, TimeoutError) as error:
            what = str(error) or (
                f"It was not done within {WITHIN:g} s, and may be done later. Ask for fewer predictions; nothing is "
                "released twice."
            )
            raise ProblemError(504, "no-outcome", "No outcome in time", what, command_id=command_id) from None
        except KafkaUnavailable as error:
            raise ProblemError(
                503, "kafka-unavailable", "Kafka cannot be used", str(error), command_id=command_id
            ) from None
        found = [
            ReleasedOne(
                source=one.source,
                answer=str(one.answer),
                findings=list(one.findings) if of_all_models or one.answer != Answer.STILL_MALFORMED else [],
            )
            for one in answers.results
        ]
        counts = Counter(one.answer for one in found)
        return ReleaseDone(command_id=command_id, counts=dict(counts), predictions=found)

    def _ended(self, command_id: str, task: asyncio.Task[Answers]) -> None:
        # Everybody who asked may be gone, so that nobody else looks at what failed.
        if task.cancelled() or task.exception() is not None:
            del self._running[command_id]
        else:
            # Until what is read of the audit names it for certain.
            task.get_loop().call_later(KNOWN_FOR, self._running.pop, command_id, None)

    async def _within(
        self, kind: Kind, ask: AskRelease, actor: str, command_id: str, answered: AuditRecord | None
    ) -> Answers:
        async with asyncio.timeout(WITHIN), self._at_once:
            named = frozenset(ask.sources)
            if answered is not None:
                part, since = answered.command_id or "", answered.at - BEFORE
                return answers_of(command_id, await read_answers(self._settings, command_id, part, since), named)
            check = ask.check if isinstance(ask, AskBlockedRelease) else None
            wanted = Wanted(ask.model, utc_now() - duration(ask.since), ask.version, check, named)
            asked = Asked(
                actor,
                ask.reason,
                ask.force,
                ask.superseded,
                ask.dry_run,
                self._settings.api.outcome_within.total_seconds(),
            )
            return await ask_guards(
                self._settings, wanted, asked, kind, command_id=command_id, most=MOST, signer=self._signer
            )

    async def blocked(self, of: OfBlocked) -> BlockedList:
        """Raises ProblemError: 503 where Kafka does not give it in time."""
        wanted = Wanted(of.model, utc_now() - duration(of.since), of.version, of.check)
        async with self._look():
            total, found = await find_in_kafka(self._settings, wanted, limit=of.limit)
        items = [
            BlockedOne(
                source=one.source,
                at=one.at,
                version=one.version,
                entity_id=one.entity_id,
                prediction_id=one.prediction_id,
                findings=list(one.findings),
            )
            for one in found
        ]
        return BlockedList(items=items, total=total)

    async def malformed(self, of: OfMalformed) -> MalformedList:
        """Raises ProblemError: 503 where Kafka does not give it in time."""
        since, kind = utc_now() - duration(of.since), str(of.kind) if of.kind is not None else None
        async with self._look():
            found = await find_malformed(self._settings, since, model=of.model, kind=kind, limit=of.limit)
        items = [
            MalformedOne(
                source=one.source,
                at=one.at,
                kind=one.kind,
                reason=one.reason,
                model=one.model or None,
                version=one.version or None,
            )
            for one in found.latest
        ]
        return MalformedList(items=items, total=found.count, kinds=dict(found.kinds), first_reasons=found.reasons)

    def _look(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Raises ProblemError where what is read does not come, or not in time."""
        return read_within(LOOK_WITHIN, self._lists_at_once, "The list", "Ask for less time.")

    async def stop(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def body_of(kind: Kind) -> type[AskRelease]:
    return AskBlockedRelease if kind == RELEASE else AskRelease


def said(ask: AskRelease) -> Mapping[str, Any]:
    """What is asked for, as an Idempotency-Key stands for it."""
    return ask.model_dump(mode="json", exclude_none=True)
