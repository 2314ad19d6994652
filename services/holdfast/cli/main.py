"""The command line. Exit codes: 0 done, 1 refused or failed, 2 usage."""

import asyncio
import contextlib
import importlib
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.adapters.acls import PRINCIPALS, REDIS_USERS, Grant, grants, monitor_grants
from holdfast.adapters.policies import load_policies, unlike_their_files
from holdfast.api.tokens import Role, create_token, revoke
from holdfast.cli import offsets
from holdfast.cli import route as operate
from holdfast.cli.malformed import malformed_app
from holdfast.cli.policies import policy_app
from holdfast.cli.references import reference_app
from holdfast.cli.shadow import shadow_app
from holdfast.cli.terminal import (
    ConfigOption,
    InputOption,
    JsonOption,
    Refused,
    duration,
    fail,
    perform,
    run,
    show,
    show_line,
    tell,
)
from holdfast.core.errors import HoldfastError, describe
from holdfast.core.fail_open import ends
from holdfast.core.open_ends import open_ends
from holdfast.core.topic_rules import Difference
from holdfast.core.trial import Trial
from holdfast.interrupts import forgiving_output, leave, leave_in_order, on_interrupt
from holdfast.kafka.topic_settings import Fitted, fit_topics
from holdfast.kafka.topics import check_topics, create_topics
from holdfast.settings import Settings, load_settings
from holdfast_schemas import TOPICS, Party, utc_now

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
topics_app = typer.Typer(help="The topics in Kafka.", no_args_is_help=True)
api_app = typer.Typer(help="Serve the HTTP API and the console page; make its tokens.")
token_app = typer.Typer(help="The tokens that let people and pipelines in.", no_args_is_help=True)
api_app.add_typer(token_app, name="token")
app.add_typer(api_app, name="api")
acls_app = typer.Typer(help="Print what each service and its users must be allowed to do.", no_args_is_help=True)
app.add_typer(operate.route_app, name="route")
app.add_typer(operate.incidents_app, name="incidents")
app.add_typer(operate.blocked_app, name="blocked")
app.add_typer(policy_app, name="policy")
app.add_typer(shadow_app, name="shadow")
app.add_typer(reference_app, name="reference")
app.add_typer(malformed_app, name="malformed")
app.add_typer(topics_app, name="topics")
app.add_typer(offsets.offsets_app, name="offsets")
app.add_typer(acls_app, name="acls")


def _print_version(asked: bool) -> None:
    if asked:
        show_line(False, None, f"holdfast {version('holdfast-guard')}")
        raise typer.Exit


