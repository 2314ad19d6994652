"""What goes wrong in production, done on purpose under load: nothing lost, repeated, reordered or let through.

A short run belongs to the tests; `make faults` does the same for longer and writes its figures down.
"""

import asyncio
import contextlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

import backends
from backends import RedisServer
from e2e.stack import Stack
from faults.campaign import LONG, PATIENT, POLICIES, campaign
from holdfast.client import RouteReader
from holdfast.kafka.partitioner import partition_for
from redis_servers import MovingName, demote, follow

pytestmark = pytest.mark.real_kafka

FENCED = "partition taken over by another worker"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.parametrize("guards", [1, 2, 4] if LONG else [2])
async def test_kills_at_any_moment_lose_and_repeat_nothing(broker, redis_server, tmp_path, figures, guards):
    """kill -9 of guards and switches at random moments, one after the other and two at once."""
    async with campaign(broker, redis_server.url, tmp_path, guards=guards, switches=min(guards, 2)) as run:
        while run.done.total() < (36 if LONG else 4):
            workers = run.random.sample([*run.guards, *run.switches], run.random.choice([1, 1, 2]))
            await asyncio.sleep(run.random.uniform(0.1, 2.0))
            await asyncio.gather(*map(run.kill, workers))
            if run.random.random() < 0.5:
                await run.progress()
        await run.serving()
    figures[f"kill -9, {guards} guards"] = run.figures()


async def test_offsets_that_expire_judge_nothing_twice(broker, redis_server, tmp_path, figures):
    """Brokers forget the offsets of groups without members: guards and switch go on behind what they have written."""
    async with campaign(broker, redis_server.url, tmp_path) as run:
        for _ in range(20 if LONG else 1):
            workers = [*run.guards, *run.switches]
            # The group may be deleted once its session is over.
            await asyncio.gather(
                *(asyncio.to_thread(run.random.choice([worker.stop, worker.kill])) for worker in workers)
            )
            for service in ("guard", "switch"):
                await broker.delete_group(getattr(run.stack.settings, service).group)
            await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in workers))
            run.done["groups that lost their offsets"] += 2
            await run.serving()
            await run.progress()
        assert run.told("all offsets of the group were lost, checking goes on behind the last verdicts") > 0
    figures["expired offsets"] = run.figures()


async def test_a_frozen_worker_that_wakes_up_publishes_nothing_twice(broker, redis_server, tmp_path, figures):
    """Frozen past its session's time-out, so that another has its partitions; it wakes in the middle of a batch."""
    rounds = 50 if LONG else 2
    async with campaign(broker, redis_server.url, tmp_path, switches=2, rate=1500 if LONG else 800) as run:
        # Whether a worker wakes in the middle of a batch is chance: a short run goes on until one did.
        for number in range(max(rounds, 20)):
            if number >= rounds and run.told(FENCED):
                break
            pairs = run.guards if number % 5 else run.switches
            frozen, other = run.random.sample(pairs, 2)
            await run.serving()
            await asyncio.sleep(run.random.uniform(0.1, 0.5))
            frozen.pause()
            # The other one gives up its partitions, and gets all of them.
            everything = 4 if pairs is run.guards else 1
            await run.stack.until(partial(has_partitions, other, everything), "taken over", PATIENT)
            await run.progress()
            frozen.resume()
            run.done["zombies woken"] += 1
        await run.serving()
        run.done["zombies fenced by the broker"] = run.told(FENCED)
    figures["frozen workers"] = run.figures()
    assert run.done["zombies fenced by the broker"] > 0, "no zombie woke in the middle of a batch"


def has_partitions(worker, count):
    """Whether it is ready, and was last assigned so many."""
    told = worker.told("partitions assigned")
    assigned = [line for line in told if not line["topic"].endswith(".releases")]
    return worker.ready() and assigned and len(assigned[-1]["partitions"]) == count


