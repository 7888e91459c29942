"""A GPU as a device: what it does otherwise than the CPU, through CuPy."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np

from distsgd.core.device import Array, Device, Shape, described, in_host_memory
from distsgd.core.errors import ConfigurationError, lack_of_memory

_ALIGNMENT = 256
"""Bytes: what CUDA's own allocations are multiples of."""

_STREAMS = threading.local()
"""Each thread's own stream on each GPU that it uses."""


@dataclass(frozen=True)
class GPU(Device):
    """GPU number `index` of its host; `xp` is CuPy."""

    index: int = 0

    host_memory: ClassVar[bool] = False
    one_pass: ClassVar[bool] = True
    gather_limit: ClassVar[int] = 1 << 30

    def multiplying_in(self, precision: str) -> Device:
        return replace(self, precision=precision)

    def use(self) -> None:
        """As the base class says; the order is that of a stream other than CUDA's default, which can't be recorded."""
        self.xp.cuda.Device(self.index).use()
        streams = _STREAMS.__dict__.setdefault("of_thread", {})
        if (self.xp, self.index) not in streams:
            stream = streams[self.xp, self.index] = self.xp.cuda.Stream(non_blocking=True)
            # For good. The end of any `with` of another stream, of which CuPy has some inside, comes back to what
            # was entered, not to what was last used: that would be the default stream.
            stream.__enter__()
        streams[self.xp, self.index].use()

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def put(self, array: Array) -> Array:
        return self.xp.asarray(array)  # type: ignore[no-any-return]

    def take(self, array: Array, rows: Array, out: Array | None = None) -> Array:
        return array.take(rows, axis=0, out=out)

    def number(self, value: Any) -> Any:
        if in_host_memory(value):
            return float(value)
        if value.size != 1 or value.dtype.kind not in "fiu":
            raise ValueError("not one number")
        return value.reshape(())

    def check_outputs(self, outputs: Array, inputs: Array) -> None:
        if type(outputs) is not type(inputs) or outputs.dtype != inputs.dtype:
            raise ConfigurationError(
                f"the model's outputs must be {described(inputs)} as its inputs are, got {described(outputs)}; a layer "
                "has to compute with the arrays and the dtype that it is given"
            )

    def aligned(self, array: Array) -> Array:
        """The array, or a copy of it where it begins inside of other memory, at an odd address.

        cuBLAS chooses what it multiplies with by the operands' alignment, too; and where in its rank's memory a
        microbatch begins depends on how many ranks there are.
        """
        return array if array.data.ptr % _ALIGNMENT == 0 else array.copy()  # type: ignore[attr-defined]

    def host_buffer(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """As the base class says; pinned, for speed."""
        size = prod(shape) * dtype.itemsize
        return np.ndarray(shape, dtype, self.xp.cuda.alloc_pinned_memory(size) if size else None)

    def check_free_memory(self, needed: int, what: str) -> None:
        try:
            self.xp.empty(needed, np.uint8)  # given back at once, and cut up for what comes
        except Exception as error:
            where = f"{what} takes {needed / 1e9:.1f} GB of memory, {self} has {self.free_bytes() / 1e9:.1f} GB left"
            raise lack_of_memory(error, where) or error from None

    def free_bytes(self) -> int:
        return int(self.xp.cuda.runtime.memGetInfo()[0])
