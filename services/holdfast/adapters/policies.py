"""Policy files: read, checked, and read again when they change."""

import asyncio
import contextlib
import os
import tomllib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from pathlib import Path

import structlog
from watchfiles import awatch
from watchfiles.main import FileChange

from holdfast.adapters.at_rest import Stamps, come_to_rest, stamps, wait_for_tables
from holdfast.adapters.tables import load_table
from holdfast.core.policy import Policy, PolicyError, PolicySet, collapsed_table, parse_policy, tables_of
from holdfast.core.toml_text import parse_toml

log = structlog.get_logger("holdfast.policies")


def load_policy(path: Path) -> Policy:
    """Read one policy file and its tables. Raises PolicyError, naming the file and the key."""
    try:
        data = parse_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
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
    try:
        # Not `glob`, for which a folder that cannot be read is empty.
        files = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        raise PolicyError(
            f"{folder}: there is no such folder; set `policies` to where the policy files are, "
            "relative to the configuration file"
        ) from None
    except OSError as error:
        raise PolicyError(f"{folder}: cannot be read: {error.strerror}; let this process read it") from None
    policies = [load_policy(path) for path in files]
    named: dict[str, Path] = {}
    for path, policy in zip(files, policies, strict=True):
        if (other := named.setdefault(policy.model, path)) != path:
            raise PolicyError(
                f"{path} and {other} are both for the model {policy.model!r}; keep one of them, or give the other "
                "another model"
            )
    return PolicySet.of(policies)


def unlike_their_files(folder: Path) -> list[str]:
    """A sentence for each policy whose file has another name than its model: one of the two may be mistyped.

    Raises OSError and ValueError for files that `load_policies` refuses.
    """
    named = {path: str(parse_toml(path.read_text(encoding="utf-8"))["model"]) for path in sorted(folder.glob("*.toml"))}
    return [
        f"{path} is for the model {model}: check that this is meant, for the file has another name"
        for path, model in named.items()
        if path.stem not in (model, _file_name(model))
    ]


def _file_name(model: str) -> str:
    """As a file can be named: a model's name may have characters that are awkward there."""
    return model.replace("/", "-").replace(":", "-")


def known_models(folder: Path, routed: Iterable[str]) -> set[str]:
    """Every model with a route or a policy: another one's name is mistyped, and would get a route of its own."""
    found = set(routed)
    # A person's machine need not have the policies. One that does not load names its model all the same.
    for path in folder.glob("*.toml"):
        named: object = path.stem
        with contextlib.suppress(tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError):
            named = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("model")
        if isinstance(named, str):
            found.add(named)
    return found


LOOK_EVERY = 2.0
"""Seconds between two looks whether the folder is still the same one."""


class ChangedMeanwhile(Exception):  # noqa: N818  not an error
    """The files were written to while they were read."""


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
        self.refused: str | None = None
        """Why what the files say now is not in force."""
        wait_for_tables(folder)
        self._stamps_in_force = stamps(folder)
        self._held: int | None = None
        self.current = load_policies(folder)
        self._warn()
        on_loaded(self.current)

    def reload(self, expected: Stamps | None = None) -> bool:
        """Take over what the files say now; False where they were refused.

        Raises ChangedMeanwhile where they are not as `expected` any more once they were read; nothing has changed then.
        """
        try:
            fresh = load_policies(self._folder)
            for model, policy in fresh.policies.items():
                if model in self.current.policies and (lost := collapsed_table(self.current.policies[model], policy)):
                    raise PolicyError(f"{self._folder}: the policy of {model}: {lost}")
        except PolicyError as error:
            if expected not in (None, stamps(self._folder)):
                raise ChangedMeanwhile from None
            self._refuse(str(error))
            return False
        if expected not in (None, stamps(self._folder)):
            raise ChangedMeanwhile
        self.refused = None
        changed = [
            policy.id
            for model, policy in fresh.policies.items()
            if model not in self.current.policies or self.current.policies[model].id != policy.id
        ]
        removed = sorted(set(self.current.policies) - set(fresh.policies))
        if changed or removed:
            self.current = fresh
            log.info("policies changed", now=changed, removed=removed)
            self._warn()
        self._on_loaded(self.current)
        return True

    def _warn(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):  # They may be changing again.
            for sentence in unlike_their_files(self._folder):
                log.warning(sentence)

    def _refuse(self, why: str) -> None:
        self.refused = why
        self._on_refused()
        log.error("new policy refused, the old one stays", error=why)

    async def follow(self) -> None:
        """Reload whenever files in the folder have changed and are at rest; runs until cancelled."""
        try:
            async for _ in self._changes():
                while not await self._take_up():
                    pass
        finally:
            self._let_go()

    async def _take_up(self) -> bool:
        """Whether the files are taken up or refused; False: they have changed while they were read."""
        at_rest, restless = await come_to_rest(self._folder, self._stamps_in_force)
        if restless is not None:
            self._refuse(f"{restless}: it is still being written; write it elsewhere and rename it into place")
            return True
        try:
            # Tables of a million rows take a second to read.
            if await asyncio.to_thread(self.reload, at_rest):
                self._stamps_in_force = at_rest
        except ChangedMeanwhile:
            return False
        return True

    async def _changes(self) -> AsyncIterator[None]:
        """One for each change of a file, and one when another folder stands in the place of this one: a watch is of
        the folder that it found. The first one is for what changed before there was a watch.

        Where the system announces no changes (no inotify instance or watch is left), the files are looked at instead.
        """
        announced = True
        while True:
            if (found := self._hold()) is not None:
                try:
                    async with contextlib.aclosing(self._announced() if announced else self._polled()) as watch:
                        first = True
                        async for changes in watch:
                            if self._identity() != found:
                                break
                            if changes or first:
                                yield
                            first = False
                except FileNotFoundError:
                    pass  # It went away just now.
                except (OSError, RuntimeError) as error:  # watchfiles raises both where a limit is reached
                    if announced:
                        log.warning(
                            "changes of policies are not announced, so the files are looked at every two seconds; "
                            "raise fs.inotify.max_user_instances and max_user_watches",
                            error=str(error),
                        )
                        announced = False
                    else:
                        await asyncio.sleep(LOOK_EVERY)
            yield
            while self._identity() is None:  # noqa: ASYNC110  there is nothing to watch
                await asyncio.sleep(LOOK_EVERY)

    def _announced(self) -> AsyncGenerator[bool, None]:
        """Whether something changed, at once and at least every `LOOK_EVERY` seconds. Raises OSError, RuntimeError."""
        return _happened(
            awatch(
                self._folder,
                debounce=300,
                step=50,
                recursive=True,
                rust_timeout=int(LOOK_EVERY * 1000),
                yield_on_timeout=True,
            )
        )

    async def _polled(self) -> AsyncGenerator[bool, None]:
        """The same by looking. watchfiles' own polling compares whole seconds, and would miss a change."""
        before = await asyncio.to_thread(stamps, self._folder)
        yield False
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = await asyncio.to_thread(stamps, self._folder)
            yield now != before
            before = now

    def _hold(self) -> tuple[int, int] | None:
        """Keep the folder open, and tell its identity: what is open is given to no other folder, which the file
        system would do at once with one that was removed.
        """
        self._let_go()
        with contextlib.suppress(OSError):  # It is away, or this system opens no folders.
            self._held = os.open(self._folder, os.O_RDONLY)
        return self._identity()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._folder.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


async def _happened(changes: AsyncGenerator[set[FileChange], None]) -> AsyncGenerator[bool, None]:
    async with contextlib.aclosing(changes):
        async for some in changes:
            yield bool(some)
