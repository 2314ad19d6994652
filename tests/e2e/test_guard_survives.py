"""Guards under load, disturbed: one verdict for each prediction, in order, and nothing unchecked is approved."""

import asyncio
import contextlib
import itertools
from collections import Counter, defaultdict

import pytest

from backends import private_kafka
from e2e.stack import JUMP, POLICY, Stack, body, headers
from holdfast.guard import ROUTES_WITHIN

pytestmark = pytest.mark.real_kafka

# Never trips: whether a verdict is right is told by the prediction alone.
STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")


class Load:
    """Predictions of 30 entities, one in seven too cheap, numbered for each entity, for as long as the block lasts."""

    def __init__(self, stack: Stack, pause: float = 0.02) -> None:
        self.stack, self.pause = stack, pause
        self.sent: dict[str, dict] = {}

    async def __aenter__(self):
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_):
        self._stop = True
        await self._sending

    _stop = False

    async def _send(self):
        numbers = itertools.count()
        while not self._stop:
            some = [
                self.stack.prediction("pricing", "v1", f"E-{n % 30}", 1.0 if n % 7 == 0 else 100.0, n=n)
                for n in itertools.islice(numbers, 40)
            ]
            await self.stack.send(some)
            self.sent |= {one["prediction_id"]: one for one in some}
            await asyncio.sleep(self.pause)

    async def more(self, verdicts=400):
        """Wait until so many more verdicts have come."""
        goal = len(self.stack.verdicts()) + verdicts
        await self.stack.until(lambda: len(self.stack.verdicts()) >= goal, f"{verdicts} more verdicts")


async def every_prediction_has_its_verdict(stack, load, *, repeated=False):
    """Wait for the last verdict, and count under read_committed."""
    await stack.until(lambda: len(stack.verdicts()) >= len(load.sent), "every prediction has a verdict")
    await stack.settled()
    verdicts = stack.verdicts()
    assert set(verdicts) == set(load.sent), "lost, or from nowhere"
    if repeated:
        assert all(len(set(roles)) == 1 for roles in verdicts.values())
    else:
        assert {p: roles for p, roles in verdicts.items() if len(roles) != 1} == {}, "repeated"
    wrong = {p: roles for p, roles in verdicts.items() if (load.sent[p]["value"] < 10) != (roles[0] == "blocked")}
    assert wrong == {}
    for record in stack.seen["approved"]:
        assert headers(record)["holdfast-verdict"] == b"approved"
    if repeated:
        return
    for role in ("approved", "blocked"):
        numbers = defaultdict(list)
        for record in stack.seen[role]:
            numbers[body(record)["entity_id"]].append(body(record)["n"])
        assert all(seen == sorted(seen) for seen in numbers.values()), "order within an entity is lost"
    tallies = stack.tallies("pricing")
    total = Counter(role for roles in verdicts.values() for role in roles)
    assert (sum(t["approved"] for t in tallies), sum(t["blocked"] for t in tallies)) == (
        total["approved"],
        total["blocked"],
    )
    ends = Counter(record.partition for record in stack.seen["predictions"])
    assert await stack.committed() == {p: ends[p] for p in range(stack.settings.topic_settings.partitions)}


def assigned(guard):
    """The partitions of predictions of each of its assignments so far."""
    told = guard.told("partitions assigned")
    return [line["partitions"] for line in told if not line["topic"].endswith(".releases")]


@contextlib.asynccontextmanager
async def guards(kafka, redis_server, tmp_path, **options):
    async with Stack(kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, **options) as stack:
        yield stack


async def test_a_killed_guard_loses_and_repeats_nothing(kafka, redis_server, tmp_path):
    """kill -9 in the middle of its transactions, twice, and started again."""
    async with guards(kafka, redis_server, tmp_path) as stack:
        (guard,) = await stack.start("guard")
        async with Load(stack) as load:
            for _ in range(2):
                await load.more()
                guard.kill()
                await asyncio.to_thread(guard.start)
                await load.more()
        await every_prediction_has_its_verdict(stack, load)


