"""How long a command takes while a producer invents versions: `.venv/bin/python benchmarks/commands.py`.

A guard and a switch run on a real Kafka with one control partition, so that the commands of one model stand behind the
tallies of the other. Rounds of 10,000 predictions come in, each of another version; meanwhile another model is held and
resumed. The time of a command is from its sending to its record in the audit topic, as a committed reader sees it.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

import backends  # noqa: E402
from e2e.stack import POLICY, Stack  # noqa: E402

ROUNDS, COMMANDS, RECORDS = 5, 20, 10_000


async def timed(stack: Stack, number: int) -> list[float]:
    """Seconds of so many commands, one after the other."""
    found = []
    for place in range(number):
        started = time.monotonic()
        await stack.command("churn", "resume" if place % 2 else "hold")
        found.append(time.monotonic() - started)
    return found


async def run(bootstrap: str, folder: Path) -> None:
    with backends.RedisServer() as redis:
        policies = {"pricing": POLICY, "churn": POLICY}
        kafka = backends.GivenKafka(bootstrap)
        async with Stack(kafka, redis.url, policies, folder=folder, partitions=4) as stack:
            await stack.start("guard", "switch")
            idle, loaded = await timed(stack, ROUNDS * COMMANDS), []
            for round_ in range(ROUNDS):
                flood = [
                    stack.prediction("pricing", f"v-{round_}-{n}", f"E-{n}", 0.01 if n % 2 else 100.0)
                    for n in range(RECORDS)
                ]
                sending = asyncio.create_task(stack.send(flood))
                while not sending.done():
                    loaded += await timed(stack, 2)
                loaded += await timed(stack, COMMANDS)
                await sending
            for name, found in (("idle", idle), ("10,000 versions", loaded)):
                centiles = statistics.quantiles(found, n=100, method="inclusive")
                print(
                    f"{name}: {len(found)} commands, p50 {centiles[49] * 1000:.0f} ms, p99 {centiles[98] * 1000:.0f} "
                    f"ms, longest {max(found) * 1000:.0f} ms"
                )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, backends.open_kafka() as broker:
        asyncio.run(run(broker.bootstrap, Path(directory)))