async def test_a_broker_that_freezes_dies_and_restarts_only_delays(broker, redis_server, tmp_path, figures):
    """SIGSTOP, kill -9 and a clean restart, with guards and switch going on by themselves."""
    frozen = 30 if LONG else 8
    async with campaign(broker, redis_server.url, tmp_path, fence_within=f"{frozen + 30}s") as run:
        for _ in range(3 if LONG else 1):
            broker.pause()
            await asyncio.sleep(frozen)
            broker.resume()
            run.done[f"freezes of the broker for {frozen} s"] += 1
            await run.progress()
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            run.done["kills of the broker"] += 1
            await run.progress()
            await asyncio.to_thread(broker.restart)
            run.done["clean restarts of the broker"] += 1
            await run.progress()
        await run.serving()
    figures["one broker"] = run.figures()


@pytest.mark.long_faults
async def test_a_cluster_that_loses_a_broker_goes_on(redis_server, tmp_path, figures):
    """Three brokers, two of which must have everything; each is killed in turn and comes back."""
    if backends.choose_private_kafka().kind != "maven":
        pytest.skip("needs three brokers of its own, which are started from Maven's Kafka")
    settings = {"topic_settings": {"partitions": 4, "control_partitions": 1, "replication_factor": 3}}
    with backends.KafkaCluster() as cluster:
        async with campaign(cluster, redis_server.url, tmp_path, settings=settings, fence_within="60s") as run:
            for node in (cluster.nodes * 2) if LONG else cluster.nodes[:1]:
                await asyncio.to_thread(node.kill)
                run.done["brokers of three lost"] += 1
                await run.progress()
                await asyncio.to_thread(node.start)
                await asyncio.sleep(5 if LONG else 0)
            await run.serving()
        figures["three brokers"] = run.figures()


async def test_whatever_happens_to_redis_it_is_repaired_and_guards_do_not_care(broker, fresh_redis, tmp_path, figures):
    """Flushed, frozen, stopped, restarted empty, and replaced by a copy of yesterday."""
    async with campaign(broker, fresh_redis.url, tmp_path) as run:
        raw = Redis.from_url(fresh_redis.url)
        stale = {key: await raw.dump(key) async for key in raw.scan_iter("*")}

        async def mirrored(fault):
            run.done[fault] += 1
            await run.progress()
            deadline = asyncio.get_running_loop().time() + PATIENT
            while True:
                with contextlib.suppress(Exception):
                    version, state = await run.stack.redis_route("pricing")
                    route = run.stack.route("pricing")
                    if version == route.get("version") and int(state["epoch"]) == route["epoch"]:
                        return
                assert asyncio.get_running_loop().time() < deadline, f"Redis is not repaired after: {fault}"
                await asyncio.sleep(0.1)

        for _ in range(5 if LONG else 1):
            fresh_redis.flush()
            await mirrored("Redis flushed")
            fresh_redis.pause()
            await run.progress()
            fresh_redis.resume()
            await mirrored("Redis frozen")
            fresh_redis.kill()
            await run.progress()
            fresh_redis.start()
            await mirrored("Redis stopped and restarted empty")
            fresh_redis.restart()
            await raw.connection_pool.disconnect()
            for key, dump in stale.items():
                await raw.restore(key, 0, dump, replace=True)
            await mirrored("Redis replaced by a stale copy")
        await raw.aclose()
    figures["Redis"] = run.figures()


