"""An entity id that begins or ends with a blank or an invisible character is malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.alike import Real, policy_of, raw
from holdfast.core.entity_ids import unclear_end, with_unclear_ends
from holdfast.core.grouping import decode_by_model
from holdfast.core.malformed import MalformedKind

POLICY = 'model = "pricing"\n'
UNSEEN = [
    *(" ", "\t", "\n", "\r", "\x00", "\x1f", "\x7f", "\x85", "\xa0", "\xad", "\u1680", "\u2003", "\u2028", "\u200b"),
    *("\u200d", "\u200e", "\u202e", "\u2060", "\u3000", "\ufeff", "\U000e0020", "\u2800", "\u3164", "\u115f"),
]
CLEAR = ["a", "A 1", "0", "-", "#1!", "Größe", "a\u200bb", "商品", "café", "❤️", "a\nb", "👩\u200d🔬"]


@pytest.mark.parametrize("character", UNSEEN)
def test_it_is_refused_at_either_end_and_the_reason_shows_it(character):
    """Whatever stands beside it in the batch; its model and version are to blame."""
    real = Real(policy_of(POLICY))
    events = [raw(entity_id=entity) for entity in (f"{character}a", f"a{character}", character, "a")]
    assert real.judge(events) == ["malformed"] * 3 + [(True, [])]
    assert real.tallies[0].blocked_by_check == {"malformed": 3}
    _, flaws = decode_by_model(real.policies, events)
    assert {flaw.kind for flaw in flaws.values()} == {MalformedKind.BAD_ENTITY}
    assert f"U+{ord(character):04X}" in flaws[0].reason
    assert flaws[0].reason.isprintable()


@pytest.mark.parametrize("entity", CLEAR)
def test_other_ids_are_fine(entity):
    """Such a character in the middle is the producer's business."""
    assert Real(policy_of(POLICY)).judge([raw(entity_id=entity), raw(entity_id="a")]) == [(True, []), (True, [])]


def test_also_where_the_policy_maps_it_and_where_there_is_none():
    """The same rule for every event."""
    mapped = policy_of(f'{POLICY}[fields]\nentity_id = "sku"\n')
    assert Real(mapped).judge([raw(entity_id=None, sku="a "), raw(entity_id=None, sku="a")]) == [
        "malformed",
        (True, []),
    ]
    assert Real(policy_of(POLICY)).judge([raw(model="other", entity_id=" a")]) == ["malformed"]


@given(st.lists(st.none() | st.text(st.sampled_from([*"ab \n", "\u200b", "é"]), min_size=1), min_size=1))
def test_a_batch_is_looked_at_as_each_of_its_ids(entities):
    """The quick look at a whole batch overlooks nothing."""
    found = {row: unclear_end(one) for row, one in enumerate(entities) if one is not None}
    assert with_unclear_ends(entities) == {row: character for row, character in found.items() if character}
