"""The headers that Holdfast adds to records. This is the only place that makes them.

A header is a pair of a name and UTF-8 bytes, as Kafka has it. The producer's own headers stand before ours.
"""

from collections.abc import Iterable, Sequence

from holdfast.core.accepted import Given, header_value
from holdfast.core.record import time_of
from holdfast_schemas import Header, Verdict

Headers = list[tuple[str, bytes]]
NO_POLICY = "none"
"""Stands for the policy of a model without one."""
SOURCE_TOPIC_ID = "holdfast-source-topic-id"
"""The header of a state that says which topic its `holdfast-source` is in; private to the switch, as the state is."""
_OURS = frozenset(header.value for header in Header)
_FINDINGS, _SOURCE, _ERROR = Header.FINDINGS.value, Header.SOURCE.value, Header.ERROR.value


def verdict_headers(verdict: Verdict, policy_id: str | None, model: str, version: str) -> Headers:
    """Make what every record with a verdict carries; `policy_id` is None for a model without a policy."""
    return [(Header.VERDICT.value, verdict.value.encode()), *policy_headers(policy_id, model, version)]


def policy_headers(policy_id: str | None, model: str, version: str) -> Headers:
    """Make what says whose output it is, and by which policy that was found."""
    return [
        (Header.POLICY.value, (policy_id or NO_POLICY).encode()),
        (Header.MODEL.value, model.encode()),
        (Header.MODEL_VERSION.value, version.encode()),
    ]


def findings_header(as_json: bytes) -> tuple[str, bytes]:
    """Make the header of a JSON list of findings."""
    return _FINDINGS, as_json


def source_header(source: str) -> tuple[str, bytes]:
    """Make the header that says where the prediction is: `topic/partition/offset`."""
    return _SOURCE, source.encode()


def topic_id_header(topic_id: str) -> tuple[str, bytes]:
    """Make the header that says which topic of that name the source is in."""
    return SOURCE_TOPIC_ID, topic_id.encode()


def reference_header(used: Iterable[tuple[str, Given]]) -> tuple[str, bytes]:
    """Make the header of the references by fields that an approved output was the first to be held against."""
    return Header.REFERENCE.value, header_value(used)


def produced_at_header(timestamp: int) -> tuple[str, bytes]:
    """Make the header of the producer's time, in milliseconds since the epoch."""
    at = time_of(timestamp).isoformat(timespec="milliseconds")
    return Header.PRODUCED_AT.value, at.replace("+00:00", "Z").encode()


def deletion_headers(source: str) -> Headers:
    """Make what a deletion by the producer carries where it is passed on."""
    return [(Header.VERDICT.value, Verdict.DELETED.value.encode()), source_header(source)]


def error_headers(reason: str, kind: str | None = None) -> Headers:
    """Make what a malformed record carries beside its source: why it is malformed, and of which kind that is."""
    headers = [(_ERROR, reason.encode("utf-8", "replace"))]
    return headers if kind is None else [*headers, (Header.ERROR_KIND.value, kind.encode())]


def release_headers(actor: str, reason: str) -> Headers:
    """Make what a released prediction carries beside its verdict and source."""
    return [(Header.RELEASED_BY.value, actor.encode()), (Header.RELEASE_REASON.value, reason.encode())]


def with_theirs(theirs: Sequence[tuple[str, bytes]], ours: Headers, *, keep: Sequence[Header] = ()) -> Headers:
    """Return the producer's headers and then ours.

    What the producer sends under one of our names is left out, unless `keep` lists it: nobody else may speak for us.
    """
    if not theirs:
        return ours
    return [*(header for header in theirs if header[0] not in _OURS or header[0] in keep), *ours]
