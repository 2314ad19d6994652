"""Logs that go on behind the last record, and logs that lose their beginning: progress is a position."""

import asyncio
import contextlib
import json

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack

pytestmark = pytest.mark.real_kafka


async def offsets_of(stack, role, group, partition=0):
    """The first offset, the end, and what the group has committed."""
    tp = TopicPartition(stack.topic(role), partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        first, end = (await consumer.beginning_offsets([tp]))[tp], (await consumer.end_offsets([tp]))[tp]
        return first, end, await consumer.committed(tp)
    finally:
        await consumer.stop()


async def caught_up(stack, role, group, partition=0):
    """Wait until the group has committed the end, markers and all."""
    for _ in range(600):
        _, end, committed = await offsets_of(stack, role, group, partition)
        if end == committed:
            return end
        await asyncio.sleep(0.1)
    raise AssertionError(f"the group stays at {committed} of {end}")


async def commit(stack, group, role, offset, metadata=""):
    """Commit by hand, as an earlier version or Kafka's own tool does."""
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        tp = TopicPartition(stack.topic(role), 0)
        consumer.assign([tp])
        await consumer.commit({tp: OffsetAndMetadata(offset, metadata)})
    finally:
        await consumer.stop()


@contextlib.asynccontextmanager
async def transaction(stack, values, partition=0):
    """Predictions in a transaction of another producer, which is open for as long as the block lasts."""
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.kafka.bootstrap, transactional_id=f"{stack.run}-outer", linger_ms=5
    )
    await producer.start()
    try:
        await producer.begin_transaction()
        sent = [
            await producer.send(
                stack.topic("predictions"),
                json.dumps(stack.prediction("pricing", "v1", f"SKU-{number}", value)).encode(),
                key=b"k",
                partition=partition,
            )
            for number, value in enumerate(values)
        ]
        await asyncio.gather(*sent)
        yield producer
    finally:
        await producer.stop()


async def forty_outputs(stack):
    await stack.send([stack.prediction("pricing", "v1", f"SKU-{n}", 20 + n) for n in range(40)])
    await stack.until(lambda: len(stack.seen["approved"]) == 40, "40 verdicts")


def judged(stack):
    return sum(len(stack.seen[role]) for role in ("approved", "blocked", "malformed"))


async def test_a_switch_goes_on_after_its_topic_was_emptied(kafka, redis_server, tmp_path):
    """40 outputs, the switch stops, `control` is emptied, the switch starts; then a second one joins."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        guard, switch = await stack.start("guard", "switch")
        await forty_outputs(stack)
        await caught_up(stack, "control", stack.settings.switch.group)
        switch.stop()
        await kafka.empty_topic(stack.topic("control"))
        switch.start()
        await stack.ready(switch)
        await stack.command("pricing", "promote", "v1")
        await caught_up(stack, "control", stack.settings.switch.group)
        await kafka.empty_topic(stack.topic("control"))
        (second,) = await stack.start("switch", ready=False)
        await stack.command("pricing", "promote", "v2")
        await stack.until(lambda: switch.ready() or second.ready(), "one of them has the partition")
        assert all(worker.running for worker in (guard, switch, second))


async def test_a_guard_goes_on_after_the_topic_of_a_transactional_producer_was_emptied(kafka, redis_server, tmp_path):
    """Five predictions and their marker; the guard stops, the topic is emptied, the guard starts."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        async with transaction(stack, [20.0] * 5) as producer:
            await producer.commit_transaction()
        await stack.until(lambda: judged(stack) == 5, "five verdicts")
        assert await caught_up(stack, "predictions", stack.settings.guard.group) == 6
        guard.stop()
        await kafka.empty_topic(stack.topic("predictions"))
        guard.start()
        await stack.ready(guard)
        await stack.send([stack.prediction("pricing", "v1", "SKU-9", 21)])
        await stack.until(lambda: judged(stack) == 6, "it goes on")


