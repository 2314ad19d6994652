"""Who a person of an OpenID Connect provider is here: the claims of a verified ID token, by the configured rules.

Nobody gets in by default: a person without a value that a role is mapped to is refused. The name becomes the actor of
the person's commands, so it must not be taken for another one: it is 1 to 100 visible ASCII characters, which leaves
no blanks, invisible characters or letters of other scripts, and not a name of automatic decisions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.core.actors import actor_name
from holdfast.core.errors import HoldfastError

ROLES = ("viewer", "operator", "admin")
"""The one that may do least first."""
EVERY_MODEL = "*"
NO_NAME, NO_ROLE, NO_MODEL = "oidc_name", "oidc_role", "oidc_models"
"""Why a person is refused."""
_NAME = re.compile(r"[!-~]{1,100}")


class ClaimsError(HoldfastError):
    """The provider knows this person, and nobody here does."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rules:
    """Which claim says what. A claim is named by its path: `realm_access.roles`."""

    name_claim: str
    roles_claim: str
    roles: Mapping[str, str]
    """The role of each value of the claim."""
    models_claim: str = ""
    models: Mapping[str, tuple[str, ...]] | None = None
    """The models of each value of the claim, or `*`; None: everybody sees all models."""


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    role: str
    """One of ROLES."""
    models: frozenset[str] | None = None
    """None: all."""


def person_of(claims: Mapping[str, Any], rules: Rules) -> Person:
    """Raises ClaimsError, which says to the person what is missing and who can help."""
    name = _name(claims, rules.name_claim)
    found = [rules.roles[value] for value in values(claims, rules.roles_claim) if value in rules.roles]
    if not found:
        raise ClaimsError(
            NO_ROLE,
            f"{name} has no role here: nothing that the provider says in {rules.roles_claim} is mapped to one. Ask an "
            "administrator for a group or a role that is.",
        )
    return Person(name, max(found, key=ROLES.index), _models(claims, rules, name))


def values(claims: Mapping[str, Any], path: str) -> list[str]:
    """The texts of a claim that holds one or a list of them."""
    found = claim(claims, path)
    if isinstance(found, str):
        return [found]
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def claim(claims: Mapping[str, Any], path: str) -> Any:
    """What is at the path. Names of claims may have dots themselves, as in `https://example.com/roles`."""
    if path in claims:
        return claims[path]
    for dot in re.finditer(r"\.", path):
        inner = claims.get(path[: dot.start()])
        if isinstance(inner, Mapping) and (found := claim(inner, path[dot.end() :])) is not None:
            return found
    return None


def _name(claims: Mapping[str, Any], path: str) -> str:
    said = claim(claims, path)
    if not isinstance(said, str):
        raise ClaimsError(
            NO_NAME,
            f"The provider does not say {path}, which is the name of a person here. An administrator can have it put "
            "into the ID token, or name another claim in api.oidc.name_claim.",
        )
    if path == "email" and claims.get("email_verified") is not True:
        raise ClaimsError(
            NO_NAME,
            "The provider does not say that this email address is verified, so it cannot be the name of a person here. "
            "Verify it there, or let an administrator name another claim in api.oidc.name_claim.",
        )
    try:
        name = actor_name(said)
    except ValueError as error:
        raise ClaimsError(
            NO_NAME,
            f"This name cannot act here: {error}. An administrator can name another claim in api.oidc.name_claim.",
        ) from None
    if name != said or _NAME.fullmatch(name) is None:
        raise ClaimsError(
            NO_NAME,
            "This name could be taken for another: here it has 1 to 100 visible characters of ASCII, without blanks. "
            "Change it at the provider, or let an administrator name another claim in api.oidc.name_claim.",
        )
    return name


def _models(claims: Mapping[str, Any], rules: Rules, name: str) -> frozenset[str] | None:
    if rules.models is None:
        return None
    path = rules.models_claim or rules.roles_claim
    found = frozenset(model for value in values(claims, path) for model in rules.models.get(value, ()))
    if EVERY_MODEL in found:
        return None
    if not found:
        raise ClaimsError(
            NO_MODEL,
            f"{name} may see no model: nothing that the provider says in {path} is mapped to one. Ask an administrator "
            "for a group or a role that is.",
        )
    return found
