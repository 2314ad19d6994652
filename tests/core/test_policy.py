"""Policies: what is refused and how the refusal reads, and the id that stands for the content."""

import math
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from core.alike import policy_of
from holdfast.adapters.policies import load_policies, load_policy
from holdfast.adapters.tables import load_table
from holdfast.core.policy import PolicyError, PolicySet

HEAD = 'model = "pricing"\n[[checks]]\nname = "floor"\n'
RANGE = f'{HEAD}kind = "range"\nmin = 10\n'


@pytest.mark.parametrize(
    ("toml", "key", "says"),
    [
        ("model = ", "not TOML", "Invalid value"),
        ('model = "a"\nmodel = "b"', "not TOML", "Cannot overwrite"),
        ('mode = "enforce"', "model", "missing"),
        ('model = "a b"', "model", "match"),
        (
            'model = "p"\nmood = "x"',
            "mood",
            "checks, fields, key, max_table_shrink",
        ),
        ('model = "p"\nmode = "watch"', "mode", "'enforce', 'shadow' or 'off'"),
        ('model = "p"\nchecks = 5', "checks", "valid tuple"),
        ('model = "p"\nchecks = [5]', "checks[0]", "valid dictionary"),
        (
            f'{HEAD}kind = "rnage"\nmin = 1',
            "checks[floor]",
            "no check kind 'rnage'; the kinds are 'range', 'max_change'",
        ),
        (f"{HEAD}min = 1", "checks[floor]", "a check needs `kind`; the kinds are range, max_change"),
        (f"{RANGE}mni = 1", "checks[floor].mni", "no such key; the keys here are currency, field, in_currency, kind"),
        (f'{RANGE}field = "price"', "checks[floor].field", "no field 'price'; the fields are prediction_id"),
        (f'{RANGE}field = "currency"', "checks[floor].field", "is not a number; value, outputs.<name>"),
        (f'{RANGE}field = "features."', "checks[floor].field", "no field 'features.'"),
        (f"{RANGE}max = 9", "checks[floor]", "min 10 is above max 9"),
        (f"{RANGE}segment.a = {{max = 9}}", "checks[floor]", "for segment 'a' min 10 is above max 9"),
        (f'{HEAD}kind = "range"', "checks[floor]", "needs min, max, segment bounds, bounds by currency or a table"),
        (f"{RANGE}[checks.currency.JPY]\nmin = 1", "checks[floor]", "say in_currency"),
        (f'{RANGE}in_currency = "JPY"\n[checks.currency.JPY]\nmin = 1', "checks[floor]", "in_currency 'JPY'"),
        (f'{HEAD}kind = "range"\nin_currency = "JPY"\n[checks.currency.EUR]\nmin = 1', "checks[floor]", "alone"),
        (f'{HEAD}kind = "range"\n[checks.currency.JPY]\nmin = 2\nmax = 1', "checks[floor].currency.JPY", "above max 1"),
        (f"{RANGE}max = inf", "checks[floor].max", "finite"),
        (RANGE.replace("10", '"10"'), "checks[floor].min", "valid number"),
        (f'{RANGE}severity = "fatal"', "checks[floor].severity", "'critical', 'error', 'warning' or 'info'"),
        (f'{RANGE}unknown = "skip"', "checks[floor].unknown", "'pass' or 'fail'"),
        (f'{RANGE}table = "none.csv"', "table", "none.csv cannot be read: No such file"),
        (f"{RANGE}{RANGE.partition(chr(10))[2]}", "checks", "two checks are named 'floor'"),
        (RANGE.replace("floor", "fenced"), "policy", "'fenced' is the name of a built-in check"),
        (RANGE.replace("floor", "Price Floor"), "checks[Price Floor].name", "match"),
        (f'{HEAD}kind = "max_change"', "checks[floor]", "needs down, up or both"),
        (f'{HEAD}kind = "max_change"\nup = 0.5', "checks[floor].up", "greater than or equal to 1"),
        (f'{HEAD}kind = "max_change"\ndown = 0', "checks[floor].down", "greater than 0"),
        (f'{HEAD}kind = "one_of"\nfield = "currency"\nvalues = []', "checks[floor].values", "at least 1"),
        (f'{HEAD}kind = "required"\nfields = ["sku"]', "checks[floor].fields", "no field 'sku'"),
        (f'{HEAD}kind = "simplex"\nfield = "value"', "checks[floor].field", "is not an output"),
        (f'{HEAD}kind = "freshness"\nmax_age = 30', "checks[floor].max_age", "needs its unit: write '30s'"),
        (f'{HEAD}kind = "freshness"\nmax_age = "soon"', "checks[floor].max_age", "'soon' is not a duration"),
        (f'{HEAD}kind = "freshness"\nmax_age = "0s"', "checks[floor].max_age", "greater than"),
        (f'{HEAD}kind = "freshness"\nmax_age = "{"9" * 400}d"', "checks[floor].max_age", "longer than 3650 days"),
        (f'{HEAD}kind = "freshness"\nmax_age = "9999999d"', "checks[floor].max_age", "longer than 3650 days"),
        (f'{HEAD}kind = "outlier"\nwindow = 20', "checks[floor]", "min_values 50 can never be reached"),
        *(
            (f'{HEAD}kind = "expression"\nexpression = "{expression}"', "checks[floor]", says)
            for expression, says in [
                ("value >=", "is not an expression: invalid syntax"),
                ("value > 1if cost else 2", "is not an expression: invalid decimal literal"),
                ("value + 1", "is a number, not a condition"),
                ("1 < 2", "reads no field"),
                ("value > open(cost)", "'open' is no function here; there are abs, arccos"),
                ("value.real > 1", "there is no number 'value.real'"),
                ("currency.x > 1", "there is no number 'currency.x'"),
                ("value in (1, 2)", "is not a numeric expression"),
                ("value > 'a'", "is not a number"),
                ("value > True", "is not a number"),
                ("[v for v in value]", "is not a numeric expression"),
                ("(lambda: value)() > 1", "no function here"),
                ("value > 1" + "0" * 400, "larger than any number here"),
                ("-" * 1900 + "value > 1", ""),
                ("value > " + "1 + " * 600 + "1", "at most 2000"),
                ("value > 1 and cost", ""),
            ]
        ),
        ('model = "p"\n[fields]\nprice = "x"', "fields", "no field 'price'"),
        ('model = "p"\n[fields]\nvalue = "a..b"', "fields", "'a..b' is not a dotted path"),
        ('model = "p"\n[fields]\nvalue = "x"\nmodel = "x.name"', "pricing.toml", "is taken by another field"),
        ('model = "p"\n[fields]\nvalue = "x"\nmodel = "x"', "pricing.toml", "is taken by another field"),
        ('model = "p"\n[breaker]\nwindows = "30s"', "breaker.windows", "no such key; the keys here are good_after"),
        ('model = "p"\n[breaker]\nwindow = "-1s"', "breaker.window", "not a duration"),
        ('model = "p"\n[breaker]\nmax_blocked_ratio = 1.0', "breaker.max_blocked_ratio", "less than 1"),
        ('model = "p"\n[[checks]]\nname = """two\nlines"""', "checks[two lines]", "a check needs `kind`"),
        ('model = "p"\n"two\\nlines" = 1', "two lines", "there is no such key"),
        # No tally names more, so it could never be reached.
        ('model = "p"\n[breaker]\nmin_entities = 33', "breaker.min_entities", "less than or equal to 32"),
        ('model = "p"\n[breaker]\nmin_seen = 0', "breaker.min_seen", "greater than or equal to 1"),
    ],
)
def test_a_refusal_names_the_file_the_key_and_what_exists(toml, key, says, tmp_path):
    """Trap: an unknown check or field name is ignored. One line, from the file to what is allowed."""
    path = tmp_path / "pricing.toml"
    path.write_text(toml)
    with pytest.raises(PolicyError) as refused:
        load_policies(tmp_path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert key in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"entity_id,min\na,1\na,2\n", "lists an entity twice"),
        (b"entity_id,min\na,1\n,2\n", "a row without one"),
        (b"entity,min\na,1\n", "must have the columns entity_id, min, max, each once"),
        (b"entity_id,low\na,1\n", "must have the columns entity_id, min, max, each once"),
        (b"entity_id,min,max\nb,1,2\n\na,5,1\n", "line 4: min is above its max"),
        (b"entity_id,min\na,inf\n", "line 2: min is not a finite number"),
        (b"entity_id,min\na,1e999\n", "line 2: min is not a finite number"),
        (b"entity_id,min\na,cheap\n", "line 2: min is not a finite number"),
        (b"entity_id,min,max\nb,1,\na,1,#N/A\n", "line 3: max is not a finite number"),
        *(
            (f'entity_id,min\nb,1\n\n"c",\na,{cell}\n'.encode(), "line 5: min is not a finite number")
            for cell in (
                "NA",
                "N/A",
                "NULL",
                "null",
                "nan",
                "NaN",
                "-nan",
                "None",
                "-",
                "1.5 USD",
                "0x10",
                "1_000",
                "true",
            )
        ),
        (b"entity_id,min\na,1,2\n", "line 2: it has not as many cells as the first line"),
        (b"entity_id,min,min\na,1,2\n", "each once"),
        (b"entity_id,min\n\xff,1\n", "UTF8"),
        (b"entity_id,min\n", "has no rows"),
        (b"", "mpty"),
    ],
)
def test_a_broken_table_is_refused_by_name(content, says, tmp_path):
    (tmp_path / "floors.csv").write_bytes(content)
    (tmp_path / "pricing.toml").write_text(f'{RANGE}table = "floors.csv"')
    with pytest.raises(PolicyError) as refused:
        load_policies(tmp_path)
    assert "floors.csv" in str(refused.value)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"entity_id,min,max\nNA,1,\nb, ,20\n", b'entity_id,max,min\n"NA",,1.0\nb,2e1,""\n']
)
def test_an_empty_cell_of_a_table_leaves_that_side_open(content, tmp_path):
    """An entity may have any name, also one that reads as missing elsewhere."""
    (tmp_path / "floors.csv").write_bytes(content)
    table, _ = load_table(tmp_path / "floors.csv", (tmp_path / "floors.csv").read_bytes())
    assert dict(table.index) == {"NA": 0, "b": 1}
    assert [str(one) for one in (*table.low, *table.high)] == ["1.0", "nan", "nan", "20.0"]


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (pa.array([1.0, None]), None),
        (pa.array([1, None]), None),
        (pa.array(["1", None]), None),
        (pa.array(["1", ""]), None),
        (pa.array([1.0, math.nan]), "row 2: min is not a finite number"),
        (pa.array([1.0, -math.inf]), "row 2: min is not a finite number"),
        (pa.array(["1", "NA"]), "row 2: min is not a finite number"),
        (pa.array([True, None]), "min is of type bool; write numbers"),
    ],
)
def test_a_parquet_table_says_the_same(low, says, tmp_path):
    """A null is an open side; NaN is a number that went wrong."""
    parquet.write_table(pa.table({"entity_id": ["a", "b"], "min": low}), tmp_path / "floors.parquet")
    if says is None:
        table, _ = load_table(tmp_path / "floors.parquet", (tmp_path / "floors.parquet").read_bytes())
        assert [str(one) for one in table.low] == ["1.0", "nan"]
    else:
        with pytest.raises(PolicyError, match=re.escape(says)):
            load_table(tmp_path / "floors.parquet", (tmp_path / "floors.parquet").read_bytes())


