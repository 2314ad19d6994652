"""Asking a service of this machine whether it is ready."""

import http.client

from holdfast.cli.own_ports import open_here


def is_ready(host: str, port: int) -> bool:
    """Whether the service whose health is served at this address says that it is ready."""
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  compared, not bound
    try:
        with open_here(f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False