async def test_an_installation_of_before_goes_on_behind_its_markers(kafka, redis_server, tmp_path):
    """Its commit is "last record + 1" without metadata, and the marker behind it is gone; the next commit is whole."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        async with transaction(stack, [20.0] * 5) as producer:
            await producer.commit_transaction()
        await caught_up(stack, "predictions", stack.settings.guard.group)
        guard.stop()
        await commit(stack, stack.settings.guard.group, "predictions", 5)
        await kafka.empty_topic(stack.topic("predictions"))
        said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
        assert not [one for one in said.facts if "removed" in one["finding"]], said.facts
        guard.start()
        await stack.ready(guard)
        await stack.send([stack.prediction("pricing", "v1", "SKU-9", 21)])
        await stack.until(lambda: judged(stack) == 6, "it goes on")
        await caught_up(stack, "predictions", stack.settings.guard.group)


async def test_records_that_were_removed_unseen_stop_their_partition_and_no_other(kafka, redis_server, tmp_path):
    """It says so everywhere, the rest goes on, and a command says where this one does."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path) as stack:
        (guard,) = await stack.start("guard")
        for partition in (0, 1):
            await stack.send([stack.prediction("pricing", "v1", "SKU-1", 20)], partition=partition)
        await stack.until(lambda: judged(stack) == 2, "both partitions are judged")
        guard.stop()
        await stack.send([stack.prediction("pricing", "v1", "SKU-1", 20)] * 3, partition=0)
        await kafka.empty_topic(stack.topic("predictions"))
        guard.start()
        place = f"{stack.topic('predictions')}/0"
        gone = f"{place}: the records from offset 1 to 3 were removed before they were checked."
        await stack.until(lambda: gone in guard.get("/ready")[1], "partition 0 has stopped")
        assert guard.get("/ready")[0] == 503
        assert "holdfast offsets set guard --partition 0 --to earliest" in guard.get("/ready")[1]
        assert guard.metric("holdfast_partition_stopped", service="guard", partition="0") == 1
        assert guard.metric("holdfast_partition_stopped", service="guard", partition="1") == 0
        (told,) = guard.told("partition stopped, the others go on")
        assert told["reason"].startswith(gone)
        said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
        (found,) = [one for one in said.facts if place in one["finding"]]
        assert (said.code, found["health"]) == (1, "failed")
        assert found["advice"].endswith("holdfast offsets set guard --partition 0 --to earliest")

        await stack.send([stack.prediction("pricing", "v1", "SKU-1", 21)], partition=1)
        await stack.until(lambda: judged(stack) == 3, "partition 1 goes on")
        await stack.send([stack.prediction("pricing", "v1", "SKU-1", 22)], partition=0)

        arguments = ("offsets", "set", "guard", "--partition", "0", "--to", "earliest", "--json")
        (moved,) = (await holdfast(stack.folder / "base.toml", *arguments)).facts
        assert (moved["before"], moved["after"], moved["passed_over"], moved["repeated"]) == (1, 4, 3, 0)
        await stack.ready(guard)
        await stack.until(lambda: judged(stack) == 4, "partition 0 goes on")
        assert guard.metric("holdfast_partition_stopped") == 0


async def test_an_aborted_transaction_leaves_no_lag(kafka, redis_server, tmp_path):
    """1,050 predictions that were aborted, and their marker, are behind the guard's position."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        async with transaction(stack, [20.0] * 1050) as producer:
            await producer.abort_transaction()
        assert await caught_up(stack, "predictions", stack.settings.guard.group) == 1051
        await stack.until(lambda: guard.metric("holdfast_guard_lag_records") == 0, "no lag")
        said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
        assert f"0 records of {stack.topic('predictions')} wait" in [one["finding"] for one in said.facts]
        assert judged(stack) == 0


async def test_an_open_transaction_of_another_producer_is_named(kafka, redis_server, tmp_path):
    """One prediction in it and 30 plain ones behind it: doctor, lag and a metric tell; then all of them are judged."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        async with transaction(stack, [20.0]) as producer:
            await stack.send([stack.prediction("pricing", "v1", "SKU-1", 20)] * 30)
            said = await holdfast(stack.folder / "base.toml", "doctor", "--json")
            findings = [one["finding"] for one in said.facts]
            place = f"{stack.topic('predictions')}/0"
            (held,) = [one for one in findings if one.startswith(f"a transaction of another producer holds {place}")]
            assert " since 20" in held
            assert held.endswith("everything from offset 0 up to 30 waits for its end")
            assert f"31 records of {stack.topic('predictions')} wait" in findings
            await stack.until(lambda: guard.metric("holdfast_guard_lag_records") == 31, "the lag shows")
            await stack.until(lambda: guard.metric("holdfast_held_by_transaction_seconds") > 0, "the metric tells")
            assert judged(stack) == 0
            await producer.commit_transaction()
        await stack.until(lambda: judged(stack) == 31, "all are judged")
        await stack.until(lambda: guard.metric("holdfast_held_by_transaction_seconds") == 0, "nothing is held")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--to", "nowhere"), "'nowhere' is not a place to go on."),
        (("--to", "7"), "and 7 is not between them."),
        (("--to", "earliest", "--partition", "5"), "has no partition 5."),
        (("--to", "2026-11-24T10:00:00"), "is not a place to go on."),
    ],
)
async def test_offsets_are_set_only_to_where_there_is_something(kafka, redis_server, tmp_path, arguments, sentence):
    """A refusal says what is possible, and changes nothing."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        said = await holdfast(stack.folder / "base.toml", "offsets", "set", "guard", *arguments)
        assert said.code == 1
        assert sentence in said.flat()
        assert (await offsets_of(stack, "predictions", stack.settings.guard.group))[2] is None
        shown = await holdfast(stack.folder / "base.toml", "offsets", "show", "--json")
        assert [one["committed"] for one in shown.facts] == [None, None]


async def predictions(stack, count, first=0):
    """Write predictions of many entities into the only partition."""
    values = [stack.prediction("pricing", "v1", f"SKU-{n}", 20) for n in range(first, first + count)]
    await stack.send(values, partition=0)
    return {one["prediction_id"] for one in values}


async def test_a_topic_that_was_made_again_under_a_guard_is_judged_whole(kafka, redis_server, tmp_path):
    """The guard sleeps; 50 were judged, the new topic gets 80: all 80 have one verdict each, after a restart too."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        sent = await predictions(stack, 50)
        await stack.until(lambda: judged(stack) == 50, "50 verdicts")
        guard.pause()
        await kafka.remake_topic(stack.topic("predictions"), 1)
        sent |= await predictions(stack, 80, first=50)
        guard.resume()
        await stack.until(lambda: len(stack.verdicts()) >= 130, "130 verdicts")
        guard.stop()
        guard.start()
        await stack.ready(guard)
        sent |= await predictions(stack, 1, first=130)
        await stack.until(lambda: len(stack.verdicts()) >= 131, "it goes on")
        await stack.settled()
        assert {prediction_id: len(roles) for prediction_id, roles in stack.verdicts().items()} == dict.fromkeys(
            sent, 1
        )