async def test_a_killed_guard_is_back_at_once(kafka, redis_server, tmp_path):
    """Its group does not wait for the killed one: neither until its session ends, nor the 30 s for it to join again."""
    settings = {"kafka": {"bootstrap_servers": kafka.bootstrap, "session_timeout": "20m"}}
    async with Stack(kafka, redis_server.url, {"pricing": STEADY}, folder=tmp_path, settings=settings) as stack:
        (guard,) = await stack.start("guard")
        await stack.send([stack.prediction("pricing", "v1", "E-1", 100.0)])
        await stack.until(lambda: stack.seen["approved"], "the first verdict")
        guard.kill()
        await asyncio.to_thread(guard.start)
        await stack.until(guard.ready, "the guard is ready", within=25)
        await stack.send([stack.prediction("pricing", "v1", "E-1", 500.0)])
        await stack.until(lambda: len(stack.verdicts()) == 2, "the second verdict")


async def test_workers_come_and_go(kafka, redis_server, tmp_path):
    """A second worker joins under load, and the first one leaves: it finishes its batch, and ends with 0."""
    async with guards(kafka, redis_server, tmp_path, partitions=4) as stack:
        (first,) = await stack.start("guard")
        async with Load(stack) as load:
            await load.more()
            (second,) = await stack.start("guard")
            await stack.until(lambda: len(assigned(first)[-1]) == len(assigned(second)[-1]) == 2)
            await load.more()
            await asyncio.to_thread(first.stop)
            assert first.process.returncode == 0
            assert first.told("stopped")
            await load.more()
        await every_prediction_has_its_verdict(stack, load)
        assert {t["worker"] for t in stack.tallies("pricing")} == {"guard-0", "guard-1"}


async def test_a_rebalance_forgets_nothing(kafka, redis_server, tmp_path):
    """Only what others approved meanwhile is read back: what a guard knew, it knows also from beyond the tail."""
    settings = {"guard": {"restore_records": 20}}
    async with Stack(kafka, redis_server.url, {"pricing": JUMP}, folder=tmp_path, settings=settings) as stack:
        (first,) = await stack.start("guard")
        await stack.send([stack.prediction("pricing", "v1", "old", 100.0)])
        for n in range(3):
            # The order of an entity is that of its partition, and these are of both.
            await stack.send([stack.prediction("pricing", "v1", f"E-{n}-{m}", 100.0) for m in range(30)])
            await stack.until(lambda n=n: len(stack.seen["approved"]) == 1 + 30 * (n + 1), "all are approved")
        (second,) = await stack.start("guard")
        await stack.until(lambda: len(assigned(first)[-1]) == len(assigned(second)[-1]) == 1, "they share")
        await stack.ready(first, second)
        # Ten of each partition, approved by whoever has it now.
        raised = [stack.prediction("pricing", "v1", f"E-2-{m}", 200.0) for m in range(20)]
        await stack.send(raised)
        await stack.until(lambda: len(stack.seen["approved"]) == 111, "a doubling is approved")
        await asyncio.to_thread(second.stop)
        await stack.until(lambda: assigned(first)[-1] == [0, 1], "one has all again")
        await stack.send([stack.prediction("pricing", "v1", f"E-2-{m}", 400.0) for m in range(20)])
        await stack.until(lambda: len(stack.seen["approved"]) == 131, "and a doubling of what the other had approved")
        await stack.send([stack.prediction("pricing", "v1", name, 1000.0) for name in ("old", "E-0-0", "E-2-0", "new")])
        await stack.until(lambda: len(stack.verdicts()) == 135, "every prediction has a verdict")
        assert {body(one)["entity_id"] for one in stack.seen["blocked"]} == {"old", "E-0-0", "E-2-0"}


