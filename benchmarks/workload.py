"""What the benchmarks send: events of a chosen size, and the eight-check policy that judges them."""

import asyncio
import json
import random
from datetime import UTC, datetime
from pathlib import Path

from aiokafka import AIOKafkaProducer

ENTITIES = 100_000

POLICY = """
model = "pricing"

[[checks]]
name = "price_bounds"
kind = "range"
field = "value"
min = 10.0
max = 25000.0
[checks.segment.cameras]
min = 50.0

[[checks]]
name = "cost_bounds"
kind = "range"
field = "features.cost"
min = 1.0
max = 20000.0

[[checks]]
name = "list_price_bounds"
kind = "range"
field = "features.list_price"
min = 1.0
max = 50000.0

[[checks]]
name = "sku_floor"
kind = "range"
field = "value"
table = "floors.csv"

[[checks]]
name = "jump"
kind = "max_change"
down = 0.5
up = 3.0

[[checks]]
name = "above_cost"
kind = "expression"
expression = "value >= 1.02 * cost"

[[checks]]
name = "known_currency"
kind = "one_of"
field = "currency"
values = ["USD", "EUR", "GBP"]

[[checks]]
name = "fresh"
kind = "freshness"
max_age = "12h"
"""
NAMES = (
    "price_bounds",
    "cost_bounds",
    "list_price_bounds",
    "sku_floor",
    "jump",
    "above_cost",
    "known_currency",
    "fresh",
)


def write_policy(directory: Path) -> None:
    """The policy and its table of 100,000 floors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pricing.toml").write_text(POLICY)
    rows = (f"SKU-{number:06d},{floor(number)},\n" for number in range(ENTITIES))
    (directory / "floors.csv").write_text("entity_id,min,max\n" + "".join(rows))


def floor(number: int) -> float:
    return 60.0 + number % 40


def event(number: int, *, size: int, blocked: bool, now: str) -> tuple[bytes, bytes]:
    """(key, value) of `size` bytes; a blocked one is below every floor."""
    sku = number * 7919 % ENTITIES
    value = {
        "prediction_id": f"p-{number:09d}",
        "model": "pricing",
        "model_version": "v42",
        "entity_id": f"SKU-{sku:06d}",
        "value": 9.6 if blocked else round(130.0 + number % 20 + 0.25, 2),
        "currency": "USD",
        "predicted_at": now,
        "segment": "cameras" if sku % 2 else "lenses",
        "features": {"cost": 80.5, "list_price": 150.0},
    }
    text = json.dumps(value, separators=(",", ":"))
    if len(text) < size:
        value["note"] = "x" * (size - len(text) - len(',"note":""'))
        text = json.dumps(value, separators=(",", ":"))
    return value["entity_id"].encode(), text.encode()


async def fill(bootstrap: str, topic: str, partitions: int, records: int, *, size: int, blocked: float) -> None:
    """Write `records` events, evenly over the partitions, each entity always on the same one."""
    chance, now = random.Random(7), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=900_000, linger_ms=0)
    await producer.start()
    batches = [producer.create_batch() for _ in range(partitions)]
    pending: list[asyncio.Future[object]] = []
    for number in range(records):
        key, value = event(number, size=size, blocked=chance.random() < blocked, now=now)
        partition = int(key[4:]) % partitions
        if batches[partition].append(key=key, value=value, timestamp=None) is None:
            pending.append(await producer.send_batch(batches[partition], topic, partition=partition))
            batches[partition] = producer.create_batch()
            batches[partition].append(key=key, value=value, timestamp=None)
    for partition, batch in enumerate(batches):
        if batch.record_count():
            pending.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*pending)
    await producer.stop()


def number_of(value: bytes) -> int:
    """The number that `event` was made with."""
    start = value.index(b'"p-') + 3
    return int(value[start : start + 9])
