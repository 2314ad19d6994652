"""`holdfast topics`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.terminal import ConfigOption, JsonOption, perform, run, show
from holdfast.core.topic_rules import Difference
from holdfast.kafka.topic_settings import Fitted, fit_topics
from holdfast.kafka.topics import check_topics, create_topics
from holdfast.settings import load_settings
from holdfast_schemas import TOPICS

topics_app = typer.Typer(help="The topics in Kafka.", no_args_is_help=True)


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
