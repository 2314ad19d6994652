"""The folder of the policies is followed on, whatever stands in its place: watched by the real file system."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends import until
from holdfast.adapters.policies import PolicyStore, load_policies


def write(folder: Path, minimum: float, model: str = "pricing") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    check = f'[[checks]]\nname = "floor"\nkind = "range"\nfield = "value"\nmin = {minimum}\n'
    (folder / f"{model}.toml").write_text(f'model = "{model}"\n{check}')


def removed_and_made_again(folder: Path) -> None:
    """As a checkout does; the new folder may even get the old one's inode."""
    shutil.rmtree(folder)
    write(folder, 2)


def removed_and_made_again_later(folder: Path) -> None:
    shutil.rmtree(folder)
    os.sync()
    folder.mkdir()
    write(folder, 2)


def renamed_into_its_place(folder: Path) -> None:
    fresh = folder.with_name("fresh")
    write(fresh, 2)
    folder.rename(folder.with_name("old"))
    fresh.rename(folder)


def renamed_away_and_written_anew(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    write(folder, 2)


def linked_to_another(folder: Path) -> None:
    """As Kubernetes does with a ConfigMap, and as deployments with a folder for each release do."""
    fresh, link = folder.with_name("release-2"), folder.with_name("link")
    write(fresh, 2)
    link.symlink_to(fresh)
    if not folder.is_symlink():
        folder.rename(folder.with_name("release-1"))
    link.replace(folder)


CHANGES: list[Callable[[Path], None]] = [
    removed_and_made_again,
    removed_and_made_again_later,
    renamed_into_its_place,
    renamed_away_and_written_anew,
    linked_to_another,
]


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """On the disk, and in memory, where inodes are given out in another way."""
    if request.param == "disk":
        yield tmp_path
        return
    if not Path("/dev/shm").is_dir():  # noqa: S108  a file system in memory
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("change", CHANGES)
async def test_another_folder_in_the_place_of_the_first_is_followed_on(
    place: Path, change: Callable[[Path], None]
) -> None:
    """What it says is taken up, and so is every later change in it; twice, since the second folder is watched anew."""
    folder = place / "policies"
    write(folder, 1)
    store = PolicyStore(folder)
    following = asyncio.create_task(store.follow())
    try:
        await asyncio.sleep(0.3)  # The first watch is there.
        for bound in (3, 5):
            await asyncio.to_thread(change, folder)
            await until(lambda: store.current.policies["pricing"].id == load_policies(folder).policies["pricing"].id)
            await asyncio.sleep(0.3)
            write(folder, bound)
            await until(lambda: store.current.policies["pricing"].id == load_policies(folder).policies["pricing"].id)
            for left in ("old", "fresh", "release-1"):
                shutil.rmtree(folder.with_name(left), ignore_errors=True)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
