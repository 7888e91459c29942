"""Training sets that are larger than the shuffle buffer: read by threads of each host while its ranks train."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, cast

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.runtime import check_memory
from distsgd.data.checks import check_rows, stays_in_files
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader
from distsgd.data.orders import BlockOrder, Order
from distsgd.data.stored import RowArray, StoredArray, stored
from distsgd.data.window_reader import Reading, WindowReader
from distsgd.data.windows import ConvertedArray, StreamedOrder, Table, Windows, table_size, windowed
from distsgd.nn.objective import Objective
from distsgd.parallel import Communicator
from distsgd.parallel.shared_memory import shared_array
from distsgd.run.config import TrainConfig
from distsgd.run.config_checks import parse_size
from distsgd.run.data.ordering import layout_of, size_of

if TYPE_CHECKING:
    from distsgd.core.files import FileStamp
    from distsgd.data.sources.base import ArraySource, DataSource

SMALL = 32 << 20
"""Bytes up to which a validation or test set, targets and weights are kept in memory."""
_SWITCH = 0.0005
"""Seconds that the interpreter runs a reader while the rank's own thread waits for it, and all ranks for that rank:
Python's own 5 ms may be a whole step, in which the thread asks for the interpreter a hundred times."""


@dataclass(eq=False)
class Stream:
    """A training set in files, from its description to the end of its readers.

    Parameters
    ----------
    name
        The data set's name in messages.
    sources
        x, and y and weights where they are too large for memory.
    files
        The files as they were.
    """

    name: str
    sources: Mapping[str, ArraySource]
    files: tuple[FileStamp, ...] = ()
    _reader: WindowReader | None = field(default=None, init=False)

    def windowed(
        self,
        communicator: Communicator,
        config: TrainConfig,
        train: Examples,
        order: Order | None,
        objective: Objective,
    ) -> tuple[Examples, Order]:
        """(the training examples in windows of memory that the ranks of a host share, the order that reports to the
        readers). Collective."""
        assert isinstance(order, BlockOrder), "what stays in files has an order by blocks"
        node = communicator.node()
        layout = layout_of(config, train.x, train.y, train.weights, train.as_stored)
        given = {"x": train.x, "y": train.y, "weights": train.weights}
        arrays = {name: array for name, array in given.items() if array is not None and stays_in_files(array)}
        convert = _conversion(config, train, objective)
        dtypes = {name: array.dtype for name, array in arrays.items()}
        if convert is not None:
            dtypes["x"] = np.dtype(config.dtype)
        shapes = {name: (2, layout.window, *array.shape[1:]) for name, array in arrays.items()}
        size = sum(prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
        communicator.everywhere(partial(check_memory, size, f"shuffle_buffer {config.shuffle_buffer}"))
        words, is_shared = shared_array(node, (table_size(node.size),), np.dtype(np.int64))
        placed = {name: shared_array(node, shape, dtypes[name]) for name, shape in shapes.items()}
        is_shared = is_shared and all(shared for _, shared in placed.values())
        memory = {name: array for name, (array, _) in placed.items()}
        if not is_shared:  # each rank reads for itself, into memory of its own
            words, memory = np.zeros_like(words), {name: np.zeros_like(array) for name, array in memory.items()}
        rank, ranks = (node.rank, node.size) if is_shared else (0, 1)
        table = Table(words if is_shared else words[: table_size(1)], ranks)
        reads = node.is_root or not is_shared
        if reads:
            table.reset()
        node.barrier()
        windows = Windows(
            order, train.row_indices, len(train), layout.block, layout.per_window, table, rank,
            communicator.heartbeat.progressed,
        )  # fmt: skip
        if reads:
            reading = Reading(
                self.name, self.sources, memory, {"x": check_rows(f"{self.name} (train)", np.dtype(config.dtype))},
                {} if convert is None else {"x": convert}, self.files, config.readers,
                config.epochs * order.windows,
            )  # fmt: skip
            self._reader = WindowReader(windows, reading)
        files = {name: cast("RowArray", array) for name, array in arrays.items()}
        if convert is not None:
            files["x"] = ConvertedArray(files["x"], convert, dtypes["x"])
        found = {name: windowed(windows, memory[name], files[name]) for name in arrays}
        train = replace(train, x=found["x"], y=found.get("y", train.y), weights=found.get("weights", train.weights))
        if convert is not None:
            train = replace(train, scale=1.0, inputs=None)
        return train, StreamedOrder(windows)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Until the block ends, the readers of this host read."""
        if self._reader is None:
            yield
            return
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, _SWITCH))
        self._reader.start()
        try:
            yield
        finally:
            self._reader.close()
            sys.setswitchinterval(before)


def _conversion(config: TrainConfig, train: Examples, objective: Objective) -> Callable[[Array], Array] | None:
    """What makes the model's inputs of those that take more memory as they are stored; None where none do, and where
    images are moved before they are standardized."""
    dtype = np.dtype(config.dtype)
    as_stored = objective.inputs_as_stored and train.inputs is None and train.scale == 1.0
    if train.x.dtype.itemsize <= dtype.itemsize or as_stored or (config.augment and train.inputs is not None):
        return None
    whole = replace(train, weights=None, indices=None)

    def convert(rows: Array) -> Array:
        loader = Loader(replace(whole, x=rows, y=rows), objective, dtype, config.seed, with_targets=False)
        return loader.gather(np.arange(len(rows))).x

    return convert


def left_in_files(
    source: DataSource, name: str, arrays: Mapping[str, ArraySource], config: TrainConfig, role: str
) -> dict[str, Array]:
    """Those arrays of a split that stay in their files; others go into memory. Raises ConfigurationError where they
    can't be read in blocks.

    name     what messages call the split
    arrays   x, y and weights
    role     what they are used as: train, validation or test
    """
    assert config.shuffle_buffer is not None, "only then examples stay in files"
    x, y, weights = arrays["x"], arrays["y"], arrays.get("weights")
    layout = layout_of(config, x, y, weights)
    size = x.shape[0] * layout.row
    if size <= (parse_size(config.shuffle_buffer, "shuffle_buffer") if role == "train" else SMALL):
        return {}
    for array in arrays.values():
        if not array.in_blocks:
            raise ConfigurationError(
                f"{source.name}: {role} examples take {size_of(size)}, more than --shuffle-buffer "
                f"{config.shuffle_buffer}, and are packed as a whole, so that they can't be read in blocks; save them "
                "with numpy.savez, which doesn't compress, or as .npy, or keep them in memory with --no-stream"
            )
    found = {"x": stored(x, source.files, check_rows(name, np.dtype(config.dtype)))}
    large = {key: array for key, array in arrays.items() if key != "x" and array.nbytes > SMALL}
    return found | {key: stored(array, source.files) for key, array in large.items()}


def stream_of(name: str, train: Examples) -> Stream | None:
    """The stream of training examples that stay in their files; None for those in memory."""
    found = {}
    for key, array in (("x", train.x), ("y", train.y), ("weights", train.weights)):
        if isinstance(stays := cast("object", array), StoredArray):
            found[key] = stays
    if not found:
        return None
    return Stream(name, {key: array.source for key, array in found.items()}, found["x"].files)


def note_on_reading(stream: Stream, train: Examples, config: TrainConfig) -> str | None:
    """A sentence about a file whose chunks are decoded several times an epoch, None where there is nothing to say."""
    chunk = max(source.chunk for source in stream.sources.values())
    layout = layout_of(config, train.x, train.y, train.weights)
    windows = -(-len(train) // layout.window)
    times = min(-(-chunk // layout.block), windows)
    if times <= 1:
        return None
    how = f"note: {stream.name} is stored in chunks of {chunk:,} examples, each of which is read up to {times:,} times"
    if 2 * chunk <= layout.window:
        return f"{how} an epoch, for a block has {layout.block:,}; --order-block {chunk} reads each once"
    return (
        f"{how} an epoch, for a window has {layout.window:,}; give a larger --shuffle-buffer, or write the file in "
        f"chunks of at most {max(1, layout.window // 8):,} examples"
    )
