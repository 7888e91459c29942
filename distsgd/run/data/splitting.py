"""Which of the training examples are for validation, where no other data are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.examples import Examples
from distsgd.data.splits import BlockIndices, block_split, split_off
from distsgd.nn.task import true_classes
from distsgd.run.compared.digests import fingerprint
from distsgd.run.config import OPTIONS, TrainConfig
from distsgd.run.data.ordering import layout_of

_TOGETHER = 1 << 20
"""Targets that are looked at together."""
Rows = Array | BlockIndices
"""Row indices, in rising order."""


@dataclass(frozen=True)
class Split:
    """Which rows of the training examples are trained on and which are for validation, and the choice in words.

    by_blocks   whether they are whole blocks; the arrays may stay in their files then
    """

    training: Rows
    validation: Rows
    words: str
    by_blocks: bool = False

    def digest(self, train: Examples) -> str:
        """16 hexadecimal digits of the rows for validation and of the arrays that they are rows of."""
        rows = hashlib.sha256(self.validation[:].astype("<i8").tobytes())
        rows.update(fingerprint({"train": train}, sampled=self.by_blocks).encode())
        return rows.hexdigest()[:16]


def split_of(train: Examples, classes: int | None, config: TrainConfig) -> Split | None:
    """What the configuration splits off the training examples for validation, None for nothing, or for all of them."""
    total = len(train)
    if config.shuffle_buffer is not None:
        return _split_of_blocks(train, config)
    if config.validation_last is not None:
        cut = total - config.validation_last
        words = f"the last {config.validation_last:,} of {total:,} training examples"
        return Split(np.arange(cut), np.arange(cut, total), words) if cut > 0 else None
    count = round(total * config.validation_fraction)
    labels = _labels(train.y, classes, config.loss)
    seed, seeded = _seed(config)
    rest, chosen = split_off(total, count, seed, labels)
    if not len(chosen) or not len(rest):
        return None
    shares = "" if labels is None else ", of each class its share"
    how = f"--validation-fraction {config.validation_fraction:g}, {seeded}{shares}"
    return Split(rest, chosen, f"{len(chosen):,} of {total:,} training examples: {how}")


def _split_of_blocks(train: Examples, config: TrainConfig) -> Split | None:
    """The same of an order by blocks: whole blocks, so that each is read for one of both."""
    total, block = len(train), layout_of(config, train.x, train.y, train.weights, train.as_stored).block
    if config.validation_last is not None:
        cut = total - config.validation_last
        words = f"the last {config.validation_last:,} of {total:,} training examples"
        rest = BlockIndices(np.arange(-(-cut // block)), block, cut)
        return Split(rest, np.arange(cut, total), words, by_blocks=True) if cut > 0 else None
    blocks, (seed, seeded) = -(-total // block), _seed(config)
    count = round(blocks * config.validation_fraction)
    if not 0 < count < blocks:
        return None
    others, chosen = block_split(blocks, count, seed)
    validation = BlockIndices(chosen, block, total)
    how = f"--validation-fraction {config.validation_fraction:g}, {seeded}"
    words = f"{count:,} of {blocks:,} blocks of {block:,}, {len(validation):,} of {total:,} training examples: {how}"
    return Split(BlockIndices(others, block, total), validation, words, by_blocks=True)


def _seed(config: TrainConfig) -> tuple[int, str]:
    """The seed of the split, and what it is in words."""
    option, seed = ("seed", config.seed) if config.split_seed is None else ("split-seed", config.split_seed)
    return seed, f"--{option} {seed}"


def _labels(y: Array, classes: int | None, loss: str) -> Array | None:
    """The class of each target, where targets are classes: labels, or probabilities that a cross-entropy is to take."""
    if y.dtype.kind != "f":
        return y if classes is not None and y.ndim == 1 else None
    if loss == "softmax-cross-entropy" and y.ndim == 2 and y.shape[1] > 1:
        return true_classes(y.T)
    if loss == "binary-cross-entropy" and y.size == len(y):
        return true_classes(y.reshape(1, -1))
    return None


def parts_of(rows: Rows) -> Iterator[Array]:
    """The rows in parts, for an array may stay in its file."""
    for start in range(0, len(rows), _TOGETHER):
        yield rows[start : start + _TOGETHER]


def _counts(train: Examples, rows: Rows, classes: int | None, loss: str) -> Array | None:
    """How many of these examples are of each class, None where targets are values."""
    found = np.zeros(0, np.int64)
    for part in parts_of(rows):
        labels = _labels(train.y[part], classes, loss)
        if labels is None:
            return None
        counts = np.bincount(labels, minlength=len(found))
        counts[: len(found)] += found
        found = counts
    return found


def checked_split(train: Examples, classes: int | None, config: TrainConfig) -> Split | None:
    """`split_of`. Raises ConfigurationError where nothing, or nothing of a class, is left to train on."""
    total, split, last = len(train), split_of(train, classes, config), config.validation_last
    if split is None and last is not None:
        raise ConfigurationError(
            f"validation_last: expected fewer than the {total} training examples, got {config.validation_last}"
        )
    if split is None and config.shuffle_buffer is not None:
        block = layout_of(config, train.x, train.y, train.weights, train.as_stored).block
        raise ConfigurationError(
            f"validation_fraction {config.validation_fraction:g}: with shuffle_buffer whole blocks are split off, and "
            f"{total:,} examples are {-(-total // block):,} of {block:,}; give a smaller order_block, another part, "
            "validation data, or 0 for no validation"
        )
    if split is None and config.validation_fraction not in (0.0, OPTIONS["validation_fraction"].default):
        what = "leaves none to train on" if round(total * config.validation_fraction) else "is none"
        raise ConfigurationError(
            f"validation_fraction {config.validation_fraction:g}: {what} of {total} examples; give another part, or 0 "
            "for no validation"
        )
    if split is None:
        return split
    validated, trained = (_counts(train, rows, classes, config.loss) for rows in (split.validation, split.training))
    if validated is None or trained is None:
        return split
    trained = np.pad(trained, (0, max(0, len(validated) - len(trained))))
    missing = np.flatnonzero((validated > 0) & (trained[: len(validated)] == 0))
    if len(missing):
        option, remedy = (
            "validation_last",
            "shuffle them, or use --validation-fraction, which takes a share of each class",
        )
        if last is None:
            option, remedy = "validation_fraction", "split off fewer of them, or none (0), or give validation data"
        raise ConfigurationError(
            f"{option}: leaves no examples of class {', '.join(map(str, missing[:10]))} to train on; {remedy}"
        )
    return split
