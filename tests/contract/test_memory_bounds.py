"""What a producer can make a process hold: bytes that are unpacked, on their way, or remembered of an entity."""

import asyncio
import tracemalloc
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from holdfast.core.record import Record
from holdfast.kafka import codecs, partition_worker
from holdfast.kafka.budget import Budget
from holdfast.kafka.group import TransactionalLoop
from holdfast.kafka.records import AT_ONCE_BYTES, StoredBatch, _Records, replace_readers
from holdfast.kafka.transaction import Write, pack

replace_readers()
MIB = 1024 * 1024
GZIP = 1


def packed(value_bytes: int, records: int = 1, first: int = 0) -> bytes:
    """One batch of zeros as a broker stores it, where the topic does not make it unpack them."""
    builder = DefaultRecordBatchBuilder(2, GZIP, False, -1, -1, -1, 2**31 - 1)
    for number in range(records):
        builder.append(number, 0, b"k", bytes(value_bytes), [])
    return first.to_bytes(8) + bytes(builder.build())[8:]


def stored(value_bytes: int, records: int = 1, first: int = 0) -> StoredBatch:
    found = _Records(packed(value_bytes, records, first))
    found.whole = True
    (batch,) = found.next_batch()
    return batch


class _State:
    """An assignment of which every position is where it is asked for."""

    active = True

    def state_value(self, _: TopicPartition) -> "_State":
        return self

    paused = False

    def __init__(self) -> None:
        self.position = 0

    def consumed_to(self, position: int) -> None:
        self.position = position


class _Consumer:
    """Hands out a fetch of stored batches at a time."""

    def __init__(self, fetches: list[list[StoredBatch]]) -> None:
        self.fetches, self.fetched, self.at = fetches, 0, 0

    def resume(self, _: TopicPartition) -> None: ...

    pause = resume

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[StoredBatch]]:
        if not self.fetches:
            return {}
        self.fetched += 1
        found = self.fetches.pop(0)
        self.at = found[-1].offset + 1
        return {tp: found}

    async def position(self, _: TopicPartition) -> int:
        return self.at


class _Work:
    """Keeps how many bytes came at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.offsets: list[int] = []

    async def prepare(self, records: list[Record]) -> None: ...

    def process(self, records: list[Record]) -> list[Write]:
        self.sizes.append(sum(len(record.value or b"") for record in records))
        self.offsets += [record.offset for record in records]
        return []

    async def committed(self, _: Any) -> None: ...


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> partition_worker.PartitionWorker:
    """A worker without brokers: what it publishes is taken at once."""
    monkeypatch.setattr(partition_worker.PartitionWorker, "_run", _nothing)
    made: list[partition_worker.PartitionWorker] = []

    async def make() -> None:
        loop = TransactionalLoop.__new__(TransactionalLoop)
        loop.service, loop.max_records, loop.poll_ms, loop.exactly_once = "test", 10_000, 0, True
        loop.prepare_within = 10.0
        loop.max_unpacked_bytes, loop.budget, loop.workers = 3 * MIB // 2, Budget(64 * MIB), {}
        loop.open_work = lambda _: _Work()  # type: ignore[assignment,return-value]
        made.append(partition_worker.PartitionWorker(loop, TopicPartition("predictions", 0)))

    async def published(self: partition_worker.PartitionWorker, _: Any, position: int) -> dict[TopicPartition, int]:
        self.offset = position
        return {}

    monkeypatch.setattr(partition_worker.PartitionWorker, "_publish", published)
    monkeypatch.setattr(partition_worker, "pack", lambda *_: [])
    asyncio.run(make())
    made[0].producer = object()  # type: ignore[assignment]
    return made[0]


async def _nothing(_: partition_worker.PartitionWorker) -> None: ...


def turns(
    worker: partition_worker.PartitionWorker, fetches: list[list[StoredBatch]], count: int
) -> tuple[_Work, _Consumer]:
    consumer = _Consumer(fetches)
    worker.consumer = consumer  # type: ignore[assignment]

    async def run() -> None:
        for _ in range(count):
            await worker._turn()

    asyncio.run(run())
    assert isinstance(worker.work, _Work)
    return worker.work, consumer


def test_many_small_batches_that_unpack_to_much_are_judged_a_few_at_a_time(
    worker: partition_worker.PartitionWorker,
) -> None:
    """Each is within the bound of one batch, and all of them come in one fetch."""
    batches = [stored(MIB, first=number) for number in range(40)]
    assert sum(batch.packed for batch in batches) < MIB // 4
    work, _ = turns(worker, [batches], 20)
    assert work.offsets == list(range(40)), "in order, all of them"
    assert max(work.sizes) <= 2 * MIB, "two batches: the first one leaves room, the second one reaches the bound"


def test_a_large_batch_of_small_records_is_judged_in_turns_and_forgotten(
    worker: partition_worker.PartitionWorker,
) -> None:
    """What waits counts for the process; in the end nothing does."""
    work, _ = turns(worker, [[stored(500, records=25_000)]], 1)
    assert len(work.offsets) == 10_000
    assert 0 < worker.loop.budget.held == worker._unpacked_bytes <= 25_000 * 600
    turns(worker, [], 3)
    assert work.offsets == list(range(25_000))
    assert (worker.loop.budget.held, worker._unpacked_bytes, worker._packed_bytes) == (0, 0, 0)


def test_no_more_is_fetched_while_much_waits(
    worker: partition_worker.PartitionWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is few records, which alone would not stop it."""
    monkeypatch.setattr(partition_worker, "FETCHED_BYTES", 5_000)
    fetches = [[stored(MIB, first=2 * number), stored(MIB, first=2 * number + 1)] for number in range(30)]
    _, consumer = turns(worker, fetches, 10)
    waiting = sum(batch.packed for batch in worker.stored)
    assert waiting == worker._packed_bytes < 5_000 + 2 * 1_500
    assert consumer.fetched < 20


