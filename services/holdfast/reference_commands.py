"""`holdfast reference`: what an entity's outputs are held against, and how a person changes it."""

import csv
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from holdfast.adapters.commands import parse_stored
from holdfast.adapters.kafka import check_topics, read_latest
from holdfast.core.errors import first_flaw
from holdfast.operate import ModelArgument, answer, send
from holdfast.settings import Settings, load_settings
from holdfast.terminal import ActorOption, ConfigOption, JsonOption, ReasonOption, Refused, perform, run, show
from holdfast_schemas import MAX_REFERENCES, AcceptedValue, Action, AuditRecord, Outcome, Reference

reference_app = typer.Typer(help="See and set what entities' outputs are held against.", no_args_is_help=True)


@reference_app.command("accept")
def accept(
    model: ModelArgument,
    reason: ReasonOption,
    entity: Annotated[str | None, typer.Argument(help="The entity.", metavar="[ENTITY]")] = None,
    value: Annotated[float | None, typer.Option(help="The value that its next output is held against.")] = None,
    field: Annotated[str, typer.Option(help="The field of the max_change check.")] = "value",
    file: Annotated[
        Path | None, typer.Option("--csv", help="A CSV file with the columns entity_id, value, for many entities.")
    ] = None,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a value as an entity's reference for `max_change`, where outputs are blocked that are right.

    The entity's outputs are held against it, in place of the last approved one, until one of them is approved. With
    --csv the file's values are sent in commands of a thousand each.
    """

    def action() -> AuditRecord:
        values = _values(entity, value, field, file)
        settings = load_settings(config)
        for start in range(0, len(values), MAX_REFERENCES):
            some = tuple(values[start : start + MAX_REFERENCES])
            audit = send(settings, Action.ACCEPT_REFERENCE, model, reason=reason, actor=actor, references=some)
            if audit.outcome is Outcome.REFUSED:
                break
        return audit

    answer(perform(action), as_json)


def _values(entity: str | None, value: float | None, field: str, file: Path | None) -> list[AcceptedValue]:
    """Raises Refused."""
    if file is None:
        if entity is None or value is None:
            raise Refused("Name an entity and its --value, or a file with --csv.")
        rows: list[tuple[str, Any, Any]] = [("The value", entity, value)]
    else:
        if entity is not None or value is not None:
            raise Refused("Give either an entity and its --value, or --csv, not both.")
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines)
                rows = [(f"{file}, line {reader.line_num}:", row.get("entity_id"), row.get("value")) for row in reader]
                columns = reader.fieldnames or ()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Refused(f"{file} cannot be read: {error}.") from None
        if set(columns) != {"entity_id", "value"}:
            raise Refused(f"{file} has the columns {', '.join(columns) or 'none'}; they must be entity_id, value.")
        if not rows:
            raise Refused(f"{file} has no rows; write the value of at least one entity into it.")
    accepted: list[AcceptedValue] = []
    for where, name, number in rows:
        try:
            accepted.append(AcceptedValue(entity_id=name, field=field, value=float(number)))
        except ValidationError as error:
            raise Refused(f"{where} {first_flaw(error)}.") from None
        except (TypeError, ValueError):
            raise Refused(f"{where} {number!r} is not a number.") from None
    return accepted


@reference_app.command("show")
def show_references(
    model: ModelArgument,
    entity: Annotated[str | None, typer.Argument(help="One entity; all without it.", metavar="[ENTITY]")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the references that people gave, and those that releases gave, for a model."""

    async def read(settings: Settings) -> list[Reference]:
        counts = await check_topics(settings, ["references"])
        topic = settings.topics.references
        latest = await read_latest(settings.kafka, topic, range(counts["references"]))
        found = [parse_stored(Reference, topic, key, value) for key, value in latest.items()]
        return sorted(
            (one for one in found if one.model == model and entity in (None, one.entity_id)),
            key=lambda one: (one.at, one.entity_id),
        )

    references = perform(lambda: run(read(load_settings(config))))

    def display(console: Console) -> None:
        if not references:
            console.print("There are none: outputs are held against the last approved ones.")
            return
        table = Table("entity", "field", "value", "since", "by", "reason", "released from")
        for one in references:
            at = f"{one.at:%Y-%m-%d %H:%M:%S}"
            table.add_row(one.entity_id, one.field, f"{one.value:g}", at, one.actor, one.reason, one.source or "")
        console.print(table)

    show(as_json, [one.model_dump(mode="json", exclude_none=True) for one in references], display)
