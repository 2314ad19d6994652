"""What somebody with a token, a stolen cookie or a guess tries at the API: read and command others' models, go on after
sign-out or the end of the token, act in the name of automatic decisions, and hold all the room.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from abuse.site import SECRET, VISIBLE, Site
from holdfast.adapters.http_limits import Share
from holdfast.api.console import View
from holdfast.api.sessions import COOKIE
from holdfast.metrics import REGISTRY
from holdfast_schemas import Action


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("holdfast_access_refused_total", {"reason": reason}) or 0.0


async def test_a_token_for_one_model_sees_nothing_of_another(site: Site) -> None:
    """In every list, on every page, in every update, and by every name."""
    async with site.client("limited") as client:
        for name in ("routes", "versions", "rates", "incidents", "audit"):
            text = (await client.get(f"/api/v1/{name}")).text
            assert VISIBLE in text, name
            assert SECRET not in text, name
            assert (await client.get(f"/api/v1/{name}", params={"model": SECRET})).json()["total"] == 0
        for path in (f"/api/v1/incidents/i-{SECRET}", f"/api/v1/shadow?model={SECRET}"):
            assert (await client.get(path)).status_code == 403, path
        assert (await client.get(f"/api/v1/incidents/i-{VISIBLE}")).status_code == 200
    async with await site.browser("limited") as browser:
        for path in ("/", f"/?q={SECRET[:4]}", "/?resolved=true"):
            page = (await browser.get(path)).text
            assert SECRET not in page.replace(f'value="{SECRET[:4]}"', ""), path
        assert VISIBLE in (await browser.get("/")).text
        assert (await browser.get("/shadow", params={"model": SECRET})).status_code == 403
        who = site.api.entry.who(None, browser.cookies[COOKIE])
        assert who is not None
        assert SECRET not in json.dumps([site.api.console.update(View(), who, {}), site.api.console.rates(who)])
    async with site.client("admin") as client:
        assert SECRET in (await client.get("/api/v1/routes")).text


@pytest.mark.parametrize("action", list(Action))
async def test_a_token_for_one_model_commands_no_other(site: Site, action: Action) -> None:
    """Nor by an incident, nor by the key of somebody's earlier command. It is counted."""
    bodies: dict[Action, dict[str, Any]] = {
        Action.ACKNOWLEDGE: {"incident_id": f"i-{SECRET}"},
        Action.RESOLVE: {"incident_id": f"i-{SECRET}"},
        Action.ACCEPT_REFERENCE: {"model": SECRET, "references": [{"entity_id": "SKU-1", "value": 1.0}]},
    }
    for versioned in (Action.PROMOTE, Action.FENCE, Action.UNFENCE, Action.GOOD):
        bodies[versioned] = {"model": SECRET, "version": "v1"}
    body = {"reason": "r", **bodies.get(action, {"model": SECRET})}
    before = refused("model")
    async with site.client("limited") as client:
        answer = await client.post(f"/api/v1/commands/{action.value}", json=body, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:holdfast:problem:forbidden")
    assert refused("model") == before + 1


async def test_a_session_is_over_after_sign_out_whatever_the_browser_still_sends(site: Site) -> None:
    """A cookie that was copied before is worth nothing; another session of the same person goes on."""
    async with await site.browser("admin") as browser, await site.browser("admin") as other:
        stolen = dict(browser.cookies)
        assert site.tokens["admin"] not in stolen.values()
        assert (await browser.get("/")).status_code == 200
        assert (await browser.post("/logout")).status_code == 303
        assert COOKIE not in browser.cookies
        async with site.client() as thief:
            thief.cookies.update(stolen)
            assert (await thief.get("/")).headers["location"].startswith("/login")
            assert (await thief.get("/api/v1/routes")).status_code == 401
            assert (await thief.get("/events")).status_code == 401
        assert (await other.get("/")).status_code == 200


async def test_a_session_ends_with_its_token_while_the_api_runs(site: Site) -> None:
    """At the next request, and within a stream that is open."""
    async with await site.browser("admin") as browser:
        cookie = browser.cookies[COOKIE]
        assert site.api.entry.who(None, cookie) is not None
        kept = [line for line in site.file.read_text().splitlines() if not line.startswith("admin ")]
        site.file.write_text("\n".join(kept))
        assert (await browser.get("/api/v1/routes")).status_code == 401
        assert site.api.entry.who(None, cookie) is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("Authorization", "Bearer hf_guess", "unknown_credential"),
        ("Authorization", "Bearer OVER", "expired_token"),
        ("Cookie", f"{COOKIE}=v1.0.0.0.0", "unknown_credential"),
        ("Cookie", f"{COOKIE}=ADMIN", "unknown_credential"),
        ("X-Other", "1", "no_credential"),
    ],
)
async def test_a_credential_that_is_not_in_force_is_refused_and_counted(
    site: Site, name: str, value: str, reason: str
) -> None:
    """A token is no cookie, an old one is no token."""
    value = value.replace("OVER", site.tokens["over"]).replace("ADMIN", site.tokens["admin"])
    before = refused(reason)
    async with site.client() as client:
        answer = await client.get("/api/v1/routes", headers={name: value})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert refused(reason) == before + 1


