"""Claims of an ID token and who that is here: nobody by default, and nobody under a name that could be another's."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.actors import actor_key, is_reserved
from holdfast.core.claims import ROLES, ClaimsError, Person, Rules, claim, person_of, values

MAPPED = {"watchers": "viewer", "ops": "operator", "chiefs": "admin"}
RULES = Rules("preferred_username", "realm_access.roles", MAPPED)


@pytest.mark.parametrize(
    ("claims", "path", "found"),
    [
        ({"groups": ["a", "b"]}, "groups", ["a", "b"]),
        ({"groups": "a"}, "groups", ["a"]),
        ({"groups": "a b"}, "groups", ["a b"]),
        ({"groups": []}, "groups", []),
        ({}, "groups", []),
        ({"groups": None}, "groups", []),
        ({"groups": {"a": 1}}, "groups", []),
        ({"groups": 7}, "groups", []),
        ({"groups": ["a", 7, None, ["b"], {"c": "d"}]}, "groups", ["a"]),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ["a"]),
        ({"realm_access": ["roles"]}, "realm_access.roles", []),
        ({"realm_access": "roles"}, "realm_access.roles", []),
        ({"https://holdfast.example/roles": ["a"]}, "https://holdfast.example/roles", ["a"]),
        ({"resource_access": {"my.client": {"roles": ["a"]}}}, "resource_access.my.client.roles", ["a"]),
        ({"a": {"b.c": ["x"]}, "a.b": {"c": ["y"]}}, "a.b.c", ["x"]),
        ({"a": {}, "a.b": {"c": ["y"]}}, "a.b.c", ["y"]),
        ({"a.b": ["x"], "a": {"b": ["y"]}}, "a.b", ["x"]),
    ],
)
def test_a_claim_is_found_by_its_path(claims: dict[str, Any], path: str, found: list[str]) -> None:
    """As Keycloak, Entra ID, Okta and Auth0 write it: a list or one text, in an object, or with dots in its name."""
    assert values(claims, path) == found


@pytest.mark.parametrize(
    ("said", "role"),
    [
        (["ops"], "operator"),
        (["watchers", "chiefs", "ops"], "admin"),
        (["watchers", "strangers"], "viewer"),
        ("chiefs", "admin"),
        (["strangers"], None),
        (["OPS"], None),
        (["ops "], None),
        (["admin"], None),
        ("ops chiefs", None),
        ([], None),
        (None, None),
        ({"ops": True}, None),
    ],
)
def test_the_highest_role_counts_and_nobody_without_one_gets_in(said: Any, role: str | None) -> None:
    """A value counts as it is written in the configuration: `admin` of the provider is not ours."""
    claims = {"preferred_username": "ann", "realm_access": {"roles": said}}
    if role is not None:
        assert person_of(claims, RULES) == Person("ann", role)
        return
    with pytest.raises(ClaimsError, match=r"^ann has no role here: .* Ask an administrator") as refused:
        person_of(claims, RULES)
    assert refused.value.reason == "oidc_role"


@pytest.mark.parametrize(
    ("said", "models"),
    [
        (["pricers"], {"pricing", "markdown"}),
        (["pricers", "fraud"], {"pricing", "markdown", "fraud"}),
        (["pricers", "all"], None),
        (["strangers"], "refused"),
        ([], "refused"),
    ],
)
def test_models_are_those_of_all_values_and_nobody_without_one_gets_in(said: list[str], models: Any) -> None:
    mapping = {"pricers": ("pricing", "markdown"), "fraud": ("fraud",), "all": ("*",)}
    rules = Rules("preferred_username", "groups", MAPPED, "teams", mapping)
    claims = {"preferred_username": "ann", "groups": ["ops"], "teams": said}
    if models == "refused":
        with pytest.raises(ClaimsError, match="ann may see no model") as refused:
            person_of(claims, rules)
        assert refused.value.reason == "oidc_models"
        return
    assert person_of(claims, rules).models == (None if models is None else frozenset(models))
    same_claim = Rules("preferred_username", "groups", MAPPED, models={"ops": ("pricing",)})
    assert person_of(claims, same_claim).models == {"pricing"}


@pytest.mark.parametrize("name", ["ann", "ann@corp.example", "CORP\\ann", "a", "ann_corp.example#EXT#", "x" * 100])
def test_a_name_of_visible_ascii_is_taken(name: str) -> None:
    claims = {"preferred_username": name, "realm_access": {"roles": ["ops"]}}
    assert person_of(claims, RULES).name == name


@pytest.mark.parametrize(
    "name",
    [
        "holdfast",
        "Holdfast ",
        "hold-fast",
        "h0ldfast",
        "",
        " ",
        " ann",
        "ann ",
        "ann b",
        "a\u00a0b",
        "\u0430nn",
        "ann\u200b",
        "\uff41nn",
        "\ufb01n",
        "ann\n",
        "ann\x00",
        "jos\u00e9",
        "x" * 101,
        "x" * 2000,
        7,
        None,
        ["ann"],
        {"name": "ann"},
    ],
)
def test_a_name_that_could_be_taken_for_another_is_refused(name: Any) -> None:
    """Of automatic decisions, with blanks, invisible or of letters that look like others; or none at all."""
    claims = {"preferred_username": name, "realm_access": {"roles": ["chiefs"]}}
    with pytest.raises(ClaimsError, match=r"\. .*dministrator") as refused:
        person_of(claims, RULES)
    assert refused.value.reason == "oidc_name"


@pytest.mark.parametrize(("verified", "taken"), [(True, True), (False, False), (None, False), ("true", False)])
def test_an_email_address_is_a_name_where_the_provider_has_verified_it(verified: Any, taken: bool) -> None:
    claims = {"email": "ann@corp.example", "email_verified": verified, "groups": "ops"}
    rules = Rules("email", "groups", MAPPED)
    if taken:
        assert person_of(claims, rules).name == "ann@corp.example"
        return
    with pytest.raises(ClaimsError, match="does not say that this email address is verified"):
        person_of(claims, rules)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(sorted(MAPPED)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["roles", "a.b", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["preferred_username", "realm_access", "realm_access.roles", "x"]), JSON))
def test_whatever_a_provider_says_gives_a_person_of_the_rules_or_a_refusal(claims: dict[str, Any]) -> None:
    """The role stands in the claim, and the name is the one that it says, in its one form."""
    try:
        person = person_of(claims, RULES)
    except ClaimsError:
        return
    assert person.name == claims["preferred_username"]
    assert person.name.isascii()
    assert not is_reserved(person.name)
    assert actor_key(person.name) == person.name.casefold()
    assert person.role in {MAPPED.get(value) for value in values(claims, RULES.roles_claim)}
    assert ROLES.index(person.role) == max(
        ROLES.index(MAPPED[value]) for value in values(claims, RULES.roles_claim) if value in MAPPED
    )


def test_a_claim_that_is_not_there_is_none() -> None:
    assert claim({"a": {"b": None}}, "a.b.c") is None
    assert claim({}, "a.b.c") is None
