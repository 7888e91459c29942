"""What --shares auto gains where one of two ranks may use its core for half of the time (Linux, root)."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping

from benchmarks.common import Contender, Report, Series, interleave, options, ratios, speeds
from benchmarks.half_speed import half_speed
from benchmarks.processes import child, measure, under_mpirun
from benchmarks.workloads import describe, workload

DEFAULT = ("mlp512",)
RANKS = 2
MICROBATCHES = 16
BATCH = 1024
WARM_UP = {"equal": 0.5, "auto": 6.0}
"""Seconds before the clock starts: shares are decided on after each second, as long as they change."""
EQUAL, AUTO = "equal", "auto"


def contender(shares: str, name: str, chosen: argparse.Namespace) -> Contender:
    """The ranks with such shares, of which rank 1 has half of a core."""
    settings = {
        "workload": name,
        "seconds": chosen.seconds,
        "examples": chosen.examples,
        "batch": BATCH,
        "microbatches": MICROBATCHES,
        "shares": shares,
        "slow": 1,
        "warm_up": WARM_UP[shares] if not chosen.quick else 0.0,
    }

    def run(_: int) -> dict[str, object]:
        with half_speed():
            pass  # or the child would fail
        return measure(under_mpirun(RANKS, child("unequal_steps", settings)))

    return Contender(shares, run)


def how(found: Mapping[str, Series]) -> str:
    """How slow rank 1 was at first, and how many microbatches it had in the end."""
    slower, ended = (found[AUTO].values(key) for key in ("last_rank_slower", "microbatches_of_last_rank"))
    rounds = ", ".join(f"{number} ({count} rounds)" for number, count in Counter(ended).most_common())
    took = ", ".join(f"{times:.2f}" for times in slower if times != 1)
    return (
        f"rank 1 took {took or 'no known number of'} times as long as rank 0 for as many microbatches, until shares "
        f"changed; in the end it computed {rounds or 'none'}"
    )


def main() -> None:
    chosen = options(__doc__)
    report = Report("unequal", chosen)
    for name in chosen.workload or DEFAULT:
        found = interleave([contender(shares, name, chosen) for shares in (EQUAL, AUTO)], chosen.rounds)
        of = describe(workload(name, batch=BATCH))
        title = f"{of}, {RANKS} ranks of which rank 1 has half of a core, M = {MICROBATCHES}"
        report.add(title, found, speeds(found), ratios(found, [(AUTO, EQUAL)]), how(found))
    report.write()


if __name__ == "__main__":
    main()
