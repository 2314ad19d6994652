"""`holdfast …` as a person types it, in this process or in one of its own."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from holdfast.cli.main import app

HOLDFAST = [sys.executable, "-m", "holdfast.cli"]


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        """Of `--json`."""
        return json.loads(self.out)

    def flat(self) -> str:
        """All of it without the frames and line breaks of a narrow terminal."""
        return " ".join(f"{self.out} {self.err}".translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


async def holdfast(config: Path | None, *arguments: str, **environment: str) -> Said:
    """Run it on a terminal of 80 columns. No command may ever end in an exception or a traceback."""

    def invoke() -> Said:
        variables = {"COLUMNS": "80", **environment}
        if config is not None:
            variables["HOLDFAST_CONFIG"] = str(config)
        result = CliRunner().invoke(app, arguments, env=variables, prog_name="holdfast")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        said = Said(result.exit_code, result.stdout, result.stderr)
        assert "Traceback" not in said.out + said.err
        assert "Unexpected failure" not in said.err, said.err
        return said

    return await asyncio.to_thread(invoke)


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    """The same as a process, whose lines can be read as they come."""
    return subprocess.Popen(
        [*HOLDFAST, *arguments, "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
