"""Judging again what could not be decoded, once a policy or its mapping is right.

A retry is a release (release.py): judged by today's policies, routes and memory. What passes is approved with the
verdict `released`, in one Kafka transaction with its audit record, once at most. What still cannot be decoded, or fails
a check, stays where it is.
"""

from aiokafka.structs import ConsumerRecord

from holdfast.adapters.malformed import MalformedRecord
from holdfast.adapters.policies import load_policies
from holdfast.core.judge import decode_by_model
from holdfast.core.malformed import CHECK, MalformedKind, too_long
from holdfast.core.policy import PolicySet
from holdfast.release import RETRY, Answer, Blocked, Origin, Released, Wanted, release
from holdfast.settings import Settings
from holdfast_schemas import MAX_VALUE_BYTES, Finding, Severity


async def retry(
    settings: Settings,
    wanted: Wanted,
    *,
    actor: str,
    reason: str,
    force: bool = False,
    superseded: bool = False,
    dry_run: bool = False,
) -> list[Released]:
    """Decode and judge again what could not be decoded, and approve what passes; see `release`.

    What can be decoded now and is of another model is left out; so is what cannot, and is another model's to blame.
    """
    origin = _origin(settings, load_policies(settings.policies), wanted.model)
    return await release(
        settings,
        wanted,
        actor=actor,
        reason=reason,
        force=force,
        superseded=superseded,
        dry_run=dry_run,
        origin=origin,
    )


def _origin(settings: Settings, policies: PolicySet, model: str) -> Origin:
    def read(record: ConsumerRecord) -> Blocked | Released:
        one = MalformedRecord.of(record, settings.topics.predictions)
        if (cut := _was_cut(one)) is not None:
            return _still(one, cut)
        flaws = too_long([record], [record.value], settings.guard.max_record_bytes)
        groups, undecoded = decode_by_model(policies, [record.value])
        flaws = undecoded | flaws
        if flaws:
            whose = flaws[0].identity.model or one.model or model
            if whose != model:
                raise ValueError(f"it is of {whose}")
            return _still(one, flaws[0].reason)
        ((found, batch),) = groups
        return Blocked(one.source, one.at, found, batch.columns.values("model_version")[0], (), record)

    return Origin("malformed", RETRY, read)


def _was_cut(one: MalformedRecord) -> str | None:
    """Why the record is not whole any more, or None."""
    if one.kind in (MalformedKind.KEY_TOO_LONG, MalformedKind.HEADERS_TOO_LONG) or (
        len(one.record.value or b"") >= MAX_VALUE_BYTES
    ):
        return f"{one.reason}, so only a part of the record was kept; let the model predict again"
    return None


def _still(one: MalformedRecord, reason: str) -> Released:
    finding = Finding(check=CHECK, severity=Severity.ERROR, enforced=True, seen=reason)
    return Released(one.source, Answer.STILL_MALFORMED, (finding,))
