"""Runs a command with so much memory and no more, and looks how much its Python processes take together.

python -m benchmarks.limited --memory 1000 -- mpirun -n 2 python -m distsgd.train --dataset x.npy --shuffle-buffer 512MB

The limit is a control group of its own (Linux as root), to which files that the system keeps in memory count as well;
elsewhere there is none, and that is reported.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import EVERY, pss, ranks_of
from benchmarks.processes import ROOT, end, environment

_GROUPS = Path("/sys/fs/cgroup")
_JOINS = 'echo $$ > "$0"; exec "$@"'


@dataclass
class Used:
    """How a command ended, and the memory that it took, in bytes.

    pss     of its Python processes together at the highest, pages that they share counted once
    group   of the control group at the highest, with what the system keeps of files; 0 without one
    how     what limited it
    looks   (seconds, what its Python processes took together) each time that they were looked at
    """

    status: int
    seconds: float
    out: str
    err: str
    pss: int
    group: int
    how: str
    looks: list[tuple[float, int]]


@dataclass(frozen=True)
class _Group:
    """A control group for memory."""

    folder: Path
    limit: str
    peak: str


@contextmanager
def _group(memory: int | None) -> Iterator[_Group | None]:
    """A new control group with this limit; None where none can be made."""
    name = f"distsgd-{os.getpid()}-{time.monotonic_ns()}"
    for group in (
        _Group(_GROUPS / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        _Group(_GROUPS / name, "memory.max", "memory.peak"),
    ):
        if memory is None or not (group.folder.parent / "cgroup.procs").exists():
            continue
        try:
            group.folder.mkdir()
            (group.folder / group.limit).write_text(str(memory))
        except OSError:
            with suppress(OSError):
                group.folder.rmdir()
            continue
        try:
            yield group
        finally:
            for _ in range(50):  # its last process may not have left yet
                with suppress(OSError):
                    group.folder.rmdir()
                if not group.folder.exists():
                    break
                time.sleep(0.1)
        return
    yield None


def run_limited(command: Sequence[str], memory: int | None, folder: str | Path = ROOT) -> Used:
    """Runs a command with so many bytes of memory (None: all that there is)."""
    with _group(memory) as group, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        joins = ["sh", "-c", _JOINS, str(group.folder / "cgroup.procs")] if group is not None else []
        began, looks = time.monotonic(), [(0.0, 0)]
        process = subprocess.Popen(
            [*joins, *command],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
        )
        try:
            while process.poll() is None:
                looked = time.monotonic()
                taken = sum(pss(rank) for rank in {process.pid, *ranks_of(process.pid)})
                looks.append((looked - began, taken))
                # The kernel goes through all pages: that may take a fiftieth of a core, no more.
                time.sleep(max(EVERY, 50 * (time.monotonic() - looked)))
        except BaseException:
            end(process)
            raise
        seconds = time.monotonic() - began
        peak = int((group.folder / group.peak).read_text()) if group and (group.folder / group.peak).exists() else 0
        how = f"a control group of {memory / 1e6:,.0f} MB" if group and memory is not None else "nothing"
        out.seek(0)
        err.seek(0)
        highest = max(taken for _, taken in looks)
        return Used(process.returncode, seconds, out.read(), err.read(), highest, peak, how, looks)


def cold(path: Path) -> float:
    """Makes the system drop what it keeps of a file, or of the files in a folder; the part that is kept all the
    same."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    kept = total = 0
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(opened.fileno()).st_size
            if size:
                kept += _resident(opened.fileno(), size)
                total += -(-size // mmap.PAGESIZE)
    return kept / max(1, total)


def _resident(descriptor: int, size: int) -> int:
    """Pages of a file that are in memory."""
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        start = (ctypes.c_char * size).from_buffer(mapped)
        library = ctypes.CDLL(None, use_errno=True)
        status = library.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start
    return sum(page & 1 for page in bytes(pages)) if status == 0 else len(pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--memory", type=float, help="MB that it may take (default: all)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    command = chosen.command[1:] if chosen.command[:1] == ["--"] else chosen.command
    memory = None if chosen.memory is None else int(chosen.memory * 1e6)
    used = run_limited(command, memory, Path.cwd())
    print(used.out, end="")
    print(used.err, end="", file=sys.stderr)
    print(f"limited by {used.how}: {used.seconds:.1f} s, at most {used.pss / 1e6:,.0f} MB of processes, "
          f"{used.group / 1e6:,.0f} MB of the group")  # fmt: skip
    sys.exit(used.status)


if __name__ == "__main__":
    main()
