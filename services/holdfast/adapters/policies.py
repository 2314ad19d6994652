"""Policy files: read, checked, and read again when they change."""

import asyncio
import contextlib
import tomllib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import structlog
from watchfiles import awatch

from holdfast.adapters.tables import load_table
from holdfast.core.policy import Policy, PolicyError, PolicySet, parse_policy, tables_of

log = structlog.get_logger("holdfast.policies")


def load_policy(path: Path) -> Policy:
    """Read one policy file and its tables. Raises PolicyError, naming the file and the key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        tables = {name: load_table(path.parent / name) for name in tables_of(data)}
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None
    return parse_policy(data, str(path), tables)


def load_policies(folder: Path) -> PolicySet:
    """Read `folder/*.toml`. Raises PolicyError."""
    if not folder.is_dir():
        raise PolicyError(f"{folder}: there is no such folder; set `policies` to where the policy files are")
    return PolicySet.of([load_policy(path) for path in sorted(folder.glob("*.toml"))])


def known_models(folder: Path, routed: Iterable[str]) -> set[str]:
    """Every model with a route or a policy: another one's name is mistyped, and would get a route of its own."""
    try:
        return {*routed, *load_policies(folder).policies}
    except PolicyError:  # A person's machine need not have the policies.
        return set(routed)


LOOK_EVERY = 2.0
"""Seconds between two looks whether the folder is still the same one."""


class PolicyStore:
    """The policies in force. A change that does not load is refused: the old ones stay.

    `on_loaded` is called with the policies whenever the files were read, `on_refused` whenever they did not load.
    """

    def __init__(
        self,
        folder: Path,
        on_refused: Callable[[], None] = lambda: None,
        on_loaded: Callable[[PolicySet], None] = lambda _: None,
    ) -> None:
        self._folder, self._on_refused, self._on_loaded = folder, on_refused, on_loaded
        self.current = load_policies(folder)
        on_loaded(self.current)

    def reload(self) -> bool:
        """Take over what the files say now; False where they were refused."""
        try:
            fresh = load_policies(self._folder)
        except PolicyError as error:
            self._on_refused()
            log.error("new policy refused, the old one stays", error=str(error))
            return False
        changed = [
            policy.id
            for model, policy in fresh.policies.items()
            if model not in self.current.policies or self.current.policies[model].id != policy.id
        ]
        removed = sorted(set(self.current.policies) - set(fresh.policies))
        if changed or removed:
            self.current = fresh
            log.info("policies changed", now=changed, removed=removed)
        self._on_loaded(self.current)
        return True

    async def follow(self) -> None:
        """Reload whenever a file in the folder changes; runs until cancelled."""
        async for _ in self._changes():
            # Tables of a million rows take a second to read.
            await asyncio.to_thread(self.reload)

    async def _changes(self) -> AsyncIterator[None]:
        """One for each change of a file, and one when another folder stands in the place of this one: a watch is of
        the folder that it found. The first one is for what changed before there was a watch.
        """
        while True:
            if (found := self._identity()) is not None:
                watch = awatch(
                    self._folder,
                    debounce=300,
                    step=50,
                    recursive=True,
                    rust_timeout=int(LOOK_EVERY * 1000),
                    yield_on_timeout=True,
                )
                # It may go away just now.
                with contextlib.suppress(FileNotFoundError):
                    async with contextlib.aclosing(watch):
                        first = True
                        async for changes in watch:
                            if self._identity() != found:
                                break
                            if changes or first:
                                yield
                            first = False
            yield
            while self._identity() is None:  # noqa: ASYNC110  there is nothing to watch
                await asyncio.sleep(LOOK_EVERY)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._folder.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
