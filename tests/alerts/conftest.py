"""The installation that the tests of runbooks and of the dashboard share."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from installation import Installation, install

import backends


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def installation(
    kafka: backends.Kafka, redis_server: backends.RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    for program in ("prometheus", "prometheus-alertmanager", "amtool", "curl", "redis-cli"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here; on Debian: apt-get install prometheus prometheus-alertmanager curl")
    async with install(kafka, redis_server.url, tmp_path_factory.mktemp("alerts")) as found:
        yield found
