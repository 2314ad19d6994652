"""What the settings of each topic must be: a rule for each setting that safety rests on.

A difference either endangers something (`serious`: services refuse to start on some of them, `holdfast topics create`
refuses all) or is only worth a look. Topics may have been made by somebody else, or by a broker that creates topics by
itself with its defaults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from holdfast_schemas import TOPICS, Topic
from holdfast_schemas.topics import HOUR_MS

DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Setting:
    """`chosen`: it was set for this topic; else it is a default of the broker."""

    value: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting of one topic, or its number of partitions, that is not what Holdfast needs."""

    role: str
    topic: str
    key: str
    has: str
    wanted: str
    reason: str
    serious: bool
    chosen: bool = True

    @property
    def correctable(self) -> bool:
        """Whether `--fix` changes it: what endangers something, and defaults that nobody has chosen.

        The input topic belongs to the producers: nothing of it is changed that is only worth a look.
        """
        return self.serious or (not self.chosen and self.role != "predictions")

    def sentence(self) -> str:
        has = f"{self.has} partitions" if self.key == "partitions" else f"{self.key}={self.has}"
        return f"{self.topic} has {has}: {self.reason}"


_FORGOTTEN = {
    "routes": "after a restart a guard would not know which versions are fenced",
    "references": "after a restart a guard would not know which references people accepted",
    "state": "after a restart the switch would not know open incidents, fenced and good versions",
}
"""What follows where a compacted topic also deletes by age or size."""
_OVERWRITTEN = {
    "predictions": (False, "of an entity's predictions only the last one is kept, so `holdfast audit` sees fewer"),
    "approved": (False, "of an entity's outputs only the last one is kept, and one without a key is refused"),
    "blocked": (False, "of an entity's blocked outputs only the last one is kept, and one without a key is refused"),
    "malformed": (True, "a record without a key is refused there, so that its partition cannot go on"),
    "control": (True, "a model's older tallies and commands may be removed before the switch has read them"),
    "releases": (True, "a model's older requests for releases may be removed before a guard has read them"),
    "incidents": (False, "an incident's earlier states are not kept"),
    "audit": (True, "of a model's decisions only the last one is kept"),
}
"""What follows where only the last record of a key is kept, and whether that endangers something."""
_REMOVED_SOON = {
    "predictions": "a guard that is down for longer never checks them, and stops",
    "control": "a switch that is down for longer loses tallies and commands, and stops",
    "approved": "what the checks compare with is restored from it after a restart",
    "releases": "what people ask for while no guard runs is forgotten",
}
"""What follows where records are kept for less than an hour; elsewhere that is only worth a look."""
_REMOVED = {
    "incidents": "the history of incidents ends there",
    "audit": "who decided what, and why, is forgotten after that",
}
"""What follows where a broker's default keeps records for less long than the table says."""
_TIMES = {
    "CreateTime": "a verdict must carry its prediction's time: `holdfast audit` and releases compare by it",
    "LogAppendTime": "the clocks of services differ, so `holdfast audit` could not tell what a guard must have known",
}
_TIME_LIMITS = (
    "message.timestamp.before.max.ms",
    "message.timestamp.after.max.ms",
    "message.timestamp.difference.max.ms",
)


def differences(role: str, name: str, actual: Mapping[str, Setting], replicas: int) -> Iterator[Difference]:
    """What differs from what Holdfast needs of the topic of this role.

    `actual` are the topic's settings by key; one that is not there, as with an older broker, is not judged.
    """
    looked_at = _LookedAt(role, name, TOPICS[role], actual, replicas)
    yield from looked_at.cleanup()
    if looked_at.topic.cleanup == "delete":
        yield from looked_at.retention()
    yield from looked_at.times()
    yield from looked_at.sizes()
    yield from looked_at.replication()


def partition_differences(names: Mapping[str, str], counts: Mapping[str, int]) -> Iterator[Difference]:
    """Topics with fewer partitions than the topic that they go with; `names` and `counts` are by role."""
    for role, count in counts.items():
        base = TOPICS[role].partitions
        if isinstance(base, str) and base in counts and count < counts[base]:
            reason = f"{names[base]} has {counts[base]}, and order per key depends on equal numbers"
            yield Difference(role, names[role], "partitions", str(count), str(counts[base]), reason, serious=True)


