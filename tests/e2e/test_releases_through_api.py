"""Releases for people who have a token and no login to Kafka: the API asks the guards in their name."""

import uuid

import httpx
import pytest

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack, headers
from holdfast.api.tokens import Role, create_token

pytestmark = pytest.mark.real_kafka

MODEL = "pricing"
STEADY = POLICY.replace("min_seen = 20", "min_seen = 1000000")
TODAY = STEADY.replace("min = 10.0", "min = 1.0")


class Desk:
    """A stack with a guard and an API, and people with tokens: their machines reach the API alone."""

    def __init__(self, stack, api, tokens):
        self.stack, self.tokens = stack, tokens
        self.url = f"http://127.0.0.1:{api.port}"
        self.config = stack.folder / "person.toml"
        self.config.write_text(f'[kafka]\nbootstrap_servers = "127.0.0.1:1"\n[api]\nurl = "{self.url}"\n')

    async def say(self, who, *arguments):
        return await holdfast(self.config, *arguments, HOLDFAST_API__TOKEN=self.tokens[who])

    async def post(self, who, kind, key=None, **body):
        sent = {"Authorization": f"Bearer {self.tokens[who]}", **({"Idempotency-Key": key} if key else {})}
        async with httpx.AsyncClient(base_url=f"{self.url}/api/v1", headers=sent, timeout=60) as client:
            return await client.post(f"/commands/{kind}", json={"model": MODEL, "reason": "a sale", **body})

    async def block(self, *values):
        before = len(self.stack.seen["blocked"])
        events = [self.stack.prediction(MODEL, "v1", f"SKU-{before + n}", value) for n, value in enumerate(values)]
        places = await self.stack.send(events)
        await self.stack.until(lambda: len(self.stack.seen["blocked"]) == before + len(values), "all are blocked")
        return [f"{self.stack.topic('predictions')}/{partition}/{offset}" for partition, offset in places]

    async def takes_up(self, policy):
        guard = next(worker for worker in self.stack.workers if worker.name == "guard")
        before = len(guard.told("policies changed"))
        self.stack.write_policy(MODEL, policy)
        await self.stack.until(lambda: len(guard.told("policies changed")) > before, "the policy is taken up")

    def released(self):
        """By whom each source was released."""
        found = [headers(r) for r in self.stack.seen["approved"]]
        return {
            h["holdfast-source"].decode(): h["holdfast-released-by"].decode()
            for h in found
            if h["holdfast-verdict"] == b"released"
        }


async def open_desk(kafka, redis_server, folder, people, **settings):
    made = {name: create_token(name, role, **limits) for name, (role, limits) in people.items()}
    settings = {"api": {"tokens": [line for _, line in made.values()], **settings.pop("api", {})}, **settings}
    stack = Stack(kafka, redis_server.url, {MODEL: STEADY}, folder=folder, partitions=2, settings=settings)
    return stack, {name: token for name, (token, _) in made.items()}


