"""One copy of an array per node, in memory that survives a peer's death and that the system frees after the last rank.

The memory is a file without a name: made with memfd_create and opened by the neighbours through /proc. Where
memfd_create isn't available (macOS), it is a temporary file that is unlinked as soon as all ranks have opened it.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import tempfile
from pathlib import Path

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.output import STATUS_TABLE_VARIABLE, launched, secret
from distsgd.core.status_table import StatusTable
from distsgd.parallel.communicator import Communicator


class NotShared(Exception):
    """Raised with a host's name where its ranks can't share memory."""


def shared_array(node: Communicator, shape: Shape, dtype: np.dtype) -> tuple[Array, bool]:
    """(zeros of this shape, whether all ranks of `node` see the same memory). Collective over the node.

    Where memory can't be shared, each rank gets an array of its own.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    if node.size == 1 or size == 0:
        return np.zeros(shape, dtype), node.size == 1
    memory = _share(node, size)
    if memory is None:
        return np.zeros(shape, dtype), False
    return np.ndarray(shape, dtype, buffer=memory), True


def shared_status_table(node: Communicator, ranks: int) -> StatusTable:
    """The status table of this host for a run of `ranks` ranks: distsgd.launch's table where it made one.

    Collective over the node. Where memory can't be shared, each rank has a table of its own, which holds only its own
    line.
    """
    table = _launchers_status_table(ranks)
    if not all(node.allgather_object(table is not None)):
        size = StatusTable.bytes_for(ranks)  # no array: NumPy hasn't loaded yet
        memory = None if node.size == 1 else _share(node, size)
        table = StatusTable(memoryview(bytearray(size) if memory is None else memory), ranks)
    assert table is not None
    return table


def _launchers_status_table(ranks: int) -> StatusTable | None:
    """The status table of the distsgd.launch that started this process; None without one, or on another host.

    On another host the path may lead to another file: a status table holds the launch's secret.
    """
    launch, path = launched(), os.environ.get(STATUS_TABLE_VARIABLE, "")
    if launch is None or not re.fullmatch(r"/proc/[0-9]+/fd/[0-9]+", path):
        return None
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode) or (about.st_uid, about.st_size) != (
            os.geteuid(),
            StatusTable.bytes_for(ranks),
        ):
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            memory = mmap.mmap(descriptor, StatusTable.bytes_for(ranks))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
    table = StatusTable(memoryview(memory), ranks)
    return table if table.marked and 0 != table.key == secret(launch) else None


def _share(node: Communicator, size: int) -> mmap.mmap | None:
    descriptor, path, named = -1, None, None
    if node.is_root:
        try:
            descriptor, path, named = _create(size)
        except OSError:
            path = None
    path, identity = node.broadcast_object((path, None if path is None else _identity(descriptor)))
    memory = None
    try:
        if path is not None:
            if not node.is_root:
                descriptor = os.open(path, os.O_RDWR)
            # In another container with the same host name the path may lead to another file.
            if _identity(descriptor) == identity:
                memory = mmap.mmap(descriptor, size)
    except (OSError, ValueError):
        memory = None
    everyone = all(node.allgather_object(memory is not None))
    if named is not None:
        named.unlink(missing_ok=True)
    if descriptor >= 0:
        os.close(descriptor)
    return memory if everyone else None


def _identity(descriptor: int) -> tuple[int, int]:
    """The device and inode of a file, which no other file of this host has."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _create(size: int) -> tuple[int, str, Path | None]:
    """(descriptor, the path by which neighbours open it, the file to unlink afterwards)."""
    if hasattr(os, "memfd_create"):
        descriptor, named = os.memfd_create("distsgd", os.MFD_CLOEXEC), None
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(prefix="distsgd-")
        named = Path(path)
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        if named is not None:
            named.unlink(missing_ok=True)
        raise
    return descriptor, path, named
