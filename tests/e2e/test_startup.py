"""What a worker says when it cannot start or go on: one sentence of what is wrong and one of what to do."""

import asyncio
import os
import re
import subprocess
import sys

import pytest
import pytest_asyncio

from backends import private_kafka
from e2e.stack import POLICY, Stack
from holdfast.adapters.embedded import free_port

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    """Topics, and one guard that runs."""
    folder = tmp_path_factory.mktemp("startup")
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=folder) as stack:
        await stack.start("guard")
        (folder / "broken").mkdir()
        (folder / "broken" / "pricing.toml").write_text(f'model = "pricing"\n{POLICY}\nmax_blokced_ratio = 0.1\n')
        (folder / "kind").mkdir()
        (folder / "kind" / "pricing.toml").write_text('model = "pricing"\n[[checks]]\nname = "x"\nkind = "rnage"\n')
        yield stack


async def fails_to_start(stack, service, settings, environment):
    """What it said, once it has ended with 1."""
    merged = {service: {"port" if service == "api" else "health_port": 0}}
    for section, values in settings.items():
        merged[section] = {**merged.get(section, {}), **values} if isinstance(values, dict) else values
    config = stack.write_config(f"{service}-refused", merged)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "holdfast.cli", service, "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    return said


CASES = {
    "a missing topic": (
        "guard",
        {"topics": {"approved": "nowhere"}},
        {},
        r"^The topic nowhere does not exist\. Create the topics with: holdfast topics create$",
    ),
    "a missing topic of the switch": (
        "switch",
        {"topics": {"state": "nowhere"}},
        {},
        r"^The topic nowhere does not exist\. Create the topics with: holdfast topics create$",
    ),
    "no broker": (
        "guard",
        {"kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}"}},
        {},
        r"^No Kafka broker answers at 127\.0\.0\.1:\d+\. Start it, or set kafka\.bootstrap_servers ",
    ),
    "no broker for the switch": (
        "switch",
        {"kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}"}},
        {},
        r"^No Kafka broker answers at 127\.0\.0\.1:\d+\. Start it, or set kafka\.bootstrap_servers ",
    ),
    "an unknown key in a policy": (
        "guard",
        {"policies": "FOLDER/broken"},
        {},
        r"broken/pricing\.toml: breaker\.max_blokced_ratio: there is no such key; .*max_blocked_ratio",
    ),
    "an unknown kind of check": (
        "switch",
        {"policies": "FOLDER/kind"},
        {},
        r"kind/pricing\.toml: checks\[x\]: there is no check kind 'rnage'; the kinds are .*range",
    ),
    "no policies": ("guard", {"policies": "FOLDER/none"}, {}, r"FOLDER/none: there is no such folder; set `policies`"),
    "an unknown key in the configuration": (
        "guard",
        {"guard": {"grupe": "x"}},
        {},
        r"^Configuration refused \(.*guard-refused\.toml .*\): guard\.grupe: there is no such key; .*group",
    ),
    "an unknown section in the environment": (
        "guard",
        {},
        {"HOLDFAST_KAFAK__BOOTSTRAP_SERVERS": "x:1"},
        r"^The environment variable HOLDFAST_KAFAK__BOOTSTRAP_SERVERS names no setting\. The sections are .*kafka",
    ),
    "an unknown key in the environment": (
        "guard",
        {},
        {"HOLDFAST_KAFKA__BOOTSTRAP_SERVER": "x:1"},
        r"kafka\.bootstrap_server: there is no such key; .*bootstrap_servers",
    ),
    "a login that would not be sent": (
        "guard",
        {"kafka": {"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": "u", "sasl_password": "SECRET"}},
        {},
        r"security_protocol is PLAINTEXT, which would send no login; set security_protocol = 'SASL_SSL'",
    ),
    "a login without TLS": (
        "guard",
        {
            "kafka": {
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_username": "u",
                "sasl_password": "SECRET",
            }
        },
        {},
        r"without TLS.*SASL_SSL",
    ),
    "an API in whose name nothing can be sent": (
        "api",
        {},
        {"LOGNAME": "holdfast"},
        r"^There is no login name that commands could be sent in\. Make a token with: holdfast api token create$",
    ),
    "a port that is taken": (
        "guard",
        {"guard": {"health_port": "PORT"}},
        {},
        r"^Port \d+ on 127\.0\.0\.1 cannot be used: Address already in use\. Set another port, or 0 for any\.$",
    ),
}


def filled(value, stack):
    if isinstance(value, dict):
        return {key: filled(one, stack) for key, one in value.items()}
    if value == "PORT":
        return stack.workers[0].port
    return value.replace("FOLDER", str(stack.folder))


@pytest.mark.parametrize("case", CASES)
async def test_what_is_wrong_is_said_in_a_sentence(stack, case):
    """Exit code 1, no traceback, no secret, and the sentence names what is wrong and what to do."""
    service, settings, environment, pattern = CASES[case]
    said = await fails_to_start(stack, service, filled(settings, stack), environment)
    assert re.search(pattern.replace("FOLDER", re.escape(str(stack.folder))), said), said
    assert "SECRET" not in said


@pytest.mark.parametrize("arguments", [["guard", "--nonsense"], ["gaurd"], ["switch", "extra"]])
async def test_a_usage_error_ends_with_2(arguments):
    """The command line says what it does not know."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "holdfast.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


async def test_a_switch_starts_without_redis_and_mirrors_when_it_comes(kafka, fresh_redis, tmp_path):
    """Redis is a projection: its absence is said in one line, and mended by itself."""
    fresh_redis.stop()
    async with Stack(kafka, fresh_redis.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        (switch,) = await stack.start("switch")
        assert (await stack.command("pricing", "promote", "v1"))["outcome"] == "applied"
        told = "routes are not mirrored to Redis; guards go on obeying Kafka"
        await stack.until(lambda: switch.told(told), "it says so")
        assert switch.metric("holdfast_redis_up") == 0
        await asyncio.to_thread(fresh_redis.start)
        await stack.until(lambda: switch.told("routes are mirrored to Redis"), "it says that it is mended")
        assert (await stack.redis_route("pricing"))[0] == "v1"
        assert len(switch.told(told)) == 1


async def test_a_route_that_cannot_be_read_stops_the_guard(kafka, redis_server, tmp_path):
    """Without the fences nothing may be approved: it ends with 1 and one sentence."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        (guard,) = await stack.start("guard")
        await stack.send([b"{"], role="routes", key=b"pricing")
        assert await asyncio.to_thread(guard.process.wait, 60) == 1
        last = guard.log.read_text().splitlines()[-1]
        assert last.startswith(f"The record {stack.topic('routes')}/0/0 is no route: Invalid JSON: ")
        assert last.endswith("remove that record, then start the guard again.")
        assert "Traceback" not in guard.log.read_text()


async def test_sigterm_ends_a_worker_whose_broker_is_frozen(redis_server, tmp_path):
    """Nobody answers, and the process ends all the same; it is not ready before."""
    with private_kafka() as broker:
        async with Stack(broker, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
            guard, switch = await stack.start("guard", "switch")
            await stack.send([stack.prediction("pricing", "v1", "E", 100.0)])
            await stack.until(lambda: stack.seen["approved"])
            broker.pause()
            try:
                for worker in (guard, switch):
                    await stack.until(lambda worker=worker: worker.get("/ready")[0] == 503)
                    assert worker.get("/ready")[1] == "Kafka does not answer\n"
                await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in (guard, switch)))
                assert [worker.process.returncode for worker in (guard, switch)] == [0, 0]
            finally:
                broker.resume()
