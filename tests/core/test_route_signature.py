"""Routes that are signed, and epochs that somebody else has written."""

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from backends import ROOT
from holdfast.adapters.redis import state_fields
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.decide import Overtaken, decide
from holdfast.core.model_state import ModelState
from holdfast.core.route_signature import RouteSigner, RouteVerifier, canonical
from holdfast_schemas import Route, RouteState

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def pems(key=None, encryption=None) -> tuple[bytes, bytes]:
    """The private and the public half, as files hold them."""
    key = key or Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


PRIVATE, PUBLIC = pems()
OTHER_PRIVATE, OTHER_PUBLIC = pems()
FIELDS = {"version": "v1", "epoch": "7", "state": "auto", "reason": "promoted", "actor": "ci", "since": "2026-11-24"}


def test_what_is_signed_is_written_down() -> None:
    """Byte for byte: other languages build it from the documentation."""
    assert canonical("pricing", {"version": "v\u00fc", "epoch": "7", "signature": "x"}) == (
        b"holdfast-route-1\nepoch:1:7\nmodel:7:pricing\nversion:3:v\xc3\xbc\n"
    )


def test_the_example_of_the_documentation_is_what_is_signed() -> None:
    """And so is what the mirror writes for that route."""
    route = Route(
        model="pricing",
        version="v1",
        epoch=7,
        state=RouteState.AUTO,
        reason="promoted",
        actor="ci",
        since=NOW,
    )
    example = canonical("pricing", state_fields(route)).decode()
    assert f"```text\n{example}```" in (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


@given(st.dictionaries(st.sampled_from(["a", "b", "epoch"]), st.text(max_size=6)), st.text(max_size=6))
def test_different_fields_are_different_bytes(fields: dict[str, str], value: str) -> None:
    """Whatever stands in a value, line breaks and colons too."""
    for name in ("a", "b", "epoch"):
        other = {**fields, name: value}
        assert (canonical("m", fields) == canonical("m", other)) == (fields == other)


def test_only_what_the_switch_has_signed_is_believed() -> None:
    """A field that is changed, added or missing, another model, another key, and no signature."""
    signature = RouteSigner(PRIVATE).sign("pricing", FIELDS)
    signed = {**FIELDS, "signature": signature}
    verifier = RouteVerifier(PUBLIC)
    assert verifier.what_is_wrong("pricing", signed) is None
    assert RouteSigner(PRIVATE).sign("pricing", FIELDS) == signature
    for changed in (
        {**signed, "version": "EVIL"},
        {**signed, "epoch": "8"},
        {**signed, "extra": "x"},
        {name: value for name, value in signed.items() if name != "reason"},
    ):
        assert verifier.what_is_wrong("pricing", changed) == "is not signed by the switch's key"
    assert verifier.what_is_wrong("fraud", signed) == "is not signed by the switch's key"
    assert RouteVerifier(OTHER_PUBLIC).what_is_wrong("pricing", signed) == "is not signed by the switch's key"
    assert verifier.what_is_wrong("pricing", FIELDS) == "is not signed"
    for broken in ("!", "\ud800", "x" * 10):
        assert verifier.what_is_wrong("pricing", {**FIELDS, "signature": broken}) is not None


def test_two_keys_are_believed_while_they_are_changed() -> None:
    """The old one and the new one, one behind the other."""
    verifier = RouteVerifier((OTHER_PUBLIC + PUBLIC).decode())
    for private in (PRIVATE, OTHER_PRIVATE):
        signed = {**FIELDS, "signature": RouteSigner(private).sign("pricing", FIELDS)}
        assert verifier.what_is_wrong("pricing", signed) is None


@pytest.mark.parametrize(
    "pem",
    [b"", b"s3cret", PUBLIC, pems(generate_ec(SECP256R1()))[0], pems(encryption=BestAvailableEncryption(b"x"))[0]],
)
def test_what_is_not_a_private_key_is_refused_without_a_word_of_it(pem: bytes) -> None:
    """Nor is one with a password, which nobody could type."""
    with pytest.raises(ValueError, match="not an Ed25519 private key in PEM without a password") as refused:
        RouteSigner(pem)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "pem", [b"", b"s3cret", PRIVATE, pems(generate_ec(SECP256R1()))[1], PUBLIC + pems(generate_ec(SECP256R1()))[1]]
)
def test_what_is_not_public_keys_is_refused(pem: bytes) -> None:
    """Nothing would verify by it."""
    with pytest.raises(ValueError, match="not an Ed25519 public key in PEM"):
        RouteVerifier(pem)


def overtaken(epoch: int, held: bool = False):
    state = RouteState.HELD if held else RouteState.PINNED
    route = Route(
        model="pricing",
        version=None if held else "v1",
        epoch=7,
        state=state,
        reason="r",
        actor="ann",
        since=NOW,
        fenced=("v0",),
    )
    before = ModelState(model="pricing", route=route, held_by_person=held)
    return before, decide(before, Overtaken(epoch), NOW, BreakerPolicy(), new_id="a", runbook_url="")


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("epoch", "after"), [(8, 9), (1007, 1008)])
def test_the_epoch_rises_above_one_that_somebody_else_wrote(epoch: int, after: int, held: bool) -> None:
    """The route is otherwise the same, and the audit tells it."""
    before, decision = overtaken(epoch, held)
    assert decision.route is not None
    assert before.route is not None
    assert decision.route.epoch == after
    for name in ("version", "state"):
        assert getattr(decision.route, name) == getattr(before.route, name)
    assert decision.state is not None
    assert decision.state.held_by_person is held
    (audit,) = decision.audits
    assert (audit.action, audit.actor, audit.epoch) == ("route_reasserted", "holdfast", after)
    assert f"the epoch rises from 7 to {after}" in audit.detail


@pytest.mark.parametrize("epoch", [0, 6, 7, 1008, 10**15])
def test_an_epoch_that_is_not_ahead_or_too_far_ahead_changes_nothing(epoch: int) -> None:
    """Nobody drives the epoch to its end."""
    before, decision = overtaken(epoch)
    assert (decision.route, decision.audits, decision.incidents) == (None, (), ())
    assert decision.state == before


def test_a_model_without_a_route_cannot_be_overtaken() -> None:
    """There is nothing to put in its place."""
    for state in (None, ModelState(model="pricing")):
        decision = decide(state, Overtaken(5), NOW, BreakerPolicy(), new_id="a", runbook_url="")
        assert (decision.route, decision.audits) == (None, ())
