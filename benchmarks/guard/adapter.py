"""All that the guard knows of distsgd besides its public names: after a renaming, only this file changes.

It imports no NumPy at the top, so that a process can call `prepare` before NumPy loads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from distsgd.core.runtime import blas_description as blas_description
from distsgd.core.runtime import cpu_probe as cpu_probe
from distsgd.core.runtime import prepare_alone as prepare_alone

prepare = prepare_alone
"""Chooses kernels and BLAS's threads, before NumPy loads."""

OPTION_NAMES = {"microbatches": "microbatches"}
"""Options by the guard's name for them, where distsgd has another one."""
RUN = "run"
"""The key of what may differ between equal runs, in records and in the summary."""


def options(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The options under distsgd's names."""
    return {OPTION_NAMES.get(name, name): value for name, value in wanted.items()}


def option_name(name: str) -> str:
    """An option as the command line spells it."""
    return "--" + OPTION_NAMES.get(name, name).replace("_", "-")


def function_objective(function: Callable[..., Any], params: Mapping[str, Any], **more: Any) -> Any:
    """A user's function with its initial parameters, and perhaps `outputs=`."""
    import distsgd

    return distsgd.FunctionObjective(function, params, **more)


def contents(result: Any) -> dict[str, Any]:
    """What `distsgd.fit` returns on rank 0: arrays by name, records, the summary."""
    return {
        "parameters": result.params,
        "state": result.state,
        "metrics": result.history,
        "summary": result.summary,
    }


# --- stand-ins for GPUs, from the tests


def compiler() -> str | None:
    """What compiles kernels.cu for the CPU; None where there is nothing."""
    from tests.emulated_kernels import COMPILER

    return COMPILER


def on_gpus(count: int, train: Callable[..., Any]) -> Any:
    """Rank 0's train(communicator=…) on so many ranks, each with a stand-in for a GPU and NCCL between them."""
    from tests.strict_device import StrictModule, strict_device
    from tests.strict_nccl import StrictNccl
    from tests.threads import run_on_threads

    with strict_device(StrictModule(gpus=count, nccl=StrictNccl()), own_kernels=True):
        return run_on_threads(count, lambda communicator: train(communicator=communicator))[0]


@contextmanager
def log_launches(log: Callable[[int, int | None, bool, str], None]) -> Iterator[None]:
    """Inside, calls log(GPU, step, whether a graph is being recorded, what) for all that a stand-in launches."""
    import numpy as np

    from tests import cublas_stand_in
    from tests.strict_arrays import KERNEL, RECORDER, Recorder, StrictArray
    from tests.strict_device import StrictModule

    def record(what: str) -> None:
        log(RECORDER.gpu, getattr(RECORDER.threads, "step", None), RECORDER.tape is not None, what)

    def shown(value: Any) -> str:
        if isinstance(value, StrictArray | np.ndarray):
            return f"{value.dtype}{list(value.shape)}"
        return repr(value.item() if isinstance(value, np.generic) else value)

    raw_module, ufunc, note = StrictModule.RawModule, StrictArray.__array_ufunc__, Recorder.note
    gemm, set_item, perform = cublas_stand_in.gemm, StrictArray.__setitem__, Recorder.perform
    copy, copying = StrictArray.copy, threading.local()  # type: ignore[attr-defined]

    def reported_module(code: str, options: tuple[str, ...]) -> Any:
        inside = raw_module(code, options)

        def get_function(name: str) -> Any:
            launch = inside.get_function(name)

            def recording(grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
                record(f"{name} {grid[0]}x{block[0]}: {', '.join(map(shown, arguments))}")
                launch(grid, block, arguments)

            return recording

        return SimpleNamespace(get_function=get_function)

    def reported_note(self: Any, kind: str, what: str | int) -> None:
        if kind != KERNEL:
            record(f"{kind} {what}")
        note(self, kind, what)

    def reported_ufunc(self: Any, function: Any, method: str, *inputs: Any, **named: Any) -> Any:
        record(f"{function.__name__} {method}: {', '.join(map(shown, inputs))}")
        return ufunc(self, function, method, *inputs, **named)

    def reported_gemm(*arguments: Any) -> None:
        _, of_a, of_b, m, n, k = arguments[:6]
        record(f"gemm {of_a}{of_b} {m}x{n}x{k}, compute type {arguments[17]}")
        gemm(*arguments)

    def reported_set_item(self: Any, index: Any, value: Any) -> None:
        record(f"set {shown(self)} to {shown(value)}")
        set_item(self, index, value)

    def reported_perform(self: Any, work: Any, *inputs: Any) -> Any:
        made = perform(self, work, *inputs)
        if isinstance(made, np.ndarray) and not getattr(copying, "now", False):
            record(f"gives {shown(made)}")
        return made

    def untold_copy(self: Any, *arguments: Any, **named: Any) -> Any:
        """One is made where memory begins at an odd address, which is left to chance on the host."""
        copying.now = True
        try:
            return copy(self, *arguments, **named)
        finally:
            copying.now = False

    with ExitStack() as patches:
        for place, name, recording in (
            (StrictModule, "RawModule", staticmethod(reported_module)),
            (StrictArray, "__array_ufunc__", reported_ufunc),
            (StrictArray, "__setitem__", reported_set_item),
            (StrictArray, "copy", untold_copy),
            (Recorder, "note", reported_note),
            (Recorder, "perform", reported_perform),
            (cublas_stand_in, "gemm", reported_gemm),
        ):
            patches.enter_context(patch.object(place, name, recording))
        yield
