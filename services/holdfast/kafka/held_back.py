"""For how long a partition worker has been held by an open transaction of another producer."""


class HeldBack:
    """Sees whether the last stable offset stays before the end of the log."""

    def __init__(self) -> None:
        self._stable: int | None = None
        self._since = 0.0

    def seconds(self, stable: int | None, highwater: int, now: float) -> float:
        """Take note of the last stable offset and the end of the log at the time `now`; 0 where nothing is held."""
        if stable is None or not 0 <= stable < highwater:
            self._stable = None
            return 0.0
        if stable != self._stable:
            self._stable, self._since = stable, now
        return now - self._since
