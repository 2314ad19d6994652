"""Blocked predictions as evidence: what a tally and an incident show of them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.core.arrays import Numbers, jsonable
from holdfast.core.grouping import Batch
from holdfast.core.malformed import CHECK as MALFORMED
from holdfast.core.malformed import Malformed
from holdfast.core.record import Record
from holdfast_schemas import Finding, Sample, Severity

MAX_SAMPLE_BYTES = 4096
MAX_NAMED = 200
"""Characters of an entity or a prediction's id in a sample."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a batch came from: what tallies and samples say about it."""

    topic: str
    partition: int
    records: Sequence[Record]
    worker: str
    topic_id: str | None = None

    def arrived(self, positions: Sequence[int]) -> Numbers:
        """Kafka's timestamps of these records, in Unix milliseconds."""
        return np.array([self.records[position].timestamp for position in positions], dtype=np.float64)

    def of(self, position: int) -> str:
        return f"{self.topic}/{self.partition}/{self.records[position].offset}"


def malformed_sample(found: Malformed, source: Source, position: int) -> Sample:
    finding = Finding(
        check=MALFORMED,
        severity=Severity.ERROR,
        enforced=True,
        field=found.field,
        seen=found.seen if found.field is not None else found.reason,
        limit=found.wanted,
    )
    return Sample(
        source=source.of(position),
        prediction=readable(source.records[position].value),
        findings=(finding,),
        entity_id=cut(found.identity.entity_id),
        prediction_id=cut(found.identity.prediction_id),
    )


def sample_of(batch: Batch, row: int, source: Source, position: int, findings: tuple[Finding, ...]) -> Sample:
    value = float(batch.columns.numbers("value")[row])
    return Sample(
        source=source.of(position),
        prediction=readable(source.records[position].value),
        findings=findings,
        entity_id=cut(batch.columns.values("entity_id")[row]),
        prediction_id=cut(batch.columns.values("prediction_id")[row]),
        value=None if math.isnan(value) else jsonable(value),
    )


def cut(text: str | None) -> str | None:
    """A name as evidence: what is kept of an incident is bounded."""
    return text if text is None or len(text) <= MAX_NAMED else text[: MAX_NAMED - 1] + "…"


def readable(raw: bytes | None) -> Any:
    """A prediction as evidence: its JSON where it is some, else its text; cut where it is long."""
    raw = raw or b""
    if len(raw) <= MAX_SAMPLE_BYTES and raw.count(b"[") + raw.count(b"{") < 100:
        try:
            prediction = strict_json(raw)
            if b"\\u" in raw:
                # Half of a surrogate pair can be read, and not be written again. It raises a ValueError.
                json.dumps(prediction, ensure_ascii=False).encode()
            return prediction
        except (ValueError, RecursionError):
            pass
    return raw[:MAX_SAMPLE_BYTES].decode("utf-8", "replace")


def strict_json(raw: bytes) -> Any:
    """What JSON can hold, and so can be printed as JSON again. Raises ValueError and RecursionError."""
    return json.loads(raw.decode(), parse_constant=_refuse_constant, parse_float=_finite_float)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
