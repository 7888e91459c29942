"""Training on a file that is larger than memory, beside training on the same examples in memory without a limit.

Each format in turn, of the same numbers: with a shuffle buffer in a control group, and the system's own copy of the
file forgotten before; examples per second from the second window on, and what the processes take beyond the buffer.
With --minutes, one long run over each format instead, and what its processes take in each tenth of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import Contender, Report, interleave, options, ratio, table, with_skipped
from benchmarks.limited import cold, run_limited
from benchmarks.processes import Unavailable, under_mpirun

FEATURES, BATCH = 784, 256
_BLOCK = 8192


def blocks(rows: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """The examples, some at a time."""
    draws = np.random.default_rng(0)
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        x = draws.random((count, FEATURES), np.float32)
        yield x, x[:, :10].argmax(axis=1)


def npy(path: Path, rows: int) -> None:
    path.mkdir()
    x = np.lib.format.open_memmap(path / "x.npy", "w+", np.float32, (rows, FEATURES))
    y = np.empty(rows, np.int64)
    for number, (values, labels) in enumerate(blocks(rows)):
        x[number * _BLOCK : number * _BLOCK + len(values)] = values
        y[number * _BLOCK : number * _BLOCK + len(values)] = labels
    x.flush()
    np.save(path / "y.npy", y)


def hdf5(path: Path, rows: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (rows, FEATURES), np.float32, chunks=(1024, FEATURES))
        y = file.create_dataset("y", (rows,), np.int64)
        for number, (values, labels) in enumerate(blocks(rows)):
            x[number * _BLOCK : number * _BLOCK + len(values)] = values
            y[number * _BLOCK : number * _BLOCK + len(values)] = labels


def zarr(path: Path, rows: int, **more: Any) -> None:
    import zarr

    group = zarr.create_group(path)
    x = group.create_array("x", shape=(rows, FEATURES), dtype="float32", chunks=(4096, FEATURES), **more)
    y = group.create_array("y", shape=(rows,), dtype="int64")
    labels = []
    for number, (values, of_values) in enumerate(blocks(rows)):
        x[number * _BLOCK : number * _BLOCK + len(values)] = values
        labels.append(of_values)
    y[...] = np.concatenate(labels)


def parquet(path: Path, rows: int, group: int | None = None, **more: Any) -> None:
    """With so many rows a group; None: as many as pyarrow makes by default."""
    import pyarrow
    import pyarrow.parquet

    names = [f"x{number}" for number in range(FEATURES)] + ["label"]
    together = _BLOCK if group is not None else 1 << 20
    with_labels: list[Any] = []
    writer = None
    for values, labels in blocks(rows):
        columns = [*(pyarrow.array(values[:, k]) for k in range(FEATURES)), pyarrow.array(labels)]
        with_labels.append(pyarrow.table(columns, names))
        if sum(one.num_rows for one in with_labels) >= together:
            writer = writer or pyarrow.parquet.ParquetWriter(path, with_labels[0].schema, **more)
            writer.write_table(pyarrow.concat_tables(with_labels), row_group_size=group)
            with_labels = []
    writer = writer or pyarrow.parquet.ParquetWriter(path, with_labels[0].schema, **more)
    if with_labels:
        writer.write_table(pyarrow.concat_tables(with_labels), row_group_size=group)
    writer.close()


FORMATS: dict[str, tuple[str, Callable[[Path, int], object], tuple[str, ...]]] = {
    "npy": ("npy", npy, ()),
    "hdf5": ("x.h5", hdf5, ()),
    "zarr": ("x.zarr", partial(zarr, compressors=None), ("--order-block", "4096")),
    "zarr, compressed": ("c.zarr", zarr, ("--order-block", "4096")),
    "parquet": (
        "x.parquet",
        partial(parquet, group=8192, use_dictionary=False),
        ("--y", "label", "--order-block", "8192"),
    ),
    "parquet, dictionaries": ("p.parquet", partial(parquet, group=8192), ("--y", "label", "--order-block", "8192")),
    "parquet, default groups": ("d.parquet", parquet, ("--y", "label")),
}
"""Of each format its file, what makes it, and options: blocks as long as the file's chunks, as a note of the run asks
for."""
USUAL = ("npy", "hdf5", "zarr", "parquet")
MEMORY = "npy in memory, no limit"
STOPPED = 75
"""The status of a run that --max-time ends."""


def made(folder: Path, name: str, rows: int) -> Path:
    """The file of a format, which is made where it isn't there."""
    file, make, _ = FORMATS[name]
    path = folder / file
    if not path.exists():
        try:
            make(path, rows)
        except ModuleNotFoundError as error:
            raise Unavailable(f"there is no {error.name}") from None
    return path


