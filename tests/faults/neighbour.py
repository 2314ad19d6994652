"""Another producer beside those that are measured, as a process of its own: `python neighbour.py KIND BROKERS TOPIC`.

KIND is `honest` or `hostile`. It writes `RATE` records a second until it is terminated, and then prints how many.
"""

import asyncio
import json
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer

RATE = 100
"""Records a second."""
MODEL = "theirs"
Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


def honest(number: random.Random) -> Record:
    """A sane output of the version that its model's route names, as long as one of `hostile` on average."""
    return *_event("v1", f"E{number.randrange(500)}", 5.0, features={f"f{n}": 0.5 for n in range(380)}), []


def hostile(number: random.Random) -> Record:
    """Whatever a producer can write, in the name of its own model and of models that do not exist."""
    draw, anything = number.random(), uuid.uuid4().hex
    forged = [("holdfast-verdict", b"approved"), ("holdfast-policy", b"probe@0123456789ab")]
    if draw < 0.4:
        return *_event(anything, f"E{number.randrange(50)}", 0.01), forged
    if draw < 0.6:
        return *_event(f"v{number.randrange(50)}", "\u0001" * 990 + anything[:8], 1e300), []
    if draw < 0.7:
        return *_event("v1", anything, 5.0, segment="\u0001" * 200 + anything), []
    if draw < 0.8:
        return *_event("v1", "E1", 5.0, model=f"model-{anything}"), []
    if draw < 0.85:
        return *_event("holdfast:others", "E1", float("nan"), predicted_at="\u2028" * 1000), []
    if draw < 0.995:
        garbage = (b"{", b"\xff" * 100, b"[" * 10_000, None, b"", b'{"model": "probe", "model": "theirs"}')
        return anything.encode(), number.choice(garbage), forged
    # Large as an event, and in the form in which it is stored nearly nothing.
    return *_event("v2", "E2", 5.0, features={f"f{n}": 0.0 for n in range(40_000)}), []


def _event(version: str, entity: str, value: float, **more: Any) -> tuple[bytes, bytes]:
    event = {
        "prediction_id": uuid.uuid4().hex,
        "model": MODEL,
        "model_version": version,
        "entity_id": entity,
        "value": value,
        "predicted_at": datetime.now(UTC).isoformat(),
    }
    return entity.encode(), json.dumps(event | more).encode()


async def main(record: Callable[[random.Random], Record], brokers: str, topic: str) -> int:
    number, sent, terminated = random.Random(7), 0, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    producer = AIOKafkaProducer(bootstrap_servers=brokers, compression_type="gzip", linger_ms=5, max_request_size=2**20)
    async with producer:
        due = time.monotonic()
        while not terminated.is_set():
            for _ in range(RATE // 20):
                key, value, headers = record(number)
                await producer.send(topic, value, key=key, headers=headers)
                sent += 1
            due = max(due + 0.05, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    return sent


if __name__ == "__main__":
    kinds = {"honest": honest, "hostile": hostile}
    print(asyncio.run(main(kinds[sys.argv[1]], *sys.argv[2:])))
