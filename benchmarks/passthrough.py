"""The yardstick: aiokafka alone moves the same bytes, exactly once, one transactional producer a partition.

Usage: passthrough.py BOOTSTRAP GROUP SOURCE TARGET FETCH_BYTES
"""

import asyncio
import sys

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition


async def lane(consumer: AIOKafkaConsumer, tp: TopicPartition, bootstrap: str, group: str, target: str) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        transactional_id=f"{group}-{tp.partition}",
        max_batch_size=900_000,
        max_request_size=8 * 1024 * 1024,
        linger_ms=0,
    )
    await producer.start()
    while True:
        records = (await consumer.getmany(tp, timeout_ms=200, max_records=10_000)).get(tp, [])
        if not records:
            continue
        await producer.begin_transaction()
        futures = []
        batch = producer.create_batch()
        for record in records:
            if batch.append(timestamp=record.timestamp, key=record.key, value=record.value, headers=[]) is None:
                futures.append(await producer.send_batch(batch, target, partition=tp.partition))
                batch = producer.create_batch()
                batch.append(timestamp=record.timestamp, key=record.key, value=record.value, headers=[])
        futures.append(await producer.send_batch(batch, target, partition=tp.partition))
        await asyncio.gather(*futures)
        await producer.send_offsets_to_transaction({tp: records[-1].offset + 1}, group)
        await producer.commit_transaction()


async def main() -> None:
    bootstrap, group, source, target, fetch_bytes = sys.argv[1:]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=int(fetch_bytes),
    )
    await consumer.start()
    consumer.subscribe([source])
    while not consumer.assignment():
        await consumer.getmany(timeout_ms=100, max_records=1)
    # The poll above may have taken a record: begin where the group is.
    await consumer.seek_to_beginning()
    await asyncio.gather(*(lane(consumer, tp, bootstrap, group, target) for tp in consumer.assignment()))


uvloop.run(main())
