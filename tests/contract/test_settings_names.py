"""Names and addresses in the configuration: what Kafka would refuse, or hang on, is refused before anything starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.commands import holdfast
from holdfast.core.names import MAX_NAME, MAX_TOPIC, topic_name
from holdfast.settings import Settings
from holdfast_schemas import TOPICS

REFUSED = {
    "an empty topic": ("[topics]\npredictions = ''", "topics.predictions", "it is empty"),
    "a topic with spaces": (
        "[topics]\npredictions = 'no spaces allowed'",
        "topics.predictions",
        "cannot be the name of a topic",
    ),
    "a topic with a slash": ("[topics]\naudit = 'a/b'", "topics.audit", "cannot be the name of a topic"),
    "a topic that is a folder": ("[topics]\nstate = '..'", "topics.state", "cannot be the name of a topic"),
    "a topic that is not ASCII": ("[topics]\nblocked = 'geprüft'", "topics.blocked", "letters of ASCII"),
    "a topic with a line break": ('[topics]\nblocked = "a\\n"', "topics.blocked", "cannot be the name of a topic"),
    "a topic that is too long": (f"[topics]\nroutes = '{'r' * (MAX_TOPIC + 1)}'", "topics.routes", "at most 249"),
    "an empty group": ("[guard]\ngroup = ''", "guard.group", "it is empty"),
    "a group of spaces": ("[switch]\ngroup = '  '", "switch.group", "it is empty"),
    "a group with a space at its end": ("[guard]\ngroup = 'guards '", "guard.group", "remove spaces at its ends"),
    "a group with a control character": ('[guard]\ngroup = "a\\u0000b"', "guard.group", "invisible characters"),
    "a group that is too long": (f"[guard]\ngroup = '{'g' * (MAX_NAME + 1)}'", "guard.group", "shorten it to 200"),
    "one group for both": (
        "[guard]\ngroup = 'g'\n[switch]\ngroup = 'g'",
        "guard.group and switch.group",
        "are both 'g'",
    ),
    "an empty worker": ("worker = ''", "worker", "it is empty"),
    "no brokers": ("[kafka]\nbootstrap_servers = ''", "kafka.bootstrap_servers", "write 'host:port'"),
    "a broker too few": ("[kafka]\nbootstrap_servers = 'a:9092,'", "kafka.bootstrap_servers", "write 'host:port'"),
    "a port that is not a number": ("[kafka]\nbootstrap_servers = 'a:b'", "kafka.bootstrap_servers", "'a:b' is not"),
    "a port out of range": ("[kafka]\nbootstrap_servers = 'a:70000'", "kafka.bootstrap_servers", "'a:70000' is not"),
    "an API for all the world by mistake": ("[api]\nhost = ''", "api.host", "write '127.0.0.1'"),
    "a health port for all the world by mistake": ("[guard]\nhealth_host = ''", "guard.health_host", "'127.0.0.1'"),
    "no folder of policies": ("policies = ''", "policies", "name the folder"),
}


@pytest.mark.parametrize(("text", "key", "says"), REFUSED.values(), ids=REFUSED.keys())
async def test_check_names_the_key_and_says_what_to_write(tmp_path, text, key, says):
    """Exit code 1 and one line."""
    path = tmp_path / "holdfast.toml"
    path.write_text(text)
    (tmp_path / "policies").mkdir()
    said = await holdfast(path, "check")
    assert said.code == 1
    assert f"{path} or the environment): {key}" in said.flat()
    assert says in said.flat()


TAKEN = (
    {"kafka": {"bootstrap_servers": "kafka-1:9092, kafka-2.example.org:9093,[::1]:9092,broker"}},
    {"kafka": {"bootstrap_servers": "SASL_SSL://kafka:9093"}},
    {"topics": {"predictions": "a" * MAX_TOPIC, "approved": "_Team-1.prices_v2", "blocked": "..."}},
    {"guard": {"group": "Prüfer der Preise", "health_host": "0.0.0.0"}, "api": {"host": "::"}},  # noqa: S104
    {"worker": "holdfast-guard-7d9f-x2"},
)


@pytest.mark.parametrize("changes", TAKEN)
def test_what_kafka_takes_is_taken(changes):
    """And stays as it was written."""
    settings = Settings(**changes)
    for section, value in changes.items():
        for key, one in value.items() if isinstance(value, dict) else ():
            assert getattr(getattr(settings, section), key) == one


def test_every_topic_is_looked_at():
    """Also the ones that the table gains later."""
    for role in TOPICS:
        with pytest.raises(ValueError, match=rf"topics\.{role}"):
            Settings(topics={role: "no spaces allowed"})


@given(st.text(alphabet=st.characters(codec="ascii"), min_size=1, max_size=30))
def test_a_name_is_taken_exactly_by_kafkas_rule(name):
    """Letters of ASCII, digits, dot, underscore and hyphen; not a folder's own names."""
    legal = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    if set(name) <= legal and name not in (".", ".."):
        assert topic_name(name) == name
    else:
        with pytest.raises(ValueError, match="cannot be the name of a topic"):
            topic_name(name)
