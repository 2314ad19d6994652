"""Which timestamps a topic keeps long enough for consumers to read the record."""

DAY_MS = 24 * 3_600_000


def oldest_kept(kept_ms: int | None, now_ms: int) -> int | None:
    """The oldest timestamp of a record written now that is kept for a day at least, or half of the retention.

    `kept_ms` is the topic's retention; None: the topic deletes nothing by age, and so is the answer.
    """
    if kept_ms is None:
        return None
    return now_ms - kept_ms + min(DAY_MS, kept_ms // 2)
