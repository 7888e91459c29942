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
from distsgd.random import Stream as Stream64
from distsgd.under_way import Steps
from tests.emulated_kernels import EmulatedModule
from tests.strict_graph import Event as StreamEvent
from tests.strict_graph import Pool, Stream, Tape, using_allocator

TO_DEVICE, TO_HOST, KERNEL, MPI, GRAPH = "to device", "to host", "kernel", "mpi", "graph"


@dataclass(frozen=True)
class Event:
    """Something that a rank did: `gpu` on which, `step` in which (None between steps), and what or how many bytes."""

    kind: str
    gpu: int
    step: int | None
    what: str | int


@dataclass
class Recorder:
    """What has happened, and what each thread is about: its GPU, its step, its copies that may be under way.

    waits   the steps in which the host has waited for the GPU, once each time; None between steps
    """

    events: list[Event] = field(default_factory=list)
    waits: list[int | None] = field(default_factory=list)
    threads: threading.local = field(default_factory=threading.local)

    @property
    def gpu(self) -> int:
        return getattr(self.threads, "gpu", 0)

    def note(self, kind: str, what: str | int) -> None:
        self.events.append(Event(kind, self.gpu, getattr(self.threads, "step", None), what))

    def copying(self, host: np.ndarray) -> None:
        """From now on, to a GPU, from memory of the host that nobody may write to before the next wait."""
        assert self.tape is None, "a copy can't be recorded"
        self.note(TO_DEVICE, host.nbytes)
        if not hasattr(self.threads, "under_way"):
            self.threads.under_way = []
        self.threads.under_way.append((host, host.tobytes()))

    @property
    def tape(self) -> Tape | None:
        """What this thread records; None where everything is done at once."""
        return getattr(self.threads, "tape", None)

    @property
    def stream(self) -> Stream:
        return getattr(self.threads, "stream", None) or Stream(self, non_blocking=False)

    def arriving(self, host: np.ndarray, content: np.ndarray) -> None:
        """From now on, to the host, where it can be read behind the next wait."""
        host[...] = np.frombuffer(b"\xff" * host.nbytes, host.dtype).reshape(host.shape)
        if not hasattr(self.threads, "on_the_way"):
            self.threads.on_the_way = []
        self.threads.on_the_way.append((host, content))

    def perform(self, work: Callable[[], Any], *inputs: np.ndarray) -> Any:
        """work(), which makes a new array or a view of an input; while a graph is recorded, see Tape."""
        return work() if self.tape is None else self.tape.perform(work, *inputs)

    def write(self, work: Callable[[], Any]) -> None:
        """work(), which writes to arrays that are there; while a graph is recorded, only later."""
        if self.tape is None:
            work()
        else:
            self.tape.steps.append(work)

    def wait(self) -> None:
        """The host waits for the GPU."""
        assert self.tape is None, "waiting can't be recorded"
        self.waits.append(getattr(self.threads, "step", None))
        for host, content in getattr(self.threads, "on_the_way", []):
            host[...] = content
        self.threads.on_the_way = []
        for host, content in getattr(self.threads, "under_way", []):
            assert host.tobytes() == content, "the host wrote to memory that was being copied to a GPU"
        self.threads.under_way = []

    def of_step(self, step: int, gpu: int = 0) -> list[tuple[str, str | int]]:
        """(kind, what) of all copies and messages of one step on one GPU, in order."""
        return [(e.kind, e.what) for e in self.events if (e.step, e.gpu) == (step, gpu) and e.kind != KERNEL]


RECORDER = Recorder()


