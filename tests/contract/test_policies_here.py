"""What a service that only shows policies knows of their files."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from holdfast.adapters import policies_here
from holdfast.adapters.policies_here import PoliciesHere, watch_policies

POLICY = 'model = "pricing"\n[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n'
TABLE = '[[checks]]\nname = "table"\nkind = "range"\ntable = "floors.csv"\n'


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Callable[..., Awaitable[PoliciesHere]]]:
    """A function that waits until what was told last is so."""
    told: list[PoliciesHere] = []

    async def until(condition: Callable[[PoliciesHere], object]) -> PoliciesHere:
        async with asyncio.timeout(30):
            while not (told and condition(told[-1])):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return told[-1]

    watching = asyncio.create_task(watch_policies(folder, told.append))
    try:
        yield until
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def put(path: Path, content: str) -> None:
    """Rename it into place: it is whole at once."""
    path.with_suffix(".new").write_text(content)
    path.with_suffix(".new").rename(path)


async def test_it_follows_the_files_and_says_why_they_are_refused(tmp_path: Path) -> None:
    """A mistake, and a table that has lost too many rows; what was there before stays, as with the guards."""
    rows = "".join(f"SKU-{n},1\n" for n in range(100))
    put(tmp_path / "floors.csv", "entity_id,min\n" + rows)
    put(tmp_path / "pricing.toml", POLICY)
    async with watched(tmp_path) as until:
        before = (await until(lambda told: "pricing" in told.policies)).policies["pricing"]
        assert (before.mode, before.in_shadow) == ("enforce", ())
        put(tmp_path / "pricing.toml", 'mode = "shadow"\n' + POLICY + TABLE)
        shadow = (await until(lambda told: told.policies["pricing"].mode == "shadow")).policies["pricing"]
        assert shadow.in_shadow == ("floor", "table")
        put(tmp_path / "pricing.toml", "mod = 1\n" + POLICY)
        told = await until(lambda told: told.refused)
        assert "mod" in told.refused
        assert told.policies["pricing"] == shadow
        put(tmp_path / "pricing.toml", 'mode = "shadow"\n' + POLICY + TABLE)
        await until(lambda told: told.refused is None)
        put(tmp_path / "floors.csv", "entity_id,min\nSKU-1,1\n")
        told = await until(lambda told: told.refused)
        assert "it may lose 50% of them at once" in told.refused
        assert told.policies["pricing"] == shadow


async def test_files_that_do_not_load_at_the_start_are_told_of_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service starts all the same: it shows them, and judges nothing by them."""
    monkeypatch.setattr(policies_here, "LOOK_EVERY", 0.1)
    put(tmp_path / "pricing.toml", "nonsense")
    async with watched(tmp_path) as until:
        assert (await until(lambda told: told.refused)).policies == {}
        put(tmp_path / "pricing.toml", POLICY)
        assert "pricing" in (await until(lambda told: told.refused is None)).policies


async def test_a_folder_that_is_not_there_is_not_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the API alone has none; policies that come later are shown."""
    monkeypatch.setattr(policies_here, "LOOK_EVERY", 0.1)
    folder = tmp_path / "policies"
    async with watched(folder) as until:
        await asyncio.sleep(0.3)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        put(elsewhere / "pricing.toml", POLICY)
        elsewhere.rename(folder)
        # What is told first.
        told = await until(lambda _: True)
        assert (told.refused, told.policies["pricing"].mode) == (None, "enforce")