@pytest.mark.parametrize("name", ["", ".", "\\u0000", "no/such/folder.csv", "x" * 5000])
def test_a_table_that_is_no_file_is_refused(name, tmp_path):
    (tmp_path / "pricing.toml").write_text(f'{RANGE}table = "{name}"')
    with pytest.raises(PolicyError, match=r"pricing\.toml"):
        load_policies(tmp_path)


def test_two_policies_for_one_model_are_refused(tmp_path):
    """Whatever their files are called; both are named."""
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(RANGE)
    with pytest.raises(PolicyError, match=r"b.toml and .*a.toml are both for the model 'pricing'"):
        load_policies(tmp_path)


def test_policies_that_cannot_share_a_shape_are_refused_together():
    """One reads a feature that for the other is a folder of features."""
    check = 'model = "{}"\n[[checks]]\nname = "it"\nkind = "range"\nmin = 1\nfield = "{}"\n'
    one, other = policy_of(check.format("one", "features.size")), policy_of(check.format("other", "features.size.w"))
    with pytest.raises(PolicyError, match="one, other read events of one shape"):
        PolicySet.of([one, other])


def test_a_feature_may_be_a_number_for_one_model_and_text_for_another():
    """What one policy reads as a number makes nothing malformed of the other's events."""
    from core.alike import NOW, raw
    from holdfast.core.grouping import decode_by_model
    from holdfast.core.judge import judge
    from holdfast.core.memory import Memory

    number = 'model = "one"\n[[checks]]\nname = "it"\nkind = "range"\nmin = 1\nfield = "features.size"\n'
    text = 'model = "other"\n[[checks]]\nname = "it"\nkind = "one_of"\nfield = "features.size"\nvalues = ["L"]\n'
    policies = PolicySet.of([policy_of(number), policy_of(text)])
    raws = [raw(model="one", features={"size": 1}), raw(model="other", features={"size": "L"})]
    groups, malformed = decode_by_model(policies, raws)
    assert malformed == {}
    for model, batch in groups:
        assert judge(batch, policies.policies[model], Memory(), None, NOW, model=model).approved.all()


