"""A stand-in for CuPy that computes with NumPy and is stricter: nothing goes to a GPU or comes back unasked and unseen.

Its arrays refuse what CuPy's refuse (conversion by NumPy, NumPy's arrays as operands, ufunc methods that CuPy hasn't)
and some of what CuPy lets pass: NumPy's arrays as indices, operands of another GPU. Copies and launches are recorded,
and memory of the host must not change while a copy from it may be under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

from distsgd import device, kernels
from distsgd.kernels import cpu
from distsgd.step import TrainingStep
from tests import cublas_stand_in
from tests.emulated_kernels import EmulatedModule

TO_DEVICE, TO_HOST, KERNEL, MPI = "to device", "to host", "kernel", "mpi"


@dataclass(frozen=True)
class Event:
    """Something that a rank did: `gpu` on which, `step` in which (None between steps), and what or how many bytes."""

    kind: str
    gpu: int
    step: int | None
    what: str | int


@dataclass
class Recorder:
    """What has happened, and what each thread is about: its GPU, its step, its copies that may be under way."""

    events: list[Event] = field(default_factory=list)
    threads: threading.local = field(default_factory=threading.local)

    @property
    def gpu(self) -> int:
        return getattr(self.threads, "gpu", 0)

    def note(self, kind: str, what: str | int) -> None:
        self.events.append(Event(kind, self.gpu, getattr(self.threads, "step", None), what))

    def copying(self, host: np.ndarray) -> None:
        """From now on, to a GPU, from memory of the host that nobody may write to before the next wait."""
        self.note(TO_DEVICE, host.nbytes)
        if not hasattr(self.threads, "under_way"):
            self.threads.under_way = []
        self.threads.under_way.append((host, host.tobytes()))

    def wait(self) -> None:
        """The host waits for the GPU."""
        for host, content in getattr(self.threads, "under_way", []):
            assert host.tobytes() == content, "the host wrote to memory that was being copied to a GPU"
        self.threads.under_way = []

    def of_step(self, step: int, gpu: int = 0) -> list[tuple[str, str | int]]:
        """(kind, what) of all copies and messages of one step on one GPU, in order."""
        return [(e.kind, e.what) for e in self.events if (e.step, e.gpu) == (step, gpu) and e.kind != KERNEL]


RECORDER = Recorder()


class OutOfMemoryError(MemoryError):
    """As CuPy's is called, and as it speaks."""

    __module__ = "cupy.cuda.memory"


class MemoryPool:
    """Memory that may have a limit: here of each array."""

    limit = 0

    def set_limit(self, size: int) -> None:
        self.limit = size

    def check(self, size: int) -> None:
        if 0 < self.limit < size:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: 0 bytes).")

    used_bytes = total_bytes = staticmethod(lambda: 0)
    free_all_blocks = staticmethod(lambda: None)


POOL = MemoryPool()


class StrictArray(NDArrayOperatorsMixin):
    """An array on a GPU that only looks like one."""

    def __init__(self, inside: np.ndarray) -> None:
        assert type(inside) is np.ndarray
        POOL.check(inside.nbytes)
        self.inside, self.gpu = inside, RECORDER.gpu

    # what NumPy asks

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "reduce" and ufunc is not np.add:
            raise NotImplementedError(f"`cupy_{ufunc.__name__}.reduce` is not supported yet")
        if method not in ("__call__", "reduce") or ufunc.__name__ in ("vecdot", "matvec", "vecmat"):
            return NotImplemented
        assert set(kwargs) <= {"out", "dtype", "axis"}, kwargs
        if "out" in kwargs:
            kwargs["out"] = tuple(None if one is None else open_up(one) for one in kwargs["out"])
            assert ufunc is not np.matmul or kwargs["out"][0].flags.c_contiguous, "cuBLAS writes rows"
        return close(getattr(ufunc, method)(*map(open_up, inputs), **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(StrictModule, function.__name__, None)
        return NotImplemented if own is None else own(*args, **kwargs)

    # copies to the host, each of which waits

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        inside = open_up(self)
        RECORDER.note(TO_HOST, inside.nbytes)
        RECORDER.wait()
        if out is None:
            return inside.copy()
        assert type(out) is np.ndarray
        assert (out.shape, out.dtype) == (inside.shape, inside.dtype)
        assert out.flags.c_contiguous
        assert inside.flags.c_contiguous
        out[...] = inside
        return out

    def set(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype) == (self.shape, self.dtype)
        assert self.inside.flags.c_contiguous
        RECORDER.copying(host)
        open_up(self)[...] = host

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    # what doesn't compute

    shape = property(lambda self: self.inside.shape)
    dtype = property(lambda self: self.inside.dtype)
    ndim = property(lambda self: self.inside.ndim)
    size = property(lambda self: self.inside.size)
    nbytes = property(lambda self: self.inside.nbytes)
    itemsize = property(lambda self: self.inside.itemsize)
    T = property(lambda self: close(self.inside.T))
    data = property(lambda self: SimpleNamespace(ptr=cublas_stand_in.address_of(open_up(self))))

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self.inside.flags.c_contiguous, f_contiguous=self.inside.flags.f_contiguous)

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> StrictArray:
        found = open_up(self)[open_index(index)]
        return close(found if isinstance(found, np.ndarray) else np.asarray(found))

    def __setitem__(self, index: Any, value: Any) -> None:
        open_up(self)[open_index(index)] = open_up(value)


def open_up(value: Any) -> Any:
    """NumPy's array inside one of this thread's GPU, a Python number as it is, and nothing else."""
    if isinstance(value, StrictArray):
        assert value.gpu == RECORDER.gpu, f"an array of GPU {value.gpu} met GPU {RECORDER.gpu}"
        return value.inside
    if type(value) in (int, float, bool):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def open_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(open_index, index))
    return index if index is None or index is ... or isinstance(index, slice) else open_up(index)


