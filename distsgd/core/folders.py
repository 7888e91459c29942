"""Folders in which each file is written completely or not at all, also where the folder is moved meanwhile or other
users have put entries there.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from distsgd.core.files import check_regular, make_folders, open_regular

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Types that can be hashed and written without a copy."""
Identity: TypeAlias = tuple[int, int]
"""The device and inode of a file or a folder, which don't change when it is renamed."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Don't follow a link, and don't block on a pipe."""
_NOT_OPENED = {errno.ELOOP: "it is a link, which is not followed", errno.ENXIO: "it is a pipe, not a file"}
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)
"""The errors of opening a link as a folder, where links aren't followed."""
_NOT_SYNCED = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
"""The errors of syncing what the file system has no sync for."""
_COPIED = 1 << 20
"""Bytes that are copied at once, where the file system has no hard links."""
_LEFTOVER = re.compile(
    r"\.(.+\.[0-9a-f]{16}|config\.toml|metrics\.jsonl|summary\.json|(step-\d+|last|best)\.safetensors)\.tmp", re.DOTALL
)
"""Names of temporary files that a killed process has left; names without a random number are of older versions."""


def identity(status: os.stat_result) -> Identity:
    """The identity of a file or a folder."""
    return status.st_dev, status.st_ino


def open_folder(path: Path) -> int:
    """A descriptor of the folder at `path`. Raises OSError."""
    return os.open(path, _FOLDER)


