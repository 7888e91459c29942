"""Opening other users' files, but only regular ones, because a pipe or a device may block or never end; making folders
that survive a power cut; and the folder of what is downloaded or computed once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.core.errors import DataError

if TYPE_CHECKING:
    from distsgd.core.device import Array


@dataclass(frozen=True)
class FileStamp:
    """Which file is at a path, and a sign of its contents that costs one system call: size and time of change.

    Sent to another process, it becomes the stamp of the file that is there then: on another host the file at this path
    may be a copy, and even a shared one has another device.
    """

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: str) -> FileStamp:
        """The stamp of the file that is at `path` now. Raises OSError."""
        found = os.stat(path)
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def __reduce__(self) -> tuple[Callable[[str], FileStamp], tuple[str]]:
        return _stamp_here, (self.path,)

    def check(self) -> None:
        """Raise DataError where the file is no longer as it was."""
        try:
            found = FileStamp.of(self.path)
        except OSError as error:
            change = f"it is gone ({error.strerror or error})"
        else:
            if found == self:
                return
            change = "it was written to" if found.size == self.size else f"it has {found.size} bytes"
            if (found.device, found.inode) != (self.device, self.inode):
                change = "another file has its name"
        raise DataError(
            f"{self.path}: expected the {self.size} bytes that were there at the start, {change} now; "
            "leave the file as it is while it is in use, and start again"
        )


def _stamp_here(path: str) -> FileStamp:
    """The stamp of the file that is there; where there is none, one that no file has."""
    try:
        return FileStamp.of(path)
    except OSError:
        return FileStamp(path, 0, 0, 0, 0)


def mapped_files(arrays: Iterable[Array | None]) -> list[FileStamp]:
    """The stamps of the files that these arrays, or what they are views of, are maps of, and of those that they stay
    in. Raises OSError."""
    from numpy import memmap

    paths: set[str] = set()
    stored: set[FileStamp] = set()
    for array in arrays:
        base: object = array
        stored.update(getattr(array, "files", ()))
        while base is not None and not isinstance(base, memmap):
            base = getattr(base, "base", None)
        if base is not None and base.filename is not None:
            paths.add(os.fspath(base.filename))
    return [*(FileStamp.of(path) for path in sorted(paths)), *sorted(stored, key=lambda stamp: stamp.path)]


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~user at its beginning replaced by that home, where there is one."""
    return Path(os.path.expanduser(path))


def cache_folder(given: str | None = None) -> Path:
    """The folder of data-set files and of what is computed once: the given one, else `distsgd` in the user's cache
    folder, which is $XDG_CACHE_HOME, else ~/.cache (macOS: ~/Library/Caches). Raises DataError where there is none.
    """
    if given:
        return Path(os.path.abspath(os.path.expanduser(given)))  # other ranks may have another working directory
    default = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(default):  # the XDG specification: a relative path is to be ignored
        return Path(default) / "distsgd"
    try:
        home = Path.home()
    except RuntimeError:
        raise DataError("data folder: expected a home folder to keep files in, found none; set --data-dir") from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "distsgd"


def open_regular(path: str | os.PathLike[str], folder: int | None = None) -> BufferedReader:
    """Open the regular file at `path` for reading, through links; `folder` is a descriptor that `path` is relative to.
    Raises OSError, also where it is no regular file."""
    check_regular(os.stat(path, dir_fd=folder).st_mode, path)  # first: opening a device may have effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        check_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    """Raise OSError where this isn't the mode of a regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Read a regular file. Raises OSError, also where it has more than `limit` bytes."""
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", os.fspath(path))
    return data


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and the missing ones above it, so that they survive a power cut; return those made, the innermost
    first. Raises OSError.

    Where one of them can't be made, the others are removed again.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        for path in reversed(missing):
            _make(path)
            with suppress(OSError):  # a folder with write access only can't be synced
                sync_folder(path.parent)
        if not missing:
            _make(folder)  # raises where it isn't a folder
    except OSError:
        remove_empty(missing)
        raise
    return missing


def _make(folder: Path) -> None:
    """Make a folder where there is none. Raises FileNotFoundError where it is moved meanwhile."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise


def sync_folder(folder: Path) -> None:
    """Sync `folder`, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty(folders: list[Path]) -> None:
    """Remove these folders, the innermost first, as far as they are empty."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder beside a path, in which what takes its place is made; it goes when the block ends.

    Those for the same path that killed processes have left go, too. The lock on a folder, which ends with its process,
    shows that it is in use; a file system without such locks keeps what is left. Raises OSError.
    """
    begin, end = f".{path.name[:40]}.", ".part"
    with os.scandir(path.parent) as entries:
        names = [one.name for one in entries if one.name.startswith(begin) and one.name.endswith(end)]
    for name in names:
        with suppress(OSError), _locked_folder(path.with_name(name)):
            shutil.rmtree(path.with_name(name))
    part = path.with_name(f"{begin}{secrets.token_hex(8)}{end}")
    part.mkdir()
    try:
        with ExitStack() as lock:
            with suppress(OSError):
                lock.enter_context(_locked_folder(part))
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Holds the lock on this user's folder. Raises OSError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{folder} is another user's")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
