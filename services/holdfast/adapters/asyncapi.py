"""The contracts for those who are not Python: JSON Schema, an AsyncAPI document, and a page to read it."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from pydantic import BaseModel, RootModel
from pydantic.json_schema import GenerateJsonSchema

from holdfast.settings import Settings
from holdfast_schemas import TOPICS, Contract, DeletedHeaders, Finding, Party, Topic

_THEIRS = {Party.PRODUCER, Party.CONSUMER}


class Findings(RootModel[tuple[Finding, ...]]):
    """The value of the header `holdfast-findings`."""


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # `Prediction Id` says no more than `prediction_id`


def _schemas(models: Iterable[type[BaseModel]], ref_template: str) -> dict[str, Any]:
    """Name to schema, of `models` and of all that they refer to."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=ref_template, schema_generator=_Generator)
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found


def _contracts() -> list[type[Contract]]:
    """Every message and every set of headers, once, in the order of the topics."""
    return list(
        dict.fromkeys(
            contract
            for topic in TOPICS.values()
            for contract in (*topic.messages, topic.headers)
            if contract is not None
        )
    )


def document(settings: Settings) -> dict[str, Any]:
    """The AsyncAPI 3.0 document: a channel for each topic, with what is in it and who writes and reads it."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for role, topic in TOPICS.items():
        said = _messages(role, topic)
        messages |= said
        channels[role] = {
            "address": getattr(settings.topics, role),
            "title": topic.default_name,
            "summary": topic.summary,
            "description": f"Written by {', '.join(topic.writers)}; read by {', '.join(topic.readers)}. "
            f"Key: {topic.key}.",
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in said},
            "bindings": {"kafka": _channel_binding(topic)},
        }
        for action, who in (("send", topic.writers), ("receive", topic.readers)):
            services = [party for party in who if party not in _THEIRS]
            if services and said:
                operations[f"{role}.{action}"] = {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{role}"},
                    "summary": f"By {', '.join(services)}.",
                    "messages": [{"$ref": f"#/channels/{role}/messages/{name}"} for name in said],
                }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Holdfast",
            "version": "1.0.0",
            "description": "A guardrail for live model predictions: every output is checked, what is not sane is "
            "blocked, and traffic moves back to the last good model version. Values are UTF-8 JSON, times RFC 3339 "
            "UTC; optional members are left out when absent.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": settings.kafka.bootstrap_servers,
                "protocol": "kafka-secure" if settings.kafka.security_protocol.endswith("SSL") else "kafka",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _schemas(_contracts(), "#/components/schemas/{model}")},
    }


def _messages(role: str, topic: Topic) -> dict[str, Any]:
    """Component name to AsyncAPI message."""
    common: dict[str, Any] = {
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": "0.5.0"}}
    }
    if topic.headers is not None:
        common["headers"] = {"$ref": f"#/components/schemas/{topic.headers.__name__}"}
    if not topic.messages and topic.headers is not None:
        return {
            f"{role}.Record": {
                "name": "Record",
                "title": "The record as it came",
                "summary": topic.summary,
                "contentType": "application/octet-stream",
                "payload": {},
                **common,
            }
        }
    return {
        f"{role}.{message.__name__}": {
            "name": message.__name__,
            "title": _words(message.__name__),
            "summary": (message.__doc__ or "").partition("\n")[0],
            "payload": {"$ref": f"#/components/schemas/{message.__name__}"},
            **common,
        }
        for message in topic.messages
    }


def _channel_binding(topic: Topic) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "cleanup.policy": [topic.cleanup],
        "max.message.bytes": topic.max_message_bytes,
    }
    if topic.cleanup == "delete":
        configuration["retention.ms"] = topic.retention_ms
    return {"topicConfiguration": configuration, "bindingVersion": "0.5.0"}


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


def files(settings: Settings) -> dict[str, str]:
    """Every generated file by name: one JSON Schema for each message and set of headers, and the AsyncAPI document."""
    contents: dict[str, Any] = {"asyncapi.json": document(settings)}
    published: list[type[BaseModel]] = [*_contracts(), DeletedHeaders, Findings]
    for contract in published:
        schema = contract.model_json_schema(schema_generator=_Generator)
        name = _words(contract.__name__).lower().replace(" ", "-")
        contents[f"{name}.schema.json"] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return {
        name: json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, content in contents.items()
    }


def without_servers(document: dict[str, Any]) -> dict[str, Any]:
    """The document for those who are not logged in: it does not say where the brokers are."""
    return {name: value for name, value in document.items() if name != "servers"}


def page(document: dict[str, Any]) -> str:
    """The AsyncAPI document as one HTML page that loads nothing."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["resolve"] = lambda reference: reference.rpartition("/")[2]
    environment.filters["kind"] = _kind
    return environment.from_string(template).render(api=document)


def _kind(schema: dict[str, Any]) -> str:
    """A property's type, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("format") == "date-time":
        return "time"
    if "contentSchema" in schema:
        return f"JSON text: {_kind(schema['contentSchema'])}"
    return str(schema.get("type", "anything"))
