"""`holdfast acls`."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from holdfast.adapters.acls import PRINCIPALS, REDIS_USERS, grants, monitor_grants
from holdfast.cli.terminal import ConfigOption, JsonOption, Refused, perform, run, show
from holdfast.core.grants import Grant
from holdfast.settings import Settings, load_settings
from holdfast_schemas import Party

acls_app = typer.Typer(help="Print what each service and its users must be allowed to do.", no_args_is_help=True)


@acls_app.command("kafka")
def acls_kafka(
    principal: Annotated[
        list[str] | None,
        typer.Option("--principal", help="Another login than User:holdfast-PARTY, as guard=User:CN=guard; repeatable."),
    ] = None,
    command_config: Annotated[
        str, typer.Option(help="Kafka's client configuration of who grants.")
    ] = "admin.properties",
    monitor: Annotated[
        str | None,
        typer.Option(help="A login that may see topics, groups and lags, as User:exporter; it reads nothing."),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Grant them, with the login of the configuration; nothing is taken away.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the kafka-acls.sh lines that give each party its topics, groups and transactional ids, and no more."""

    def action() -> tuple[Settings, list[Grant]]:
        settings = load_settings(config)
        principals = dict(PRINCIPALS)
        for given in principal or []:
            party, _, name = given.partition("=")
            if party not in principals or not name.startswith("User:"):
                raise Refused(f"--principal {given} is not PARTY=User:NAME. The parties are {', '.join(principals)}.")
            principals[Party(party)] = name
        if monitor is not None and not monitor.startswith("User:"):
            raise Refused(f"--monitor {monitor} names no login. Write it as User:NAME.")
        found = grants(settings, principals) + (monitor_grants(monitor) if monitor is not None else [])
        if apply:
            from holdfast.kafka.access_lists import grant_all

            run(grant_all(settings.kafka, found))
        return settings, found

    settings, found = perform(action)
    lines = [grant.command(settings.kafka.bootstrap_servers, command_config) for grant in found]
    if apply:
        lines = [f"{len(found)} grants stand."]
    show(as_json, [asdict(grant) for grant in found], lambda console: _print_lines(console, lines))


@acls_app.command("redis")
def acls_redis(as_json: JsonOption = False) -> None:
    """Print the redis-cli lines that make the users of the switch and of serving code; they get passwords after."""
    users = [{"user": user.name, "rules": list(user.rules)} for user in REDIS_USERS]
    show(as_json, users, lambda console: _print_lines(console, [user.command() for user in REDIS_USERS]))


def _print_lines(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
