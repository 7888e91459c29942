"""Puts arrays into memory once per host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.core.runtime import check_memory
from distsgd.data.examples import Examples
from distsgd.parallel import Communicator

if TYPE_CHECKING:
    from distsgd.data.sources.base import ArraySource, DataSource
    from distsgd.run.config import TrainConfig

_SMALL = 32 << 20
"""Bytes of inputs that are kept in memory though they are read once."""
_STREAM = "--shuffle-buffer 256MB reads it in blocks as it trains (in another order)"


def place_split(
    communicator: Communicator, source: DataSource, split: str, config: TrainConfig | None = None, role: str = ""
) -> Examples | None:
    """One split's examples, each array once per node; None where the data set hasn't that split. Collective.

    With a configuration that says so they may stay in their files; `role` is the split that they are used as.
    """
    if f"x_{split}" not in source.arrays:
        return None
    there = {kind: source.arrays[key] for kind in ("x", "y", "weights") if (key := f"{kind}_{split}") in source.arrays}
    buffered, stays = config is not None and config.shuffle_buffer is not None, dict[str, Array]()
    if config is not None and buffered and config.stream:
        from distsgd.run.data.streamed import left_in_files

        name = f"{source.name} ({split})" if role in ("", split) else source.name
        stays = left_in_files(source, name, there, config, role or split)
    rest = {name: array for name, array in there.items() if name not in stays}
    arrays = stays | place_together(communicator, rest, may_stream=config is not None and not buffered)
    assert "y" in arrays, "a data set has targets for all of its inputs"
    return Examples(arrays["x"], arrays["y"], arrays.get("weights"), source.scale)


def place_as(communicator: Communicator, other: DataSource, role: str, config: TrainConfig) -> Examples | None:
    """The examples of another data set than the training set's, to validate or test on: its split of that name, else
    all. Collective."""
    return place_split(communicator, other, role if f"x_{role}" in other.arrays else "train", config, role)


def place(communicator: Communicator, source: ArraySource) -> Array:
    """The array of a source in memory, as `place_together` puts it there. Collective."""
    return place_together(communicator, {"": source})[""]


def place_or_read(
    communicator: Communicator, source: DataSource, split: str, check: Callable[[Array, Array], None] | None = None
) -> Examples | None:
    """One split's examples to be read once, from the first on; None where the data set hasn't that split. Collective.

    Inputs of more than 32 MB stay in their files, unless these can be mapped: each rank reads those that it needs.
    `check` is called with inputs that stay there, as they are read. There may be no targets.
    """
    key = f"x_{split}"
    if key not in source.arrays:
        return None
    inputs, x = source.arrays[key], None
    there = {kind: one for kind in ("y", "weights") if (one := source.arrays.get(f"{kind}_{split}")) is not None}
    if inputs.nbytes > _SMALL and (x := _mapped(communicator, inputs)) is None:
        from distsgd.data.stored import stored

        x = stored(inputs, source.files, check)
    arrays = place_together(communicator, there if x is not None else {"x": inputs, **there})
    x = arrays["x"] if x is None else x
    return Examples(x, arrays.get("y", x), arrays.get("weights"), source.scale)


def place_together(
    communicator: Communicator, sources: Mapping[str, ArraySource], may_stream: bool = False
) -> dict[str, Array]:
    """The arrays in memory that the ranks of a node share: the mapped file where it can be mapped, else a copy that
    one rank reads for all, in one pass for those that are read together. Collective.

    `may_stream`: whether they can be read while training instead, where there isn't memory enough.
    """
    placed = {name: _mapped(communicator, source) for name, source in sources.items()}
    read = {name: source for name, source in sources.items() if placed[name] is None}
    copies = _copies(communicator, read, may_stream) if read else {}
    return {name: copies[name] if array is None else array for name, array in placed.items()}


def _mapped(communicator: Communicator, source: ArraySource) -> Array | None:
    mapped = communicator.everywhere(source.mapped)
    if not all(communicator.allgather_object(mapped is not None)):
        return None
    assert mapped is not None
    from distsgd.core.bus_errors import watch

    watch([mapped], communicator.rank, communicator.abort)
    return np.asarray(mapped)


def _copies(communicator: Communicator, sources: Mapping[str, ArraySource], may_stream: bool) -> dict[str, Array]:
    from distsgd.data.sources.converted import read_together
    from distsgd.parallel.shared_memory import shared_array

    node, arrays, mine = communicator.node(), {}, {}
    for name, source in sources.items():
        remedy = {"remedy": _STREAM} if may_stream and source.in_blocks else {}
        what = f"a data array of shape {source.shape}"
        communicator.everywhere(partial(check_memory, source.nbytes, what, **remedy))
        arrays[name], is_shared = shared_array(node, source.shape, source.dtype)
        if node.is_root or not is_shared:
            mine[name] = source
    communicator.everywhere(lambda: read_together(mine, arrays))
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
