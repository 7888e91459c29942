"""The reduction alone on 2 ranks, float32: distsgd in shared memory and in messages, beside MPI_Allreduce.

All leave the whole sum where every rank can read it. The library's Allreduce is the one that distsgd runs on.
"""

from __future__ import annotations

from benchmarks.common import Report, interleave, job, options, table, with_skipped
from benchmarks.workloads import workload

DEFAULT = ("mlp512", "wide-adam")
RANKS = 2
KINDS = {"shared": "distsgd, shared memory", "mpi": "distsgd, messages", "allreduce": "MPI_Allreduce"}


def main() -> None:
    chosen = options(__doc__)
    report = Report("reduction", chosen)
    sizes = {name: workload(name).parameters for name in chosen.workload or DEFAULT}
    jobs = [
        job(name, "reduction", {"elements": size, "seconds": chosen.seconds}, RANKS) for name, size in sizes.items()
    ]
    found = interleave(jobs, chosen.rounds)
    rows = []
    for name, series in found.items():
        if series.skipped is not None:
            continue
        allreduce = series.median("allreduce_seconds")
        for kind, title in KINDS.items():
            seconds = series.median(f"{kind}_seconds")
            rows.append(
                (f"{4e-6 * sizes[name]:.1f} MB, {title}", f"{seconds * 1e6:,.0f}", f"{allreduce / seconds:.2f}")
            )
    header = ("", "µs", "times as fast as MPI_Allreduce")
    report.add(f"one reduction, {RANKS} ranks", found, with_skipped(table(header, rows), found))
    report.write()


if __name__ == "__main__":
    main()
