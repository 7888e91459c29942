"""Puts arrays into memory once per host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.core.runtime import check_memory
from distsgd.data.examples import Examples
from distsgd.parallel import Communicator

if TYPE_CHECKING:
    from distsgd.data.sources.base import ArraySource, DataSource


def place_split(communicator: Communicator, source: DataSource, split: str) -> Examples | None:
    """One split's examples, each array once per node; None where the data set hasn't that split. Collective."""
    if f"x_{split}" not in source.arrays:
        return None
    x, y, weights = (
        place(communicator, source.arrays[f"{kind}_{split}"]) if f"{kind}_{split}" in source.arrays else None
        for kind in ("x", "y", "weights")
    )
    assert x is not None
    assert y is not None, "a data set has targets for all of its inputs"
    return Examples(x, y, weights, source.scale)


def place(communicator: Communicator, source: ArraySource) -> Array:
    """The array in memory that the ranks of a node share: the mapped file where it can be mapped, else a copy that
    one rank reads for all. Collective."""
    node = communicator.node()
    mapped = communicator.everywhere(source.mapped)
    if all(communicator.allgather_object(mapped is not None)):
        assert mapped is not None
        from distsgd.core.bus_errors import watch

        watch([mapped], communicator.rank, communicator.abort)
        return np.asarray(mapped)
    from distsgd.parallel.shared_memory import shared_array

    communicator.everywhere(lambda: check_memory(source.nbytes, f"a data array of shape {source.shape}"))
    array, is_shared = shared_array(node, source.shape, source.dtype)

    def read() -> None:
        if node.is_root or not is_shared:
            source.read_into(array)

    communicator.everywhere(read)
    array.flags.writeable = False
    return array