def close(value: Any) -> Any:
    return value if isinstance(value, StrictArray) else StrictArray(np.asarray(value))


def _methods() -> None:
    def method(name: str) -> Callable[..., StrictArray]:
        def call(self: StrictArray, *args: Any, **kwargs: Any) -> StrictArray:
            opened = {key: open_up(v) if isinstance(v, StrictArray) else v for key, v in kwargs.items()}
            opened_args = [open_up(v) if isinstance(v, StrictArray) else v for v in args]
            assert not any(isinstance(v, np.ndarray) for v in (*args, *kwargs.values()))
            return close(getattr(open_up(self), name)(*opened_args, **opened))

        return call

    for name in ("reshape", "transpose", "ravel", "view", "astype", "copy", "max", "sum", "all"):
        setattr(StrictArray, name, method(name))

    def take(self: StrictArray, indices: StrictArray, axis: int | None = None, out: Any = None) -> StrictArray:
        return close(open_up(self).take(open_up(indices), axis, None if out is None else open_up(out)))

    StrictArray.take = take  # type: ignore[attr-defined]


_methods()


class StrictModule:
    """The part of CuPy that distsgd uses, with `gpus` GPUs."""

    ndarray = StrictArray
    get_default_memory_pool = staticmethod(lambda: POOL)

    def __init__(self, gpus: int = 1, free_bytes: int = 1 << 30, names: tuple[str, ...] = ("Strict",)) -> None:
        def use(index: int) -> None:
            assert 0 <= index < gpus
            RECORDER.threads.gpu = index

        self.cuda = SimpleNamespace(
            Device=lambda index: SimpleNamespace(use=lambda: use(index)),
            alloc_pinned_memory=bytearray,
            get_current_stream=lambda: SimpleNamespace(synchronize=RECORDER.wait, ptr=0),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            runtime=SimpleNamespace(
                getDevice=lambda: RECORDER.gpu,
                getDeviceCount=lambda: gpus,
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
        return close(np.concatenate([open_up(one) for one in arrays], axis))

    @staticmethod
    def RawModule(code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        module = EmulatedModule.compiled(code, options)

        def get_function(name: str) -> Any:
            def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
                assert len(grid) == len(block) == 1
                assert min(*grid, *block) >= 1
                RECORDER.note(KERNEL, name)
                module.launch(name, [open_up(a) if isinstance(a, StrictArray) else a for a in arguments])

            return launch

        return SimpleNamespace(get_function=get_function)


def _functions() -> None:
    def function(name: str, arrays: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> StrictArray:
            opened = [open_up(one) if at < arrays else one for at, one in enumerate(args)]
            assert not any(isinstance(one, StrictArray | np.ndarray) for one in (*args[arrays:], *kwargs.values()))
            return close(getattr(np, name)(*opened, **kwargs))

        return staticmethod(call)

    making = ("zeros", "empty", "ones", "arange")
    for name in making:
        setattr(StrictModule, name, function(name, 0))
    for name in ("zeros_like", "empty_like", "ascontiguousarray", "repeat", "sum"):
        setattr(StrictModule, name, function(name, 1))
    StrictModule.dot = function("dot", 2)  # type: ignore[attr-defined]


_functions()


def _on_strict_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """One of the CPU's kernels on arrays of this module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        assert not any(isinstance(one, np.ndarray) for one in (*args, *kwargs.values()))
        opened = [open_up(one) if isinstance(one, StrictArray) else one for one in args]
        named = {key: open_up(one) if isinstance(one, StrictArray) else one for key, one in kwargs.items()}
        result = function(*opened, **named)
        if isinstance(result, tuple):
            return tuple(close(one) if isinstance(one, np.ndarray) else one for one in result)
        return close(result) if isinstance(result, np.ndarray) else result

    return call


def cpu_kernels() -> Any:
    """The CPU's kernels for arrays of this module: with them a run has the bits of the CPU."""
    names = {name: getattr(cpu, name) for name in cpu.__all__}
    return SimpleNamespace(**{name: _on_strict_arrays(v) if callable(v) else v for name, v in names.items()})


@contextmanager
def strict_device(module: StrictModule, own_kernels: bool = False) -> Iterator[Recorder]:
    """Inside, `--device gpu` computes on `module`, with the kernels of the CPU or those of kernels.cu."""
    from distsgd.kernels import cublas, gpu

    run = TrainingStep.run

    def recorded(self: TrainingStep, step: int, *args: Any, **kwargs: Any) -> Any:
        RECORDER.threads.step = step
        try:
            return run(self, step, *args, **kwargs)
        finally:
            RECORDER.threads.step = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublas, "load", lambda xp: cublas_stand_in.library())
        patch.setattr(cublas, "_handles", cublas._Handles())
        patch.setattr(device, "_load_cupy", lambda: (module, ""))
        patch.setattr(device, "_is_installed", lambda: True)
        patch.setitem(device._MODULES, StrictArray, module)
        patch.setitem(kernels._MODULES, StrictArray, gpu if own_kernels else cpu_kernels())
        patch.setattr(TrainingStep, "run", recorded)
        RECORDER.events, RECORDER.threads = [], threading.local()
        cublas_stand_in.COMPUTED.clear()
        yield RECORDER
