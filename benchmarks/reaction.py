"""From the first prediction of a version that is bad to everything that follows from it.

Two guards, a switch, notify and an api run as processes on a real Kafka, Redis and Alertmanager, and predictions come
at a steady rate. Time and again a version that was promoted begins to serve and is bad. This process sends what it
sends and sees what it sees on one clock: it reads verdicts and routes as a committed reader, listens to Redis as
serving code does, asks the Alertmanager, and follows the console's events, or a page of it in Chromium.
"""

import asyncio
import contextlib
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from playwright.async_api import async_playwright
from redis.asyncio import Redis

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import workload  # noqa: E402
from contenders import PARTITIONS  # noqa: E402
from report import Part, Row, markdown, median  # noqa: E402
from workload import BLOCKED, Traffic  # noqa: E402

from backends import AlertmanagerServer, BackendError, GivenKafka, RedisServer  # noqa: E402
from e2e.stack import Stack, Worker  # noqa: E402
from holdfast_schemas import Header  # noqa: E402
from holdfast_schemas.route import REDIS_CHANNEL  # noqa: E402

RATE = 2000
TICK_S = 0.002
PATIENCE_S = 60.0
GOOD = "good"
BREAKER = """
[breaker]
good_after_seen = 500
good_after = "1s"
max_switches = 10000
"""
"""But for these, which let a run begin soon and repeat, everything is as it comes."""
MILESTONES = {
    "blocked": "blocked, for a committed reader",
    "route": "route changed, in Kafka",
    "redis": "route changed, in Redis",
    "fenced": "fenced, on every partition",
    "console": "incident on the console's event stream",
    "alert": "alert in the Alertmanager",
    "page": "incident on the console's page, in Chromium",
}
CASES = {"every output bad": 1.0, "every second output bad": 0.5}
WITH_PAGE = "every output bad, a page open"
GOAL_MS = 300


