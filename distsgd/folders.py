"""Folders into which each file is written whole or not at all, wherever they are moved to meanwhile, and whatever other
users have put there.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from distsgd.files import check_regular, make_folders, open_regular

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What can be hashed and written without a copy of it."""
Identity: TypeAlias = tuple[int, int]
"""The device and the number of a file or a folder, which it keeps when it is renamed."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Never through a link, and never waiting at a pipe."""
_NOT_OPENED = {errno.ELOOP: "it is a link, which is not followed", errno.ENXIO: "it is a pipe, not a file"}
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)
"""What opening a link as a folder leads to, where links aren't followed."""
_LEFTOVER = re.compile(
    r"\.(.+\.[0-9a-f]{16}|config\.toml|metrics\.jsonl|summary\.json|(step-\d+|last|best)\.safetensors)\.tmp", re.DOTALL
)
"""Names of files that a killed process has not renamed any more; those without a number are of older versions."""


def identity(status: os.stat_result) -> Identity:
    """What a file or a folder keeps when it is renamed."""
    return status.st_dev, status.st_ino


def open_folder(path: Path) -> int:
    """A descriptor of the folder at `path`. Raises OSError."""
    return os.open(path, _FOLDER)


def is_at(folder: int, path: Path) -> bool:
    """Whether `path` leads to the folder with this descriptor. Raises OSError where that can't be told."""
    try:
        return identity(os.stat(path)) == identity(os.fstat(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def path_of(folder: int) -> Path | None:
    """Where the folder with this descriptor is now, where the system says."""
    try:
        found = Path(os.readlink(f"/proc/self/fd/{folder}"))
        return found if is_at(folder, found) else None
    except OSError:
        return None


def write_atomically(path: Path, *contents: Bytes) -> None:
    """Writes the file at `path` whole or not at all; a link there is replaced. Raises OSError."""
    Folder(path.parent).write(path.name, *contents)


class Folder:
    """A folder whose files are read and written one at a time.

    It is found by its path in each operation, until `hold` gives it a descriptor: from then on everything happens in
    that folder, wherever it is moved to, and another one that takes its path isn't touched. Operations may be called
    by several threads.

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
        """The folder of this name in here, whether or not it exists."""
        return Folder(self.path / name, self)

    def hold(self, descriptor: int, last: Callable[[int], None]) -> None:
        """Takes over a descriptor of this folder; `last` is called with it before it is closed."""
        self._descriptor, self._last = descriptor, last

    @property
    def held(self) -> bool:
        """Whether there is a descriptor."""
        return self._descriptor is not None and not self._released

    def release(self) -> None:
        """Closes the descriptor, as soon as no operation uses it. None can begin any more."""
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

    def opened(self) -> AbstractContextManager[int]:
        """The folder's descriptor, for the time of one operation. Raises OSError."""
        return self._opened_now() if self._descriptor is None else self

    @contextmanager
    def _opened_now(self) -> Iterator[int]:
        descriptor = self._open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def __enter__(self) -> int:
        """An operation begins; written out, for one comes with each record."""
        with self._lock:
            if self._descriptor is None or self._released:
                raise OSError(errno.EBADF, "the run has let go of its folder", os.fspath(self.path))
            self._users += 1
        return self._descriptor

    def __exit__(self, *_: object) -> None:
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
    def _telling(self, name: str) -> Iterator[None]:
        """Has an OSError name the file by its path, and not by that of a temporary one."""
        try:
            yield
        except OSError as error:
            error.filename, error.filename2 = os.fspath(self.path / name), None
            raise

    def make(self) -> bool:
        """Makes the folder, and returns whether it didn't exist. Raises OSError."""
        if self._inside is None:
            return bool(make_folders(self.path))
        with self._inside.opened() as outer:
            try:
                os.mkdir(self.path.name, dir_fd=outer)
            except FileExistsError:
                return False  # what stands there is seen when it is opened
            os.fsync(outer)
        return True

    def remove_if_empty(self) -> None:
        """Removes the folder, which is inside another one, where nothing is in it."""
        assert self._inside is not None
        with suppress(OSError), self._inside.opened() as outer:
            os.rmdir(self.path.name, dir_fd=outer)

    def write(self, name: str, *contents: Bytes) -> Identity:
        """Writes a temporary file, syncs it, renames it, and syncs the folder. Raises OSError."""
        with self._telling(name), self.opened() as folder:
            temporary, descriptor = _new_file(folder, name)
            try:
                try:
                    for piece in contents:
                        _write_all(descriptor, memoryview(piece))
                    os.fsync(descriptor)
                    written = identity(os.fstat(descriptor))
                finally:
                    os.close(descriptor)
                _rename_and_sync(temporary, name, folder)
            except BaseException:
                _remove(temporary, folder)
                raise
        return written

    def link(self, source: str, name: str) -> None:
        """A second name for the same bytes; a copy where the file system has no hard links. Raises OSError."""
        with self.opened() as folder:
            temporary = _temporary_name(name)
            try:
                os.link(source, temporary, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except OSError:
                self.write(name, self.read_no_link(source))
                return
            try:
                _rename_and_sync(temporary, name, folder)
            except BaseException:
                _remove(temporary, folder)
                raise

    def open(self, name: str) -> BufferedReader:
        """A file in here, or at the end of the links there, to be read. Raises OSError, also for what is no file."""
        with self._telling(name), self.opened() as folder:
            return open_regular(name, folder)

    def read_no_link(self, name: str) -> bytes:
        """All of a regular file that is going to be written again: through a link, that would be somebody's other file.
        Raises OSError."""
        with self._telling(name), self.opened() as folder:
            descriptor = _open_no_link(name, os.O_RDONLY, folder)
            with os.fdopen(descriptor, "rb") as file:
                check_regular(os.fstat(descriptor).st_mode, name)
                return file.read()

    def open_own(self, name: str, flags: int, known: Identity | None = None) -> tuple[int, Identity]:
        """(descriptor, identity) of a file that this process may change: a regular one, no link, of this user, and
        without a second name, unless it is the `known` one. Raises OSError."""
        with self.opened() as folder:
            descriptor = _open_no_link(name, flags, folder)
            try:
                status = os.fstat(descriptor)
                found = identity(status)
                if found != known:
                    check_regular(status.st_mode, name)
                    if status.st_nlink > 1 or not is_own(status, folder):
                        raise OSError(errno.EPERM, "it belongs to another user, or has a second name; remove it", name)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor, found

    def names(self) -> list[str]:
        """Of all that is in here; none where there is no such folder. Raises OSError."""
        try:
            with self.opened() as folder:
                return os.listdir(folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, *_NO_FOLDER):
                return []
            raise

    def status(self, name: str) -> os.stat_result | None:
        """Of what is at this name, or at the end of the links there; None where nothing is."""
        try:
            with self.opened() as folder:
                return os.stat(name, dir_fd=folder)
        except OSError:
            return None

    def remove(self, name: str) -> None:
        """Removes a file, where there is one. Raises OSError."""
        with suppress(FileNotFoundError), self.opened() as folder:
            os.unlink(name, dir_fd=folder)

    def remove_leftovers(self) -> None:
        """Removes temporary files of processes that were killed as they wrote. Raises OSError."""
        for name in self.names():
            if is_leftover(name):
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
    if not hasattr(os, "O_PATH"):  # there, a link is believed where nobody else can exchange it
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
    """Of those that this process makes: on a network's file system, root may be somebody else."""
    temporary, descriptor = _new_file(folder, "owner")
    try:
        return os.fstat(descriptor).st_uid
    finally:
        os.close(descriptor)
        _remove(temporary, folder)


def _temporary_name(name: str) -> str:
    """One that nobody can know before: a link or a pipe that waits there would be written into."""
    return f".{name[:40]}.{secrets.token_hex(8)}.tmp"


def _new_file(folder: int, name: str) -> tuple[str, int]:
    """(name, descriptor) of a new temporary file."""
    temporary = _temporary_name(name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return temporary, os.open(temporary, flags, 0o666, dir_fd=folder)


def _open_no_link(name: str, flags: int, folder: int) -> int:
    """A descriptor of what is at this name itself, where there may be anything. Raises OSError; never waits."""
    try:
        return os.open(name, flags | _SAFE, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_OPENED:
            raise OSError(error.errno, _NOT_OPENED[error.errno], name) from None
        raise


def _write_all(descriptor: int, data: memoryview) -> None:
    """A disk that fills up takes a part, and says why it took no more when it is given the rest."""
    while data:
        data = data[os.write(descriptor, data) :]


def _rename_and_sync(old: str, new: str, folder: int) -> None:
    os.replace(old, new, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)
