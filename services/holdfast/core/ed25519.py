"""Ed25519 keys in PEM, and signatures by them (RFC 8032): for routes in Redis, and for commands.

The cryptography library is loaded with the first key: most processes have none.
"""

import base64
import re
from collections.abc import Sequence
from typing import Any

_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def private_key(pem: bytes) -> Any:
    """Read a key in PKCS#8, without a password. Raises ValueError, which quotes nothing of it."""
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
    return key


def public_keys(pem: bytes) -> list[Any]:
    """Read one key, or several while keys are changed. Raises ValueError for what is not Ed25519 public keys in PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys: list[Any] = []
    for block in _PUBLIC.findall(pem):
        try:
            key = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            keys.clear()
            break
        keys.append(key)
    if not keys:
        raise ValueError("it is not an Ed25519 public key in PEM; get it with `openssl pkey -in KEY.pem -pubout`")
    return keys


def sign(key: Any, content: bytes) -> bytes:
    """Return the signature in base64; the same content always has the same one."""
    return base64.b64encode(key.sign(content))


def is_signed(keys: Sequence[Any], signature: bytes | str, content: bytes) -> bool:
    """Whether the signature, in base64, is by one of the keys. Raises ValueError where it cannot be read."""
    from cryptography.exceptions import InvalidSignature

    raw = base64.b64decode(signature, validate=True)
    for key in keys:
        try:
            key.verify(raw, content)
        except InvalidSignature:
            continue
        return True
    return False