class StrictArray(NDArrayOperatorsMixin):
    """An array on a GPU that only looks like one."""

    def __init__(self, inside: np.ndarray) -> None:
        assert type(inside) is np.ndarray
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
        opened = [open_up(one) for one in inputs]
        if "out" in kwargs:
            (out,) = kwargs["out"]
            assert ufunc is not np.matmul or out.flags.c_contiguous, "cuBLAS writes rows"
            kwargs["out"] = open_up(out)
            RECORDER.write(lambda: getattr(ufunc, method)(*opened, **kwargs))
            return out
        return close(RECORDER.perform(lambda: getattr(ufunc, method)(*opened, **kwargs)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(StrictModule, function.__name__, None)
        return NotImplemented if own is None else own(*args, **kwargs)

    # copies to the host, each of which waits

    def get(self, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        inside = open_up(self)
        RECORDER.note(TO_HOST, inside.nbytes)
        if not blocking:
            assert type(out) is np.ndarray
            assert (out.shape, out.dtype) == (inside.shape, inside.dtype)
            RECORDER.arriving(out, inside.copy())
            return out
        RECORDER.wait()
        if out is None:
            return inside.copy()
        assert type(out) is np.ndarray
        assert (out.shape, out.dtype) == (inside.shape, inside.dtype)
        assert out.flags.c_contiguous
        assert inside.flags.c_contiguous
        out[...] = inside
        return out

    def set(self, host: np.ndarray, stream: Stream | None = None) -> None:
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype) == (self.shape, self.dtype)
        assert self.inside.flags.c_contiguous
        if stream is not None:
            RECORDER.note(TO_DEVICE, host.nbytes)
            stream.copy_later(open_up(self), host)
            return
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

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self.inside.flags.c_contiguous, f_contiguous=self.inside.flags.f_contiguous)

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> StrictArray:
        inside, place = open_up(self), open_index(index)
        if isinstance(place, int):
            return close(inside[place : place + 1].reshape(inside.shape[1:]))
        return close(RECORDER.perform(lambda: np.asarray(inside[place]), inside))

    def __setitem__(self, index: Any, value: Any) -> None:
        inside, place, opened = open_up(self), open_index(index), open_up(value)
        RECORDER.write(lambda: inside.__setitem__(place, opened))


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
            inside = open_up(self)
            return close(RECORDER.perform(lambda: getattr(inside, name)(*opened_args, **opened), inside))

        return call

    for name in ("reshape", "transpose", "ravel", "view", "astype", "copy", "max", "sum", "all"):
        setattr(StrictArray, name, method(name))

    def take(self: StrictArray, indices: StrictArray, axis: int | None = None, out: Any = None) -> StrictArray:
        inside, places = open_up(self), open_up(indices)
        if out is None:
            return close(RECORDER.perform(lambda: inside.take(places, axis)))
        into = open_up(out)
        RECORDER.write(lambda: inside.take(places, axis, into))
        return out

    StrictArray.take = take  # type: ignore[attr-defined]


_methods()


class StrictModule:
    """The part of CuPy that distsgd uses, with `gpus` GPUs."""

    ndarray = StrictArray

    def __init__(self, gpus: int = 1, free_bytes: int = 1 << 30, names: tuple[str, ...] = ("Strict",)) -> None:
        def use(index: int) -> None:
            assert 0 <= index < gpus
            RECORDER.threads.gpu = index

        self.cuda = SimpleNamespace(
            Device=lambda index: SimpleNamespace(use=lambda: use(index)),
            alloc_pinned_memory=bytearray,
            get_current_stream=lambda: RECORDER.stream,
            Stream=lambda non_blocking: Stream(RECORDER, non_blocking),
            Event=lambda disable_timing: StreamEvent(RECORDER),
            MemoryPool=Pool,
            using_allocator=lambda malloc: using_allocator(RECORDER, malloc),
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
        opened = [open_up(one) for one in arrays]
        return close(RECORDER.perform(lambda: np.concatenate(opened, axis)))

    @staticmethod
    def RawModule(code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        module = EmulatedModule.compiled(code, options)

        def get_function(name: str) -> Any:
            def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
                assert len(grid) == len(block) == 1
                assert min(*grid, *block) >= 1
                opened = [open_up(a) if isinstance(a, StrictArray) else a for a in arguments]
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


def _on_strict_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """One of the CPU's kernels on arrays of this module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        assert not any(isinstance(one, np.ndarray) for one in (*args, *kwargs.values()))
        opened = [open_up(one) if isinstance(one, StrictArray) else one for one in args]
        named = {key: open_up(one) if isinstance(one, StrictArray) else one for key, one in kwargs.items()}
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
    if isinstance(argument, Stream64) and argument.clock is not None:
        first, _, _, last = argument.counter
        epoch, step = (int(word) for word in open_up(argument.clock))
        return Stream64(argument.key, (first, epoch, step, last))
    return argument


def cpu_kernels() -> Any:
    """The CPU's kernels for arrays of this module: with them a run has the bits of the CPU."""

    def find_trouble(values: np.ndarray, records: np.ndarray | None, trouble: np.ndarray) -> None:
        if not (np.isfinite(values).all() and (records is None or np.isfinite(records[:, 0]).all())):
            trouble[0] = 1.0

    def hold_after_trouble(trouble: np.ndarray, numbers: np.ndarray, like: np.ndarray) -> None:
        if trouble[0]:
            numbers[:] = np.nan

    names = {name: getattr(cpu, name) for name in cpu.__all__}
    names |= {"find_trouble": find_trouble, "hold_after_trouble": hold_after_trouble}
    return SimpleNamespace(**{name: _on_strict_arrays(v) if callable(v) else v for name, v in names.items()})


@contextmanager
def strict_device(module: StrictModule, own_kernels: bool = False) -> Iterator[Recorder]:
    """Inside, `--device gpu` computes on `module`, with the kernels of the CPU or those of kernels.cu."""
    from distsgd.kernels import gpu

    advance = Steps.advance

    def recorded(self: Steps, step: int, *args: Any, **kwargs: Any) -> Any:
        RECORDER.threads.step = step
        try:
            return advance(self, step, *args, **kwargs)
        finally:
            RECORDER.threads.step = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_load_cupy", lambda: (module, ""))
        patch.setattr(device, "_is_installed", lambda: True)
        patch.setitem(device._MODULES, StrictArray, module)
        patch.setitem(kernels._MODULES, StrictArray, gpu if own_kernels else cpu_kernels())
        patch.setattr(Steps, "advance", recorded)
        RECORDER.events, RECORDER.waits, RECORDER.threads = [], [], threading.local()
        yield RECORDER
