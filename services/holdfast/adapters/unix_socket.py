"""A unix socket that only the user of this process can open."""

import os
import socket
import stat
from pathlib import Path

from holdfast.core.errors import HoldfastError

MAX_PATH_BYTES = 107
"""Of the kernel."""


class SocketUnusable(HoldfastError):  # noqa: N818  the message says what is wrong
    """The socket cannot be made; the message says why and what to do."""


def bind_private(path: Path) -> socket.socket:
    """Listen on a socket of mode 0600 in a folder of mode 0700, which is made if it is missing.

    What is left of a process that is gone is replaced. Raises SocketUnusable.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise SocketUnusable(
            f"The path of the socket {path} has more than {MAX_PATH_BYTES} bytes. Choose a shorter one."
        )
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise SocketUnusable(f"The folder {folder} cannot be used: {error.strerror}. Check api.unix_socket.") from None
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise SocketUnusable(
            f"The folder {folder} is open to other users, and every user who opens the socket in it acts as you. "
            "Make it your own, with mode 0700."
        )
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        if path.is_socket():
            _remove_if_left(path)
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise SocketUnusable(f"The socket {path} cannot be made: {error.strerror}. Check api.unix_socket.") from None
    except SocketUnusable:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_if_left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SocketUnusable(f"Another process listens on {path}. Stop it, or set another api.unix_socket.")
