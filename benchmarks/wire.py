"""What --wire bfloat16 saves and costs: steps on two hosts of two ranks each (with --hosts), and on one rank.

Both ways of sending take turns within a round. One rank shows what rounding itself costs.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import Contender, Report, Series, interleave, job, options, ratio, table, with_skipped
from benchmarks.hosts import linked_hosts, under_hosts
from benchmarks.processes import child, measure
from benchmarks.workloads import describe, workload

DEFAULT = ("mlp512",)
LINKS = (1.0, 10.0)
"""Gbit/s."""
HOSTS, ON_EACH, MICROBATCHES = 2, 2, 4
WIRES = ("float32", "bfloat16")


def _settings(name: str, wire: str, chosen: argparse.Namespace) -> dict[str, Any]:
    return {"workload": name, "seconds": chosen.seconds, "examples": chosen.examples, "microbatches": MICROBATCHES,
            "threads": 1, "wire": wire}  # fmt: skip


def contenders(name: str, place: str, chosen: argparse.Namespace) -> list[Contender]:
    """Both wires, on two hosts with links of so many Gbit/s, or on one rank."""

    def on_hosts(gigabits: float, wire: str) -> dict[str, Any]:
        with linked_hosts(HOSTS, gigabits) as agent:
            command = child("distsgd_steps", _settings(name, wire, chosen))
            return measure(under_hosts(agent, HOSTS, ON_EACH, command))

    if place == "one rank":
        return [job(f"{place}, {wire}", "distsgd_steps", _settings(name, wire, chosen)) for wire in WIRES]
    gigabits = float(place.split()[0])
    return [Contender(f"{place}, {wire}", lambda _, wire=wire: on_hosts(gigabits, wire)) for wire in WIRES]


def times(found: dict[str, Series], places: list[str], batch: int) -> str:
    """Milliseconds of a step, and the median over the rounds of bfloat16's over float32's of the same round."""
    rows = []
    for place in places:
        exact, rounded = (found[f"{place}, {wire}"] for wire in WIRES)
        speed = ratio(exact, rounded)  # examples per second: the other way round than the time
        if speed is not None:
            each = [f"{1e3 * batch / one.median('examples_per_second'):.2f}" for one in (exact, rounded)]
            rows.append((place, *each, f"{speed:.2f}"))
    return with_skipped(table(("", *(f"{wire}, ms a step" for wire in WIRES), "ratio"), rows), found)


def main() -> None:
    chosen = options(
        __doc__,
        extra=lambda parser: parser.add_argument(
            "--links", nargs="*", type=float, default=LINKS, help="of two hosts, Gbit/s"
        ),
    )
    report = Report("wire", chosen)
    places = [*(f"{link:g} Gbit/s" for link in (chosen.links if chosen.hosts else ())), "one rank"]
    for name in chosen.workload or DEFAULT:
        found = interleave([one for place in places for one in contenders(name, place, chosen)], chosen.rounds)
        title = f"two hosts of {ON_EACH} ranks, M={MICROBATCHES}; {describe(workload(name))}"
        report.add(title, found, times(found, places, workload(name).batch))
    report.write()


if __name__ == "__main__":
    main()
