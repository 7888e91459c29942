"""How distsgd scales with its ranks on this machine: strong (one minibatch for all) and weak (one for each rank).

Every rank has one thread, so one rank uses one core. More ranks than cores are shown too, and share them.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import Contender, Report, Series, interleave, job, options, ratio, table, with_skipped
from benchmarks.workloads import describe, workload

DEFAULT = ("mlp512", "wide-adam")
MICROBATCHES = 4


def contenders(name: str, kind: str, chosen: argparse.Namespace) -> list[Contender]:
    """One for each number of ranks; one rank runs without mpirun, on one core."""
    found = []
    for ranks in chosen.ranks:
        settings: dict[str, Any] = {
            "workload": name,
            "seconds": chosen.seconds,
            "examples": chosen.examples,
            "batch": workload(name).batch * (ranks if kind == "weak" else 1),
            "microbatches": ranks if kind == "microbatch a rank" else max(MICROBATCHES, ranks),
            "threads": 1,
            "cores": 1 if ranks == 1 else None,
        }
        found.append(job(str(ranks), "distsgd_steps", settings, None if ranks == 1 else ranks))
    return found


def scaling_table(found: dict[str, Series], cores: int) -> str:
    """Examples per second, the speed-up over the first row, and that per core in use."""
    first, *_ = found.values()
    rows = []
    for series in found.values():
        gain = ratio(series, first)
        if gain is None:
            continue
        ranks, base = int(series.name), int(first.name)
        efficiency = gain * min(base, cores) / min(ranks, cores)
        rows.append((series.name, f"{series.median('examples_per_second'):,.0f}", f"{gain:.2f}", f"{efficiency:.0%}"))
    return with_skipped(table(("ranks", "examples/s", "speed-up", "of the cores in use"), rows), found)


def main() -> None:
    chosen = options(__doc__)
    report = Report("scaling", chosen)
    kinds = {
        "strong": f"one minibatch for all ranks, M={MICROBATCHES}",
        "microbatch a rank": "one minibatch for all ranks, as many microbatches as ranks",
        "weak": f"one minibatch for each rank, M={MICROBATCHES}",
    }
    for name in chosen.workload or DEFAULT:
        for kind, meaning in kinds.items():
            found = interleave(contenders(name, kind, chosen), chosen.rounds)
            title = f"{kind}: {meaning}; {describe(workload(name))}"
            report.add(title, found, scaling_table(found, report.machine["cores"]))
    report.write()


if __name__ == "__main__":
    main()
