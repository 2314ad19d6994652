"""The broker that the campaigns share, and where the figures of the long run go."""

import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import backends
from faults.campaign import LONG

RESULTS = backends.ROOT / "benchmarks" / "results"
BROKER = {"group.min.session.timeout.ms": "1000"}


@pytest.fixture(scope="module")
def broker() -> Iterator[backends.RealKafka | backends.DockerKafka]:
    """A real broker of the campaigns' own; who stops it starts it again."""
    try:
        broker = backends.private_kafka(BROKER)
    except backends.BackendError as error:
        pytest.skip(f"needs a broker of its own: {error}")
    with broker:
        yield broker


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, dict[str, Any]]]:
    """By scenario, what was done and what was found; the long run writes them down."""
    found: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    yield found
    if LONG and found:
        write(found, time.monotonic() - began)


def write(found: dict[str, dict[str, Any]], seconds: float) -> None:
    """`faults.json` and `faults.md`; scenarios of earlier runs that were not run now stay as they were."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "faults.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update({name: {**one, "date": f"{datetime.now(UTC):%Y-%m-%d}"} for name, one in found.items()})
    path.write_text(json.dumps(known, indent=2) + "\n")
    (RESULTS / "faults.md").write_text(report(known))


def report(found: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    kinds = list(next(iter(found.values()))["violations"])
    lines = [
        "# Faults",
        "",
        "Written by `make faults`: services under load, something that goes wrong, and `holdfast audit` at the end.",
        f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}, Apache Kafka 4.1.0.",
        "",
        "| scenario | date | guards / switches | done | predictions | fenced versions | violations |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    apart = {"guards", "switches", "predictions", "fenced versions", "violations", "date"}
    totals: dict[str, int] = {}
    for name, one in found.items():
        done = {key: value for key, value in one.items() if key not in apart}
        for key, value in done.items():
            if isinstance(value, int):
                totals[key] = totals.get(key, 0) + value
        lines.append(
            f"| {name} | {one['date']} | {one['guards']} / {one['switches']} | "
            f"{', '.join(f'{value} {key}' for key, value in done.items())} | {one['predictions']:,} | "
            f"{one['fenced versions']} | {sum(one['violations'].values())} |"
        )
    predictions = sum(one["predictions"] for one in found.values())
    lines += [
        "",
        f"In all: {', '.join(f'{value} {key}' for key, value in totals.items())}; {predictions:,} predictions.",
        "",
        "| kind of violation | found |",
        "|---|---:|",
        *(f"| {kind} | {sum(one['violations'][kind] for one in found.values())} |" for kind in kinds),
        "",
    ]
    return "\n".join(lines)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `make faults` only the short ones are there at all: what takes minutes is not skipped, but elsewhere."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        if LONG:
            item.add_marker(pytest.mark.timeout(7200))
    left_out = [] if LONG else [item for item in ours if item.get_closest_marker("long_faults")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
