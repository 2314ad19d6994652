"""`holdfast api`: serve the HTTP API, and make or revoke its tokens."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console

from holdfast.api.tokens import Role, create_token, revoke
from holdfast.cli.services import start
from holdfast.cli.terminal import ConfigOption, JsonOption, Refused, duration, perform, show
from holdfast.settings import load_settings
from holdfast_schemas import utc_now

api_app = typer.Typer(help="Serve the HTTP API and the console page; make its tokens.")
token_app = typer.Typer(help="The tokens that let people and pipelines in.", no_args_is_help=True)
api_app.add_typer(token_app, name="token")


@api_app.callback(invoke_without_command=True)
def api(context: typer.Context, config: ConfigOption = None) -> None:
    """Serve the HTTP API and the console page."""
    if context.invoked_subcommand is None:
        start("api", config)


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
