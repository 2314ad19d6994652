"""The command line through the API: what it reads and commands, and what it says where that cannot be."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from abuse.site import SECRET, VISIBLE, Site
from holdfast.adapters import through_api
from holdfast.adapters.commands import follow_promotion, read_incidents, read_routes, read_state, read_states
from holdfast.adapters.through_api import ApiUnavailable
from holdfast.cli import route as operate
from holdfast.cli.terminal import Refused
from holdfast.settings import Settings, SettingsError, load_settings
from holdfast_schemas import AcceptedValue, Action, AuditRecord, Command, Outcome

HTTPS = "https://holdfast.example"


class Remote:
    """An API whose switch applies or refuses everything, and the settings of somebody's command line."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.sent, self.outcome = Site(folder), list[Command](), Outcome.APPLIED
        monkeypatch.setattr(self.site.api, "_send", self._answer)
        real = httpx.AsyncClient

        def client(**options: Any) -> httpx.AsyncClient:
            options.pop("verify")
            return real(**options, transport=httpx.ASGITransport(self.site.app))

        monkeypatch.setattr(through_api.httpx, "AsyncClient", client)
        monkeypatch.setattr(through_api, "LOOK_EVERY", 0.0)

    async def _answer(self, command: Command) -> AuditRecord:
        self.sent.append(command)
        said = {
            "audit_id": "a",
            "at": "2026-11-24T10:00:00Z",
            "model": command.model,
            "actor": command.actor,
            "action": command.action.value,
            "version": command.version,
            "outcome": self.outcome.value,
            "reason": command.reason,
            "detail": "as you say",
            "command_id": command.command_id,
            "epoch": 1,
        }
        return AuditRecord.model_validate_json(json.dumps(said))

    def settings(self, name: str = "admin", **api: Any) -> Settings:
        return Settings.model_validate({"api": {"url": HTTPS, "token": self.site.tokens.get(name, name), **api}})


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    return Remote(tmp_path, monkeypatch)


async def test_routes_states_and_incidents_are_those_of_the_api(remote: Remote) -> None:
    """The same records as Kafka has, of the models that the token may see."""
    board = remote.site.api.board
    assert await read_routes(remote.settings()) == board.routes
    assert await read_incidents(remote.settings(), pytest.fail) == board.incidents
    known = await read_states(remote.settings())
    assert {name: list(state.versions) for name, state in known.items()} == {VISIBLE: ["v1"], SECRET: ["v1"]}
    assert known[VISIBLE].route == board.routes[VISIBLE]
    assert set(await read_routes(remote.settings("limited"))) == {VISIBLE}
    assert await read_state(remote.settings("limited"), SECRET) is None


@pytest.mark.parametrize("action", list(Action))
async def test_every_command_is_sent_as_it_was_given(remote: Remote, action: Action) -> None:
    """In the name of the token, whatever the command line would say; once, by its id."""
    about: dict[str, Any] = {}
    if action in (Action.PROMOTE, Action.PIN, Action.ROLLBACK, Action.FENCE, Action.UNFENCE, Action.GOOD):
        about = {"version": "v1"}
    if action in (Action.ACKNOWLEDGE, Action.RESOLVE):
        about = {"incident_id": f"i-{VISIBLE}", "version": "v0"}
    if action is Action.ACCEPT_REFERENCE:
        about = {"references": (AcceptedValue(entity_id="SKU-1", value=2.5),)}
    if action is Action.UNDO_TRIPS:
        about = {"policy": "pricing@0123456789ab"}
    if action in (Action.PIN, Action.HOLD, Action.UNFENCE):
        about["expires_at"] = operate.utc_now()
    common = {"command_id": "c-1", "model": VISIBLE, "action": action, "reason": "r"}
    audit = await through_api.send(remote.settings(), Command(**common, **about, actor="the-cfo"))
    assert (audit.outcome, audit.actor) == (Outcome.APPLIED, "admin")
    (sent,) = remote.sent
    assert sent.actor == "admin"
    assert sent.model_dump(exclude={"actor", "command_id"}) == Command(**common, **about, actor="x").model_dump(
        exclude={"actor", "command_id"}
    )


