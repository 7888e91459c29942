"""A start's temporary folder, which no other user can read or replace.

The folder is used through its descriptor from the moment it is made, and the folders above it allow only this user and
root to rename it: other users' processes on the host see its name, and can't use it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from distsgd.core.errors import LauncherError

_PREFIX = "distsgd-launch-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ADVICE = "name a folder of your own, or one with the sticky bit, such as TMPDIR=/tmp"


class PrivateFolder:
    """A folder that only this user can access, with the descriptors of it and of its parent."""

    def __init__(self, path: Path, around: int, descriptor: int) -> None:
        self.path, self._around, self._descriptor = path, around, descriptor

    @classmethod
    def make(cls, announce: Callable[[Path], None]) -> PrivateFolder:
        """Make a new one below TMPDIR; `announce` receives its path before it exists.

        Raises LauncherError where other users could replace it.
        """
        try:
            around = Path(os.path.realpath(tempfile.gettempdir()))
        except OSError as error:
            raise LauncherError(
                f"TMPDIR: there is no folder for temporary files ({error.strerror}); name one"
            ) from None
        danger = why_unsafe(around)
        if danger is not None:
            raise LauncherError(f"TMPDIR: expected a folder where no other user can rename a file, {danger}; {_ADVICE}")
        path = around / f"{_PREFIX}{os.urandom(8).hex()}"
        announce(path)
        try:
            os.mkdir(path, 0o700)
            found = cls._open(path)
        except OSError as error:
            raise LauncherError(f"TMPDIR: could not make a folder in {around}: {error.strerror or error}") from None
        if found is None:
            raise LauncherError(f"TMPDIR: a folder that is made in {around} is not this user's alone; {_ADVICE}")
        return found

    @classmethod
    def find(cls, path: Path) -> PrivateFolder | None:
        """The folder that another process of this user has made; None where there is none, or another user's."""
        try:
            return cls._open(path)
        except OSError:
            return None

    @classmethod
    def _open(cls, path: Path) -> PrivateFolder | None:
        """The folder at this path; None where other users can access it."""
        around = os.open(path.parent, _FOLDER)
        try:
            descriptor = os.open(path.name, _FOLDER, dir_fd=around)
        except OSError:
            os.close(around)
            raise
        folder, about = cls(path, around, descriptor), os.fstat(descriptor)
        if about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077:
            return folder
        folder.close()
        return None

    def remove(self) -> None:
        """Remove its contents, wherever its path leads now, and then the folder, where it still exists."""
        with suppress(OSError):
            with os.scandir(self._descriptor) as entries:
                inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for name, is_folder in inside:
                if is_folder:
                    shutil.rmtree(name, ignore_errors=True, dir_fd=self._descriptor)
                else:
                    with suppress(OSError):
                        os.unlink(name, dir_fd=self._descriptor)
        with suppress(OSError):
            os.rmdir(self.path.name, dir_fd=self._around)
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._descriptor)
        os.close(self._around)


def why_unsafe(folder: Path) -> str | None:
    """Why other users could rename entries of this folder or of one above it; None where they can't.

    `folder` is a path without links. A folder's entries can be renamed by its owner and by users with write access;
    with the sticky bit, by the owners of the entries only.
    """
    for place in (*reversed(folder.parents), folder):
        try:
            about = os.lstat(place)
        except OSError as error:
            return f"and {place} can't be looked at ({error.strerror or error})"
        if about.st_uid not in (0, os.geteuid(), _unknown_owner()):
            return f"and {place} belongs to the user with the number {about.st_uid}"
        others = about.st_mode & (stat.S_IWOTH | (0 if is_own_group(about.st_gid) else stat.S_IWGRP))
        if others and not about.st_mode & stat.S_ISVTX:
            mode = stat.S_IMODE(about.st_mode)
            return f"and others may in {place} (mode {mode:o}, without the sticky bit)"
    return None


def _unknown_owner() -> int:
    """The owner of files of unmapped users in a container: as a rule, the host's root."""
    try:
        everybody = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] == str(2**32 - 1)
        return 0 if everybody else int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError, IndexError):
        return 0


def is_own_group(number: int) -> bool:
    """Whether this is the group that many systems give each user, with no other member."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
