"""Reading files of the policies folder, which somebody else may write: only regular files inside it, of bounded size.

A file is named by its path; symbolic links are followed as long as they stay inside the folder, as those of a
Kubernetes ConfigMap do. The real path is then opened part by part below the open folder, and no part may be a link:
what is exchanged between the look and the opening is refused. Nothing waits for a FIFO, nothing is read from a device,
and no error quotes a file.
"""

import os
import stat
import sys
from pathlib import Path

from holdfast.core.actors import actor_name
from holdfast.core.policy import PolicyError

MIB = 1024 * 1024
POLICY_BYTES = 1 * MIB
"""The largest policy file."""
TABLE_BYTES = 256 * MIB
"""The largest table file."""
ALL_BYTES = 512 * MIB
"""What all policies and tables of a folder may have together."""
AUTHOR = "AUTHOR"
"""The file in which a deployment says who has made the policies."""
AUTHOR_BYTES = 1000

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
}


class PolicyFolder:
    """One reading of a folder: its files, and how many bytes they may still have together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = ALL_BYTES

    def policies(self) -> list[Path]:
        """The policy files, sorted. Raises PolicyError."""
        try:
            # Not `glob`, for which a folder that cannot be read is empty.
            return sorted(path for path in self._folder.iterdir() if path.suffix == ".toml")
        except (FileNotFoundError, NotADirectoryError):
            raise PolicyError(
                f"{self._folder}: there is no such folder; set `policies` to where the policy files are, "
                "relative to the configuration file"
            ) from None
        except OSError as error:
            raise PolicyError(f"{self._folder}: cannot be read: {error.strerror}; let this process read it") from None

    def read(self, path: Path, limit: int) -> bytes:
        """The content of a file. Raises PolicyError, in whose text `path` is named and nothing of the content."""
        try:
            with open(self._open(path), "rb") as file:  # noqa: PTH123  a descriptor
                content = file.read(min(limit, self._left) + 1)
        except PolicyError:
            raise
        except OSError as error:
            raise PolicyError(f"{path} cannot be read: {error.strerror}; let this process read it") from None
        except ValueError:  # A zero byte in the name.
            raise PolicyError(f"{str(path)!r} is not the name of a file; correct it") from None
        if len(content) > limit:
            raise PolicyError(f"{path} is larger than {limit // MIB or 1} MiB; make it smaller")
        if len(content) > self._left:
            raise PolicyError(
                f"{path}: the policies and tables have more than {ALL_BYTES // MIB} MiB together; make them smaller"
            )
        self._left -= len(content)
        return content

    def author(self) -> str | None:
        """Who has made the policies, as the deployment says in the first line of the file AUTHOR; None: it does not.

        Raises PolicyError for a file that cannot be used.
        """
        path = self._folder / AUTHOR
        if not os.path.lexists(path):
            return None
        try:
            first = self.read(path, AUTHOR_BYTES).decode("utf-8-sig").partition("\n")[0].strip()
        except UnicodeDecodeError:
            first = ""
        if not first or len(first) > 200:
            raise PolicyError(f"{path}: its first line is not a name of 1 to 200 characters; correct it")
        try:
            return actor_name(first)
        except ValueError as error:
            raise PolicyError(f"{path}: {error}") from None

    def _open(self, path: Path) -> int:
        """The descriptor of a regular file inside the folder. Raises PolicyError, OSError and ValueError."""
        folder = self._folder.resolve()
        try:
            parts = path.resolve().relative_to(folder).parts
        except ValueError:
            if "\0" in str(path):
                raise
            raise PolicyError(
                f"{path} leads outside of the policies folder; put the file itself into {self._folder}"
            ) from None
        except RuntimeError:  # Before Python 3.13: links in a circle.
            raise PolicyError(f"{path} is a link that leads to itself; put a file there") from None
        if not parts:
            raise PolicyError(f"{path} is a directory, not a regular file; put a file there")
        if sys.platform == "win32":  # Files are not opened below a folder there.
            _refuse_irregular(path, path.resolve().stat())
            return os.open(path.resolve(), os.O_RDONLY | getattr(os, "O_BINARY", 0))
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            # Opening a device may already do something, hence the look before it.
            _refuse_irregular(path, os.stat(parts[-1], dir_fd=at, follow_symlinks=False))
            found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        finally:
            os.close(at)
        try:
            _refuse_irregular(path, os.fstat(found))
        except PolicyError:
            os.close(found)
            raise
        return found


def _refuse_irregular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        what = kind if kind.startswith("not") else f"{kind}, not a regular file"
        raise PolicyError(f"{path} is {what}; put a file there")
