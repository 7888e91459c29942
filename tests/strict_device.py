"""A stand-in for CuPy that computes with NumPy and is stricter: nothing goes to a GPU or comes back unasked and unseen.

Its arrays refuse what CuPy's refuse (conversion by NumPy, NumPy's arrays as operands, ufunc methods that CuPy hasn't)
and some of what CuPy lets pass: NumPy's arrays as indices, operands of another GPU. Copies and launches are recorded,
and memory of the host must not change while a copy from it may be in flight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distsgd.core import device, kernels
from distsgd.core.kernels import cpu
from distsgd.core.random import Stream
from distsgd.gpu import devices, nccl
from distsgd.gpu.graph_steps import RecordedSteps
from distsgd.training.step import TrainingStep
from distsgd.training.steps import StepOrder
from tests import cublas_stand_in
from tests.emulated_kernels import EmulatedModule
from tests.strict_arrays import FUNCTIONS, KERNEL, POOL, RECORDER, Recorder, StrictArray, close, open_up
from tests.strict_graph import Memory, Pool, using_allocator
from tests.strict_streams import StrictEvent, StrictStream


class StrictModule:
    """The part of CuPy that distsgd uses, with `gpus` GPUs."""

    ndarray = StrictArray
    get_default_memory_pool = staticmethod(lambda: POOL)

    def __init__(
        self, gpus: int = 1, free_bytes: int = 1 << 30, names: tuple[str, ...] = ("Strict",), nccl: Any = None
    ) -> None:
        self.nccl = nccl

        def use(index: int) -> None:
            assert 0 <= index < gpus
            RECORDER.threads.gpu = index

        self.cuda = SimpleNamespace(
            Device=lambda index: SimpleNamespace(use=lambda: use(index)),
            alloc_pinned_memory=bytearray,
            get_current_stream=lambda: StrictStream(RECORDER, RECORDER.streams.current),
            Stream=lambda non_blocking: StrictStream(RECORDER, RECORDER.streams.make()),
            Event=lambda disable_timing: StrictEvent(RECORDER),
            Memory=Memory,
            MemoryPointer=lambda mem, offset: SimpleNamespace(mem=mem),
            MemoryPool=Pool,
            using_allocator=lambda malloc: using_allocator(RECORDER, malloc),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            runtime=SimpleNamespace(
                getDevice=lambda: RECORDER.gpu,
                getDeviceCount=lambda: gpus,
                deviceGetPCIBusId=lambda index: f"0000:{index:02X}:00.0",
                getDeviceProperties=lambda index: {"name": names[index % len(names)].encode()},
                memGetInfo=lambda: (free_bytes, 2 * free_bytes),
            ),
        )

    @staticmethod
    def asarray(host: Any) -> StrictArray:
        if isinstance(host, StrictArray):
            return host
        array = np.array(host)
        RECORDER.copying(host if isinstance(host, np.ndarray) else array)
        return close(array)

    @staticmethod
    def array(values: Any, dtype: Any = None) -> StrictArray:
        return StrictModule.asarray(np.array(values, dtype))

    @staticmethod
    def concatenate(arrays: Any, axis: int = 0) -> StrictArray:
        opened = [open_up(one) for one in arrays]
        return close(RECORDER.perform(lambda: np.concatenate(opened, axis)))

    @staticmethod
    def RawModule(code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        module = EmulatedModule.compiled(code, options)

        def get_function(name: str) -> Any:
            def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
                assert len(grid) == len(block) == 1
                assert min(*grid, *block) >= 1
                opened = [open_up(a, True) if isinstance(a, StrictArray) else a for a in arguments]
                RECORDER.note(KERNEL, name)
                RECORDER.write(lambda: module.launch(name, opened))

            return launch

        return SimpleNamespace(get_function=get_function)


def _functions() -> None:
    def function(name: str, arrays: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> StrictArray:
            opened = [open_up(one) if at < arrays else one for at, one in enumerate(args)]
            assert not any(isinstance(one, StrictArray | np.ndarray) for one in (*args[arrays:], *kwargs.values()))
            inputs = [one for one in opened if isinstance(one, np.ndarray)]
            return close(RECORDER.perform(lambda: getattr(np, name)(*opened, **kwargs), *inputs))

        return staticmethod(call)

    making = ("zeros", "empty", "ones", "arange")
    for name in making:
        setattr(StrictModule, name, function(name, 0))
    for name in ("zeros_like", "empty_like", "ascontiguousarray", "repeat", "sum"):
        setattr(StrictModule, name, function(name, 1))
    StrictModule.dot = function("dot", 2)  # type: ignore[attr-defined]


_functions()
FUNCTIONS.update({name: getattr(StrictModule, name) for name in vars(StrictModule) if not name.startswith("_")})


def _on_strict_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """One of the CPU's kernels on arrays of this module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        assert not any(isinstance(one, np.ndarray) for one in (*args, *kwargs.values()))
        opened = [open_up(one, True) if isinstance(one, StrictArray) else one for one in args]
        named = {key: open_up(one, True) if isinstance(one, StrictArray) else one for key, one in kwargs.items()}
        result = _as_kernels_do(function, opened, named)
        if isinstance(result, tuple):
            return tuple(close(one) if isinstance(one, np.ndarray) else one for one in result)
        return close(result) if isinstance(result, np.ndarray) else result

    return call