def trained(folder: Path, name: str, chosen: argparse.Namespace, streamed: bool) -> dict[str, Any]:
    """One run over a file."""
    path, asked = made(folder, name, chosen.rows), FORMATS[name][2]
    kept = cold(path)
    row = 4 * FEATURES + 8
    window = max(1, int(chosen.buffer * 1e6 / 2 / row)) // BATCH
    steps = max(4, chosen.rows // BATCH)
    buffer = f"{chosen.buffer:g}MB"
    with tempfile.TemporaryDirectory() as out:
        train = [sys.executable, "-m", "distsgd.train", "--dataset", str(path), *asked, "--quiet", "--hidden", "512",
                 "512", "--batch-size", str(BATCH), "--validation-fraction", "0", "--shuffle-buffer", buffer,
                 "--log-every", str(max(1, min(window, steps // 4) // 2)), "--max-steps", str(steps),
                 "--out", f"{out}/run", *([] if streamed else ["--no-stream"])]  # fmt: skip
        limit = int(chosen.limit * 1e6) if streamed else None
        used = run_limited(under_mpirun(2, train), limit)
        if used.status:
            raise Unavailable(f"training left with status {used.status}: {used.err.strip().splitlines()[-1:]}")
        lines = [json.loads(line) for line in Path(f"{out}/run/metrics.jsonl").read_text().splitlines()]
    seen = [(line["step"], line["run"]["seconds"]) for line in lines if line["step"] >= min(window, steps // 2)]
    (first, began), (last, ended) = seen[0], seen[-1]
    found = {"examples_per_second": (last - first) * BATCH / (ended - began), "pss_bytes": float(used.pss)}
    about = {"limit": used.how, "group_bytes": used.group, "kept_before": kept, "seconds": used.seconds}
    return found | {"metadata": about}


def grown(path: Path, asked: Sequence[str], chosen: argparse.Namespace) -> dict[str, Any]:
    """MB that the processes of a long run take in each tenth of it: the median of what is seen there."""
    with tempfile.TemporaryDirectory() as out:
        train = [sys.executable, "-m", "distsgd.train", "--dataset", str(path), *asked, "--quiet", "--hidden", "512",
                 "512", "--batch-size", str(BATCH), "--validation-fraction", "0", "--shuffle-buffer",
                 f"{chosen.buffer:g}MB", "--max-time", f"{60 * chosen.minutes:.0f}s", "--epochs", "1000000", "--out",
                 f"{out}/run"]  # fmt: skip
        used = run_limited(under_mpirun(2, train), int(chosen.limit * 1e6))
        if used.status != STOPPED:
            raise Unavailable(f"training left with status {used.status}: {used.err.strip().splitlines()[-1:]}")
        lines = [json.loads(line) for line in Path(f"{out}/run/metrics.jsonl").read_text().splitlines()]
    tenths = [[taken / 1e6 for at, taken in used.looks if int(10 * at / used.seconds) == k] for k in range(10)]
    last = next(line for line in reversed(lines) if "step" in line)
    return {"epochs": last["step"] * BATCH / chosen.rows} | {
        f"tenth {k}": median(taken) for k, taken in enumerate(tenths, 1)
    }


def raw(path: Path) -> float:
    """MB/s of the file, read from its beginning to its end while nothing else happens."""
    cold(path)
    memory, began, total = bytearray(8 << 20), time.perf_counter(), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(memory):
            total += count
    return total / 1e6 / (time.perf_counter() - began)


def _own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, help="examples of 784 float32 (default 1,275,000: 4 GB)")
    parser.add_argument("--buffer", type=float, default=512.0, help="MB of the shuffle buffer (default 512)")
    parser.add_argument("--limit", type=float, default=1000.0, help="MB that a streamed run may take (default 1000)")
    parser.add_argument("--format", nargs="+", choices=list(FORMATS), default=list(USUAL))
    parser.add_argument("--minutes", type=float, help="instead: one run of so long over each format")


def compare(folder: Path, chosen: argparse.Namespace, report: Report) -> None:
    """Adds the speeds of all formats."""
    contenders = [Contender(MEMORY, lambda _: trained(folder, "npy", chosen, streamed=False))]
    contenders += [Contender(name, lambda _, name=name: trained(folder, name, chosen, True)) for name in chosen.format]  # type: ignore[misc]
    found = interleave(contenders, chosen.rounds)
    speed = raw(folder / "npy" / "x.npy") if (folder / "npy").exists() else 0.0
    rows = []
    for name, series in found.items():
        if series.skipped is None:
            over = ratio(series, found[MEMORY])
            beyond = (max(series.values("pss_bytes")) - chosen.buffer * 1e6) / 1e6
            cells = f"{series.median('examples_per_second'):,.0f}", "" if over is None else f"{over:.2f}"
            rows.append((name, *cells, "" if name == MEMORY else f"{beyond:,.0f}"))
    shown = table(("", "examples/s", "over memory", "MB beyond the buffer"), rows)
    report.add(f"{chosen.rows:,} examples of {FEATURES} float32, 2 ranks", found, with_skipped(shown, found))
    print(f"the file read from beginning to end, and nothing else: {speed:,.0f} MB/s")


def watch(folder: Path, chosen: argparse.Namespace, report: Report) -> None:
    """Adds what long runs take."""

    def measure(name: str) -> dict[str, Any]:
        return grown(made(folder, name, chosen.rows), FORMATS[name][2], chosen)

    found = interleave([Contender(name, lambda _, name=name: measure(name)) for name in chosen.format], 1)  # type: ignore[misc]
    keys = ["epochs", *(f"tenth {k}" for k in range(1, 11))]
    rows = [(name, *(f"{series.median(key):,.1f}" for key in keys))
            for name, series in found.items() if series.skipped is None]  # fmt: skip
    title = (
        f"{chosen.rows:,} examples of {FEATURES} float32 in {chosen.limit:,.0f} MB for {chosen.minutes:g} minutes, MB"
    )
    report.add(title, found, with_skipped(table(("", *keys), rows), found))


def main() -> None:
    chosen = options(__doc__, extra=_own)
    chosen.rows = chosen.rows or (20_000 if chosen.quick else 1_275_000)
    if chosen.quick:
        chosen.buffer, chosen.format = 20.0, ["npy"]
    chosen.rounds = min(chosen.rounds, 3)
    report = Report("streaming" if chosen.minutes is None else "streaming_long", chosen)
    folder = Path(tempfile.mkdtemp(prefix="streaming-", dir=chosen.data_dir))
    try:
        (compare if chosen.minutes is None else watch)(folder, chosen, report)
    finally:
        shutil.rmtree(folder)
    report.write()


if __name__ == "__main__":
    main()
