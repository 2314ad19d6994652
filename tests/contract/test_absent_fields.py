"""The metric of fields that a policy reads and no event has."""

from core.alike import policy_of, raw
from holdfast import metrics
from holdfast.adapters.absent_fields import ENOUGH, AbsentFields
from holdfast.core.grouping import decode_by_model
from holdfast.core.policy import PolicySet

TOML = """
model = "absent-fields"
[[checks]]
name = "margin"
kind = "expression"
expression = "value >= {}"
unknown = "pass"
[[checks]]
name = "tier"
kind = "one_of"
field = "features.tier"
values = ["gold"]
unknown = "pass"
"""


def shown():
    """By field, what the metric says."""
    return {
        sample.labels["field"]: sample.value
        for family in metrics.ABSENT_FIELDS.collect()
        for sample in family.samples
        if sample.labels["model"] == "absent-fields"
    }


def test_a_field_is_absent_once_enough_events_lacked_it_and_never_again_once_it_was_seen():
    """A text for a number counts as absent; another policy begins again."""
    watch = AbsentFields()

    def look(feature, count, **features):
        policy = policy_of(TOML.format(feature))
        events = [raw(model="absent-fields", features=features) for _ in range(count)]
        ((_, batch),), _ = decode_by_model(PolicySet.of([policy]), events)
        watch.look(policy, batch.columns)
        return shown()

    assert look("cots", ENOUGH - 1, cost=5, tier="gold") == {"value": 0, "features.cots": 0, "features.tier": 0}
    assert look("cots", 1, cost=5) == {"value": 0, "features.cots": 1, "features.tier": 0}
    assert look("cots", 1, cots="5")["features.cots"] == 1
    assert look("cots", 1, cots=5)["features.cots"] == 0
    assert look("cots", ENOUGH, cost=5)["features.cots"] == 0
    assert look("cost", ENOUGH) == {"value": 0, "features.cost": 1, "features.tier": 1}
