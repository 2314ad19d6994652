"""What the checks remember of a partition, rebuilt from what was approved there: the topic is its own changelog."""

from collections.abc import Sequence

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from holdfast.adapters.kafka import read_to_end
from holdfast.core.checks import Memory
from holdfast.core.judge import decode_by_model, remember
from holdfast.core.policy import PolicySet
from holdfast.settings import Settings


async def restore_memory(settings: Settings, policies: PolicySet, partition: int) -> Memory:
    """Read back the tail of one partition of the approved topic, as far as `guard.restore_records` reaches."""
    memory = Memory()

    def take(records: Sequence[ConsumerRecord]) -> None:
        for model, batch in decode_by_model(policies, [record.value for record in records])[0]:
            if (policy := policies.policies.get(model)) is not None:
                remember(memory, batch.columns, policy)

    if policies.remembered_fields():
        tp = TopicPartition(settings.topics.approved, partition)
        await read_to_end(settings.kafka, [tp], take, tail=settings.guard.restore_records)
    return memory
