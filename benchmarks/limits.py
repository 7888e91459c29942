"""How close a step is to what this machine can do: the matrix products at their measured ceilings, and copies.

Two ceilings of one core: each product at its own rate, measured with nothing around it; and all floating-point
operations at the rate of the fastest product. The step is distsgd's, on one rank.
"""

from __future__ import annotations

import argparse
from statistics import median

from benchmarks.common import Contender, Report, Series, interleave, job, options, table, with_skipped
from benchmarks.peers import FOUR, ONE, ours
from benchmarks.workloads import Workload, describe, workload

CEILINGS = {"1 core": (None, 1), "1 core, 4 microbatches": (None, 4), "2 cores": (2, 1)}
"""Ranks (None: without mpirun) and microbatches that the minibatch is cut into."""
COPIES = ("copy, memory", "copy, cache")


def contenders(name: str, chosen: argparse.Namespace) -> list[Contender]:
    """The ceilings and the steps."""
    shared = {"workload": name, "seconds": chosen.seconds, "examples": chosen.examples}
    ceilings = [
        job(title, "ceilings", {**shared, "microbatches": microbatches, "cores": 1 if ranks is None else None}, ranks)
        for title, (ranks, microbatches) in CEILINGS.items()
    ]
    return [*ceilings, ours(ONE, shared), ours(FOUR, shared)]


def products_table(work: Workload, found: dict[str, Series]) -> str:
    """GFLOP/s of each product, and GB/s of copies."""
    titles = [title for title in CEILINGS if found[title].skipped is None]
    whole = {name: 2 * m * k * n for name, m, k, n in work.gemms(work.batch)}
    rows = []
    for name, flop in whole.items():
        part = [flop / CEILINGS[title][1] / found[title].median(name) / 1e9 for title in titles]
        rows.append((f"{name}, GFLOP/s", *(f"{rate:.0f}" for rate in part)))
    for name in COPIES:
        rows.append((f"{name}, GB/s copied", *(f"{1e-9 / found[title].median(name):.0f}" for title in titles)))
    return table(("", *titles), rows)


def gemm_seconds(work: Workload, ceiling: Series, microbatches: int) -> tuple[list[float], list[float]]:
    """By round: seconds of a step's products, each at its own rate, and all at the rate of the fastest."""
    products = work.gemms(work.batch // microbatches)
    own, best = [], []
    for sample in ceiling.samples:
        own.append(microbatches * sum(sample[name] for name, *_ in products))
        best.append(work.flop(work.batch) / max(2 * m * k * n / sample[name] for name, m, k, n in products))
    return own, best


def fractions_table(work: Workload, found: dict[str, Series]) -> str:
    """A step, and the part of it that its products need."""
    rows = []
    for label, title, microbatches in ((ONE, "1 core", 1), (FOUR, "1 core", 1), (FOUR, "1 core, 4 microbatches", 4)):
        step, ceiling = found[label], found[title]
        if step.skipped is not None or ceiling.skipped is not None:
            continue
        took = [work.batch / rate for rate in step.values("examples_per_second")]
        own, best = gemm_seconds(work, ceiling, microbatches)
        parts = [median(x / y for x, y in zip(ceilings, took, strict=True)) for ceilings in (own, best)]
        shown = [f"{median(seconds) * 1e6:,.0f}" for seconds in (took, own, best)]
        rows.append((f"{label}; products of {microbatches} microbatch(s)", *shown, *(f"{part:.0%}" for part in parts)))
    header = ("", "step, µs", "products, µs", "at the fastest, µs", "products / step", "at the fastest / step")
    return with_skipped(table(header, rows), found)


def main() -> None:
    chosen = options(__doc__)
    report = Report("limits", chosen)
    for name in chosen.workload or ("mlp512",):
        work = workload(name)
        found = interleave(contenders(name, chosen), chosen.rounds)
        report.add(describe(work), found, products_table(work, found), fractions_table(work, found))
    report.write()


if __name__ == "__main__":
    main()
