"""The API: what people and pipelines read, and command, over HTTP; and the console page.

Reads are answered from the read model, which follows the topics. A command is written to `holdfast.control` and
answered with its audit record: applied 200, refused 409, and 504 when no switch answered in time. Its actor is the
owner of the token that came with it (`api/entry.py`). Every answer that is not a success is a problem document.
"""

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route as Endpoint
from starlette.types import ASGIApp

from holdfast.adapters.http_limits import HttpLimits
from holdfast.adapters.service import OWN_PATHS, run_service
from holdfast.api.context import Api
from holdfast.api.endpoints import router
from holdfast.api.http import LOOPBACK_NAMES, MAX_BODY_BYTES, Edge, Problem, handle_problems
from holdfast.api.pages import pages
from holdfast.settings import Settings


def make_app(api: Api, service: ASGIApp | None = None) -> ASGIApp:
    """The whole site; `service` answers at the paths that every service has."""
    app = FastAPI(
        title="Holdfast",
        version="1",
        summary="Which model versions serve, what was blocked, and every command.",
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY_BYTES,
    )
    app.state.api = api
    handle_problems(app)
    app.include_router(router)
    app.include_router(pages)
    app.add_middleware(GZipMiddleware)
    if service is not None:
        app.router.routes += [Endpoint(path, service) for path in OWN_PATHS]
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    app.openapi()["components"]["schemas"] |= {**schema.pop("$defs"), "Problem": schema}
    return Edge(
        app,
        None if api.entry.configured else LOOPBACK_NAMES | {api.settings.api.host},
        at_once=api.settings.api.requests_at_once,
        beyond=("/health", "/ready", "/metrics", "/events"),
    )


async def serve(settings: Settings) -> None:
    """Run the API until it is told to stop. Raises KafkaUnavailable, ServiceError, SettingsError."""
    api = Api(settings)
    await run_service(
        "api",
        settings,
        host=settings.api.host,
        port=settings.api.port,
        start=api.start,
        run=api.run,
        stop=api.stop,
        ready=api.not_ready,
        site=lambda service: make_app(api, service),
        unix_socket=settings.api.unix_socket,
        limits=HttpLimits(),
    )
