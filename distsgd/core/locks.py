"""A lock file in a folder, for one process at a time; the kernel unlocks it when its holder ends, whatever ends it.

The file has mode 0600, because every user who may open a file may lock it. Its holder removes it. `docs/decisions/0029`
has the reasons.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from distsgd.core.errors import RunFolderError, one_line
from distsgd.core.files import make_folders, remove_empty
from distsgd.core.folders import Folder, identity, is_at, is_own, open_folder
from distsgd.core.output import LAUNCH_VARIABLE
from distsgd.core.processes import contents

LOCK_FILE = ".lock"
_LIMIT = 2000  # bytes of a lock file that are read
_MODE = 0o600
PATIENCE, _PAUSE = 2.0, 0.05
"""Seconds that a start waits for a lock, whose holder may be ending; and seconds between two tries."""
_PATIENCE_WITH_OWN = 120.0
"""The former where distsgd.launch has seen the holder end: a file server needs so long to notice a lost host."""
_TRIES = 100
"""How often a folder is opened that others move or remove at the same time."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_LOCAL_OPTIONS = {"nolock", "localflock", "local_lock=all", "local_lock=flock"}
"""Mount options of NFS and Lustre that make locks invisible to other hosts."""


@dataclass(frozen=True)
class Holder:
    """The process that has locked a folder, as far as known; `launch` names the distsgd.launch that started it."""

    host: str = ""
    process: int = 0
    since: str = ""
    launch: str = ""

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), os.getpid(), now, os.environ.get(LAUNCH_VARIABLE, ""))

    @classmethod
    def read(cls, descriptor: int) -> Holder:
        """Read a lock file, which may contain anything."""
        try:
            found: Any = json.loads(os.pread(descriptor, _LIMIT, 0))
            return cls(**{key: type(getattr(cls, key))(value) for key, value in found.items()})
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return cls()

    def __str__(self) -> str:
        return one_line(f" (process {self.process} on {self.host}, since {self.since})") if self.host else ""

    @property
    def same_launch(self) -> bool:
        """Whether this process's distsgd.launch has started the holder, too, and has seen its end."""
        return bool(self.launch) and self.launch == os.environ.get(LAUNCH_VARIABLE, "")


class FolderInUseError(RunFolderError):
    """Another run uses the folder, which `holder` has locked."""

    holder = Holder()


@dataclass(frozen=True)
class Locked:
    """A folder that this process has locked, until `folder` is released.

    made   the folders that had to be made, the innermost first
    note   a warning where the lock doesn't exclude all other processes, else empty
    sure   whether it excludes other processes of this host
    """

    folder: Folder
    made: list[Path]
    note: str
    sure: bool


def lock_folder(path: Path) -> Locked:
    """Lock the folder at `path`, which is made where there is none; wait a moment for a holder that is ending.

    Raises FolderInUseError where another run uses it, RunFolderError where the lock file isn't a file of this user, and
    OSError where no lock file can be made.
    """
    began, tries = time.monotonic(), 0
    while True:
        try:
            return _try_to_lock(path)
        except FolderInUseError as error:
            patience = _PATIENCE_WITH_OWN if error.holder.same_launch else PATIENCE
            if time.monotonic() - began > patience:
                raise
            time.sleep(_PAUSE)
        except FileNotFoundError as error:  # the folder or the lock file was removed or moved meanwhile
            tries += 1
            if tries == _TRIES:
                if error.filename is not None and (path.is_symlink() or not path.parent.exists()):
                    raise
                raise FolderInUseError(
                    f"{path} is moved or removed each time that it is opened; choose another folder with --out"
                ) from None