async def test_a_flood_of_guesses_does_not_fill_the_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted, and the next line says how many were not told."""
    told: list[int] = []
    monkeypatch.setattr(
        "holdfast.api.entry.log.warning", lambda *_, not_told_before, **__: told.append(not_told_before)
    )
    before = refused("unknown_credential")
    async with site.client() as client:
        for _ in range(50):
            await client.get("/api/v1/routes", headers={"Authorization": "Bearer hf_guess"})
    assert refused("unknown_credential") == before + 50
    assert len(told) < 25


async def test_a_code_in_a_link_signs_in_once(site: Site) -> None:
    """It is given for a token only, not for a session, and the link that was seen by others is of no use."""
    async with await site.browser("viewer") as browser:
        assert (await browser.post("/login/code")).status_code == 401
    async with site.client("viewer") as client:
        code = (await client.post("/login/code")).json()["code"]
    async with site.client() as first, site.client() as second:
        assert (await first.post("/login", data={"token": code})).status_code == 303
        assert (await first.get("/api/v1/routes")).status_code == 200
        assert (await second.post("/login", data={"token": code})).status_code == 401


# Room


def test_a_share_is_bounded_in_all_and_for_each() -> None:
    """What is given back twice counts once."""
    share = Share(3, 2)
    ann = [share.take("ann"), share.take("ann")]
    assert share.take("ann") is None
    bob = share.take("bob")
    assert bob is not None
    assert share.take("cid") is None
    assert ann[0] is not None
    ann[0]()
    ann[0]()
    assert share.take("cid") is not None
    assert share.take("dan") is None


async def stream(site: Site, name: str) -> AsyncGenerator[int]:
    """Open the stream of a signed-in browser by hand: the status, then nothing until it is closed."""
    async with await site.browser(name) as browser:
        cookie = f"{COOKIE}={browser.cookies[COOKIE]}".encode()
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/events",
        "raw_path": b"/events",
        "query_string": b"",
        "headers": [(b"host", b"holdfast.example"), (b"cookie", cookie)],
        "client": ("192.0.2.1", 1),
        "server": ("holdfast.example", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    gone, statuses = asyncio.Event(), asyncio.Queue[int]()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.put_nowait(message["status"])

    running = asyncio.create_task(site.app(scope, receive, send))
    try:
        yield await statuses.get()
    finally:
        gone.set()
        await running


async def test_sixty_streams_of_one_viewer_leave_room_for_others(tmp_path: Path) -> None:
    """Those beyond the limit are told so; a page that is closed makes room."""
    site = Site(tmp_path, streams_per_person=5, streams=8)
    opened = [stream(site, "viewer") for _ in range(60)]
    statuses = [await anext(one) for one in opened]
    assert (statuses.count(200), statuses.count(429)) == (5, 55)
    other = stream(site, "admin")
    assert await anext(other) == 200
    for one in opened:
        await one.aclose()
    again = stream(site, "viewer")
    assert await anext(again) == 200
    for one in (again, other):
        await one.aclose()


@pytest.fixture
def busy(tmp_path: Path) -> Site:
    return Site(tmp_path, requests_at_once=2)


async def test_requests_beyond_the_limit_are_refused_and_health_is_answered(
    busy: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with a time to wait; nothing is queued."""
    waiting = asyncio.Event()

    async def slow(*_: object, **__: object) -> None:
        await waiting.wait()

    monkeypatch.setattr(busy.api, "shadow", slow)
    async with busy.client("viewer") as client:
        held = [asyncio.create_task(client.get("/api/v1/shadow", params={"model": VISIBLE})) for _ in range(2)]
        while busy.app._working < 2:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        answer = await client.get("/api/v1/routes")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["type"] == "urn:holdfast:problem:busy"
        # There is no health here; what matters is that it was asked for.
        assert (await client.get("/health")).status_code == 404
        waiting.set()
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        assert (await client.get("/api/v1/routes")).status_code == 200
