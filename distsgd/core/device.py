"""Where arrays live, which module computes on them, and the way from one place to another."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from distsgd.core.device_options import FULL as FULL
from distsgd.core.errors import ConfigurationError

if TYPE_CHECKING:  # importing it loads NumPy
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
else:
    Array = Any
Shape: TypeAlias = tuple[int, ...]

MODULES: dict[type, Any] = {}
"""The array module of each type of array that isn't NumPy's; filled when another device is chosen."""


def register_arrays(array_type: type, module: Any) -> None:
    """Make `module` the array module of this type of array, which doesn't lie in the host's memory."""
    MODULES[array_type] = module


def array_module(array: Array) -> Any:
    """The module that computes on an array: NumPy, or that of the device it lies on.

    Parameters
    ----------
    array : array
        Such as `batch.x`.

    Returns
    -------
    module
        `numpy`, or `cupy` for an array on a GPU.

    Examples
    --------
    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    return MODULES.get(type(array), np)


def in_host_memory(value: Any) -> bool:
    """Whether this is no array of another device."""
    return type(value) not in MODULES


def described(value: object, shape: bool = False) -> str:
    """The kind of array or object that this is, for messages."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type(value).__name__
    owner = "NumPy's" if in_host_memory(value) else "the GPU's"
    return f"{owner} {value.dtype}" + (f" of shape {value.shape}" if shape else "")


def to_host(array: Array, out: Array | None = None) -> Array:
    """The array itself where NumPy has it, else a copy in the host's memory; in `out` where that is given.

    The copy is there when this returns: all that computes it has ended.
    """
    if in_host_memory(array):
        if out is None:
            return array
        out[...] = array
        return out
    return array.get(out=out)  # type: ignore[attr-defined, no-any-return]


def host_copy(array: Array) -> Array:
    """A copy of its own in the host's memory."""
    return array.copy() if in_host_memory(array) else to_host(array)


def constants(like: Array, values: tuple[float, ...]) -> Array:
    """These numbers where `like` lies, in its dtype; to another device they are copied once. Read only."""
    xp = array_module(like)
    return _constants(xp, None if xp is np else xp.cuda.runtime.getDevice(), like.dtype, values)


@lru_cache(maxsize=64)
def _constants(xp: Any, place: int | None, dtype: np.dtype[Any], values: tuple[float, ...]) -> Array:
    return xp.array(values, dtype=dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Device:
    """A place that computes, and here the CPU; a subclass overrides what another kind of device does otherwise.

    Attributes
    ----------
    name : str
        As `--device` takes it.
    xp : module
        The array module of its arrays.
    description : str
        What kind of device it is; empty for the CPU.
    bus : str
        Where it sits in its host, which names it to all processes; empty for the CPU.
    precision : str
        What it multiplies float32 in.
    host_memory : bool
        Whether its arrays are NumPy's.
    one_pass : bool
        Whether each operation is launched on whole buffers, not on chunks that fit a cache.
    gather_limit : int
        The most bytes of a step's minibatch that are gathered at once for all microbatches.
    """

    name: str = "cpu"
    xp: Any = np
    description: str = ""
    bus: str = ""
    precision: str = FULL

    host_memory: ClassVar[bool] = True
    one_pass: ClassVar[bool] = False
    gather_limit: ClassVar[int] = 8 << 20

    def __str__(self) -> str:
        return f"{self.description} ({self.name})" if self.description else self.name

    def multiplying_in(self, precision: str) -> Device:
        """This device with another precision of products. Raises ConfigurationError for the CPU, which has one."""
        if precision != FULL:
            raise ConfigurationError(
                f"precision {precision}: the CPU multiplies in float32 alone; leave --precision out, or compute on a "
                "GPU with --device gpu"
            )
        return self

    def use(self) -> None:
        """From now on this thread's new arrays lie here, and what it asks for is done in an order of its own."""

    def synchronize(self) -> None:
        """Waits until all that this thread has asked for is done."""

    def put(self, array: Array) -> Array:
        """An array of the host, here: a copy, but for the CPU."""
        return array

    def holds(self, array: Array) -> bool:
        """Whether the array lies in the memory that this device computes in."""
        return in_host_memory(array) == self.host_memory

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """A new array here, its values undefined."""
        return self.xp.empty(shape, dtype)  # type: ignore[no-any-return]

    def take(self, array: Array, rows: Array, out: Array | None = None) -> Array:
        """Rows of an array that lies here, by valid indices; in `out` where it is given."""
        # Without "clip" NumPy takes into memory of its own first, in case an index is wrong.
        return array.take(rows, axis=0, out=out, mode="clip")

    def number(self, value: Any) -> Any:
        """A number that was computed here: a Python float, or an array without dimensions that is not read yet.

        Raises TypeError or ValueError for what is not one number.
        """
        return float(value)

    def check_outputs(self, outputs: Array, inputs: Array) -> None:
        """Raises ConfigurationError where a model's outputs are not arrays of this device like its inputs."""

    def aligned(self, array: Array) -> Array:
        """The array, or a copy where products choose their kernels by the address at which it begins."""
        return array

    def host_buffer(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Memory of the host for what goes to this device or comes from it."""
        return np.empty(shape, dtype)

    def check_free_memory(self, needed: int, what: str) -> None:
        """Raises OutOfMemoryError where `needed` bytes for `what` don't fit on this device; the CPU isn't asked."""

    def free_bytes(self) -> int | None:
        """Bytes of memory that are free; None for the CPU."""
        return None


CPU = Device()


def has_cupy() -> bool:
    """Whether there is a CuPy, which is not loaded to know it: without one, `--device auto` is the CPU."""
    return importlib.util.find_spec("cupy") is not None


def may_be_gpu(name: str) -> bool:
    """Whether a device of this name may be a GPU: always for a name of one, for `auto` where CuPy is installed."""
    return name != CPU.name and (name != "auto" or has_cupy())
