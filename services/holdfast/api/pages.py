"""The pages of the console, and signing in."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import Receive, Scope, Send

from holdfast.api.callers import _bearer, client_of, the_api, unauthorized
from holdfast.api.console import STATIC, Console, View
from holdfast.api.console.reference import operations
from holdfast.api.console.runbook import INDEX, runbook, runbooks
from holdfast.api.context import SILENT_TOO_LONG, Api
from holdfast.api.documents import OfShadow
from holdfast.api.http import ProblemError, json_of, peer_of
from holdfast.api.openid import AWAY, BEGUN_LASTS, CALLBACK, SignInError
from holdfast.api.sessions import COOKIE
from holdfast.api.tokens import Principal
from holdfast.metrics import HTTP_REFUSED
from holdfast_schemas import utc_now

pages = APIRouter(include_in_schema=False)
UPDATE_EVERY = 0.2
"""Seconds between two updates of a page at least."""
SeenBy = Annotated[View, Query()]


def _cookie(api: Api, request: Request) -> dict[str, Any]:
    """How the cookie is kept.

    It holds a session, not the token: `api/sessions.py`. Scripts cannot read it. It is Lax, not Strict, so that a
    link in a page at night opens the console. What is posted from another site is refused at the edge.
    """
    secure = request.url.scheme == "https" or api.settings.notify.console_url.startswith("https://")
    return {"key": COOKIE, "httponly": True, "samesite": "lax", "secure": secure}


@pages.get("/")
async def console_page(request: Request, view: SeenBy) -> Response:
    api = await the_api(request)
    who = api.who(request)
    if who is None:
        return RedirectResponse(f"/login?{urlencode({'next': view.address()})}", 303)
    return HTMLResponse(api.console.page(view, who, may_leave=COOKIE in request.cookies))


@pages.get("/shadow")
async def shadow_page(request: Request, of: Annotated[OfShadow, Query()]) -> Response:
    """The shadow report of a model, for people."""
    api = await the_api(request)
    who = api.who(request)
    if who is None:
        return RedirectResponse("/login", 303)
    api.must_see(who, of.model)
    return HTMLResponse(api.console.shadow_page(of.model, of.since, await api.shadow(of)))


@pages.get("/events")
async def events(request: Request, view: SeenBy) -> Response:
    """What changes on a page; once a second also the rates, so that silence means trouble."""
    api = await the_api(request)
    who = api.entry.require(None, request.cookies.get(COOKIE), peer_of(request.scope), client_of(request))
    if who is None:
        raise unauthorized()
    give_back = api.streams.take(who.key)
    if give_back is None:
        HTTP_REFUSED.labels("streams").inc()
        raise ProblemError(
            429,
            "too-many-streams",
            "Too many open pages",
            f"{who.name} has {api.settings.api.streams_per_person} pages of the console open, or all people together "
            "have too many. Close one, then load this page again.",
            headers={"Retry-After": "10"},
        )
    updates = _updates(api, view, lambda: api.who(request))
    return _Stream(give_back, updates, ping=3600, send_timeout=30, headers={"X-Accel-Buffering": "no"})


class _Stream(EventSourceResponse):
    """A stream of events that gives its place back when it ends, however it ends."""

    def __init__(self, give_back: Callable[[], None], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._give_back = give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._give_back()


async def _updates(api: Api, view: View, who_asks: Callable[[], Principal | None]) -> AsyncIterator[ServerSentEvent]:
    sent: dict[str, int] = {}
    revision, beat_at = -1, 0.0
    # A session that is over, or whose token was taken out, sees nothing more.
    while not api.stopping and (who := who_asks()) is not None:
        update: dict[str, Any] = {}
        if api.board.revision != revision:
            revision = api.board.revision
            update = api.console.update(view, who, sent)
        if (now := time.monotonic()) >= beat_at:
            beat_at = now + 1
            update["rates"] = api.console.rates(who)
            if (silent := api.follower.silent_for) > SILENT_TOO_LONG / 2:
                update["silent_since"] = utc_now() - timedelta(seconds=silent)
        if update:
            yield ServerSentEvent(to_json(update).decode(), event="update")
            await asyncio.sleep(UPDATE_EVERY)
        if api.board.revision == revision:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(api.board.change(), max(0.0, beat_at - time.monotonic()))


@pages.get("/login")
async def login_page(request: Request, next: str = "/") -> Response:  # noqa: A002  the name in the address
    """Ask for a token. A link may have it behind its `#`, which the page's script fills in and sends."""
    return HTMLResponse(_door(request.app.state.api, next, None))


