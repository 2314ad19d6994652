"""Until when the topics of verdicts would keep a record with an old timestamp.

Kafka's retention counts from a record's timestamp, and a verdict has its prediction's. A topic of predictions that is
kept for longer than the verdicts, or a producer that sends old data, would make verdicts that are deleted as soon as
they are written.
"""

from collections.abc import Mapping

import structlog

from holdfast import metrics
from holdfast.core.retention import oldest_kept
from holdfast.kafka.topics_on_broker import told_settings
from holdfast.settings import Settings
from holdfast_schemas import TOPICS

log = structlog.get_logger("holdfast.retention")

ROLES = ("approved", "blocked", "malformed")
REFRESH_EVERY = 60.0
"""Seconds."""


class Retention:
    """How long each topic of verdicts keeps records, as it is on the broker; before it is known, as created."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[str, int | None] = {role: TOPICS[role].retention_ms for role in ROLES}
        self._told = True
        for role in ROLES:
            metrics.RESTAMPED.labels(role)

    async def refresh(self) -> None:
        """Ask the broker; what it does not tell stays as it was."""
        names = {role: str(getattr(self._settings.topics, role)) for role in ROLES}
        found = await told_settings(self._settings.kafka, names.values())
        if not found and self._told:
            log.warning(
                "the retention of the topics of verdicts is not told, what they were created with is taken for it",
                advice="Grant this login DescribeConfigs: holdfast acls kafka",
            )
        self._told = bool(found)
        for role, name in names.items():
            if name in found:
                self._kept[role] = kept_for(found[name])

    def oldest(self, role: str, now_ms: int) -> int | None:
        """The oldest timestamp that the topic keeps long enough; None where it keeps every one."""
        return oldest_kept(self._kept[role], now_ms)


def kept_for(actual: Mapping[str, str]) -> int | None:
    """How long a topic with these settings keeps a record, in ms; None: its timestamp does not matter."""
    by_producers_time = actual.get("message.timestamp.type", "CreateTime") == "CreateTime"
    deletes = "delete" in actual.get("cleanup.policy", "delete")
    kept = int(actual.get("retention.ms") or -1)
    return kept if by_producers_time and deletes and kept >= 0 else None