def _try_to_lock(path: Path) -> Locked:
    """Lock the folder. Raises as `lock_folder`, and FileNotFoundError where it was removed or moved meanwhile."""
    made = make_folders(path)
    folder = lock = -1
    try:
        folder = open_folder(path)
        lock, is_new = _open(folder, path)
        _check(lock, folder, path, is_new)
        note, sure = _flock(lock, path)
        _of_this_process.add(lock)
        if not _is_named(lock, folder) or not is_at(folder, path):  # --resume never may have moved it aside
            raise FileNotFoundError
        with suppress(OSError):  # on a full disk the holder stays unnamed
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(asdict(Holder.this())).encode(), 0)
    except BaseException:
        if lock >= 0 and lock not in _of_this_process:
            os.close(lock)
        _release(lock, folder)
        if folder >= 0:
            os.close(folder)
        remove_empty(made)
        raise
    held = Folder(path)
    held.hold(folder, partial(_release, lock))
    return Locked(held, made, note, sure)


def _release(lock: int, folder: int) -> None:
    """Remove the lock file and unlock. Nothing may be written into the folder afterwards."""
    if lock not in _of_this_process:  # a forked child doesn't have the lock
        return
    with suppress(OSError):
        if _is_named(lock, folder):
            os.unlink(LOCK_FILE, dir_fd=folder)
    _of_this_process.discard(lock)
    os.close(lock)


def _open(folder: int, path: Path) -> tuple[int, bool]:
    """(descriptor of the lock file, whether it was made)."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(FileExistsError):
        return os.open(LOCK_FILE, flags | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=folder), True
    try:
        return os.open(LOCK_FILE, flags, dir_fd=folder), False
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _foreign(path, f"it can't be opened ({error.strerror or error})") from None


def _check(descriptor: int, folder: int, path: Path, is_new: bool) -> None:
    """Raise RunFolderError where the lock file isn't this user's own: its owner can unlock it."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _foreign(path, "it is not a file")
    if not is_new and not is_own(status, folder):
        raise _foreign(path, f"it belongs to user {status.st_uid}")
    # A lock file may have second names, in a backup of hard links.
    if status.st_nlink > 1 and not Holder.read(descriptor).host:
        raise _foreign(path, "it is another file, too")
    if stat.S_IMODE(status.st_mode) != _MODE:
        with suppress(OSError):  # a file system without modes
            os.fchmod(descriptor, _MODE)


def _foreign(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        f"can't lock the run folder {path}: expected {LOCK_FILE} in it to be a file of yours, but {reason}; remove it "
        "if no run uses the folder, or choose another with --out"
    )


def _flock(descriptor: int, path: Path) -> tuple[str, bool]:
    """(a warning where it doesn't exclude all processes, whether there is a lock at all)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            holder = Holder.read(descriptor)
            held = FolderInUseError(
                f"another process is training in {path}{holder}; wait for it, or choose another folder with --out"
            )
            held.holder = holder
            raise held from None
        if error.errno not in _NO_LOCKS:
            raise
        last = Holder.read(descriptor)
        doubt = f"; a run there has not ended in order{last}, or still continues" if last.host else ""
        return (
            f"warning: the file system of {path} has no locks ({error.strerror}), so nothing keeps a second run out of "
            f"this folder{doubt}; start one at a time"
        ), False
    if _LOCAL_OPTIONS & _mount_options(descriptor):
        return (
            f"warning: the file system of {path} is mounted with locks that other hosts don't see, so nothing keeps a "
            "second run on another host out of this folder; start one at a time"
        ), True
    if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
        return f"warning: the file system of {path} lets other users lock the run folder, and so keep you out", True
    return "", True


def _mount_options(descriptor: int) -> set[str]:
    """The mount options of an open file's file system; none where they aren't known."""
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    fields = [line.split() for line in contents("/proc/self/mountinfo").split("\n")]
    return {option for found in fields if len(found) > 6 and found[2] == number for option in found[-1].split(",")}


def _is_named(descriptor: int, folder: int) -> bool:
    """Whether the open lock file is the one at its name. Opening that one makes network file systems refresh."""
    try:
        other = os.open(LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return identity(os.fstat(other)) == identity(os.fstat(descriptor))
    finally:
        os.close(other)


_of_this_process: set[int] = set()


def _close_in_child() -> None:
    """Close the lock files in a forked child, which must not keep the folder locked after this process has ended."""
    for descriptor in _of_this_process:
        with suppress(OSError):
            os.close(descriptor)
    _of_this_process.clear()


os.register_at_fork(after_in_child=_close_in_child)