@app.callback()
def everything(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Checks every live model prediction, blocks the bad ones, and switches back to the last good version."""


_SERVICES = {
    "guard": "holdfast.guard",
    "switch": "holdfast.switch",
    "notify": "holdfast.notify",
    "api": "holdfast.api.app",
    "audit": "holdfast.verify.service",
}
"""The module of each service, imported when it runs."""


def _serve(service: str, config: Path | None, input_name: str | None = None) -> None:
    # What only services need is imported where one runs: the other commands start sooner.
    from holdfast.adapters.service import ServiceError, configure_logging

    def action() -> None:
        settings = load_settings(config, input_name=input_name)
        configure_logging(settings.log_format)
        structlog.contextvars.bind_contextvars(service=service)
        serve = importlib.import_module(_SERVICES[service]).serve
        try:
            run(serve(settings))
        except (HoldfastError, typer.Exit):
            raise
        except Exception as error:
            raise ServiceError(
                f"The {service} stopped: {describe(error)}. "
                "Nothing was approved unchecked; see its log, then start it again."
            ) from None

    perform(action)


@app.command()
def guard(config: ConfigOption = None, input_name: InputOption = None) -> None:
    """Check predictions and publish verdicts; run as many as there are partitions to share.

    A guard works on one input: each of [[inputs]] needs guards of its own.
    """
    _serve("guard", config, input_name)


@app.command()
def switch(config: ConfigOption = None) -> None:
    """Decide routes from tallies and commands, and keep Redis in line."""
    _serve("switch", config)


@api_app.callback(invoke_without_command=True)
def api(context: typer.Context, config: ConfigOption = None) -> None:
    """Serve the HTTP API and the console page."""
    if context.invoked_subcommand is None:
        _serve("api", config)


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Option(help="Whose it is: the actor of every command sent with it.")],
    role: Annotated[Role, typer.Option(help="What it may do.")],
    expires: Annotated[
        timedelta | None,
        typer.Option("--for", help="End by itself after, say, 12h or 90d.", metavar="TIME", parser=duration),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="See and command this model only; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bearer token; only its hash is kept, so note it now."""

    def action() -> tuple[str, str]:
        try:
            ends = utc_now() + expires if expires is not None else None
            return create_token(name, role, expires=ends, models=model or ())
        except ValueError as error:
            raise Refused(f"{error}. No token was made.") from None

    token, line = perform(action)

    def display(console: Console) -> None:
        for text in ("The token, shown only now:", f"  {token}", "Its line, for api.tokens_file:", f"  {line}"):
            console.print(text, soft_wrap=True, markup=False)

    show(as_json, {"token": token, "line": line}, display)


@token_app.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Option(help="Whose tokens end.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take all tokens of a name out of api.tokens_file; a running API ends them, and their sessions, at once."""

    def action() -> int:
        file = load_settings(config).api.tokens_file
        if file is None:
            raise Refused("No api.tokens_file is configured. Take the line out of api.tokens, and restart the API.")
        if not (count := revoke(file, name)):
            raise Refused(f"No line of {file} is of {name}. Nothing was changed.")
        return count

    count = perform(action)
    text = f"{count} {'token' if count == 1 else 'tokens'} of {name} taken out."
    show(as_json, {"name": name, "revoked": count}, lambda console: console.print(text, markup=False))


@app.command()
def audit(
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Read to the end, print what was found, and end.")] = False,
    since: Annotated[
        timedelta | None,
        typer.Option(help="With --once: only what came in that time, such as 1h.", metavar="TIME", parser=duration),
    ] = None,
    input_name: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every prediction with its verdict, and judge what was approved again, independently of the guards.

    With --once the exit code is 1 when anything is wrong.
    """
    if not once:
        if since or as_json:
            raise typer.BadParameter("--since and --json go with --once")
        _serve("audit", config, input_name)
        return
    from holdfast.adapters.service import configure_logging
    from holdfast.verify.service import Findings, audit_once

    def action() -> Findings:
        settings = load_settings(config, input_name=input_name)
        configure_logging(settings.log_format)
        return run(audit_once(settings, since, tell))

    began = time.monotonic()
    found = perform(action)
    seconds = time.monotonic() - began

    def display(console: Console) -> None:
        table = Table("violation", "count", "for instance")
        for kind, (count, example) in found.rows().items():
            table.add_row(kind, Text(str(count), style="bold red" if count else "green"), Text(example))
        console.print(table)
        console.print(f"{found.checked} predictions compared in {seconds:.0f} s; {found.released} released by people.")
        if found.unjudged:
            console.print(f"{found.unjudged} not judged again: their policy, or their tally, is not known here.")
        if found.uncompared:
            console.print(f"{found.uncompared} not compared: too many predictions and verdicts waited for each other.")

    show(as_json, found.facts(), display)
    if found.violations.total():
        raise typer.Exit(1)


@app.command()
def notify(config: ConfigOption = None) -> None:
    """Tell Alertmanager of every open incident, until it is resolved; two may run at once."""
    _serve("notify", config)


@app.command()
def up(
    config: ConfigOption = None,
    embedded: Annotated[
        bool,
        typer.Option("--embedded", help="On a Kafka and a Redis of its own, which forget everything in the end."),
    ] = False,
    browser: Annotated[
        bool | None,
        typer.Option("--browser/--no-browser", help="Open the console in a browser; at a terminal without it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run guard, switch, notify and api together on this machine; one ending ends the others."""
    from holdfast.cli.up import run_all

    opened = browser if browser is not None else sys.stdout.isatty() and not as_json

    def announce(facts: dict[str, Any]) -> None:
        lines = [f"Everything runs. Console: {facts['login'] or facts['console']}"]
        lines += [f"export {name}={value}" for name, value in facts["environment"].items()]
        show_line(as_json, facts, "\n".join(lines))

    perform(lambda: run_all(config, embedded=embedded, announce=announce, browser=opened))


@app.command()
def demo(
    kafka: Annotated[str | None, typer.Option(help="A real Kafka, as HOST:PORT; embedded without it.")] = None,
    redis: Annotated[str | None, typer.Option(help="A real Redis, as a URL; embedded without it.")] = None,
    rate: Annotated[int | None, typer.Option(min=50, max=20_000, help="Predictions a second.")] = None,
    as_json: JsonOption = False,
    sabotage: Annotated[bool, typer.Option(hidden=True, help="Let the guard only watch.")] = False,
) -> None:
    """See it work on real prices: a bad version is promoted, blocked, and switched back from. Takes half a minute."""
    from holdfast.cli.demo.run import Watch, facts, main_loop, run_demo
    from holdfast.cli.demo.view import summarise, watch_live

    async def play() -> list[str]:
        showing = None if as_json else asyncio.create_task(watch_live(watch, console))
        try:
            per_second = rate or (2000 if kafka else 500)
            return await run_demo(watch, kafka=kafka, redis=redis, rate=per_second, sabotage=sabotage)
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)

    console = Console(highlight=False)
    watch = Watch(f"{kafka or 'embedded Kafka'}, {'Redis given' if redis else 'embedded Redis'}")
    failures = perform(lambda: main_loop(play()))
    show(as_json, facts(watch, failures), lambda console: summarise(watch, failures, console))
    if failures:
        fail("The demo failed: " + " ".join(failures))


@app.command()
def check(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    topic: Annotated[
        str | None, typer.Option("--try", help="Judge the newest events of this topic.", metavar="TOPIC")
    ] = None,
    event: Annotated[
        Path | None,
        typer.Option("--event", help="Judge the event of this file, or one in each line; - reads the standard input."),
    ] = None,
    records: Annotated[int, typer.Option(min=1, max=10_000, help="With --try: how many events.")] = 100,
) -> None:
    """Validate configuration and policies, and print them with every default filled in.

    The warnings say what a policy leaves open: a limit that the producer chooses, a segment that escapes its bounds.

    With --try or --event, decode and judge real events, and print what each check would say of them. This works
    without any topic of Holdfast, and writes nothing. The exit code is 1 when no event could be decoded.
    """
    if topic is not None and event is not None:
        raise typer.BadParameter("--try and --event exclude each other")
    if topic is not None or event is not None:
        from holdfast.cli import try_policy

        def judge_events() -> Trial:
            settings = load_settings(config)
            if topic is not None:
                return run(try_policy.try_topic(settings, topic, records))
            assert event is not None  # noqa: S101
            return try_policy.try_file(settings, event)

        trial = perform(judge_events)
        show(as_json, try_policy.facts(trial), lambda console: try_policy.display(trial, console))
        if not trial.decoded:
            raise typer.Exit(1)
        return

    def action() -> dict[str, Any]:
        settings = load_settings(config)
        policies, now = load_policies(settings.policies).policies, utc_now()
        return {
            "settings": settings.model_dump(mode="json"),
            "policies": {p.id: p.model_dump(mode="json", exclude_none=True) for p in policies.values()},
            "warnings": [
                *(f"{p.model}: {why}" for p in policies.values() if (why := p.at(now).why_it_cannot_trip())),
                *(f"{p.model}: {what}" for p in policies.values() for what in open_ends(p.eventually())),
                *ends(policies.values(), now, settings.guard.no_policy_until),
                *unlike_their_files(settings.policies),
            ],
        }

    facts = perform(action)
    show(as_json, facts, lambda console: console.print_json(data=facts))


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at the whole installation, and say what to do about each thing that is wrong.

    Exit code 1 when something has failed.
    """
    from holdfast.cli.doctor import Diagnosis, Health, diagnose

    async def look() -> list[Diagnosis]:
        return [diagnosis async for diagnosis in diagnose(load_settings(config))]

    found = perform(lambda: run(look()))

    def display(console: Console) -> None:
        marks = {
            Health.OK: Text("ok", style="green"),
            Health.WARNING: Text("look", style="yellow"),
            Health.FAILED: Text("bad", style="bold red"),
        }
        table = Table.grid(padding=(0, 2))
        for one in found:
            text = Text(one.finding + (f". {one.advice}" if one.advice else ""))
            table.add_row(marks[one.health], Text(one.area, style="bold"), text)
        console.print(table)

    show(as_json, [asdict(one) for one in found], display)
    if any(one.health is Health.FAILED for one in found):
        raise typer.Exit(1)


@topics_app.command("create")
def topics_create(
    config: ConfigOption = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Correct the settings and partitions of topics that exist, and say what changed."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the topics that are missing, with the settings that Holdfast needs.

    A topic that exists is compared with what Holdfast needs: what endangers something is refused, or with --fix
    corrected. The input topic belongs to its producers: nothing else of it is changed.
    """

    def action() -> tuple[dict[str, str], list[Difference]]:
        settings = load_settings(config)
        result: dict[str, str] = {}
        left: dict[str, Difference] = {}
        for one_input in settings.of_inputs():
            result |= run(create_topics(one_input)) | result
            fitted: Fitted = run(fit_topics(one_input, fix=fix))
            for one in fitted.corrected:
                before = result[one.topic].removeprefix("exists")
                result[one.topic] = f"{before or 'corrected:'}{before and ','} {one.key} {one.has} -> {one.wanted}"
            run(check_topics(one_input, TOPICS))
            left |= {one.sentence(): one for one in fitted.left}
        return result, list(left.values())

    facts, left = perform(action)

    def display(console: Console) -> None:
        table = Table("topic", "")
        for name, outcome in facts.items():
            table.add_row(name, outcome)
        console.print(table)
        for one in left:
            console.print(Text(f"Worth a look: {one.sentence()}."))

    show(as_json, facts, display)


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
            from holdfast.adapters.acls_on_broker import grant_all

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


@app.command()
def schemas(
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")] = Path("schemas/v1"),
    config: ConfigOption = None,
) -> None:
    """Write the JSON Schema of every message, and the AsyncAPI document."""
    from holdfast.adapters import asyncapi

    def action() -> None:
        files = asyncapi.files(load_settings(config))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (folder / name).write_text(content, encoding="utf-8")
        except OSError as error:
            raise Refused(f"{folder} cannot be written: {error.strerror}. Name another folder.") from None

    perform(action)


def main() -> None:
    on_interrupt(leave_in_order)
    forgiving_output()
    try:
        app()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        on_interrupt(leave)  # What is left is the end of the interpreter.
