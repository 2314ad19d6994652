"""What happens to logs in production, done on purpose under load: emptied, made again, held by open transactions."""

import asyncio
import json

import pytest
from aiokafka import AIOKafkaProducer

from e2e.stack import POLICY, Stack
from faults.campaign import LONG, PATIENT, campaign
from holdfast.verify.ledger import Kind

pytestmark = pytest.mark.real_kafka


async def caught_up(run):
    """Wait until the guards have committed the end of every partition; the load is stopped meanwhile."""
    deadline = asyncio.get_running_loop().time() + PATIENT
    while (committed := await run.stack.committed()) != (ends := await run._ends()):
        assert asyncio.get_running_loop().time() < deadline, f"committed {committed} of {ends}"
        await asyncio.sleep(0.2)


async def test_topics_that_are_emptied_while_nothing_runs_stop_nobody(broker, redis_server, tmp_path, figures):
    """Everything was judged, guards and switch stop, predictions and control lose every record; all of them go on."""
    async with campaign(broker, redis_server.url, tmp_path, watch=False) as run:
        # What is removed here the checker cannot compare any more: it is asked at the end, for what is there then.
        for _ in range(10 if LONG else 1):
            run.load.pause()
            await caught_up(run)
            workers = [*run.guards, *run.switches]
            await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in workers))
            for role in ("predictions", "control"):
                await broker.empty_topic(run.stack.topic(role))
            await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in workers))
            run.load.resume()
            run.done["topics emptied"] += 2
            await run.serving()
            await run.progress()
    figures["emptied topics"] = run.figures()


async def test_transactions_of_others_that_are_open_or_aborted_only_delay(broker, redis_server, tmp_path, figures):
    """A producer beside the load aborts, and leaves a transaction open for seconds: what is behind it waits."""
    async with campaign(broker, redis_server.url, tmp_path) as run:
        producer = AIOKafkaProducer(
            bootstrap_servers=broker.bootstrap, transactional_id=f"{run.stack.run}-other", linger_ms=5
        )
        await producer.start()
        try:
            for number in range(40 if LONG else 4):
                partition, aborts, count = number % 4, number % 2 == 0, 1 if number % 4 == 3 else 200
                await producer.begin_transaction()
                for _ in range(count):
                    event = run.stack.prediction("score", "s1", "C1", 0.5)
                    topic = run.stack.topic("predictions")
                    await producer.send(topic, json.dumps(event).encode(), key=b"C1", partition=partition)
                await producer.flush()
                await asyncio.sleep(run.random.uniform(1, 8 if LONG else 2))
                await (producer.abort_transaction() if aborts else producer.commit_transaction())
                run.not_predictions += 1 + (count if aborts else 0)
                run.done["transactions aborted" if aborts else "transactions held open"] += 1
            await run.progress()
        finally:
            await producer.stop()
    figures["open and aborted transactions"] = run.figures()


async def test_topics_that_are_made_again_under_the_guards_are_judged_whole(broker, redis_server, tmp_path, figures):
    """A guard sleeps, or is stopped, while its topic is made again with more records than it had: one verdict each."""
    settings = {"kafka": {"bootstrap_servers": broker.bootstrap, "session_timeout": "3s"}}
    async with Stack(
        broker, redis_server.url, {"pricing": POLICY}, folder=tmp_path, partitions=2, settings=settings
    ) as stack:
        guards = await stack.start("guard", "guard") if LONG else await stack.start("guard")
        sent, done, count = set(), {"topics made again": 0}, 40
        for number in range(12 if LONG else 2):
            predictions = [stack.prediction("pricing", "v1", f"SKU-{n}", 20) for n in range(count)]
            if number:
                for guard in guards:
                    guard.pause() if number % 2 else await asyncio.to_thread(guard.stop)
                await broker.remake_topic(stack.topic("predictions"), 2)
                done["topics made again"] += 1
            await stack.send(predictions)
            if number:
                for guard in guards:
                    guard.resume() if number % 2 else await asyncio.to_thread(guard.start)
            sent |= {one["prediction_id"] for one in predictions}
            wanted = len(sent)
            await stack.until(lambda wanted=wanted: len(stack.verdicts()) >= wanted, "all have verdicts", PATIENT)
            count += 20
        await stack.settled()
        verdicts = stack.verdicts()
    violations = dict.fromkeys((kind.value for kind in Kind), 0)
    violations["lost"] = len(sent - verdicts.keys())
    violations["repeated"] = sum(len(roles) > 1 for roles in verdicts.values())
    figures["topics made again"] = {
        "guards": len(guards),
        "switches": 0,
        **done,
        "predictions": len(sent),
        "fenced versions": 0,
        "violations": violations,
    }
    assert set(violations.values()) == {0}, violations
