"""A topic is its id: what is fetched is of that topic and no other of its name."""

import asyncio
import contextlib

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from holdfast.kafka.fetch_by_id import fetch_by_id
from holdfast.kafka.follow import Follower
from holdfast.kafka.reading import close, read_to_end, reader
from holdfast.kafka.topic_ids import topic_ids
from holdfast.settings import KafkaSettings

pytestmark = pytest.mark.real_kafka


async def write(kafka, topic, values, transactional_id=None, *, abort=False):
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=transactional_id)
    await producer.start()
    try:
        if transactional_id:
            await producer.begin_transaction()
        await asyncio.gather(*[await producer.send(topic, value, partition=0) for value in values])
        if transactional_id:
            await (producer.abort_transaction() if abort else producer.commit_transaction())
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def consumer_of(kafka, topic):
    """A consumer that fetches by id, from the first record on, and what it fetches by."""
    consumer = reader(KafkaSettings(bootstrap_servers=kafka.bootstrap), auto_offset_reset="none")
    await consumer.start()
    try:
        ids = fetch_by_id(consumer, await topic_ids(consumer, [topic]))
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        yield consumer, ids
    finally:
        await close(consumer)


async def read(consumer, count):
    """So many values, in order."""
    found = []
    async with asyncio.timeout(30):
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [record.value for record in records]
    return found


async def test_ids_tell_topics_of_one_name_apart(kafka, unique):
    """Each has one as Kafka's tools print it; a topic that is not there has none."""
    await kafka.create_topic(unique, 1)
    consumer = reader(KafkaSettings(bootstrap_servers=kafka.bootstrap))
    await consumer.start()
    try:
        first = await topic_ids(consumer, [unique, f"{unique}-nowhere"])
        await kafka.remake_topic(unique, 1)
        second = await topic_ids(consumer, [unique])
    finally:
        await close(consumer)
    assert first.keys() == second.keys() == {unique}
    assert len(first[unique]) == len(second[unique]) == 22
    assert first != second


async def test_records_that_are_fetched_by_id_are_those_of_the_topic(kafka, unique):
    """Committed ones, without the aborted, and the position is behind the markers."""
    await kafka.create_topic(unique, 1)
    await write(kafka, unique, [b"1", b"2"])
    await write(kafka, unique, [b"no"], f"{unique}-a", abort=True)
    await write(kafka, unique, [b"3"], f"{unique}-b")
    async with consumer_of(kafka, unique) as (consumer, ids):
        assert await read(consumer, 3) == [b"1", b"2", b"3"]
        assert await consumer.position(TopicPartition(unique, 0)) == 6
        assert not ids.refused


async def test_another_topic_of_that_name_is_refused(kafka, unique):
    """Also where it has more records than were read of the first."""
    await kafka.create_topic(unique, 1)
    await write(kafka, unique, [b"old"] * 3)
    async with consumer_of(kafka, unique) as (consumer, ids):
        assert await read(consumer, 3) == [b"old"] * 3
        await kafka.remake_topic(unique, 1)
        await write(kafka, unique, [b"new"] * 5)
        with pytest.raises(OffsetOutOfRangeError):
            await read(consumer, 1)
        assert ids.refused == {unique}


async def test_records_that_are_gone_are_told_apart_from_that(kafka, unique):
    """An offset out of range of the same topic refuses no id."""
    await kafka.create_topic(unique, 1)
    await write(kafka, unique, [b"1"] * 3)
    await kafka.empty_topic(unique)
    async with consumer_of(kafka, unique) as (consumer, ids):
        with pytest.raises(OffsetOutOfRangeError):
            await read(consumer, 1)
        assert not ids.refused


async def test_a_follower_follows_a_topic_that_was_made_again_from_its_first_record(kafka, unique):
    """More records than it had before: none is missing; `catch_up` waits for them."""
    await kafka.create_topic(unique, 1)
    await write(kafka, unique, [b"old"] * 3)
    seen = []
    follower = Follower(
        KafkaSettings(bootstrap_servers=kafka.bootstrap), lambda records: seen.extend(r.value for r in records)
    )
    following = asyncio.create_task(follower.follow({unique: 1}))
    try:
        await asyncio.wait_for(follower.catch_up(), 30)
        await kafka.remake_topic(unique, 1)
        await write(kafka, unique, [b"new"] * 5)
        await asyncio.wait_for(follower.catch_up(), 30)
        assert seen == [b"old"] * 3 + [b"new"] * 5
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_follower_goes_on_where_records_were_removed(kafka, unique):
    """A topic that is emptied under it, or that it reads from its first record on, holds nothing up."""
    await kafka.create_topic(unique, 1)
    await write(kafka, unique, [b"old"] * 3, f"{unique}-a")
    await kafka.empty_topic(unique)
    settings, tp, seen = KafkaSettings(bootstrap_servers=kafka.bootstrap), TopicPartition(unique, 0), []
    assert await read_to_end(settings, [tp], seen.extend) == {tp: 4}
    follower = Follower(settings, lambda records: seen.extend(r.value for r in records))
    following = asyncio.create_task(follower.follow({unique: 1}))
    try:
        await asyncio.wait_for(follower.catch_up(), 30)
        await write(kafka, unique, [b"new"], f"{unique}-a")
        await asyncio.wait_for(follower.catch_up(), 30)
        await kafka.empty_topic(unique)
        await write(kafka, unique, [b"newer"])
        await asyncio.wait_for(follower.catch_up(), 30)
        assert seen == [b"new", b"newer"]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
