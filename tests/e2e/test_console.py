"""The console page as a person meets it, in a real Chromium."""

import asyncio
import json
import os
import random
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect
from stack import Stack, Worker, sign_in

from backends import GENEROUS, DockerKafka, Kafka, RealKafka, RedisServer
from holdfast.api.tokens import Role, create_token
from holdfast.settings import NotifySettings
from holdfast_schemas import (
    Incident,
    IncidentAction,
    IncidentSeverity,
    IncidentStatus,
    Route,
    RouteState,
    Sample,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 360, "height": 740}
NAMES = {Role.VIEWER: "vera", Role.OPERATOR: "olga", Role.ADMIN: "alice"}
MODELS = ("pricing", "search-ranking", "fraud-score", "delivery-eta", "basket-size", "churn")
BREAKER = """
[[checks]]
name = "price_floor"
kind = "range"
field = "value"
min = 10.0

[breaker]
min_partitions = 1
good_after_seen = 500
good_after = "100ms"
"""


class Site:
    """A stack with a switch and the API, tokens of each role, and a browser."""

    def __init__(self, stack: Stack, api: Worker, tokens: dict[str, str], browser: Browser) -> None:
        self.stack, self.api, self.tokens, self.browser = stack, api, tokens, browser
        self.url = f"http://127.0.0.1:{api.port}"
        self.contexts: list[BrowserContext] = []

    async def page(self, name: str | None = "admin", path: str = "/", **options: Any) -> Page:
        """A page of its own, signed in with the token of `name`; whatever goes wrong on it fails the test."""
        context = await self.browser.new_context(**{"viewport": DESKTOP, **options})
        self.contexts.append(context)
        if name is not None:
            cookies = await asyncio.to_thread(sign_in, self.url, self.tokens[name])
            await context.add_cookies(
                [{"name": key, "value": value, "url": self.url} for key, value in cookies.items()]
            )
        page = await context.new_page()
        page.on("pageerror", _fail)
        page.on(
            "console",
            lambda message: _fail(message.text) if message.type == "error" and "401" not in message.text else None,
        )
        page.on("request", lambda request: _fail(request.url) if not request.url.startswith(self.url) else None)
        await page.goto(self.url + path)
        return page

    async def trip(self, model: str, version: str, **counts: Any) -> None:
        await self.stack.send([tally(model, version, **counts)], role="control")


def _fail(what: object) -> None:
    ERRORS.append(str(what))


ERRORS: list[str] = []
"""What went wrong on a page: an exception, a refused script or style, a request to somewhere else."""


