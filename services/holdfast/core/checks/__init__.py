"""The kinds of check. Each is a frozen value from the policy file that judges a whole batch at once.

A check answers for each prediction pass, fail or *unknown* (not enough to tell); `unknown` in the policy says
whether that counts as a failure. Bounds are inclusive: a value at its limit passes, where the two are compared as
`tolerance` says. NaN stands for an absent number, and every comparison is written so that NaN never passes.
"""

from typing import Annotated

from pydantic import Field

from holdfast.core.checks.condition import ExpressionCheck
from holdfast.core.checks.freshness import FreshnessCheck
from holdfast.core.checks.max_change import MaxChangeCheck
from holdfast.core.checks.one_of import OneOfCheck
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.checks.range import RangeCheck
from holdfast.core.checks.required import RequiredCheck
from holdfast.core.checks.simplex import SimplexCheck

AnyCheck = Annotated[
    RangeCheck
    | MaxChangeCheck
    | ExpressionCheck
    | OneOfCheck
    | FreshnessCheck
    | SimplexCheck
    | OutlierCheck
    | RequiredCheck,
    Field(discriminator="kind"),
]
