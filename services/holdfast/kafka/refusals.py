"""Which records a topic refuses for what they are: their timestamp, their size, or something else of their own.

A broker refuses the whole batch that such a record is in. From version 8 of its answer (KIP-467) on it also says which
records of the batch it means; aiokafka passes over that, and takes the refusal for one of the whole batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.producer import sender

TOO_LARGE, LIST_TOO_LARGE, INVALID_TIMESTAMP, INVALID_RECORD = 10, 18, 32, 87
_REASONS = {
    TOO_LARGE: "it is larger than max.message.bytes there",
    LIST_TOO_LARGE: "it is larger than a segment there",
    INVALID_TIMESTAMP: "its timestamp is further from now than the topic's settings allow",
    INVALID_RECORD: "the broker does not take it",
}
_ERRORS_SINCE = 8
"""The version of the answer that names records."""
LONGEST = 200


class Refusal(NamedTuple):
    """One record, by its place among all that were to be written to that topic."""

    topic: str
    place: int
    reason: str


class BatchRefused(KafkaError):  # type: ignore[misc]  # noqa: N818  it reads as what happened
    """A broker has refused a batch for what is in it; `records` are the places within it, where it says them."""

    def __init__(self, topic: str, code: int, records: Sequence[tuple[int, str | None]], message: str | None) -> None:
        super().__init__(f"{topic} refuses records: {message or _REASONS.get(code, f'error {code}')}")
        self.code, self.records, self.message = code, records, message

    def reason(self, said: str | None = None) -> str:
        """Why a record is refused, in words."""
        because = _REASONS.get(self.code) or said or self.message or f"error {self.code}"
        text = said or self.message or ""
        return f"{because} ({text[:LONGEST]})" if text and text != because else because


class RecordsRefused(KafkaError):  # type: ignore[misc]  # noqa: N818  it reads as what happened
    """`refusals` names single records. Where it names none, fewer records must be tried at a time."""

    def __init__(self, refusals: Sequence[Refusal], too_large: Sequence[tuple[str, int]], said: str) -> None:
        super().__init__(said)
        self.refusals = refusals
        # Topics, and the bytes of batches of several records that are too large together.
        self.too_large = too_large


def replace_produce_handler() -> None:
    """Let every producer of this process tell which records were refused."""
    sender.SendProduceReqHandler = _Handler


class _Handler(sender.SendProduceReqHandler):  # type: ignore[misc]
    _batches: dict[TopicPartition, Any]

    def handle_response(self, response: Any) -> None:
        for topic, partitions in response.topics:
            for partition, code, *rest in partitions:
                # Behind them: offset, timestamp, log's start, errors of records, message.
                told = response.API_VERSION >= _ERRORS_SINCE
                records, message = (rest[3] or (), rest[4]) if told else ((), None)
                if code not in _REASONS and not (code and records):
                    continue
                tp = TopicPartition(topic, partition)
                # Records that were sent one by one get aiokafka's own errors.
                if tp in self._batches and not self._batches[tp]._msg_futures:
                    # The caller goes on with the mapping that it gave.
                    self._batches = {**self._batches}
                    self._batches.pop(tp).failure(exception=BatchRefused(topic, code, records, message))
        super().handle_response(response)