def is_at(folder: int, path: Path) -> bool:
    """Whether `path` leads to the folder with this descriptor. Raises OSError where that isn't known."""
    try:
        return identity(os.stat(path)) == identity(os.fstat(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def path_of(folder: int) -> Path | None:
    """The present path of the folder with this descriptor; None where the system doesn't report it."""
    try:
        found = Path(os.readlink(f"/proc/self/fd/{folder}"))
        return found if is_at(folder, found) else None
    except OSError:
        return None


def sync(descriptor: int) -> None:
    """Have what was written to a file, or the entries of a folder, survive a power cut, as far as the file system can.

    Some network file systems refuse to sync a folder, and keep its entries all the same. Raises OSError where syncing
    itself has failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


def write_atomically(path: Path, *contents: Bytes) -> None:
    """Write the file at `path` completely or not at all; a link there is replaced. Raises OSError."""
    Folder(path.parent).write(path.name, *contents)


class Folder:
    """A folder whose files are read and written one at a time.

    Each operation finds it by its path, until `hold` gives it a descriptor. From then on operations use that folder,
    wherever it is moved, and don't touch another one at its path. Several threads may call operations.

    Parameters
    ----------
    path
        Where the folder is, or was when it was opened.
    inside
        The folder that holds this one, whose descriptor leads to it.
    """

    def __init__(self, path: Path, inside: Folder | None = None) -> None:
        self.path = path
        self._inside = inside
        self._descriptor: int | None = None
        self._last: Callable[[int], None] = lambda descriptor: None
        self._lock, self._users, self._released = threading.Lock(), 0, False

    def child(self, name: str) -> Folder:
        """The folder of this name in this one, whether or not it exists."""
        return Folder(self.path / name, self)

    def hold(self, descriptor: int, last: Callable[[int], None]) -> None:
        """Take ownership of a descriptor of this folder; `last` is called with it before it is closed."""
        self._descriptor, self._last = descriptor, last

    @property
    def held(self) -> bool:
        """Whether there is a descriptor."""
        return self._descriptor is not None and not self._released

    def release(self) -> None:
        """Close the descriptor as soon as no operation uses it. No operation can begin afterwards."""
        with self._lock:
            last_user = self.held and self._users == 0
            self._released = self._released or self.held
        if last_user:
            self._close()

    def _close(self) -> None:
        assert self._descriptor is not None
        try:
            self._last(self._descriptor)
        finally:
            os.close(self._descriptor)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The folder's descriptor, for one operation. Raises OSError."""
        if self._descriptor is None:
            descriptor = self._open()
            try:
                yield descriptor
            finally:
                os.close(descriptor)
            return
        with self._lock:
            if self._released:
                raise OSError(errno.EBADF, "the run has let go of its folder", os.fspath(self.path))
            self._users += 1
        try:
            yield self._descriptor
        finally:
            with self._lock:
                self._users -= 1
                last_user = self._released and self._users == 0
            if last_user:
                self._close()

    def _open(self) -> int:
        if self._inside is None:
            return open_folder(self.path)
        name = self.path.name
        with self._inside.opened() as outer:
            try:
                return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=outer)
            except OSError as error:
                target = _target_of_own_link(name, outer) if error.errno in _NO_FOLDER else None
                if target is None:
                    raise
                return os.open(target, _FOLDER, dir_fd=outer)  # such as on a larger disk

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Have an OSError name the file by its path, not by that of a temporary one."""
        try:
            yield
        except OSError as error:
            error.filename, error.filename2 = os.fspath(self.path / name), None
            raise

    def make(self) -> bool:
        """Make the folder; return whether it didn't exist. Raises OSError."""
        if self._inside is None:
            return bool(make_folders(self.path))
        with self._inside.opened() as outer:
            try:
                os.mkdir(self.path.name, dir_fd=outer)
            except FileExistsError:
                return False  # opening it fails where it isn't a folder
            sync(outer)
        return True

    def remove_if_empty(self) -> None:
        """Remove the folder, which is inside another one, where it is empty."""
        assert self._inside is not None
        with suppress(OSError), self._inside.opened() as outer:
            os.rmdir(self.path.name, dir_fd=outer)

    def write(self, name: str, *contents: Bytes) -> Identity:
        """Write a temporary file, sync it, rename it, and sync the folder. Raises OSError."""
        with self._naming(name), self.opened() as folder, _replacing(name, folder) as temporary:
            return identity(_write_new(temporary, folder, contents))

    def link(self, source: str, name: str) -> None:
        """Make a hard link; a copy where the file system has none. Raises OSError."""
        with self._naming(name), self.opened() as folder, _replacing(name, folder) as temporary:
            try:
                os.link(source, temporary, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except OSError:
                _copy(source, temporary, folder)

    def open(self, name: str) -> BufferedReader:
        """Open a regular file for reading, through links. Raises OSError."""
        with self._naming(name), self.opened() as folder:
            return open_regular(name, folder)

    def read_no_link(self, name: str) -> bytes:
        """Read a regular file that is to be written again, not through a link, which may lead to another file. Raises
        OSError."""
        with self._naming(name), self.opened() as folder:
            descriptor = _open_no_link(name, os.O_RDONLY, folder)
            with os.fdopen(descriptor, "rb") as file:
                check_regular(os.fstat(descriptor).st_mode, name)
                return file.read()

    @contextmanager
    def open_own(self, name: str, flags: int, known: Identity | None = None) -> Iterator[tuple[int, Identity]]:
        """Have (descriptor, identity), inside, of a file that this process may change: the `known` one, or a regular
        file of this user that is no link and has no second name. Raises OSError."""
        with self.opened() as folder:
            descriptor = _open_no_link(name, flags, folder)
            try:
                status = os.fstat(descriptor)
                found = identity(status)
                if found != known:
                    check_regular(status.st_mode, name)
                    if status.st_nlink > 1 or not is_own(status, folder):
                        raise OSError(errno.EPERM, "it belongs to another user, or has a second name; remove it", name)
                yield descriptor, found
            finally:
                os.close(descriptor)

    def names(self) -> list[str]:
        """The names of all entries; none where there is no such folder. Raises OSError."""
        try:
            with self.opened() as folder:
                return os.listdir(folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, *_NO_FOLDER):
                return []
            raise

    def status(self, name: str) -> os.stat_result | None:
        """The status of the entry of this name, through links; None where there is none."""
        try:
            with self.opened() as folder:
                return os.stat(name, dir_fd=folder)
        except OSError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file, where there is one. Raises OSError."""
        with suppress(FileNotFoundError), self.opened() as folder:
            os.unlink(name, dir_fd=folder)

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed while they wrote. Raises OSError."""
        for name in filter(is_leftover, self.names()):
            with suppress(FileNotFoundError), self.opened() as folder:
                if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=folder)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a temporary one, which a killed process may have left."""
    return _LEFTOVER.fullmatch(name) is not None


def is_own(status: os.stat_result, folder: int) -> bool:
    """Whether a file in `folder` belongs to this user."""
    return status.st_uid == os.geteuid() or status.st_uid == _owner_of_new_files(folder)


def _target_of_own_link(name: str, folder: int) -> str | None:
    """Where the link of this name leads, which this user or root has made; None for anything else.

    The link itself is opened: its owner and its target are then of the same link, whatever others put in its place.
    """
    if not hasattr(os, "O_PATH"):  # there, a link is believed only where no other user can replace it
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        alone = not os.fstat(folder).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return os.readlink(name, dir_fd=folder) if alone and _is_own_link(about) else None
    link = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.readlink("", dir_fd=link) if _is_own_link(os.fstat(link)) else None
    finally:
        os.close(link)


def _is_own_link(about: os.stat_result) -> bool:
    return stat.S_ISLNK(about.st_mode) and about.st_uid in (0, os.geteuid())


def _owner_of_new_files(folder: int) -> int:
    """The owner of files that this process makes: on a network file system, root may be mapped to another user."""
    temporary = _temporary_name("owner")
    try:
        return _write_new(temporary, folder).st_uid
    finally:
        _remove(temporary, folder)


def _temporary_name(name: str) -> str:
    """An unpredictable name: otherwise another user could put a link or a pipe there, to be written into."""
    return f".{name[:40]}.{secrets.token_hex(8)}.tmp"


def _copy(source: str, name: str, folder: int) -> None:
    """Write and sync a new file with the contents of another, which may be larger than the free memory."""
    descriptor = _open_no_link(source, os.O_RDONLY, folder)
    with os.fdopen(descriptor, "rb") as file:
        check_regular(os.fstat(descriptor).st_mode, source)
        _write_new(name, folder, iter(lambda: file.read(_COPIED), b""))


def _write_new(name: str, folder: int, contents: Iterable[Bytes] = ()) -> os.stat_result:
    """Write and sync a new file of this name; return its status."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=folder)
    try:
        for part in contents:
            data = memoryview(part)
            while data:  # a disk that fills up accepts some bytes, and raises the error on the next write
                data = data[os.write(descriptor, data) :]
        sync(descriptor)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _replacing(name: str, folder: int) -> Iterator[str]:
    """Make an entry of the temporary name inside: it then takes the place of `name`, and the folder is synced."""
    temporary = _temporary_name(name)
    try:
        yield temporary
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        sync(folder)
    except BaseException:
        _remove(temporary, folder)
        raise


def _open_no_link(name: str, flags: int, folder: int) -> int:
    """Open the entry of this name itself, whatever it is. Raises OSError; never blocks."""
    try:
        return os.open(name, flags | _SAFE, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_OPENED:
            raise OSError(error.errno, _NOT_OPENED[error.errno], name) from None
        raise


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)
