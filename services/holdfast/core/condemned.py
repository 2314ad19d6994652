"""What a check in shadow condemns is approved, and is no reference: as if the check were in force.

The same holds for a record that has not the key of its entity, and for one of a version that nobody promoted: nothing
may be held against it. The guard knows all of it when it judges. From the approved record everybody else reads the same
off the header with the findings: one that is not enforced, of a severity that would block, or one about the key or the
version.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.record_keys import CHECK as OFF_KEY
from holdfast_schemas import Header, Severity

BLOCKING = frozenset((Severity.CRITICAL, Severity.ERROR))
_NO_REFERENCE = frozenset((OFF_KEY, NOT_PROMOTED))


class Condemning(Protocol):
    """As much of a finding as decides."""

    @property
    def check(self) -> str: ...
    @property
    def severity(self) -> Severity: ...
    @property
    def enforced(self) -> bool: ...


class _Finding(msgspec.Struct):
    check: str
    severity: Severity
    enforced: bool


_FINDINGS = msgspec.json.Decoder(list[_Finding])
_NAME = Header.FINDINGS.value


def condemn(findings: Iterable[Condemning]) -> bool:
    """Whether one of them would block if it were enforced, or says that the record may be no reference."""
    return any(not one.enforced and (one.severity in BLOCKING or one.check in _NO_REFERENCE) for one in findings)


def is_condemned(headers: Sequence[tuple[str, bytes | None]] | Mapping[str, bytes]) -> bool:
    """Whether the headers of an approved record say that a check in shadow condemns it.

    Findings that cannot be read condemn it too: nothing is learnt from what nobody can judge.
    """
    found = headers.get(_NAME) if isinstance(headers, Mapping) else dict(headers).get(_NAME)
    if found is None:
        return False
    try:
        return condemn(_FINDINGS.decode(found))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return True
