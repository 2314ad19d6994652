"""Types of what is asked for over HTTP."""

from datetime import timedelta
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter

from holdfast.core.duration import Duration

Reason = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"\S")]
# Every text that fits is a duration within the bounds of Duration.
Lasts = Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]{0,4}[sm]|[1-9][0-9]{0,3}h|[1-9][0-9]{0,2}d)$")]
_DURATION = TypeAdapter[Any](Duration)


def duration(text: str) -> timedelta:
    """The duration that a text of `Lasts` says."""
    found: timedelta = _DURATION.validate_python(text)
    return found
