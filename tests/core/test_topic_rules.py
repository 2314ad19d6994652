"""What each setting of each topic means: what endangers something, what is worth a look, and what is well."""

import pytest

from holdfast.core.topic_rules import DAY_MS, Setting, differences, partition_differences
from holdfast_schemas import TOPICS
from holdfast_schemas.topics import HOUR_MS

KAFKAS_DEFAULTS = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "unclean.leader.election.enable": "false",
}
# Key, value and role; what it is.
CASES = [
    ("cleanup.policy", "delete", "routes", "serious"),
    ("cleanup.policy", "delete", "state", "serious"),
    ("cleanup.policy", "compact,delete", "routes", "serious"),
    ("cleanup.policy", "delete, compact", "state", "serious"),
    ("cleanup.policy", "compact", "predictions", "look"),
    ("cleanup.policy", "compact", "approved", "look"),
    ("cleanup.policy", "compact", "blocked", "look"),
    ("cleanup.policy", "compact", "incidents", "look"),
    ("cleanup.policy", "compact,delete", "malformed", "serious"),
    ("cleanup.policy", "compact", "control", "serious"),
    ("cleanup.policy", "compact", "audit", "serious"),
    ("retention.ms", "-1", "predictions", "well"),
    ("retention.ms", str(HOUR_MS - 1), "predictions", "serious"),
    ("retention.ms", str(HOUR_MS - 1), "control", "serious"),
    ("retention.ms", "0", "approved", "serious"),
    ("retention.ms", str(HOUR_MS), "predictions", "look"),
    ("retention.ms", str(HOUR_MS - 1), "blocked", "look"),
    ("retention.ms", str(DAY_MS - 1), "audit", "look"),
    ("retention.ms", str(DAY_MS), "audit", "well"),
    ("retention.ms", str(DAY_MS), "predictions", "well"),
    ("retention.ms", "1", "routes", "well"),
    ("retention.bytes", "0", "predictions", "look"),
    ("retention.bytes", "1000000000", "approved", "look"),
    ("message.timestamp.type", "LogAppendTime", "predictions", "well"),
    ("message.timestamp.type", "LogAppendTime", "approved", "serious"),
    ("message.timestamp.type", "LogAppendTime", "blocked", "serious"),
    ("message.timestamp.type", "CreateTime", "control", "serious"),
    ("message.timestamp.type", "CreateTime", "routes", "serious"),
    ("max.message.bytes", "4194303", "approved", "serious"),
    ("max.message.bytes", "4194305", "approved", "well"),
    ("max.message.bytes", "1000", "predictions", "well"),
    ("max.message.bytes", "99999999", "predictions", "well"),
    *(("compression.type", codec, "predictions", "look") for codec in ("producer", "gzip", "snappy", "lz4", "zstd")),
    *(("compression.type", codec, "approved", "well") for codec in ("producer", "gzip", "snappy", "lz4", "zstd")),
    ("min.insync.replicas", "4", "routes", "serious"),
    ("min.insync.replicas", "3", "routes", "well"),
    ("min.insync.replicas", "1", "routes", "look"),
    ("unclean.leader.election.enable", "true", "approved", "serious"),
    ("a.setting.of.tomorrow", "x", "approved", "well"),
]


def made(role, **changes):
    """The settings of a topic that Holdfast has made, with others over them."""
    wanted = {**KAFKAS_DEFAULTS, "min.insync.replicas": "2", **TOPICS[role].settings, **changes}
    return {key: Setting(value, chosen=True) for key, value in wanted.items()}


@pytest.mark.parametrize(("key", "value", "role", "expected"), CASES)
def test_each_setting_alone(key, value, role, expected):
    """Nothing else of a topic that is as Holdfast makes it differs."""
    assert [*differences(role, "t", made(role), 3)] == []
    found = [*differences(role, "t", made(role, **{key: value}), 3)]
    assert [("serious" if one.serious else "look") for one in found] == [expected] * (expected != "well")
    for one in found:
        assert (one.key, one.has) == (key, value)
        assert one.sentence().startswith(f"t has {key}={value}: ")


def test_what_is_wanted_is_well():
    """Once each difference is corrected, none is left; on any broker whose settings are Kafka's defaults."""
    for role in TOPICS:
        actual = {key: Setting(value, chosen=False) for key, value in KAFKAS_DEFAULTS.items()}
        for one in differences(role, "t", actual, 3):
            actual[one.key] = Setting(one.wanted, chosen=True)
        assert [*differences(role, "t", actual, 3)] == []


def test_a_compacted_topic_that_never_deletes_is_well():
    """Also where it is called `compact,delete`."""
    assert not [
        *differences("routes", "t", made("routes", **{"cleanup.policy": "compact,delete", "retention.ms": "-1"}), 3)
    ]
    kept = {"cleanup.policy": "compact,delete", "retention.ms": "-1", "retention.bytes": "1"}
    (one,) = differences("routes", "t", made("routes", **kept), 3)
    assert one.serious


def test_one_replica_alone_has_no_other_leader():
    """Neither an unclean election nor a second replica in sync can be asked of it."""
    alone = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
    assert not [*differences("state", "t", made("state", **alone), 1)]


def test_a_default_that_nobody_chose_is_corrected_and_a_choice_stays():
    """Of what is only worth a look; what endangers something is corrected in any case."""
    short = made("audit", **{"retention.ms": str(DAY_MS)})
    assert not [*differences("audit", "t", short, 3)]
    (one,) = differences("audit", "t", {**short, "retention.ms": Setting(str(DAY_MS), chosen=False)}, 3)
    assert (one.serious, one.correctable, one.wanted) == (False, True, str(TOPICS["audit"].retention_ms))
    (one,) = differences("approved", "t", made("approved", **{"cleanup.policy": "compact"}), 3)
    assert not one.correctable
    (one,) = differences("routes", "t", made("routes", **{"cleanup.policy": "delete"}), 3)
    assert one.correctable


def test_nothing_of_the_producers_topic_is_changed_that_is_only_worth_a_look():
    """Its compression is theirs, also where nobody chose it."""
    actual = {**made("predictions"), "compression.type": Setting("producer", chosen=False)}
    (one,) = differences("predictions", "t", actual, 3)
    assert not one.correctable


def test_topics_that_go_together_need_as_many_partitions():
    """More are well, and so is a topic whose base is not there."""
    names = {role: f"n.{role}" for role in TOPICS}
    assert not [*partition_differences(names, {"predictions": 3, "approved": 3, "blocked": 4, "state": 1})]
    (one,) = partition_differences(names, {"predictions": 3, "approved": 2, "control": 2, "state": 2})
    assert (one.topic, one.has, one.wanted, one.correctable) == ("n.approved", "2", "3", True)
