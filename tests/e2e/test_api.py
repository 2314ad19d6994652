"""The API as people and pipelines meet it: a real broker, a switch and the API as processes, and HTTP."""

import asyncio
import getpass
import stat
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import pytest_asyncio
import schemathesis
from schemathesis.checks import CHECKS, load_all_checks
from stack import POLICY, START_TOKEN, Stack, Worker, sign_in

from backends import Kafka, RedisServer
from e2e.commands import Said, holdfast
from holdfast.api.app import make_app
from holdfast.api.context import Api
from holdfast.api.tokens import MAY_SEND, Role, create_token
from holdfast.settings import Settings
from holdfast_schemas import Action

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHUNKED = object()
"""A body that comes in pieces, and does not say how long it is."""
MANY = 1_000_000
"""Commands a minute for tests that are not about the limit."""


class Served:
    """A stack with an API, and a client for each role."""

    def __init__(self, stack: Stack, api: Worker, tokens: dict[str, str], model: str = "pricing") -> None:
        self.stack, self.api, self.tokens, self.model = stack, api, tokens, model
        self.url = f"http://127.0.0.1:{api.port}"

    def __call__(self, name: str | None = "admin") -> httpx.AsyncClient:
        """A client with the token of `name`: viewer, operator or admin."""
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return httpx.AsyncClient(base_url=f"{self.url}/api/v1", headers=headers, timeout=60)

    async def post(self, action: str, name: str = "admin", key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        async with self(name) as client:
            if action not in ("acknowledge", "resolve"):
                body = {"model": self.model, **body}
            return await client.post(f"/commands/{action}", json={"reason": "a test", **body}, headers=headers)

    async def get(self, path: str, name: str | None = "viewer", **query: Any) -> httpx.Response:
        async with self(name) as client:
            return await client.get(path, params=query)

    async def shown(self, path: str, condition: Callable[[list[dict[str, Any]]], Any], **query: Any) -> Any:
        """The items of a list, once they are as awaited."""
        async with asyncio.timeout(30):
            while not condition(items := (await self.get(path, **query)).json()["items"]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return items


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document that this is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"] == f"urn:holdfast:problem:{kind}"
    assert document["title"]
    assert document["detail"].endswith(".")
    return document


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    kafka: Kafka, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """Switch and API, with a token of each role."""
    folder, tokens, lines = tmp_path_factory.mktemp("api"), {}, []
    for role in Role:
        tokens[role.value], line = create_token(f"{role.value}-ann", role)
        lines.append(line)
    (folder / "tokens").write_text("# who may come in\n" + "\n".join(lines) + "\n")
    settings = {"api": {"tokens_file": str(folder / "tokens"), "commands_per_minute": MANY, "outcome_within": "60s"}}
    async with Stack(kafka, redis_server.url, {}, folder=folder, settings=settings) as stack:
        api, _ = await stack.start("api", "switch")
        yield Served(stack, api, tokens)


@pytest.fixture
def served(site: Served, unique: str) -> Served:
    """The same, and a model of the test's own."""
    site.stack.write_policy(unique, POLICY)
    return Served(site.stack, site.api, site.tokens, unique)


async def test_a_restart_forgets_no_decision_for_a_big_release(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Nobody's command is pushed out by the records of released predictions, before a restart or after it."""
    changes = {"api": {"keep_audit": 100}}
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, settings=changes) as stack:
        api, _ = await stack.start("api", "switch")
        decided = [await stack.command("pricing", "promote", f"v{number}") for number in range(3)]
        released = [
            {**decided[0], "audit_id": f"released-{number}", "action": "release", "command_id": None}
            for number in range(5000)
        ]
        await stack.send(released, role="audit", key=b"pricing")
        served = Served(stack, api, {"viewer": START_TOKEN})
        for restarted in (False, True):
            if restarted:
                await asyncio.to_thread(api.restart)
                await stack.ready(api)
            found = await served.shown("/audit", lambda items: len(items) == 3, action="promote")
            assert [one["version"] for one in found] == ["v2", "v1", "v0"]
            of_release = await served.shown("/audit", lambda items: items, action="release", limit=1)
            assert of_release[0]["audit_id"].startswith("released-")


def tally(model: str, version: str, **counts: Any) -> dict[str, Any]:
    """What a guard would say: 100 seen, and by default all of them bad."""
    failed = counts.pop("failed", 100)
    return {
        "type": "tally",
        "model": model,
        "model_version": version,
        "policy": f"{model}@0123456789ab",
        "at": datetime.now(UTC).isoformat(),
        "worker": "w",
        "partition": 0,
        "first_offset": 0,
        "last_offset": 99,
        "seen": 100,
        "approved": 100 - failed,
        "blocked": failed,
        "failed": failed,
        "blocked_by_check": {"price_floor": failed} if failed else {},
        "entities": [f"SKU-{n}" for n in range(10)] if failed else [],
        **counts,
    }


async def test_a_commands_outcome_is_its_answer(served: Served) -> None:
    """Applied answers 200 with the audit record, in the name of the token; then the route and the audit show it."""
    answer = await served.post("promote", "operator", version="v1", reason="first release")
    assert answer.status_code == 200
    audit = answer.json()
    assert (audit["outcome"], audit["actor"], audit["action"]) == ("applied", "operator-ann", "promote")
    (route,) = await served.shown("/routes", lambda items: items, model=served.model)
    assert (route["version"], route["state"], route["reason"]) == ("v1", "auto", "first release")
    (version,) = await served.shown("/versions", lambda items: items, model=served.model)
    assert (version["version"], version["state"], version["active"]) == ("v1", "candidate", True)
    (kept,) = await served.shown("/audit", lambda items: items, model=served.model)
    assert kept == audit


async def test_a_refusal_says_why(served: Served) -> None:
    """409, with the switch's own words and its audit record."""
    document = problem(await served.post("unpin"), 409, "refused")
    assert document["detail"] == "Refused: the route is not pinned; there is nothing to end."
    assert document["outcome"]["outcome"] == "refused"
    await served.shown("/audit", lambda items: len(items) == 1, outcome="refused", model=served.model)


async def test_a_body_cannot_say_who_acts(served: Served) -> None:
    """The actor is whose token it is; a member that is not known is refused."""
    document = problem(await served.post("hold", actor="somebody-else"), 422, "invalid")
    assert [flaw["where"] for flaw in document["errors"]] == ["body.actor"]
    assert not served.stack.audits(served.model)


@pytest.mark.parametrize(
    ("lasts", "hours", "minutes"),
    [("30m", None, 30), (None, 2, 120), ("3h", 2, 120), ("30m", 2, 30)],
)
async def test_a_hold_ends_when_it_shall(served: Served, lasts: str | None, hours: int | None, minutes: int) -> None:
    """After a while, at a time, or at the earlier of both."""
    before = datetime.now(UTC)
    body = {"lasts": lasts} if lasts else {}
    if hours:
        body["expires_at"] = (before + timedelta(hours=hours)).isoformat()
    assert (await served.post("hold", **body)).status_code == 200
    (route,) = await served.shown("/routes", lambda items: items and items[0].get("ends_at"), model=served.model)
    assert route["state"] == "held"
    ends = datetime.fromisoformat(route["ends_at"])
    assert timedelta(minutes=minutes - 2) < ends - before < timedelta(minutes=minutes + 2)


async def test_a_trip_is_read_and_worked_on(served: Served) -> None:
    """The route, the incident with its evidence, and who acknowledged and resolved it; `unfence` needs an admin."""
    await served.post("promote", version="v1")
    sample = {
        "source": "predictions/0/7",
        # As it came: a number that JSON does not have.
        "prediction": {"entity_id": "<script>", "value": None, "odd": float("nan")},
        "findings": [{"check": "price_floor", "severity": "error", "enforced": True, "seen": 1.5, "limit": 10.0}],
    }
    bad = tally(served.model, "v1", samples=[sample])
    await served.stack.send([bad], role="control")
    (found,) = await served.shown("/incidents", lambda items: items, status="open", model=served.model)
    assert (found["bad_version"], found["action"], found["blocked"]) == ("v1", "held", 100)
    assert found["samples"][0]["prediction"]["entity_id"] == "<script>"
    assert found["samples"][0]["findings"] == sample["findings"]
    path = f"/incidents/{found['incident_id']}"
    assert (await served.get(path)).json() == found
    for action, status in (("acknowledge", "acknowledged"), ("resolve", "resolved")):
        answer = await served.post(action, "operator", incident_id=found["incident_id"])
        assert answer.json()["outcome"] == "applied"
        await served.shown("/incidents", lambda items: items, status=status, model=served.model)
    assert (await served.get(path)).json()["resolved_by"] == "operator-ann"
    problem(await served.post("acknowledge", incident_id=found["incident_id"]), 409, "refused")
    problem(await served.post("unfence", "operator", version="v1"), 403, "forbidden")
    assert (await served.post("unfence", "admin", version="v1", lasts="1h")).status_code == 200


async def test_every_role_may_what_the_table_says(served: Served) -> None:
    """A viewer reads, an operator commands, only an admin unfences; nobody without a token does anything."""
    incident = {"incident_id": "none"}
    bodies = {
        Action.ACKNOWLEDGE: incident,
        Action.RESOLVE: incident,
        Action.ACCEPT_REFERENCE: {"references": [{"entity_id": "SKU-1", "value": 1.0}]},
    }
    for role in Role:
        assert (await served.get("/routes", role.value)).status_code == 200
        for action in Action:
            body = bodies.get(action, {})
            versioned = action in (Action.PROMOTE, Action.FENCE, Action.UNFENCE, Action.GOOD)
            answer = await served.post(action.value, role.value, **body, **({"version": "v1"} if versioned else {}))
            assert (answer.status_code != 403) == (action in MAY_SEND[role]), (role, action, answer.text)
    for headers in ({}, {"Authorization": "Bearer hf_guess"}, {"Authorization": "Basic YTpi"}):
        async with served(None) as client:
            for path in ("/routes", "/versions", "/incidents", "/audit", "/rates"):
                answer = await client.get(path, headers=headers)
                problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
            answer = await client.post("/commands/hold", json={"model": served.model, "reason": "r"}, headers=headers)
            problem(answer, 401, "unauthorized")


async def test_a_token_ends_when_its_line_is_gone(served: Served) -> None:
    """Without a restart; and a file that is broken changes nothing."""
    path = served.stack.folder / "tokens"
    lines = path.read_text().splitlines()
    path.write_text("this is no line of ours\n")
    assert (await served.get("/routes", "viewer")).status_code == 200
    path.write_text("\n".join(line for line in lines if "viewer" not in line))
    problem(await served.get("/routes", "viewer"), 401, "unauthorized")
    assert (await served.get("/routes", "admin")).status_code == 200
    path.write_text("\n".join(lines))
    assert (await served.get("/routes", "viewer")).status_code == 200
    assert served.api.told("changed tokens refused, the old ones stay")


async def test_the_same_key_is_carried_out_once(served: Served) -> None:
    """Whether the repetition comes at the same time, later, or to an API that was restarted."""
    key = uuid.uuid4().hex
    first, second = await asyncio.gather(*(served.post("hold", key=key) for _ in range(2)))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    document = problem(await served.post("hold", key=key, reason="another"), 422, "key-used")
    assert "new key" in document["detail"]
    # Another token's key is another key.
    assert (await served.post("hold", "operator", key=key)).json() != first.json()
    await asyncio.to_thread(served.api.restart)
    await served.stack.ready(served.api)
    assert (await served.post("hold", key=key)).json() == first.json()
    problem(await served.post("resume", key=key), 422, "key-used")
    holds = [a for a in served.stack.audits(served.model) if a["actor"] == "admin-ann" and a["action"] == "hold"]
    assert {a["audit_id"] for a in holds} == {first.json()["audit_id"]}


async def test_a_command_that_was_not_sent_leaves_its_key_unused(served: Served) -> None:
    """A mistyped model or incident is refused, makes no route, and can be put right with the same key."""
    key = uuid.uuid4().hex
    document = problem(await served.post("hold", key=key, model=f"{served.model}x"), 404, "no-such-model")
    assert f"{served.model}x" in document["detail"]
    async with served("admin") as client:
        body = {"incident_id": "nowhere", "reason": "r"}
        answer = await client.post("/commands/resolve", json=body, headers={"Idempotency-Key": key})
    problem(answer, 404, "no-such-incident")
    assert (await served.post("hold", key=key)).status_code == 200
    assert served.stack.routes(f"{served.model}x") == []


async def test_without_a_switch_the_answer_says_what_will_become_of_it(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """504; the command is carried out when a switch starts, and the same key then answers its outcome."""
    token, line = create_token("ann", Role.ADMIN)
    settings = {"api": {"tokens": [line], "outcome_within": "500ms"}}
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, settings=settings) as stack:
        (api,) = await stack.start("api")
        served = Served(stack, api, {"admin": token, "viewer": token})
        document = problem(await served.post("hold", key="k"), 504, "no-outcome")
        assert "will be carried out" in document["detail"]
        assert document["command_id"] in document["detail"]
        await stack.start("switch")
        (kept,) = await served.shown("/audit", lambda items: items)
        assert kept["command_id"] == document["command_id"]
        assert (await served.post("hold", key="k")).json() == kept


async def test_commands_are_limited_for_each_token(kafka: Kafka, redis_server: RedisServer, tmp_path: Path) -> None:
    """429 with Retry-After; reading goes on, and so do others' commands."""
    (ann, ann_line), (bob, bob_line) = create_token("ann", Role.ADMIN), create_token("bob", Role.ADMIN)
    settings = {"api": {"tokens": [ann_line, bob_line], "commands_per_minute": 2}}
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, settings=settings) as stack:
        api, _ = await stack.start("api", "switch")
        served = Served(stack, api, {"ann": ann, "bob": bob, "viewer": ann})
        for _ in range(2):
            assert (await served.post("hold", "ann", key="same")).status_code == 200
        assert (await served.post("hold", "ann")).status_code == 200
        refused = await served.post("hold", "ann")
        problem(refused, 429, "too-many-commands")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # What was answered before needs no command.
        assert (await served.post("hold", "ann", key="same")).status_code == 200
        assert (await served.post("hold", "bob")).status_code == 200
        assert (await served.get("/routes")).status_code == 200


async def test_lists_come_in_pages(served: Served) -> None:
    """The latest first; `next` leads through all of them, each once."""
    for number in range(7):
        await served.post("fence", version=f"v{number}")
    await served.shown("/incidents", lambda items: len(items) == 7, model=served.model)
    for path, what in (("/incidents", "bad_version"), ("/audit", "version")):
        found: list[str] = []
        query: dict[str, Any] = {}
        while True:
            page = (await served.get(path, limit=3, model=served.model, **query)).json()
            assert page["total"] == 7
            found += [item[what] for item in page["items"]]
            if "next" not in page:
                break
            query = {"after": page["next"]}
        assert found == [f"v{number}" for number in reversed(range(7))]
        problem(await served.get(path, after="unheard-of"), 404, "cursor-gone")
    assert (await served.get("/audit", model="another")).json() == {"items": [], "total": 0}


async def test_rates_are_counted_for_each_model(served: Served) -> None:
    """Approved and blocked per second, from the guards' tallies; of models that have a route."""
    await served.post("promote", version="v1")
    await served.shown("/routes", lambda items: items, model=served.model)
    known = tally(served.model, "v1", failed=1)
    await served.stack.send([known, known, tally("unrouted", "v1", failed=1)], role="control")
    (rates,) = await served.shown(
        "/rates", lambda items: items and sum(map(sum, items[0]["history"])) == 200, model=served.model
    )
    assert len(rates["history"]) == 60
    assert [sum(counts) for counts in zip(*rates["history"], strict=True)] == [198, 2]
    await served.shown("/rates", lambda items: 0 < items[0]["approved_per_second"] <= 198 / 5, model=served.model)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("GET", "/nowhere", None, 404, "not-found"),
        ("GET", "/api/v1/incidents/none", None, 404, "no-such-incident"),
        ("DELETE", "/api/v1/routes", None, 405, "method-not-allowed"),
        ("GET", "/api/v1/audit?limit=0", None, 422, "invalid"),
        ("GET", "/api/v1/audit?modle=pricing", None, 422, "invalid"),
        ("GET", "/api/v1/routes?model=%00", None, 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b"{", 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b"[1]", 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":" "}', 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":"\\ud800"}', 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":"r","\\ud800":1}', 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":"r","expires_at":5}', 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":"r","expires_at":"2026-11-24"}', 422, "invalid"),
        (
            "POST",
            "/api/v1/commands/hold",
            b'{"model":"m","reason":"r","expires_at":"0001-01-01T00:00:00+23:00"}',
            422,
            "invalid",
        ),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":"r","lasts":"100000d"}', 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b'{"model":"m","reason":"r","lasts":"41173d"}', 422, "invalid"),
        ("POST", "/api/v1/commands/hold", b"[" * 60_000, 400, "bad-request"),
        ("POST", "/api/v1/commands/hold", b" " * 70_000, 413, "content-too-large"),
        ("POST", "/api/v1/commands/hold", CHUNKED, 413, "content-too-large"),
        ("POST", "/api/v1/commands/dance", b"{}", 404, "not-found"),
    ],
)
async def test_bad_input_gets_a_problem_document(
    served: Served, method: str, path: str, content: Any, status: int, kind: str
) -> None:
    """Every 4xx is one, and says what to do."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1000

    sent = pieces() if content is CHUNKED else content
    async with served() as client:
        answer = await client.request(
            method, served.url + path, content=sent, headers={"Content-Type": "application/json"}
        )
    problem(answer, status, kind)


async def test_schemathesis_finds_nothing(served: Served) -> None:
    """Every operation of the OpenAPI document, with what fits it and what does not: no 5xx, answers as documented."""
    await served.post("promote", version="v1")
    await served.stack.send([tally(served.model, "v1")], role="control")
    await served.shown("/incidents", lambda items: items, model=served.model)
    try:
        await asyncio.to_thread(_try_everything, served)
    finally:
        failed = served.api.told("request failed")
    assert failed == []


def _try_everything(served: Served) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    tried = 0
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:

            @hypothesis.settings(
                derandomize=True,
                max_examples=15,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def attempt(case: schemathesis.Case) -> None:
                # By chance the same key would come with two requests.
                case.headers.pop("Idempotency-Key", None)
                # A token is given with each: a case whose one fault is that it has none must not be refused.
                case.call_and_validate(
                    headers={"Authorization": f"Bearer {served.tokens['admin']}"},
                    excluded_checks=CHECKS.get_by_names(["negative_data_rejection"]),
                )

            attempt()
            tried += 1
    assert tried == 2 * 24


async def test_without_tokens_this_machine_alone_is_served(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """To who has the start token, or opens the unix socket: the actor is the login name. Others, other hosts' names and
    other sites' pages are refused: a proxy that does not announce itself (nginx's plain `proxy_pass` connects from
    here, and names this address) shows nothing but the door.
    """
    path = tmp_path / "private" / "api.sock"
    settings = {"api": {"unix_socket": str(path)}}
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, settings=settings) as stack:
        api, _ = await stack.start("api", "switch")
        served = Served(stack, api, {})
        url, body = f"{served.url}/api/v1", {"model": served.model, "reason": "r"}
        async with httpx.AsyncClient() as nobody:
            problem(await nobody.get(f"{url}/routes"), 401, "unauthorized")
            problem(await nobody.post(f"{url}/commands/hold", json=body), 401, "unauthorized")
            problem(await nobody.get(f"{served.url}/events"), 401, "unauthorized")
            problem(await nobody.post(f"{served.url}/login/code"), 401, "unauthorized")
            assert (await nobody.get(served.url)).headers["location"].startswith("/login")
            # What stands in an address is logged, so nothing there lets anybody in.
            assert (await nobody.get(f"{served.url}/login?token={START_TOKEN}")).status_code == 200
            assert not nobody.cookies
        async with httpx.AsyncClient(cookies=await asyncio.to_thread(sign_in, served.url, START_TOKEN)) as browser:
            assert (await browser.get(served.url)).status_code == 200
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {START_TOKEN}"}) as client:
            for site in ({}, {"Origin": served.url}, {"Sec-Fetch-Site": "same-origin", "Origin": served.url}):
                answer = await client.post(f"{url}/commands/hold", json=body, headers=site)
                assert answer.json()["actor"] == getpass.getuser()
            await refuses_others(client, f"http://127.0.0.1:{api.port}", body)
            # The form takes the same token, and no other.
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": served.url}
            for form, status in (("token=%C3%A9&next=%2F", 401), (f"token={START_TOKEN}&next=%2F", 303)):
                answer = await client.post(f"{served.url}/login", content=form, headers=headers)
                assert (answer.status_code, "set-cookie" in answer.headers) == (status, status == 303)
        modes = {stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)}
        assert modes == {0o700, 0o600}
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as owner:
            answer = await owner.post("http://localhost/api/v1/commands/hold", json=body)
            assert answer.json()["actor"] == getpass.getuser()
            assert (await owner.get("http://localhost/")).status_code == 200
            await refuses_others(owner, "http://localhost", body)
        assert len(stack.audits(served.model)) == 4


async def test_people_and_pipelines_command_through_the_api_alone(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path, unique: str
) -> None:
    """The command line with a token and no way to Kafka; and what loosens needs two people."""
    people = {name: create_token(name, Role.ADMIN) for name in ("ann", "bob")}
    lines = [line for _, line in people.values()]
    settings = {"api": {"tokens": lines}, "switch": {"approvals": 2}}
    async with Stack(kafka, redis_server.url, {unique: POLICY}, folder=tmp_path, settings=settings) as stack:
        api, _ = await stack.start("api", "switch")
        config = tmp_path / "person.toml"
        config.write_text(f'[kafka]\nbootstrap_servers = "127.0.0.1:1"\n[api]\nurl = "http://127.0.0.1:{api.port}"\n')

        async def say(who: str, *arguments: str) -> Said:
            return await holdfast(config, *arguments, HOLDFAST_API__TOKEN=people[who][0])

        for version in ("v1", "v2"):
            done = await say("ann", "route", "promote", unique, version, "-r", "release", "--yes", "--json")
            assert (done.code, done.facts["actor"]) == (0, "ann"), done
        (shown,) = (await say("bob", "route", "show", "--json")).facts
        assert (shown["version"], shown["actor"]) == ("v2", "ann")
        assert (await say("ann", "route", "fence", unique, "v1", "-r", "bad", "--yes")).code == 0
        refused = await say("ann", "route", "unfence", unique, "v1", "-r", "it was the data")
        assert (refused.code, "needs a second person" in refused.flat()) == (1, True)
        assert (await say("ann", "route", "unfence", unique, "v1", "-r", "again")).code == 1
        done = await say("bob", "route", "unfence", unique, "v1", "-r", "I looked at it too", "--json")
        assert (done.code, done.facts["actor"]) == (0, "bob"), done
        assert "; ann had asked for it at" in done.facts["detail"]
        assert all(audit["command_id"].startswith("api-") for audit in stack.audits(unique))
        for arguments, says in (
            (("route", "hold", unique, "-r", "x", "--actor", "the-cfo"), "The token of api.url says who acts"),
            (("route", "hold", "nobody", "-r", "x"), "There is no model nobody"),
            (("incidents", "show", "nothing"), "incident"),
        ):
            said = await say("bob", *arguments)
            assert (said.code, says in said.flat()) == (1, True), said


async def refuses_others(client: httpx.AsyncClient, url: str, body: dict[str, str]) -> None:
    """Pages of other sites, names of other hosts, and proxies, although the client has the credential."""
    for site in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Origin": url},
    ):
        problem(await client.post(f"{url}/api/v1/commands/hold", json=body, headers=site), 403, "other-site")
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "", "["):
        problem(await client.get(f"{url}/api/v1/routes", headers={"Host": host}), 421, "other-host")
    for host in ("localhost", "localhost:80", "[::1]:80"):
        assert (await client.get(f"{url}/api/v1/routes", headers={"Host": host})).status_code == 200
    # A proxy on this machine may name it whatever the client asked for.
    for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        problem(await client.get(f"{url}/api/v1/routes", headers={header: "192.0.2.1"}), 403, "came-by-a-proxy")


@pytest.mark.parametrize(("name", "status"), [("127.0.0.2:80", 503), ("localhost", 503), ("127.0.0.3", 421)])
async def test_the_loopback_address_that_is_configured_is_served(name: str, status: int) -> None:
    """503: the topics are not read yet. A token that is set keeps over restarts."""
    token = "the-one-of-my-laptop"
    app = make_app(Api(Settings.model_validate({"api": {"host": "127.0.0.2", "start_token": token}})))
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), headers=headers) as client:
        assert (await client.get(f"http://{name}/api/v1/routes")).status_code == status
