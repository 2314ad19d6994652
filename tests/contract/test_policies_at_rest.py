"""Policies and tables are taken up when they are whole: on a real file system, in place, renamed, and half written."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from backends import until
from holdfast.adapters import at_rest
from holdfast.adapters.policies import PolicyStore

POLICY = """
model = "pricing"
[[checks]]
name = "floors"
kind = "range"
table = "floors.csv"
unlisted = "fail"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rests are short here: what is compared is what is taken up, never how long it takes."""
    monkeypatch.setattr(at_rest, "REST", {".toml": 0.5, ".csv": 0.5, ".parquet": 0.5})
    monkeypatch.setattr(at_rest, "LOOK_EVERY", 0.05)
    (tmp_path / "policies").mkdir()
    put(tmp_path / "policies", "pricing.toml", POLICY)
    put(tmp_path / "policies", "floors.csv", table(1000))
    return tmp_path / "policies"


def table(rows: int, low: float = 1.0) -> str:
    return "entity_id,min\n" + "".join(f"SKU-{n},{low}\n" for n in range(rows))


def put(folder: Path, name: str, text: str) -> None:
    """In one step: written elsewhere, renamed into place."""
    fresh = folder.parent / f".{name}"
    fresh.write_text(text)
    fresh.replace(folder / name)


@contextlib.asynccontextmanager
async def following(folder: Path):
    """A store that follows the folder; `seen` are the rows of each table that was in force, `refused` the reasons."""
    seen: list[int] = []

    def loaded(policies):
        rows = policies.policies["pricing"].checks[0].table_rows
        if seen[-1:] != [rows]:
            seen.append(rows)

    store = PolicyStore(folder, on_loaded=loaded)
    task = asyncio.create_task(store.follow())
    try:
        yield store, seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["in place", "renamed", "a link is exchanged", "deleted and written"])
async def test_a_table_is_taken_up_once_it_is_whole(folder, how):
    """Never a part of it, however it is written."""
    if how == "a link is exchanged":
        (folder / "..first").mkdir()
        (folder / "..first" / "floors.csv").write_text(table(1000))
        (folder / "..data").symlink_to("..first")
        (folder / "floors.csv").unlink()
        (folder / "floors.csv").symlink_to("..data/floors.csv")
    async with following(folder) as (_, seen):
        whole = table(1200)
        if how == "renamed":
            put(folder, "floors.csv", whole)
        elif how == "a link is exchanged":
            # As Kubernetes exchanges a ConfigMap.
            (folder / "..second").mkdir()
            (folder / "..second" / "floors.csv").write_text(whole)
            (folder / "..link").symlink_to("..second")
            (folder / "..link").replace(folder / "..data")
        else:
            if how == "deleted and written":
                (folder / "floors.csv").unlink()
            with (folder / "floors.csv").open("w") as file:
                for start in range(0, len(whole), 2000):
                    file.write(whole[start : start + 2000])
                    file.flush()
                    await asyncio.sleep(0.05)
        await until(lambda: seen[-1] == 1200)
        assert seen == [1000, 1200]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("key", "rows", "taken"),
    [
        ("", 500, True),
        ("", 499, False),
        ("max_table_shrink = 0.1\n", 900, True),
        ("max_table_shrink = 0.1\n", 899, False),
        ("max_table_shrink = 1.0\n", 1, True),
        ("max_table_shrink = 0.0\n", 999, False),
    ],
)
async def test_a_table_that_has_lost_too_many_rows_is_refused(folder, key, rows, taken):
    """The policy says how many it may lose; the old one stays in force, and the reason says what to do."""
    put(folder, "pricing.toml", key + POLICY)
    async with following(folder) as (store, seen):
        put(folder, "floors.csv", table(rows))
        await until(lambda: seen[-1] == rows if taken else store.refused)
        assert seen == [1000, *([rows] if taken else [])]
        if not taken:
            assert f"table floors.csv has {rows:,} rows, and the one in force has 1,000" in store.refused
            assert "set max_table_shrink = 1.0 if it is whole" in store.refused
            put(folder, "floors.csv", table(1001))
            await until(lambda: seen[-1] == 1001)
            assert store.refused is None


@pytest.mark.asyncio
async def test_a_file_that_is_written_without_end_is_refused(folder, monkeypatch):
    """People hear of it; once it is at rest it is taken up."""
    monkeypatch.setattr(at_rest, "GIVE_UP_AFTER", 1.0)
    async with following(folder) as (store, seen):
        with (folder / "floors.csv").open("a") as file:
            number = 0
            while not store.refused:
                number += 1
                file.write(f"NEW-{number},1.0\n")
                file.flush()
                await asyncio.sleep(0.05)
        assert "floors.csv: it is still being written; write it elsewhere and rename it into place" in store.refused
        put(folder, "floors.csv", table(1300))
        await until(lambda: seen[-1] == 1300)
        assert seen == [1000, 1300]


def test_a_table_that_was_just_written_is_waited_for_at_the_start(folder, monkeypatch):
    """There is no older one to go on with; one that was renamed into place needs no rest."""
    waits: list[float] = []
    monkeypatch.setattr(at_rest.time, "sleep", waits.append)
    status = (folder / "floors.csv").stat()
    os.utime(folder / "floors.csv", ns=(status.st_atime_ns, status.st_mtime_ns - 1))
    PolicyStore(folder)
    assert waits == []
    with (folder / "floors.csv").open("a") as file:
        file.write("NEW,1.0\n")
    PolicyStore(folder)
    assert len(waits) == 1
