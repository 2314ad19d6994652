"""The checker's reading, on a Kafka in memory: whatever is visible when, it finds nothing that is not there.

Guards work on while the checker reads: each of their transactions becomes visible partition by partition, its offset
before its records or after them, and may be aborted and done again.
"""

import asyncio
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndTimestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.written import Rec, Written, write_verdicts
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicySet
from holdfast.kafka.counterparts import Counterparts
from holdfast.settings import Settings
from holdfast.verify import ledger
from holdfast.verify import service as audit
from holdfast.verify.ledger import VERDICTS, Stream
from holdfast.verify.service import Auditor

NOW_MS = 1_795_000_000_000
BATCH = 100
POLICY = """
model = "pricing"
[[checks]]
name = "bounds"
kind = "range"
min = 10.0
max = 1000.0
[[checks]]
name = "jump"
kind = "max_change"
down = 0.5
up = 3.0
"""


class Transaction:
    """Over in the partitions `ended`."""

    def __init__(self) -> None:
        self.ended: set[TopicPartition] = set()
        self.aborted = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record, or the marker at the end of a transaction."""

    record: Rec
    transaction: Transaction | None
    is_marker: bool = False


class Broker:
    """Topics, and what the guards' group has committed."""

    def __init__(self, chance: random.Random, policies: PolicySet) -> None:
        self.chance, self.policies = chance, policies
        self.logs: dict[TopicPartition, list[Entry]] = {}
        self.committed: dict[int, int] = {}
        self.offsets_are_lost = False
        self.guards: list[Guard] = []
        self.now_ms = NOW_MS
        self.still_to_come, self.may_grow = chance.choice([50, 300, 1000]), False
        self.bad = chance.choice([0.05, 0.3, 1.0])
        self.log("holdfast.control")
        self.log("holdfast.routes")
        self.log("holdfast.audit")

    def log(self, topic: str, partition: int = 0) -> list[Entry]:
        return self.logs.setdefault(TopicPartition(topic, partition), [])

    def add_partition(self) -> None:
        partition = len(self.guards)
        for stream in ("predictions", *VERDICTS):
            self.log(_topic(stream), partition)
        self.guards.append(Guard(self, partition))

    def append(self, tp: TopicPartition, record: Rec, transaction: Transaction | None, *, marker: bool = False) -> None:
        log = self.logs[tp]
        log.append(Entry(dataclasses.replace(record, offset=len(log)), transaction, marker))

    def committed_end(self, tp: TopicPartition) -> int:
        """Up to where a committed reader sees: the first transaction that is open."""
        open_ones = (i for i, one in enumerate(self.logs[tp]) if one.transaction and tp not in one.transaction.ended)
        return next(open_ones, len(self.logs[tp]))

    def go_on(self, most: int = 6) -> None:
        """Something happens, or nothing."""
        for _ in range(self.chance.randrange(most)):
            self.now_ms += self.chance.randrange(400)
            if self.may_grow and self.still_to_come and self.chance.random() < 0.01:
                self.add_partition()
            guard = self.chance.choice(self.guards)
            if self.still_to_come and self.chance.random() < 0.3:
                self.predict(guard.partition, self.chance.randrange(1, 25))
            else:
                guard.step()

    def predict(self, partition: int, count: int) -> None:
        for _ in range(min(count, self.still_to_come)):
            self.still_to_come -= 1
            entity = f"E{self.chance.randrange(12)}"
            event = {
                "prediction_id": f"p{self.still_to_come}",
                "model": self.chance.choice(["pricing", "pricing", "nobody's"]),
                "model_version": self.chance.choice(["v1", "v2"]),
                "entity_id": entity,
                "value": self.chance.choice([5, 5000, 400]) if self.chance.random() < self.bad else 100,
            }
            value = json.dumps(event) if self.chance.random() < 0.97 else "{"
            late = self.chance.randrange(-2000, 2000)
            record = Rec(0, self.now_ms + late, entity.encode(), value.encode())
            self.append(TopicPartition(_topic("predictions"), partition), record, None)

    def finish(self) -> None:
        """Everything gets its verdict."""
        self.still_to_come = 0
        while any(self.committed.get(g.partition, 0) < len(g.predictions) or not g.idle for g in self.guards):
            self.chance.choice(self.guards).step()


