"""A model in shadow, on a real broker: nothing is blocked, and the report says what would have been."""

import asyncio

import httpx
import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, sign_in
from holdfast.api.tokens import Role, create_token

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="function")]


async def test_shadow_is_reported_and_earns_no_good(kafka, redis_server, tmp_path):
    """By check and version, with the worst examples and the trip that would have been; `--wait` says why it waits."""
    policy = 'mode = "shadow"\n' + POLICY
    token, line = create_token("ann", Role.VIEWER)
    settings = {"api": {"tokens": [line]}}
    async with Stack(kafka, redis_server.url, {"pricing": policy}, folder=tmp_path, settings=settings) as stack:
        _, _, api = await stack.start("guard", "switch", "api")
        config = tmp_path / "base.toml"

        async def serve(value):
            before = len(stack.seen["approved"])
            await stack.send([stack.prediction("pricing", "v1", f"SKU-{n % 10}", value + n % 3) for n in range(40)])
            await stack.until(lambda: len(stack.seen["approved"]) >= before + 40, "all are approved")

        waiting = asyncio.create_task(
            holdfast(config, "route", "promote", "pricing", "v1", "-r", "x", "--wait", "--timeout", "120s")
        )
        await stack.until(lambda: stack.route("pricing") or waiting.done(), "v1 is promoted")
        assert not waiting.done(), waiting.result()
        for _ in range(3):
            await serve(1.0)
            await asyncio.sleep(0.2)
        assert not [one for one in stack.audits("pricing") if one["action"] == "earned_good"]

        said = await holdfast(config, "shadow", "report", "pricing", "--since", "1h")
        told = said.flat()
        assert "pricing is in shadow: no check of it blocks." in told
        assert "would have blocked 120 of 120 approved outputs" in told
        assert "would have tripped at" in told
        assert "price_floor 120" in told
        assert "value 1, expected 10 to 25,000 (price_floor)" in told
        (facts,) = (await holdfast(config, "shadow", "report", "pricing", "--json")).facts["versions"]
        assert (facts["version"], facts["would_block"], facts["by_check"]) == ("v1", 120, {"price_floor": 120})

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", timeout=60) as client:
            client.headers["Authorization"] = f"Bearer {token}"
            answer = await client.get("/api/v1/shadow", params={"model": "pricing", "since": "1h"})
            (version,) = answer.raise_for_status().json()["versions"]
            assert {name: version[name] for name in facts if name in version} == {
                name: value for name, value in facts.items() if name in version
            }
            assert "failed within 30s, over the limit of 5.00%" in version["would_trip"]
            assert answer.json()["checks_in_shadow"] == ["price_floor"]
            assert (await client.get("/api/v1/shadow", params={"model": "nobody"})).status_code == 404
            client.cookies.update(await asyncio.to_thread(sign_in, str(client.base_url), token))
            assert "pricing is in shadow: no check of it blocks." in (await client.get("/")).text
            shown = (await client.get("/shadow", params={"model": "pricing"})).text
            assert "<b>120</b> of 120 approved outputs would have been blocked" in shown

        # It works now: once the bad outputs have left the breaker's window it earns good.
        while not waiting.done():
            await serve(100.0)
        said = waiting.result()
        assert said.code == 0
        assert "v1 does not earn good for now" in said.out
        assert "holdfast shadow report pricing" in said.out
