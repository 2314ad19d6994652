"""People who sign in at the console through an OpenID Connect provider, in a real Chromium, on a whole installation."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright, expect
from stack import Stack
from test_console import ARGUMENTS, DESKTOP

from backends import Kafka, RedisServer
from holdfast.adapters.embedded import free_port
from holdfast.api.tokens import Role, create_token
from openid_provider import CLIENT, SECRET, OpenIdProvider

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PEOPLE = {
    "ann": {"preferred_username": "ann@corp.example", "realm_access": {"roles": ["holdfast-operators"]}},
    "eve": {"preferred_username": "eve@corp.example", "realm_access": {"roles": ["staff"]}},
}


@pytest.mark.browser
async def test_a_person_signs_in_at_the_provider_and_commands_in_their_own_name(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """From the door to the audit, and out again; who has no role here reads why. Nothing is refused by the browser."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium; on Debian: apt-get install chromium")
    port, errors = free_port(), list[str]()
    url = f"http://127.0.0.1:{port}"
    with OpenIdProvider(PEOPLE, [f"{url}/login/oidc/callback"]) as provider:
        oidc = {
            "issuer": provider.issuer,
            "client_id": CLIENT,
            "client_secret": SECRET,
            "roles_claim": "realm_access.roles",
            "roles": {"holdfast-operators": "operator"},
            "title": "Corp",
        }
        _, line = create_token("ci", Role.OPERATOR)
        settings: dict[str, Any] = {
            "api": {"port": port, "oidc": oidc, "tokens": [line], "outcome_within": "60s"},
            "notify": {"console_url": url},
        }
        policies = {"pricing": "[breaker]\nmin_partitions = 1\n"}
        async with Stack(kafka, redis_server.url, policies, folder=tmp_path) as stack, async_playwright() as playwright:
            api, _ = await stack.start("api", "switch", settings=settings)
            await stack.command("pricing", "promote", "v1")
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = await browser.new_page(viewport=DESKTOP)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)

            await page.goto(f"{url}/?q=pricing")
            door = page.get_by_role("link", name="Sign in with Corp")
            await expect(door).to_be_visible()
            await _picture(page, "door")
            await door.click()
            await expect(page).to_have_title("The provider")
            await page.get_by_role("button", name="ann").click()
            await expect(page).to_have_url(f"{url}/?q=pricing")
            await expect(page.get_by_text("ann@corp.example").first).to_be_visible()
            (cookie,) = await page.context.cookies(url)
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")

            hold = """fetch("/api/v1/commands/hold", {method: "POST", headers: {"Content-Type": "application/json"},
                body: JSON.stringify({model: "pricing", reason: "prices look wrong"})}).then(answer => answer.json())"""
            assert (await page.evaluate(hold))["outcome"] == "applied"
            held = await stack.until(
                lambda: next((one for one in stack.audits("pricing") if one["action"] == "hold"), None), "it is held"
            )
            assert (held["actor"], held["outcome"]) == ("ann@corp.example", "applied")
            assert held["command_id"].startswith("api-")

            await page.get_by_role("button", name="Sign out").click()
            await expect(page).to_have_url(re.compile(r"/login$"))
            assert await page.context.cookies(url) == []
            assert errors == []

            await page.get_by_role("link", name="Sign in with Corp").click()
            await page.get_by_role("button", name="eve").click()
            await expect(page.get_by_role("alert")).to_contain_text("eve@corp.example has no role here")
            await _picture(page, "refused")
            assert all("403" in error for error in errors)  # Chromium notes the answer.
            await browser.close()
            told = [one for one in api.lines() if one["event"] in ("signed in", "signed out", "access refused")]
            assert [one.get("actor") for one in told] == ["ann@corp.example", "ann@corp.example", None]
            assert (told[0]["subject"], told[2]["reason"]) == ("ann", "oidc_role")
            assert SECRET not in api.log.read_text()


async def _picture(page: Any, name: str) -> None:
    if (folder := os.environ.get("HOLDFAST_TEST_PICTURES")) is not None:
        await page.screenshot(path=f"{folder}/openid-{name}.png")
        await page.set_viewport_size({"width": 360, "height": 740})
        await page.emulate_media(color_scheme="dark")
        await page.screenshot(path=f"{folder}/openid-{name}-phone.png")
        await page.emulate_media(color_scheme="light")
        await page.set_viewport_size(DESKTOP)
