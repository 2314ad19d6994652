"""Policies are followed also where the system has no way left to announce changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.adapters import policies as policies_module

POLICY = 'model = "pricing"\n[[checks]]\nkind = "range"\nname = "bounds"\nfield = "value"\nmin = 1\nmax = {max}\n'
FOLLOWING = """
import asyncio, sys
from pathlib import Path
from holdfast.adapters import policies
from holdfast.adapters.policies import PolicyStore
policies.LOOK_EVERY = 0.2
async def main():
    folder = Path(sys.argv[1])
    told = []
    store = PolicyStore(folder, on_loaded=lambda found: told.append(found.policies["pricing"].id))
    following = asyncio.create_task(store.follow())
    async with asyncio.timeout(60):
        for number, size in enumerate((20, 30, 40)):
            while len(told) < 2:
                await asyncio.sleep(0.01)
            before = store.current.policies["pricing"].id
            text = (folder / "pricing.toml").read_text().rpartition("max")[0] + f"max = {size}\\n"
            (folder / "pricing.toml").write_text(text)
            while store.current.policies["pricing"].id == before:
                assert not following.done(), following.exception()
                await asyncio.sleep(0.01)
    following.cancel()
    print("followed")
asyncio.run(main())
"""


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_policies_are_followed_without_inotify(tmp_path: Path, limit: str) -> None:
    """The limit of the user's namespace is 0; each change is taken up, also two within a second, and a line says so."""
    (tmp_path / "pricing.toml").write_text(POLICY.format(max=10))
    shell = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", shell, "sh", sys.executable, "-c", FOLLOWING, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    if "unshare:" in done.stderr or "/proc/sys/user" in done.stderr:
        pytest.skip(f"needs a user namespace of its own: {done.stderr.strip()}")
    assert "followed" in done.stdout.splitlines(), done.stderr
    assert done.stdout.count("changes of policies are not announced") == 1


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no watcher"), PermissionError(13)])
async def test_whatever_keeps_the_system_from_announcing_polling_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Each kind of refusal, and a change is still found."""

    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(policies_module, "awatch", refused)
    monkeypatch.setattr(policies_module, "LOOK_EVERY", 0.05)
    (tmp_path / "pricing.toml").write_text(POLICY.format(max=10))
    store = policies_module.PolicyStore(tmp_path)
    first = store.current.policies["pricing"].id
    changes = store._changes()
    await anext(changes)  # the turn that found no watch
    await anext(changes)  # what changed before there was one
    (tmp_path / "pricing.toml").write_text(POLICY.format(max=11))
    await anext(changes)
    assert store.reload()
    assert store.current.policies["pricing"].id != first
    await changes.aclose()
