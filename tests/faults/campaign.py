"""A campaign: services under load, something that goes wrong with them, and the checker's word at the end.

The load never ends by itself: a pricing model whose new versions turn out bad one after the other and are fenced,
a score model that is held and resumed, outputs that are broken in every way that there is, and a model that nobody
knows. The checker runs beside it all the time, and once more, from the first record on, when all has settled.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from backends import Kafka
from e2e.stack import Stack, Worker

LONG = os.environ.get("HOLDFAST_TEST_FAULTS") == "long"
PATIENT = 300.0
"""Seconds that a settled end may take on a busy machine."""
BREAKER = """
[breaker]
window = "10s"
min_seen = 20
min_entities = 5
min_partitions = 1
max_blocked_ratio = 0.4
good_after_seen = 50
good_after = "1s"
max_switches = 1000
"""
POLICIES = {
    # Otherwise what nobody promoted would be blocked in any case, whether it is fenced or not.
    "pricing": """
versions = "any"

[[checks]]
name = "bounds"
kind = "range"
field = "value"
min = 10.0
max = 25000.0

[[checks]]
name = "jump"
kind = "max_change"
field = "value"
down = 0.5
up = 2.0

[[checks]]
name = "cheap"
kind = "range"
field = "value"
min = 60.0
mode = "shadow"
"""
    + BREAKER,
    "score": """
[[checks]]
name = "probability"
kind = "range"
field = "value"
min = 0.0
max = 1.0

[[checks]]
name = "odd"
kind = "outlier"
field = "value"
max_score = 6.0

