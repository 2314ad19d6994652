"""Signatures of routes in Redis: who can write Redis and does not have the switch's key cannot say what serves.

The signature is Ed25519 (RFC 8032) over these bytes, written as base64 into the field `signature`:

    holdfast-route-1\\n
    <name>:<length>:<value>\\n      one for `model` and for each field of the hash but `signature`, sorted by name

`length` is the number of bytes of the value in UTF-8, in decimal digits. Absent fields are left out.
"""

from collections.abc import Mapping

from holdfast.core.ed25519 import is_signed, private_key, public_keys, sign

SIGNATURE = "signature"
_HEAD = b"holdfast-route-1\n"


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
        self._key = private_key(pem)

    def sign(self, model: str, fields: Mapping[str, str]) -> str:
        """The value of `signature`; the same fields always have the same one."""
        return sign(self._key, canonical(model, fields)).decode()


class RouteVerifier:
    """Holds public keys of switches: one, or the old and the new one while keys are changed."""

    def __init__(self, pem: bytes | str) -> None:
        """Raises ValueError for what is not Ed25519 public keys in PEM."""
        self._keys = public_keys(pem.encode() if isinstance(pem, str) else pem)

    def what_is_wrong(self, model: str, fields: Mapping[str, str]) -> str | None:
        """Why the route must not be believed, in words; None: a switch has signed it."""
        if not (signature := fields.get(SIGNATURE)):
            return "is not signed"
        try:
            signed = is_signed(self._keys, signature, canonical(model, fields))
        except ValueError:  # UnicodeEncodeError is one
            return "has a signature that cannot be read"
        return None if signed else "is not signed by the switch's key"
