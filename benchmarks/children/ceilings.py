"""Times what a step can't be faster than: its matrix products, each alone, and copies in memory and in the cache.

Operands lie in memory as in a step (a minibatch is a transposed view of rows; the others are in C order), outputs are
there already, and each product is repeated with nothing between. Under mpirun all ranks measure at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.children.protocol import report_result, settings
from benchmarks.workloads import workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import numpy as np  # noqa: E402

from distsgd.parallel import start  # noqa: E402

PARTS = 5
LARGE, SMALL = 1 << 27, 1 << 18
"""Bytes of a copy that no cache holds, and of one inside a core's own."""


def seconds_of(call: Callable[[], object], seconds: float) -> float:
    """Seconds of one call: the median of a few runs of calls that take `seconds` together."""
    call()
    began = time.perf_counter()
    call()
    each = time.perf_counter() - began
    count = max(1, int(seconds / PARTS / each))
    runs = []
    for _ in range(PARTS):
        began = time.perf_counter()
        for _ in range(count):
            call()
        runs.append((time.perf_counter() - began) / count)
    return float(np.median(runs))


def product(name: str, m: int, k: int, n: int, first: bool) -> Callable[[], object]:
    """One matrix product with the operands' memory orders that it has in a step."""
    rng = np.random.default_rng(0)

    def array(rows: int, columns: int, transposed: bool = False) -> Any:
        shape = (columns, rows) if transposed else (rows, columns)
        values = rng.random(shape, np.float32)
        return values.T if transposed else values

    kind = name.split()[-1]
    if kind == "forward":  # W x
        a, b = array(m, k), array(k, n, transposed=first)
    elif kind == "dW":  # dy xᵀ
        a, b = array(m, k), array(k, n, transposed=not first)
    else:  # Wᵀ dy
        a, b = array(m, k, transposed=True), array(k, n)
    out = np.empty((m, n), np.float32)
    return lambda: np.matmul(a, b, out=out)


def copy(size: int) -> Callable[[], object]:
    """A copy of so many bytes."""
    source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
    return lambda: np.copyto(target, source)


def main() -> None:
    communicator = start()
    work = workload(wanted["workload"])
    seconds = wanted["seconds"] / 10
    result: dict[str, float] = {}
    products = work.gemms(work.batch // wanted["microbatches"])
    first = products[0][0].split()[0]
    for name, m, k, n in products:
        call = product(name, m, k, n, name.startswith(first))
        communicator.barrier()
        result[name] = seconds_of(call, seconds)
    for name, size in (("copy, memory", LARGE), ("copy, cache", SMALL)):
        call = copy(size)
        communicator.barrier()
        result[name] = seconds_of(call, seconds) / size
    found = communicator.gather_object(result)
    if found is not None:  # as if all ranks' work were one rank's
        together = {name: 1 / sum(1 / one[name] for one in found) for name in result}
        report_result({**together, "metadata": {"blas": runtime.blas_description(), "ranks": communicator.size}})


main()
