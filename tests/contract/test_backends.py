"""The servers that tests and the demo run on: they do what is asked of them, and leave nothing behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from redis import Redis
from redis.exceptions import RedisError

import conftest
from backends import GENEROUS, BackendError, Kafka, RealKafka, RedisServer, kafka_answers
from holdfast.adapters.embedded import EmbeddedKafka, EmbeddedRedis, EmbeddedUnavailable, redis_answers
from holdfast.kafka.topics import check_topics
from holdfast.settings import load_settings
from holdfast_schemas import TOPICS

OWNER = """
import os, signal, sys
from holdfast.adapters.embedded import EmbeddedKafka, EmbeddedRedis
with EmbeddedKafka(), EmbeddedRedis() as redis:
    folder = redis._folder
    print(redis.url.rpartition(":")[2].partition("/")[0], folder, flush=True)
    if sys.argv[1] == "exception":
        raise RuntimeError
    if sys.argv[1] != "return":
        os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "end",
    ["return", "exception", int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGKILL)],
    ids=["return", "exception", "SIGINT", "SIGTERM", "SIGKILL"],
)
def test_embedded_servers_go_with_their_owner(end: str | int) -> None:
    """However the process ends: no server, no folder."""
    owner = subprocess.run([sys.executable, "-c", OWNER, str(end)], capture_output=True, text=True, check=False)
    port, folder = owner.stdout.split()

    def left() -> list[object]:
        processes = [p for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or [])]
        return [
            *processes,
            *Path(folder).parent.glob(Path(folder).name),
            *([port] if redis_answers(int(port), password_needed=True) else []),
        ]

    deadline = time.monotonic() + GENEROUS
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left() == []


def test_an_embedded_redis_goes_with_its_guardian() -> None:
    """Also where the guardian is killed, as somebody does who cleans up by what stands on command lines."""
    with EmbeddedRedis() as server:
        assert server._guardian is not None
        server._guardian.kill()
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        deadline = time.monotonic() + GENEROUS
        while redis_answers(port, password_needed=True) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not redis_answers(port, password_needed=True)


def test_an_embedded_redis_lets_in_only_who_has_its_password() -> None:
    """Another user of the machine reaches the port, and sees the command line; each start has a password of its own."""
    with EmbeddedRedis() as one, EmbeddedRedis() as other:
        passwords = {urlsplit(server.url).password for server in (one, other)}
        assert len(passwords) == 2
        port = urlsplit(one.url).port
        assert port is not None
        assert not redis_answers(port)
        with Redis.from_url(one.url) as client:
            assert client.set("a", "b")
        with pytest.raises(RedisError), Redis(host="127.0.0.1", port=port) as stranger:
            stranger.set("a", "c")
        lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        assert any("redis-server" in line for line in lines)
        assert not any(password in line for line in lines for password in passwords if password)


@pytest.mark.parametrize("program", ["/nowhere/redis-server", "/bin/false"])
def test_an_embedded_redis_that_cannot_start_says_why(program: str) -> None:
    """One sentence of what happened and one of what to do."""
    with (
        pytest.raises(EmbeddedUnavailable, match=rf"\({program}\) did not start: .*\. Install .*extra `embedded`"),
        EmbeddedRedis(program),
    ):
        pass


async def test_an_embedded_kafka_has_the_topics_of_the_settings() -> None:
    """Other processes find them with the partition counts that the services check for."""
    with EmbeddedKafka({"extra": 7}) as kafka:
        settings = load_settings(
            kafka={"bootstrap_servers": kafka.bootstrap}, topic_settings={"partitions": 3, "control_partitions": 2}
        )
        created = kafka.create_topics(settings)
        assert created["predictions"] == created["predictions.approved"] == 3
        assert set(await check_topics(settings, TOPICS)) == set(TOPICS)
        with pytest.raises(EmbeddedUnavailable, match=r"did not create the topic extra with 7.*already exists"):
            kafka.create_topic("extra", 7)
        with pytest.raises(EmbeddedUnavailable, match="cannot have 0 partitions"):
            kafka.create_topic("none", 0)
    assert not kafka_answers(int(kafka.bootstrap.rpartition(":")[2]))


