"""What a command does beyond its name is told before it is sent."""

import pytest

from core.test_routing import Model
from holdfast.core.consequences import consequence
from holdfast_schemas import Action


def told(model, action, version=None):
    return consequence(model.state, Action(action), "pricing", version)


@pytest.mark.parametrize(("action", "version"), [("rollback", None), ("fence", "v1")])
def test_leaving_the_version_that_serves_without_a_good_one_holds_the_model(action, version):
    """With a good one to go back to there is nothing to say."""
    model = Model()
    model.command("promote", "v1")
    what = told(model, action, version)
    assert what.ask
    assert what.text.startswith("No other version of pricing is good, so this holds the model: v1 is fenced, and")
    model = Model().earn_good("v0")
    model.command("promote", "v1")
    assert told(model, action, version) is None


@pytest.mark.parametrize(("action", "version"), [("rollback", "v0"), ("fence", "v2"), ("hold", None), ("unpin", None)])
def test_a_command_that_does_what_it_says_is_not_commented(action, version):
    model = Model()
    model.command("promote", "v0")
    model.command("promote", "v1")
    assert told(model, action, version) is None


@pytest.mark.parametrize("action", ["promote", "pin", "resume"])
def test_a_version_of_which_nothing_was_seen_is_asked_about(action):
    """It names those that there are; one that was seen, or serves already, is not asked about."""
    model = Model().earn_good("v1")
    model.tally("v2", 5)
    what = told(model, action, "v22")
    assert what.ask
    assert "No output of v22 was ever seen" in what.text
    assert "(pricing has v1, v2)" in what.text
    assert told(model, action, "v2") is None
    model.command("promote", "v3")
    assert told(model, action, "v3") is None


@pytest.mark.parametrize("known", [True, False])
def test_the_first_version_of_a_model_is_a_warning_and_no_question(known):
    """There is nothing that its name could be compared with."""
    model = Model()
    if known:
        model.command("hold")
    what = told(model, "promote", "v1")
    assert (what.ask, what.text) == (False, "No output of v1 was seen so far: check that its name is right.")