def _as_kernels_do(function: Callable[..., Any], args: list[Any], named: dict[str, Any]) -> Any:
    """The function's result, with numbers of the step read from where they lie, and nothing done where one is NaN."""

    def work(args: list[Any] = args, named: dict[str, Any] = named) -> Any:
        read = [_read(one) for one in args]
        return None if any(one is None for one in read) else function(*read, **named)

    tape = RECORDER.tape
    if tape is None:
        return work()
    copies = {key: one.copy() if isinstance(one, np.ndarray) else one for key, one in named.items()}
    with np.errstate(all="ignore"):
        result = work([one.copy() if isinstance(one, np.ndarray) and one.ndim else one for one in args], copies)
    results = result if isinstance(result, tuple) else (result,)
    made = [one.copy() if isinstance(one, np.ndarray) else one for one in results]
    tape.made += [one for one in made if isinstance(one, np.ndarray)]

    def again() -> None:
        found = work()
        for into, one in zip(made, found if isinstance(found, tuple) else (found,), strict=True):
            if isinstance(into, np.ndarray):
                into[...] = one

    tape.steps.append(again)
    return tuple(made) if isinstance(result, tuple) else made[0]


def _read(argument: Any) -> Any:
    """A number of the step as kernels.cu reads it (None for NaN), a random stream by its clock, all else as it is."""
    if isinstance(argument, np.ndarray) and argument.ndim == 0:
        return None if np.isnan(argument) else float(argument)
    if isinstance(argument, Stream) and argument.clock is not None:
        first, _, _, last = argument.counter
        epoch, step = (int(word) for word in argument.clock.inside)
        return Stream(argument.key, (first, epoch, step, last))
    return argument


def cpu_kernels() -> Any:
    """The CPU's kernels for arrays of this module: with them a run has the bits of the CPU."""

    def find_non_finite(values: np.ndarray, non_finite: np.ndarray) -> None:
        if not np.isfinite(values).all():
            non_finite[0] = 1.0

    def find_non_finite_losses(records: np.ndarray, non_finite: np.ndarray, like: np.ndarray) -> None:
        find_non_finite(records[:, 0], non_finite)

    def hold_after_non_finite(non_finite: np.ndarray, numbers: np.ndarray, like: np.ndarray) -> None:
        if non_finite.any():
            numbers[:] = np.nan

    names = {name: getattr(cpu, name) for name in cpu.__all__}
    made_for_graphs = (find_non_finite, find_non_finite_losses, hold_after_non_finite)
    names |= {function.__name__: function for function in made_for_graphs}
    found = {name: _on_strict_arrays(v) if callable(v) else v for name, v in names.items()}
    return SimpleNamespace(**found, sum_of_rows=_sum_of_rows)


def _sum_of_rows(rows: Any, sums: Any) -> Callable[[StrictArray, float], None]:
    def add(out: StrictArray, divisor: float) -> None:
        opened, into = [open_up(row) for row in rows], open_up(out, True)

        def work() -> None:
            there: list[np.ndarray] = []
            for row, count in zip(opened, sums, strict=True):
                there.append(row)
                for _ in range(count):
                    right = there.pop()
                    there.append(there.pop() + right)
            np.divide(there[0], divisor, out=into)

        RECORDER.write(work)

    return add


@contextmanager
def strict_device(module: StrictModule, own_kernels: bool = False) -> Iterator[Recorder]:
    """Inside, `--device gpu` computes on `module`, with the kernels of the CPU or those of kernels.cu."""
    from distsgd.gpu import cublas
    from distsgd.gpu import kernels as gpu

    def recorded(kind: Any) -> Any:
        advance = kind.advance

        def call(self: Any, order: StepOrder, *args: Any, **kwargs: Any) -> Any:
            RECORDER.threads.step = order.step
            try:
                return advance(self, order, *args, **kwargs)
            finally:
                RECORDER.threads.step = None

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublas, "load", lambda xp: cublas_stand_in.library())
        patch.setattr(cublas, "HANDLES", cublas.Handles())
        patch.setattr(devices, "load_cupy", lambda: (module, ""))
        for owner in (device, devices):
            patch.setattr(owner, "has_cupy", lambda: True)
        patch.setitem(device.MODULES, StrictArray, module)
        patch.setitem(kernels.MODULES, StrictArray, gpu if own_kernels else cpu_kernels())
        patch.setattr(nccl, "load_nccl", lambda: (module.nccl, "" if module.nccl else "NCCL isn't installed"))
        for kind in (TrainingStep, RecordedSteps):
            patch.setattr(kind, "advance", recorded(kind))
        cublas_stand_in.COMPUTED.clear()
        RECORDER.events, RECORDER.waits, RECORDER.threads, RECORDER.addresses = [], [], threading.local(), {}
        yield RECORDER
