"""Reading from Kafka for an answer over HTTP: in turn, in time, and with a problem document where it does not come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from holdfast.api.http import ProblemError
from holdfast.kafka.errors import KafkaUnavailable


@contextlib.asynccontextmanager
async def read_within(seconds: float, turn: asyncio.Semaphore, what: str, advice: str) -> AsyncIterator[None]:
    """Wait for a turn and read, both within so many seconds. Raises ProblemError.

    `what` is read, as `The list`, and `advice` says how less of it can be asked for.
    """
    try:
        async with asyncio.timeout(seconds), turn:
            yield
    except KafkaUnavailable as error:
        raise ProblemError(503, "kafka-unavailable", "Kafka cannot be used", str(error)) from None
    except TimeoutError:
        raise ProblemError(
            503,
            "too-long",
            f"{what} took too long",
            f"It could not be read within {seconds:g} s. {advice}",
            headers={"Retry-After": "5"},
        ) from None
