"""CSV into arrays: distsgd's reader against pandas.read_csv with to_numpy, of floats and of whole numbers.

pandas parses on all cores from version 3.1 on, and on one with low_memory=False; both are measured. Files are written
to a temporary folder in --data-dir and removed; --megabytes says how large they are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Contender, Report, interleave, options, table
from benchmarks.processes import Unavailable

COLUMNS = 100
KINDS: dict[str, str] = {"10 digits": "%.10f", "17 digits": "%.17g", "whole numbers": "%d"}


def written(folder: str, kind: str, megabytes: int) -> str:
    """A file of about this size: its rows are some thousand different ones, again and again."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1_000_000, (2000, COLUMNS)) if kind == "whole numbers" else rng.random((2000, COLUMNS))
    path = os.path.join(folder, f"{kind.replace(' ', '-')}.csv")
    with open(path, "w", encoding="ascii") as file:
        np.savetxt(
            file, rows, KINDS[kind], ",", header=",".join(["y", *(f"x{k}" for k in range(1, COLUMNS))]), comments=""
        )
        size = file.tell()
    with open(path, "rb") as file:
        file.readline()
        text = file.read()
    with open(path, "ab") as file:
        file.writelines(text for _ in range(max(0, megabytes * 1_000_000 // size - 1)))
    return path


def by_distsgd(path: str) -> Any:
    """The inputs and the targets."""
    from distsgd.data import open_dataset, read_array

    source = open_dataset(path)
    return {name: read_array(one) for name, one in source.arrays.items()}


def by_pandas(path: str, **more: Any) -> Any:
    """All columns as one array."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise Unavailable("pandas is missing") from None
    return pandas.read_csv(path, **more).to_numpy()


def timed(name: str, path: str, read: Callable[[str], Any]) -> Contender:
    """Seconds of wall clock and of all cores together."""

    def measure(_: int) -> dict[str, float]:
        wall, work = time.perf_counter(), time.process_time()
        found = read(path)
        sample = {"seconds": time.perf_counter() - wall, "core seconds": time.process_time() - work}
        del found
        return sample

    return Contender(name, measure)


def _own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, help="size of each file (default 1000; quick: 4)")


def main() -> None:
    chosen = options(__doc__, extra=_own)
    megabytes = chosen.megabytes or (4 if chosen.quick else 1000)
    report = Report("csv_load", chosen)
    folder = chosen.data_dir or Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for kind in KINDS:
            path = written(scratch, kind, megabytes)
            size = os.path.getsize(path) / 1e6
            readers: dict[str, Callable[[str], Any]] = {
                "distsgd": by_distsgd,
                "pandas": by_pandas,
                "pandas, low_memory=False": lambda path: by_pandas(path, low_memory=False),
            }
            for read in readers.values():  # then the file is in the system's cache, and packages are imported
                with suppress(Unavailable):
                    read(path)
            found = interleave([timed(name, path, read) for name, read in readers.items()], chosen.rounds)
            own = found["distsgd"].median("seconds")
            rows = [
                (
                    name, f"{series.median('seconds'):.2f}", f"{series.median('core seconds'):.2f}",
                    f"{size / series.median('seconds'):.0f}", f"{series.median('seconds') / own:.2f}",
                )
                for name, series in found.items()
                if series.skipped is None
            ]  # fmt: skip
            header = (f"{size:,.0f} MB", "seconds", "core seconds", "MB/s", "distsgd is so much faster")
            report.add(kind, found, table(header, rows))
            os.remove(path)
    report.write()


if __name__ == "__main__":
    main()