class Guard:
    """One partition's; each step is one thing that a broker sees."""

    def __init__(self, broker: Broker, partition: int) -> None:
        self.broker, self.partition = broker, partition
        self.predictions = broker.log(_topic("predictions"), partition)
        self.memory = Memory()
        self.steps: list[Callable[[], None]] = []
        self.blocked: list[Rec] = []
        self.releases = 0

    @property
    def idle(self) -> bool:
        return not self.steps

    def step(self) -> None:
        if self.steps:
            self.steps.pop(0)()
            return
        chance, broker = self.broker.chance, self.broker
        # Once everything has its verdict nothing more happens.
        if self.blocked and broker.still_to_come and chance.random() < 0.1:
            self._release(self.blocked.pop(chance.randrange(len(self.blocked))))
            return
        first = broker.committed.get(self.partition, 0)
        records = [entry.record for entry in self.predictions[first : first + chance.choice([1, 3, 30, BATCH])]]
        if records:
            now = datetime.fromtimestamp(broker.now_ms / 1000, UTC)
            written = write_verdicts(records, broker.policies, self.memory, now, partition=self.partition)
            self._plan(written, records[-1].offset + 1)

    def _plan(self, written: Written, next_offset: int) -> None:
        broker, transaction = self.broker, Transaction()
        outs = [(TopicPartition(_topic(s), self.partition), records) for s, records in written.out.items() if records]
        control = TopicPartition("holdfast.control", 0)
        outs += [(control, [Rec(0, 0, t.model.encode(), t.to_json())]) for t in written.tallies]
        transaction.aborted = broker.chance.random() < 0.2 and broker.still_to_come > 0

        def write(tp: TopicPartition, records: Sequence[Rec]) -> None:
            for record in records:
                stamped = record if tp != control else dataclasses.replace(record, timestamp=broker.now_ms)
                broker.append(tp, stamped, transaction)

        def end(tp: TopicPartition) -> None:
            broker.append(tp, Rec(0, broker.now_ms, None, None), None, marker=True)
            transaction.ended.add(tp)

        def commit() -> None:
            if not transaction.aborted:
                broker.committed[self.partition] = next_offset
                written.learn()
                self.blocked += written.out[Stream.BLOCKED]

        self._in_transaction(transaction, outs, write, end, commit)

    def _release(self, blocked: Rec) -> None:
        """As `adapters/releases.py` does it: the record and its audit in one transaction."""
        broker, transaction = self.broker, Transaction()
        transaction.aborted = broker.chance.random() < 0.2
        given = {**dict(blocked.headers), "holdfast-verdict": b"released"}
        source = given["holdfast-source"].decode()
        told = {"action": "release", "outcome": "applied", "source": source}
        approved = TopicPartition(_topic("approved"), self.partition)
        audited = TopicPartition("holdfast.audit", 0)
        released = dataclasses.replace(blocked, headers=tuple(given.items()))
        outs = [(approved, [released]), (audited, [Rec(0, broker.now_ms, b"pricing", json.dumps(told).encode())])]

        def write(tp: TopicPartition, records: Sequence[Rec]) -> None:
            for record in records:
                broker.append(tp, record, transaction)

        def end(tp: TopicPartition) -> None:
            broker.append(tp, Rec(0, broker.now_ms, None, None), None, marker=True)
            transaction.ended.add(tp)

        def commit() -> None:
            if transaction.aborted:
                self.blocked.append(blocked)
            self.releases += not transaction.aborted

        self._in_transaction(transaction, outs, write, end, commit)

    def _in_transaction(
        self,
        transaction: Transaction,
        outs: Sequence[tuple[TopicPartition, Sequence[Rec]]],
        write: Callable[[TopicPartition, Sequence[Rec]], None],
        end: Callable[[TopicPartition], None],
        commit: Callable[[], None],
    ) -> None:
        broker = self.broker
        self.steps = [lambda tp=tp, records=records: write(tp, records) for tp, records in outs]  # type: ignore[misc]
        ends: list[Callable[[], None]] = [lambda tp=tp: end(tp) for tp in dict(outs)]  # type: ignore[misc]
        ends.append(commit)
        broker.chance.shuffle(ends)
        self.steps += ends


