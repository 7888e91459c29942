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
from contextlib import ExitStack, suppress
from pathlib import Path

from distsgd.core.errors import LauncherError
from distsgd.core.processes import contents

_PREFIX = "distsgd-launch-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ADVICE = "name a folder of your own, or one with the sticky bit, such as TMPDIR=/tmp"


class PrivateFolder:
    """A folder that only this user can access, with the descriptors of it and of its parent."""

    def __init__(self, path: Path, around: int, descriptor: int, opened: ExitStack) -> None:
        self.path, self._around, self._descriptor, self._opened = path, around, descriptor, opened

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
        except OSError as error:
            raise LauncherError(f"TMPDIR: could not make a folder in {around}: {error.strerror or error}") from None
        found = cls.find(path)
        if found is None:
            raise LauncherError(f"TMPDIR: a folder that is made in {around} is not this user's alone; {_ADVICE}")
        return found

    @classmethod
    def find(cls, path: Path) -> PrivateFolder | None:
        """The folder that a process of this user has made; None where there is none, or where other users can access
        it."""
        with suppress(OSError), ExitStack() as opened:
            around = os.open(path.parent, _FOLDER)
            opened.callback(os.close, around)
            descriptor = os.open(path.name, _FOLDER, dir_fd=around)
            opened.callback(os.close, descriptor)
            about = os.fstat(descriptor)
            if about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077:
                return cls(path, around, descriptor, opened.pop_all())
        return None

    def remove(self) -> None:
        """Remove its contents, wherever its path leads now, and then the folder, where it still exists."""
        shutil.rmtree(".", ignore_errors=True, dir_fd=self._descriptor)  # all but the folder itself, which is in use
        with suppress(OSError):
            os.rmdir(self.path.name, dir_fd=self._around)
        self._opened.close()


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
    users, unknown = contents("/proc/self/uid_map").split(), contents("/proc/sys/kernel/overflowuid").strip()
    return int(unknown) if len(users) > 2 and users[2] != str(2**32 - 1) and unknown.isdecimal() else 0


def is_own_group(number: int) -> bool:
    """Whether this is the group that many systems give each user, with no other member."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
