"""Where a partition goes on: what the group committed, and nothing else is taken for it."""

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError
from aiokafka.protocol.commit import OffsetFetchResponse_v3

from holdfast.kafka.offsets import committed_offset

TP = TopicPartition("predictions", 3)


class Consumer:
    """Answers with what a broker would, one after the other."""

    def __init__(self, *answers):
        self._coordinator = self
        self.group_id = "guards"
        self.answers = list(answers)
        self.looked_up = 0
        self.known = False

    async def ensure_coordinator_known(self):
        self.looked_up += not self.known
        self.known = True

    def coordinator_dead(self):
        self.known = False

    async def _send_req(self, request):
        return self.answers.pop(0)


def answer(offset=None, *, whole=0, partition=0):
    """An answer of OffsetFetch: an error of the whole of it comes without partitions."""
    partitions = [] if whole else [(TP.topic, [(TP.partition, -1 if offset is None else offset, "", partition)])]
    return OffsetFetchResponse_v3(0, partitions, whole)


LOADING, NOT_COORDINATOR, NOT_ALLOWED = 14, 16, 30


async def test_the_committed_offset_is_what_the_broker_says():
    """An offset, offset 0 too; None only where the broker says that there is none."""
    assert await committed_offset(Consumer(answer(7)), TP) == 7
    assert await committed_offset(Consumer(answer(0)), TP) == 0
    assert await committed_offset(Consumer(answer(None)), TP) is None


@pytest.mark.parametrize("where", ["whole", "partition"])
@pytest.mark.parametrize("code", [LOADING, NOT_COORDINATOR])
async def test_a_coordinator_that_is_still_loading_has_not_said_that_there_is_no_offset(where, code):
    """It is asked again, elsewhere where it is no coordinator any more: never is the beginning taken instead."""
    consumer = Consumer(answer(**{where: code}), answer(**{where: code}), answer(42))
    assert await committed_offset(consumer, TP) == 42
    assert consumer.looked_up == (3 if code == NOT_COORDINATOR else 1)


async def test_a_refusal_is_an_error():
    """A worker without the right to read the group's offsets must not begin anywhere."""
    with pytest.raises(GroupAuthorizationFailedError):
        await committed_offset(Consumer(answer(whole=NOT_ALLOWED)), TP)
