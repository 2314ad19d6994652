"""The five checks written the ordinary way in FastStream: one pydantic message a call, each publish awaited.

Usage: faststream_job.py BOOTSTRAP GROUP SOURCE APPROVED BLOCKED FLOORS
"""

import asyncio
import logging
import sys

import uvloop
from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from five_checks import is_sane, read_floors
from pydantic import BaseModel

bootstrap, group, source, approved_topic, blocked_topic, floors_path = sys.argv[1:]
floors = read_floors(floors_path)
broker = KafkaBroker(bootstrap, log_level=logging.DEBUG)
approved = broker.publisher(approved_topic)
blocked = broker.publisher(blocked_topic)


class Prediction(BaseModel, extra="allow"):
    prediction_id: str
    model: str
    model_version: str
    entity_id: str
    value: float
    currency: str | None = None
    segment: str | None = None
    features: dict[str, float]


# FastStream's own default for acknowledging; offsets are committed often, so that its progress can be seen.
@broker.subscriber(source, group_id=group, auto_offset_reset="earliest", auto_commit_interval_ms=200)
async def check(event: Prediction, message: KafkaMessage) -> None:
    sane = is_sane(floors, event.entity_id, event.value, event.features["cost"], event.currency, event.segment)
    await (approved if sane else blocked).publish(event, key=message.raw_message.key)


asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
asyncio.run(FastStream(broker).run())
