"""Arrays of the stand-in for CuPy, and a record of what is done with them; see strict_device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tests.strict_graph import Graph, Tape
from tests.strict_streams import Streams, StrictStream

TO_DEVICE, TO_HOST, KERNEL, MPI, NCCL, GRAPH = "to device", "to host", "kernel", "mpi", "nccl", "graph"


@dataclass(frozen=True)
class Event:
    """Something that a rank did: `gpu` on which, `step` in which (None between steps), and what or how many bytes."""

    kind: str
    gpu: int
    step: int | None
    what: str | int


@dataclass
class Recorder:
    """What has happened, and what each thread is about: its GPU, its step, its copies that may be in flight.

    waits       the steps in which the host has waited for the GPU, once each time; None between steps
    addresses   arrays whose place in memory was asked for, by that place: (the array, its GPU)
    """

    events: list[Event] = field(default_factory=list)
    waits: list[int | None] = field(default_factory=list)
    threads: threading.local = field(default_factory=threading.local)
    addresses: dict[int, tuple[np.ndarray, int]] = field(default_factory=dict)

    @property
    def gpu(self) -> int:
        return getattr(self.threads, "gpu", 0)

    def note(self, kind: str, what: str | int) -> None:
        self.events.append(Event(kind, self.gpu, getattr(self.threads, "step", None), what))

    def copying(self, host: np.ndarray) -> None:
        """From now on, to a GPU, from memory of the host that no one may write to before the host has waited."""
        assert self.tape is None, "a copy can't be recorded"
        self.note(TO_DEVICE, host.nbytes)
        self._unchanged()
        self.in_flight.append((host, host.tobytes(), *self.streams.now))

    def arriving(self, host: np.ndarray, content: np.ndarray) -> None:
        """From now on, to the host, where it can be read when the host has waited."""
        host[...] = np.frombuffer(b"\xff" * host.itemsize, host.dtype)[0]
        self.on_the_way.append((host, content, *self.streams.now))

    @property
    def in_flight(self) -> list[tuple[np.ndarray, bytes, int, int]]:
        """Copies to a GPU that the host doesn't know the end of: from where, what, and when on which stream."""
        return self.threads.__dict__.setdefault("in_flight", [])

    @property
    def on_the_way(self) -> list[tuple[np.ndarray, np.ndarray, int, int]]:
        """Copies to the host: where to, what, and when on which stream."""
        return self.threads.__dict__.setdefault("on_the_way", [])

    def _unchanged(self) -> None:
        for host, content, _, _ in self.in_flight:
            assert host.tobytes() == content, "the host wrote to memory that was being copied to a GPU"

    @property
    def streams(self) -> Streams:
        """This thread's streams; those of the recording where there is one."""
        if self.tape is not None:
            return self.tape.streams
        return self.threads.__dict__.setdefault("streams", Streams())

    @property
    def tape(self) -> Tape | None:
        """What this thread records; None where everything is done at once."""
        return self.threads.__dict__.get("tape")

    def begin_tape(self) -> None:
        pool = self.threads.__dict__.get("pool")
        assert pool is not None, "the arrays of a recording need a pool of their own"
        self.threads.tape = Tape(pool, self.streams)

    def end_tape(self) -> Graph:
        tape, self.threads.tape = self.threads.tape, None
        return Graph(self, tape)

    def perform(self, work: Callable[[], Any], *inputs: np.ndarray) -> Any:
        """work(), which makes a new array or a view of an input; while a graph is recorded, see Tape."""
        return work() if self.tape is None else self.tape.perform(work, *inputs)

    def write(self, work: Callable[[], Any]) -> None:
        """work(), which writes to arrays that are there; while a graph is recorded, only later."""
        if self.tape is None:
            work()
        else:
            self.tape.steps.append(work)

    def wait(self, reported: dict[int, int] | None = None) -> None:
        """The host waits for the GPU: for its current stream, or for what an event marks."""
        assert self.tape is None, "waiting can't be recorded"
        self.waits.append(getattr(self.threads, "step", None))
        known = self.streams.host_waits(reported)
        self._unchanged()
        for host, content, stream, time in self.on_the_way:
            if known.get(stream, -1) >= time:
                host[...] = content
        for copies in (self.in_flight, self.on_the_way):
            copies[:] = [copy for copy in copies if known.get(copy[2], -1) < copy[3]]
        self.threads.busy = False

    @property
    def busy(self) -> bool:
        """Whether this thread has asked its GPU for something that it hasn't waited for."""
        return getattr(self.threads, "busy", False)

    def address(self, array: np.ndarray) -> int:
        """Where an array of this thread's GPU lies; kept, so that nothing else comes to lie there."""
        at = array.ctypes.data
        whole = array if array.flags.c_contiguous else array.T
        assert whole.flags.c_contiguous, "memory with gaps"
        known = self.addresses.get(at)
        if known is None or known[0].nbytes < array.nbytes:
            self.addresses[at] = (whole.reshape(-1).view(np.uint8), self.gpu)
        return at

    def memory(self, at: int, size: int) -> np.ndarray:
        """So many bytes from this place on, which have to be inside one array of this thread's GPU."""
        known = self.addresses.get(at)
        for start, (array, gpu) in [(at, known)] if known else list(self.addresses.items()):
            if start <= at and at + size <= start + array.nbytes and gpu == self.gpu:
                return array[at - start : at - start + size]
        raise AssertionError(f"{size} bytes at {at} are not inside an array of GPU {self.gpu}")

    def of_step(self, step: int, gpu: int = 0) -> list[tuple[str, str | int]]:
        """(kind, what) of all copies and messages of one step on one GPU, in order."""
        return [(e.kind, e.what) for e in self.events if (e.step, e.gpu) == (step, gpu) and e.kind != KERNEL]


