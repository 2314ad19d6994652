"""Signatures of routes in Redis: who can write Redis and does not have the switch's key cannot say what serves.

The signature is Ed25519 (RFC 8032) over these bytes, written as base64 into the field `signature`:

    holdfast-route-1\\n
    <name>:<length>:<value>\\n      one for `model` and for each field of the hash but `signature`, sorted by name

`length` is the number of bytes of the value in UTF-8, in decimal digits. Absent fields are left out.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

SIGNATURE = "signature"
_HEAD = b"holdfast-route-1\n"
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def canonical(model: str, fields: Mapping[str, str]) -> bytes:
    """What is signed: the hash of a route, and its model."""
    signed = {name: value for name, value in fields.items() if name != SIGNATURE} | {"model": model}
    parts = []
    for name, value in sorted((name.encode(), value.encode()) for name, value in signed.items()):
        parts.append(b"%b:%d:%b\n" % (name, len(value), value))
    return _HEAD + b"".join(parts)


class RouteSigner:
    """Holds the private key of the switch."""

    def __init__(self, pem: bytes) -> None:
        """`pem`: PKCS#8, without a password. Raises ValueError, which quotes nothing of it."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(
                "it is not an Ed25519 private key in PEM without a password; make one with `openssl genpkey -algorithm "
                "ed25519`"
            )
        self._key = key

    def sign(self, model: str, fields: Mapping[str, str]) -> str:
        """The value of `signature`; the same fields always have the same one."""
        return base64.b64encode(self._key.sign(canonical(model, fields))).decode()


class RouteVerifier:
    """Holds public keys of switches: one, or the old and the new one while keys are changed."""

    def __init__(self, pem: bytes | str) -> None:
        """Raises ValueError for what is not Ed25519 public keys in PEM."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self._keys: list[Any] = []
        for block in _PUBLIC.findall(pem.encode() if isinstance(pem, str) else pem):
            try:
                key = load_pem_public_key(block)
            except (ValueError, UnsupportedAlgorithm):
                key = None
            if not isinstance(key, Ed25519PublicKey):
                self._keys.clear()
                break
            self._keys.append(key)
        if not self._keys:
            raise ValueError("it is not an Ed25519 public key in PEM; get it with `openssl pkey -in KEY.pem -pubout`")

    def what_is_wrong(self, model: str, fields: Mapping[str, str]) -> str | None:
        """Why the route must not be believed, in words; None: a switch has signed it."""
        from cryptography.exceptions import InvalidSignature

        if not (signature := fields.get(SIGNATURE)):
            return "is not signed"
        try:
            signed, raw = canonical(model, fields), base64.b64decode(signature, validate=True)
        except ValueError:  # UnicodeEncodeError is one
            return "has a signature that cannot be read"
        for key in self._keys:
            try:
                key.verify(raw, signed)
            except InvalidSignature:
                continue
            return None
        return "is not signed by the switch's key"
