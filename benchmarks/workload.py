"""What the benchmarks send, and the policies that judge it."""

import asyncio
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

CHECKS = {
    "price_bounds": """
kind = "range"
field = "value"
min = 10.0
max = 25000.0
[checks.segment.cameras]
min = 50.0
""",
    "cost_bounds": """
kind = "range"
field = "features.cost"
min = 1.0
max = 20000.0
""",
    "list_price_bounds": """
kind = "range"
field = "features.list_price"
min = 1.0
max = 50000.0
""",
    "sku_floor": """
kind = "range"
field = "value"
table = "floors.csv"
""",
    "jump": """
kind = "max_change"
down = 0.5
up = 3.0
""",
    "above_cost": """
kind = "expression"
expression = "value >= 1.02 * cost"
""",
    "known_currency": """
kind = "one_of"
field = "currency"
values = ["USD", "EUR", "GBP"]
""",
    "fresh": """
kind = "freshness"
max_age = "12h"
""",
}
FIVE = ("price_bounds", "cost_bounds", "sku_floor", "above_cost", "known_currency")
"""The checks that need no memory and no clock, which the peers do too."""

BLOCKED: Mapping[str, Any] = {"value": 9.6}
"""Below every floor."""
DEFECTS: tuple[Mapping[str, Any], ...] = (
    {"value": 30_000.0},  # breaks price_bounds, by its maximum
    {
        "value": 45.0,
        "cost": 40.0,
    },  # breaks sku_floor; where the floor is low, price_bounds for cameras and nothing else
    {"cost": 0.5},  # breaks cost_bounds
    {"value": 55.0, "cost": 50.0},  # breaks sku_floor, where the floor is not low
    {"cost": 140.0, "value": 142.5},  # breaks above_cost
    {"cost": 100.0, "value": 102.0},  # breaks nothing, just so
    {"currency": "XYZ"},  # breaks known_currency
    {"currency": "EUR"},  # breaks nothing
)


@dataclass(frozen=True)
class Traffic:
    """What events are like. With `models` other than one they are of pricing-0, pricing-1, and so on."""

    size: int = 250
    """Bytes of an event, at least."""
    blocked: float = 0.0
    """The share of events that are `BLOCKED`."""
    defects: float = 0.0
    """The share of events that have one of `DEFECTS`."""
    entities: int = 100_000
    models: int = 1

    def model(self, entity: int) -> str:
        return "pricing" if self.models == 1 else f"pricing-{entity % self.models}"


def write_policies(directory: Path, traffic: Traffic, checks: Iterable[str] = tuple(CHECKS)) -> None:
    """A policy for each model, with the table of floors of its own entities."""
    directory.mkdir(parents=True)
    rows: dict[str, list[str]] = {}
    for entity in range(traffic.entities):
        rows.setdefault(traffic.model(entity), []).append(f"SKU-{entity:06d},{floor(entity)},\n")
    for model, floors in rows.items():
        table = "floors.csv" if traffic.models == 1 else f"{model}.csv"
        (directory / table).write_text("entity_id,min,max\n" + "".join(floors))
        parts = [f'model = "{model}"\n']
        for number, check in enumerate(checks):
            name = f"{check}_{number}"
            parts.append(f'[[checks]]\nname = "{name}"{CHECKS[check]}'.replace("floors.csv", table))
        (directory / f"{model}.toml").write_text("\n".join(parts))


def floor(entity: int) -> float:
    return 20.0 if entity % 10 < 2 else 60.0 + entity % 40


def event(number: int, traffic: Traffic, *, now: str, changes: Mapping[str, Any] | None = None) -> tuple[bytes, bytes]:
    """(key, value); `changes` are to the value, the cost and the currency of an event that no check blocks."""
    entity = number * 7919 % traffic.entities
    fields = {"value": round(130.0 + number % 20 + 0.25, 2), "cost": 80.5, "currency": "USD"} | dict(changes or {})
    value = {
        "prediction_id": f"p-{number:09d}",
        "model": traffic.model(entity),
        "model_version": "v42",
        "entity_id": f"SKU-{entity:06d}",
        "value": fields["value"],
        "currency": fields["currency"],
        "predicted_at": now,
        "segment": "cameras" if entity % 2 else "lenses",
        "features": {"cost": fields["cost"], "list_price": 150.0},
    }
    text = json.dumps(value, separators=(",", ":"))
    if len(text) < traffic.size:
        value["note"] = "x" * (traffic.size - len(text) - len(',"note":""'))
        text = json.dumps(value, separators=(",", ":"))
    return value["entity_id"].encode(), text.encode()


async def fill(bootstrap: str, topic: str, partitions: int, records: int, traffic: Traffic) -> None:
    """Write `records` events, evenly over the partitions, each entity always on the same one."""
    chance, now = random.Random(7), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=900_000, linger_ms=0)
    await producer.start()
    batches = [producer.create_batch() for _ in range(partitions)]
    pending: list[asyncio.Future[object]] = []
    for number in range(records):
        draw, changes = chance.random(), None
        if draw < traffic.blocked:
            changes = BLOCKED
        elif draw < traffic.blocked + traffic.defects:
            changes = chance.choice(DEFECTS)
        key, value = event(number, traffic, now=now, changes=changes)
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
