"""What checkpoints cost while training continues: steps without any, with one every 5 s and every second, and with
--on-non-finite skip, on 2 ranks.

Each run is ten times as long as --seconds says, for several checkpoints to fall into it. "stopped" is how long rank 0
is kept from its steps by one, with the copy of parameters and state; hashing and writing happen beside them. "lost" is
all that one costs: how many steps fewer there are in the half second after its beginning than in the one before, in
time. It is measured in the same run, so it sees what a machine's drift hides in the speeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from statistics import mean, median, stdev
from typing import Any

from benchmarks.common import Contender, Report, Series, interleave, options, ratio, table, with_skipped
from benchmarks.processes import child, measure, under_mpirun
from benchmarks.workloads import describe, workload

DEFAULT = ("mlp512-adam",)
RANKS = 2
MICROBATCHES = 4
NONE = "no checkpoints"
OPTIONS = {
    NONE: {},
    "every 5 s": {"checkpoint_every": "5s"},
    "every second": {"checkpoint_every": "1s"},
    "none, skip": {"on_non_finite": "skip"},
}


def contender(name: str, work: str, kind: str, chosen: argparse.Namespace) -> Contender:
    """Steps with the options that `name` stands for, in a folder of their own each time."""
    settings = {
        "workload": work,
        "seconds": 10 * chosen.seconds,
        "examples": chosen.examples,
        "microbatches": MICROBATCHES,
        "threads": 1,
        "communication": kind,
        **OPTIONS[name],
    }

    stopped: list[float] = []
    lost: list[float] = []

    def run(_: int) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(under_mpirun(RANKS, child("distsgd_steps", {**settings, "out": f"{folder}/run"})))
        metadata = found["metadata"]
        stopped.extend(metadata["stopped_seconds"])
        lost.extend(metadata["lost_seconds"])
        return {**found, "metadata": {**metadata, "stopped_seconds": stopped, "lost_seconds": lost}}

    return Contender(name, run)


def cost_table(found: Mapping[str, Series]) -> str:
    """Examples per second, what checkpoints cost of it, how many there were, how long one stopped rank 0, and all that
    one cost. The metadata are of all rounds."""
    rows = []
    for series in found.values():
        part = ratio(series, found[NONE])
        if part is None:
            continue
        stopped, lost = series.metadata["stopped_seconds"], series.metadata["lost_seconds"]
        speed = f"{series.median('examples_per_second'):,.0f}"
        rows.append((series.name, speed, f"{1 - part:+.1%}", len(stopped), _typical(stopped), _average(lost)))
    return with_skipped(
        table(("", "examples/s", "cost", "checkpoints", "stopped by each", "lost by each"), rows), found
    )


def _typical(seconds: list[float]) -> str:
    return f"{median(seconds) * 1e3:.1f} ms" if seconds else "-"


def _average(seconds: list[float]) -> str:
    """With its standard error: what one loses is a few steps, more or less."""
    if len(seconds) < 2:
        return "-"
    return f"{mean(seconds) * 1e3:.0f} ± {stdev(seconds) / len(seconds) ** 0.5 * 1e3:.0f} ms"


def main() -> None:
    chosen = options(__doc__)
    report = Report("checkpoints", chosen)
    for name in chosen.workload or DEFAULT:
        for kind, meaning in (("shared", "shared memory"), ("mpi", "messages")):
            found = interleave((contender(often, name, kind, chosen) for often in OPTIONS), chosen.rounds)
            report.add(f"{RANKS} ranks, {meaning}; {describe(workload(name))}", found, cost_table(found))
    report.write()


if __name__ == "__main__":
    main()