async def test_a_transaction_passes_with_its_offsets(kafka: Kafka, unique: str) -> None:
    """On whichever Kafka the tests got: groups, commits and transactions, which the services stand on."""
    source, target, group = f"{unique}-in", f"{unique}-out", f"{unique}-group"
    for topic in (source, target):
        await kafka.create_topic(topic, 2)
    tp = TopicPartition(source, 1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as plain:
        await plain.send_and_wait(source, b"1", partition=1)
    async with (
        AIOKafkaConsumer(
            source,
            bootstrap_servers=kafka.bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        ) as consumer,
        AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=unique) as producer,
    ):
        record = await consumer.getone()
        async with producer.transaction():
            await producer.send_and_wait(target, record.value, partition=record.partition)
            await producer.send_offsets_to_transaction({tp: record.offset + 1}, group)
        # A broker answers the end of a transaction a moment before its offsets can be seen; the embedded one
        # takes them and keeps none.
        async with asyncio.timeout(GENEROUS):
            while kafka.real and await consumer.committed(tp) != 1:  # noqa: ASYNC110  the state is the broker's
                await asyncio.sleep(0.01)
    async with AIOKafkaConsumer(
        target, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", isolation_level="read_committed"
    ) as downstream:
        assert (await downstream.getone()).value == b"1"


@pytest.mark.real_kafka
async def test_a_real_kafka_keeps_its_records_and_address(fresh_kafka: RealKafka, unique: str) -> None:
    """Killed, frozen and restarted, it is still the same broker."""
    await fresh_kafka.create_topic(unique, 1)
    async with AIOKafkaProducer(bootstrap_servers=fresh_kafka.bootstrap, acks="all") as producer:
        for number, disturb in enumerate((fresh_kafka.kill, fresh_kafka.stop)):
            await producer.send_and_wait(unique, b"%d" % number)
            disturb()
            assert not kafka_answers(fresh_kafka.port)
            fresh_kafka.start()
        fresh_kafka.pause()
        assert not kafka_answers(fresh_kafka.port)
        fresh_kafka.resume()
        await producer.send_and_wait(unique, b"2")
    async with AIOKafkaConsumer(
        unique, bootstrap_servers=fresh_kafka.bootstrap, auto_offset_reset="earliest"
    ) as consumer:
        assert [(await consumer.getone()).value for _ in range(3)] == [b"0", b"1", b"2"]


def test_a_redis_restarts_empty_at_its_address(fresh_redis: RedisServer) -> None:
    """Whatever ended it."""
    for end in (fresh_redis.stop, fresh_redis.kill):
        with Redis.from_url(fresh_redis.url) as client:
            assert client.dbsize() == 0
            client.set("key", "value")
        end()
        assert not redis_answers(fresh_redis.port)
        fresh_redis.start()
    fresh_redis.pause()
    assert not redis_answers(fresh_redis.port)
    fresh_redis.resume()
    assert redis_answers(fresh_redis.port)


def test_a_server_that_does_not_come_up_shows_its_log() -> None:
    """And leaves no folder."""
    server = RedisServer("--no-such-option", "1")
    with pytest.raises(BackendError, match=r"(?s)redis did not come up.*no-such-option"), server:
        pass
    assert not server.folder.exists()


SKIPPING = """
import pytest
@pytest.mark.real_kafka
def test_real(): pass
def test_skipped(): pytest.skip("no moon")
def test_passed(): pass
@pytest.mark.xfail
def test_expected(): assert False
"""


@pytest.mark.parametrize("refuse", [False, True])
def test_skips_are_named_and_can_be_refused(tmp_path: Path, refuse: bool) -> None:
    """Without Java the tests for a real Kafka are skipped with the reason, and fail where skips are refused."""
    (tmp_path / "test_them.py").write_text(SKIPPING)
    tests = Path(__file__).resolve().parent.parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {
        "PATH": str(tmp_path),
        "DOCKER_HOST": f"unix://{tmp_path}/none",
        "PYTHONPATH": str(tests),
        "HOLDFAST_REFUSE_SKIPS": "1" if refuse else "0",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-c", tests.parent / "pyproject.toml", "--rootdir", tmp_path,
         "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "kafka: embedded in librdkafka, because neither a Docker engine nor Java is here" in run.stdout
    assert re.search(r"needs a real Kafka: neither a Docker engine nor Java is here", run.stdout)
    assert "no moon" in run.stdout
    expected = "1 failed, 1 passed, 1 xfailed, 1 error" if refuse else "1 passed, 2 skipped, 1 xfailed"
    assert expected in run.stdout
    assert run.returncode == (1 if refuse else 0)


def test_what_is_left_out_as_slow_is_there() -> None:
    """A file that was renamed would run again with the quick ones."""
    tests = Path(conftest.__file__).parent
    assert [name for name in conftest.SLOW if not (tests / name).exists()] == []