[[checks]]
name = "fresh"
kind = "freshness"
max_age = "10m"
max_ahead = "10m"
"""
    + BREAKER,
}


class Load:
    """Predictions at `rate` a second, until it is stopped. `sent` counts those that Kafka has taken.

    `calm`: no version turns out bad, and no model is held.
    """

    def __init__(self, stack: Stack, rate: int, seed: int, *, calm: bool = False) -> None:
        self.stack, self.rate, self.calm = stack, rate, calm
        self.random = random.Random(seed)
        self.sent = 0
        self.refused = 0
        self._bad = 0
        self._held = False
        self._goes = asyncio.Event()
        self._goes.set()
        self._task = asyncio.create_task(self._run())

    def pause(self) -> None:
        """Send nothing for a while."""
        self._goes.clear()

    def resume(self) -> None:
        self._goes.set()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.stack.kafka.bootstrap, linger_ms=5, acks="all", metadata_max_age_ms=5_000
        )
        await producer.start()
        try:
            due = changed = time.monotonic()
            while True:
                await self._goes.wait()
                if time.monotonic() - changed > 6 and not self.calm:
                    changed = time.monotonic()
                    await self._change(producer)
                for _ in range(max(1, self.rate // 20)):
                    key, value = self._prediction()
                    await self._send(producer, "predictions", key, value)
                due = max(due + 0.05, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            with contextlib.suppress(asyncio.TimeoutError, KafkaError):
                await asyncio.wait_for(producer.stop(), 60)

    async def _send(self, producer: AIOKafkaProducer, role: str, key: bytes, value: bytes) -> None:
        try:
            done = await producer.send(self.stack.topic(role), value, key=key)
            done.add_done_callback(self._count)
        except KafkaError:
            self.refused += 1

    def _count(self, done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            self.refused += 1
        else:
            self.sent += 1

    async def _change(self, producer: AIOKafkaProducer) -> None:
        """The next bad version, and the score model held or resumed."""
        self._bad += 1
        self._held = not self._held
        command = Stack.command_record("score", "hold" if self._held else "resume", actor="campaign")
        await self._send(producer, "control", b"score", json.dumps(command).encode())

    def _prediction(self) -> tuple[bytes, bytes]:
        draw, number = self.random.random(), self.random.randrange(300)
        if draw < 0.3:
            value: Any = round(0.4 + 0.2 * self.random.random(), 4) if draw > 0.01 else 7
            at = datetime.now(UTC).isoformat()
            return self._event("score", "s1", f"C{number}", value, predicted_at=at, segment=f"g{number % 3}")
        if draw < 0.32:
            return self._event("nobody", "v1", f"N{number}", 1)
        if draw < 0.325:
            return f"E{number}".encode(), self.random.choice([b"{", b"\xff", b"[]", b'{"model": "pricing"}'])
        entity, base = f"E{number}", 50.0 + number
        if draw < 0.5 and self._bad:
            # A version that is bad four times in five: it is fenced, and then its sane outputs must stay out too.
            value = base if self.random.random() < 0.2 else self.random.choice([0.01, 1e9])
            return self._event("pricing", f"bad-{self._bad}", entity, value)
        if 0.5 <= draw < 0.52:
            return self._event("pricing", "v1", entity, self.random.choice([base * 5, base / 5, -0.0, 1e308, 5]))
        return self._event("pricing", "v1", entity, round(base * (0.95 + 0.1 * self.random.random()), 2))

    def _event(self, model: str, version: str, entity: str, value: Any, **more: Any) -> tuple[bytes, bytes]:
        event = Stack.prediction(model, version, entity, value, **more)
        return entity.encode(), json.dumps(event).encode()


class Campaign:
    """See the module. `tell` counts what was done to the services; `figures` are what is reported."""

    def __init__(self, stack: Stack, rate: int, seed: int, *, calm: bool) -> None:
        self.stack = stack
        self.random = random.Random(seed)
        self.guards: list[Worker] = []
        self.switches: list[Worker] = []
        self.auditor: Worker | None = None
        self.done: Counter[str] = Counter()
        self.load = Load(stack, rate, seed, calm=calm)
        self.facts: dict[str, Any] = {}
        self.not_predictions = 0
        """Offsets of predictions that hold a marker or an aborted record."""

    async def kill(self, worker: Worker) -> None:
        """kill -9, and start it again at once."""
        await asyncio.to_thread(worker.kill)
        self.done[f"kills of {worker.name}"] += 1
        await asyncio.to_thread(worker.start)

    async def serving(self) -> None:
        """Wait until every worker does its work."""
        await asyncio.gather(
            *(
                self.stack.until(worker.ready, f"{worker.name} is ready", PATIENT)
                for worker in (*self.guards, *self.switches)
            )
        )

    async def progress(self) -> None:
        """Wait until some more predictions have a committed verdict."""
        before: int | None = None
        deadline = time.monotonic() + PATIENT
        while time.monotonic() < deadline:
            # A broker that has just restarted refuses, and aiokafka asserts that it knows one.
            with contextlib.suppress(KafkaError, AssertionError):
                judged = sum((await self.stack.committed()).values())
                if judged > (before := judged if before is None else before):
                    return
            await asyncio.sleep(0.1)
        raise TimeoutError("no prediction gets a verdict any more")

    async def settle(self) -> None:
        """End the load once a version was fenced, and wait until all of it has verdicts."""
        if not self.load.calm:
            # A scenario may be over before the first version turns bad.
            await self.stack.until(lambda: self.stack.route("pricing").get("fenced"), "a version is fenced", PATIENT)
        await self.load.stop()
        deadline = time.monotonic() + PATIENT
        while True:
            ends = await self._ends()
            committed = await self.stack.committed()
            behind = {p: end - committed[p] for p, end in ends.items() if committed[p] < end}
            if not behind:
                return
            logs = "\n".join(f"--- {w.name}\n{w.log.read_text()[-3000:]}" for w in self.guards)
            assert time.monotonic() < deadline, f"predictions without a verdict, by partition: {behind}\n{logs}"
            await asyncio.sleep(0.2)

    async def _firsts(self) -> dict[int, int]:
        consumer = self.stack._consumer("read_uncommitted")
        await consumer.start()
        try:
            tps = [tp for tp in self.stack._partitions() if tp.topic == self.stack.topic("predictions")]
            return {tp.partition: first for tp, first in (await consumer.beginning_offsets(tps)).items()}
        finally:
            await consumer.stop()

    async def _ends(self) -> dict[int, int]:
        consumer = self.stack._consumer("read_uncommitted")
        await consumer.start()
        try:
            tps = [tp for tp in self.stack._partitions() if tp.topic == self.stack.topic("predictions")]
            return {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}
        finally:
            await consumer.stop()

    async def check(self) -> None:
        """The checker's word on the whole of it, and on what it saw while it happened: zero of everything."""
        command = [sys.executable, "-m", "holdfast.cli", "audit", "--once", "--json", "--config"]
        process = await asyncio.create_subprocess_exec(
            *command, str(self.stack.write_config("check")), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        self.facts = json.loads(out)
        assert process.returncode == 0, self.facts
        assert set(self.facts["violations"].values()) == {0}, self.facts
        firsts, ends = await self._firsts(), await self._ends()
        there = sum(end - firsts[partition] for partition, end in ends.items())
        assert self.facts["checked"] == there - self.not_predictions > 0
        assert self.facts["not_judged_policy_unknown"] == 0
        if self.auditor is not None:
            wrong = self.auditor.told("violation")
            assert not wrong, wrong
            assert self.auditor.metric("holdfast_audit_violations_total") == 0
        # Without fences the campaign would say nothing about them.
        assert self.stack.route("pricing")["fenced"], self.stack.route("pricing")
        for worker in self.stack.workers:
            assert "Traceback" not in worker.log.read_text(errors="replace"), worker.log.read_text()[-3000:]

    def told(self, event: str) -> int:
        """How often the guards and the switches said `event`."""
        return sum(len(worker.told(event)) for worker in (*self.guards, *self.switches))

    def figures(self) -> dict[str, Any]:
        return {
            "guards": len(self.guards),
            "switches": len(self.switches),
            **dict(self.done),
            "predictions": self.facts["checked"],
            "fenced versions": len(self.stack.route("pricing")["fenced"]),
            "violations": self.facts["violations"],
        }


@contextlib.asynccontextmanager
async def campaign(
    kafka: Kafka,
    redis_url: str,
    folder: Path,
    *,
    guards: int = 2,
    switches: int = 1,
    rate: int = 400,
    partitions: int = 4,
    watch: bool = True,
    calm: bool = False,
    settings: Mapping[str, Any] | None = None,
    workers: Mapping[str, Any] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "holdfast.cli"),
    fence_within: str = "15s",
) -> AsyncIterator[Campaign]:
    """Everything up and judging under load. `settings` hold for all, `workers` for guards and switches only.

    `watch`: with the checker beside it. At the end of the block the load is stopped, all settles, and is checked.
    """
    sections = {
        "kafka": {"bootstrap_servers": kafka.bootstrap, "session_timeout": "3s"},
        "audit": {"fence_within": fence_within},
        **(settings or {}),
    }
    async with Stack(
        kafka,
        redis_url,
        POLICIES,
        folder=folder,
        partitions=partitions,
        settings=sections,
        follow=("routes", "audit"),
    ) as stack:
        names = ["guard"] * guards + ["switch"] * switches
        started = await stack.start(*names, settings=workers, program=program)
        await stack.command("pricing", "promote", "v1")
        await stack.command("score", "promote", "s1")
        run = Campaign(stack, rate, seed=random.randrange(2**32), calm=calm)
        run.guards, run.switches = started[:guards], started[guards:]
        if watch:
            (run.auditor,) = await stack.start("audit")
        try:
            await run.progress()
            yield run
            await run.settle()
        finally:
            await run.load.stop()
        await run.check()
