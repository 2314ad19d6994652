"""Whatever a terminal can show: no command ends with a traceback, and nothing invisible reaches a person."""

import os
import subprocess
import sys

import pytest
import typer
from rich.table import Table

from holdfast.api.console import Console
from holdfast.cli.main import app
from holdfast.cli.terminal import Terminal

POLICY = """
model = "pricing"
[[checks]]
kind = "range"
name = "bounds"
field = "value"
min = 1
max = 10
"""
TERMINALS = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def commands(command, *path):
    """Every command of the tree, as the words that call it."""
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from commands(command.get_command(None, name), *path, name)
    yield path


def run_all(folder, environment, calls):
    """Each call in a process that shows only what the environment says; exit codes and what was printed."""
    script = (
        "import sys\n"
        "from holdfast.cli import main as cli\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['holdfast', *line.split('|')]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as exit:\n"
        "        print('exit', exit.code, flush=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *("|".join(call) for call in calls)],
        cwd=folder,
        env={**os.environ, **environment, "TMPDIR": str(folder), "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize("environment", TERMINALS, ids=["ascii", "C"])
def test_a_terminal_that_cannot_show_a_character_gets_an_escape(tmp_path, environment):
    """The help of every command, what they print, and what they refuse, with letters that ASCII lacks."""
    folder = tmp_path / "größe"
    (folder / "policies").mkdir(parents=True)
    (folder / "policies" / "preis.toml").write_text(POLICY, encoding="utf-8")
    (folder / "holdfast.toml").write_text("", encoding="utf-8")
    helped = [(*path, "--help") for path in commands(typer.main.get_command(app))]
    others = [
        ("check", "--config", "holdfast.toml"),
        ("acls", "redis"),
        ("acls", "kafka"),
        ("schemas", str(folder / "schémas")),
        ("schemas", "/proc/größe"),
        ("route", "show", "größe"),
        ("api", "token", "create", "--name", "é", "--role", "viewer"),
        ("check", "--config", f"{folder}/fehlt…"),
    ]
    done = run_all(folder, environment, helped + others)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr[-3000:]
    assert "Unexpected failure" not in done.stderr
    assert "UnicodeEncodeError" not in done.stderr
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert codes[: len(helped)] == [0] * len(helped)
    assert codes[len(helped) :] == [0, 0, 0, 0, 1, 2, 1, 1]
    assert "fehlt\\u" in done.stderr


def test_invisible_characters_are_shown_as_escapes(capsys):
    """What producers wrote cannot turn the text around that a person reads."""
    terminal = Terminal(width=100)
    terminal.print("v1\u202e2v\u2066 \u200bx\ufeff")
    table = Table("version")
    table.add_row("v\u202e1")
    terminal.print(table)
    shown = capsys.readouterr().out
    assert "v1\\u202e2v\\u2066 \\u200bx\\ufeff" in shown
    assert "v\\u202e1" in shown


def test_the_console_shows_escapes_too():
    """Whatever a template prints; HTML stays escaped, and numbers stay numbers."""
    template = Console(None)._environment.from_string("{{ text }} {{ 7 }} <b>")
    assert template.render(text="v1\u202e<i>") == "v1\\u202e&lt;i&gt; 7 <b>"
