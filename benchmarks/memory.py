"""Resident memory of all ranks together while they train on MNIST, with shared pages counted once (PSS), Linux alone.

The number is the highest sum over the ranks that was seen while the run was watched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.children.mnist import folder
from benchmarks.common import Contender, Report, interleave, options, table, with_skipped
from benchmarks.processes import Unavailable, end, environment, under_mpirun

EVERY = 0.02
"""Seconds between two looks."""


def ranks_of(launcher: int) -> Iterator[int]:
    """The Python processes below a launcher."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    for process in parents:
        above = process
        while above in parents and above != launcher:
            above = parents[above]
        try:
            if above == launcher and Path(os.readlink(f"/proc/{process}/exe")).name.startswith("python"):
                yield process
        except OSError:
            continue


def pss(process: int) -> int:
    """Bytes of a process, each page divided by the number of processes that share it; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def peak(ranks: int, chosen: argparse.Namespace) -> dict[str, float]:
    """Bytes of a training run at its highest, and of the process that takes most then."""
    where, reason = folder(chosen.data_dir)
    if where is None or not Path("/proc/self/smaps_rollup").exists():
        raise Unavailable(reason or "this system has no /proc/PID/smaps_rollup")
    steps = 20 if chosen.quick else 500
    train = [sys.executable, "-m", "distsgd.train", "--quiet", "--dataset", "mnist", "--data-dir", str(where.resolve()),
             "--hidden", "512", "512", "--optimizer", "adam", "--max-steps", str(steps), "--threads", "1"]  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        command = under_mpirun(ranks, [*train, "--out", f"{out}/run"])
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment(), stdout=quiet, stderr=quiet, text=True)
        highest: list[int] = [0]
        try:
            while process.poll() is None:
                highest = max(highest, [pss(rank) for rank in ranks_of(process.pid)] or [0], key=sum)
                time.sleep(EVERY)
        except BaseException:
            end(process)
            raise
    if process.returncode:
        raise Unavailable(f"training left with status {process.returncode}")
    return {"bytes": float(sum(highest)), "largest_bytes": float(max(highest))}


def contender(ranks: int, chosen: argparse.Namespace) -> Contender:
    """A run on so many ranks."""
    return Contender(f"{ranks} rank{'s' * (ranks > 1)}", lambda _: peak(ranks, chosen))


def main() -> None:
    chosen = options(__doc__)
    report = Report("memory", chosen)
    found = interleave((contender(ranks, chosen) for ranks in chosen.ranks), chosen.rounds)
    rows = []
    measured = [series for series in found.values() if series.skipped is None]
    for series in measured:
        whole = series.median("bytes") / 1e6
        more = whole - measured[0].median("bytes") / 1e6
        rows.append((series.name, f"{whole:.0f}", f"{series.median('largest_bytes') / 1e6:.0f}", f"{more:+.0f}"))
    header = ("", "MB, all ranks", "MB, largest rank", f"more than {measured[0].name if measured else 'one'}, MB")
    report.add("MNIST, 784-512-512-10, adam, batch 256", found, with_skipped(table(header, rows), found))
    report.write()


if __name__ == "__main__":
    main()