def id_of(folder: Path, toml: str, table: bytes = b"entity_id,min\na,1\n") -> str:
    (folder / "floors.csv").write_bytes(table)
    (folder / "pricing.toml").write_text(toml)
    return load_policy(folder / "pricing.toml").id


def test_the_id_changes_with_the_content_and_only_then(tmp_path):
    """Tables belong to it, byte by byte; comments, order and defaults that are written out do not."""
    first = id_of(tmp_path, RANGE)
    assert re.fullmatch(r"pricing@[0-9a-f]{12}", first)
    assert id_of(tmp_path, f"# a comment\n{RANGE}") == first
    assert (
        id_of(tmp_path, RANGE.replace('kind = "range"\nmin = 10\n', 'min = 10.0\nmode = "enforce"\nkind = "range"\n'))
        == first
    )
    assert id_of(tmp_path, RANGE, b"entity_id,min\na,2\n") == first, "a table that it does not name"
    others = [
        id_of(tmp_path, RANGE.replace("10", "11")),
        id_of(tmp_path, RANGE.replace("floor", "roof")),
        id_of(tmp_path, f'{RANGE}severity = "critical"'),
        id_of(tmp_path, f"{RANGE}[breaker]\nmin_seen = 51"),
        id_of(tmp_path, f'mode = "shadow"\n{RANGE}'),
        id_of(tmp_path, f'{RANGE}table = "floors.csv"'),
        id_of(tmp_path, f'{RANGE}table = "floors.csv"', b"entity_id,min\na,2\n"),
        id_of(tmp_path, f'{RANGE}table = "floors.csv"', b"entity_id,min\na,2.0\n"),
    ]
    assert len({first, *others}) == 1 + len(others)


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_duration_reads_back_as_it_was_written(number, unit):
    """`90s` may come back as another unit, never as another time."""
    toml = f'model = "p"\n[[checks]]\nname = "it"\nkind = "freshness"\nmax_age = "{number}{unit}"\n'
    try:
        policy = policy_of(toml)
    except PolicyError as refused:
        assert "longer than" in str(refused)  # noqa: PT017  the refusal is one of two right answers
        return
    written = policy.model_dump(mode="json")["checks"][0]["max_age"]
    again = policy_of(toml.replace(f"{number}{unit}", written))
    assert again.checks[0].max_age == policy.checks[0].max_age
    assert again.id == policy.id
