"""How a client proves who it is, and knows whom it talks to: secrets from files, and TLS."""

import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import SecretStr

T = TypeVar("T")


def secret(key: str, value: SecretStr | None, file: Path | None) -> str | None:
    """A secret from the configuration, or from its file as it is now, so that a changed one is taken up.

    Raises ValueError for a file that cannot be read or is empty.
    """
    if file is None:
        return value.get_secret_value() if value is not None else None
    try:
        content = file.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{key} {file} cannot be read: {reason}; let this process read it") from None
    if not content:
        raise ValueError(f"{key} {file} is empty; write the secret into it")
    return content


def tls_context(
    ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None, key_password: str | None = None
) -> ssl.SSLContext:
    """A context that verifies the server, by the system's authorities without a `ca_file`.

    Raises ValueError for a file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the CA file {ca_file} cannot be used: {_reason(error)}; give a PEM file") from None
    if cert_file is not None:
        try:
            # Never None: OpenSSL would ask for the password on the terminal, and wait.
            context.load_cert_chain(cert_file, key_file, key_password or "")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ValueError(
                f"the client certificate {cert_file} and its key {key_file or 'in it'} cannot be used: "
                f"{_reason(error)}; give PEM files that belong together, and the key's password if it has one"
            ) from None
    return context


class _Secret(str):
    """A text that can be noted on."""


def renewable(make: Callable[[], T]) -> T:
    """What `make` gives now, with a note of how it is made again. Raises what `make` raises."""
    value = make()
    noted: Any = _Secret(value) if isinstance(value, str) else value
    vars(noted)["renew"] = make
    return cast(T, noted)


def renewed(value: T, failed: Callable[[ValueError], None]) -> T:
    """A renewable value made again, any other as it is; where that fails, as it was made last, and `failed` is told."""
    if (make := getattr(value, "renew", None)) is None:
        return value
    try:
        vars(value)["latest"] = make()
    except ValueError as error:
        failed(error)
    return cast(T, getattr(value, "latest", value))


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "they are no PEM, or the password is wrong"
    return (error.strerror if isinstance(error, OSError) else None) or "it is not readable"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
