"""Times a workload's matrix products on a device, each alone, and a large one: no step can be faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from benchmarks.children.protocol import report_result, settings
from benchmarks.workloads import gpu_workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import numpy as np  # noqa: E402

from distsgd.core.device import Array, Device  # noqa: E402
from distsgd.core.kernels import kernels_for  # noqa: E402
from distsgd.gpu.devices import choose_device  # noqa: E402

PARTS = 5


def seconds_of(call: Callable[[], object], seconds: float, device: Device) -> float:
    """Seconds of one call: the median of a few runs of calls that take `seconds` together, the device waited for."""

    def several(count: int) -> float:
        device.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            call()
        device.synchronize()
        return (time.perf_counter() - began) / count

    several(1)
    count = max(1, int(seconds / PARTS / several(3)))
    return median(several(count) for _ in range(PARTS))


def product(kind: str, m: int, k: int, n: int, device: Device, precision: str) -> Callable[[], object]:
    """One product with the operands' memory orders that it has in a step."""
    rng = np.random.default_rng(0)

    def array(rows: int, columns: int, transposed: bool = False) -> Array:
        values = device.put(rng.random((columns, rows) if transposed else (rows, columns), np.float32))
        return values.T if transposed else values

    a, b = array(m, k, transposed=kind == "dx"), array(k, n, transposed=kind == "dW")
    kernels, out = kernels_for(a, precision), device.xp.empty((m, n), np.float32)
    return lambda: kernels.multiply(a, b, out=out)


def main() -> None:
    work = gpu_workload(wanted["workload"], wanted["examples"], wanted["quick"], wanted["device"])
    device, _ = choose_device(wanted["device"])
    seconds = wanted["seconds"] / 5
    result = {
        name: seconds_of(product(name.split()[-1], m, k, n, device, work.precision), seconds, device)
        for name, m, k, n in work.gemms(work.batch)
    }
    side = 256 if wanted["quick"] else 8192
    largest = product("forward", side, side, side, device, work.precision)
    result["flops"] = 2 * side**3 / seconds_of(largest, seconds, device)
    report_result({**result, "metadata": {"device": str(device), "side": side}})


main()