class Reader:
    """What the checker uses of both of its consumers."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.positions = broker, dict[TopicPartition, int]()

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.positions = {}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.positions[tp] = offset

    async def position(self, tp: TopicPartition) -> int:
        return self.positions[tp]

    async def getmany(self, *wanted: TopicPartition, timeout_ms: int, max_records: int) -> dict[TopicPartition, Any]:
        self.broker.go_on()
        chance, found = self.broker.chance, dict[TopicPartition, list[Rec]]()
        left = chance.choice([1, 20, max_records])
        for tp in chance.sample(wanted, chance.randint(1, len(wanted))):
            end = self.broker.committed_end(tp)
            while left and self.positions[tp] < end:
                entry = self.broker.logs[tp][self.positions[tp]]
                self.positions[tp] += 1
                if not entry.is_marker and not (entry.transaction and entry.transaction.aborted):
                    found.setdefault(tp, []).append(entry.record)
                    left -= 1
        return found

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self.broker.go_on()
        return {tp: len(self.broker.logs[tp]) for tp in partitions}

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        self.broker.go_on()
        return {
            tp: next(
                (
                    OffsetAndTimestamp(entry.record.offset, entry.record.timestamp)
                    for entry in self.broker.logs[tp]
                    if entry.record.timestamp >= at
                ),
                None,
            )
            for tp, at in times.items()
        }


def _topic(stream: str) -> str:
    return "predictions" if stream == "predictions" else f"predictions.{stream}"


class GrowingReader(Reader):
    """While it reads, a partition is added, and a guard judges what comes there."""

    async def getmany(self, *wanted: TopicPartition, timeout_ms: int, max_records: int) -> dict[TopicPartition, Any]:
        if len(self.broker.guards) == 1:
            self.broker.add_partition()
            self.broker.predict(1, 25)
            self.broker.finish()
        return await super().getmany(*wanted, timeout_ms=timeout_ms, max_records=max_records)


class Checked:
    """The checker, on a broker in memory."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        reader: type[Reader] = Reader,
        *,
        once: bool = False,
    ) -> None:
        (folder / "pricing.toml").write_text(POLICY)
        self.chance = random.Random(seed)
        self.auditor = Auditor(Settings(policies=folder, guard={"max_batch_records": BATCH}), None, once=once)
        self.broker = Broker(self.chance, self.auditor._policies.current)

        async def counts(*_: object) -> Counterparts:
            partitions = len(self.broker.guards)
            return Counterparts(
                {}, {**dict.fromkeys(("predictions", *VERDICTS), partitions), "control": 1, "routes": 1, "audit": 1}
            )

        async def committed(_: Reader, tp: TopicPartition) -> int | None:
            self.broker.go_on()
            return None if self.broker.offsets_are_lost else self.broker.committed.get(tp.partition)

        async def read_to_end(
            _: object, tps: Sequence[TopicPartition], take: Callable[[Sequence[Any]], None], *, start: int, stop: int
        ) -> None:
            records = [
                entry.record
                for entry in self.broker.logs[tps[0]][start:stop]
                if not entry.is_marker and not (entry.transaction and entry.transaction.aborted)
            ]
            if records:
                take(records)

        monkeypatch.setattr(audit, "read_to_end", read_to_end)
        monkeypatch.setattr(audit, "counterparts", counts)
        monkeypatch.setattr(audit, "committed_offset", committed)
        monkeypatch.setattr(audit, "MARGIN", timedelta(seconds=20))
        monkeypatch.setattr(self.auditor, "_reader", reader(self.broker))
        monkeypatch.setattr(self.auditor, "_surveyor", reader(self.broker))
        self._monkeypatch = monkeypatch

    async def follow(self, cycles: int) -> None:
        """Some cycles, and two more once everything has its verdict: in the last one nothing is waited for."""
        for _ in range(cycles):
            await self.auditor.cycle()
            self.broker.go_on(self.chance.choice([1, 100, 1000]))
        self.broker.finish()
        await self.auditor.cycle()
        with self._monkeypatch.context() as patient_no_more:
            patient_no_more.setattr(audit, "PATIENCE", -1.0)
            await self.auditor.cycle()

    def finds_nothing(self) -> None:
        auditor, committed = self.auditor, self.broker.committed
        assert not auditor.findings.violations, auditor.findings.examples
        judged = sum(max(0, committed.get(p, 0) - one._start) for p, one in auditor._ledgers.items())
        assert auditor.findings.checked == judged
        assert auditor.findings.uncompared == 0


