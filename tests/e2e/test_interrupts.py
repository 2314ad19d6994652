"""Ctrl-C at any moment of any command: exit code 130, no traceback, and nothing is left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from backends import GENEROUS
from holdfast.adapters.embedded import free_port
from holdfast.interrupts import INTERRUPTED

COMMANDS = {
    "check": ["check"],
    "doctor": ["doctor"],
    "route list": ["route", "list"],
    "incidents list": ["incidents", "list"],
    "topics create": ["topics", "create"],
    "audit": ["audit", "--once", "--since", "1m"],
    "guard": ["guard"],
    "switch": ["switch"],
    "notify": ["notify"],
    "api": ["api"],
    "up": ["up", "--embedded"],
    "demo": ["demo", "--json"],
    "help": ["--help"],
}
MOMENTS = (0.01, 0.3, 1.5)
"""Seconds after the command's first line ran: while modules are imported, and when it works or is over."""


def start(folder, *arguments):
    """The command as a user starts it, with everything that it writes in a folder of its own.

    Returns once its first line has run: before that it is Python that starts, which hears Ctrl-C in its own way.
    """
    ports = {name: free_port() for name in ("guard", "switch", "notify", "audit")}
    sections = "".join(f"[{name}]\nhealth_port = {port}\n" for name, port in ports.items())
    # A broker that accepts no connection keeps most commands waiting.
    (folder / "holdfast.toml").write_text(
        f'{sections}[api]\nport = {free_port()}\n[kafka]\nbootstrap_servers = "127.0.0.1:{free_port()}"\n'
    )
    (folder / "policies").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "holdfast", *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "HOLDFAST_TEST_FOLDER": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "holdfast.interrupts" in line:
            break
    return process


def left(folder):
    """Processes that were started with this folder's environment, and files that are still in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOLDFAST_TEST_FOLDER") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    files = {path.name for path in folder.iterdir()} - {"holdfast.toml", "policies"}
    return found, files


def nothing_is_left(folder):
    deadline = time.monotonic() + GENEROUS
    while any(left(folder)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_a_command_with_130_and_leaves_nothing(tmp_path, command):
    """Early, while it is imported, and later; one that was over by then has its own exit code."""
    for moment in MOMENTS:
        process = start(tmp_path, *COMMANDS[command])
        time.sleep(moment)
        over = process.poll() is not None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=GENEROUS)
        said = [line for line in errors.splitlines() if not line.startswith("import time:")]
        assert not [line for line in said if "Traceback" in line or "Aborted" in line or "Error" in line], said
        # While Python itself ends, the signal does it, which a shell reports as 130 too.
        assert over or process.returncode in (INTERRUPTED, -signal.SIGINT), (moment, process.returncode, said)
        assert nothing_is_left(tmp_path), (moment, left(tmp_path))


ASKING = """
import os, signal, threading, typer
from holdfast.cli.terminal import perform
def main():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    perform(lambda: typer.confirm("Go on?"))
typer.run(main)
"""


def test_ctrl_c_at_a_question_is_no_answer():
    """It ends the command, without a word."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.wait(GENEROUS) == INTERRUPTED
    assert process.stderr.read() == ""
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As `nohup` and shells ask it of jobs in the background."""
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "check"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    (tmp_path / "policies").mkdir()
    for _ in range(5):
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=GENEROUS)
    assert (process.returncode, errors) in {(0, ""), (-signal.SIGINT, "")}, errors
    assert process.returncode or output.startswith("{")
