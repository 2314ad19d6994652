"""A record of the blocked topic, as a guard wrote it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiokafka.structs import ConsumerRecord
from pydantic import TypeAdapter

from holdfast.core.record import produced_at, time_of
from holdfast.core.samples import strict_json
from holdfast_schemas import Finding, Header

_FINDINGS = TypeAdapter(tuple[Finding, ...])


@dataclass(frozen=True, slots=True)
class Blocked:
    """`source` is where the prediction came from, `at` when it was written."""

    source: str
    at: datetime
    model: str
    version: str
    findings: tuple[Finding, ...]
    record: ConsumerRecord

    @classmethod
    def of(cls, record: ConsumerRecord) -> "Blocked":
        """Raises ValueError for a record that no guard wrote."""
        # Kafka knows headers without a value.
        headers = {name: value or b"" for name, value in record.headers}
        return cls(
            headers.get(Header.SOURCE.value, b"").decode(),
            time_of(produced_at(record)),
            headers.get(Header.MODEL.value, b"").decode(),
            headers.get(Header.MODEL_VERSION.value, b"").decode(),
            _FINDINGS.validate_json(headers.get(Header.FINDINGS.value, b"[]")),
            record,
        )

    def facts(self) -> dict[str, Any]:
        """For printing: JSON values."""
        value = self.record.value or b""
        try:
            prediction = strict_json(value)
        except (ValueError, RecursionError):
            prediction = value.decode("utf-8", "replace")
        return {
            "source": self.source,
            "at": self.at.isoformat(),
            "model": self.model,
            "model_version": self.version,
            "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in self.findings],
            "prediction": prediction,
        }
