"""Steps of mlp512 on several hosts made of network namespaces: how much of a step is communication that is not hidden.

python -m benchmarks.between_hosts --against FOLDER also times the packages of another checkout, in turn with this one.
The time of a step without messages is that of the same ranks whose transport sends nothing. Needs root and MPICH.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Contender, Report, Series, interleave, options, table, with_skipped
from benchmarks.hosts import linked_hosts, under_hosts
from benchmarks.processes import ROOT, child, measure
from benchmarks.workloads import describe, workload

NAME = "mlp512"
MICROBATCHES = 4


@dataclass(frozen=True)
class Case:
    """So many hosts and ranks, what links them, and the examples of a step."""

    hosts: int
    on_each: int
    gigabits: float
    batch: int

    @property
    def title(self) -> str:
        """In words."""
        return (
            f"{self.hosts} hosts, {self.on_each} rank{'s' * (self.on_each > 1)} each, {self.gigabits:g} Gbit/s, "
            f"{self.batch} examples a step"
        )


CASES = {"strong": Case(2, 2, 1.0, 256), "weak": Case(4, 1, 10.0, 1024)}
"""One minibatch for all ranks on a slow network, and a minibatch of 256 examples a rank on a faster one."""


def contender(name: str, case: Case, chosen: argparse.Namespace, code: Path = ROOT, silent: bool = False) -> Contender:
    """The case with the packages of a checkout; `silent` sends nothing."""
    settings = {
        "workload": NAME,
        "seconds": chosen.seconds,
        "examples": chosen.examples,
        "batch": case.batch,
        "microbatches": MICROBATCHES,
        "threads": 1,
    }

    def timed(_: int) -> dict[str, Any]:
        with linked_hosts(case.hosts, case.gigabits) as agent:
            command = child("silent_steps" if silent else "distsgd_steps", settings)
            return measure(under_hosts(agent, case.hosts, case.on_each, command, code))

    return Contender(name, timed)


def step_table(found: dict[str, Series], batch: int) -> str:
    """Milliseconds of a step, over those of the other checkout, and the part that isn't there without messages."""
    seconds = {
        name: [batch / speed for speed in series.values("examples_per_second")]
        for name, series in found.items()
        if series.skipped is None
    }
    rows = []
    for name, times in seconds.items():
        cells = [name, f"{1e3 * sorted(times)[len(times) // 2]:.1f}"]
        for other, of in (("other", lambda a, b: a / b), ("silent", lambda a, b: 1 - b / a)):
            known = seconds.get(other)
            values = sorted(of(a, b) for a, b in zip(times, known, strict=True)) if known and name != other else []
            cells.append(f"{values[len(values) // 2]:.2f}" if values else "")
        rows.append(cells)
    header = ("", "ms a step", "of the other checkout's", "communication that is not hidden")
    return with_skipped(table(header, rows), found)


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--against", type=Path, help="another checkout of distsgd, timed in turn with this one")
        parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))

    chosen = options(__doc__, extra=more)
    report = Report("between_hosts", chosen)
    for name in chosen.cases:
        case = CASES[name]
        contenders = [contender("this", case, chosen), contender("silent", case, chosen, silent=True)]
        if chosen.against is not None:
            contenders.insert(0, contender("other", case, chosen, chosen.against.resolve()))
        found = interleave(contenders, chosen.rounds)
        title = f"{case.title}, M={MICROBATCHES}; {describe(workload(NAME))}"
        report.add(title, found, step_table(found, case.batch))
    report.write()


if __name__ == "__main__":
    main()
