"""Policy files: read, checked, and read again when they change."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog
from watchfiles import awatch

from holdfast.adapters.at_rest import Stamps, come_to_rest, stamps, wait_for_tables
from holdfast.adapters.policy_files import POLICY_BYTES, TABLE_BYTES, PolicyFolder
from holdfast.adapters.tables import load_table
from holdfast.core.memory import Table
from holdfast.core.policy import Policy, PolicyError, PolicySet, collapsed_table, parse_policy, tables_of
from holdfast.core.policy_events import PolicyEvent, PolicyRefusal, changes, model_of
from holdfast.core.toml_text import parse_toml

log = structlog.get_logger("holdfast.policies")


def load_policy(path: Path, folder: PolicyFolder | None = None) -> Policy:
    """Read one policy file of the folder and its tables. Raises PolicyError, naming the file and the key.

    The error may name the policy's keys and the names that it uses; it quotes nothing of a file that is not TOML, and
    nothing of a table.
    """
    folder = folder or PolicyFolder(path.parent)
    model = path.stem
    try:
        data = _parse(path, folder)
        model = str(data.get("model", model))
        try:
            tables = {name: _table(path.parent / name, folder) for name in tables_of(data)}
        except PolicyError as error:
            raise PolicyError(f"{path}: table {error}") from None
        return parse_policy(data, str(path), tables)
    except PolicyError as error:
        raise error.of(model) from None
    except Exception as error:
        # Its text may quote the file.
        refused = PolicyError(f"{path}: cannot be used ({type(error).__name__}); compare it with the documentation")
        raise refused.of(model) from None


def _table(path: Path, folder: PolicyFolder) -> tuple[Table, str]:
    return load_table(path, folder.read(path, TABLE_BYTES))


def _parse(path: Path, folder: PolicyFolder) -> dict[str, Any]:
    """What a policy file says. Raises PolicyError."""
    try:
        return parse_toml(folder.read(path, POLICY_BYTES).decode("utf-8"), quote=False)
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: not TOML: byte {error.start + 1} is not UTF-8 text; save it as UTF-8") from None
    except ValueError as error:
        raise PolicyError(f"{path}: not TOML: {error}") from None


def load_policies(folder: Path) -> PolicySet:
    """Read `folder/*.toml`. Raises PolicyError."""
    reading = PolicyFolder(folder)
    files = reading.policies()
    policies = [load_policy(path, reading) for path in files]
    named: dict[str, Path] = {}
    for path, policy in zip(files, policies, strict=True):
        if (other := named.setdefault(policy.model, path)) != path:
            raise PolicyError(
                f"{path} and {other} are both for the model {policy.model!r}; keep one of them, or give the other "
                "another model"
            ).of(policy.model)
    return PolicySet.of(policies)


def unlike_their_files(folder: Path) -> list[str]:
    """A sentence for each policy whose file has another name than its model: one of the two may be mistyped.

    Raises PolicyError and KeyError for files that `load_policies` refuses.
    """
    reading = PolicyFolder(folder)
    named = {path: str(_parse(path, reading)["model"]) for path in reading.policies()}
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
        with contextlib.suppress(PolicyError):
            named = _parse(path, PolicyFolder(folder)).get("model")
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
    `on_events` is told of each policy that is another one, before it is in force, and of each refusal once. Only
    policies of models that this process `carries` are in force; a file of another one that does not load is refused
    all the same.
    """

    def __init__(
        self,
        folder: Path,
        on_refused: Callable[[], None] = lambda: None,
        on_loaded: Callable[[PolicySet], None] = lambda _: None,
        on_events: Callable[[Sequence[PolicyEvent]], None] = lambda _: None,
        carries: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._folder, self._on_refused, self._on_loaded, self._on_events = folder, on_refused, on_loaded, on_events
        self._carries = carries
        self.refused: str | None = None
        """Why what the files say now is not in force."""
        wait_for_tables(folder)
        self._stamps_in_force = stamps(folder)
        self._held: int | None = None
        self.current = self._load()
        on_events(changes({}, self.current.policies, self._author(), at_start=True))
        self._warn()
        on_loaded(self.current)

    def reload(self, expected: Stamps | None = None) -> bool:
        """Take over what the files say now; False where they were refused.

        Raises ChangedMeanwhile where they are not as `expected` any more once they were read; nothing has changed then.
        """
        try:
            fresh = self._load()
            for model, policy in fresh.policies.items():
                if model in self.current.policies and (lost := collapsed_table(self.current.policies[model], policy)):
                    raise PolicyError(f"{self._folder}: the policy of {model}: {lost}").of(model)
        except PolicyError as error:
            if expected not in (None, stamps(self._folder)):
                raise ChangedMeanwhile from None
            self._refuse(error)
            return False
        if expected not in (None, stamps(self._folder)):
            raise ChangedMeanwhile
        self.refused = None
        if found := changes(self.current.policies, fresh.policies, self._author()):
            # A partition that judges by the new ones must find what is to be written about them.
            self._on_events(found)
            self.current = fresh
            log.info(
                "policies changed",
                now=[change.after.id for change in found if change.after is not None],
                removed=[model_of(change) for change in found if change.after is None],
            )
            self._warn()
        self._on_loaded(self.current)
        return True

    def _load(self) -> PolicySet:
        every = load_policies(self._folder)
        mine = [policy for model, policy in every.policies.items() if self._carries(model)]
        return every if len(mine) == len(every.policies) else PolicySet.of(mine)

    def _warn(self) -> None:
        with contextlib.suppress(PolicyError, KeyError):  # They may be changing again.
            for sentence in unlike_their_files(self._folder):
                log.warning(sentence)

    def _author(self) -> str | None:
        """Who has made the policies, where the deployment says so in a way that can be used."""
        try:
            return PolicyFolder(self._folder).author()
        except PolicyError as error:
            log.warning("the author of the policies is not known", error=str(error))
            return None

    def _refuse(self, error: PolicyError) -> None:
        if str(error) != self.refused:
            self._on_events([PolicyRefusal(str(error), error.model, self._author())])
        self.refused = str(error)
        self._on_refused()
        log.error("new policy refused, the old one stays", error=self.refused)

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
            self._refuse(
                PolicyError(f"{restless}: it is still being written; write it elsewhere and rename it into place")
            )
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

    async def _announced(self) -> AsyncGenerator[bool, None]:
        """Whether something changed, at once and at least every `LOOK_EVERY` seconds. Raises OSError, RuntimeError.

        Only the folder itself is watched, since a watch of what is below it would follow links out of it, such as one
        to the root of the file system. Folders below it are looked at.
        """
        before = await asyncio.to_thread(stamps, self._folder)
        watch = awatch(
            self._folder,
            debounce=300,
            step=50,
            recursive=False,
            rust_timeout=int(LOOK_EVERY * 1000),
            yield_on_timeout=True,
        )
        async with contextlib.aclosing(watch):
            async for changes in watch:
                now = await asyncio.to_thread(stamps, self._folder)
                yield bool(changes) or now != before
                before = now

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
