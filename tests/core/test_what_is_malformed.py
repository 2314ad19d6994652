"""Which model version is to blame for a record that cannot be decoded, and what it counts for."""

from datetime import timedelta

import pytest

from core.alike import NOW, Real, policy_of, raw
from core.test_decode import MAPPED, mapped
from core.written import Rec
from holdfast.core.breaker import Window
from holdfast.core.decode import Shape
from holdfast.core.findings import entity, prediction_id
from holdfast.core.grouping import decode_by_model
from holdfast.core.malformed import Malformed, MalformedKind, blamed
from holdfast.core.samples import Source
from holdfast.core.tallies import with_malformed
from holdfast_schemas import Sample

FLOOR = 'model = "pricing"\n[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n'
FINE = raw(model_version="v2")


def put(value):
    return FINE.replace(b"10.0", value.encode())


def whose(event, toml=FLOOR):
    """The versions that the tallies count a malformed event for."""
    real = Real(policy_of(toml))
    assert real.judge([event]) == ["malformed"]
    return [one.model_version for one in real.tallies]


@pytest.mark.parametrize(
    "event",
    [
        *map(put, ("null", '"NaN"', '"12.5"', '"Infinity"', "true", "[]", "[1]", "{}", '""')),
        # As the printf of other languages writes it: not JSON, and the rest can be read
        *map(put, ("nan", "-nan", "NAN(0x1)", "inf", "-inf", "1.#QNAN", "1.#IND", "None", "undefined")),
        raw(model_version="v2", value=None),
        raw(model_version="v2", value=None, outputs={}),
        raw(model_version="v2", value=None, outputs={"p": "0.5"}),
        raw(model_version="v2", entity_id=None),
        raw(model_version="v2", prediction_id=None),
        raw(model_version="v2", prediction_id=7.5),
        raw(model_version="v2", entity_id="x" * 1001),
        raw(model_version="v2", entity_id="\ud800"),
        raw(model_version="v2", note="x").replace(b'"x"', b'"caf\xe9"'),
        FINE[:-1] + b',"value":11}',
        FINE[:-1] + b',"entity_id":"b"}',
    ],
)
def test_a_version_whose_events_cannot_be_decoded_is_to_blame(event):
    """A null, a text for a number, no output, another encoding: whatever says its model and version counts for it."""
    real = Real(policy_of(FLOOR))
    assert real.judge([raw(), event]) == [(True, []), "malformed"]
    fine, told = real.tallies
    assert (fine.model_version, fine.seen, fine.blocked) == ("v1", 1, 0)
    assert (told.model_version, told.seen, told.approved, told.blocked, told.failed, told.critical) == (
        ("v2", 1, 0, 1, 1, 0)
    )
    assert told.blocked_by_check == {"malformed": 1}
    assert len(told.entities) == 1
    (sample,) = told.samples
    assert [finding.check for finding in sample.findings] == ["malformed"]
    assert sample.findings[0].seen is not None or sample.findings[0].limit is not None


@pytest.mark.parametrize(
    "event",
    [
        None,
        b"",
        b"{",
        b"[1]",
        FINE[:-1],
        b"\x00\x00\x00\x00\x01" + FINE,
        raw(model_version=None),
        raw(model_version="v 2"),
        raw(model_version=2.5),
        raw(model=None),
        raw(model="other", value=None),
        FINE[:-1] + b',"model_version":"v3"}',
        FINE[:-1] + b',"model":"other"}',
        FINE[:-1] + b',"deep":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
)
def test_nobody_is_to_blame_where_the_event_does_not_say(event):
    """No model, no version, two of them, or nothing that can be read: no tally counts it."""
    assert whose(event) == []


def test_the_mapping_says_whose_it_is():
    """Under `[fields]` the model and version stand elsewhere; the reason names the path that was read."""
    assert whose(mapped(price="10"), MAPPED) == ["v1"]
    assert whose(mapped(offer=10), MAPPED) == ["v1"]
    assert whose(mapped(meta={"id": "p"}), MAPPED) == []
    # An event of the contract's shape names the model too, and its policy maps another one.
    assert whose(raw(), MAPPED) == ["v1"]


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (mapped(price="10"), 'expected a number for `value` at `offer.price`, got the text "10"'),
        (mapped(price=None), "neither value nor outputs is given: at `offer.price` stands null, and nothing stands at"),
        (mapped(offer={}), "neither value nor outputs is given: nothing stands at `offer.price`"),
        (mapped(offer=10), "expected an object at `offer`, on the way to `offer.price` of `value`, got the number 10"),
        (mapped(sku=None), "it lacks the required field `entity_id`: at `sku` stands null"),
        (
            mapped(meta={"id": "p"}),
            "it lacks the required field `model`: nothing stands at `meta.model.name` (there is no `meta.model`)",
        ),
        (raw(), "the event is not of the shape that the policy of 'pricing' maps: it lacks the required field"),
    ],
)
def test_the_reason_names_the_path_and_what_stood_there(event, says):
    """Also where another shape than the policy's was tried first: its reason would be false."""
    real = Real(policy_of(MAPPED))
    _, found = decode_by_model(real.policies, [event])
    assert says in found[0].reason


def events_of(count, entities, **members):
    return [
        raw(model_version="v2", prediction_id=f"p{i}", entity_id=f"e{i % entities}", **members) for i in range(count)
    ]


