"""Where arrays live, which module computes on them, and the way from one place to another."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.core.errors import ConfigurationError, first_line, lack_of_memory

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

FULL = "float32"
PRECISIONS = (FULL, "tf32", "bfloat16", "float16")
"""What a GPU may round numbers of float32 to as it multiplies matrices; it adds in float32 always."""

_ALIGNMENT = 256
"""Bytes: what CUDA's own allocations are multiples of."""

_MODULES: dict[type, Any] = {}
"""The array module of each type of array that isn't NumPy's; filled when a GPU is chosen."""

_CONSTANTS: dict[tuple[Any, ...], Array] = {}

_STREAMS = threading.local()
"""Each thread's own stream on each GPU that it uses."""

_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where Linux, or Linux under Windows, has NVIDIA's driver."""

_INSTALL = "pip install 'distsgd[cuda13]', or 'distsgd[cuda12]' for a driver of CUDA 12"


def array_module(array: Array) -> Any:
    """The module that computes on this array: NumPy, or that of the GPU it lies on."""
    return _MODULES.get(type(array), np)


def is_on_host(value: Any) -> bool:
    """Whether this is no array of a GPU."""
    return type(value) not in _MODULES


def described(value: object, shape: bool = False) -> str:
    """The kind of array or object that this is, for messages."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type(value).__name__
    owner = "NumPy's" if is_on_host(value) else "the GPU's"
    return f"{owner} {value.dtype}" + (f" of shape {value.shape}" if shape else "")


def to_host(array: Array, out: Array | None = None) -> Array:
    """The array itself where NumPy has it, else a copy in the host's memory; in `out` where that is given.

    The copy is there when this returns: all that computes it has ended.
    """
    if is_on_host(array):
        if out is None:
            return array
        out[...] = array
        return out
    return array.get(out=out)  # type: ignore[attr-defined, no-any-return]


def constants(like: Array, values: tuple[float, ...]) -> Array:
    """These numbers where `like` lies, in its dtype; to a GPU they are copied once. Read only."""
    xp = array_module(like)
    if xp is np:
        return np.array(values, like.dtype)
    key = (xp, xp.cuda.runtime.getDevice(), like.dtype, values)
    if key not in _CONSTANTS:
        _CONSTANTS[key] = xp.array(values, dtype=like.dtype)
    return _CONSTANTS[key]


def host_copy(array: Array) -> Array:
    """A copy of its own in the host's memory."""
    return array.copy() if is_on_host(array) else to_host(array)