async def test_who_asks_for_room_waits_until_there_is_some() -> None:
    """All that wait look again when bytes are freed, and the limit holds for each of them."""
    budget, entered = Budget(10), []

    async def one(number: int) -> None:
        await budget.room()
        entered.append(number)
        budget.change(10)

    budget.change(25)
    waiting = [asyncio.create_task(one(number)) for number in range(3)]
    await asyncio.sleep(0)
    budget.change(-15)
    await asyncio.sleep(0.01)
    assert entered == []
    for done in range(1, 4):
        budget.change(-10)
        await asyncio.sleep(0.01)
        assert len(entered) == done
    await asyncio.gather(*waiting)


def test_a_consumer_is_handed_no_more_than_its_share_at_a_time() -> None:
    """Also one that asks for a thousand records; the rest stays packed, and comes with the next turn."""
    size, share = AT_ONCE_BYTES // 4, []
    records = _Records(b"".join(packed(size, first=number) for number in range(10)))
    tp, state = TopicPartition("predictions", 0), _State()
    unpacked = codecs.unpacked_bytes()
    found = fetcher.PartitionRecords(tp, records, [], 0, None, None, True, 0)
    result = fetcher.FetchResult(tp, assignment=state, partition_records=found, backoff=0)
    while result.has_more():
        share.append(len(result.getall(1000)))
        assert codecs.unpacked_bytes() - unpacked <= (sum(share) + 1) * (size + 100)
    assert share == [4, 4, 2]


def test_bytes_are_freed_when_a_batch_fails() -> None:
    """A partition that fails must not take room from the others for good."""
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError), budget.holding(7):
        budget.change(1 // 0)
    assert budget.held == 0


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_what_is_unpacked_is_counted_in_every_codec(codec: str) -> None:
    """A batch that is compressed counts as what it unpacks to."""
    builder = DefaultRecordBatchBuilder(
        2, {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}[codec], False, -1, -1, -1, 2**31 - 1
    )
    builder.append(0, 0, b"k", bytes(MIB), [])
    records, before = _Records(bytes(builder.build())), codecs.unpacked_bytes()
    records.whole = True
    (batch,) = records.next_batch()
    assert len(batch.unpack()) == 1
    assert MIB <= codecs.unpacked_bytes() - before < 1.1 * MIB


def test_a_batch_is_not_kept_twice_while_it_is_on_its_way() -> None:
    """What is built from it stands for it, with the same size."""
    producer: Any = type("P", (), {"_txn_manager": None})()
    (sent,) = pack(producer, [Write("t", 0, [(0, b"k", bytes(500_000), [])])])
    before = sent.batch.size()
    tracemalloc.start()
    built = sent.batch._build()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sent.batch.size() == before == len(built)
    assert sent.batch._build() is built
    assert len(sent.batch._records) == 0
    assert held < 600_000
