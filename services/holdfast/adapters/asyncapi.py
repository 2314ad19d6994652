"""The table of topics as a FastStream broker that is never started: the source of the AsyncAPI document."""

import json
from typing import Any

from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from holdfast.settings import Settings
from holdfast_schemas import TOPICS


def broker(settings: Settings) -> KafkaBroker:
    """Every topic, with its messages and who writes and reads it."""
    described = KafkaBroker(settings.kafka.bootstrap_servers)
    for role, topic in TOPICS.items():
        for message in topic.messages:
            described.publisher(
                getattr(settings.topics, role),
                title=f"{role}.{message.__name__}",
                description=f"{topic.producer} → {topic.consumer}; key: {topic.key}. {message.__doc__ or ''}",
                schema=message,
            )
    return described


def document(settings: Settings) -> dict[str, Any]:
    """The AsyncAPI 3.0 document."""
    specification = AsyncAPI(broker(settings), title="Holdfast", version="1.0.0", schema_version="3.0.0")
    return dict(specification.to_specification().to_jsonable())


def files(settings: Settings) -> dict[str, str]:
    """Every generated file by name: one JSON Schema a message, and the AsyncAPI document."""
    messages = {message for topic in TOPICS.values() for message in topic.messages}
    schemas = {
        f"{message.__name__.lower()}.schema.json": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **message.model_json_schema(),
        }
        for message in messages
    }
    return {
        name: json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, content in {**schemas, "asyncapi.json": document(settings)}.items()
    }