@dataclass(frozen=True)
class Device:
    """A place that computes. `xp` is the array module of its arrays, `index` the number of a GPU on its host.

    description   what kind of GPU it is; empty for the CPU
    bus           where a GPU sits in its host, which names it to all processes; its number may differ between them
    precision     what it multiplies float32 in
    """

    name: str
    xp: Any
    index: int = 0
    description: str = ""
    bus: str = ""
    precision: str = FULL

    @property
    def is_cpu(self) -> bool:
        """Whether arrays are NumPy's."""
        return self.xp is np

    def __str__(self) -> str:
        return f"{self.description} ({self.name})" if self.description else self.name

    def multiplying_in(self, precision: str) -> Device:
        """This device with another precision of products. Raises ConfigurationError for the CPU, which has one."""
        if self.is_cpu and precision != FULL:
            raise ConfigurationError(
                f"precision {precision}: the CPU multiplies in float32 alone; leave --precision out, or compute on a "
                "GPU with --device gpu"
            )
        return replace(self, precision=precision)

    def use(self) -> None:
        """From now on this thread's new arrays lie here, and what it asks for is done in an order of its own.

        That is a stream other than CUDA's default, which can't be recorded.
        """
        if not self.is_cpu:
            self.xp.cuda.Device(self.index).use()
            streams = _STREAMS.__dict__.setdefault("of_thread", {})
            if (self.xp, self.index) not in streams:
                stream = streams[self.xp, self.index] = self.xp.cuda.Stream(non_blocking=True)
                # For good. The end of any `with` of another stream, of which CuPy has some inside, comes back to what
                # was entered, not to what was last used: that would be the default stream.
                stream.__enter__()
            streams[self.xp, self.index].use()

    def synchronize(self) -> None:
        """Waits until all that this thread has asked for is done."""
        if not self.is_cpu:
            self.xp.cuda.get_current_stream().synchronize()

    def put(self, array: Array) -> Array:
        """An array of the host, here: a copy, but for the CPU."""
        return array if self.is_cpu else self.xp.asarray(array)

    def holds(self, array: Array) -> bool:
        """Whether the array lies in the memory that this device computes in."""
        return is_on_host(array) == self.is_cpu

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """A new array here, its values undefined."""
        return self.xp.empty(shape, dtype)  # type: ignore[no-any-return]

    def take(self, array: Array, rows: Array, out: Array | None = None) -> Array:
        """Rows of an array that lies here, by valid indices; in `out` where it is given."""
        if self.is_cpu:  # without "clip" NumPy takes into memory of its own first, in case an index is wrong
            return array.take(rows, axis=0, out=out, mode="clip")
        return array.take(rows, axis=0, out=out)

    def number(self, value: Any) -> Any:
        """A number that was computed here: a Python float, or an array without dimensions that is not read yet.

        Raises TypeError or ValueError for what is not one number.
        """
        if is_on_host(value):
            return float(value)
        if value.size != 1 or value.dtype.kind not in "fiu":
            raise ValueError("not one number")
        return value.reshape(())

    def check_outputs(self, outputs: Array, inputs: Array) -> None:
        """Raises ConfigurationError where a model's outputs are not arrays of this device like its inputs."""
        if not self.is_cpu and (type(outputs) is not type(inputs) or outputs.dtype != inputs.dtype):
            raise ConfigurationError(
                f"the model's outputs must be {described(inputs)} as its inputs are, got {described(outputs)}; a layer "
                "has to compute with the arrays and the dtype that it is given"
            )

    def aligned(self, array: Array) -> Array:
        """The array, or on a GPU a copy of it where it begins inside of other memory, at an odd address.

        cuBLAS chooses what it multiplies with by the operands' alignment, too; and where in its rank's memory a
        microbatch begins depends on how many ranks there are.
        """
        if self.is_cpu or array.data.ptr % _ALIGNMENT == 0:  # type: ignore[attr-defined]
            return array
        return array.copy()

    def host_buffer(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Memory of the host for what goes to this device or comes from it; for a GPU it is pinned, for speed."""
        size = prod(shape) * dtype.itemsize
        if self.is_cpu or size == 0:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self.xp.cuda.alloc_pinned_memory(size))

    def check_free_memory(self, needed: int, what: str) -> None:
        """Raises OutOfMemoryError where `needed` bytes for `what` find no room on this GPU; the CPU isn't asked."""
        if self.is_cpu:
            return
        try:
            self.xp.empty(needed, np.uint8)  # given back at once, and cut up for what comes
        except Exception as error:
            free = self.free_bytes() or 0
            where = f"{what} takes {needed / 1e9:.1f} GB of memory, {self} has {free / 1e9:.1f} GB left"
            raise lack_of_memory(error, where) or error from None

    def free_bytes(self) -> int | None:
        """Bytes of memory that nobody uses; None for the CPU."""
        return None if self.is_cpu else int(self.xp.cuda.runtime.memGetInfo()[0])


CPU = Device("cpu", np)


def choose_device(name: str, local_rank: int = 0) -> tuple[Device, str | None]:
    """(the device called `name` for this rank, why there is no GPU under `auto` where CuPy is installed).

    name         cpu; gpu:N for GPU number N; gpu for one by the rank's number on its host, in turn; auto for that, or
                 the CPU where no GPU can be used
    local_rank   the rank's number on its host

    Raises ConfigurationError for any other name, and for a GPU that isn't to be had.
    """
    found = re.fullmatch(r"cpu|auto|gpu(?::(\d{1,4}))?", name)
    if found is None:
        raise ConfigurationError(f"device: expected auto, cpu, gpu or gpu:N such as gpu:1, got {name!r}")
    if name == "cpu":
        return CPU, None
    if name == "auto" and not _is_installed():
        return CPU, None
    cupy, problem = _load_cupy()
    if cupy is None:
        if name == "auto":
            return CPU, problem
        raise ConfigurationError(f"device {name}: {problem}; use --device cpu to compute without")
    count = gpu_count(cupy)
    index = int(found[1]) if found[1] else local_rank % count
    if index >= count:
        there = "gpu:0 alone" if count == 1 else f"gpu:0 to gpu:{count - 1}"
        raise ConfigurationError(f"device {name}: this host has {there}")
    _MODULES[cupy.ndarray] = cupy
    try:
        device = _opened(cupy, index)
    except Exception as error:  # another process may have it to itself, or have left no memory
        problem = f"gpu:{index} can't be used ({first_line(error)})"
        if name == "auto":
            return CPU, problem
        raise ConfigurationError(f"device {name}: {problem}; use --device cpu to compute without") from None
    return device, None


def _opened(cupy: Any, index: int) -> Device:
    """GPU number `index`, in use by this thread: where CUDA makes what a process needs on it."""
    kind = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    bus = str(cupy.cuda.runtime.deviceGetPCIBusId(index))
    device = Device(f"gpu:{index}", cupy, index, kind.decode() if isinstance(kind, bytes) else str(kind), bus)
    device.use()
    return device


def gpu_count(cupy: Any) -> int:
    """GPUs of this host that CUDA shows to this process."""
    return int(cupy.cuda.runtime.getDeviceCount())


def may_be_gpu(name: str) -> bool:
    """Whether choose_device may find a GPU under this name: always for a name of one, for `auto` where CuPy is
    installed."""
    return name != CPU.name and (name != "auto" or _is_installed())


def _is_installed() -> bool:
    """Whether there is a CuPy, which is not loaded to know it."""
    return importlib.util.find_spec("cupy") is not None


def _load_cupy() -> tuple[Any, str]:
    """(CuPy, "") where it can use a GPU, else (None, why it can't). Imported last: it takes a second."""
    if not _is_installed():
        return None, f"CuPy isn't installed ({_INSTALL})"
    if sys.platform == "linux" and not any(Path(name).exists() for name in _DRIVER_FILES):
        return None, "CuPy is installed, but this host has no NVIDIA driver"
    try:
        import cupy

        if gpu_count(cupy) < 1:
            return None, "CuPy is installed, but CUDA shows no GPU to this process"
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # whatever the driver, the libraries and their versions come up with
        return None, f"CuPy is installed, but can't use CUDA ({first_line(error)}); {_INSTALL}"
    return cupy, ""