@pytest.fixture(autouse=True)
def nothing_went_wrong_on_a_page() -> Iterator[None]:
    ERRORS.clear()
    yield
    assert ERRORS == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium; on Debian: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(
    kafka: Kafka, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> AsyncIterator[Site]:
    tokens, lines = {}, []
    for role in Role:
        tokens[role.value], line = create_token(NAMES[role], role)
        lines.append(line)
    folder = tmp_path_factory.mktemp("console")
    # Sessions outlast a restart of the API.
    (folder / "session-key").write_text("k" * 64)
    api_settings = {"tokens": lines, "commands_per_minute": 10_000, "outcome_within": "60s"}
    settings = {"api": {**api_settings, "session_key_file": str(folder / "session-key")}}
    policies = dict.fromkeys(MODELS, BREAKER)
    async with Stack(kafka, redis_server.url, policies, folder=folder, settings=settings) as stack:
        api, _ = await stack.start("api", "switch")
        yield Site(stack, api, tokens, browser)


@pytest_asyncio.fixture(loop_scope="module")
async def site(installed: Site) -> AsyncIterator[Site]:
    yield installed
    while installed.contexts:
        await installed.contexts.pop().close()


def tally(model: str, version: str, *, seen: int = 100, failed: int = 0, **more: Any) -> dict[str, Any]:
    """What a guard says of one batch."""
    return {
        "type": "tally",
        "model": model,
        "model_version": version,
        "policy": f"{model}@5f1c0a9be217",
        "at": datetime.now(UTC).isoformat(),
        "worker": "guard-1",
        "partition": 0,
        "first_offset": 0,
        "last_offset": seen,
        "seen": seen,
        "approved": seen - failed,
        "blocked": failed,
        "failed": failed,
        "blocked_by_check": {"price_floor": failed} if failed else {},
        "entities": [f"SKU-{n}" for n in range(10)] if failed else [],
        **more,
    }


def sample(entity: str, *findings: dict[str, Any], **prediction: Any) -> dict[str, Any]:
    return {
        "source": f"predictions/{len(entity)}/81234",
        "prediction": {"prediction_id": f"p-{entity}", "entity_id": entity, **prediction},
        "findings": [{"severity": "error", "enforced": True, **finding} for finding in findings],
    }


def finding(check: str, seen: Any, limit: Any, field: str | None = "value", unit: str | None = "USD") -> dict[str, Any]:
    return {"check": check, "field": field, "seen": seen, "limit": limit, "unit": unit}


CAMERAS = [
    sample(
        "SKU-83101",
        finding("price_floor", 100.0, {"min": 250.0, "max": 25000.0}),
        finding("jump", 100.0, {"last": 12999.0, "min": 6499.5, "max": 38997.0}),
    ),
    sample("SKU-20417", finding("price_floor", 94.5, {"min": 250.0, "max": 25000.0})),
    sample(
        "SKU-55120",
        finding("above_cost", {"value": 100.0, "cost": 812.4}, "value >= 1.02 * cost", field=None, unit=None),
    ),
    sample("SKU-10088", finding("sku_floor", 119.99, {"min": 1899.0, "max": 3499.0})),
]


async def scene(site: Site) -> None:
    """A night in a shop: pricing switched back by itself, one model held, one pinned, the others fine."""
    stack = site.stack

    async def good(model: str, version: str, actor: str = "ci", reason: str = "release") -> None:
        await stack.command(model, "promote", version, actor=actor, reason=reason)
        await asyncio.sleep(0.3)
        await stack.send([tally(model, version, seen=600)], role="control")
        await stack.until(
            lambda: any(a["action"] == "earned_good" and a["version"] == version for a in stack.audits(model))
        )

    await good("pricing", "v41", reason="weekly training, run 2291")
    await good("search-ranking", "2026-11-20")
    await good("fraud-score", "r17", reason="new merchant features")
    await good("delivery-eta", "v8")
    await good("basket-size", "v3")
    await good("churn", "2026.47")
    await stack.command("churn", "promote", "2026.48", actor="ci", reason="release")
    await stack.command(
        "delivery-eta",
        "pin",
        "v8",
        actor="carol",
        reason="no changes over the sales weekend",
        expires_at=(datetime.now(UTC) + timedelta(hours=40)).isoformat(),
    )
    await stack.command("search-ranking", "fence", "2026-11-23", actor="dan", reason="trained on half of the clicks")
    await stack.until(lambda: stack.incidents("search-ranking"))
    await stack.command("search-ranking", "acknowledge", "2026-11-23", actor="dan", reason="retraining")
    await site.trip(
        "fraud-score",
        "r17",
        seen=240,
        failed=61,
        blocked_by_check={"score_range": 61},
        samples=[
            sample("txn-99310", finding("score_range", 1.74, {"min": 0.0, "max": 1.0}, unit=None)),
            sample("txn-99312", finding("score_range", "nan", {"min": 0.0, "max": 1.0}, unit=None)),
        ],
    )
    await stack.until(lambda: stack.route("fraud-score").get("state") == "held")
    await stack.command("pricing", "promote", "v42", actor="ci", reason="weekly training, run 2304")
    await asyncio.sleep(0.3)
    await site.trip(
        "pricing",
        "v42",
        seen=900,
        failed=812,
        blocked_by_check={"price_floor": 774, "jump": 801, "above_cost": 96, "sku_floor": 310},
        samples=CAMERAS,
    )
    await stack.until(lambda: stack.route("pricing").get("version") == "v41")


async def traffic(site: Site, seconds: int) -> None:
    """Predictions of every model of the scene, four times a second; the bad version sends less and less."""
    chance = random.Random(7)
    sizes = {"pricing": 410, "search-ranking": 1240, "delivery-eta": 96, "basket-size": 36, "churn": 14}
    started = asyncio.get_running_loop().time()
    for quarter in range(4 * seconds):
        values = []
        for model, size in sizes.items():
            seen = max(1, round(size / 4 * chance.uniform(0.8, 1.2)))
            failed = 1 if model == "search-ranking" and quarter % 44 == 9 else 0
            values.append(tally(model, site.stack.route(model)["version"], seen=seen, failed=failed))
        if (late := seconds - quarter // 4) < 24:
            failed = max(1, int(95 * 0.8 ** (24 - late)))
            values.append(tally("pricing", "v42", seen=failed, failed=failed))
        values.append(tally("fraud-score", "r17", seen=22, failed=0, approved=0, blocked=22))
        await site.stack.send(values, role="control")
        await asyncio.sleep(max(0.0, started + (quarter + 1) / 4 - asyncio.get_running_loop().time()))


async def test_the_picture_of_the_readme(site: Site) -> None:
    """Written to the folder that HOLDFAST_TEST_PICTURES names; what it shows is there in any case."""
    await scene(site)
    page = await site.page()
    folder = os.environ.get("HOLDFAST_TEST_PICTURES")
    await traffic(site, 62 if folder else 2)
    await expect(page.get_by_role("heading", level=1)).to_have_text("1 model is held")
    await expect(page.locator(".incident")).to_have_count(3)
    await expect(page.locator("#live")).to_have_text("Live")
    if folder:
        await page.screenshot(path=f"{folder}/console.png")
        phone = await site.page(viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2)
        await expect(phone.locator("#live")).to_have_text("Live")
        await phone.screenshot(path=f"{folder}/console-phone.png")


async def filtered(page: Page, text: str) -> None:
    """Type into the filter, and wait until the page follows the new view."""
    async with page.expect_request(lambda request: "/events" in request.url and "q=" in request.url):
        await page.get_by_role("searchbox").fill(text)


def card(page: Page, model: str) -> Locator:
    return page.locator(".model").filter(has=page.locator(".name", has_text=re.compile(f"^{re.escape(model)}$")))


async def test_a_trip_appears_by_itself(site: Site, unique: str) -> None:
    """The incident, the route, the decision and the headline; what a person had opened stays open."""
    await site.stack.command(unique, "promote", "v1")
    page = await site.page(path=f"/?q={unique}")
    model = card(page, unique)
    await model.locator("summary").click()
    await expect(model).to_contain_text("“a test”")
    await site.trip(unique, "v1", failed=60, samples=[CAMERAS[0]])
    incident = page.locator(".incident")
    await expect(incident).to_have_count(1)
    await expect(incident).to_contain_text("60 of 100 outputs blocked (60 %)")
    await expect(incident.locator(".worst")).to_have_text(
        re.compile(r"SKU-83101 value 100 USD expected 6,499\.5 to 38,997 USD \(last 12,999\)")
    )
    await expect(model).to_contain_text("nothing serves")
    await expect(model).to_have_attribute("open", "")
    await expect(page.locator(".decision.trip")).to_contain_text("no good version is left, so the route is held")
    await incident.get_by_text("Evidence").click()
    await site.trip(unique, "v1", failed=50)
    await expect(incident).to_contain_text("110 of 200")
    await expect(incident.get_by_role("cell", name="6,499.5 to 38,997 USD (last 12,999)")).to_be_visible()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("held")


async def test_the_state_reads_without_scripts(site: Site, unique: str) -> None:
    """What serves, what is held, the evidence and the decisions; the filter works, and no dead button is shown."""
    await site.stack.command(unique, "promote", "v7")
    await site.trip(unique, "v7", failed=60, samples=[CAMERAS[2]])
    await site.stack.until(lambda: site.stack.incidents(unique))
    await wait_for(site, "/incidents", lambda items: items, model=unique, status="open")
    page = await site.page(java_script_enabled=False)
    await page.get_by_role("searchbox").fill(unique)
    await page.get_by_role("button", name="Filter").click()
    await expect(page.locator(".model")).to_have_count(1)
    await expect(page.locator(".model")).to_contain_text("nothing serves")
    await page.get_by_text("Evidence").click()
    await expect(page.locator(".evidence")).to_contain_text("value >= 1.02 * cost")
    await expect(page.locator(".decision")).to_have_count(2)
    await expect(page.locator("#live")).to_contain_text("As of")
    await expect(page.locator("[data-command]:visible")).to_have_count(0)


async def test_a_command_is_sent_with_its_reason(site: Site, unique: str) -> None:
    """The dialog says what will happen; the outcome is told, and the audit has the person and the reason."""
    await site.stack.command(unique, "promote", "v1")
    page = await site.page("operator", f"/?q={unique}")
    await card(page, unique).locator("summary").click()
    await card(page, unique).get_by_role("button", name="Hold").click()
    dialog = page.get_by_role("dialog", name=f"Hold {unique}")
    await expect(dialog).to_contain_text("every output is blocked")
    await expect(dialog.get_by_label("Reason")).to_be_focused()
    await dialog.get_by_role("button", name="Hold").click()
    await expect(dialog).to_be_visible()  # a reason is needed
    assert len(site.stack.audits(unique)) == 1
    await dialog.get_by_label("For how long").select_option("30 minutes")
    await dialog.get_by_label("Reason").fill("prices look <b>odd</b>")
    await dialog.get_by_role("button", name="Hold").click()
    await expect(page.get_by_role("status").filter(has_text="Done: the route is held")).to_be_visible()
    await expect(dialog).to_be_hidden()
    await expect(card(page, unique)).to_contain_text("nothing serves")
    await expect(card(page, unique)).to_contain_text("“prices look <b>odd</b>”")
    audit = site.stack.audits(unique)[-1]
    assert (audit["actor"], audit["action"], audit["reason"]) == ("olga", "hold", "prices look <b>odd</b>")
    assert " until " in audit["detail"]


async def test_a_refused_command_says_why(site: Site, unique: str) -> None:
    """In the dialog, which stays with what was typed; sent again it is decided anew."""
    await site.stack.command(unique, "promote", "v1")
    await site.stack.command(unique, "fence", "v0")
    page = await site.page(path=f"/?q={unique}")
    await card(page, unique).locator("summary").click()
    await card(page, unique).locator(".commands").get_by_role("button", name="Promote").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Version").fill("v0")
    await dialog.get_by_label("Reason").fill("trying")
    await dialog.get_by_role("button", name="Promote").click()
    await expect(dialog.get_by_role("alert")).to_have_text(
        "Refused: v0 is fenced; unfence it first, or choose another version."
    )
    ERRORS.clear()  # Chromium notes the 409
    await site.stack.command(unique, "unfence", "v0")
    await dialog.get_by_role("button", name="Promote").click()
    await expect(dialog).to_be_hidden()
    assert site.stack.route(unique)["version"] == "v0"


async def test_a_token_opens_the_door(site: Site) -> None:
    """Without one there is only the door; a wrong one is refused; the cookie is out of scripts' reach."""
    page = await site.page(None, "/?q=pricing")
    await expect(page).to_have_url(re.compile("/login"))
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    for path in ("/events", "/api/v1/routes"):
        async with httpx.AsyncClient() as client:
            assert (await client.get(site.url + path)).status_code == 401
    await page.get_by_label("Token").fill("hf_wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("does not know this token")
    await page.get_by_label("Token").fill(site.tokens["viewer"])
    await page.get_by_role("button", name="Sign in").click()
    await expect(page).to_have_url(f"{site.url}/?q=pricing")
    (cookie,) = await page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert await page.evaluate("document.cookie") == ""
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_url(re.compile("/login"))
    assert await page.context.cookies() == []


@pytest.mark.parametrize(
    "wanted", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
async def test_the_door_leads_nowhere_else(site: Site, wanted: str) -> None:
    """After signing in a person is on a page of ours; nobody else's page signs them in."""
    form = {"token": site.tokens["viewer"], "next": wanted}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{site.url}/login", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        foreign = await client.post(f"{site.url}/login", data=form, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403


async def test_everybody_is_offered_what_they_may(site: Site, unique: str) -> None:
    """A viewer sees no command, an operator all but unfence."""
    await site.stack.command(unique, "promote", "v1")
    await site.stack.command(unique, "fence", "v0")
    await site.stack.until(lambda: site.stack.incidents(unique))
    for name, offered in (
        ("viewer", set()),
        ("operator", {"Acknowledge", "Resolve", "Roll back", "Hold", "Pin", "Promote", "Fence", "Declare good"}),
        (
            "admin",
            {"Acknowledge", "Resolve", "Roll back", "Hold", "Pin", "Promote", "Fence", "Declare good", "Unfence"},
        ),
    ):
        page = await site.page(name, f"/?q={unique}")
        await expect(page.locator(".incident")).to_have_count(1)
        await card(page, unique).locator("summary").click()
        assert set(await page.locator("[data-command]").all_inner_texts()) == offered


async def test_the_trips_of_a_wrong_policy_are_undone_by_a_button(site: Site, unique: str) -> None:
    """The incident names the policy that was taken up before; its button names what will happen."""
    right, wrong = f"{unique}@00000000001d", f"{unique}@0000000bad00"
    await site.stack.command(unique, "promote", "v1")
    await site.trip(unique, "v1", policy=right)
    await site.trip(unique, "v1", failed=60, policy=wrong)
    page = await site.page(path=f"/?q={unique}")
    incident = page.locator(".incident")
    await expect(incident).to_contain_text(f"The policy {wrong} was taken up")
    await asyncio.sleep(3)  # until no tally names it any more
    await incident.get_by_role("button", name="Undo the policy's trips").click()
    dialog = page.get_by_role("dialog", name=f"Undo the trips of {unique} under {wrong}")
    await expect(dialog).to_contain_text("Put the right policy back first.")
    await dialog.get_by_label("Reason").fill("a typo in the floor")
    await dialog.get_by_role("button", name="Undo the policy's trips").click()
    await expect(dialog).to_be_hidden()
    await expect(page.locator("#toast")).to_contain_text("v1 is not fenced any more; v1 serves again")
    await expect(page.locator(".incident")).to_have_count(0)
    assert site.stack.route(unique)["version"] == "v1"


async def test_what_others_say_is_shown_as_text(site: Site, unique: str) -> None:
    """Predictions, reasons and names cannot become markup, on the page or in its updates."""
    evil = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>\'"&{{7*7}}'
    await site.stack.command(unique, "promote", "v1", reason=evil, actor=evil)
    page = await site.page(path=f"/?q={unique}")
    bad = sample(evil, finding(evil, evil, {evil: evil}, field=evil, unit=evil), value=evil)
    await site.trip(unique, "v1", failed=60, samples=[bad], blocked_by_check={evil: 60})
    await expect(page.locator(".incident")).to_have_count(1)
    for again in (False, True):
        if again:
            await page.reload()
        await page.get_by_text("Evidence").click()
        await expect(page.locator(".evidence tbody th")).to_contain_text(evil)
        await expect(page.locator(".evidence .seen")).to_have_text(evil)
        await expect(page.locator(".decision").last).to_contain_text(evil)
        assert await page.locator("main img, main script").count() == 0
        assert await page.evaluate("window.owned") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_and_can_be_read(site: Site, unique: str, scheme: Any) -> None:
    """At 360 px nothing scrolls sideways, with everything open; text has a contrast of 4.5 at least."""
    long = f"{unique}-" + "a-very-long-name-that-somebody-gave-to-a-version" * 3
    await site.stack.command(unique, "promote", long)
    await site.trip(unique, long, failed=60, samples=CAMERAS)
    page = await site.page(path=f"/?q={unique}", viewport=PHONE, color_scheme=scheme)
    await expect(page.locator(".incident")).to_have_count(1)
    await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert await page.evaluate(LOW_CONTRAST) == []
    await page.get_by_role("button", name="Acknowledge").click()
    box = await page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert await page.evaluate(LOW_CONTRAST) == []
    dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 150) == (scheme == "dark")


LOW_CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest(".hidden, .skip, noscript")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${element.className || element.tagName}: ${contrast.toFixed(2)}`);
  }
  return [...new Set(found)];
}"""


async def test_it_says_when_it_is_not_live(site: Site) -> None:
    """While the API is silent, since when; and it is live again by itself, with what happened meanwhile."""
    page = await site.page()
    await expect(page.locator("#live")).to_have_text("Live")
    await asyncio.to_thread(site.api.pause)
    try:
        await expect(page.locator("#live")).to_have_text(
            re.compile(r"Not live since \d\d:\d\d:\d\d UTC"), timeout=20_000
        )
    finally:
        await asyncio.to_thread(site.api.resume)
    await expect(page.locator("#live")).to_have_text("Live", timeout=20_000)
    await asyncio.to_thread(site.api.restart)
    await site.stack.ready(site.api)
    ERRORS.clear()  # Chromium notes the broken connection
    await expect(page.locator("#live")).to_have_text("Live", timeout=30_000)
    ERRORS.clear()


@pytest.mark.real_kafka
async def test_it_says_when_kafka_is_silent(
    fresh_kafka: RealKafka | DockerKafka, redis_server: RedisServer, tmp_path: Path, browser: Browser
) -> None:
    """Since when, on the page, and /ready says it too; a command is answered; afterwards the page is live again."""
    token, line = create_token("alice", Role.ADMIN)
    settings = {"api": {"tokens": [line], "outcome_within": "1s"}}
    async with Stack(fresh_kafka, redis_server.url, {}, folder=tmp_path, settings=settings) as stack:
        api, _ = await stack.start("api", "switch")
        site = Site(stack, api, {"admin": token}, browser)
        await stack.command("pricing", "promote", "v1")
        page = await site.page()
        await expect(page.locator("#live")).to_have_text("Live")
        await asyncio.to_thread(fresh_kafka.pause)
        try:
            silent = re.compile(r"Kafka is silent since \d\d:\d\d:\d\d UTC")
            await expect(page.locator("#live")).to_have_text(silent, timeout=GENEROUS * 1000)
            await expect(card(page, "pricing")).to_contain_text("v1")
            await stack.until(lambda: not api.ready(), "not ready")
            assert re.fullmatch(r"Kafka has not answered for \d+ s\n", api.get("/ready")[1])
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=GENEROUS) as client:
                hold = {"model": "pricing", "reason": "Kafka is silent"}
                answer = await client.post(f"{site.url}/api/v1/commands/hold", json=hold)
            assert answer.status_code == 504
            assert "It may still be carried out" in answer.json()["detail"]
        finally:
            await asyncio.to_thread(fresh_kafka.resume)
        await expect(page.locator("#live")).to_have_text("Live", timeout=GENEROUS * 1000)
        await stack.ready(api)
        await stack.command("pricing", "promote", "v2")
        await expect(card(page, "pricing")).to_contain_text("v2", timeout=GENEROUS * 1000)
        for context in site.contexts:
            await context.close()


async def test_it_can_be_worked_by_keyboard(site: Site, unique: str) -> None:
    """Skip link, filter, opening, a command, and out of the dialog; the focus can be seen."""
    await site.stack.command(unique, "promote", "v1")
    page = await site.page(path=f"/?q={unique}")
    await expect(page.locator("#live")).to_have_text("Live")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the incidents")).to_be_focused()
    await page.keyboard.press("/")
    await expect(page.get_by_role("searchbox")).to_be_focused()
    summary = card(page, unique).locator("summary")
    while not await summary.evaluate("one => one === document.activeElement"):
        await page.keyboard.press("Tab")
    assert await summary.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name=f"Roll back {unique}")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_apis_page_loads_nothing_from_outside(site: Site) -> None:
    """It lists every operation of the OpenAPI document; the requests of every page here stay on its own host."""
    page = await site.page(None, "/docs")
    document = httpx.get(f"{site.url}/openapi.json").json()  # noqa: ASYNC210  a test may wait
    assert await page.locator(".operation > summary code").all_inner_texts() == [
        path
        for tag in ("read", "command")
        for path, ways in document["paths"].items()
        if tag in next(iter(ways.values()))["tags"]
    ]
    cookies = await asyncio.to_thread(sign_in, site.url, site.tokens["viewer"])
    scripts = ("/static/console.js", "/static/login.js")
    for path in ("/", "/login", "/docs", "/static/console.css", *scripts, "/static/icon.svg"):
        text = httpx.get(site.url + path, cookies=cookies).text  # noqa: ASYNC210
        named = set(re.findall(r"(?:https?:)?//[a-z0-9.:-]+", text)) - {"http://www.w3.org", site.url}
        # A link to a runbook is followed by a person, not by the page.
        assert named <= {NotifySettings().console_url}, path


async def wait_for(site: Site, path: str, condition: Any, **query: Any) -> None:
    headers = {"Authorization": f"Bearer {site.tokens['viewer']}"}
    async with httpx.AsyncClient(base_url=f"{site.url}/api/v1", headers=headers) as client, asyncio.timeout(30):
        while not condition((await client.get(path, params=query)).json()["items"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_many_models_and_incidents_stay_usable(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path, browser: Browser
) -> None:
    """Of 200 models and 1,000 open incidents the worst are shown, more on demand, and any can be found."""
    token, line = create_token("alice", Role.ADMIN)
    async with Stack(kafka, redis_server.url, {}, folder=tmp_path, settings={"api": {"tokens": [line]}}) as stack:
        now = datetime.now(UTC)
        routes = [
            Route(
                model=f"model-{number:03}",
                version=None if number == 150 else "v2",
                epoch=2,
                state=RouteState.HELD if number == 150 else RouteState.AUTO,
                reason="release",
                actor="ci",
                since=now,
                fenced=("v1",),
            )
            for number in range(200)
        ]
        incidents = [
            Incident(
                incident_id=f"incident-{number:04}",
                dedup_key=f"holdfast/model-{number % 180:03}/b{number}",
                status=IncidentStatus.TRIGGERED,
                severity=IncidentSeverity.CRITICAL if number == 3 else IncidentSeverity.ERROR,
                model=f"model-{number % 180:03}",
                bad_version=f"b{number}",
                action=IncidentAction.FENCED,
                opened_at=now - timedelta(minutes=1000 - number),
                seen=100,
                blocked=60,
                blocked_by_check={"price_floor": 60},
                samples=tuple(Sample.model_validate_json(json.dumps(one)) for one in CAMERAS),
                policy="p",
                runbook_url="https://holdfast.invalid/runbooks",
            )
            for number in range(1000)
        ]
        await asyncio.gather(
            *(stack.send([one.to_json()], role="routes", key=one.model.encode()) for one in routes),
            *(stack.send([one.to_json()], role="incidents", key=one.incident_id.encode()) for one in incidents),
        )
        (api,) = await stack.start("api")
        site = Site(stack, api, {"admin": token}, browser)
        page = await site.page()
        await expect(page.locator("#live")).to_have_text("Live")
        await expect(page.get_by_role("heading", level=1)).to_have_text("1 model is held")
        await expect(page.locator(".model").first).to_contain_text("model-150")
        await expect(page.locator(".incident").first).to_contain_text("b3")
        await expect(page.locator(".incident")).to_have_count(20)
        await expect(page.locator("#incidents-more")).to_contain_text("980 more")
        await page.get_by_role("link", name="Show 100 more").first.click()
        await expect(page.locator(".incident")).to_have_count(120)
        await filtered(page, "b777")
        await expect(page.locator(".incident h3")).to_have_text([re.compile("model-057 b777")])
        await filtered(page, "model-199")
        await expect(page.locator(".model")).to_have_count(1)
        await expect(page.locator("#incidents-more")).to_contain_text("Nothing fits")
        await stack.send(
            [incidents[0].model_copy(update={"model": "model-199"}).to_json()], role="incidents", key=b"new"
        )
        await expect(page.locator(".incident")).to_have_count(1)
        phone = await site.page(viewport=PHONE)
        await phone.get_by_role("link", name="Show 100 more").first.click()
        await expect(phone.locator(".incident")).to_have_count(120)
        await expect(phone.locator(".incident").first).to_contain_text("b3")
        await phone.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert await phone.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        # The link of an alert leads to its incident, however many there are.
        linked = await site.page(path="/#incident-0042")
        await expect(linked.locator(".incident h3")).to_have_text([re.compile("model-042 b42")])
        for context in site.contexts:
            await context.close()