def trips(toml, raws, partitions=2):
    """Whether the breaker trips on the tallies of these events, spread over partitions."""
    policy = policy_of(toml)
    window, now = Window(), NOW
    for partition in range(partitions):
        real = Real(policy)
        real.judge(raws[partition::partitions])
        for one in real.tallies:
            now += timedelta(milliseconds=100)
            window = window.add(one.model_copy(update={"partition": partition}), now, policy.breaker)
    return window.trips(policy.breaker)


def test_what_cannot_be_decoded_trips_the_breaker_as_a_bad_prediction_does_and_no_sooner():
    """The same counts, entities and partitions decide: junk that names a model can do no more than a bad output."""
    for count, entities, partitions in ((500, 20, 2), (49, 20, 2), (500, 4, 2), (500, 5, 1), (50, 5, 2)):
        bad = trips(FLOOR, events_of(count, entities, value=1.0), partitions)
        malformed = trips(FLOOR, events_of(count, entities, value=None), partitions)
        assert (bad is None) == (malformed is None), (count, entities, partitions)
    critical = FLOOR.replace("min = 10", 'min = 10\nseverity = "critical"')
    assert trips(critical, events_of(10, 10, value=1.0)) is not None
    assert trips(critical, events_of(10, 10, value=None)) is None


def test_events_without_an_entity_count_by_their_key_or_themselves():
    """A version that drops the entity is as bad as one that drops the value."""
    nameless = [raw(model_version="v2", prediction_id=f"p{i}", entity_id=None) for i in range(500)]
    assert trips(FLOOR, nameless) is not None
    policy = policy_of(FLOOR)
    flaw = Shape().decode(nameless[:1]).malformed[0]
    records = [Rec(0, 0, b"sku-1", nameless[0])]
    (told,) = with_malformed([], {"v2": [0]}, {0: flaw}, policy, None, Source("predictions", 0, records, "w"), NOW)
    assert told.entities == ("sku-1",)


def test_a_policy_that_only_watches_counts_and_does_not_trip():
    """A wrong mapping in shadow must not fence a version."""
    for mode in ("shadow", "off"):
        toml = FLOOR.replace('model = "pricing"', f'model = "pricing"\nmode = "{mode}"')
        real = Real(policy_of(toml))
        real.judge(events_of(100, 20, value=None))
        assert [(one.blocked, one.failed, one.blocked_by_check) for one in real.tallies] == [
            (100, 0, {"malformed": 100})
        ]


def test_a_version_fenced_before_does_not_fail_again():
    """As with its other outputs: they are blocked, and do not count for the breaker."""
    real = Real(policy_of(FLOOR), fenced=("v2",))
    real.judge(events_of(10, 5, value=None))
    assert [(one.blocked, one.failed, one.entities) for one in real.tallies] == [(10, 0, ())]


def test_one_tally_holds_what_was_decoded_and_what_was_not():
    """The verifier compares one tally of a version and batch with all of its verdicts."""
    real = Real(policy_of(FLOOR))
    some = events_of(6, 6, value=None)
    real.judge([some[0], raw(model_version="v2", value=1.0), raw(model_version="v2"), *some[1:], raw()])
    told, _ = sorted(real.tallies, key=lambda one: one.model_version, reverse=True)
    assert (told.first_offset, told.last_offset, told.seen, told.approved, told.blocked) == (0, 7, 8, 1, 7)
    assert told.blocked_by_check == {"floor": 1, "malformed": 6}
    assert len(told.samples) == 5


def test_blame_falls_only_on_models_with_a_policy():
    """No tally could name another."""
    flaw = Malformed("r", MalformedKind.NO_OUTPUT, identity=Shape().identity_of(put("null")))
    assert blamed({3: flaw}, {"pricing"}) == {"pricing": {"v2": [3]}}
    assert blamed({3: flaw}, {"other"}) == {}


def test_evidence_names_entity_and_prediction_by_the_mapping():
    """Of what was blocked and of what was malformed; a long name is cut, and a long event is read all the same."""
    real = Real(policy_of(MAPPED))
    meta = {"id": 17, "model": {"name": "pricing", "version": "v1"}}
    real.judge(
        [mapped(price=1, sku=4711, meta=meta), mapped(price=2, sku="x" * 500, pad="y" * 5000), mapped(price="3")]
    )
    (told,) = real.tallies
    assert [(one.entity_id, one.prediction_id, one.value) for one in told.samples] == [
        ("4711", "17", 1.0),
        ("x" * 199 + "…", "p", 2.0),
        ("a", "p", None),
    ]
    assert [entity(one) for one in told.samples[::2]] == ["4711", "a"]
    assert [prediction_id(one) for one in told.samples[::2]] == ["17", "p"]
    assert told.samples[1].prediction.startswith('{"meta"')


def test_evidence_of_a_guard_that_did_not_read_the_names_is_read_by_the_contract():
    """A rolling update has both."""
    old = Sample(source="p/0/1", prediction={"entity_id": "a", "prediction_id": 7}, findings=())
    assert (entity(old), prediction_id(old)) == ("a", "7")
    for prediction in ("text", {"entity_id": None}, {"entity_id": ["a"]}, {}):
        assert entity(Sample(source="p/0/1", prediction=prediction, findings=())) == ""
