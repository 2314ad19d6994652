"""Signatures of commands: the API signs what it sends, so that the audit can tell what came straight to Kafka.

Kafka does not tell a consumer who wrote a record. A login that may write `holdfast.control` or `holdfast.releases` can
send any command in any name; it cannot sign one. The header `holdfast-signature` is `<time>:<signature>`: the API's
clock in milliseconds, and base64 of an Ed25519 signature (RFC 8032) over these bytes:

    holdfast-command-1\\n
    <topic>\\n
    <time>\\n
    <value of the record>

The time bounds how long a copy of a signed record counts as the API's.
"""

import re
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum

from holdfast.core.ed25519 import is_signed, private_key, public_keys, sign

HEADER = "holdfast-signature"
FRESH = timedelta(minutes=5)
"""How far the time of a signature and the time of its record may be apart."""
_HEAD = b"holdfast-command-1\n"
_SAID = re.compile(rb"([0-9]{1,15}):([A-Za-z0-9+/=]{1,200})")


class Through(StrEnum):
    """How a command came."""

    API = "api"
    """The API has signed it."""
    KAFKA = "kafka"
    """It has no valid signature: a login of its own wrote it, which is for emergencies."""


def _signed(topic: str, at_ms: bytes, value: bytes) -> bytes:
    return b"%b%b\n%b\n%b" % (_HEAD, topic.encode(), at_ms, value)


class CommandSigner:
    """Holds the private key of the API."""

    def __init__(self, pem: bytes) -> None:
        """`pem`: PKCS#8, without a password. Raises ValueError, which quotes nothing of it."""
        self._key = private_key(pem)

    def header(self, topic: str, value: bytes, now_ms: int) -> tuple[str, bytes]:
        """The header of a record with this value."""
        at_ms = b"%d" % now_ms
        signature = sign(self._key, _signed(topic, at_ms, value))
        return HEADER, b"%b:%b" % (at_ms, signature)


class CommandVerifier:
    """Holds public keys of the API: one, or the old and the new one while keys are changed."""

    def __init__(self, pem: bytes) -> None:
        """Raises ValueError for what is not Ed25519 public keys in PEM."""
        self._keys = public_keys(pem)

    def through(self, topic: str, value: bytes, record_ms: int, headers: Iterable[tuple[str, bytes | None]]) -> Through:
        """How the command in that record came."""
        given = [content or b"" for name, content in headers if name == HEADER]
        match = _SAID.fullmatch(given[0]) if len(given) == 1 else None
        if match is None or abs(record_ms - int(match[1])) > FRESH / timedelta(milliseconds=1):
            return Through.KAFKA
        try:
            signed = is_signed(self._keys, match[2], _signed(topic, match[1], value))
        except ValueError:
            signed = False
        return Through.API if signed else Through.KAFKA