class Run:
    """Everything up, and predictions coming; `seen` says when what was first seen of the version in question."""

    def __init__(self, stack: Stack, api: Worker, alertmanager: AlertmanagerServer | None) -> None:
        self.stack, self.api, self.alertmanager = stack, api, alertmanager
        self.version, self.bad_share = GOOD, 0.0
        self.number = 0
        self.seen: dict[str, float] = {}
        self.fenced_on: set[int] = set()
        self.sent: Counter[str] = Counter()
        self.verdicts: dict[str, Counter[str]] = {"approved": Counter(), "blocked": Counter()}
        self._tasks: list[asyncio.Task[None]] = []
        self._chance = random.Random(11)

    async def __aenter__(self) -> "Run":
        watchers = (self._send(), self._read(), self._listen(), self._follow_console(), self._ask_alertmanager())
        self._tasks = [asyncio.create_task(watcher) for watcher in watchers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, condition: Any, what: str) -> None:
        """Raises SystemExit when that takes too long, and what ended a part of this."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for task in self._tasks:
                if task.done():
                    task.result()
            if time.monotonic() > deadline:
                raise SystemExit(f"Not within {PATIENCE_S:g} s: {what}. Seen: {self.seen}.")
            await asyncio.sleep(0.01)

    def note(self, milestone: str) -> None:
        self.seen.setdefault(milestone, time.time())

    async def once(self, version: str, bad_share: float, *, page: Any = None) -> Row:
        """Let `version` serve and be bad, until all has followed from it; then the good one serves again."""
        await self.stack.command("pricing", "promote", version)
        # In no step with anybody's clock.
        await asyncio.sleep(1 + self._chance.random())
        self.seen, self.fenced_on = {}, set()
        self.version, self.bad_share = version, bad_share
        wanted = {"sent", "blocked", "route", "redis", "fenced", "console"}
        wanted |= {"alert"} if self.alertmanager is not None else set()
        await self.until(lambda: wanted <= self.seen.keys(), f"all that follows from {version}")
        self.version = GOOD
        await self.until(
            lambda: sum(counts[version] for counts in self.verdicts.values()) == self.sent[version], "the last verdict"
        )
        if page is not None:
            await page.wait_for_function("version => version in window.seen", arg=version, timeout=PATIENCE_S * 1000)
            self.seen["page"] = await page.evaluate("version => window.seen[version]", version) / 1000
        began = self.seen["sent"]
        took = {name: round((at - began) * 1000, 1) for name, at in self.seen.items() if name in MILESTONES}
        return {**took, "approved": self.verdicts["approved"][version], "predictions": self.sent[version]}

    # What is sent, and what is seen.

    async def _send(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.stack.kafka.bootstrap, linger_ms=0)
        await producer.start()
        topic, began, total = self.stack.topic("predictions"), time.monotonic(), 0
        try:
            while True:
                due = int((time.monotonic() - began) * RATE)
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                for _ in range(due - total):
                    version = self.version
                    bad = version != GOOD and self._chance.random() < self.bad_share
                    key, value = workload.event(self.number, Traffic(), now=now, changes=BLOCKED if bad else None)
                    if bad:
                        self.note("sent")
                    self.number += 1
                    self.sent[version] += 1
                    value = value.replace(b'"v42"', b'"%s"' % version.encode())
                    await producer.send(topic, value, key=key, partition=int(key[4:]) % PARTITIONS)
                total = due
                await asyncio.sleep(TICK_S)
        finally:
            await producer.stop()

    async def _read(self) -> None:
        roles = {self.stack.topic(role): role for role in ("approved", "blocked", "routes")}
        consumer = AIOKafkaConsumer(bootstrap_servers=self.stack.kafka.bootstrap, isolation_level="read_committed")
        await consumer.start()
        consumer.assign([tp for tp in self.stack._partitions() if tp.topic in roles])
        try:
            while True:
                for tp, records in (await consumer.getmany(timeout_ms=1000)).items():
                    for record in records:
                        self._take(roles[tp.topic], tp, record)
        finally:
            await consumer.stop()

    def _take(self, role: str, tp: TopicPartition, record: Any) -> None:
        if role == "routes":
            route = json.loads(record.value)
            if route["version"] == GOOD and self.version in route["fenced"]:
                self.note("route")
            return
        headers = dict(record.headers)
        version = headers[Header.MODEL_VERSION].decode()
        self.verdicts[role][version] += 1
        if role == "blocked" and version == self.version:
            self.note("blocked")
            if b'"fenced"' in headers[Header.FINDINGS]:
                self.fenced_on.add(tp.partition)
                if len(self.fenced_on) == PARTITIONS:
                    self.note("fenced")

    async def _listen(self) -> None:
        async with Redis.from_url(self.stack.document["redis"]["url"]) as redis, redis.pubsub() as channel:
            await channel.subscribe(REDIS_CHANNEL)
            async for message in channel.listen():
                if message["type"] == "message" and json.loads(message["data"])["version"] == GOOD:
                    self.note("redis")

    async def _follow_console(self) -> None:
        url = f"http://127.0.0.1:{self.api.port}/events"
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client, client.stream("GET", url) as events:
            async for line in events.aiter_lines():
                if self.version != GOOD and line.startswith("data:") and "lists" in (update := json.loads(line[5:])):
                    shown = (update["html"].get(key, "") for key in update["lists"]["incidents"])
                    if any(self.version in html for html in shown):
                        self.note("console")

    async def _ask_alertmanager(self) -> None:
        if self.alertmanager is None:
            await asyncio.Event().wait()
            return
        async with httpx.AsyncClient(base_url=self.alertmanager.url) as client:
            while True:
                if self.version != GOOD and "alert" not in self.seen:
                    wanted = {"filter": f'bad_version="{self.version}"'}
                    if (await client.get("/api/v2/alerts", params=wanted)).raise_for_status().json():
                        self.note("alert")
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def everything(bootstrap: str, directory: Path) -> AsyncIterator[Run]:
    """The services and what they need."""
    with contextlib.ExitStack() as servers:
        redis = servers.enter_context(RedisServer())
        alertmanager, notify = None, {}
        try:
            quiet = "{route: {receiver: nobody}, receivers: [{name: nobody}]}"
            alertmanager = servers.enter_context(AlertmanagerServer(quiet))
            notify = {"notify": {"alertmanager_urls": [alertmanager.url]}}
        except BackendError as error:
            print(f"Without the alert: {error}.", file=sys.stderr)
        settings = {
            "guard": {"partitioner": "other"},
            "redis": {"reassert_every": "1s"},
            "switch": {"tick_every": "500ms"},
            **notify,
        }
        async with Stack(
            GivenKafka(bootstrap),
            redis.url,
            {},
            folder=directory,
            partitions=PARTITIONS,
            settings=settings,
            follow=("audit", "routes"),
        ) as stack:
            workload.write_policies(directory / "checks", Traffic())
            for path in (directory / "checks").iterdir():
                (stack.policies / path.name).write_text(path.read_text() + (BREAKER if path.suffix == ".toml" else ""))
            services = ["guard", "guard", "switch", "api", *(["notify"] if alertmanager is not None else [])]
            started = await stack.start(*services)
            async with Run(stack, started[3], alertmanager) as run:
                await stack.command("pricing", "promote", GOOD)
                await stack.until(
                    lambda: any(a["action"] == "earned_good" for a in stack.audits("pricing")), "a version is good"
                )
                # The first seconds fill caches, and what each entity's price was.
                await asyncio.sleep(10)
                yield run


NOTE_WHEN_SHOWN = """() => {
  window.seen = {};
  const look = () => {
    for (const one of document.querySelectorAll("#incidents .incident")) {
      const version = /bad-[0-9]+/.exec(one.textContent)?.[0];
      if (version && !(version in window.seen)) window.seen[version] = Date.now();
    }
  };
  new MutationObserver(look).observe(document.querySelector("#incidents"), { childList: true, subtree: true });
}"""


@contextlib.asynccontextmanager
async def open_page(run: Run) -> AsyncIterator[Any]:
    """A page of the console that notes when it shows which version's incident; None without Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("Without the page: no Chromium is here.", file=sys.stderr)
        yield None
        return
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{run.api.port}/")
        await page.evaluate(NOTE_WHEN_SHOWN)
        yield page
        await browser.close()


