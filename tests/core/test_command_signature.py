"""Commands that the API has signed, and what counts as straight to Kafka."""

from datetime import timedelta

import pytest

from core.test_route_signature import OTHER_PRIVATE, OTHER_PUBLIC, PRIVATE, PUBLIC
from holdfast.core.command_signature import FRESH, HEADER, CommandSigner, CommandVerifier, Through

TOPIC, VALUE, NOW = "holdfast.control", b'{"type":"command"}', 1_795_000_000_000
FRESH_MS = FRESH // timedelta(milliseconds=1)
SIGNED = CommandSigner(PRIVATE).header(TOPIC, VALUE, NOW)
VERIFIER = CommandVerifier(PUBLIC)


def test_what_the_api_has_signed_is_its_own() -> None:
    """Also among other headers, and with the old key while keys are changed."""
    assert SIGNED[0] == HEADER
    for verifier in (VERIFIER, CommandVerifier(OTHER_PUBLIC + PUBLIC)):
        assert verifier.through(TOPIC, VALUE, NOW, [("trace", None), SIGNED]) is Through.API


@pytest.mark.parametrize("apart", [-FRESH_MS, 0, FRESH_MS])
def test_a_record_near_to_its_signature_counts(apart: int) -> None:
    assert VERIFIER.through(TOPIC, VALUE, NOW + apart, [SIGNED]) is Through.API


@pytest.mark.parametrize(
    ("topic", "value", "at", "headers"),
    [
        (TOPIC, VALUE, NOW, []),
        (TOPIC, VALUE + b" ", NOW, [SIGNED]),
        ("holdfast.releases", VALUE, NOW, [SIGNED]),
        (TOPIC, VALUE, NOW + FRESH_MS + 1, [SIGNED]),
        (TOPIC, VALUE, NOW - FRESH_MS - 1, [SIGNED]),
        (TOPIC, VALUE, NOW, [SIGNED, SIGNED]),
        (TOPIC, VALUE, NOW, [CommandSigner(OTHER_PRIVATE).header(TOPIC, VALUE, NOW)]),
        # The time is signed, too.
        (TOPIC, VALUE, NOW + 9999, [(HEADER, SIGNED[1].replace(b"%d" % NOW, b"%d" % (NOW + 9999)))]),
        *((TOPIC, VALUE, NOW, [(HEADER, said)]) for said in (None, b"", b"x", b"1:", b"%d:===" % NOW, b"\xff:\xff")),
    ],
)
def test_anything_else_came_straight_to_kafka(
    topic: str, value: bytes, at: int, headers: list[tuple[str, bytes | None]]
) -> None:
    """Not signed, changed, of another topic, a copy of long ago, another key, or no signature at all."""
    assert VERIFIER.through(topic, value, at, headers) is Through.KAFKA


@pytest.mark.parametrize("pem", [b"", b"hunter2", PUBLIC, PRIVATE[:-40]], ids=["empty", "other", "public", "cut"])
def test_a_key_that_cannot_be_used_is_refused_and_not_quoted(pem: bytes) -> None:
    with pytest.raises(ValueError, match="not an Ed25519 private key") as refused:
        CommandSigner(pem)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ValueError, match="not an Ed25519 public key"):
        CommandVerifier(pem.replace(b"PUBLIC", b"CERTIFICATE"))
