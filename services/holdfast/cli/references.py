"""`holdfast reference`: what an entity's outputs are held against, and how a person changes it."""

import csv
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from holdfast.adapters.commands import parse_stored, read_routes
from holdfast.adapters.policies import known_models, load_policies
from holdfast.cli.confirm import YesOption, confirm
from holdfast.cli.route import ModelArgument, SinceOption, answer, refuse_unknown, send
from holdfast.cli.terminal import ActorOption, ConfigOption, JsonOption, ReasonOption, Refused, perform, run, show
from holdfast.core.checks.max_change import MaxChangeCheck
from holdfast.core.consequences import Consequence
from holdfast.core.errors import first_flaw
from holdfast.core.segment_references import Chosen, choose
from holdfast.kafka.reading import read_latest
from holdfast.kafka.topics import check_topics
from holdfast.segment_references import read_segment
from holdfast.settings import Settings, load_settings
from holdfast_schemas import MAX_REFERENCES, AcceptedValue, Action, AuditRecord, Outcome, Reference, utc_now

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
    segment: Annotated[
        str | None,
        typer.Option(help="Every entity of this segment: the latest value that max_change blocked of each."),
    ] = None,
    since: SinceOption = timedelta(hours=1),
    actor: ActorOption = None,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a value as an entity's reference for `max_change`, where outputs are blocked that are right.

    The entity's outputs are held against it, in place of the last approved one, until one of them is approved.

    With --segment each entity of the segment gets the latest value that was blocked since --since. It says how many
    they are and how far they change, and asks at a terminal. An entity is left out where its latest output fails
    another check too, is of a fenced version, or was followed by an approved one.

    With --csv or --segment the values are sent in commands of a thousand each.
    """

    def action() -> AuditRecord:
        if segment is not None and (entity, value, file) != (None, None, None):
            raise Refused("Give an entity and its --value, or --csv, or --segment: one of the three.")
        settings = load_settings(config)
        if segment is None:
            values = _values(entity, value, field, file)
        else:
            chosen = run(_of_segment(settings, model, segment, field, since))
            if not chosen.changes:
                raise Refused(chosen.nothing())
            confirm(Consequence(chosen.in_words()), yes=yes)
            values = [AcceptedValue(entity_id=one.entity, field=field, value=one.value) for one in chosen.changes]
        for start in range(0, len(values), MAX_REFERENCES):
            some = tuple(values[start : start + MAX_REFERENCES])
            audit = send(settings, Action.ACCEPT_REFERENCE, model, reason=reason, actor=actor, references=some)
            if audit.outcome is Outcome.REFUSED:
                break
        return audit

    answer(perform(action), as_json)


async def _of_segment(settings: Settings, model: str, segment: str, field: str, since: timedelta) -> Chosen:
    """What would be accepted of a segment. Raises Refused, PolicyError, KafkaUnavailable."""
    policies, routes = load_policies(settings.policies).at(utc_now()), await read_routes(settings)
    refuse_unknown(model, known_models(settings.policies, routes))
    policy = policies.policies.get(model)
    if policy is None:
        raise Refused(
            f"{settings.policies} has no policy of {model}, which would say where an output's field and segment "
            "are. Run this where the guards' policies are."
        )
    checks = [one.name for one in policy.active_checks() if isinstance(one, MaxChangeCheck) and one.field == field]
    if not checks:
        fields = ", ".join(policy.changing_fields()) or "none"
        raise Refused(f"No max_change check of {model} reads {field}; fields with one: {fields}. See --field.")
    found = await read_segment(settings, policies, model, segment, field, utc_now() - since)
    if not found.blocked:
        others = ", ".join(sorted(found.others)[:10]) or "none"
        raise Refused(
            f"Nothing of the segment {segment} of {model} was blocked in that time. Segments with blocked outputs: "
            f"{others}. A longer --since finds more."
        )
    route = routes.get(model)
    return choose(found, field, checks, route.fenced if route is not None else ())


def _values(entity: str | None, value: float | None, field: str, file: Path | None) -> list[AcceptedValue]:
    """Raises Refused."""
    if file is None:
        if entity is None or value is None:
            raise Refused("Name an entity and its --value, a file with --csv, or a --segment.")
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
