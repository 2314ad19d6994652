"""Everything runs with logins, TLS and access lists as they are written down, and nothing is possible beyond them."""

import asyncio
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, TopicAuthorizationFailedError
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError
from secure import (
    ALERTMANAGER_PASSWORD,
    Certificates,
    SecureAlertmanager,
    SecureKafka,
    SecureRedis,
    TokenEndpoint,
    password,
)
from stack import POLICY, Stack, Worker, headers, sign_in

import backends
from holdfast.adapters.acls import REDIS_USERS
from holdfast.adapters.redis import RedisUnavailable, RouteMirror
from holdfast.adapters.service import OWN_PATHS
from holdfast.api.tokens import Role, create_token
from holdfast.client import RouteReader
from holdfast.settings import KafkaSettings
from holdfast_schemas import TOPICS, Party

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="module")]
PRICES = "prices.v3"
"""A topic of predictions that is bound to a model."""
TOO_LARGE = bytes(5 * 1024 * 1024)
"""Packed it is small, so that it reaches the broker, which asks for rights before it unpacks."""


class Site(NamedTuple):
    certificates: Certificates
    kafka: SecureKafka
    redis: SecureRedis
    tokens: TokenEndpoint
    token_url: str

    def login(self, party: str, **changes: Any) -> dict[str, Any]:
        return self.kafka.login(party, **changes)

    def token_login(self, party: str, **changes: Any) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.kafka.sasl,
            "security_protocol": "SASL_SSL",
            "ssl_ca_file": str(self.certificates.ca),
            "sasl_mechanism": "OAUTHBEARER",
            "oauth_token_url": self.token_url,
            "oauth_client_id": f"holdfast-{party}",
            "oauth_client_secret": password(party),
        } | changes

    def redis_login(self, user: str) -> dict[str, Any]:
        """The section `redis` of a user's configuration."""
        return {
            "url": self.redis.tls_url,
            "ssl_ca_file": str(self.certificates.ca),
            "username": user,
            "password": password(user),
        }

    def redis_url(self, user: str) -> str:
        place = self.redis.tls_url.removeprefix("rediss://")
        return f"rediss://{user}:{password(user)}@{place}?ssl_ca_certs={self.certificates.ca}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Kafka, Redis with the users that are written down, and a token endpoint."""
    try:
        backends.kafka_libraries()
    except backends.BackendError as error:
        pytest.skip(f"needs Apache Kafka from Maven: {error}")
    folder = tmp_path_factory.mktemp("site")
    certificates, tokens = Certificates(folder), TokenEndpoint()
    with (
        SecureKafka(certificates, tokens.write_jwks(folder / "jwks.json")) as kafka,
        SecureRedis(certificates) as redis,
        tokens.serve() as token_url,
    ):
        for user in REDIS_USERS:
            words = shlex.split(user.command())
            assert words[0] == "redis-cli"
            command = [*words[1:], f">{password(user.name)}"]
            asyncio.run(_redis_command(redis.url, command))
        yield Site(certificates, kafka, redis, tokens, token_url)


