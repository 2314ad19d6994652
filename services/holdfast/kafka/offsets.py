"""What a consumer group has committed, read with care."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import NotCoordinatorForGroupError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest

from holdfast.core.progress import Committed


async def committed_progress(consumer: AIOKafkaConsumer, tp: TopicPartition) -> Committed | None:
    """Ask what the consumer's group has committed; None where it never committed an offset. Raises KafkaError.

    aiokafka's own `committed` overlooks an error of the whole answer, such as a coordinator gives that has just
    restarted and is still loading. It reports that as no offset: everything would be judged once more.
    """
    coordinator = consumer._coordinator
    while True:
        await coordinator.ensure_coordinator_known()
        request = OffsetFetchRequest(coordinator.group_id, [(tp.topic, [tp.partition])])
        answer = await coordinator._send_req(request)
        found = [partition for _, partitions in answer.topics for partition in partitions]
        code = getattr(answer, "error_code", 0) or next((one[3] for one in found if one[3]), 0)
        if not code:
            (_, offset, metadata, _), *_ = found
            return Committed.read(offset, metadata) if offset >= 0 else None
        error = for_code(code)
        if not error.retriable:
            raise error(f"the committed offset of {coordinator.group_id}")
        if error is NotCoordinatorForGroupError:
            coordinator.coordinator_dead()
        await asyncio.sleep(0.1)


async def committed_offset(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int | None:
    """The same, without what the commit says of itself."""
    committed = await committed_progress(consumer, tp)
    return None if committed is None else committed.offset