async def test_redis_that_fails_over_behind_its_name_is_followed(broker, tmp_path, figures):
    """The primary is demoted and goes on answering, or dies: switch and readers are on the new one soon after."""
    with RedisServer() as one, RedisServer() as other, MovingName(one.port) as name:
        await asyncio.to_thread(follow, other, one)
        async with (
            campaign(broker, name.url, tmp_path) as run,
            RouteReader(name.url, "pricing", poll_seconds=0.5) as reader,
        ):

            async def followed(primary):
                raw = Redis.from_url(primary.url)
                async with asyncio.timeout(PATIENT):
                    while True:
                        route = run.stack.route("pricing")
                        seen, state = reader.route("pricing"), await raw.hgetall("holdfast:{pricing}:state")
                        at = {int(state.get(b"epoch", 0)), seen.epoch, route["epoch"]}
                        if len(at) == 1 and not seen.stale:
                            break
                        await asyncio.sleep(0.1)
                await raw.aclose()

            old, new = one, other
            for number in range(20 if LONG else 2):
                name.target = new.port
                await asyncio.to_thread(demote, old, new)
                if number % 2:
                    await asyncio.to_thread(old.kill)
                    run.done["primaries of Redis lost"] += 1
                else:
                    run.done["primaries of Redis demoted"] += 1
                await followed(new)
                await run.progress()
                if not old.running:
                    await asyncio.to_thread(old.start)
                await asyncio.to_thread(follow, old, new)
                old, new = new, old
    figures["Redis failover"] = run.figures()


@pytest.mark.long_faults
async def test_partitions_that_are_added_are_taken_up(broker, redis_server, tmp_path, figures):
    """Verdicts' topics first, then predictions: nothing stops. Predictions alone: the new partition waits for them."""
    async with campaign(broker, redis_server.url, tmp_path) as run:
        stack = run.stack
        for role in ("approved", "blocked", "malformed", "predictions"):
            await broker.grow_topic(stack.topic(role), 5)
        stack.sizes["predictions"] = 5
        run.done["partitions added"] += 1
        await progress_of(run, 4)
        assert all(guard.running for guard in run.guards)

        await broker.grow_topic(stack.topic("predictions"), 6)
        run.done["partitions added to predictions alone"] += 1
        held = f"{stack.topic('predictions')}/5 is held"
        await stack.until(lambda: any(held in guard.log.read_text() for guard in run.guards), "one waits", PATIENT)
        await run.progress()
        for role in ("approved", "blocked", "malformed"):
            await broker.grow_topic(stack.topic(role), 6)
        stack.sizes["predictions"] = 6
        await progress_of(run, 5)
        assert all(guard.running for guard in run.guards)
    figures["partitions added"] = run.figures()


async def test_a_control_topic_that_grows_stops_the_switch(broker, redis_server, tmp_path):
    """A model that moves to another partition would lose its fences: also when its state is given a place there."""
    moved = next(name for name in ("pricing", "score", "other", "another") if partition_for(name, 2) == 1)
    async with Stack(broker, redis_server.url, {moved: POLICIES["pricing"]}, folder=tmp_path) as stack:
        (switch,) = await stack.start("switch")
        await stack.command(moved, "promote", "v1")
        for role in ("control", "state"):
            await broker.grow_topic(stack.topic(role), 2)
            with contextlib.suppress(backends.BackendError):
                if not switch.running:
                    await asyncio.to_thread(switch.start)
            await stack.until(lambda: not switch.running, "the switch stops", PATIENT)
            assert switch.process.returncode == 1
        last = switch.log.read_text().splitlines()[-1]
        assert last.startswith(f"The topic {stack.topic('control')} was grown, and where each model's state is"), last


