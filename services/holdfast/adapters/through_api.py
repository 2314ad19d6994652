"""What the command line reads and commands where `api.url` is set: through the API, in the name of its token.

It needs no login to Kafka then. The API answers with the records that Kafka has, but for the state of a model, of which
it tells what the command line shows.
"""

import asyncio
import json
import math
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime
from typing import Any

import httpx

from holdfast.core.errors import HoldfastError, describe
from holdfast.core.model_state import ModelState
from holdfast.login import secret, tls_context
from holdfast.settings import ApiSettings, Settings
from holdfast_schemas import Action, AuditRecord, Command, Incident, Route, utc_now

LOOK_EVERY = 1.0
"""Seconds between two looks at a promotion."""
ANSWER_WITHIN = 30.0
"""Seconds; the API itself waits `api.outcome_within` for the switch."""
RELEASED_WITHIN = 150.0
"""Seconds for a request for releases; the API waits less for the guards."""
_OF_AN_INCIDENT = frozenset((Action.ACKNOWLEDGE, Action.RESOLVE))


class ApiUnavailable(HoldfastError):  # noqa: N818  the message says what is wrong
    """The API cannot be asked, or does not do what was asked; the message says why and what to do."""


def is_configured(settings: Settings) -> bool:
    return settings.api.url is not None


async def send(settings: Settings, command: Command) -> AuditRecord:
    """Send a command and return its audit record, whose actor is the token's. Raises ApiUnavailable."""
    said = json.loads(command.to_json())
    wanted = {"incident_id", "reason"} if command.action in _OF_AN_INCIDENT else said.keys() - {"actor", "command_id"}
    body = {name: said[name] for name in said.keys() & (wanted - {"type", "action"}) if said[name] != []}
    async with _client(settings.api) as client:
        answer = await _ask(
            client,
            "POST",
            f"/commands/{command.action.value}",
            json=body,
            headers={"Idempotency-Key": command.command_id},
            refused=True,
        )
    # A problem document has the audit record of the refusal.
    record = answer["outcome"] if isinstance(answer.get("outcome"), dict) else answer
    return AuditRecord.model_validate_json(json.dumps(record))


async def routes(settings: Settings) -> dict[str, Route]:
    """The routes of the models that the token may see. Raises ApiUnavailable."""
    async with _client(settings.api) as client:
        found = (await _ask(client, "GET", "/routes"))["items"]
    return {one["model"]: Route.model_validate_json(json.dumps(one)) for one in found}


async def states(settings: Settings, model: str | None = None) -> dict[str, ModelState]:
    """Route, end and versions of one model, or of all. Raises ApiUnavailable."""
    query = {"model": model} if model is not None else {}
    async with _client(settings.api) as client:
        found = {one["model"]: one for one in (await _ask(client, "GET", "/routes", params=query))["items"]}
        versions = (await _ask(client, "GET", "/versions", params=query))["items"]
    documents: dict[str, dict[str, Any]] = {}
    for name in {*found, *(one["model"] for one in versions)}:
        route = found.get(name)
        documents[name] = {
            "model": name,
            "route": route,
            "ends_at": route.get("ends_at") if route is not None else None,
            "versions": {one["version"]: one for one in versions if one["model"] == name},
        }
    return {name: ModelState.model_validate_json(json.dumps(one)) for name, one in documents.items()}


async def incidents(settings: Settings, left_out: Callable[[str], None]) -> dict[str, Incident]:
    """The incidents that the API keeps, by id. Of one that cannot be read `left_out` is told. Raises ApiUnavailable."""
    found: dict[str, Incident] = {}
    query: dict[str, Any] = {"limit": 500}
    async with _client(settings.api) as client:
        while True:
            page = await _ask(client, "GET", "/incidents", params=query)
            for one in page["items"]:
                try:
                    incident = Incident.model_validate_json(json.dumps(one))
                except ValueError:
                    left_out(
                        f"an incident of {settings.api.url} cannot be read. Use the version of Holdfast of the API."
                    )
                    continue
                found[incident.incident_id] = incident
            if (after := page.get("next")) is None:
                return found
            query["after"] = after


