"""What --shares auto gains where one of two ranks may use its core for half of the time (Linux, root)."""

from __future__ import annotations

import argparse
import os
from collections import Counter

from benchmarks.common import Contender, Report, Series, interleave, options, ratios, speeds
from benchmarks.processes import Unavailable, child, measure, under_mpirun
from benchmarks.workloads import describe, workload

DEFAULT = ("mlp512",)
RANKS = 2
MICROBATCHES = 16
BATCH = 1024
SETTLE = {"equal": 0.5, "auto": 6.0}
"""Seconds before the clock starts: shares are decided on after each second, as long as they change."""
BOTH, EQUAL, AUTO = "equal, both ranks with a core", "equal, rank 1 with half a core", "auto, rank 1 with half a core"


def contender(name: str, workload_name: str, shares: str, slow: int | None, chosen: argparse.Namespace) -> Contender:
    """The ranks with such shares, of which rank `slow` has half of a core."""
    settings = {
        "workload": workload_name,
        "seconds": chosen.seconds,
        "examples": chosen.examples,
        "batch": BATCH,
        "microbatches": MICROBATCHES,
        "shares": shares,
        "slow": slow,
        "settle": SETTLE[shares] if not chosen.quick else 0.0,
    }

    def run(_: int) -> dict[str, object]:
        if not hasattr(os, "sched_setaffinity") or os.geteuid() != 0:
            raise Unavailable("to slow a rank down takes root and Linux's control groups")
        return measure(under_mpirun(RANKS, child("unequal_steps", settings)))

    return Contender(name, run)


def shares_text(found: dict[str, Series]) -> str:
    """How many microbatches rank 1 computed in the end."""
    counts = Counter(found[AUTO].values("microbatches_of_last_rank"))
    rounds = ", ".join(f"{number} ({count} rounds)" for number, count in counts.most_common())
    return f"microbatches of rank 1 at the end: {rounds or 'none'}"


def main() -> None:
    chosen = options(__doc__)
    report = Report("unequal", chosen)
    for name in chosen.workload or DEFAULT:
        found = interleave(
            [
                contender(BOTH, name, "equal", None, chosen),
                contender(EQUAL, name, "equal", 1, chosen),
                contender(AUTO, name, "auto", 1, chosen),
            ],
            chosen.rounds,
        )
        of = describe(workload(name, batch=BATCH))
        title = f"{of}, {RANKS} ranks, M = {MICROBATCHES}"
        report.add(title, found, speeds(found), ratios(found, [(AUTO, EQUAL), (AUTO, BOTH)]), shares_text(found))
    report.write()


if __name__ == "__main__":
    main()