async def progress_of(run, partition):
    """Wait until predictions of that partition have verdicts."""
    deadline = asyncio.get_running_loop().time() + PATIENT
    while not (await run.stack.committed())[partition]:
        assert asyncio.get_running_loop().time() < deadline, f"partition {partition} is not taken up"
        await asyncio.sleep(0.2)


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian's package faketime)")
async def test_a_clock_that_jumps_an_hour_changes_no_verdict_but_the_stale_ones(
    broker, redis_server, tmp_path, figures
):
    """The clocks of guards and switches go an hour ahead, back, an hour behind, and back."""
    offset = tmp_path / "clock"
    offset.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        # A step of the clock leaves CLOCK_MONOTONIC alone.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    program = ["env", *(f"{name}={value}" for name, value in faked.items()), sys.executable, "-m", "holdfast.cli"]
    async with campaign(broker, redis_server.url, tmp_path, program=program) as run:
        for jump in ["+3600", "+0", "-3600", "+0"] * 5 if LONG else ["+3600", "-3600"]:
            offset.write_text(jump)
            run.done["clock jumps of an hour"] += 1
            fenced = len(run.stack.route("pricing").get("fenced", ()))
            await run.stack.until(
                lambda fenced=fenced: len(run.stack.route("pricing").get("fenced", ())) > fenced,
                "the next bad version is fenced",
                PATIENT,
            )
            await run.progress()
    figures["clocks"] = run.figures()


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.long_faults
async def test_a_full_disk_of_the_broker_only_delays(redis_server, tmp_path, figures):
    """Kafka stops when it cannot write; with room again it starts, and everything goes on from where it was."""
    if backends.choose_private_kafka().kind != "maven":
        pytest.skip("needs a broker on a file system of its own, which is started from Maven's Kafka")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = await asyncio.to_thread(mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    try:
        properties = {
            "log.dirs": str(disk / "data"),
            "group.min.session.timeout.ms": "1000",
            "log.index.size.max.bytes": "4096",
            "log.segment.bytes": str(1024 * 1024),
            "offsets.topic.segment.bytes": str(1024 * 1024),
            "transaction.state.log.segment.bytes": str(1024 * 1024),
            "log.cleaner.dedupe.buffer.size": str(4 * 1024 * 1024),
        }
        with backends.RealKafka(properties) as kafka:
            async with campaign(kafka, redis_server.url, tmp_path, rate=100, fence_within="120s") as run:
                run.load.rate = 2000
                # Whether it stops or only refuses, it must have met the end of the disk.
                await run.stack.until(
                    lambda: not kafka.running or "No space left" in kafka.log.read_text(), "full", PATIENT
                )
                run.done["disks filled"] += 1
                run.load.rate = 200
                await asyncio.to_thread(mount, "-o", "remount,size=2g", disk)
                await asyncio.to_thread(kafka.kill)
                await asyncio.to_thread(kafka.start)
                await run.progress()
                await run.serving()
            figures["disk full"] = run.figures()
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", disk], check=True)


async def test_slow_and_cut_connections_only_delay(redis_server, tmp_path, figures):
    """Guards and switch reach Kafka through a proxy: answers come late, end in the middle, or not at all."""
    if backends.choose_private_kafka().kind != "maven":
        pytest.skip("needs a broker behind a proxy, which is started from Maven's Kafka")
    behind = backends.free_port()
    try:
        proxy = backends.Toxiproxy(behind)
    except backends.BackendError as error:
        pytest.skip(str(error))
    direct, controller = backends.free_port(), backends.free_port()
    properties = {
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{proxy.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "group.min.session.timeout.ms": "1000",
    }
    through = {"kafka": {"bootstrap_servers": f"127.0.0.1:{proxy.port}"}}
    with backends.RealKafka(properties, port=direct) as kafka, proxy:
        async with campaign(kafka, redis_server.url, tmp_path, workers=through, fence_within="60s") as run:
            for _ in range(10 if LONG else 1):
                proxy.slow(300, 200)
                await run.progress()
                await asyncio.sleep(5 if LONG else 1)
                proxy.heal()
                run.done["slow connections"] += 1
                proxy.cut(run.random.choice([2_000, 20_000, 200_000]))
                await asyncio.sleep(4 if LONG else 2)
                proxy.heal()
                run.done["connections cut in an answer"] += 1
                await run.progress()
                proxy.off()
                await asyncio.sleep(run.random.uniform(1, 8 if LONG else 2))
                proxy.heal()
                run.done["connections refused"] += 1
                await run.progress()
            await run.serving()
        figures["connections"] = run.figures()
