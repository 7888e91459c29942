"""From start to prompt: an import, one step, the default run on the digits; whole processes, and what they stand on."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks.common import Contender, Report, interleave, options, table, with_skipped
from benchmarks.processes import require, run, under_mpirun, under_torchrun

TRAIN = ("-m", "distsgd.train", "--quiet", "--out", "run")
MPI_ALONE = ("-c", "import numpy; from mpi4py import MPI; MPI.COMM_WORLD.Barrier()")
GLOO_ALONE = "import torch.distributed as d; d.init_process_group('gloo'); d.barrier(); d.destroy_process_group()"

COMMANDS: dict[str, tuple[int | None, Sequence[str]]] = {
    "python alone": (None, ("-c", "pass")),
    "import numpy": (None, ("-c", "import numpy")),
    "import distsgd": (None, ("-c", "import distsgd")),
    "2 ranks: numpy and mpi4py, no work": (2, MPI_ALONE),
    "one step, no launcher": (None, (*TRAIN, "--max-steps", "1")),
    "one step, 1 rank": (1, (*TRAIN, "--max-steps", "1")),
    "one step, 2 ranks": (2, (*TRAIN, "--max-steps", "1")),
    "digits by default, 4 ranks": (4, TRAIN),
}


def command(name: str, ranks: int | None, arguments: Sequence[str]) -> Contender:
    """A whole command of this interpreter, in an empty folder."""

    def started(_: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return {"seconds": run(under_mpirun(ranks, [sys.executable, *arguments]), folder=folder)[1]}

    return Contender(name, started)


def large_file(folder: str, size: int) -> tuple[str, ...]:
    """The arguments of one step on a mapped file of so many bytes, which is sparse: as if all of it were in memory."""
    rows = size // (784 * 4)
    np.lib.format.open_memmap(f"{folder}/x.npy", mode="w+", dtype=np.float32, shape=(rows, 784))
    np.save(f"{folder}/y.npy", np.arange(rows) % 10)
    return (*TRAIN, "--dataset", folder, "--validation-last", "1000", "--max-steps", "1")


def torchrun(interpreter: str) -> dict[str, float]:
    """Seconds in which torchrun starts two processes that meet once."""
    require(interpreter, "torch")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/meet.py"
        with open(path, "w", encoding="utf-8") as script:
            script.write(GLOO_ALONE)
        return {"seconds": run(under_torchrun(2, [interpreter, path]), folder=folder)[1]}


def main() -> None:
    chosen = options(__doc__)
    report = Report("startup", chosen)
    contenders = [command(name, ranks, arguments) for name, (ranks, arguments) in COMMANDS.items()]
    contenders.append(Contender("2 processes: torchrun and gloo, no work", lambda _: torchrun(chosen.torch_python)))
    with tempfile.TemporaryDirectory() as folder:
        megabytes = 20 if chosen.quick else 20_000
        arguments, what = large_file(folder, megabytes * 10**6), f"one step, mapped {megabytes:,} MB"
        contenders += [command(f"{what}, {count} rank(s)", count, arguments) for count in (1, 2)]
        found = interleave(contenders, chosen.rounds)
    rows = [
        (name, f"{series.median('seconds'):.3f}", f"{min(series.values('seconds')):.3f}")
        for name, series in found.items()
        if series.skipped is None
    ]
    report.add("whole processes", found, with_skipped(table(("", "seconds", "least"), rows), found))
    report.write()


if __name__ == "__main__":
    main()
