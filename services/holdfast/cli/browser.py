"""Opening the console in a browser of this machine."""

import contextlib
import http.client
import json
import os
import sys
import urllib.request
import webbrowser

from holdfast.api.tokens import login_link
from holdfast.cli.own_ports import open_here


def show_in_browser(host: str, port: int, token: str | None) -> None:
    """Open the console, signed in by a code that works once where there is a token. Where nothing opens, do nothing.

    Others on this machine may see the command line of a browser, so it never holds the token.
    """
    if not (sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return  # A browser for terminals would take this one over.
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, webbrowser.Error):
        code = one_use_code(host, port, token) if token is not None else None
        webbrowser.open(login_link(host, port, code))


def one_use_code(host: str, port: int, token: str) -> str:
    """Ask the API for a code. Raises OSError, ValueError."""
    request = urllib.request.Request(  # noqa: S310  our own address
        login_link(host, port) + "/code", method="POST", headers={"Authorization": f"Bearer {token}"}
    )
    with open_here(request, timeout=5) as answer:
        return str(json.load(answer)["code"])
