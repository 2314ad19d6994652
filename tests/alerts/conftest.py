"""The installation that the tests of runbooks and of the dashboard share."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import backends
from alerts.installation import Installation, install


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def installation(
    kafka: backends.Kafka, redis_server: backends.RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    """It ends with the tests of this package: its switch would announce its routes on the Redis of all others."""
    for program in ("prometheus", "prometheus-alertmanager", "amtool", "curl", "redis-cli"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here; on Debian: apt-get install prometheus prometheus-alertmanager curl")
    async with install(kafka, redis_server.url, tmp_path_factory.mktemp("alerts")) as found:
        yield found
