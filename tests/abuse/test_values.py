"""What a producer that may write predictions can do to have a value pass that no check has seen: nothing."""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends import ROOT, Kafka, RedisServer
from e2e.stack import Stack, headers
from e2e.test_audit import audit
from holdfast.core.murmur2 import partitions_of
from holdfast.core.recent import MAX_SEGMENTS
from holdfast_schemas import utc_now

pytestmark = pytest.mark.real_kafka

SHIPPED = (ROOT / "policies/pricing.toml").read_text(encoding="utf-8").replace('model = "pricing"\n', "")
SCORES = '[[checks]]\nname = "share"\nkind = "range"\nmin = 0\nmax = 1\n'
PRICES = """
[[checks]]
name = "floor"
kind = "range"
min = 10
max = 1000
[fields]
model = "meta.model"
model_version = "meta.version"
entity_id = "meta.sku"
value = "prices"
"""
FLEET = '[[checks]]\nname = "odd"\nkind = "outlier"\nmin_values = 5\n'
VERDICTS = ("approved", "blocked", "malformed")
PARTITIONS = 4


@pytest.fixture
async def stack(kafka: Kafka, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Stack]:
    """The policy that we ship, a model with a mapping, and one whose segments anybody may name."""
    policies = {"pricing": SHIPPED, "scores": SCORES, "prices": PRICES, "fleet": FLEET}
    async with Stack(
        kafka, redis_server.url, policies, folder=tmp_path, partitions=PARTITIONS, follow=VERDICTS
    ) as stack:
        shutil.copy(ROOT / "policies/floors.csv", stack.policies)
        await stack.start("guard")
        yield stack


