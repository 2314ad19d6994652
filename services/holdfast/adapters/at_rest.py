"""Policy files and tables are taken up when they are at rest: what is still being written is not whole.

A file is at rest when its size and time have not changed for a while, which is longer for a table than for a policy.
One that was renamed into place, or is reached by a link that was exchanged, is whole at once.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REST = {".toml": 1.0, ".csv": 5.0, ".parquet": 5.0}
"""Seconds without a change, by the end of a file's name; other files are not looked at."""
LOOK_EVERY = 0.2
GIVE_UP_AFTER = 120.0
"""Seconds: a file that is written for so long is refused, so that people hear of it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written, and what tells how it came there."""

    where: str
    """The file itself, behind links."""
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    def is_whole_after(self, before: "Stamp | None") -> bool:
        """Whether it came to its place in one step.

        A rename and the copy of a time set the inode's time later than the content's; a write sets both to the same.
        """
        if before is None:
            return False
        return self.where != before.where or (self.inode != before.inode and self.changed_ns > self.modified_ns)


Stamps = Mapping[Path, Stamp]


def stamps(folder: Path) -> Stamps:
    """The policies and tables below a folder; one that goes away meanwhile is left out."""
    found: dict[Path, Stamp] = {}
    for path in folder.rglob("*"):
        if path.suffix in REST:
            try:
                status = path.stat()
                where = str(path.resolve())
            except OSError:
                continue
            found[path] = Stamp(where, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


async def come_to_rest(folder: Path, before: Stamps) -> tuple[Stamps, Path | None]:
    """Wait until what has changed since `before` is at rest.

    Returns how the files are then, and the file that is still being written after `GIVE_UP_AFTER`, or None.
    """
    started = time.monotonic()
    since: dict[Path, tuple[Stamp, float]] = {}
    while True:
        now, found = time.monotonic(), await asyncio.to_thread(stamps, folder)
        restless: Path | None = None
        for path, stamp in found.items():
            if stamp == before.get(path) or stamp.is_whole_after(before.get(path)):
                continue
            first, at = since.get(path, (None, now))
            if first != stamp:
                at = now
            since[path] = (stamp, at)
            if now - at < REST[path.suffix]:
                restless = path
        if restless is None:
            return found, None
        if now - started >= GIVE_UP_AFTER:
            return found, restless
        await asyncio.sleep(LOOK_EVERY)


def wait_for_tables(folder: Path) -> None:
    """At the start: return once no table was written within its rest. It blocks for some seconds at most."""
    tables = [one for path, one in stamps(folder).items() if path.suffix != ".toml"]
    youngest = max((one.modified_ns for one in tables if one.changed_ns <= one.modified_ns), default=0)
    age = time.time() - youngest / 1e9
    if 0 <= age < REST[".csv"]:
        time.sleep(REST[".csv"] - age)