async def _redis_command(url: str, words: list[str]) -> None:
    async with Redis.from_url(url) as client:
        assert await client.execute_command(*words)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(site: Site, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """An installation whose access lists were granted by exactly the lines that `holdfast acls kafka` prints."""
    folder = tmp_path_factory.mktemp("stack")
    (folder / "admin.properties").write_text("")
    inputs = {"inputs": [{"name": "prices", "topic": PRICES, "models": ["discounts"]}]}
    stack = Stack(site.kafka, site.redis.url, {"pricing": POLICY}, folder=folder, create=False, settings=inputs)
    printed = holdfast("acls", "kafka", "--config", str(folder / "base.toml"))
    assert printed.returncode == 0, printed.stderr

    def grant(line: str) -> None:
        words = shlex.split(line)
        assert words[0] == "kafka-acls.sh"
        java = site.kafka.java("-Xmx128m", "-XX:TieredStopAtLevel=1", "org.apache.kafka.tools.AclCommand", *words[1:])
        done = subprocess.run(java, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(grant, printed.stdout.splitlines()))
    created = holdfast("topics", "create", "--config", str(stack.write_config("admin", {"kafka": site.login("admin")})))
    assert created.returncode == 0, created.stderr
    async with stack:
        yield stack


def holdfast(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return subprocess.run(
        [sys.executable, "-m", "holdfast.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=90,
        check=False,
    )


async def operate(site: Site, stack: Stack, *arguments: str, party: str = "operator") -> str:
    """What the command line prints for the login of an operator, straight from Kafka."""
    config = stack.write_config(party, {"kafka": site.login(party), "redis": site.redis_login("holdfast-serving")})
    done = await asyncio.to_thread(holdfast, *arguments, "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command_keys(folder: Path) -> tuple[Path, Path]:
    """A key pair of the API, as files."""
    private, public = folder / "command-key.pem", folder / "command-public-key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def no_secret(text: str) -> bool:
    return "hunter2" not in text


@pytest.fixture(scope="module")
def alertmanager(site: Site) -> Iterator[SecureAlertmanager]:
    try:
        server = SecureAlertmanager(site.certificates)
    except backends.BackendError as error:
        pytest.skip(str(error))
    with server:
        yield server


async def shown(worker: Worker) -> str:
    """Everything that a service lets people see: its log, and what it answers at every path that each service has."""
    answers = [await asyncio.to_thread(worker.get, path) for path in OWN_PATHS]
    return "\n".join([worker.log.read_text(), *(body for _, body in answers)])


async def test_the_whole_way_with_a_login_for_each(
    site: Site, stack: Stack, alertmanager: SecureAlertmanager, tmp_path: Path
) -> None:
    """Predicted, checked, promoted over HTTP, tripped, switched, paged, compared, released and diagnosed.

    Each by its own login over TLS alone. Only the switch has one for Redis: the others do their work without.
    """
    secrets = {name: tmp_path / name for name in ("api", "alertmanager")}
    secrets["api"].write_text(password("api"))
    secrets["alertmanager"].write_text("hunter2-wrong")
    token, line = create_token("olga", Role.OPERATOR)
    admins_token, admins_line = create_token("alice", Role.ADMIN)
    private, public = command_keys(tmp_path)
    verifies = {"command_public_key_file": str(public)}
    away = {"url": "redis://127.0.0.1:1/0"}
    logins: dict[str, dict[str, Any]] = {
        "guard": {
            "kafka": site.login("guard", sasl_mechanism="SCRAM-SHA-256"),
            "redis": away,
            "api": verifies,
        },
        "switch": {"kafka": site.login("switch"), "redis": site.redis_login("holdfast-switch"), "api": verifies},
        "notify": {
            "kafka": site.login("notify"),
            "redis": away,
            "notify": {
                "alertmanager_urls": [alertmanager.url],
                "username": "notify",
                "password_file": str(secrets["alertmanager"]),
                "ssl_ca_file": str(site.certificates.ca),
            },
        },
        "api": {
            "kafka": site.login("api", sasl_password=None, sasl_password_file=str(secrets["api"])),
            "redis": away,
            "api": {"tokens": [line, admins_line], "command_key_file": str(private)},
        },
        "audit": {"kafka": site.login("auditor"), "redis": away},
    }
    workers = {
        name: (await stack.start(name, settings=settings, ready=name != "notify"))[0]
        for name, settings in logins.items()
    }
    notify, api, audit = workers["notify"], workers["api"], workers["audit"]
    for worker in workers.values():
        checked = await asyncio.to_thread(holdfast, "check", "--config", str(worker.config))
        assert checked.returncode == 0, checked.stderr
        assert no_secret(checked.stdout + checked.stderr)

    async def command(action: str, token: str = token, **body: Any) -> httpx.Response:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=backends.GENEROUS) as client:
            url = f"http://127.0.0.1:{api.port}/api/v1/commands/{action}"
            return await client.post(url, json={"model": "pricing", **body})

    await operate(site, stack, "route", "promote", "pricing", "v1", "--reason", "first", party="break-glass")
    producer = AIOKafkaProducer(**KafkaSettings(**site.login("producer")).client_options())
    await producer.start()
    try:

        async def predict(version: str, value: float) -> None:
            for number in range(40):
                one = Stack.prediction("pricing", version, f"SKU-{number}", value)
                await producer.send(stack.topic("predictions"), json.dumps(one).encode(), key=f"SKU-{number}".encode())
            await producer.flush()

        async with RouteReader(site.redis_url("holdfast-serving"), "pricing") as routes:
            await predict("v1", 100.0)
            await stack.until(lambda: any(a["action"] == "earned_good" for a in stack.audits("pricing")), "v1 is good")
            # What is read of the file at a new connection is refused; a rotated password is taken up.
            secrets["api"].write_text("hunter2-wrong")
            refused = await command("promote", version="v2", reason="better")
            assert refused.status_code == 503
            assert "refused the login by SCRAM-SHA-512" in refused.json()["detail"]
            assert no_secret(refused.text)
            secrets["api"].write_text(password("api"))
            promoted = await command("promote", version="v2", reason="better")
            assert promoted.json()["actor"] == "olga"
            await stack.until(lambda: routes.route("pricing").version == "v2", "serving code reads v2")
            await predict("v2", 1.0)
            await stack.until(lambda: stack.route("pricing").get("version") == "v1", "v2 is left")
            await stack.until(lambda: routes.route("pricing").version == "v1", "serving code reads v1")
        await stack.until(lambda: len(stack.verdicts()) == 80, "all are judged")
        assert len(stack.seen["approved"]) == 40

        await stack.until(lambda: "refuses the login" in notify.get("/ready")[1], "the Alertmanager refuses the login")
        assert no_secret(await shown(notify))
        assert alertmanager.alerts() == []
        secrets["alertmanager"].write_text(ALERTMANAGER_PASSWORD)
        await stack.until(alertmanager.alerts, "the incident is at the Alertmanager")
        (alert,) = alertmanager.alerts()
        assert (alert["model"], alert["bad_version"]) == ("pricing", "v2")
        await stack.ready(notify)

        consumer = AIOKafkaConsumer(
            stack.topic("approved"),
            group_id="holdfast-consumer-shop",
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            **KafkaSettings(**site.login("consumer")).client_options(),
        )
        await consumer.start()
        try:
            for _ in range(40):
                await asyncio.wait_for(consumer.getone(), backends.GENEROUS)
            await consumer.commit()
        finally:
            await consumer.stop()

        assert json.loads(await operate(site, stack, "incidents", "list", "--json"))
        await operate(site, stack, "blocked", "list", "pricing", "--json")
        forced = await command("release", admins_token, force=True, reason="a drill")
        assert forced.json()["counts"] == {"released": 40}, forced.text
        released = [r for r in stack.seen["approved"] if headers(r)["holdfast-verdict"] == b"released"]
        await stack.until(lambda: released or len(stack.seen["approved"]) == 80, "all are released")
        await stack.until(lambda: audit.metric("holdfast_audit_checked_total") == 80, "every verdict is compared")
        assert audit.metric("holdfast_audit_violations_total") == 0
        commands = [one for one in stack.audits("pricing") if one.get("command_id")]
        assert {(one["version"], one["through"]) for one in commands if one["action"] == "promote"} == {
            ("v1", "kafka"),
            ("v2", "api"),
        }
        assert {one["through"] for one in commands if one["action"] == "release"} == {"api"}
    finally:
        await producer.stop()

    doctor = await asyncio.to_thread(holdfast, "doctor", "--json", "--config", str(stack.folder / "operator.toml"))
    said = json.loads(doctor.stdout)
    failed = [one for one in said if one["health"] == "failed"]
    # No guard of the other input runs here.
    assert {one["area"] for one in failed if "-guard-prices" not in one["finding"]} <= {"alertmanager"}, said
    assert {"kafka", "topics", "guard", "switch", "redis"} <= {one["area"] for one in said}
    assert no_secret(doctor.stdout + doctor.stderr)
    await assert_the_site_shows_no_secret(api, token)
    for worker in workers.values():
        assert no_secret(await shown(worker)), worker.name
        assert token not in await shown(worker), worker.name
        worker.stop()


async def assert_the_site_shows_no_secret(api: Worker, token: str) -> None:
    """Its pages, its documents, what it answers to bad requests, and the first event of the console."""
    url = f"http://127.0.0.1:{api.port}"
    cookies = await asyncio.to_thread(sign_in, url, token)
    async with httpx.AsyncClient(base_url=url, cookies=cookies, timeout=backends.GENEROUS) as client:
        for method, path, status in (
            *(("GET", path, 200) for path in ("/", "/login", "/docs", "/openapi.json", "/static/console.js")),
            *(("GET", f"/api/v1/{name}", 200) for name in ("routes", "versions", "rates", "incidents", "audit")),
            ("GET", "/api/v1/incidents/none", 404),
            ("GET", "/api/v1/routes?of=hunter2", 422),
            ("POST", "/api/v1/commands/hold", 422),
            ("DELETE", "/api/v1/routes", 405),
            ("GET", "/nothing", 404),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == status, (path, answer.text)
            assert no_secret(answer.text), path
        client.cookies.clear()
        assert (await client.get("/api/v1/routes", headers={"Authorization": "Bearer hunter2"})).status_code == 401
        client.cookies.update(cookies)
        async with client.stream("GET", "/events") as events:
            assert no_secret(await anext(aiter(events.aiter_text())))


@pytest.mark.parametrize("party", list(Party))
async def test_each_party_writes_what_the_table_says_and_nothing_else(party: Party, site: Site, stack: Stack) -> None:
    """Asked of the broker, topic by topic; the record is one that is refused, as too large, to those who may write."""
    may = await may_write(site.login(party), [stack.topic(role) for role in TOPICS])
    assert may == {stack.topic(role): party in topic.writers for role, topic in TOPICS.items()}


async def may_write(login: dict[str, Any], topics: Sequence[str]) -> dict[str, bool]:
    """Which of the topics this login may write."""
    producer = AIOKafkaProducer(
        max_request_size=2**24, compression_type="gzip", **KafkaSettings(**login).client_options()
    )
    await producer.start()
    may = {}
    try:
        for topic in topics:
            try:
                sent = producer.send_and_wait(topic, TOO_LARGE, key=b"x", partition=0)
                await asyncio.wait_for(sent, backends.GENEROUS)
            except MessageSizeTooLargeError:
                may[topic] = True
            except TopicAuthorizationFailedError:
                may[topic] = False
    finally:
        await producer.stop()
    return may


async def test_a_producer_is_bound_to_the_models_of_its_topic(site: Site, stack: Stack) -> None:
    """By the lines that `holdfast acls kafka` prints: the one may write its input, and neither of them the other's."""
    topics = [PRICES, stack.topic("predictions"), f"{PRICES}.approved", stack.topic("approved"), stack.topic("control")]
    user = "prices-holdfast-producer"
    theirs = await may_write(site.login("producer", sasl_username=user, sasl_password=password(user)), topics)
    assert [topic for topic, may in theirs.items() if may] == [PRICES]
    others = await may_write(site.login("producer"), topics)
    assert [topic for topic, may in others.items() if may] == [stack.topic("predictions")]


async def test_each_party_reads_what_the_table_says_and_nothing_else(site: Site, stack: Stack) -> None:
    """A record in every topic, and who gets it."""
    for role in TOPICS:
        if not stack.seen[role]:
            await stack.send([b"x"], role=role, key=b"x", partition=0)

    async def reads(party: Party, role: str) -> bool:
        consumer = AIOKafkaConsumer(**KafkaSettings(**site.login(party)).client_options())
        try:
            await consumer.start()
            found = await consumer._client._wait_on_metadata(stack.topic(role))
            tps = [TopicPartition(stack.topic(role), number) for number in found]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            async with asyncio.timeout(backends.GENEROUS):
                while not await consumer.getmany(timeout_ms=500):
                    pass
            return True
        except TopicAuthorizationFailedError:
            return False
        finally:
            await consumer.stop()

    for party in Party:
        got = dict(zip(TOPICS, await asyncio.gather(*(reads(party, role) for role in TOPICS)), strict=True))
        assert got == {role: party in topic.readers for role, topic in TOPICS.items()}, party


REFUSED = {
    "a wrong password": ({"sasl_password": "hunter2-wrong"}, "refused the login by SCRAM-SHA-512"),
    "a mechanism that is off": ({"bootstrap_servers": "mtls"}, "takes connections, but"),
    "a wrong CA": ({"ssl_ca_file": "other"}, "showed a certificate that is not accepted"),
    "TLS where there is none": ({"bootstrap_servers": "plain"}, "Check that the"),
    "another's rights": ({"sasl_username": "holdfast-notify", "sasl_password": password("notify")}, "holdfast acls"),
}


@pytest.mark.parametrize(("changes", "says"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_login_that_does_not_work_is_one_sentence(
    changes: dict[str, Any], says: str, site: Site, stack: Stack
) -> None:
    """Exit code 1, no traceback, no secret."""
    known = {"other": str(site.certificates.other_ca), "mtls": site.kafka.mtls, "plain": site.kafka.bootstrap}
    login = site.login("guard", **{key: known.get(value, value) for key, value in changes.items()})
    await assert_refused(stack, login, says)


@pytest.mark.parametrize("service", ["switch", "notify", "api", "audit"])
async def test_a_wrong_password_is_one_sentence_of_every_service(service: str, site: Site, stack: Stack) -> None:
    """As it is of a guard."""
    login = site.login("auditor" if service == "audit" else service, sasl_password="hunter2-wrong")
    await assert_refused(stack, login, "refused the login by SCRAM-SHA-512", service)


async def assert_refused(stack: Stack, login: dict[str, Any], says: str, service: str = "guard") -> None:
    port = "port" if service == "api" else "health_port"
    config = stack.write_config("refused", {"kafka": login, service: {port: 0}})
    done = await asyncio.to_thread(holdfast, service, "--config", str(config))
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    assert says in lines[0]
    assert "Traceback" not in done.stderr
    assert no_secret(done.stdout + done.stderr)


async def test_tokens_are_renewed_before_they_expire(site: Site, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard outlives its token, although the broker ends each connection with the token it was opened with."""
    monkeypatch.setattr(site.tokens, "lasts", 4.0)
    before = site.tokens.given
    guard = (await stack.start("guard", settings={"kafka": site.token_login("guard")}))[0]
    judged = len(stack.verdicts())
    deadline = time.monotonic() + 10
    sent = 0
    while time.monotonic() < deadline:
        await stack.send([Stack.prediction("pricing", "v1", f"SKU-{sent}", 100.0)])
        sent += 1
        await asyncio.sleep(0.2)
    await stack.until(lambda: len(stack.verdicts()) == judged + sent, "every prediction is judged")
    await stack.settled()
    assert {len(verdicts) for verdicts in stack.verdicts().values()} <= {1, 2}
    assert site.tokens.given >= before + 2
    assert no_secret(guard.log.read_text())
    guard.stop()


async def test_a_token_that_does_not_work_is_one_sentence(
    site: Site, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the broker or by the endpoint, no token at all, or nobody there."""
    wrong = site.token_login("guard", oauth_client_secret="hunter2-wrong")
    await assert_refused(stack, wrong, "refused the client holdfast-guard: invalid_client")
    away = site.token_login("guard", oauth_token_url="http://127.0.0.1:1/token")
    await assert_refused(stack, away, "cannot be reached")
    bad = {"claims": ({"exp": time.time() - 60}, {"aud": "somebody-else"}), "key": (TokenEndpoint().key,)}
    for attribute, values in bad.items():
        for value in values:
            with monkeypatch.context() as changed:
                changed.setattr(site.tokens, attribute, value)
                await assert_refused(stack, site.token_login("guard"), "refused the login by OAUTHBEARER")
    monkeypatch.setattr(site.tokens, "answer", (200, b"<html>hunter2-page</html>"))
    await assert_refused(stack, site.token_login("guard"), "and no token")


async def test_a_client_certificate_is_a_login(site: Site) -> None:
    """Its name is the principal; the key may be encrypted."""
    cert, key = site.certificates.issue("holdfast-producer", key_password="hunter2-key")
    settings = KafkaSettings(
        bootstrap_servers=site.kafka.mtls,
        security_protocol="SSL",
        ssl_ca_file=site.certificates.ca,
        ssl_cert_file=cert,
        ssl_key_file=key,
        ssl_key_password="hunter2-key",
    )
    producer = AIOKafkaProducer(**settings.client_options())
    await producer.start()
    with pytest.raises(KafkaError):
        await producer.send_and_wait("nobody.granted.this", b"x")
    await producer.stop()


@pytest.mark.parametrize("login", ["password", "certificate"])
async def test_a_living_client_logs_in_with_what_the_file_holds_by_then(site: Site, tmp_path: Path, login: str) -> None:
    """A secret that was rotated is taken up at the next connection; one that cannot be read leaves the old one."""
    given: dict[str, Any]
    if login == "password":
        right, wrong, file = password("producer"), "hunter2-old", tmp_path / "rotated"
        given = site.login("producer", sasl_password=None, sasl_password_file=file)
    else:
        pairs = site.certificates.issue("holdfast-producer"), Certificates(tmp_path).issue("stranger")
        right, wrong = ("".join(path.read_text() for path in pair) for pair in pairs)
        file = tmp_path / "rotated"
        given = {"bootstrap_servers": site.kafka.mtls, "security_protocol": "SSL", "ssl_ca_file": site.certificates.ca}
        given["ssl_cert_file"] = file
    file.write_text(wrong)
    producer = AIOKafkaProducer(**KafkaSettings(**given).client_options())
    file.write_text(right)
    await producer.start()
    file.write_text("")
    for connection in list(producer.client._conns.values()):
        connection.close()
    await producer.client.fetch_all_metadata()
    await producer.stop()
    file.write_text(wrong)
    producer = AIOKafkaProducer(**KafkaSettings(**given).client_options())
    with pytest.raises(KafkaError):
        await producer.start()
    await producer.stop()


async def test_a_switch_takes_up_a_new_password_of_redis(site: Site, stack: Stack, tmp_path: Path) -> None:
    """Without a restart."""
    file = tmp_path / "password"
    file.write_text("hunter2-old")
    login = {key: value for key, value in site.redis_login("holdfast-switch").items() if key != "password"}
    settings = {"kafka": site.login("switch"), "redis": {**login, "password_file": str(file)}}
    (switch,) = await stack.start("switch", settings=settings)
    await stack.until(lambda: switch.told("routes are not mirrored to Redis; guards go on obeying Kafka"), "it says so")
    file.write_text(password("holdfast-switch"))
    await stack.until(lambda: switch.told("routes are mirrored to Redis"), "it is let in")
    switch.stop()


async def test_a_switch_without_its_redis_says_so_without_the_password(site: Site, stack: Stack) -> None:
    """The login is refused, in its log; it switches on, since guards obey Kafka."""
    login = {**site.redis_login("holdfast-switch"), "password": "hunter2-wrong"}
    (switch,) = await stack.start("switch", settings={"kafka": site.login("switch"), "redis": login})
    await stack.until(lambda: switch.told("routes are not mirrored to Redis; guards go on obeying Kafka"), "it says so")
    promote = ("route", "promote", "pricing", "v3", "--reason", "without Redis")
    await operate(site, stack, *promote, party="break-glass")
    assert no_secret(await shown(switch))
    switch.stop()


async def test_redis_users_can_do_what_they_must_and_nothing_else(site: Site) -> None:
    """The switch's user writes routes and nothing else; the serving one reads them. Both over TLS."""
    own = {"pricing": "holdfast:{pricing}:route"}
    async with (
        Redis.from_url(site.redis_url("holdfast-switch")) as switch,
        Redis.from_url(site.redis_url("holdfast-serving")) as serving,
    ):
        for words in (("SET", "other", "1"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("ACL", "LIST")):
            for client in (switch, serving):
                with pytest.raises(NoPermissionError):
                    await client.execute_command(*words)
        with pytest.raises(ResponseError, match="permission"):
            await switch.eval("return redis.call('FLUSHALL')", 0)
        for words in (("SET", own["pricing"], "v9"), ("DEL", own["pricing"]), ("PUBLISH", "holdfast:routes", "{}")):
            with pytest.raises(NoPermissionError):
                await serving.execute_command(*words)
        with pytest.raises(NoPermissionError):
            await serving.execute_command("GET", "other")
    with pytest.raises(RedisUnavailable, match="refused the login") as refused:
        await RouteMirror(site.redis_url("holdfast-switch").replace("hunter2", "hunter3")).ping()
    assert "hunter" not in str(refused.value)
    url = site.redis_url("holdfast-switch").replace(str(site.certificates.ca), str(site.certificates.other_ca))
    with pytest.raises(RedisUnavailable, match="certificate that is not accepted"):
        await RouteMirror(url).ping()
