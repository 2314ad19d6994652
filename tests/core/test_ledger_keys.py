"""The checker judges keys and segments as a guard does."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.test_ledger import history, policy, prediction
from core.written import Rec
from holdfast.verify.ledger import Kind, Stream
from holdfast_schemas import Header

JUMP = {"name": "jump", "kind": "max_change", "field": "value", "down": 0.5, "up": 3.0}
ODD = {"name": "odd", "kind": "outlier", "field": "value", "min_values": 3}


def of_key(record: Rec, key: bytes | None) -> Rec:
    return dataclasses.replace(record, key=key)


@pytest.mark.parametrize("options", [{}, {"off_key": "block"}, {"off_key": "pass"}, {"mode": "shadow"}])
@pytest.mark.parametrize("unknown", ["auto", "pass", "fail"])
def test_a_guard_that_looks_at_keys_breaks_no_promise(options: dict[str, Any], unknown: str) -> None:
    """Whatever the policy says of records off their key, and whatever follows them."""
    by = policy(checks=[JUMP | {"unknown": unknown}], **options)
    records = [prediction(n, f"E{n % 3}", 100.0 + n) for n in range(24)]
    for place, key in ((5, b"x"), (6, None), (10, b"E"), (11, b"")):
        records[place] = of_key(records[place], key)
    # A third of the value before it: it may be no reference.
    records[13] = of_key(prediction(13, "E1", 35.0), b"other")
    made = history(records, by=lambda _: by)
    for chunk in (1, 3, 100):
        assert made.violations(chunk=chunk) == [], made.details


def test_an_output_that_was_approved_off_its_key_is_found() -> None:
    """A guard that looks at keys would have blocked it."""
    by = policy(checks=[JUMP])
    records = [prediction(n, f"E{n % 3}", 100.0) for n in range(9)]
    made = history(records, by=lambda _: by)
    for of in (made.predictions, made.out[Stream.APPROVED]):
        of[4] = of_key(of[4], b"other")
    assert made.violations() == [Kind.WRONGLY_APPROVED]
    assert "jump, because its key is not that of its entity" in made.details[0]


def test_what_a_guard_says_is_in_another_partition_is_no_reference_here() -> None:
    """The checker does not know how many partitions there were; the record's finding says it."""
    by = policy(checks=[JUMP | {"unknown": "pass"}])
    records = [prediction(0, "E0", 312.0), prediction(1, "E0", 20_000.0), prediction(2, "E0", 9.0)]
    made = history(records, by=lambda _: by, partitions=100)
    assert len(made.out[Stream.APPROVED]) == 3
    assert all(Header.FINDINGS.value in dict(record.headers) for record in made.out[Stream.APPROVED])
    assert made.violations() == [], made.details


entities = st.sampled_from(["a", "b", "c"])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            entities,
            st.sampled_from([10.0, 12.0, 30.0, 100.0]),
            st.none() | entities,
            st.sampled_from([None, "s", "S", "t"]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([{}, {"off_key": "block"}, {"segments": ["s", "t"]}]),
    st.sampled_from(["pass", "fail"]),
    st.integers(1, 5),
)
def test_the_checker_and_the_guard_agree(
    said: list[tuple[str, float, str | None, str | None]], options: dict[str, Any], unknown: str, batch: int
) -> None:
    """Over any keys, values and segments."""
    by = policy(checks=[JUMP | {"unknown": unknown}, ODD | {"unknown": unknown}], **options)
    records = [
        of_key(prediction(n, entity, value, segment=segment), None if key is None else key.encode())
        for n, (entity, value, key, segment) in enumerate(said)
    ]
    made = history(records, by=lambda _: by, batch=batch)
    assert made.violations() == [], made.details
