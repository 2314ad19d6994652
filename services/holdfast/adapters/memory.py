"""What the checks remember of a partition, rebuilt from what was approved there: the topic is its own changelog."""

from collections.abc import Sequence

from aiokafka import TopicPartition

from holdfast.adapters.kafka import read_to_end
from holdfast.core.checks import Memory
from holdfast.core.judge import decode_by_model, remember
from holdfast.core.policy import PolicySet
from holdfast.core.record import Record
from holdfast.settings import Settings
from holdfast_schemas import Header, Verdict

RELEASED = (Header.VERDICT.value, Verdict.RELEASED.value.encode())


async def restore_memory(settings: Settings, policies: PolicySet, partition: int) -> Memory:
    """Read back the tail of one partition of the approved topic, as far as `guard.restore_records` reaches.

    A release is an exception for one output and teaches nothing: a guard that was running then does not know of it,
    and one that starts later must not judge otherwise. It may also be older than what was approved since.
    """
    memory = Memory()

    def take(records: Sequence[Record]) -> None:
        values = [record.value for record in records if RELEASED not in record.headers]
        for model, batch in decode_by_model(policies, values)[0]:
            if (policy := policies.policies.get(model)) is not None:
                remember(memory, batch.columns, policy)

    if policies.remembered_fields():
        tp = TopicPartition(settings.topics.approved, partition)
        # Behind a release that was cut off and is still open there may be verdicts of the guard before.
        await read_to_end(settings.kafka, [tp], take, tail=settings.guard.restore_records, complete=True, plain=True)
    return memory