async def _run(bootstrap: str, rounds: int, directory: Path) -> list[Row]:
    rows: list[Row] = []
    stamp = f"reaction{int(time.time())}"

    def keep(number: int, case: str, row: Row) -> None:
        rows.append({"round": f"{stamp}.{number}", "case": case, **row})
        print(f"round {number + 1}: {case}: {row}", file=sys.stderr)

    async with everything(bootstrap, directory) as run:
        for number in range(rounds):
            for case, share in CASES.items():
                for _ in range(3):
                    keep(number, case, await run.once(f"bad-{len(rows)}", share))
        async with open_page(run) as page:
            for number in range(rounds if page is not None else 0):
                keep(number, WITH_PAGE, await run.once(f"bad-{len(rows)}", 1.0, page=page))
    return rows


def _table(rows: Sequence[Row]) -> str:
    cases = {case: [row for row in rows if row["case"] == case] for case in dict.fromkeys(row["case"] for row in rows)}

    def figures(mine: Sequence[Row], name: str) -> str:
        some = [row for row in mine if name in row]
        if not some:
            return "no Alertmanager" if name == "alert" else ""
        return f"{median(some, name):.0f} / {max(row[name] for row in some):.0f}"

    lines = [[text, *(figures(mine, name) for mine in cases.values())] for name, text in MILESTONES.items()]
    approved = [f"{median(mine, 'approved'):.0f} of {median(mine, 'predictions'):.0f}" for mine in cases.values()]
    lines.append(["outputs of that version that were approved", *approved])
    return markdown(("from the first bad prediction to (ms, median / max)", *cases), lines)


REACTION = Part(
    "Reaction",
    f"""\
From the call that sends the first bad prediction of a version that serves to what follows from it, at {RATE:,} a
second: two guards with the eight-check policy, a switch, notify and an api, with the breaker and the timers as they
come. The goal is the route in Redis within {GOAL_MS} ms, in the median. Each repetition has a version of its own.""",
    lambda rounds: 1.0 + 0.5 * rounds,
    _run,
    _table,
)