RECORDER = Recorder()

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""What NumPy's functions, given arrays of a GPU, pass them on to; by name."""


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
        opened = [open_up(one) for one in inputs]
        if "out" in kwargs:
            (out,) = kwargs["out"]
            assert ufunc is not np.matmul or out.flags.c_contiguous, "cuBLAS writes rows"
            kwargs["out"] = open_up(out, True)
            RECORDER.write(lambda: getattr(ufunc, method)(*opened, **kwargs))
            return out
        return close(RECORDER.perform(lambda: getattr(ufunc, method)(*opened, **kwargs)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = FUNCTIONS.get(function.__name__)
        return NotImplemented if own is None else own(*args, **kwargs)

    # copies to the host, each of which waits

    def get(self, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        inside = open_up(self)
        assert RECORDER.tape is None, "a copy can't be recorded"
        RECORDER.note(TO_HOST, inside.nbytes)
        if not blocking:
            assert type(out) is np.ndarray
            assert (out.shape, out.dtype) == (inside.shape, inside.dtype)
            RECORDER.arriving(out, inside.copy())
            return out
        RECORDER.wait()
        if out is None:
            if not inside.flags.c_contiguous:
                with StrictStream(RECORDER, RECORDER.streams.current):
                    pass  # CuPy makes its copy without gaps there
            return inside.copy()
        assert type(out) is np.ndarray
        assert (out.shape, out.dtype) == (inside.shape, inside.dtype)
        assert out.flags.c_contiguous
        assert inside.flags.c_contiguous
        out[...] = inside
        return out

    def set(self, host: np.ndarray, stream: StrictStream | None = None) -> None:
        if stream is not None:
            before, RECORDER.streams.current = RECORDER.streams.current, stream.ptr
            try:
                self.set(host)
            finally:
                RECORDER.streams.current = before
            return
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype) == (self.shape, self.dtype)
        assert self.inside.flags.c_contiguous
        RECORDER.copying(host)
        open_up(self, True)[...] = host

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
    data = property(lambda self: SimpleNamespace(ptr=RECORDER.address(self.inside)))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        place = (self.inside.ctypes.data, False)
        assert self.inside.flags.c_contiguous
        return {"shape": self.shape, "typestr": self.dtype.str, "data": place, "version": 3}

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self.inside.flags.c_contiguous, f_contiguous=self.inside.flags.f_contiguous)

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> StrictArray:
        if isinstance(index, int):  # as CuPy has it: a view without dimensions, and no number
            return close(self.inside[index : index + 1 or None].reshape(self.inside.shape[1:]))
        inside = self.inside if isinstance(index, slice) else open_up(self)  # a slice is a view, and does nothing
        place = open_index(index)
        return close(RECORDER.perform(lambda: np.asarray(inside[place]), inside))

    def __setitem__(self, index: Any, value: Any) -> None:
        inside = self.inside
        open_up(close(inside[index] if isinstance(index, slice) else inside), True)
        place, opened = open_index(index), open_up(value)
        RECORDER.write(lambda: inside.__setitem__(place, opened))


def open_up(value: Any, writes: bool = False) -> Any:
    """NumPy's array inside one of this thread's GPU, to read or write, a Python number as it is, and nothing else."""
    if isinstance(value, StrictArray):
        assert value.gpu == RECORDER.gpu, f"an array of GPU {value.gpu} met GPU {RECORDER.gpu}"
        RECORDER.threads.busy = True
        RECORDER.streams.use(value.inside, writes)
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
            if name in ("reshape", "transpose", "ravel", "view"):
                view: np.ndarray = getattr(self.inside, name)(*opened_args, **opened)
                if view.size == 0 or np.may_share_memory(view, self.inside):
                    return close(view)  # nothing is read
            inside = open_up(self)
            return close(RECORDER.perform(lambda: getattr(inside, name)(*opened_args, **opened), inside))

        return call

    for name in ("reshape", "transpose", "ravel", "view", "astype", "copy", "max", "sum", "all"):
        setattr(StrictArray, name, method(name))

    def take(self: StrictArray, indices: StrictArray, axis: int | None = None, out: Any = None) -> StrictArray:
        inside, places = open_up(self), open_up(indices)
        if out is None:
            return close(RECORDER.perform(lambda: inside.take(places, axis)))
        into = open_up(out, True)
        RECORDER.write(lambda: inside.take(places, axis, into))
        return out

    StrictArray.take = take  # type: ignore[attr-defined]


_methods()