@dataclass(frozen=True, slots=True)
class _LookedAt:
    role: str
    name: str
    topic: Topic
    actual: Mapping[str, Setting]
    replicas: int

    def _value(self, key: str) -> str | None:
        return self.actual[key].value if key in self.actual else None

    def _number(self, key: str) -> int | None:
        try:
            return int(self._value(key) or "")
        except ValueError:
            return None

    def _differs(self, key: str, wanted: str, reason: str, *, serious: bool) -> Difference:
        has = self.actual[key]
        return Difference(self.role, self.name, key, has.value, wanted, reason, serious, has.chosen)

    def cleanup(self) -> Iterator[Difference]:
        policy = self._value("cleanup.policy")
        if policy is None:
            return
        ways = set(policy.replace(" ", "").split(","))
        if self.topic.cleanup == "compact":
            never_deletes = self._number("retention.ms") == self._number("retention.bytes") == -1
            if "compact" not in ways or ("delete" in ways and not never_deletes):
                forgotten = _FORGOTTEN.get(self.role, "what it holds would be forgotten")
                reason = f"what is older than its retention is deleted, and {forgotten}"
                yield self._differs("cleanup.policy", "compact", reason, serious=True)
        elif "compact" in ways:
            serious, reason = _OVERWRITTEN[self.role]
            yield self._differs("cleanup.policy", "delete", reason, serious=serious)

    def retention(self) -> Iterator[Difference]:
        kept, wanted = self._number("retention.ms"), str(self.topic.retention_ms)
        if kept is not None and 0 <= kept < DAY_MS:
            serious = kept < HOUR_MS and self.role in _REMOVED_SOON
            reason = _REMOVED_SOON.get(self.role, "nobody may have seen them by then")
            within = "an hour" if kept < HOUR_MS else "a day"
            yield self._differs(
                "retention.ms", wanted, f"it keeps records for less than {within}; {reason}", serious=serious
            )
        elif (
            self.role in _REMOVED
            and kept is not None
            and DAY_MS <= kept < self.topic.retention_ms
            # What somebody chose for the topic stays.
            and not self.actual["retention.ms"].chosen
        ):
            yield self._differs("retention.ms", wanted, _REMOVED[self.role], serious=False)
        if (size := self._number("retention.bytes")) is not None and size >= 0:
            reason = "the oldest records are removed by their size, however new they are"
            yield self._differs("retention.bytes", "-1", reason, serious=False)

    def times(self) -> Iterator[Difference]:
        wanted, has = self.topic.settings.get("message.timestamp.type"), self._value("message.timestamp.type")
        if wanted is not None and has not in (None, wanted):
            yield self._differs("message.timestamp.type", wanted, _TIMES[wanted], serious=True)
        for key in _TIME_LIMITS:
            if (limit := self.topic.settings.get(key)) is not None and self._value(key) not in (None, limit):
                reason = "an output whose time is further away is refused there, and goes to malformed"
                yield self._differs(key, limit, reason, serious=False)

    def sizes(self) -> Iterator[Difference]:
        if self.role == "predictions":
            if self._value("compression.type") not in (None, "uncompressed"):
                reason = (
                    "the guards unpack what producers compressed; with 'uncompressed' the broker does, and refuses "
                    "what unpacks to more than max.message.bytes"
                )
                yield self._differs("compression.type", "uncompressed", reason, serious=False)
            return
        most = self._number("max.message.bytes")
        if most is not None and most < self.topic.max_message_bytes:
            reason = "a record that is too large for it would stop the partition that it belongs to"
            yield self._differs("max.message.bytes", str(self.topic.max_message_bytes), reason, serious=True)

    def replication(self) -> Iterator[Difference]:
        if self.replicas > 1 and self._value("unclean.leader.election.enable") == "true":
            reason = "a broker that missed records may become the leader, and records that were acknowledged are lost"
            yield self._differs("unclean.leader.election.enable", "false", reason, serious=True)
        needed = self._number("min.insync.replicas")
        if needed is not None and needed > self.replicas:
            reason = f"it has only {self.replicas}, so nothing can be written to it"
            yield self._differs("min.insync.replicas", str(max(1, self.replicas - 1)), reason, serious=True)
        elif needed == 1 and self.replicas > 2:
            reason = "a record counts as written once one broker has it, and may be lost with that broker"
            yield self._differs("min.insync.replicas", "2", reason, serious=False)
