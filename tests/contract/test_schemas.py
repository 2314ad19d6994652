"""The published contracts: generated files that follow the models, examples that both of them judge alike."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from backends import ROOT
from holdfast.adapters import asyncapi
from holdfast.adapters.service import run_service
from holdfast.settings import Settings
from holdfast_schemas import TOPICS, Contract, DeletedHeaders, Header, parse_control

PUBLISHED = ROOT / "schemas" / "v1"
EXAMPLES = sorted((ROOT / "schemas" / "examples").glob("*.json"))
VALID = [path for path in EXAMPLES if not path.name.endswith(".invalid.json")]
INVALID = [path for path in EXAMPLES if path.name.endswith(".invalid.json")]
SCHEMAS = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_bytes())
    for path in sorted(PUBLISHED.glob("*.schema.json"))
}
DOCUMENT = json.loads((PUBLISHED / "asyncapi.json").read_bytes())

BEYOND_JSON_SCHEMA = {
    "prediction.value-is-not-finite.invalid.json": "a number's size is the parser's business",
    "blocked-headers.findings-are-not-json.invalid.json": "contentSchema describes and does not refuse",
    "blocked-headers.empty-findings.invalid.json": "contentSchema describes and does not refuse",
    "tally.more-blocked-than-seen.invalid.json": "sums are beyond it",
}


def models() -> dict[str, type[BaseModel]]:
    found: list[type[BaseModel]] = [asyncapi.Findings, DeletedHeaders]
    for topic in TOPICS.values():
        found += [*topic.messages, *([topic.headers] if topic.headers else [])]
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "-", model.__name__).lower(): model for model in found}


MODELS = models()


def parse(path: Path) -> BaseModel:
    """As a service does it: what is in `holdfast.control` is told apart by its type."""
    kind, raw = path.name.partition(".")[0], path.read_bytes()
    return parse_control(raw) if kind in {"tally", "command"} else MODELS[kind].model_validate_json(raw)


def refusals(path: Path) -> list[str]:
    """What the published schema says against an example."""
    schema = SCHEMAS[path.name.partition(".")[0]]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(json.loads(path.read_bytes()))]


# What is generated


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_published_files_are_what_the_models_say(seed: str, tmp_path: Path) -> None:
    """`make schemas` writes the same bytes in any process; who changes a model commits what it writes."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {"PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "holdfast.cli", "schemas", str(tmp_path / "v1")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "v1").iterdir()}
    committed = {path.name: path.read_text(encoding="utf-8") for path in PUBLISHED.iterdir()}
    assert written == committed, "run `make schemas` and commit schemas/v1"


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_schema_is_one_and_says_what_its_contract_is_for(name: str) -> None:
    """Valid by the draft that it names, with a title and a description."""
    schema = SCHEMAS[name]
    assert schema["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["description"]
    for member, content in schema.get("properties", {}).items():
        assert "title" not in content, f"{member}: a title made from the name says nothing"


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for child in node.values() for found in references(child)]
    return [found for child in node for found in references(child)] if isinstance(node, list) else []


def test_the_asyncapi_document_holds_together() -> None:
    """Every reference leads somewhere; every topic is a channel; operations use the messages of their channel."""
    for reference in references(DOCUMENT):
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert {role: channel["address"] for role, channel in DOCUMENT["channels"].items()} == {
        role: topic.default_name for role, topic in TOPICS.items()
    }
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])
    allowed = re.compile(r"^[A-Za-z0-9._-]+$")  # AsyncAPI's own rule for component names
    assert all(allowed.match(name) for part in DOCUMENT["components"].values() for name in part)