class Attack:
    """Sends predictions, and says what became of them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    async def send(self, *values: dict[str, Any] | bytes, **where: Any) -> list[str]:
        """The verdict of each, in order."""
        await self.stack.send(values, **where)
        ids = [(json.loads(value) if isinstance(value, bytes) else value)["prediction_id"] for value in values]
        await self.stack.until(lambda: set(ids) <= set(self.verdicts()), "each has a verdict")
        found = self.verdicts()
        return [found[one] for one in ids]

    def verdicts(self) -> dict[str, str]:
        return {
            json.loads(record.value)["prediction_id"]: role for role in VERDICTS for record in self.stack.seen[role]
        }

    def said(self, role: str, prediction_id: str) -> dict[str, str]:
        """The headers of the record with the verdict."""
        (found,) = [one for one in self.stack.seen[role] if json.loads(one.value)["prediction_id"] == prediction_id]
        return {name: value.decode() for name, value in headers(found).items()}

    def price(self, entity: str, value: float, **more: Any) -> dict[str, Any]:
        sane: dict[str, Any] = {
            "segment": "lenses",
            "currency": "USD",
            "predicted_at": utc_now().isoformat(),
            "features": {"cost": 5.0},
        }
        return self.stack.prediction("pricing", "v1", entity, value, **(sane | more))

    async def fall(self, entity: str, values: Sequence[float], key: str) -> list[str]:
        """One after the other, each under another key."""
        return [
            (await self.send(self.price(entity, value), key=key.format(number).encode()))[0]
            for number, value in enumerate(values)
        ]


async def test_no_value_passes_that_was_not_checked(stack: Stack) -> None:
    """Two shapes, other keys and partitions, other segments, blanks at the ends, a cost of -1e9, 2,001 segments.

    The verifier finds nothing wrong with what the guard made of it.
    """
    attack = Attack(stack)

    # The one shape is approved as a score of 0.5, and the other one would be used as a price of 0.01.
    both = stack.prediction("scores", "v1", "S-1", 0.5)
    both |= {"prices": 0.01, "meta": {"model": "prices", "version": "v7", "sku": "SKU-1"}}
    case = {**stack.prediction("scores", "v1", "S-1", 0.5), "Value": 0.01}
    assert await attack.send(both, case) == ["malformed"] * 2
    said = attack.said("malformed", both["prediction_id"])
    assert said["holdfast-error-kind"] == "ambiguous"
    assert (
        "`prices` holds the number 0.01, which is the value of events that the policy of prices maps"
        in (said["holdfast-error"])
    )

    # 20,000 halved to 312, each step under a key of its own; then under its own key, in partitions of choice.
    falling = [20_000 / 2**step for step in range(1, 7)]
    assert await attack.send(attack.price("L-1", 20_000)) == ["approved"]
    assert await attack.fall("L-1", falling, "another-{}") == ["blocked"] * 6
    assert await attack.send(json.dumps(attack.price("L-1", 312.5)).encode()) == ["blocked"]
    for partition in range(PARTITIONS):
        assert await attack.send(attack.price("L-1", 312.5), partition=partition) == ["blocked"], partition
    assert await attack.send(attack.price("L-1", 19_000)) == ["approved"]
    # An entity that is new may not begin in a partition of the producer's choice.
    (own,) = partitions_of([b"L-2"], PARTITIONS).tolist()
    assert await attack.send(attack.price("L-2", 312.5), partition=(own + 1) % PARTITIONS) == ["blocked"]
    assert await attack.send(attack.price("L-2", 312.5)) == ["approved"]

    # A camera costs 250 at least, whatever it is called.
    names: list[Any] = ["Cameras", "cameras ", "camera", "", None]
    cheap = [attack.price(f"C-{number}", 100.0, segment=segment) for number, segment in enumerate(names)]
    assert await attack.send(*cheap, attack.price("C-9", 100.0)) == ["blocked"] * 5 + ["approved"]

    # An id that looks like another one.
    unclear = [attack.price(entity, 9_500.0) for entity in ("L-1 ", " L-1", "L-1\u200b", "\ufeffL-1", "L-1\x00")]
    assert await attack.send(*unclear) == ["malformed"] * 5
    assert attack.said("malformed", unclear[2]["prediction_id"])["holdfast-error-kind"] == "bad_entity"

    # A limit of the producer's choice.
    assert await attack.send(attack.price("L-3", 11.0, features={"cost": -1e9})) == ["blocked"]

    # The recent values of a segment stay, however many segments are invented.
    usual = [stack.prediction("fleet", "v1", "F-1", 10.0 + number % 5, segment="cameras") for number in range(9)]
    assert await attack.send(*usual) == ["approved"] * 9
    invented = [
        stack.prediction("fleet", "v1", "F-1", 10.0, segment=f"s{number}") for number in range(MAX_SEGMENTS + 1)
    ]
    await attack.send(*invented)
    odd = stack.prediction("fleet", "v1", "F-1", 1000.0, segment="cameras")
    assert await attack.send(odd) == ["blocked"]

    # A guard that begins again knows no less.
    (guard,) = stack.workers
    guard.restart()
    await stack.ready(guard)
    assert await attack.fall("L-1", falling[-1:], "another-{}") == ["blocked"]
    assert await attack.send({**odd, "prediction_id": "again"}) == ["blocked"]
    assert guard.metric("holdfast_findings_total", model="fleet", check="odd") == 1

    code, facts = await audit(stack)
    assert code == 0, facts
    assert facts["checked"] == sum(len(stack.seen[role]) for role in VERDICTS)


async def test_a_producer_that_keys_in_another_way_is_understood_when_the_policy_says_so(stack: Stack) -> None:
    """By JSON texts, as many serializers write them; and a policy may block what is off its key, or look away."""
    attack = Attack(stack)
    (guard,) = stack.workers

    async def takes_up(line: str) -> None:
        before = guard.told("policies changed")
        stack.write_policy("pricing", f"{line}\n{SHIPPED}")
        await stack.until(lambda: guard.told("policies changed") != before, "the policy is taken up")

    assert await attack.fall("J-1", [100.0], '"J-1"') == ["blocked"]
    await takes_up('key = { field = "entity_id", as = "json" }')
    assert await attack.fall("J-1", [100.0, 90.0], '"J-1"') == ["approved"] * 2
    assert await attack.fall("J-1", [100.0], "J-1") == ["blocked"]
    await takes_up('off_key = "block"')
    off = attack.price("J-1", 100.0)
    assert await attack.send(off, key=b"J") == ["blocked"]
    findings = json.loads(attack.said("blocked", off["prediction_id"])["holdfast-findings"])
    assert [(one["check"], one["seen"]) for one in findings] == [("off_key", "J")]
    await takes_up('off_key = "pass"')
    assert await attack.send(attack.price("J-2", 100.0), key=b"J") == ["approved"]
    code, facts = await audit(stack)
    assert code == 0, facts
