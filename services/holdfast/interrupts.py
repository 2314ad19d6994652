"""Ctrl-C: exit code 130 at any moment, without a traceback, and with everything cleaned up that was begun.

Three phases. While modules are imported nothing has begun: the process leaves at once. While a command works it gets
a KeyboardInterrupt, so that its context managers clean up; `terminal.perform` turns it into the exit code. Between
the two, where options are parsed and answers printed, the exit is raised directly. A process that was started with
SIGINT ignored, as `nohup` and shells do for jobs in the background, goes on ignoring it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

INTERRUPTED = 130
"""What shells report for a process that SIGINT ended."""


def leave(*_: object) -> NoReturn:
    """End the process now. For when there is nothing to clean up."""
    os._exit(INTERRUPTED)


def leave_in_order(*_: object) -> NoReturn:
    """Raise the exit, which no handler of errors or of Ctrl-C takes for its own."""
    raise SystemExit(INTERRUPTED)


def on_interrupt(handler: Callable[..., Any]) -> None:
    """Call it on SIGINT from here on; in another thread than the main one, which takes no signals, nothing changes."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, SIGINT raises KeyboardInterrupt in it, as asyncio expects it too."""
    before = signal.getsignal(signal.SIGINT)
    try:
        on_interrupt(signal.default_int_handler)
        yield
    finally:
        if before is not signal.SIG_IGN and callable(before):
            on_interrupt(before)


def forgiving_output() -> None:
    """A character that the terminal cannot show is printed as an escape, and never an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