async def test_a_worker_that_slept_through_its_session_cannot_write(kafka, redis_server, tmp_path):
    """SIGSTOP past the session's end under load, then SIGCONT: the other worker had its partitions meanwhile."""
    async with guards(kafka, redis_server, tmp_path) as stack:
        first, second = await stack.start("guard", "guard")
        async with Load(stack) as load:
            await stack.until(lambda: {t["worker"] for t in stack.tallies("pricing")} == {"guard-0", "guard-1"})
            first.pause()
            await stack.until(lambda: assigned(second)[-1] == [0, 1], "the other takes over")
            await load.more()
            before = len(assigned(first))
            first.resume()
            await stack.until(lambda: len(assigned(first)) > before and len(assigned(first)[-1]) == 1, "it is let in")
            await load.more()
            await stack.ready(first, second)
        await every_prediction_has_its_verdict(stack, load)


async def test_a_worker_that_slept_obeys_what_was_fenced_meanwhile(kafka, redis_server, tmp_path):
    """SIGSTOP for less than its session: it wakes with its partitions, and with the routes as they were."""
    settings = {"kafka": {"bootstrap_servers": kafka.bootstrap, "session_timeout": "1m"}}
    async with guards(kafka, redis_server, tmp_path, settings=settings) as stack:
        guard, _ = await stack.start("guard", "switch")
        await stack.command("pricing", "promote", "v1")
        await stack.send([stack.prediction("pricing", "v1", f"E-{n}", 100.0) for n in range(100)])
        await stack.until(lambda: len(stack.seen["approved"]) == 100, "v1 is approved")
        guard.pause()
        await stack.command("pricing", "fence", "v1")
        await stack.send([stack.prediction("pricing", "v1", f"E-{n}", 100.0) for n in range(100)])
        await asyncio.sleep(ROUTES_WITHIN)
        guard.resume()
        await stack.until(lambda: len(stack.verdicts()) == 200, "every prediction has a verdict")
        assert len(stack.seen["blocked"]) == 100


async def test_a_restart_of_the_broker_under_load(redis_server, tmp_path):
    """The broker is killed and started again; a guard is not ready meanwhile, may be stopped, and goes on by itself."""
    # A killed broker is let in again once its former self is given up.
    with private_kafka({"broker.heartbeat.interval.ms": "500", "broker.session.timeout.ms": "1500"}) as broker:
        async with guards(broker, redis_server, tmp_path) as stack:
            guard, other, switch = await stack.start("guard", "guard", "switch")
            async with Load(stack) as load:
                await load.more()
                await asyncio.to_thread(broker.kill)
                await stack.until(lambda: guard.get("/ready")[0] == 503, "not ready without Kafka")
                assert guard.get("/health")[0] == 200
                await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in (other, switch)))
                for worker in (other, switch):
                    assert worker.process.returncode == 0
                    assert worker.lines()[-1]["event"] == "stopped"
                await asyncio.to_thread(broker.start)
                await load.more()
                await stack.ready(guard)
            await every_prediction_has_its_verdict(stack, load)


async def test_sigterm_finishes_the_batch(kafka, redis_server, tmp_path):
    """The process ends with 0 under load, and everything that it published is committed, with its offsets."""
    async with guards(kafka, redis_server, tmp_path) as stack:
        (guard,) = await stack.start("guard")
        async with Load(stack, pause=0.0) as load:
            await load.more()
            await asyncio.to_thread(guard.stop)
            assert guard.process.returncode == 0
            await stack.settled()
            assert sum((await stack.committed()).values()) == len(stack.verdicts())
            assert "Traceback" not in guard.log.read_text()
            await asyncio.to_thread(guard.start)
        await every_prediction_has_its_verdict(stack, load)


async def test_at_least_once_loses_nothing(kafka, redis_server, tmp_path):
    """Without transactions a killed guard may repeat a verdict, and loses none."""
    async with guards(kafka, redis_server, tmp_path, settings={"guard": {"delivery": "at_least_once"}}) as stack:
        (guard,) = await stack.start("guard")
        async with Load(stack) as load:
            await load.more()
            guard.kill()
            await asyncio.to_thread(guard.start)
            await load.more()
            await asyncio.to_thread(guard.stop)
            assert guard.process.returncode == 0
            await asyncio.to_thread(guard.start)
        await every_prediction_has_its_verdict(stack, load, repeated=True)
