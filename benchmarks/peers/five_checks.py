"""The five stateless checks of the benchmark's policy, one prediction a call, for the peers in Python."""

import csv
from pathlib import Path

CURRENCIES = {"USD", "EUR", "GBP"}


def read_floors(path: str) -> dict[str, float]:
    with Path(path).open(newline="") as rows:
        return {row["entity_id"]: float(row["min"]) for row in csv.DictReader(rows)}


def is_sane(
    floors: dict[str, float], entity: str, value: float, cost: float, currency: str | None, segment: str | None
) -> bool:
    return (
        (50.0 if segment == "cameras" else 10.0) <= value <= 25000.0
        and 1.0 <= cost <= 20000.0
        and value >= floors.get(entity, float("-inf"))
        and value >= 1.02 * cost
        and currency in CURRENCIES
    )
