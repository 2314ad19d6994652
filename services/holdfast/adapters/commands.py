"""Send a command and wait for its outcome; read the routes."""

import asyncio

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from holdfast.adapters.kafka import KafkaUnavailable, check_topics, read_to_end, reader, unreachable
from holdfast.settings import Settings
from holdfast_schemas import AuditRecord, Command, Route

OUTCOME_WITHIN = 15.0
"""Seconds to wait for the switch."""


async def send_command(settings: Settings, command: Command) -> AuditRecord:
    """Write the command to `holdfast.control` and return its audit record.

    Raises KafkaUnavailable, also when no switch answers in time; the command may then still be applied later.
    """
    counts = await check_topics(settings, ["control", "audit"])
    tps = [TopicPartition(settings.topics.audit, number) for number in range(counts["audit"])]
    answers = reader(settings.kafka, fetch_max_wait_ms=50)
    producer = AIOKafkaProducer(enable_idempotence=True, **settings.kafka.client_options())
    try:
        await answers.start()
        await producer.start()
        answers.assign(tps)
        # From here on, before the command is written, so that its outcome cannot be missed.
        for tp, end in (await answers.end_offsets(tps)).items():
            answers.seek(tp, end)
        await producer.send_and_wait(settings.topics.control, command.to_json(), key=command.model.encode())
        async with asyncio.timeout(OUTCOME_WITHIN):
            while True:
                for records in (await answers.getmany(timeout_ms=1000)).values():
                    for record in records:
                        audit = AuditRecord.model_validate_json(record.value)
                        if audit.command_id == command.command_id:
                            return audit
    except TimeoutError:
        raise KafkaUnavailable(
            f"The command was written, but no switch answered within {OUTCOME_WITHIN:g} s. Start a switch: it will "
            f"be carried out then (command {command.command_id}); see: holdfast route show {command.model}"
        ) from None
    except KafkaError as error:
        raise KafkaUnavailable(unreachable(settings.kafka, error)) from None
    finally:
        await producer.stop()
        await answers.stop()


async def read_routes(settings: Settings) -> dict[str, Route]:
    """The routes of all models as they are now. Raises KafkaUnavailable."""
    counts = await check_topics(settings, ["routes"])
    routes: dict[str, Route] = {}
    await read_to_end(
        settings.kafka,
        [TopicPartition(settings.topics.routes, number) for number in range(counts["routes"])],
        lambda records: routes.update(
            (route.model, route)
            for record in records
            if record.value is not None
            for route in (Route.model_validate_json(record.value),)
        ),
    )
    return routes
