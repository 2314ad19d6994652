"""The model of the demo: diamond prices by least squares on real sales, and the version that forgets a step.

The data are 53,940 round-cut diamonds with their selling prices in US dollars, the `diamonds` data set of ggplot2
(MIT licence, Copyright (c) ggplot2 authors).
"""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stone:
    """One stone and what it sold for, in US dollars."""

    number: int
    carat: float
    cut: str
    color: str
    clarity: str
    price: float

    @property
    def entity_id(self) -> str:
        return f"STONE-{self.number:05d}"

    def __str__(self) -> str:
        return f"{self.carat:.2f} ct {self.cut}, {self.color}, {self.clarity}"


def load_stones() -> list[Stone]:
    """Every stone of the data set."""
    with files("holdfast.cli.demo").joinpath("diamonds.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as text:
        return [
            Stone(number, float(row["carat"]), row["cut"], row["color"], row["clarity"], float(row["price"]))
            for number, row in enumerate(csv.DictReader(text))
        ]


class PriceModel:
    """Least squares for the logarithm of the price, on log carat, its square, and one-hot cut, color and clarity."""

    def __init__(self, stones: Sequence[Stone]) -> None:
        self._levels = {
            name: sorted({getattr(stone, name) for stone in stones}) for name in ("cut", "color", "clarity")
        }
        target = np.log([stone.price for stone in stones])
        self._weights = np.linalg.lstsq(self._inputs(stones), target, rcond=None)[0]

    def _inputs(self, stones: Sequence[Stone]) -> Numbers:
        """(n, features)"""
        log_carat = np.log([stone.carat for stone in stones])
        columns = [np.ones(len(stones)), log_carat, log_carat**2]
        for name, levels in self._levels.items():
            values = [getattr(stone, name) for stone in stones]
            # The first level is the baseline.
            columns += [np.array([value == level for value in values], dtype=np.float64) for level in levels[1:]]
        return np.column_stack(columns)

    def log_prices(self, stones: Sequence[Stone]) -> Numbers:
        """(n,) what the least squares predict: logarithms of dollars."""
        predicted: Numbers = self._inputs(stones) @ self._weights
        return predicted

    def prices(self, stones: Sequence[Stone]) -> Numbers:
        """(n,) US dollars."""
        prices: Numbers = np.exp(self.log_prices(stones))
        return prices


def outputs(stones: Sequence[Stone]) -> dict[str, Numbers]:
    """What each version offers every stone for: v1 in dollars, v2 without having undone the logarithm."""
    model = PriceModel(stones)
    return {"v1": np.round(model.prices(stones), 2), "v2": np.round(model.log_prices(stones), 2)}
