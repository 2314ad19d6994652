"""`holdfast policy`: what a policy did to versions and routes, and how that is undone."""

from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from holdfast.cli.route import ModelArgument, answer, send
from holdfast.cli.terminal import ActorOption, ConfigOption, JsonOption, ReasonOption, perform
from holdfast.settings import load_settings
from holdfast_schemas import Action, PolicyId

policy_app = typer.Typer(help="Undo what a wrong policy did.", no_args_is_help=True)


def _policy_id(text: str) -> str:
    try:
        return TypeAdapter[str](PolicyId).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(
            f"{text!r} is not a policy id; write it as incidents show it: MODEL@ and 12 hex digits"
        ) from None


@policy_app.command("undo-trips")
def undo_trips(
    model: ModelArgument,
    reason: ReasonOption,
    policy: Annotated[
        str | None,
        typer.Option(
            help="The wrong policy, as its incidents name it; that of the latest trip without it.", parser=_policy_id
        ),
    ] = None,
    actor: ActorOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what trips under a wrong policy did; put the right policy back first.

    The versions that tripped under it are not fenced any more, and are good again if they were. Their incidents are
    resolved with the reason. The version that served before the trips serves again, unless something else has moved
    the route since.
    """
    answer(
        perform(
            lambda: send(load_settings(config), Action.UNDO_TRIPS, model, reason=reason, actor=actor, policy=policy)
        ),
        as_json,
    )
