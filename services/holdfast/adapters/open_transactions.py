"""Transactions of other producers that hold a partition: a committed reader sees nothing behind their first record."""


class HeldBack:
    """For how long a partition has been held by the same open transaction."""

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