async def test_a_topic_that_was_made_again_while_no_guard_ran_is_judged_whole(kafka, redis_server, tmp_path):
    """The broker has forgotten the offsets, and there are verdicts and tallies on the topic of before."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard,) = await stack.start("guard")
        sent = await predictions(stack, 50)
        await stack.until(lambda: judged(stack) == 50, "50 verdicts")
        guard.stop()
        await kafka.remake_topic(stack.topic("predictions"), 1)
        sent |= await predictions(stack, 80, first=50)
        guard.start()
        await stack.until(lambda: len(stack.verdicts()) >= 130, "130 verdicts")
        await stack.settled()
        assert {prediction_id: len(roles) for prediction_id, roles in stack.verdicts().items()} == dict.fromkeys(
            sent, 1
        )


def promotions(first, last):
    """Commands that promote versions of those numbers."""
    command = {"type": "command", "model": "pricing", "action": "promote", "actor": "tester", "reason": "a test"}
    return [{**command, "command_id": f"c-{number}", "version": f"v{number}"} for number in range(first, last + 1)]


async def test_a_control_topic_that_was_made_again_while_no_switch_ran_is_read_whole(kafka, redis_server, tmp_path):
    """Its state says how far the switch had come in the topic of before."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (switch,) = await stack.start("switch")
        await stack.command("pricing", "promote", "v1")
        switch.stop()
        await kafka.remake_topic(stack.topic("control"), 1)
        await stack.send(promotions(2, 6), role="control")
        switch.start()
        await stack.until(lambda: len(stack.audits("pricing")) >= 6, "all are answered")
        await stack.settled()
        assert [one["version"] for one in stack.audits("pricing")] == [f"v{number}" for number in range(1, 7)]


async def test_a_control_topic_that_was_made_again_is_read_whole(kafka, redis_server, tmp_path):
    """The switch sleeps; it has answered one command, the new topic gets five: all five are answered, once."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        (switch,) = await stack.start("switch")
        await stack.command("pricing", "promote", "v1")
        switch.pause()
        await kafka.remake_topic(stack.topic("control"), 1)
        await stack.send(promotions(2, 6), role="control")
        switch.resume()
        await stack.until(lambda: len(stack.audits("pricing")) >= 6, "all are answered")
        await stack.settled()
        assert [one["version"] for one in stack.audits("pricing")] == [f"v{number}" for number in range(1, 7)]
        assert stack.route("pricing")["version"] == "v6"


@pytest.mark.parametrize("fault", ["emptied", "made again"])
async def test_the_audit_begins_again_where_records_are_gone(kafka, redis_server, tmp_path, fault):
    """It sleeps while predictions are judged and their topic is emptied, or made again; it counts that, and goes on."""
    async with Stack(kafka, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=1) as stack:
        guard, audit = await stack.start("guard", "audit")
        await predictions(stack, 5)
        await stack.until(lambda: audit.metric("holdfast_audit_checked_total") == 5, "five are compared")
        audit.pause()
        for number in range(5, 10):
            # In batches of their own: the first one may be on its way to the audit already.
            await predictions(stack, 1, first=number)
        await stack.until(lambda: judged(stack) == 10, "all are judged")
        if fault == "emptied":
            await kafka.empty_topic(stack.topic("predictions"))
        else:
            await kafka.remake_topic(stack.topic("predictions"), 1)
        audit.resume()
        await predictions(stack, 20, first=10)
        await stack.until(lambda: judged(stack) == 30, "the guard goes on")
        await stack.until(lambda: audit.metric("holdfast_audit_gaps_total") >= 1, "it tells of the gap")
        await stack.until(lambda: audit.metric("holdfast_audit_checked_total") >= 25, "it goes on")
        assert audit.metric("holdfast_audit_violations_total") == 0
        assert guard.running
        assert audit.running