async def ask_for_releases(settings: Settings, action: str, since: datetime, body: Mapping[str, Any]) -> dict[str, Any]:
    """Have the API ask the guards; what they answered, which is nothing where nothing fits. Raises ApiUnavailable."""
    said = {name: value for name, value in body.items() if value not in (None, [], False)} | {"since": _ago(since)}
    async with _client(settings.api) as client:
        key = os.urandom(12).hex()
        answer: dict[str, Any] = await _ask(
            client,
            "POST",
            f"/commands/{action}",
            json=said,
            headers={"Idempotency-Key": key},
            timeout=RELEASED_WITHIN,
        )
    return answer


async def blocked(settings: Settings, since: datetime, query: Mapping[str, Any]) -> dict[str, Any]:
    """The latest blocked predictions, without their contents. Raises ApiUnavailable."""
    asked = {name: value for name, value in query.items() if value is not None} | {"since": _ago(since)}
    async with _client(settings.api) as client:
        found: dict[str, Any] = await _ask(client, "GET", "/blocked", params=asked)
    return found


async def malformed(settings: Settings, since: datetime, query: Mapping[str, Any]) -> dict[str, Any]:
    """What could not be decoded, without its contents. Raises ApiUnavailable."""
    asked = {name: value for name, value in query.items() if value is not None} | {"since": _ago(since)}
    async with _client(settings.api) as client:
        found: dict[str, Any] = await _ask(client, "GET", "/malformed", params=asked)
    return found


def _ago(since: datetime) -> str:
    """A time as the API takes it: how long ago it was, in whole seconds, or where these are too many in minutes."""
    seconds = max(1, math.ceil((utc_now() - since).total_seconds()))
    return f"{seconds}s" if seconds < 100_000 else f"{min(math.ceil(seconds / 60), 99_999)}m"


async def follow_state(settings: Settings, model: str) -> AsyncGenerator[ModelState, None]:
    """The state of a model, again and again. Raises ApiUnavailable."""
    while True:
        if (state := (await states(settings, model)).get(model)) is not None:
            yield state
        await asyncio.sleep(LOOK_EVERY)


def _client(settings: ApiSettings) -> httpx.AsyncClient:
    """Raises ApiUnavailable."""
    try:
        token = secret("api.token_file", settings.token, settings.token_file)
        context = tls_context(settings.ssl_ca_file)
    except ValueError as error:
        raise ApiUnavailable(f"The API cannot be asked: {error}.") from None
    if token is None:
        raise ApiUnavailable(
            f"api.url is {settings.url}, and there is no token for it. Set api.token_file, or HOLDFAST_API__TOKEN."
        )
    return httpx.AsyncClient(
        base_url=f"{(settings.url or '').rstrip('/')}/api/v1",
        headers={"Authorization": f"Bearer {token.strip()}"},
        timeout=ANSWER_WITHIN,
        verify=context,
    )


async def _ask(client: httpx.AsyncClient, method: str, path: str, *, refused: bool = False, **options: Any) -> Any:
    """The answer's document; with `refused` that of a command that the switch refused too. Raises ApiUnavailable."""
    where = str(client.base_url).removesuffix("/api/v1/")
    try:
        answer = await client.request(method, path, **options)
        document = answer.json()
    except httpx.HTTPError as error:
        raise ApiUnavailable(f"The API at {where} does not answer: {describe(error)}. Check api.url.") from None
    except ValueError:
        raise ApiUnavailable(
            f"What answers at {where} is not Holdfast's API (status {answer.status_code}). Check api.url."
        ) from None
    if answer.is_success or (refused and answer.status_code == 409 and "outcome" in document):
        return document
    raise ApiUnavailable(str(document.get("detail", f"The API at {where} answers with {answer.status_code}.")))
