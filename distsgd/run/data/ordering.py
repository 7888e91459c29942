"""The order of a run's epochs, where it isn't the sampler's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.draws import BalancedCounts, weighted_counts
from distsgd.data.examples import Examples
from distsgd.data.orders import BlockOrder, CountedOrder, KeyedOrder, Order
from distsgd.nn.task import true_classes
from distsgd.run.config import TrainConfig
from distsgd.run.config_checks import parse_size

if TYPE_CHECKING:
    from distsgd.data.sources.base import ArraySource

_LONGEST_BLOCK = 4096
_BLOCKS = 32
"""A window has at least so many blocks, where nothing says how long one is."""


@dataclass(frozen=True)
class BlockLayout:
    """What `--shuffle-buffer` comes to: a function of options and shapes, never of the file that holds the examples.

    Parameters
    ----------
    block
        Examples of a block.
    per_window
        Blocks of a window.
    row
        Bytes of an example in memory.
    """

    block: int
    per_window: int
    row: int

    @property
    def window(self) -> int:
        """Examples of a window."""
        return self.block * self.per_window


def layout_of(
    config: TrainConfig,
    x: Array | ArraySource,
    y: Array | ArraySource,
    weights: Array | ArraySource | None = None,
    as_stored: bool = False,
) -> BlockLayout:
    """Blocks and windows of examples like these. Raises ConfigurationError where a window can't hold a block."""
    assert config.shuffle_buffer is not None
    item = x.dtype.itemsize if as_stored else np.dtype(config.dtype).itemsize
    row = prod(x.shape[1:]) * item + 8 * prod(y.shape[1:]) + (0 if weights is None else 8)
    half = parse_size(config.shuffle_buffer, "shuffle_buffer") // 2  # two windows are in memory
    fitting = half // (_BLOCKS * row)
    block = config.order_block or min(_LONGEST_BLOCK, 1 << max(0, fitting.bit_length() - 1))
    if half < block * row:
        what = f"a block of {block:,} examples" if block > 1 else "an example"
        remedy = ", or a smaller order_block" if block > 1 else ""
        raise ConfigurationError(
            f"shuffle_buffer {config.shuffle_buffer}: {what} takes {size_of(block * row)}, and two windows are kept; "
            f"give at least {_enough(2 * block * row)}{remedy}"
        )
    return BlockLayout(block, half // (block * row), row)


def drawn_by_weights(train: Examples) -> tuple[Examples, Array]:
    """(the training examples without weights, the weights of those that are in the set)."""
    if train.weights is None:
        raise ConfigurationError(
            "sampling weighted: draws examples by their weights, and these have none; give weights, or leave it out"
        )
    weights = train.weights[train.row_indices(np.arange(len(train)))]
    if not weights.max() > 0:
        raise ConfigurationError("sampling weighted: the weights of all training examples are 0; correct them")
    return replace(train, weights=None), weights


def order_of(
    config: TrainConfig,
    train: Examples,
    batch_size: int,
    weights: Array | None = None,
    classes: int | None = None,
) -> Order | None:
    """The order of the training examples, None for the sampler's own. Raises ConfigurationError where a minibatch
    doesn't fit into a window.

    weights   what examples are drawn by
    classes   the number of classes of integer targets
    """
    count = len(train)
    if weights is not None:
        return CountedOrder(count, partial(weighted_counts, weights, config.seed), config.seed)
    if config.sampling == "balanced":
        labels = labels_of(train.y, classes, config.loss)
        if labels is None:
            raise ConfigurationError("sampling balanced: needs classes, and the targets are values; leave it out")
        rows = train.row_indices(np.arange(count))
        return CountedOrder(count, BalancedCounts(labels[rows], config.seed), config.seed)
    if config.shuffle_buffer is None:
        return KeyedOrder(count, config.seed) if config.shuffle and config.sampling == "epochs" else None
    layout = layout_of(config, train.x, train.y, train.weights, train.as_stored)
    order = BlockOrder(count, layout.block, layout.per_window, config.seed, config.shuffle)
    least = layout.window - -count % layout.block  # of a window that has the short block
    if order.windows > 1 and least < batch_size:
        blocks = ceil((batch_size + -count % layout.block) / layout.block)
        raise ConfigurationError(
            f"shuffle_buffer {config.shuffle_buffer}: a window has {least:,} examples, fewer than a minibatch of "
            f"{batch_size:,}; give at least {_enough(2 * blocks * layout.block * layout.row)}, or a smaller batch_size"
        )
    return order


def order_in_words(config: TrainConfig, train: Examples) -> str:
    """What the header says of an order that isn't the sampler's own."""
    if config.sampling == "weighted":
        return "examples as often as their weights say, which don't multiply losses: --sampling weighted"
    if config.sampling == "balanced":
        return "all classes equally often: --sampling balanced"
    if config.shuffle_buffer is None:
        return ""
    layout = layout_of(config, train.x, train.y, train.weights, train.as_stored)
    what = f"blocks of {layout.block:,} examples, windows of {layout.per_window:,} blocks"
    how = "each in a new order every epoch" if config.shuffle else "in the order of the data"
    return f"{what} ({size_of(layout.window * layout.row)}), {how}: --shuffle-buffer {config.shuffle_buffer}"


def labels_of(y: Array, classes: int | None, loss: str) -> Array | None:
    """The class of each target, where targets are classes: labels, or probabilities that a cross-entropy is to take."""
    if y.dtype.kind != "f":
        return y if classes is not None and y.ndim == 1 else None
    if loss == "softmax-cross-entropy" and y.ndim == 2 and y.shape[1] > 1:
        return true_classes(y.T)
    if loss == "binary-cross-entropy" and y.size == len(y):
        return true_classes(y.reshape(1, -1))
    return None


def size_of(count: float) -> str:
    """Bytes as a message has them."""
    if count < 1e6:
        return f"{count / 1e3:.3g} kB"
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def _enough(count: int) -> str:
    """At least so many bytes, as the option is written."""
    return f"{ceil(count / 1e6)}MB"
