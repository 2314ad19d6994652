"""Which versions of a model may be approved, by the route and the policy's `versions`.

A producer may name any version in its predictions. Once a model has a route, outputs of a version that nobody
promoted are judged and counted, so that its team sees how it does, but they are not approved. They teach no check with
memory either, so that they cannot move what outputs of a promoted version are held against.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from holdfast_schemas import Route

CHECK = "not_promoted"
PROMOTED = "a version that was promoted"
Versions = Literal["promoted", "routed", "any"]


def accepted_versions(route: Route | None, versions: Versions) -> frozenset[str] | None:
    """The versions that may be approved, or for `any` those that may become a reference; None: all of them.

    Before a first promotion there is no such list. A held route blocks everything in any case.
    """
    if route is None or not route.promoted:
        return None
    if versions == "routed" and route.version is not None:
        return frozenset((route.version,))
    return frozenset(route.promoted)


def others(versions: Sequence[str], accepted: frozenset[str] | None) -> NDArray[np.bool_] | None:
    """Return the rows of all other versions, as an (n,) mask; None: every version is accepted."""
    if accepted is None or accepted.issuperset(versions):
        return None
    return np.array([version not in accepted for version in versions], dtype=np.bool_)


def wanted(route: Route, versions: Versions) -> str:
    """What an output of another version should have been of, in words."""
    return f"the version that serves, {route.version}" if versions == "routed" else PROMOTED
