"""The Kafka of docker-compose.yml, with its own configuration and its own secrets, on a real broker."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from commands import holdfast

import backends
from holdfast.adapters.acls import grants, monitor_grants
from holdfast.adapters.embedded import free_port
from holdfast.kafka.access_lists import grant_all
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.topics import create_topics, describe_topics
from holdfast.settings import KafkaSettings, Settings
from holdfast_schemas import TOPICS, Party
from test_repository import COMPOSE

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]
WITHOUT_RIGHTS = (TopicAuthorizationFailedError,)


class ComposeKafka(backends.RealKafka):
    """What the compose file says, but for addresses, and the folders of the image."""

    def __init__(self, secrets: Path) -> None:
        said = COMPOSE["services"]["kafka"]["environment"]
        inside, outside, controller = (free_port() for _ in range(3))
        super().__init__(port=inside)
        for name, value in said.items():
            if name != "KAFKA_OPTS":
                self.properties[name.removeprefix("KAFKA_").replace("_", ".").lower()] = value
        places = {"INSIDE": inside, "OUTSIDE": outside, "CONTROLLER": controller}
        listeners = [one.split("://")[0] for one in said["KAFKA_LISTENERS"].split(",")]
        self.properties |= {
            "listeners": ",".join(f"{name}://127.0.0.1:{places[name]}" for name in listeners),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{places[name]}" for name in listeners[:2]),
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self.folder / "data"),
        }
        (option,) = re.findall(r"^-Djava.security.auth.login.config=/run/secrets/(\w+)$", said["KAFKA_OPTS"])
        self.java_options = (f"-Djava.security.auth.login.config={secrets / option}",)
        self.inside, self.outside = f"127.0.0.1:{inside}", f"127.0.0.1:{outside}"
        self.secrets = secrets

    def login(self, service: str) -> dict[str, Any]:
        """As the environment of that service in the compose file says."""
        said = COMPOSE["services"][service]["environment"]
        given = {
            name.removeprefix("HOLDFAST_KAFKA__").lower(): value
            for name, value in said.items()
            if name.startswith("HOLDFAST_KAFKA__")
        }
        file = given["sasl_password_file"].removeprefix("/run/secrets/")
        return given | {"bootstrap_servers": self.inside, "sasl_password_file": self.secrets / file}

    def party(self, party: str) -> dict[str, Any]:
        """From outside, as the head of the compose file says."""
        return self.login("guard") | {
            "bootstrap_servers": self.outside,
            "sasl_username": f"holdfast-{party}",
            "sasl_password_file": self.secrets / f"kafka_{party}",
        }


@pytest.fixture(scope="module")
def kafka_of_compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeKafka]:
    try:
        backends.kafka_libraries()
    except backends.BackendError as error:
        pytest.skip(f"needs Apache Kafka from Maven: {error}")
    folder = tmp_path_factory.mktemp("compose")
    (folder / "deploy").mkdir()
    shutil.copy(backends.ROOT / "deploy" / "compose-secrets", folder / "deploy")
    subprocess.run([folder / "deploy" / "compose-secrets"], check=True, capture_output=True)
    with ComposeKafka(folder / "secrets") as kafka:
        yield kafka


async def writes(login: dict[str, Any], topic: str) -> bool:
    async with AIOKafkaProducer(**KafkaSettings(**login).client_options()) as producer:
        try:
            await asyncio.wait_for(producer.send_and_wait(topic, b"{}", key=b"k"), backends.GENEROUS)
        except WITHOUT_RIGHTS:
            return False
    return True


async def test_the_stack_sets_itself_up_and_each_login_has_its_own_rights(
    kafka_of_compose: ComposeKafka, tmp_path: Path
) -> None:
    """Nothing without rights; then the lists are granted, the topics made, and everybody does their own work alone."""
    kafka = kafka_of_compose
    setup, admin = Settings(kafka=kafka.login("acls")), Settings(kafka=kafka.login("topics"))

    with pytest.raises(KafkaError):
        async with AIOKafkaProducer(bootstrap_servers=kafka.outside, request_timeout_ms=2000):
            pass
    with pytest.raises(KafkaUnavailable):
        await create_topics(admin)
    with pytest.raises(KafkaUnavailable):
        await grant_all(KafkaSettings(**kafka.login("guard")), grants(admin))

    wanted = grants(setup) + monitor_grants("User:exporter")
    assert await grant_all(setup.kafka, wanted) == await grant_all(setup.kafka, wanted), "it may run again"
    listed = await asyncio.to_thread(
        subprocess.run,
        kafka.java(
            *("-Xmx128m", "-XX:TieredStopAtLevel=1", "org.apache.kafka.tools.AclCommand", "--list"),
            *("--bootstrap-server", kafka.inside, "--command-config", str(kafka.secrets / "kafka_setup_properties")),
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(re.findall(r"principal=(\S+), host=\*, operation=(\w+), permissionType=ALLOW", listed.stdout))
    as_java = {"DescribeConfigs": "DESCRIBE_CONFIGS", "AlterConfigs": "ALTER_CONFIGS"}
    assert found == {
        (grant.principal, as_java.get(operation, operation.upper()))
        for grant in wanted
        for operation in grant.operations
    }

    assert set((await create_topics(admin)).values()) == {"created"}
    names = {role: str(getattr(admin.topics, role)) for role in TOPICS}
    for party in (Party.PRODUCER, Party.CONSUMER, Party.AUDITOR, Party.GUARD):
        allowed = {role for role, name in names.items() if await writes(kafka.party(party), name)}
        assert allowed == {role for role, topic in TOPICS.items() if party in topic.writers}, party

    arguments = (kafka.secrets / "kafka_exporter_arguments").read_text()
    (password,) = re.findall(r"--sasl.password=(\w+)", arguments)
    (tmp_path / "exporter").write_text(password)
    login = {"sasl_username": "exporter", "sasl_password_file": tmp_path / "exporter"}
    exporter = KafkaSettings(**kafka.party("consumer") | login)
    assert await describe_topics(exporter, [names["predictions"]]) == {names["predictions"]: 12}
    consumer = AIOKafkaConsumer(names["predictions"], auto_offset_reset="earliest", **exporter.client_options())
    await consumer.start()
    with pytest.raises(TopicAuthorizationFailedError):
        await asyncio.wait_for(consumer.getone(), backends.GENEROUS)
    await consumer.stop()


async def test_the_command_grants_and_says_how_much(kafka_of_compose: ComposeKafka, tmp_path: Path) -> None:
    """As the compose file calls it."""
    login = kafka_of_compose.login("acls")
    lines = [f"{key} = {json.dumps(str(value))}" for key, value in login.items() if not key.startswith("allow_")]
    config = tmp_path / "holdfast.toml"
    config.write_text("\n".join(["[kafka]", "allow_password_without_tls = true", *lines]))
    said = await holdfast(config, *COMPOSE["services"]["acls"]["command"])
    assert said.code == 0, said.err
    assert re.fullmatch(r"\d+ grants stand\.\n", said.out)
