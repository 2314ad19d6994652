"""Shadow: what a check in shadow condemns is approved, is no reference, and earns no version its `good`."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.alike import NOW, Real, raw
from holdfast.core.condemned import is_condemned
from holdfast.core.policy import parse_policy
from holdfast_schemas import Header


def policy(*checks, **more):
    return parse_policy({"model": "pricing", "checks": list(checks), **more}, "t")


def floor(**more):
    return {"name": "floor", "kind": "range", "min": 10, **more}


def change(**more):
    return {"name": "change", "kind": "max_change", "up": 2.0, "unknown": "pass", **more}


def outlier(**more):
    return {"name": "outlier", "kind": "outlier", "window": 20, "min_values": 10, "max_score": 5, **more}


SHADOW = {"mode": "shadow"}


@pytest.mark.parametrize(
    ("checks", "more", "condemned"),
    [
        ([floor(**SHADOW), change()], {}, True),
        ([floor(), change()], {"mode": "shadow"}, True),
        ([floor(severity="critical", **SHADOW), change()], {}, True),
        ([floor(severity="warning"), change()], {}, False),
        ([floor(severity="info", **SHADOW), change()], {}, False),
        ([floor(mode="off"), change()], {}, False),
        ([change(down=0.5, **SHADOW)], {}, True),
        ([floor(**SHADOW), change(), outlier()], {}, True),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_value_that_a_check_in_shadow_condemns_is_no_reference(checks, more, condemned, together):
    """It is approved; the next value is held against the one before it. In one batch or in two, and after a restart."""
    real = Real(policy(*checks, **more))
    events = [raw(value=100.0), raw(value=1.0)]
    answers = real.judge(events) if together else [*real.judge(events[:1]), *real.judge(events[1:])]
    assert all(approved for approved, _ in answers)
    before = real.last
    assert before["value", "a"] == (100.0 if condemned else 1.0)
    real.restart()
    assert real.last == before


def test_after_enforce_sound_values_are_not_held_against_bad_ones():
    """A feed that is broken in shadow for a while leaves no trace in the recent values of its segment."""
    checks = [floor(), outlier()]
    watched, bare = Real(policy(*checks, mode="shadow")), Real(policy(outlier()))
    sound = [raw(value=100.0 + n % 7) for n in range(30)]
    broken = [raw(value=1.0 + n % 3) for n in range(200)]
    for batch in (sound, broken):
        watched.judge(batch)
        bare.judge(batch)
    enforced = Real(policy(*checks))
    enforced.memory = watched.memory
    assert all(approved for approved, _ in enforced.judge(sound))
    enforced.memory, enforced.approved = watched.memory, watched.approved
    enforced.restart()
    assert all(approved for approved, _ in enforced.judge(sound))
    assert watched.recent["value"][0][1] == [100.0 + n % 7 for n in range(10, 30)]


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 60)), min_size=1, max_size=60),
    st.sampled_from([[floor()], [change()], [outlier()], [floor(), change(), outlier()]]),
)
def test_shadow_says_what_enforce_would_do(pairs, checks):
    """The same records fail the same checks, whether they are blocked for it or not; and the memory is the same."""
    events = [raw(entity_id=entity, value=float(value)) for entity, value in pairs]
    watched, enforced = Real(policy(*checks, mode="shadow")), Real(policy(*checks))
    shadow, real = watched.judge(events), enforced.judge(events)
    assert all(approved for approved, _ in shadow)
    assert [sorted(name for name, _ in found) for _, found in shadow] == [
        sorted(name for name, _ in found) for _, found in real
    ]
    assert (watched.last, watched.recent) == (enforced.last, enforced.recent)


@pytest.mark.parametrize(
    ("findings", "condemned"),
    [
        (None, False),
        (b"[]", False),
        (b'[{"check":"c","severity":"error","enforced":false,"seen":1}]', True),
        (b'[{"check":"c","severity":"critical","enforced":false}]', True),
        (b'[{"check":"c","severity":"warning","enforced":false}]', False),
        (b'[{"check":"c","severity":"error","enforced":true}]', False),
        (b'[{"check":"w","severity":"info","enforced":false},{"check":"c","severity":"error","enforced":false}]', True),
        (b"not json", True),
        (b"\xff", True),
        (b'[{"check":"c"}]', True),
    ],
)
def test_the_header_of_an_approved_record_tells_what_the_guard_knew(findings, condemned):
    """Whoever reads the memory back learns the same; what cannot be read teaches nothing."""
    headers = [("theirs", b"x"), *([(Header.FINDINGS.value, findings)] if findings is not None else [])]
    assert is_condemned(headers) is condemned
    assert is_condemned(dict(headers)) is condemned


def test_what_the_guard_writes_is_read_as_it_was_meant():
    """The bytes of the header, as the guard encodes them."""
    real = Real(policy(floor(**SHADOW)))
    real.judge([raw(value=1.0)], NOW)
    (told,) = real.tallies
    assert told.shadow_by_check == {"floor": 1}
    found = [{"check": "floor", "severity": "error", "enforced": False, "field": "value", "seen": 1.0}]
    assert is_condemned([(Header.FINDINGS.value, msgspec.json.encode(found))])
