"""Who is measured: each contender is a process of its own that reads one topic and writes another.

A contender is given names that no other run uses; what it has done is what its consumer group has committed.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from holdfast.kafka.topics import create_all
from holdfast_schemas import TOPICS

HERE = Path(__file__).parent
PARTITIONS = 4
PATIENCE_S = 300


@dataclass(frozen=True)
class Case:
    """One run: names that no other run uses."""

    bootstrap: str
    source: str
    prefix: str
    directory: Path

    @property
    def group(self) -> str:
        return f"{self.prefix}-group"

    @property
    def approved(self) -> str:
        return f"{self.prefix}.approved"

    @property
    def blocked(self) -> str:
        return f"{self.prefix}.blocked"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.prefix}.log"


@dataclass(frozen=True)
class Contender:
    name: str
    command: Callable[[Case], list[str]]
    most: int | None = None
    """How many records it is given at most, where all would take it too long."""


def guard_command(delivery: str, policies: str = "policies", *, workers: int = 1) -> Callable[[Case], list[str]]:
    """`policies`: the folder of its policies, in the directory of the case."""

    def command(case: Case) -> list[str]:
        config = case.directory / f"{case.prefix}.toml"
        names = "\n".join(f'{role} = "{case.prefix}.{role}"' for role in TOPICS if role != "predictions")
        config.write_text(
            f'policies = "{case.directory / policies}"\n'
            f'[kafka]\nbootstrap_servers = "{case.bootstrap}"\n'
            f'[topics]\npredictions = "{case.source}"\n{names}\n'
            f"[topic_settings]\npartitions = {PARTITIONS}\ncontrol_partitions = 1\n"
            f'[guard]\ngroup = "{case.group}"\ndelivery = "{delivery}"\nstart_from = "earliest"\nhealth_port = 0\n'
            # The events are written to partitions by their entity's number.
            'partitioner = "other"\n'
        )
        holdfast = [sys.executable, "-m", "holdfast.cli"]
        # The topics of the verdicts are there already, as every contender gets them.
        create_all_topics = [*holdfast, "topics", "create", "--fix", "--config", str(config)]
        subprocess.run(create_all_topics, check=True, capture_output=True)
        guard = [*holdfast, "guard", "--config", str(config)]
        return guard if workers == 1 else ["sh", "-c", '"$@" & ' * workers + "wait", "sh", *guard]

    return command


def passthrough_command(fetch_mib: int) -> Callable[[Case], list[str]]:
    def command(case: Case) -> list[str]:
        words = (case.bootstrap, case.group, case.source, case.approved, str(fetch_mib * 1024 * 1024))
        return [sys.executable, str(HERE / "passthrough.py"), *words]

    return command


PASSTHROUGH = Contender("raw aiokafka pass-through", passthrough_command(4))
"""Tuned as the guard is."""
PLAIN_PASSTHROUGH = Contender("plain aiokafka pass-through", passthrough_command(1))
GUARD = Contender("holdfast guard, exactly once", guard_command("exactly_once"))
GUARD_AT_LEAST_ONCE = Contender("holdfast guard, at least once", guard_command("at_least_once"))
GUARD_OF_FIVE = Contender("holdfast guard of five checks, exactly once", guard_command("exactly_once", "five-checks"))
TWO_GUARDS = Contender("two holdfast guards, exactly once", guard_command("exactly_once", workers=2))
TWO_GUARDS_OF_FIVE = Contender(
    "two holdfast guards of five checks, exactly once", guard_command("exactly_once", "five-checks", workers=2)
)


class Running:
    """A contender's process while it works."""

    def __init__(self, contender: Contender, case: Case, process: subprocess.Popen[bytes]) -> None:
        self._contender, self._case, self._process = contender, case, process
        self._tree = psutil.Process(process.pid)
        self.started = time.monotonic()

    def must_run(self) -> None:
        """Raises SystemExit when the process has ended, or has had more than `PATIENCE_S` seconds."""
        if self._process.poll() is not None or time.monotonic() - self.started > PATIENCE_S:
            tail = self._case.log.read_text()[-2000:]
            raise SystemExit(f"{self._contender.name} did not finish; the end of its log:\n{tail}")

    def cpu_seconds(self) -> float:
        """Of the process and its children."""
        processes = [self._tree, *self._tree.children(recursive=True)]
        return float(sum(sum(process.cpu_times()[:2]) for process in processes))

    def rss_mb(self) -> float:
        processes = [self._tree, *self._tree.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes) / 1e6


@contextlib.asynccontextmanager
async def running(contender: Contender, case: Case) -> AsyncIterator[Running]:
    """Its topics are made, its process is started, and is gone after the block."""
    await create(case.bootstrap, case.approved, case.blocked)
    command = await asyncio.to_thread(contender.command, case)
    with case.log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)  # noqa: ASYNC220  it does not block
    try:
        yield Running(contender, case, process)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (process, *children):
            one.kill()
        process.wait()


@contextlib.asynccontextmanager
async def admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def create(bootstrap: str, *topics: str) -> None:
    async with admin(bootstrap) as client:
        await create_all(client, [NewTopic(topic, PARTITIONS, 1) for topic in topics])


async def remove(bootstrap: str, *topics: str) -> None:
    async with admin(bootstrap) as client:
        await client.delete_topics(list(topics))


async def committed(client: AIOKafkaAdminClient, case: Case) -> int:
    """How many records of the source the group is through with."""
    try:
        offsets = await client.list_consumer_group_offsets(case.group)
    except GroupCoordinatorNotAvailableError:
        return 0  # a fresh broker is still making the topic of offsets
    return sum(known.offset for tp, known in offsets.items() if tp.topic == case.source and known.offset > 0)
