"""What every HTTP answer has in common: problem documents (RFC 9457), and what browsers are told."""

import asyncio
from collections.abc import Container, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.metrics import HTTP_REFUSED

log = structlog.get_logger("holdfast.http")
PROBLEM_TYPE = "application/problem+json"
MAX_BODY_BYTES = 65_536
BODY_WITHIN = 8.0
"""Seconds; a little less than the connection has."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_SECURITY_HEADERS = {
    # Everything a page needs comes from here, and nothing is inline: what a prediction says can never run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it browsers send `Origin: null`, also to ourselves.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Flaw(BaseModel):
    """One thing that is wrong with a request."""

    where: str
    """A dotted path: `body.reason`, `query.limit`."""
    detail: str


class Problem(BaseModel):
    """A problem document (RFC 9457). `detail` says what happened and what to do."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="Names the kind of problem.", examples=["urn:holdfast:problem:refused"])
    title: str
    status: int
    detail: str
    errors: list[Flaw] | None = None


class ProblemError(Exception):
    """Raised to answer with a problem document; `members` are its extension members."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.document = {
            "type": f"urn:holdfast:problem:{kind}",
            "title": title,
            "status": status,
            "detail": detail,
            **members,
        }
        self.headers = headers

    def response(self) -> Response:
        return Response(to_json(self.document), self.status, self.headers, PROBLEM_TYPE)


_TOO_SLOW = ProblemError(
    408,
    "request-timeout",
    "The request came too slowly",
    "Its body did not come within the time for it, so nothing was done. Send it again, in one piece.",
    headers={"Connection": "close"},
)
_BUSY = ProblemError(
    503,
    "busy",
    "Too many requests at once",
    "The API works on as many requests as api.requests_at_once allows. Try again in a moment.",
    headers={"Retry-After": "1"},
)
_TOO_LONG = ProblemError(
    413, "content-too-large", "Content too large", f"The body is longer than {MAX_BODY_BYTES} bytes. Send less."
)


def handle_problems(app: FastAPI) -> None:
    """Let every 4xx and 5xx of `app` be a problem document."""

    @app.exception_handler(ProblemError)
    async def ours(_: Request, error: ProblemError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # What was sent is not repeated: it may not even be text that UTF-8 can carry.
        flaws = [
            {
                "where": ".".join(str(part).encode("ascii", "replace").decode() for part in one["loc"]),
                "detail": one["msg"].removeprefix("Value error, ").encode("utf-8", "replace").decode(),
            }
            for one in error.errors()
        ]
        first = "; ".join(f"{flaw['where']}: {flaw['detail']}" for flaw in flaws[:3])
        return ProblemError(
            422, "invalid", "The request is not valid", f"{first}. See /docs for what is expected.", errors=flaws
        ).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == _TOO_LONG.status:
            return _TOO_LONG.response()
        path = request.url.path
        details = {
            404: f"There is nothing at {path}. See /docs for what there is.",
            405: f"{path} does not take {request.method}. See the header Allow, or /docs.",
        }
        phrase = HTTPStatus(error.status_code).phrase
        return ProblemError(
            error.status_code,
            phrase.lower().replace(" ", "-"),
            phrase,
            details.get(error.status_code, f"{error.detail}. See /docs for what is expected."),
            headers=error.headers,
        ).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
        return ProblemError(
            500,
            "unexpected",
            "Unexpected failure",
            "The request could not be answered because of a defect. Please report it with what the API's log says.",
        ).response()


class Edge:
    """Around the application: tells browsers what to keep from, and refuses what comes from other sites.

    With `hosts` given, requests that name another host are refused: without tokens, a foreign name that was
    made to resolve to this machine must not read or command anything. So it is on a unix socket, where no token is
    asked for.

    A body is read here, within `body_within` seconds, before the application sees the request: who sends slowly holds
    nothing else. The application works on `at_once` requests at most; those for `beyond`, paths that are answered at
    once or are counted otherwise, are not counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str] | None = None,
        *,
        at_once: int = 100,
        beyond: Container[str] = (),
        body_within: float = BODY_WITHIN,
    ) -> None:
        self._app, self._hosts = app, hosts
        self._at_once, self._beyond, self._body_within = at_once, beyond, body_within
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        try:
            async with asyncio.timeout(self._body_within):
                if refusal is _TOO_LONG:
                    await _discard_body(receive)
                elif refusal is None and _has_body(scope):
                    receive = await _whole_body(receive)
        except TimeoutError:
            HTTP_REFUSED.labels("slow_request").inc()
            refusal = _TOO_SLOW
        except _TooLongError:
            refusal = _TOO_LONG
        except _GoneError:
            return
        if refusal is None and scope["path"] not in self._beyond and self._working >= self._at_once:
            HTTP_REFUSED.labels("busy").inc()
            refusal = _BUSY
        if refusal is not None:
            await refusal.response()(scope, receive, send_with_headers)
            return
        counts = scope["path"] not in self._beyond
        self._working += counts
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._working -= counts

    def _refusal(self, scope: Scope) -> ProblemError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        hosts = self._hosts
        if hosts is None and peer_of(scope) is not None:
            hosts = LOOPBACK_NAMES
        if hosts is not None and _name_of(host) not in hosts:
            return ProblemError(
                421,
                "other-host",
                "Not served under this name",
                "Without tokens the API answers on this machine only, as localhost or 127.0.0.1. Use one of these "
                "names, or configure tokens with `holdfast api token create`.",
            )
        if hosts is not None and any(name in headers for name in _OF_PROXIES):
            return ProblemError(
                403,
                "came-by-a-proxy",
                "Came through a proxy",
                "Without configured tokens the API is for this machine, so it answers nobody behind a proxy. Make "
                "tokens with `holdfast api token create`, and name their file in api.tokens_file.",
            )
        if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
            return _TOO_LONG
        if scope["method"] not in {"GET", "HEAD", "OPTIONS"} and not _from_here(headers, host):
            return ProblemError(
                403,
                "other-site",
                "Sent by another site",
                "A page of another site sent this, so nothing was done. Use the console itself.",
            )
        return None


def peer_of(scope: Scope) -> int | None:
    """The id of the user who came over the unix socket."""
    found: int | None = scope.get("state", {}).get("peer")
    return found


class _TooLongError(Exception):
    pass


class _GoneError(Exception):
    """The client is gone before its request was whole."""


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _whole_body(receive: Receive) -> Receive:
    """Read the body, and return what gives it to the application. Raises _TooLongError, _GoneError."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _TooLongError
        more = message.get("more_body", False)
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay


async def _discard_body(receive: Receive) -> None:
    """Read what is on its way, within reason: a connection that is closed before loses the answer."""
    left = 16 * MAX_BODY_BYTES
    while left > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        left -= len(message["body"])


def _name_of(host: str) -> str | None:
    """The host without its port; None where that is no host."""
    try:
        return URL(f"http://{host}").hostname
    except ValueError:
        return None


def _from_here(headers: Headers, host: str) -> bool:
    """Whether one of our own pages sent this, or something that is no browser."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


def json_of(value: Any) -> Response:
    """`value` as JSON; absent members are left out, and numbers that JSON cannot hold become text."""
    return Response(to_json(value, exclude_none=True, inf_nan_mode="strings"), media_type="application/json")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: these statuses answer with a problem document."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM_TYPE: schema}} for status in statuses
    }
