"""The download of data-set files: a file is checked and whole before it gets its name."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from distsgd.core.errors import DataError, pip_install
from distsgd.core.files import make_folders, remove_empty, sync_folder
from distsgd.data.sources.streams import open_binary

_CHUNK = 1 << 14
PATIENCE = 60.0
"""Seconds for which a mirror may send less than a chunk, or not answer; a modem sends 25 of them."""


def mirror(name: str, url: str) -> str:
    """Where the files of this data set are downloaded from: DISTSGD_<NAME>_URL of the environment, else `url`."""
    return (os.environ.get(f"DISTSGD_{name.upper().replace('-', '_')}_URL") or url).rstrip("/")


def checksums_of(path: str | os.PathLike[str]) -> set[str]:
    """MD5, in hexadecimal, of the file's bytes and, where it is gzipped, of its content."""
    with open_binary(os.fspath(path)) as (unpacked, _), open(path, "rb") as stream:
        return {_md5(stream), _md5(unpacked)}


def _md5(stream: Any) -> str:
    return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def fetch(
    name: str, url: str, files: Mapping[str, Collection[str]], wanted: str, folder: Path, allowed: bool, limit: int
) -> None:
    """Downloads files of a data set into its folder, where that is allowed. Raises DataError.

    Parameters
    ----------
    name
        The name of the data set.
    url
        The folder of the files; the variable DISTSGD_<NAME>_URL of the environment replaces it.
    files
        File names and their accepted checksums.
    wanted
        What is missing, for messages.
    folder
        Where the files are written.
    allowed
        Whether files may be downloaded.
    limit
        Bytes that each file has at most.
    """
    if not allowed:
        raise DataError(
            f"{name}: expected {wanted} in {folder}, not found; put the files there, set --data-dir, or allow the "
            "download"
        )
    for file, checksums in files.items():
        try:
            download(f"{mirror(name, url)}/{file}", folder / file, checksums, limit)
        except DataError as problem:
            raise DataError(f"{name}: missing {wanted}; {problem}") from problem


def download(url: str, target: Path, checksums: Collection[str], limit: int) -> None:
    """Puts the file at `url` at `target`, atomically, if the MD5 of it or of its content is in `checksums`.

    No more than `limit` bytes are received, and what comes too slowly is given up. Raises DataError where there is no
    pooch, no network, no free space, or another file than expected.
    """
    try:
        pooch = import_module("pooch")
    except ImportError:
        raise DataError(
            f"{target.name}: expected pooch to download it, it isn't installed; {pip_install('download')}, "
            f"or put the file into {target.parent}"
        ) from None
    made: list[Path] = []
    try:
        made = make_folders(target.parent)
        # In the same folder, so that the move is atomic; in a folder of its own, because two runs may download at once.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
            part = Path(folder) / target.name
            with open(part, "wb") as file:
                _receive(pooch, url, _LimitedFile(file, limit))
                file.flush()
                os.fsync(file.fileno())
            _check(part, url, checksums)
            os.replace(part, target)
            sync_folder(target.parent)
    except DataError:
        remove_empty(made)
        raise
    except (OSError, ValueError) as problem:  # of requests, too: its exceptions are OSErrors
        remove_empty(made)
        raise DataError(
            f"{target.name}: expected to download it from {url}, that failed ({_short(problem)}); "
            f"put the file into {target.parent} yourself"
        ) from problem


class _LimitedFile:
    """A file that is written, and counts."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit, self.count = file, limit, 0

    def write(self, chunk: bytes) -> None:
        self.count += len(chunk)
        if self.count > self._limit:
            raise ValueError(f"more than {self._limit} bytes came, which is more than the file has")
        self._file.write(chunk)

    def flush(self) -> None:
        """Nothing: each chunk would be flushed."""


def _receive(pooch: Any, url: str, file: _LimitedFile) -> None:
    """Write what is at `url` into the file. Raises OSError or ValueError.

    A thread of its own receives, and is abandoned where it waits for ever: a mirror may send a byte now and then, of
    a header too, and no time limit of a socket counts these together.
    """
    problems: list[Exception] = []

    def receive() -> None:
        try:
            with ExitStack() as stack:  # pooch leaves the connection open where an answer is an error or breaks off
                hooks = {"response": partial(_close_later, stack)}
                pooch.HTTPDownloader(chunk_size=_CHUNK, hooks=hooks)(url, file, None)
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=receive, name="distsgd-download", daemon=True)
    thread.start()
    before = -1
    while thread.is_alive():
        if file.count == before:
            raise TimeoutError(f"less than {_CHUNK} bytes came in {PATIENCE:.0f} s")
        before = file.count
        thread.join(PATIENCE)
    if problems:
        raise problems[0]


def _close_later(stack: ExitStack, response: Any, **_: object) -> None:
    stack.callback(response.close)


def _check(part: Path, url: str, checksums: Collection[str]) -> None:
    try:
        found = checksums_of(part)
    except DataError:
        found = {"no whole file"}
    if found.isdisjoint(checksums):
        raise DataError(
            f"{url}: expected a file with MD5 {' or '.join(sorted(checksums))}, "
            f"got {' and '.join(sorted(found))}; try again, or set another mirror"
        )


def _short(problem: Exception) -> str:
    return " ".join((str(problem) or type(problem).__name__).split())[:200]