async def test_the_api_asks_the_guards_in_the_name_of_the_token(kafka, redis_server, tmp_path):
    """List, release and retry; what fails only by an administrator's force; one key is one request."""
    people = {
        "vera": (Role.VIEWER, {}),
        "olga": (Role.OPERATOR, {}),
        "alice": (Role.ADMIN, {}),
        "ned": (Role.ADMIN, {"models": ["other"]}),
        "paul": (Role.OPERATOR, {"models": [MODEL]}),
    }
    stack, tokens = await open_desk(kafka, redis_server, tmp_path, people)
    async with stack:
        api, _, _ = await stack.start("api", "guard", "switch")
        desk = Desk(stack, api, tokens)
        low, lower = await desk.block(2.0, 0.01)

        said = await desk.say("vera", "blocked", "list", MODEL, "--json")
        assert said.facts["count"] == 2
        listed = {one["source"]: one for one in said.facts["predictions"]}
        assert {one["entity_id"] for one in listed.values()} == {"SKU-0", "SKU-1"}
        assert listed[low]["findings"][0]["check"] == "price_floor"
        assert "SKU-1" in (await desk.say("paul", "blocked", "list", MODEL)).out

        for who, arguments, says in (
            ("vera", (), "vera has the role viewer, which may not release"),
            ("olga", ("--force",), "olga has the role operator, which may not release with force"),
            ("ned", (), "is limited to other models than pricing"),
            ("olga", ("--actor", "the-cfo"), "The token of api.url says who acts"),
        ):
            refused = await desk.say(who, "blocked", "release", MODEL, "-r", "a sale", *arguments)
            assert (refused.code, says in refused.flat()) == (1, True), refused
        assert (await desk.post("olga", "release", model="nobody")).status_code == 404
        await desk.takes_up(TODAY)
        done = await desk.say("paul", "blocked", "release", MODEL, "-r", "a sale", "--json")
        assert (done.code, done.facts["counts"]) == (1, {"released": 1, "still_fails": 1})
        await stack.until(lambda: desk.released() == {low: "paul"}, "it is released in his name")
        key = uuid.uuid4().hex
        forced = await desk.post("alice", "release", key, force=True, sources=[lower])
        assert (forced.status_code, forced.json()["counts"]) == (200, {"released": 1})
        # The same answer again, also by an API that has restarted; it names what was released then, not today.
        assert (await desk.post("alice", "release", key, force=True, sources=[lower])).json() == forced.json()
        assert (await desk.post("alice", "release", key, force=True)).status_code == 422
        api.restart()
        await stack.ready(api)
        assert (await desk.post("alice", "release", key, force=True, sources=[lower])).json() == forced.json()
        assert (await desk.post("alice", "release", key)).status_code == 422
        again = await desk.post("alice", "release", force=True, sources=[lower, low])
        assert again.json()["counts"] == {"already_released": 2}
        assert desk.released() == {low: "paul", lower: "alice"}

        await stack.send([b'{"model": "pricing", "price": 5.0}', b"\xff"])
        await stack.until(lambda: len(stack.seen["malformed"]) == 2, "both are malformed")
        listed = (await desk.say("alice", "malformed", "list", "--json")).facts
        assert (listed["count"], len(listed["records"]), sum(listed["kinds"].values())) == (2, 2, 2)
        assert all(one["reason"] for one in listed["records"])
        for who, model, says in (
            ("paul", (), "is limited to some models. Ask for one of them"),
            ("paul", ("other",), "is limited to other models than other"),
            ("vera", ("nobody",), "There is no model nobody"),
        ):
            refused = await desk.say(who, "malformed", "list", *model)
            assert (refused.code, says in refused.flat()) == (1, True), refused
        assert (await desk.say("paul", "malformed", "list", MODEL, "--json")).facts["count"] == 0
        failed = await desk.say("alice", "malformed", "retry", MODEL, "-r", "the mapping was wrong", "--json")
        assert (failed.code, failed.facts["counts"]) == (1, {"still_malformed": 2})
        assert all(one["findings"] for one in failed.facts["predictions"])
        # Of which model a record is that cannot be decoded, nobody knows, so a limited token is not told what it holds.
        hidden = await desk.post("paul", "retry")
        assert {one["answer"]: one["findings"] for one in hidden.json()["predictions"]} == {"still_malformed": []}
        nothing = await desk.say("olga", "blocked", "release", MODEL, "-r", "x", "--version", "v9")
        assert (nothing.code, "Nothing of pricing that fits was blocked" in nothing.flat()) == (1, True)


async def test_by_force_two_people_release(kafka, redis_server, tmp_path):
    """The first waits, also over a restart of the guard; the second is carried out, and the audit names both."""
    people = {name: (Role.ADMIN, {}) for name in ("ann", "bob")}
    stack, tokens = await open_desk(kafka, redis_server, tmp_path, people, switch={"approvals": 2})
    async with stack:
        api, guard = await stack.start("api", "guard")
        desk = Desk(stack, api, tokens)
        (low,) = await desk.block(0.01)
        arguments = ("blocked", "release", MODEL, "--force", "-r", "a sale", "--json")
        for _ in range(2):
            waits = await desk.say("ann", *arguments)
            assert (waits.code, waits.facts["counts"]) == (1, {"needs_second_person": 1})
        guard.restart()
        await stack.ready(guard)
        told = await desk.say("ann", *arguments[:-1])
        assert "1 waiting for a second person." in told.flat()
        assert "somebody else must ask for the same within 30m" in told.flat()
        done = await desk.say("bob", *arguments)
        assert (done.code, done.facts["counts"]) == (0, {"released": 1})
        await stack.until(lambda: desk.released() == {low: "bob"}, "it is released")
        (audit,) = [one for one in stack.audits(MODEL) if one.get("source")]
        assert audit["actor"] == "bob"
        assert f"the prediction at {low} was approved, although it fails price_floor; ann had asked" in audit["detail"]