async def test_a_refusal_of_the_switch_is_its_audit_record(remote: Remote) -> None:
    remote.outcome = Outcome.REFUSED
    command = Command(command_id="c", model=VISIBLE, action=Action.HOLD, actor="x", reason="r")
    audit = await through_api.send(remote.settings(), command)
    assert (audit.outcome, audit.detail) == (Outcome.REFUSED, "as you say")


@pytest.mark.parametrize(
    ("name", "model", "says"),
    [
        ("viewer", VISIBLE, "viewer has the role viewer, which may not hold"),
        ("limited", SECRET, "is limited to other models than salaries"),
        ("over", VISIBLE, "This needs a bearer token that the API knows"),
        ("hf_guess", VISIBLE, "This needs a bearer token that the API knows"),
        ("admin", "nobody", "There is no model nobody with a route or a policy here"),
    ],
)
async def test_what_the_api_refuses_is_one_sentence(remote: Remote, name: str, model: str, says: str) -> None:
    command = Command(command_id="c", model=model, action=Action.HOLD, actor="x", reason="r")
    with pytest.raises(ApiUnavailable, match=says):
        await through_api.send(remote.settings(name), command)
    assert remote.sent == []


async def test_an_api_that_is_not_there_and_one_that_is_another_are_told_apart(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the address, and never with the token."""

    async def nobody(*_: Any) -> None:
        raise httpx.ConnectError("refused")

    async def html(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    for app, says in ((nobody, "does not answer"), (html, "is not Holdfast's API")):
        monkeypatch.setattr(remote.site, "app", app)
        with pytest.raises(ApiUnavailable, match=says) as refused:
            await read_routes(remote.settings())
        assert "https://holdfast.example" in str(refused.value)
        assert remote.site.tokens["admin"] not in str(refused.value)
    without = Settings.model_validate({"api": {"url": HTTPS}})
    with pytest.raises(ApiUnavailable, match=r"there is no token for it\. Set api\.token_file"):
        await read_routes(without)


async def test_a_promotion_is_followed_until_it_is_good(remote: Remote) -> None:
    """As it is through Kafka."""
    site = remote.site
    promoted = await remote._answer(
        Command(command_id="c", model=VISIBLE, action=Action.PROMOTE, version="v1", actor="x", reason="r")
    )

    async def good() -> None:
        await asyncio.sleep(0.05)
        route = json.loads(site.api.board.routes[VISIBLE].to_json())
        versions = {"v1": {"state": "good", "activated": 1}}
        site.take("state", {"model": VISIBLE, "route": route, "versions": versions})

    changing = asyncio.create_task(good())
    changes = [change async for change in follow_promotion(remote.settings(), promoted)]
    await changing
    assert [change.action for change in changes] == ["earned_good"]


def test_the_token_says_who_acts(remote: Remote) -> None:
    """`--actor` would be believed by readers of the command, and by nobody else."""
    with pytest.raises(Refused, match=r"Leave out --actor"):
        operate.send(remote.settings(), Action.HOLD, VISIBLE, reason="r", actor="the-cfo")


@pytest.mark.parametrize(
    ("api", "says"),
    [
        ({"url": "http://holdfast.example"}, "the token would go to holdfast.example without TLS"),
        ({"url": "holdfast.example"}, "is not an address"),
        ({"url": "https://ann:x@holdfast.example"}, "url holds a login"),
        ({"url": HTTPS, "token": "a", "token_file": "b"}, "token and token_file are both set"),
    ],
)
def test_an_address_that_would_give_the_token_away_is_refused(
    api: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match=says):
        load_settings(api=api)
