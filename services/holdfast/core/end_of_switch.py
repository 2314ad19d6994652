"""When a switch that lets outputs pass ends by itself."""

from datetime import date, datetime
from typing import Any


def end_of_switch(at: Any) -> Any:
    """The time at which a switch ends by itself, as it is given. Raises ValueError for one without a zone."""
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            raise ValueError(f"{at!r} is not a time; write it as in 2026-12-01T10:00:00Z") from None
    if at is None:
        return at
    if not isinstance(at, date):
        raise ValueError(f"{at!r} is not a time; write it as in 2026-12-01T10:00:00Z")
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise ValueError("the time has no zone, or no hour; write it as in 2026-12-01T10:00:00Z")
    return at
