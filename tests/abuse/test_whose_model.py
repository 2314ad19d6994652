"""What a producer can do to a model that is not its own, or under a version that nobody promoted: nothing."""

import asyncio
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from backends import Kafka, RedisServer
from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, headers
from e2e.test_audit import audit

pytestmark = pytest.mark.real_kafka

JUMP = '[[checks]]\nname = "jump"\nkind = "max_change"\ndown = 0.5\nup = 3.0\nunknown = "pass"\n'


async def test_a_version_that_nobody_promoted_is_neither_approved_nor_moves_what_others_are_held_against(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """80 outputs of v9, each within every check of the one before, from 20,000 to 5: v1 goes on at 19,000.

    Then v9 fails until it trips: the route stays, also after a guard that has to read everything back.
    """
    async with Stack(kafka, redis_server.url, {"pricing": JUMP + POLICY}, folder=tmp_path, partitions=1) as stack:
        (guard, _) = await stack.start("guard", "switch")
        await stack.command("pricing", "promote", "v1")
        await stack.until(lambda: stack.route("pricing").get("promoted") == ["v1"], "the route names what was promoted")
        await stack.send([stack.prediction("pricing", "v1", "L-1", 20_000.0)])
        await stack.until(lambda: len(stack.seen["approved"]) == 1, "the guard knows the route and v1 is approved")
        await stack.send([stack.prediction("pricing", "v9", "L-1", 20_000 * 0.9**step) for step in range(1, 81)])
        await stack.until(lambda: len(stack.seen["blocked"]) == 80, "all of v9 is blocked")
        assert {json.loads(record.value)["model_version"] for record in stack.seen["approved"]} == {"v1"}
        findings = [json.loads(headers(record)["holdfast-findings"]) for record in stack.seen["blocked"]]
        assert all(found[0]["check"] == "not_promoted" and found[0]["enforced"] for found in findings)

        def tallies() -> list[dict[str, Any]]:
            return [one for one in stack.tallies("pricing") if one["model_version"] == "v9"]

        await stack.until(lambda: sum(one["seen"] for one in tallies()) == 80, "all of v9 is counted")
        assert sum(one["blocked"] for one in tallies()) == 80
        assert not any(one.get("promoted", True) for one in tallies())

        await asyncio.to_thread(guard.kill)
        (guard,) = await stack.start("guard")
        await stack.send([stack.prediction("pricing", "v1", "L-1", 19_000.0)])
        await stack.until(lambda: len(stack.seen["approved"]) == 2, "v1 is not hurt")

        # A guard that has not heard of a promotion yet asks before it blocks.
        guard.pause()
        await stack.command("pricing", "promote", "v10")
        await stack.send([stack.prediction("pricing", "v10", "L-1", 17_000.0)])
        guard.resume()
        await stack.until(lambda: len(stack.seen["approved"]) == 3, "what came after the promotion is approved")

        bad = [stack.prediction("pricing", "v9", f"E{number % 20}", 1.0) for number in range(200)]
        await stack.send(bad)
        await stack.until(lambda: "v9" in stack.route("pricing")["fenced"], "a candidate trips by its own outputs")
        assert (stack.route("pricing")["version"], stack.route("pricing")["state"]) == ("v10", "auto")
        await stack.send([stack.prediction("pricing", "v1", "L-1", 18_000.0)])
        await stack.until(lambda: len(stack.seen["approved"]) == 4, "and v1, which served before, goes on")
        code, facts = await audit(stack)
        assert code == 0, facts


class Topics:
    """Reads and writes the topics of an input that the installation has beside its own."""

    def __init__(self, kafka: Kafka, topics: dict[str, str]) -> None:
        self.topics, self.seen = topics, dict[str, list[ConsumerRecord]]()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        self._producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, enable_idempotence=True)

    async def __aenter__(self) -> "Topics":
        await self._producer.start()
        await self._consumer.start()
        self._consumer.assign(
            [TopicPartition(self.topics[role], n) for role in ("approved", "blocked") for n in (0, 1)]
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
        await self._consumer.stop()

    async def send(self, values: Sequence[dict[str, Any]]) -> None:
        for value in values:
            key = str(value["entity_id"]).encode()
            await self._producer.send(self.topics["predictions"], json.dumps(value).encode(), key=key)
        await self._producer.flush()

    async def until(self, number: int) -> dict[str, list[dict[str, Any]]]:
        """The events by role, once there are as many verdicts."""
        found: dict[str, list[dict[str, Any]]] = {"approved": [], "blocked": []}
        roles = {self.topics[role]: role for role in found}
        async with asyncio.timeout(60):
            while sum(map(len, self.seen.values())) < number:
                for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
                    self.seen.setdefault(roles[tp.topic], []).extend(records)
        return found | {role: [json.loads(one.value) for one in records] for role, records in self.seen.items()}


async def test_a_topic_speaks_for_its_own_models_only(kafka: Kafka, redis_server: RedisServer, tmp_path: Path) -> None:
    """800 bad outputs in the name of two good versions, in a topic that may not carry their model, fence nothing.

    They are blocked there, no tally names them, and a metric counts them against the topic. The model's own topic
    goes on; its blocked outputs are listed and released, and the verifier finds nothing wrong in either.
    """
    prices = f"prices-{uuid.uuid4().hex[:8]}"
    inputs = [{"name": "prices", "topic": prices, "models": ["pricing"]}]
    async with Stack(
        kafka, redis_server.url, {"pricing": POLICY, "churn": POLICY}, folder=tmp_path, settings={"inputs": inputs}
    ) as stack:
        config = stack.write_config("cli")
        made = await holdfast(config, "topics", "create", "--json")
        own = stack.settings.of_input("prices").topics
        assert made.code == 0, made.flat()
        assert made.facts[own.approved] == "created"
        assert made.facts[stack.topic("approved")] == "exists"
        shared, _ = await stack.start("guard", "switch")
        await stack.start("guard", settings={"input": "prices"})
        topics = {role: str(getattr(own, role)) for role in ("predictions", "approved", "blocked")}
        async with Topics(kafka, topics) as of_prices:
            for version in ("v1", "v2"):
                await stack.command("pricing", "promote", version)
            await of_prices.send([stack.prediction("pricing", f"v{1 + n % 2}", f"E{n % 9}", 100.0) for n in range(40)])
            assert len((await of_prices.until(40))["approved"]) == 40

            # From here on somebody who may write the other topic speaks for the model.
            bad = [stack.prediction("pricing", f"v{1 + n % 2}", f"E{n % 20}", 0.01) for n in range(800)]
            good = [stack.prediction("pricing", "v2", "E1", 100.0), stack.prediction("churn", "c1", "E1", 100.0)]
            await stack.send([*bad, *good])
            await stack.until(lambda: len(stack.seen["blocked"]) == 801, "whatever its value is")
            await stack.until(lambda: len(stack.seen["approved"]) == 1, "the topic's own models go on")
            assert json.loads(stack.seen["approved"][0].value)["model"] == "churn"
            found = [json.loads(headers(record)["holdfast-findings"]) for record in stack.seen["blocked"]]
            assert {one["check"] for of_record in found for one in of_record} == {"not_allowed_here"}
            assert found[0][0]["limit"] == f"a model that {stack.topic('predictions')} may carry"
            metric, topic = "holdfast_predictions_not_allowed_here_total", stack.topic("predictions")
            await stack.until(lambda: shared.metric(metric, topic=topic) == 801, "the topic's metric counts it")

            await of_prices.send([stack.prediction("pricing", "v2", "E1", 101.0)])
            await of_prices.send([stack.prediction("pricing", "v2", "E2", 5.0)])
            verdicts = await of_prices.until(42)
            assert [one["value"] for one in verdicts["approved"][40:]] == [101.0]
            assert [one["value"] for one in verdicts["blocked"]] == [5.0]
            counted = "the model's own topic is counted, and nothing else"
            await stack.until(lambda: sum(one["seen"] for one in stack.tallies("pricing")) == 42, counted)
            assert stack.route("pricing")["fenced"] == []
            assert stack.incidents("pricing") == []

        listed = await holdfast(config, "blocked", "list", "pricing", "--json")
        assert [one["source"].rsplit("/", 2)[0] for one in listed.facts["predictions"]] == [prices]
        released = await holdfast(
            config, "blocked", "release", "pricing", "--force", "--reason", "r", "--actor", "ann", "--json"
        )
        assert released.code == 0, released.flat()
        doctor = await holdfast(config, "doctor")
        group = stack.settings.of_input("prices").guard.group
        assert f"1 in the group {group}" in doctor.flat()
        for options in ((), ("--input", "prices")):
            code, facts = await audit(stack, *options)
            assert code == 0, facts
            assert facts["checked"] == (42 if options else 802)
        printed = (await holdfast(config, "acls", "kafka")).out
        assert f"--allow-principal User:prices-holdfast-producer --operation Write --topic {prices} " in printed
        wrong = await holdfast(config, "offsets", "show", "--input", "nowhere")
        assert (wrong.code, "The inputs are prices." in wrong.flat()) == (1, True)
