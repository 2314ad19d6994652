"""Fixtures for the servers, and what becomes of the tests whose server cannot be had."""

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

import backends

# A busy machine is no defect: no test fails on a clock.
settings.register_profile("holdfast", deadline=None)
settings.load_profile("holdfast")

REFUSE_SKIPS = bool(os.environ.get("HOLDFAST_REFUSE_SKIPS", "").strip("0"))


@pytest.fixture(scope="session")
def kafka() -> Iterator[backends.Kafka]:
    """The broker that all tests share: `.bootstrap`, `.real`, `.create_topic`, `.create_topics`."""
    with backends.open_kafka() as broker:
        yield broker


@pytest.fixture
def fresh_kafka() -> Iterator[backends.RealKafka | backends.DockerKafka]:
    """A real broker of the test's own, running; it may be stopped, killed, paused and restarted."""
    try:
        broker = backends.private_kafka()
    except backends.BackendError as error:
        pytest.skip(f"needs a broker of its own: {error}")
    with broker:
        yield broker


@pytest.fixture(scope="session")
def redis_server() -> Iterator[backends.RedisServer]:
    """The Redis that all tests share; whoever disturbs it leaves it running."""
    with backends.RedisServer() as server:
        yield server


@pytest.fixture
def fresh_redis() -> Iterator[backends.RedisServer]:
    """A Redis of the test's own, running and empty."""
    with backends.RedisServer() as server:
        yield server


@pytest.fixture
def unique() -> str:
    """A prefix for the topics, groups and models of one test."""
    return f"t{uuid.uuid4().hex[:8]}"


def _uses_kafka(item: pytest.Item) -> bool:
    return item.get_closest_marker("real_kafka") is not None or "kafka" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    real = [item for item in items if item.get_closest_marker("real_kafka")]
    if real and backends.choose_kafka().kind == "embedded":
        skip = pytest.mark.skip(reason=f"needs a real Kafka: {backends.choose_kafka().why}")
        for item in real:
            item.add_marker(skip)


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    needed = any(map(_uses_kafka, items))
    return [
        f"kafka: {backends.choose_kafka().name if needed else 'needed by none of these tests'}",
        f"redis: {backends.redis_name()}",
    ]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    outcome = yield
    _refuse(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    outcome = yield
    _refuse(outcome.get_result())


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """CI runs every test: what would be skipped fails there."""
    if REFUSE_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"HOLDFAST_REFUSE_SKIPS is set, and this would be skipped: {reason}"
