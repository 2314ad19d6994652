"""Who sends a request."""

from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from holdfast.api.context import Api
from holdfast.api.http import ProblemError, peer_of
from holdfast.api.sessions import COOKIE
from holdfast.api.tokens import Principal

_bearer = HTTPBearer(auto_error=False, description="A token of `holdfast api token create`.")


async def the_api(request: Request) -> Api:
    """Raises ProblemError (503) before the topics have been read: an answer would be wrong."""
    api: Api = request.app.state.api
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        detail = f"{', '.join(repeated)[:200]} is given more than once. Ask for one at a time."
        raise ProblemError(422, "invalid", "The request is not valid", detail)
    if not api.follower.caught_up.is_set():
        raise ProblemError(
            503,
            "starting",
            "Starting",
            "The API is still reading the topics. Try again in a moment.",
            headers={"Retry-After": "1"},
        )
    return api


Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def authenticated(request: Request, bearer: Bearer) -> Principal:
    """Raises ProblemError (401)."""
    api: Api = request.app.state.api
    token = bearer.credentials if bearer is not None else None
    who = api.entry.require(token, request.cookies.get(COOKIE), peer_of(request.scope), client_of(request))
    if who is None:
        raise unauthorized()
    return who


def client_of(request: Request) -> str:
    return request.client.host if request.client is not None else "unix socket"


def unauthorized() -> ProblemError:
    return ProblemError(
        401,
        "unauthorized",
        "No valid token",
        "This needs a bearer token that the API knows. Send it as `Authorization: Bearer …`; an administrator "
        "makes one with `holdfast api token create`.",
        headers={"WWW-Authenticate": "Bearer"},
    )


Caller = Annotated[Principal, Depends(authenticated)]
TheApi = Annotated[Api, Depends(the_api)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,200}$",
        description="The same key with the same request is carried out once, and answered the same.",
    ),
]
