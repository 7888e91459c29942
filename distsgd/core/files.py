"""Opening files that somebody else made, regular ones alone, for a pipe may never end and a device never stops; and
making folders that last.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | os.PathLike[str], folder: int | None = None) -> BufferedReader:
    """The file at `path`, or at the end of the links there, to be read; `folder` is a descriptor that `path` is
    relative to. Raises OSError, also for what is no file."""
    check_regular(os.stat(path, dir_fd=folder).st_mode, path)  # first: opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        check_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    """Raises OSError where this is the mode of something else than a regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """All bytes of a regular file. Raises OSError, also where there are more than `limit`."""
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", os.fspath(path))
    return data


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder and what is missing above it, that last through a power cut; returns what was made, the innermost
    first. Raises OSError.

    Where not all of them can be made, those that were are removed again.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            with suppress(OSError):  # a folder that may be written but not read can't be synced
                sync_folder(path.parent)
        if not missing:
            folder.mkdir(exist_ok=True)  # raises where something else stands there
    except OSError:
        remove_empty(missing)
        raise
    return missing


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty(folders: list[Path]) -> None:
    """Removes these folders, the innermost first, as far as they are empty."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return
