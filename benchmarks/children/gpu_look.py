"""Looks at a device as distsgd does before a run: versions, memory, and each self check in each precision."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.children.protocol import report_result, settings

_LIBRARIES = ("libcublas.so", "libcublasLt.so", "libnvrtc.so", "libcudart.so", "libnccl.so")


def look(name: str) -> dict[str, Any]:
    """What there is of the device of this name, and how each check ended; `right` where float32's are all right.

    Raises ConfigurationError where there is no such device.
    """
    from distsgd.core.device_options import FULL, PRECISIONS
    from distsgd.gpu.devices import choose_device

    device, _ = choose_device(name)
    checks = [check for p in ((FULL,) if device.host_memory else PRECISIONS) for check in checked(device, p)]
    return {
        "device": str(device),
        "versions": {} if device.host_memory else versions(device.xp),
        "facts": {} if device.host_memory else facts(device),
        "checks": checks,
        "libraries": libraries(),
        "right": all(check["right"] for check in checks if check["precision"] == FULL),
    }


def checked(device: Any, precision: str) -> Iterable[dict[str, Any]]:
    """Each self check of distsgd.gpu in this precision: whether it is right, its seconds, and its error."""
    from distsgd.core.errors import first_line
    from distsgd.gpu.self_check import CHECKS

    device = device if device.host_memory else device.multiplying_in(precision)
    for what, check in CHECKS.items():
        began, error = time.perf_counter(), None
        try:
            right = check(device)
        except Exception as raised:  # whatever the compiler, the driver or a library comes up with is the finding
            right, error = False, f"{type(raised).__name__}: {first_line(raised)}"
        seconds = time.perf_counter() - began
        yield {"precision": precision, "what": what, "right": right, "seconds": seconds, "error": error}


def versions(cupy: Any) -> dict[str, str]:
    """Of CuPy, of what it is built with and of the driver; why, where one doesn't tell."""
    import numpy

    from distsgd.gpu.nccl import load_nccl, version_words

    def of_nccl() -> str:
        nccl, problem = load_nccl()
        return problem if nccl is None else version_words(int(nccl.get_version()))

    def cuda(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}"

    return {
        "Python": platform.python_version(),
        "NumPy": numpy.__version__,
        "CuPy": _told(lambda: cupy.__version__),
        "CUDA's runtime": _told(lambda: cuda(cupy.cuda.runtime.runtimeGetVersion())),
        "the driver's CUDA": _told(lambda: cuda(cupy.cuda.runtime.driverGetVersion())),
        "NVRTC": _told(lambda: ".".join(map(str, cupy.cuda.nvrtc.getVersion()))),
        "NCCL": _told(of_nccl),
    }


def facts(device: Any) -> dict[str, str]:
    """What results and speed depend on."""
    runtime = device.xp.cuda.runtime
    return {
        "GPUs": _told(lambda: runtime.getDeviceCount()),
        "memory": _told(lambda: "{:.1f} GB free of {:.1f}".format(*(size / 1e9 for size in runtime.memGetInfo()))),
        "compute capability": _told(lambda: device.xp.cuda.Device(device.index).compute_capability),
    }


def _told(ask: Callable[[], object]) -> str:
    try:
        return str(ask())
    except Exception as error:
        return f"unknown ({type(error).__name__})"


def libraries() -> list[str]:
    """The files of CUDA's libraries that this process has loaded (Linux)."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            files = {line.split()[-1] for line in maps}
    except OSError:
        return []
    return sorted(file for file in files if any(name in file for name in _LIBRARIES))


def main() -> None:
    wanted = settings()
    from distsgd.core import runtime
    from distsgd.core.errors import DistsgdError

    runtime.prepare_alone()
    try:
        found = look(wanted["device"])
    except DistsgdError as error:
        sys.exit(str(error))
    report_result(found)
    sys.exit(0 if found["right"] else 1)


if __name__ == "__main__":
    main()
