"""Scores and seconds of DistributedClassifier and DistributedRegressor beside scikit-learn's own networks.

Both have their defaults but for the seed and the number of microbatches M, in the same pipeline, and are scored on the
same 30 % of five toy data sets. Round r splits the examples and begins with seed r; one process fits all networks of a
round, one after the other, each on one core. Seconds are those of `fit` alone. Scores count as equal where the mean of
the rounds' differences is at most twice its standard error. `--ranks` with a 2 fits on two ranks, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from math import sqrt
from statistics import mean, median, stdev
from typing import Any

from benchmarks.common import Contender, Report, Series, interleave, options, ratio, table, with_skipped
from benchmarks.processes import child, measure, require, under_mpirun

DATA = {"digits": "accuracy", "iris": "accuracy", "wine": "accuracy", "breast_cancer": "accuracy", "diabetes": "R²"}
THEIRS, OURS, OURS_ONE = "scikit-learn", "distsgd, M = 4", "distsgd, M = 1"
OURS_TWO = "distsgd, 2 ranks, M = 2"
ALONE: dict[str, int | None] = {THEIRS: None, OURS: 4, OURS_ONE: 1}
"""The networks that one process fits, with their microbatches."""


def contenders(data: str, chosen: argparse.Namespace) -> list[Contender]:
    """All that fit one data set."""

    @cache
    def fit(seed: int, ranks: int | None) -> Mapping[str, Any]:
        require(chosen.torch_python, "sklearn")
        networks = ALONE if ranks is None else {OURS_TWO: 2}
        wanted = {"data": data, "seed": seed, "networks": networks, "epochs": 2 if chosen.quick else 200}
        return measure(under_mpirun(ranks, child("sklearn_fit", wanted, chosen.torch_python)))

    def contender(name: str, ranks: int | None) -> Contender:
        def of_round(seed: int) -> Mapping[str, Any]:
            found = fit(seed, ranks)
            return {**found["networks"][name], "metadata": found["metadata"]}

        return Contender(name, of_round)

    return [*(contender(name, None) for name in ALONE), *([contender(OURS_TWO, 2)] if 2 in chosen.ranks else [])]


def spread(values: list[float]) -> str:
    """The mean over the rounds, and their standard deviation."""
    return f"{mean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def difference(theirs: Series, ours: Series) -> tuple[str, str]:
    """The mean of the rounds' differences with its standard error; and which has the better scores."""
    by_round = [own - other for own, other in zip(ours.values("score"), theirs.values("score"), strict=True)]
    found, error = mean(by_round), stdev(by_round) / sqrt(len(by_round)) if len(by_round) > 1 else 0.0
    verdict = "equal" if abs(found) <= 2 * error else "distsgd" if found > 0 else "scikit-learn"
    return f"{found:+.4f} ± {error:.4f}", verdict if len(by_round) > 1 else ""


def row(name: str, series: Series, theirs: Series) -> tuple[str, ...]:
    """A line of the table: times are over those of scikit-learn in the same round."""
    seconds = f"{median(series.values('fit_seconds')):.2f}"
    if series is theirs:
        return name, spread(series.values("score")), "", "", seconds, ""
    slower = ratio(series, theirs, "fit_seconds")
    return name, spread(series.values("score")), *difference(theirs, series), seconds, f"{slower:.2f}"


def main() -> None:
    chosen = options(__doc__)
    report = Report("sklearn_peer", chosen)
    for data, score in DATA.items():
        found = interleave(contenders(data, chosen), chosen.rounds)
        there = [(name, series) for name, series in found.items() if series.skipped is None]
        rows = [row(name, series, found[THEIRS]) for name, series in there if found[THEIRS].skipped is None]
        header = (data, score, "difference", "better", "seconds", "times scikit-learn's")
        report.add(data, found, with_skipped(table(header, rows), found))
    report.write()


if __name__ == "__main__":
    main()
