"""The order of 10⁹ examples: nanoseconds an index, by the size of a batch, and the memory that it takes."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

from benchmarks.common import Contender, Report, interleave, options, table
from distsgd.data.orders import BlockOrder, KeyedOrder, Order

COUNT, INDICES = 10**9, 1 << 20
ORDERS = {
    "keyed permutation": lambda: KeyedOrder(COUNT, 0),
    "blocks of 4,096, windows of 256": lambda: BlockOrder(COUNT, 4096, 256, 0),
}


def walked(order: Order, batch: int) -> dict[str, float]:
    """Of a walk through a part of an epoch, from its middle, and of the start there alone."""
    began = time.perf_counter()
    order.indices(0, COUNT // 2, COUNT // 2 + batch)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for start in range(COUNT // 2, COUNT // 2 + INDICES, batch):
        order.indices(0, start, start + batch)
    return {"nanoseconds": 1e9 * (time.perf_counter() - began) / INDICES, "first": first}


def resident(what: str) -> float:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def memory(name: str) -> dict[str, float]:
    """Bytes of arrays at the peak of a walk, and how far the process grows, in a process of its own."""
    if name == sys.argv[-1]:
        before = resident("VmRSS")
        walked(ORDERS[name](), 256)
        grown = resident("VmHWM") - before
        tracemalloc.start()
        walked(ORDERS[name](), 256)
        return {"arrays": float(tracemalloc.get_traced_memory()[1]), "process": grown}
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.order", name], capture_output=True, text=True, check=True
    ).stdout.split()
    return {"arrays": float(found[0]), "process": float(found[1])}


def main() -> None:
    if sys.argv[-1] in ORDERS:
        print(*memory(sys.argv[-1]).values())
        return
    chosen = options(__doc__)
    report = Report("order", chosen)
    contenders = [
        Contender(f"{name}, batches of {batch:,}", lambda _, name=name, batch=batch: walked(ORDERS[name](), batch))
        for name in ORDERS
        for batch in (65_536, 4_096, 256)
    ]
    found = interleave(contenders, chosen.rounds)
    rows = [
        (name, f"{series.median('nanoseconds'):.0f}", f"{1e3 * series.median('first'):.1f}")
        for name, series in found.items()
    ]
    report.add("ns an index", found, table(("", "ns an index", "ms to the first batch"), rows))
    taken = interleave([Contender(name, lambda _, name=name: memory(name)) for name in ORDERS], 1)
    rows = [
        (name, f"{series.median('arrays') / 1e6:.1f}", f"{series.median('process') / 1e6:.1f}")
        for name, series in taken.items()
    ]
    report.add("memory", taken, table(("", "MB of arrays", "MB of the process"), rows))
    report.write()


if __name__ == "__main__":
    main()
