"""A GPU that doesn't compile the kernels, or computes something else than the CPU, is not computed on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from distsgd.core.device_options import PRECISIONS
from distsgd.core.errors import ConfigurationError
from distsgd.gpu import cublas
from distsgd.gpu import kernels as gpu
from distsgd.gpu.devices import device_of_rank
from distsgd.parallel import Communicator
from tests import cublas_stand_in, emulated_kernels
from tests.strict_arrays import StrictArray
from tests.strict_device import RECORDER, StrictModule, strict_device
from tests.threads import run_on_threads

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT),
]


@pytest.fixture
def module() -> Iterator[StrictModule]:
    made = StrictModule()
    with strict_device(made, own_kernels=True):
        yield made


def device(name: str, precision: str = "float32", size: int = 1) -> list[tuple[str, list[str]]]:
    def rank(communicator: Communicator) -> tuple[str, list[str]]:
        found, notes = device_of_rank(communicator, name, precision)
        return found.name, notes

    return run_on_threads(size, rank)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_that_is_right(module: StrictModule, precision: str) -> None:
    assert device("gpu", precision) == device("auto", precision) == [("gpu:0", [])]
    assert [cublas.COMPUTE[precision]] == cublas_stand_in.COMPUTED  # once
    assert [event.what for event in RECORDER.events if event.kind == "kernel"] == ["momentum", "keep_mask"]


def changed(name: str, change: Callable[[Any], object]) -> Callable[[pytest.MonkeyPatch, StrictModule], None]:
    """Breaks a kernel: its first array argument, or its result, is changed when it is done."""

    def apply(patch: pytest.MonkeyPatch, module: StrictModule) -> None:
        inside = getattr(gpu, name)

        def wrong(*arguments: Any, **keywords: Any) -> Any:
            result = inside(*arguments, **keywords)
            change(arguments[0] if result is None else result)
            return result

        patch.setattr(gpu, name, wrong)

    return apply


def one_bit(array: Any) -> None:
    array.inside.view(np.uint32)[500] ^= 1


def one_element(array: Any) -> None:
    array.inside[7] = ~array.inside[7]


def one_sum(array: Any) -> None:
    array.inside[3, 4] += 0.01


def not_compiled(patch: pytest.MonkeyPatch, module: StrictModule) -> None:
    def refuse(code: str, options: tuple[str, ...]) -> Any:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture (-arch)\nand more")

    patch.setattr(StrictModule, "RawModule", staticmethod(refuse))


def no_library(patch: pytest.MonkeyPatch, module: StrictModule) -> None:
    def refuse(xp: Any) -> Any:
        raise OSError("libcublas.so.13: cannot open shared object file: No such file or directory")

    patch.setattr(cublas, "load", refuse)


def rounded(patch: pytest.MonkeyPatch, module: StrictModule) -> None:
    patch.setitem(cublas.COMPUTE, "float32", cublas.COMPUTE["tf32"])  # type: ignore[arg-type]


def no_headers(patch: pytest.MonkeyPatch, module: StrictModule) -> None:
    """What CuPy's own kernels are compiled with, and kernels.cu is not."""

    def refuse(self: StrictArray, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        raise RuntimeError("Failed to find CUDA headers.\nand more")

    patch.setattr(StrictArray, "__array_ufunc__", refuse)


def another_sum(patch: pytest.MonkeyPatch, module: StrictModule) -> None:
    patch.setattr(StrictArray, "__float__", lambda self: float(self.get()) + 1.0)


WRONG: dict[str, tuple[Any, str]] = {
    "update": (changed("momentum", one_bit), "computes an update that differs from the CPU's"),
    "mask": (changed("keep_mask", one_element), "computes a mask of dropout that differs from the CPU's"),
    "product": (changed("multiply", one_sum), "computes a product that differs from the CPU's"),
    "product, rounded": (rounded, "computes a product that differs from the CPU's"),
    "compiler": (not_compiled, r"can't be used \(RuntimeError: nvrtc: error: invalid value for .* \(-arch\)\)"),
    "library": (no_library, r"can't be used \(OSError: libcublas.so.13: cannot open shared object file.*\)"),
    "sum": (another_sum, "computes a sum that differs from the CPU's"),
    "headers": (no_headers, r"can't be used \(RuntimeError: Failed to find CUDA headers\.\)"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_gpu_that_is_wrong(module: StrictModule, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks, printed = WRONG[name]
    breaks(monkeypatch, module)
    with pytest.raises(
        ConfigurationError, match=rf"^device gpu: Strict \(gpu:0\) {printed}; use --device cpu to compute w"
    ):
        device("gpu", size=2)
    for found, notes in device("auto", size=2):
        assert found == "cpu"
        assert len(notes) == 1
        assert notes[0].startswith("device auto computes on the CPU: Strict (gpu:0) c")
        assert "\n" not in notes[0]


def test_on_the_cpu_nothing_is_checked() -> None:
    code = (
        "import sys; from distsgd.parallel.serial import SerialCommunicator\n"
        "from distsgd.gpu.devices import device_of_rank\n"
        "print(device_of_rank(SerialCommunicator(), 'cpu')[0], *{'distsgd.gpu.kernels', 'cupy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu"]
