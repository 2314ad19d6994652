"""What a consumer group has committed, read with care."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata

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


class GroupNow(NamedTuple):
    """A consumer group as the broker describes it."""

    members: int
    offsets: Mapping[TopicPartition, OffsetAndMetadata]


async def look_at_group(admin: AIOKafkaAdminClient, group: str) -> GroupNow:
    """Count the members of a group, and read what it has committed. Raises KafkaError."""
    try:
        (response,) = await admin.describe_consumer_groups([group])
        offsets = await admin.list_consumer_group_offsets(group)
    except GroupCoordinatorNotAvailableError:
        # A new cluster has no coordinator before the first group comes.
        return GroupNow(0, {})
    _, _, _, _, _, members, *_ = response.groups[0]
    return GroupNow(len(members), offsets)