@pages.post("/login")
async def login(request: Request) -> Response:
    """Open a session for the form's token."""
    api: Api = request.app.state.api
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    token, wanted = form.get("token", [""])[0].strip(), form.get("next", ["/"])[0]
    session = api.entry.sign_in(token, client_of(request)) if token else None
    if session is None:
        problem = (
            "The API does not know this token. Check that it is whole, or ask an administrator for another. A link "
            "that signs in works once, and for a minute."
        )
        return HTMLResponse(_door(api, wanted, problem), 401)
    answer = RedirectResponse(_of_ours(wanted), 303)
    lasts = int(api.entry.sessions.lasts.total_seconds())
    answer.set_cookie(value=session, max_age=lasts, **_cookie(api, request))
    return answer


def _of_ours(wanted: str) -> str:
    """A place of our own: neither another site's address nor `//` nor a backslash that browsers take for one."""
    here = re.fullmatch(r"/(\?[!-~]*)?", wanted) is not None and "\\" not in wanted
    return wanted if here else "/"


@pages.get("/login/oidc")
async def login_at_provider(request: Request, next: str = "/") -> Response:  # noqa: A002  the name in the address
    """Send the browser to the provider of `api.oidc`."""
    api: Api = request.app.state.api
    if (provider := api.entry.provider) is None:
        raise HTTPException(404)
    try:
        begun = await provider.begin(_of_ours(next))
    except SignInError as error:
        api.entry.refuse_sign_in(error, client_of(request))
        return HTMLResponse(_door(api, next, str(error)), 503)
    answer = RedirectResponse(begun.address, 303)
    answer.set_cookie(value=begun.cookie, max_age=BEGUN_LASTS, **_begun_cookie(api, request))
    return answer


@pages.get(CALLBACK)
async def login_from_provider(request: Request) -> Response:
    """Open a session for who comes back from the provider."""
    api: Api = request.app.state.api
    begun = _begun_cookie(api, request)
    try:
        session, wanted = await api.entry.finish_sign_in(
            dict(request.query_params), request.cookies.get(begun["key"], ""), client_of(request)
        )
    except SignInError as error:
        answer: Response = HTMLResponse(_door(api, "/", str(error)), 503 if error.reason == AWAY else 403)
    else:
        answer = RedirectResponse(_of_ours(wanted), 303)
        lasts = int(api.entry.sessions.person_lasts.total_seconds())
        answer.set_cookie(value=session, max_age=lasts, **_cookie(api, request))
    answer.delete_cookie(**begun)
    return answer


def _begun_cookie(api: Api, request: Request) -> dict[str, Any]:
    """How the cookie is kept that ties the provider's answer to the browser which asked."""
    return {**_cookie(api, request), "key": f"{COOKIE}_begun", "path": "/login/oidc"}


@pages.post("/login/code")
async def login_code(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Response:
    """Answer a code with which a browser is signed in as who has the token, once."""
    api: Api = request.app.state.api
    code = api.entry.code(bearer.credentials) if bearer is not None else None
    if code is None:
        raise unauthorized()
    return json_of({"code": code})


def _door(api: Api, wanted: str, problem: str | None) -> str:
    entry = api.entry
    provider, place = entry.provider, _of_ours(wanted)
    return api.console.other_page(
        "login.html",
        next=place,
        problem=problem,
        takes_tokens=entry.takes_tokens,
        at_start=not entry.configured,
        provider=provider.title if provider is not None else None,
        begin_at=f"{provider.begin_at}?{urlencode({'next': place})}" if provider is not None else None,
    )


@pages.post("/logout")
async def logout(request: Request) -> Response:
    api: Api = request.app.state.api
    api.entry.sign_out(request.cookies.get(COOKIE, ""), client_of(request))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(**_cookie(api, request))
    return answer


@pages.get("/docs")
async def reference_page(request: Request) -> Response:
    """The OpenAPI document for people."""
    api, document = request.app.state.api, request.app.openapi()
    return HTMLResponse(
        api.console.other_page(
            "docs.html",
            summary=document["info"]["summary"],
            operations=operations(document),
            base=str(request.base_url).rstrip("/"),
        )
    )


@pages.get("/runbooks")
async def runbooks_page() -> Response:
    return RedirectResponse("/runbooks/", 308)


@pages.get("/runbooks/")
@pages.get("/runbooks/{name}")
async def runbook_page(request: Request, name: str = INDEX) -> Response:
    """What to do about an alert. Open to all, as the source is: a page at night must not end at a door."""
    found = runbook(name)
    if found is None:
        raise HTTPException(404)
    others = runbooks() if name == INDEX else []
    console: Console = request.app.state.api.console
    return HTMLResponse(console.other_page("runbook.html", title=found[0], body=found[1], others=others))


@pages.get("/static/{name}")
async def static(name: str) -> Response:
    if name not in STATIC:
        raise HTTPException(404)
    content, kind = STATIC[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "max-age=300"})
