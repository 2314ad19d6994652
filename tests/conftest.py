"""Fixtures for the servers, and what becomes of the tests whose server cannot be had."""

import faulthandler
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import settings

import backends

# A busy machine is no defect: no test fails on a clock.
settings.register_profile("holdfast", deadline=None)
settings.load_profile("holdfast")

# A run in the background may have been started with Ctrl-C ignored, and what it starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REFUSE_SKIPS = bool(os.environ.get("HOLDFAST_REFUSE_SKIPS", "").strip("0"))
EVERYTHING = REFUSE_SKIPS or bool(os.environ.get("HOLDFAST_TEST_ALL", "").strip("0"))

SLOW = (
    "abuse/",
    "alerts/test_dashboard.py",
    "alerts/test_metrics.py",
    "alerts/test_paging.py",
    "alerts/test_runbooks.py",
    "contract/test_audit_cycles.py",
    "contract/test_backends.py",
    "contract/test_redis_failover.py",
    "e2e/test_added_partitions.py",
    "e2e/test_api.py",
    "e2e/test_audit.py",
    "e2e/test_begin.py",
    "e2e/test_commands.py",
    "e2e/test_compacted.py",
    "e2e/test_compressed.py",
    "e2e/test_console.py",
    "e2e/test_demo.py",
    "e2e/test_doctor.py",
    "e2e/test_evidence.py",
    "e2e/test_guard_survives.py",
    "e2e/test_interrupts.py",
    "e2e/test_keyless.py",
    "e2e/test_log_positions.py",
    "e2e/test_malformed.py",
    "e2e/test_notify.py",
    "e2e/test_other_partitioner.py",
    "e2e/test_policies_live.py",
    "e2e/test_policy_mistakes.py",
    "e2e/test_promotion.py",
    "e2e/test_references.py",
    "e2e/test_refused_records.py",
    "e2e/test_release.py",
    "e2e/test_rough_records.py",
    "e2e/test_security.py",
    "e2e/test_setting_offsets.py",
    "e2e/test_startup.py",
    "e2e/test_terminals.py",
    "e2e/test_topics.py",
    "e2e/test_up.py",
    "e2e/test_wheel.py",
    "faults/",
    "fuzz/",
    "test_repository.py",
)
"""What takes four fifths of the time: left out where nothing is said of which tests to run, as `make test` does it."""

# Programs that tests use where they are: what is looked for, and Debian's package.
PROGRAMS = {
    ("redis-server",): "redis-server",
    ("prometheus",): "prometheus",
    ("promtool",): "prometheus",
    ("prometheus-alertmanager", "alertmanager"): "prometheus-alertmanager",
    ("amtool",): "prometheus-alertmanager",
    ("chromium", "chromium-browser", "google-chrome"): "chromium",
    ("java",): "default-jre-headless",
    ("mvn",): "maven",
    ("go",): "golang-go",
    ("faketime",): "faketime",
    ("curl",): "curl",
}


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


@pytest.fixture(autouse=True)
def _logs_as_they_are_by_default() -> Iterator[None]:
    """A command that ran in this process has sent the logs to a stream that is closed by now."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def unique() -> str:
    """A prefix for the topics, groups and models of one test."""
    return f"t{uuid.uuid4().hex[:8]}"


def _uses_kafka(item: pytest.Item) -> bool:
    return item.get_closest_marker("real_kafka") is not None or "kafka" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    real = [item for item in items if item.get_closest_marker("real_kafka")]
    if real and backends.choose_kafka().kind == "embedded":
        skip = pytest.mark.skip(reason=f"needs a real Kafka: {backends.choose_kafka().why}")
        for item in real:
            item.add_marker(skip)
    chosen = config.option.keyword or config.option.markexpr or config.args_source is config.ArgsSource.ARGS
    slow = [] if EVERYTHING or chosen else [item for item in items if _is_slow(item)]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
        config.stash[LEFT_OUT] = len(slow)


LEFT_OUT = pytest.StashKey[int]()


def _is_slow(item: pytest.Item) -> bool:
    tests = backends.ROOT / "tests"
    return item.path.is_relative_to(tests) and item.path.relative_to(tests).as_posix().startswith(SLOW)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for what did not run: how to switch it on, and what to install."""
    for line in config.stash.get(SERVERS, []):
        terminalreporter.write_line(line)
    said = []
    if left_out := config.stash.get(LEFT_OUT, 0):
        said.append(f"{left_out} slow tests were left out, which HOLDFAST_TEST_ALL=1 runs too")
    packages = {package for names, package in PROGRAMS.items() if not any(map(shutil.which, names))}
    if packages:
        said.append(
            f"tests of what is not installed were skipped; for them: apt-get install {' '.join(sorted(packages))}"
        )
    if said:
        terminalreporter.write_line(f"Not everything ran: {'; '.join(said)}.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End a process of pytest-xdist, with the stacks of its threads, when a test outlives its time limit by far.

    The limit raises an exception in the main thread, which ends neither a call of a C library nor the wait for a
    thread when the event loop is closed. The run then ends too. A single process may be in a debugger, and goes on.
    """
    if not hasattr(item.config, "workerinput"):
        return (yield)
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker else item.config.getini("timeout"))
    backstop = threading.Timer(2 * limit, _end_process, [item])
    backstop.daemon = True
    backstop.start()
    try:
        return (yield)
    finally:
        backstop.cancel()


def _end_process(item: pytest.Item) -> None:
    capture = item.config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture(in_=True)
    sys.stderr.write(f"{item.nodeid} did not end at its time limit.\n")
    faulthandler.dump_traceback()
    os._exit(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    yield from _skip_what_is_not_here()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _skip_what_is_not_here()


def _skip_what_is_not_here() -> Generator[None, None, None]:
    """A program that is not installed is the reason of a skip, wherever a test needs it."""
    try:
        yield
    except backends.NotInstalled as missing:
        pytest.skip(str(missing))


SERVERS = pytest.StashKey[list[str]]()


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    return [] if hasattr(config, "workerinput") else _servers(items)


def _servers(items: list[pytest.Item]) -> list[str]:
    needed = any(map(_uses_kafka, items))
    return [
        f"kafka: {backends.choose_kafka().name if needed else 'needed by none of these tests'}",
        f"redis: {backends.redis_name()}",
    ]


# With several workers each collects, and only the process that started them talks to the terminal.


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)
        output["servers"] = _servers(session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker collected."""
    output = getattr(node, "workeroutput", {})  # A worker that crashed left nothing.
    node.config.stash[LEFT_OUT] = output.get("left_out", 0)
    node.config.stash[SERVERS] = output.get("servers", [])


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
