"""A service as a process that does not outlive the one that started it.

It runs under a guardian, whose input is a pipe from this process. The guardian ends its service when the pipe breaks:
because this process closed it, or because it is gone, even by SIGKILL.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

from holdfast.cli.ready import is_ready

KILL_AFTER = 11
"""Seconds that a service has to end in order."""
END_WITHIN = KILL_AFTER + 2.0
"""Seconds after which the guardian itself must have ended."""
_GUARDIAN = f"""
import os, subprocess, sys, threading
service = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    os.read(0, 1)
    service.terminate()
    try:
        service.wait({KILL_AFTER})
    except subprocess.TimeoutExpired:
        service.kill()
threading.Thread(target=watch, daemon=True).start()
code = service.wait()
sys.exit(code if code >= 0 else 128 - code)
"""


class GuardedService:
    """One of Holdfast's services, by the name of its command."""

    def __init__(
        self,
        name: str,
        health: tuple[str, int],
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        """Start it. `health`: where it says that it is ready; `output`: for both of its streams, or this process's."""
        self.name, self._health = name, health
        self._guardian = subprocess.Popen(  # noqa: S603  our own command
            [sys.executable, "-I", "-S", "-c", _GUARDIAN, sys.executable, "-m", "holdfast", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            # Ctrl-C is for this process, which then ends its services.
            start_new_session=True,
        )

    def ended(self) -> int | None:
        """The exit code once it has ended."""
        return self._guardian.poll()

    def ready(self) -> bool:
        """Whether it says so."""
        return is_ready(*self._health)

    def stop(self) -> None:
        """Ask it to end."""
        assert self._guardian.stdin is not None  # noqa: S101  it is a pipe
        with contextlib.suppress(OSError):
            self._guardian.stdin.close()

    def wait(self, deadline: float) -> None:
        """Wait until it has ended, and kill it at `deadline` (of time.monotonic())."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guardian.wait(max(0.0, deadline - time.monotonic()))
        # Also where somebody killed the guardian, and its service is left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._guardian.pid, signal.SIGKILL)
        self._guardian.wait()


def stop_all(services: Sequence[GuardedService]) -> None:
    """Ask all of them to end, and wait until they have."""
    for service in services:
        service.stop()
    deadline = time.monotonic() + END_WITHIN
    for service in services:
        service.wait(deadline)
