"""What the checks remember of a partition, rebuilt from what was approved there: the topic is its own changelog."""

from collections.abc import Sequence

from aiokafka import TopicPartition

from holdfast.core.accepted import parse_header
from holdfast.core.condemned import is_condemned
from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import remember
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicySet
from holdfast.core.record import Record
from holdfast.kafka.reading import end_offsets, read_to_end
from holdfast.settings import Settings
from holdfast_schemas import Header, Verdict

EVERY_VERDICT = (Header.VERDICT, Header.POLICY, Header.MODEL, Header.MODEL_VERSION)
RELEASED = (Header.VERDICT.value, Verdict.RELEASED.value.encode())


async def restore_memory(
    settings: Settings,
    policies: PolicySet,
    partition: int,
    known: tuple[Memory, int] | None = None,
    *,
    max_entities: int | None = None,
) -> tuple[Memory, int]:
    """Read back the tail of one partition of the approved topic, as far as `guard.restore_records` reaches.

    Of entities the memory keeps `max_entities`, also while it is read back; without a number, all.

    Returns the memory, and the offset before which it knows everything. `known` is such an answer of before, of a
    policy that remembers no less: only what came since is read, and the memory is the same one.

    A released record is passed over here: what a release teaches stands in `holdfast.references`, which guards that
    were running then follow, too. An approved output that was held against such a reference says so in a header.
    What a check in shadow condemned teaches nothing.
    """
    tail, start = settings.guard.restore_records, 0
    tp = TopicPartition(settings.topics.approved, partition)
    if not policies.remembered_fields():
        return Memory(), 0
    memory = Memory()
    if known is not None:
        (end,) = (await end_offsets(settings.kafka, [tp])).values()
        if end - tail <= known[1] <= end:
            memory, start = known

    def take(records: Sequence[Record]) -> None:
        # The names of most are not looked at: a released record has more headers, for it names its source.
        for record in records:
            if len(record.headers) != len(EVERY_VERDICT):
                for name, value in record.headers:
                    if name == Header.REFERENCE.value:
                        memory.used.update(one.reference_id for _, one in parse_header(value or b""))
        values = [
            record.value
            for record in records
            if len(headers := record.headers) == len(EVERY_VERDICT)
            or (RELEASED not in headers and not is_condemned(headers))
        ]
        for model, batch in decode_by_model(policies, values, approved=True)[0]:
            if (policy := policies.policies.get(model)) is not None:
                remember(memory, batch.columns, policy)
        if max_entities is not None:
            memory.forget(max_entities)

    # Behind a release that was cut off and is still open there may be verdicts of the guard before.
    ends = await read_to_end(settings.kafka, [tp], take, start=start, tail=tail, complete=True, plain=True)
    return memory, ends[tp]
