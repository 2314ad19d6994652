"""`holdfast demo`."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from holdfast.cli.terminal import JsonOption, fail, perform, show


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
