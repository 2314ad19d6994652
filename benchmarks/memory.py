"""What a guard remembers: bytes for each entity, and how soon a worker that was killed is ready again.

Bytes: a process of its own decodes, judges and learns batches of fresh events, each of another entity, as a guard
does; what it has grown by, as the operating system and as tracemalloc say, is divided by the entities. The same once
more for what is read back at the start. Ready: a guard judges as many predictions on a real Kafka, is killed with
SIGKILL and started at once; the time ends when its /ready says 200. Then a second guard joins, and leaves once both
are ready; the time until the first is ready with all partitions begins when the second has ended.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
import tomllib
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import workload  # noqa: E402
from contenders import PARTITIONS, Case, Contender, admin, committed, create, guard_command, running  # noqa: E402
from report import Part, Row, markdown, median  # noqa: E402
from workload import Traffic  # noqa: E402

from holdfast.adapters.embedded import free_port  # noqa: E402
from holdfast.core.grouping import decode_by_model  # noqa: E402
from holdfast.core.judge import judge, learn, remember  # noqa: E402
from holdfast.core.memory import Memory  # noqa: E402
from holdfast.core.policy import PolicySet, parse_policy  # noqa: E402

ENTITIES = 1_000_000
GOAL_BYTES, GOAL_SECONDS = 250, 15
BATCH = 5000
POLICY = 'model = "pricing"\n[[checks]]\nname = "jump"\nkind = "max_change"\ndown = 0.5\nup = 3.0\n'


def fill(how: str, entities: int, *, traced: bool) -> dict[str, float]:
    """Fill a memory, and say by how many bytes this process has grown, and how long it took."""
    policies = PolicySet.of([parse_policy(tomllib.loads(POLICY), "a benchmark")])
    policy, memory, process = policies.policies["pricing"], Memory(), psutil.Process()
    at, traffic = datetime.now(UTC), Traffic(entities=entities)

    def take(first: int, count: int, memory: Memory) -> None:
        raws = [workload.event(number, traffic, now=at.isoformat())[1] for number in range(first, first + count)]
        ((_, batch),), _ = decode_by_model(policies, raws)
        if how == "learnt":
            learn(memory, policy, batch.columns, judge(batch, policy, memory, None, at, model="pricing"))
        else:
            remember(memory, batch.columns, policy)

    take(0, BATCH, Memory())
    gc.collect()
    if traced:
        tracemalloc.start()
    before, began = process.memory_info().rss, time.monotonic()
    for first in range(0, entities, BATCH):
        take(first, min(BATCH, entities - first), memory)
    seconds = time.monotonic() - began
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] if traced else process.memory_info().rss - before
    assert len(memory) == entities
    return {"bytes": grown / entities, "seconds": seconds}


def filled(how: str, entities: int) -> dict[str, float]:
    """The same in processes of their own: with tracemalloc, which makes it slow, and without."""
    command = [sys.executable, __file__, "--fill", how, "--entities", str(entities)]
    plain, traced = (
        json.loads(subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE).stdout)
        for more in ([], ["--traced"])
    )
    return {"rss_bytes": plain["bytes"], "traced_bytes": traced["bytes"], "seconds": plain["seconds"]}


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def started(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A guard, until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.cli", "guard", "--config", str(config)], stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until(condition: Callable[[], bool], guard: subprocess.Popen[bytes], log: Path) -> float:
    """Seconds until it holds; the guard must run meanwhile."""
    began = time.monotonic()
    while not await asyncio.to_thread(condition):
        if guard.poll() is not None or time.monotonic() - began > 120:
            last = (await asyncio.to_thread(log.read_text))[-2000:]
            raise SystemExit(f"The guard did not become ready; its log:\n{last}")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def told(log: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] == event]


async def ready_again(bootstrap: str, directory: Path, entities: int) -> dict[str, float]:
    """Seconds until a guard that remembers so many entities is ready, after a kill -9 and after a rebalance."""
    policies = directory / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "pricing.toml").write_text(POLICY)
    prefix, ports = f"memory{int(time.time())}", (free_port(), free_port())
    case = Case(bootstrap, f"{prefix}.source", prefix, directory)
    configs = [directory / f"{prefix}.{number}.toml" for number in range(2)]
    logs = [directory / f"{prefix}.{number}.log" for number in range(2)]

    def command(case: Case) -> list[str]:
        words = guard_command("exactly_once")(case)
        text = Path(words[-1]).read_text()
        for number, (config, port) in enumerate(zip(configs, ports, strict=True)):
            own = text.replace("health_port = 0", f"health_port = {port}")
            config.write_text(f'worker = "guard-{number}"\nlog_format = "json"\n{own}')
        return [*words[:-1], str(configs[0])]

    await create(bootstrap, case.source)
    await workload.fill(bootstrap, case.source, PARTITIONS, entities, Traffic(entities=entities))
    guard = Contender("holdfast guard", command)
    async with admin(bootstrap) as client, running(guard, case) as process:
        while await committed(client, case) < entities:
            process.must_run()
            await asyncio.sleep(0.2)
        rss = process.rss_mb()
    # The block ends with a kill -9.
    with started(configs[0], logs[0]) as first:
        seconds = await until(lambda: ready(ports[0]), first, logs[0])
        rebuilt = told(logs[0], "memory rebuilt")
        assert sum(line["entities"] for line in rebuilt) == entities
        with started(configs[1], logs[1]) as other:
            await until(lambda: ready(ports[1]) and ready(ports[0]), other, logs[1])
            assert len(told(logs[0], "partitions assigned")[-1]["partitions"]) < PARTITIONS
            other.terminate()
            other.wait()
            back = await until(
                lambda: len(told(logs[0], "partitions assigned")[-1]["partitions"]) == PARTITIONS and ready(ports[0]),
                first,
                logs[0],
            )
    reading = max(line["seconds"] for line in rebuilt)
    return {"seconds": seconds, "reading_s": reading, "back_s": back, "rss_mb": rss}


async def _run(bootstrap: str, rounds: int, directory: Path, entities: int = ENTITIES) -> list[Row]:
    rows: list[Row] = []
    stamp = f"memory{int(time.time())}"
    for number in range(rounds):
        learnt, read_back = (filled(how, entities) for how in ("learnt", "read back"))
        ready = await ready_again(bootstrap, directory, entities)
        row = {"learnt": learnt, "read back": read_back, "ready": ready}
        rows.append({"round": f"{stamp}.{number}", "entities": entities, **row})
        print(f"round {number + 1}: {row}", file=sys.stderr)
    return rows


def _table(rows: Sequence[Row]) -> str:
    def figure(of: str, name: str) -> float:
        return median([row[of] for row in rows], name)

    lines = [
        [
            f"bytes an entity, {text}",
            f"{figure(how, 'rss_bytes'):.0f} ({figure(how, 'traced_bytes'):.0f} by tracemalloc)",
            f"at most {GOAL_BYTES}",
        ]
        for how, text in (("learnt", "learnt from predictions"), ("read back", "read back at the start"))
    ]
    ready = f"{figure('ready', 'seconds'):.1f} s ({figure('ready', 'reading_s'):.1f} s of it reading back)"
    lines.append(["ready again after kill -9", ready, f"at most {GOAL_SECONDS} s"])
    back = f"{figure('ready', 'back_s'):.1f} s"
    lines.append(["ready with all partitions, after another worker left", back, ""])
    lines.append(["resident before the kill", f"{figure('ready', 'rss_mb'):.0f} MB", ""])
    return markdown((f"of {rows[0]['entities']:,} entities", "measured", "goal"), lines)


MEMORY = Part(
    "Memory",
    f"""\
What a guard holds for each entity whose last approved value it remembers, in a process that decodes, judges and learns
as a guard does; and how soon a worker with {PARTITIONS} partitions that was killed and started at once says that it is
ready, its memory read back from the approved topic; and how soon one that gave up some partitions to a second worker,
and gets them back when that leaves, is ready with all of them: it reads back only what came since.""",
    lambda rounds: 4.0 * rounds,
    _run,
    _table,
)


def main() -> None:
    """Fill one memory, in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entities", type=int, required=True)
    parser.add_argument("--fill", choices=["learnt", "read back"], required=True)
    parser.add_argument("--traced", action="store_true")
    args = parser.parse_args()
    print(json.dumps(fill(args.fill, args.entities, traced=args.traced)))


if __name__ == "__main__":
    main()