def test_the_asyncapi_document_describes_every_header_that_holdfast_adds() -> None:
    """Approved, blocked and malformed records each say which headers they carry."""
    described = {
        role: set(DOCUMENT["components"]["schemas"][message["headers"]["$ref"].rpartition("/")[2]]["properties"])
        for role in ("approved", "blocked", "malformed")
        for name in DOCUMENT["channels"][role]["messages"]
        for message in [DOCUMENT["components"]["messages"][name]]
    }
    assert set().union(*described.values()) == {header.value for header in Header}
    assert {"holdfast-findings", "holdfast-source", "holdfast-verdict"} <= described["blocked"]
    assert described["malformed"] == {
        "holdfast-error",
        "holdfast-error-kind",
        "holdfast-policy",
        "holdfast-model",
        "holdfast-model-version",
        "holdfast-source",
        "holdfast-produced-at",
    }


def test_the_document_follows_the_configured_names() -> None:
    """Another topic name is another address."""
    settings = Settings(topics={"approved": "prices.checked"}, kafka={"bootstrap_servers": "kafka-1:9093"})
    document = asyncapi.document(settings)
    assert document["channels"]["approved"]["address"] == "prices.checked"
    assert document["servers"]["kafka"]["host"] == "kafka-1:9093"


async def test_each_service_shows_every_topic_on_a_page_that_loads_nothing(unused_port: int) -> None:
    """It works without the internet: no script, style, image or frame, and no link but to its own JSON."""
    stopping = asyncio.Event()

    async def nothing() -> None:
        pass

    async def until_told() -> None:
        await stopping.wait()

    service = asyncio.create_task(
        run_service(
            "guard",
            Settings(),
            host="127.0.0.1",
            port=unused_port,
            start=nothing,
            run=until_told,
            stop=nothing,
            ready=lambda: None,
        )
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_port}") as client:
        while True:
            try:
                response = await client.get("/asyncapi")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
        document = (await client.get("/asyncapi.json")).json()
    stopping.set()
    await service
    # It needs no login, so it does not say where the brokers are.
    assert document == {name: value for name, value in DOCUMENT.items() if name != "servers"}
    page = response.text
    for topic in TOPICS.values():
        assert f"<code>{topic.default_name}</code>" in page
        for contract in topic.messages:
            assert f'id="schema-{contract.__name__}"' in page
    assert re.findall(r"<(?:script|link|img|iframe|object|embed|base|form)\b|url\(|@import", page) == []
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert {link for link in links if not link.startswith("#")} == {"asyncapi.json"}
    assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The examples


def test_every_contract_has_examples_of_both_sorts() -> None:
    """One file a case, named after its contract."""
    for paths in (VALID, INVALID):
        assert {path.name.partition(".")[0] for path in paths} == set(MODELS) == set(SCHEMAS)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_example_is_accepted_by_the_model_and_the_schema(path: Path) -> None:
    """Parsed, written and parsed again it is the same, and what was written is valid too."""
    value = parse(path)
    assert refusals(path) == []
    written = value.to_json() if isinstance(value, Contract) else value.model_dump_json().encode()
    assert type(value).model_validate_json(written) == value
    schema = SCHEMAS[path.name.partition(".")[0]]
    jsonschema.Draft202012Validator(schema).validate(json.loads(written))


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_example_is_refused_by_the_model_and_the_schema(path: Path) -> None:
    """Where JSON Schema cannot say it, the model alone refuses."""
    with pytest.raises(ValidationError):
        parse(path)
    assert bool(refusals(path)) is (path.name not in BEYOND_JSON_SCHEMA)


def test_the_example_of_the_design_is_among_them() -> None:
    """Byte for byte what the wire contract shows, but for white space."""
    shown = (
        '{"prediction_id":"p-1","model":"pricing","model_version":"v42","entity_id":"SKU-1","value":129.99,'
        '"currency":"USD","predicted_at":"2026-11-24T10:00:00Z","segment":"cameras",'
        '"features":{"cost":80.5,"list_price":150.0}}'
    )
    path = ROOT / "schemas" / "examples" / "prediction.design.json"
    assert json.dumps(json.loads(path.read_bytes()), separators=(",", ":")) == shown
    assert parse(path).to_json().decode() == shown
