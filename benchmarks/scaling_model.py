"""How distsgd scales beyond this machine: a model of a step, its constants measured here, its errors, its predictions.

`python -m benchmarks.scaling_picture` draws the predictions from what this leaves in --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from benchmarks.calibration import Measurements, checks, measured
from benchmarks.common import Report, Series, options, table, with_skipped
from benchmarks.model import NETWORKS, Curve, Network
from benchmarks.workloads import describe, workload

DEFAULT = ("mlp512", "wide-adam")
LARGE = 4096
"""Examples of a large minibatch in strong scaling: 256 ranks then have 16 each."""
ON_NODE = (8, 16, 32)
SHOWN = 16
"""Ranks a node, where only one number is shown."""


def constants_table(curves: Mapping[str, Curve]) -> str:
    """All constants, with their units."""
    host = next(iter(curves.values())).host
    shown = [
        ("barrier of 2 ranks, µs", host.barrier * 1e6),
        ("update, whatever its size, µs", host.update * 1e6),
        ("all-to-all, whatever its size, µs", host.gather * 1e6),
        ("all-gather, whatever its size, µs", host.all_gather * 1e6),
        ("a message each way, µs", host.message * 1e6),
        ("another rank in distsgd's bookkeeping, µs", host.peer * 1e6),
        ("packing, ns an element", host.pack * 1e9),
        ("copying messages, ns a byte", host.copy * 1e9),
    ]
    rows: list[tuple[object, ...]] = [(title, f"{value:.3g}", "") for title, value in shown]
    titles = ("step, µs", "microbatch, µs", "example, µs", "addition of microbatches, ns an element",
              "update, ns an element", "addition of rows, ns an element")  # fmt: skip
    for name, curve in curves.items():
        pairs = zip(titles, asdict(curve.alone).values(), asdict(curve.busy).values(), strict=True)
        for title, alone, busy in pairs:
            scale = 1e6 if "µs" in title else 1e9
            rows.append((f"{name}: {title}", f"{alone * scale:.3g}", f"{busy * scale:.3g}"))
    return table(("", "one core at work", "two cores at work"), rows)


def checks_table(name: str, chosen: argparse.Namespace, measurements: Measurements, curve: Curve) -> str:
    """What the model says of runs that it hasn't seen."""
    rows = []
    for what, run in checks(name, chosen):
        if measurements.found[run.place].skipped is None:
            took, predicted = measurements.seconds(run, "step"), measurements.predicted(run, curve).step
            title = f"{what}, M={run.microbatches}, B={run.batch}"
            rows.append((title, f"{took * 1e6:,.0f}", f"{predicted * 1e6:,.0f}", f"{predicted / took - 1:+.0%}"))
    return table(("", "measured, µs", "model, µs", "error"), rows)


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def scaling_table(curve: Curve, on_node: int = SHOWN) -> str:
    """Speed-up over one rank; in brackets, if every rank had a replica of its own."""
    rows = []
    for ranks in curve.ranks:
        cells = []
        for network in NETWORKS:
            cells.append(number(curve.speed_up(ranks, on_node, network)))
            if ranks > on_node:
                cells[-1] += f" ({number(curve.speed_up(ranks, on_node, network, messages=True))})"
        rows.append((ranks, *cells))
    return table(("ranks", *(network.name for network in NETWORKS)), rows)


def pays(curve: Curve, on_node: int, network: Network, messages: bool = False) -> tuple[float, int, int]:
    """(the highest speed-up, the fewest ranks that come within 5 % of it, the most ranks that each do half of one)."""
    gains = {ranks: curve.speed_up(ranks, on_node, network, messages) for ranks in curve.ranks}
    highest = max(gains.values())
    enough = min(ranks for ranks, gain in gains.items() if gain >= 0.95 * highest)
    return highest, enough, max(ranks for ranks, gain in gains.items() if gain >= ranks / 2)


def limits_table(curve: Curve) -> str:
    """Where it stops paying, for several numbers of ranks a node."""
    rows = []
    for on_node in ON_NODE:
        for title, messages in (("as it is", False), ("--communication mpi", True)):
            cells = []
            for network in NETWORKS:
                highest, enough, half = pays(curve, on_node, network, messages)
                cells.append(f"{number(highest)} on {enough}; {half}")
            rows.append((f"{on_node} ranks a node, {title}", *cells))
    return table(("highest on ranks; ranks at 50 %", *(network.name for network in NETWORKS)), rows)


def curves_of(weak: Curve) -> Iterator[Curve]:
    """What is asked of a network's model: its own minibatch, a large one, and its own for each rank."""
    for batch in dict.fromkeys((weak.batch, LARGE)):
        yield replace(weak, batch=batch, weak=False)
    yield weak


def main() -> None:
    chosen = options(__doc__)
    report = Report("scaling_model", chosen)
    names = chosen.workload or DEFAULT
    found = measured(names, chosen)
    measurements = Measurements(found)
    missing = measurements.missing()
    if missing:
        report.add("no constants", found, with_skipped(f"The model needs {', '.join(missing)}.", found))
        report.write()
        return
    curves = {name: measurements.curve(name, report.machine["cores"], names) for name in names}
    report.add("constants", found, with_skipped(constants_table(curves), found))
    for name, weak in curves.items():
        work = describe(workload(name))
        report.add(f"the model and measurements of {work}", {}, checks_table(name, chosen, measurements, weak))
        for curve in curves_of(weak):
            title = f"{curve.title}; speed-up, {SHOWN} ranks a node; {work}"
            series = Series(curve.title, metadata={"workload": name, **curve.metadata()})
            report.add(title, {name: series}, scaling_table(curve), limits_table(curve))
    report.write()


if __name__ == "__main__":
    main()
