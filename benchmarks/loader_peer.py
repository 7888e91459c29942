"""Examples per second out of an HDF5 file in a shuffled order: beside PyTorch's DataLoader with two workers.

The peer does what its documentation shows: a data set that reads one example of the file at a time. Here windows are
read by one thread and minibatches gathered from them, as training does. Nothing is computed with either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Contender, Report, interleave, options, ratios, speeds
from benchmarks.processes import Unavailable, environment, require

FEATURES, BATCH = 784, 256
_PEER = """
import sys, time, json, h5py, torch
from torch.utils.data import DataLoader, Dataset

class Items(Dataset):
    def __init__(self, path):
        self.path, self.file = path, None
        with h5py.File(path) as file:
            self.count = len(file["x"])
    def __len__(self):
        return self.count
    def __getitem__(self, number):
        if self.file is None:
            self.file = h5py.File(self.path)
        return self.file["x"][number], int(self.file["y"][number])

path, seconds = sys.argv[1], float(sys.argv[2])
loader = iter(DataLoader(Items(path), batch_size=256, shuffle=True, num_workers=2))
next(loader)
began, count = time.perf_counter(), 0
for x, _ in loader:
    count += len(x)
    if time.perf_counter() - began > seconds:
        break
print(json.dumps({"examples_per_second": count / (time.perf_counter() - began)}))
"""


def peer(path: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """DataLoader's."""
    require(chosen.torch_python, "torch")
    require(chosen.torch_python, "h5py")
    command = [chosen.torch_python, "-c", _PEER, str(path), str(chosen.seconds)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"DataLoader left with status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def windows(path: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """Minibatches out of windows, in this process."""
    from distsgd.data.orders import BlockOrder
    from distsgd.data.sources.registry import open_path
    from distsgd.data.stored import StoredArray
    from distsgd.data.window_reader import Reading, WindowReader
    from distsgd.data.windows import StreamedOrder, Table, WindowedArray, Windows, table_size

    source = open_path(path)
    x, y = source.arrays["x_train"], source.arrays["y_train"]
    count, block, per_window = x.shape[0], 1024, max(1, min(80, x.shape[0] // 4096))
    order = BlockOrder(count, block, per_window, 0)
    table = Table(np.zeros(table_size(1), np.int64), 1)
    table.reset()
    seen = Windows(order, lambda rows: rows, count, block, per_window, table, 0, lambda: None)
    memory = {name: np.zeros((2, seen.rows, *one.shape[1:]), one.dtype) for name, one in (("x", x), ("y", y))}
    reader = WindowReader(seen, Reading(source.name, {"x": x, "y": y}, memory, {}, {}))
    inputs, targets = (WindowedArray(seen, memory[name], StoredArray(one)) for name, one in (("x", x), ("y", y)))
    epoch_of = StreamedOrder(seen)
    reader.start()
    try:
        steps, done, number = count // BATCH, 0, 0
        inputs.take(epoch_of.indices(0, 0, BATCH))
        began = time.perf_counter()
        while time.perf_counter() - began < chosen.seconds:
            number += 1
            epoch, step = divmod(number, steps)
            rows = epoch_of.indices(epoch, step * BATCH, (step + 1) * BATCH)
            done += len(inputs.take(rows))
            targets.take(rows)
        return {"examples_per_second": done / (time.perf_counter() - began)}
    finally:
        reader.close()


def _own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, help="examples of 784 float32 (default 200,000)")


def main() -> None:
    chosen = options(__doc__, extra=_own)
    rows = chosen.rows or (20_000 if chosen.quick else 200_000)
    report = Report("loader_peer", chosen)
    with tempfile.TemporaryDirectory(dir=chosen.data_dir) as folder:
        path = Path(folder) / "x.h5"
        try:
            import h5py
        except ModuleNotFoundError:
            sys.exit("nothing to measure: there is no h5py")
        draws: Any = np.random.default_rng(0)
        with h5py.File(path, "w") as file:
            x = file.create_dataset("x", (rows, FEATURES), np.float32, chunks=(1024, FEATURES))
            for start in range(0, rows, 8192):
                stop = min(start + 8192, rows)
                x[start:stop] = draws.random((stop - start, FEATURES), np.float32)
            file["y"] = draws.integers(0, 10, rows)
        contenders = [
            Contender("windows, 1 reader", lambda _: windows(path, chosen)),
            Contender("DataLoader, 2 workers", lambda _: peer(path, chosen)),
        ]
        found = interleave(contenders, chosen.rounds)
    pairs = [("windows, 1 reader", "DataLoader, 2 workers")]
    report.add(
        f"{rows:,} examples of {FEATURES} float32 in chunks of 1,024", found, speeds(found), ratios(found, pairs)
    )
    report.write()


if __name__ == "__main__":
    main()
