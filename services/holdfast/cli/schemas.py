"""`holdfast schemas`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.terminal import ConfigOption, Refused, perform
from holdfast.settings import load_settings


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