@given(seed=st.integers(0, 2**32), how=st.sampled_from(["all", "since", "growing"]))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_found_where_nothing_is_wrong(
    seed: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first record or from some time on, with guards that are behind, and with partitions that are added."""
    checked = Checked(seed, tmp_path, monkeypatch)
    chance, broker = checked.chance, checked.broker
    for _ in range(chance.randint(1, 3)):
        broker.add_partition()
    broker.may_grow = how == "growing"
    if how == "since":
        broker.go_on(chance.choice([50, 500, 3000]))
        # Perhaps after all that came so far, and perhaps nothing more comes.
        ago = chance.choice([chance.random(), 1.0]) * (broker.now_ms - NOW_MS)
        checked.auditor._since = datetime.fromtimestamp((NOW_MS + ago) / 1000, UTC)
        broker.still_to_come = chance.choice([0, broker.still_to_come])
    asyncio.run(checked.follow(chance.randint(1, 6)))
    checked.finds_nothing()


@pytest.mark.parametrize("seed", range(20))
def test_tallies_of_a_partition_that_is_new_are_kept_for_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be read before the checker knows of that partition."""
    checked = Checked(seed, tmp_path, monkeypatch, GrowingReader)
    checked.broker.add_partition()
    checked.broker.predict(0, 50)
    checked.broker.go_on(30)
    asyncio.run(checked.follow(1))
    checked.finds_nothing()


@pytest.mark.parametrize("seed", range(20))
def test_a_group_that_lost_its_offsets_is_no_alarm(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts that were written just before wait until the guard has committed again, however long that takes."""
    checked = Checked(seed, tmp_path, monkeypatch)
    broker = checked.broker
    broker.add_partition()
    broker.predict(0, 50)

    async def lose_and_go_on() -> None:
        while not broker.committed:
            broker.go_on()
        await checked.auditor.cycle()
        while broker.committed[0] < len(broker.guards[0].predictions):
            broker.guards[0].step()
        broker.offsets_are_lost = True
        with monkeypatch.context() as patient_no_more:
            patient_no_more.setattr(audit, "PATIENCE", -1.0)
            for _ in range(3):
                await checked.auditor.cycle()
        broker.offsets_are_lost = False
        await checked.follow(1)

    asyncio.run(lose_and_go_on())
    checked.finds_nothing()


@pytest.mark.parametrize("came_since", [0, 1, 40])
def test_one_look_at_a_short_time_waits_for_nothing(
    came_since: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once every prediction is judged, the verdicts of earlier ones are told apart without waiting for the others.

    Where nothing came in that time, nothing older is read at all.
    """
    checked = Checked(7, tmp_path, monkeypatch, once=True)
    monkeypatch.setattr(audit, "PATIENCE", 1e9)
    monkeypatch.setattr(ledger, "LIMIT", 50)
    chance, broker = checked.chance, checked.broker
    for partition in range(2):
        broker.add_partition()
        broker.still_to_come = 3000
        broker.predict(partition, 3000)
    broker.finish()
    broker.now_ms += 3_600_000
    checked.auditor._since = datetime.fromtimestamp((broker.now_ms - 10_000) / 1000, UTC)
    broker.still_to_come = came_since
    broker.predict(chance.randrange(2), came_since)
    broker.finish()
    asyncio.run(asyncio.wait_for(checked.auditor.once(), 20))
    assert not checked.auditor.findings.violations
    assert checked.auditor.findings.checked == came_since
    assert (checked.auditor.offsets_read() == 0) == (came_since == 0)
    assert ("what was approved before" in checked.auditor.progress(1.0)) == (came_since > 0)


def test_a_long_look_says_how_far_it_is(tmp_path: Path) -> None:
    """Records read of those that there were, and seconds; before Kafka has answered, that it is waited for."""
    auditor = Auditor(Settings(policies=tmp_path), since=None)
    assert auditor.progress(4.2) == "Waiting for Kafka (4 s)"
    approved, control = TopicPartition("approved", 0), TopicPartition("control", 0)
    auditor._began = {approved: 1000, control: 0}
    auditor._position = {approved: 3500, control: 20}
    auditor._ends = {approved: 11_000, control: 10}
    assert auditor.progress(61.7) == "2,520 of 10,020 records read (62 s)"
