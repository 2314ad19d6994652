"""`holdfast up`: the services of one machine, started together and ended together."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast.adapters.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from holdfast.adapters.policies import load_policies
from holdfast.api.tokens import login_link, make_start_token
from holdfast.cli.browser import show_in_browser
from holdfast.cli.guarded import GuardedService, stop_all
from holdfast.cli.terminal import Refused, run
from holdfast.kafka.topic_settings import fit_topics
from holdfast.kafka.topics import create_topics
from holdfast.settings import Settings, load_settings

SERVICES = ("guard", "switch", "notify", "api")
_START_TOKEN = "HOLDFAST_API__START_TOKEN"  # noqa: S105  its name


def run_all(
    config: Path | None, *, embedded: bool, announce: Callable[[dict[str, Any]], None], browser: bool = False
) -> None:
    """Run every service until SIGTERM, SIGINT, after which KeyboardInterrupt is raised, or the end of one of them,
    which is raised as Refused.

    `embedded`: on a Kafka and a Redis within, which forget everything in the end. `announce` gets the addresses once
    all services are ready. `browser`: open the console in one, signed in where no tokens are configured.
    """
    asked: int | None = None
    serving = False

    def stop(number: int, _: object) -> None:
        nonlocal asked
        # Before the services run, waiting for a broker may take long; what was begun is ended by the stack. A second
        # signal changes nothing.
        first, asked = asked is None, number if asked is None else asked
        if first and not serving:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    ended: GuardedService | None = None
    try:
        with contextlib.ExitStack() as stack:
            servers = _servers(stack, config, embedded=embedded)
            settings = load_settings(config)
            api = settings.api
            console, login, token = login_link(api.host, api.port).removesuffix("/login"), None, None
            if not api.tokens and api.tokens_file is None and api.oidc is None:
                token = api.start_token.get_secret_value() if api.start_token is not None else make_start_token()
                login = login_link(api.host, api.port, token)
            services: list[GuardedService] = []
            stack.callback(stop_all, services)
            for service in _start(settings, config, token):
                services.append(service)  # noqa: PERF402  also when the next one is interrupted
            serving, told = True, False
            while asked is None and ended is None:
                ended = next((service for service in services if service.ended() is not None), None)
                if not told and all(service.ready() for service in services if service.name != "notify"):
                    told = True
                    announce({"console": console, "login": login, "environment": servers})
                    if browser:
                        show_in_browser(api.host, api.port, token)
                time.sleep(0.1)
    except KeyboardInterrupt:
        asked = asked or signal.SIGINT
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    if ended is not None and asked is None:
        raise Refused(f"The {ended.name} ended, so the other services were stopped too; its message is above.")


def _servers(stack: contextlib.ExitStack, config: Path | None, *, embedded: bool) -> dict[str, str]:
    """Make the topics, on embedded servers that live as long as the stack if asked to; their environment variables."""
    servers: dict[str, str] = {}
    settings = load_settings(config)
    load_policies(settings.policies)
    _health(settings)
    if embedded:
        kafka = stack.enter_context(EmbeddedKafka())
        servers["HOLDFAST_KAFKA__BOOTSTRAP_SERVERS"] = kafka.bootstrap
        servers["HOLDFAST_REDIS__URL"] = stack.enter_context(EmbeddedRedis()).url
        # Nothing is older than this installation.
        os.environ.update(servers, HOLDFAST_GUARD__START_FROM="earliest")
        kafka.create_topics(load_settings(config))
    else:
        for one in settings.of_inputs():
            run(create_topics(one))
            run(fit_topics(one))
    return servers


def _health(settings: Settings) -> dict[str, tuple[str, int]]:
    """Where each service says that it is ready. Raises Refused for a port that nobody knows before it is taken."""
    health = {
        "guard": (settings.guard.health_host, settings.guard.health_port),
        "switch": (settings.switch.health_host, settings.switch.health_port),
        "notify": (settings.notify.health_host, settings.notify.health_port),
        "api": (settings.api.host, settings.api.port),
    }
    if free := [name for name, (_, port) in health.items() if port == 0]:
        key = "api.port" if free[0] == "api" else f"{free[0]}.health_port"
        raise Refused(f"{key} is 0, so `up` could not ask the {free[0]} whether it is ready. Set it to a free port.")
    return health


def _start(settings: Settings, config: Path | None, token: str | None) -> Iterator[GuardedService]:
    """Start each service. The token is for the API alone: the others get no secret that they do not need."""
    health = _health(settings)
    arguments = ["--config", str(config)] if config else []
    for name in SERVICES:
        environment = {key: value for key, value in os.environ.items() if key != _START_TOKEN}
        if name == "api" and token is not None:
            environment[_START_TOKEN] = token
        yield GuardedService(name, health[name], arguments, environment)
        # Each further input has a guard of its own.
        for one in settings.of_inputs()[1:] if name == "guard" else ():
            port = free_port()
            yield GuardedService(
                name,
                (settings.guard.health_host, port),
                [*arguments, "--input", str(one.input)],
                environment | {"HOLDFAST_GUARD__HEALTH_PORT": str(port)},
            )
