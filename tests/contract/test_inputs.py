"""Inputs: which topics are whose, who may use them, and what of a configuration is refused."""

import pytest

from core.alike import policy_of, raw
from core.test_ledger import History, prediction
from holdfast.adapters.acls import grants
from holdfast.core.grouping import decode_by_model
from holdfast.core.not_allowed import block
from holdfast.core.policy import PolicySet
from holdfast.settings import OF_INPUT, Settings, SettingsError, load_settings
from holdfast.verify.ledger import Kind, Rules, Stream
from holdfast_schemas import Header, Party

PRICES = '[[inputs]]\ntopic = "prices.v3"\nmodels = ["pricing", "discounts"]\nname = "prices"\n'
FRAUD = '[[inputs]]\ntopic = "cards"\nmodels = ["fraud"]\nblocked = "cards.stopped"\n'


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "holdfast.toml"))

    def loaded(text=PRICES + FRAUD, **options) -> Settings:
        (tmp_path / "holdfast.toml").write_text(text)
        return load_settings(**options)

    return loaded


def test_each_input_has_its_own_topics_and_groups_and_shares_the_rest(load):
    default, prices, cards = load().of_inputs()
    assert {role: getattr(prices.topics, role) for role in OF_INPUT} == {
        "predictions": "prices.v3",
        "approved": "prices.v3.approved",
        "blocked": "prices.v3.blocked",
        "malformed": "prices.v3.malformed",
        "releases": "prices.v3.releases",
    }
    assert (cards.input, cards.topics.blocked, cards.topics.approved) == ("cards", "cards.stopped", "cards.approved")
    assert default.topics.predictions == "predictions"
    assert {one.topics.control for one in (default, prices, cards)} == {"holdfast.control"}
    assert [one.guard.group for one in (default, prices, cards)] == [
        "holdfast-guard",
        "holdfast-guard-prices",
        "holdfast-guard-cards",
    ]
    assert len({one.release_group for one in (default, prices, cards)}) == 3


@pytest.mark.parametrize(
    ("model", "carried"), [("pricing", "prices"), ("discounts", "prices"), ("fraud", "cards"), ("churn", None)]
)
def test_a_model_is_carried_by_one_input(load, model, carried):
    assert [one.input for one in load().of_inputs() if one.carries(model)] == [carried]
    assert load().of_model(model).input == carried


@pytest.mark.parametrize("how", ["option", "environment", "file"])
def test_a_process_is_told_which_input_it_works_on(load, monkeypatch, how):
    text = PRICES
    if how == "environment":
        monkeypatch.setenv("HOLDFAST_INPUT", "prices")
    if how == "file":
        text = 'input = "prices"\n' + text
    settings = load(text, **({"input_name": "prices"} if how == "option" else {}))
    assert (settings.topics.predictions, settings.guard.group) == ("prices.v3", "holdfast-guard-prices")
    assert settings.of_inputs() == (settings,)
    assert settings.of_model("pricing") is settings
    with pytest.raises(SettingsError, match="Leave `input` out"):
        load(text + FRAUD, input_name="prices").of_model("fraud")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (PRICES + PRICES.replace("v3", "v4"), {}, "two inputs are named 'prices'"),
        (PRICES + FRAUD.replace("fraud", "pricing"), {}, "two inputs carry the model 'pricing'"),
        (
            PRICES + FRAUD.replace("cards.stopped", "prices.v3.approved"),
            {},
            "two topics are named 'prices.v3.approved'",
        ),
        (PRICES.replace("prices.v3", "predictions"), {}, "two topics are named 'predictions'"),
        (PRICES.replace('["pricing", "discounts"]', "[]"), {}, "inputs.0.models"),
        (PRICES.replace("prices.v3", "pri ces"), {}, "inputs.0.topic"),
        (PRICES + 'topics = "x"\n', {}, "inputs.0.topics: there is no such key"),
        ('input = "price"\n' + PRICES, {}, "there is no input 'price'; the inputs are prices"),
        (PRICES, {"input_name": "price"}, "The inputs are prices."),
        ("", {"input_name": "price"}, r"the configuration has no \[\[inputs\]\]"),
    ],
)
def test_what_is_ambiguous_or_mistyped_is_refused(load, text, options, says):
    with pytest.raises(SettingsError, match=says):
        load(text, **options)


def test_a_producer_is_bound_to_its_topic_and_a_consumer_to_what_is_approved_there(load):
    """Also by the names of groups: a group of the one never begins with the login of another."""
    found = grants(load())
    theirs = {
        grant.principal: grant.names for grant in found if grant.party is Party.PRODUCER and grant.kind == "topic"
    }
    assert theirs == {
        "User:holdfast-producer": ("predictions",),
        "User:prices-holdfast-producer": ("prices.v3",),
        "User:cards-holdfast-producer": ("cards",),
    }
    read = {grant.principal: grant.names for grant in found if grant.party is Party.CONSUMER and grant.kind == "topic"}
    assert read["User:prices-holdfast-consumer"] == ("prices.v3.approved",)
    groups = [grant.names[0] for grant in found if grant.party is Party.CONSUMER and grant.kind == "group"]
    assert not any(one != other and one.startswith(other) for one in groups for other in groups)


def test_only_guards_write_what_is_approved_of_any_input(load):
    settings = load()
    for one in settings.of_inputs():
        for role in ("approved", "blocked"):
            topic = getattr(one.topics, role)
            writers = {g.party for g in grants(settings) if topic in g.names and "Write" in g.operations}
            assert writers == {Party.GUARD}, topic


def test_what_a_topic_may_not_carry_is_blocked_whole():
    policies = PolicySet.of([policy_of('model = "pricing"\n[[checks]]\nname = "f"\nkind = "range"\nmin = 1\n')])
    ((model, batch),), _ = decode_by_model(policies, [raw(value=100), raw(value=5)])
    judgement = block(batch, model, "predictions")
    assert not judgement.approved.any()
    assert not judgement.failed.any()
    assert {row: [one.check for one in found] for row, found in judgement.findings.items()} == {
        0: ["not_allowed_here"],
        1: ["not_allowed_here"],
    }
    assert judgement.counts == {("not_allowed_here", True): 2}


@pytest.mark.parametrize("carries", [True, False])
def test_the_verifier_finds_what_was_approved_of_a_model_that_the_topic_may_not_carry(carries):
    """Also where outputs of models without a policy are approved."""
    made = History([prediction(0, "E", 100)], committed=1)
    made.rules = Rules("predictions", approve_without_policy=True, carries=lambda _: carries)
    headers = [(Header.POLICY.value, b"none"), (Header.MODEL.value, b"pricing"), (Header.MODEL_VERSION.value, b"v1")]
    made.write(Stream.APPROVED, made.predictions[0], [(Header.VERDICT.value, b"approved"), *headers])
    assert made.violations() == ([] if carries else [Kind.WRONGLY_APPROVED])
