"""Scores and seconds of DistributedClassifier and DistributedRegressor beside scikit-learn's own networks.

Both have their defaults but for the seed and the number of microbatches M, in the same pipeline, and are scored on the
same 30 % of five toy data sets. Round r splits the examples and begins with seed r. Seconds are those of `fit` alone.
"""

from __future__ import annotations

import argparse
from statistics import mean, stdev
from typing import Any

from benchmarks.common import Contender, Report, Series, interleave, options, ratio, table, with_skipped
from benchmarks.processes import child, measure, require, under_mpirun

DATA = {"digits": "accuracy", "iris": "accuracy", "wine": "accuracy", "breast_cancer": "accuracy", "diabetes": "R²"}
THEIRS, THEIRS_ONE = "scikit-learn, all cores", "scikit-learn, 1 core"
OURS, OURS_ONE, OURS_TWO = "distsgd, 1 rank, M = 4", "distsgd, 1 rank, M = 1", "distsgd, 2 ranks, M = 2"


def contenders(data: str, chosen: argparse.Namespace) -> list[Contender]:
    """All that fit one data set."""

    def fits(microbatches: int = 0, *, threads: int | None = 1, ranks: int | None = None) -> Any:
        def fit(seed: int) -> dict[str, Any]:
            require(chosen.torch_python, "sklearn")
            wanted = {"data": data, "seed": seed, "microbatches": microbatches, "threads": threads}
            wanted["epochs"] = 2 if chosen.quick else 200
            return measure(under_mpirun(ranks, child("sklearn_fit", wanted, chosen.torch_python)))

        return fit

    return [
        Contender(THEIRS, fits(threads=None)),
        Contender(THEIRS_ONE, fits()),
        Contender(OURS, fits(4)),
        Contender(OURS_ONE, fits(1)),
        Contender(OURS_TWO, fits(2, ranks=2)),
    ]


def spread(series: Series, key: str, digits: int) -> str:
    """The mean over the rounds, and their standard deviation."""
    values = series.values(key)
    return f"{mean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def main() -> None:
    chosen = options(__doc__)
    report = Report("sklearn_peer", chosen)
    for data, score in DATA.items():
        found = interleave(contenders(data, chosen), chosen.rounds)
        rows = []
        for name, series in found.items():
            if series.skipped is None:
                faster = ratio(found[THEIRS_ONE], series, "fit_seconds")
                times = "" if faster is None else f"{faster:.2f}"
                rows.append((name, spread(series, "score", 3), spread(series, "fit_seconds", 2), times))
        header = ("", score, "seconds", "times as fast as scikit-learn on 1 core")
        report.add(data, found, with_skipped(table(header, rows), found))
    report.write()


if __name__ == "__main__":
    main()
