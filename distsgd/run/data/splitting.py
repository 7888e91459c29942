"""Which of the training examples are for validation, where no other data are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.examples import Examples
from distsgd.data.splits import BlockIndices, block_split, fold_rows, group_folds, group_split, split_off
from distsgd.data.targets import TargetSummary
from distsgd.run.compared.digests import fingerprint
from distsgd.run.config import OPTIONS, TrainConfig
from distsgd.run.config_checks import parse_fold
from distsgd.run.data.ordering import labels_of, layout_of

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

    def digest(self, train: Examples, in_files: bool | None = None) -> str:
        """16 hexadecimal digits of the rows for validation and of the arrays that they are rows of; `in_files` says
        whether they are to be looked at as those in files are, or as others."""
        rows = hashlib.sha256(self.validation[:].astype("<i8").tobytes())
        rows.update(fingerprint({"train": train}, sampled=self.by_blocks, in_files=in_files).encode())
        return rows.hexdigest()[:16]

    def is_of(self, train: Examples, digest: str | None) -> bool:
        """Whether this is the digest of these examples, which the run may have had in memory or in files."""
        return any(self.digest(train, in_files) == digest for in_files in (True, False))

    def left_of(self, targets: TargetSummary | None, y: Array) -> TargetSummary | None:
        """What there is to say of the targets of the rows that are trained on, as far as it is known of all."""
        for rows in parts_of(self.validation):
            targets = targets and targets.without(y[rows])
        return targets


def split_of(train: Examples, classes: int | None, config: TrainConfig, groups: Array | None = None) -> Split | None:
    """What the configuration splits off the training examples for validation, None for nothing, or for all of them.

    groups   what group each example is of, where all examples of a group are to be in the same part
    """
    total = len(train)
    if config.shuffle_buffer is not None:
        return _split_of_blocks(train, config)
    if groups is not None:
        return _split_of_groups(groups, config)
    if config.validation_last is not None:
        cut = total - config.validation_last
        words = f"the last {config.validation_last:,} of {total:,} training examples"
        return Split(np.arange(cut), np.arange(cut, total), words) if cut > 0 else None
    labels = labels_of(train.y, classes, config.loss)
    seed, seeded = _seed(config)
    if config.fold is None:
        rest, chosen = split_off(total, round(total * config.validation_fraction), seed, labels)
    else:
        part, parts = parse_fold(config.fold, "fold")
        if parts > total:
            return None
        rest, chosen = fold_rows(total, part, parts, seed, labels)
    if not len(chosen) or not len(rest):
        return None
    shares = "" if labels is None else ", of each class its share"
    return Split(rest, chosen, f"{len(chosen):,} of {total:,} training examples: {_option(config)}, {seeded}{shares}")


def _split_of_groups(groups: Array, config: TrainConfig) -> Split | None:
    """The same where no group is in both parts."""
    total, number, (seed, seeded) = len(groups), len(np.unique(groups)), _seed(config)
    part, parts = (1, 2) if config.fold is None else parse_fold(config.fold, "fold")
    if number < parts:
        return None
    if config.fold is None:
        rest, chosen = group_split(groups, round(total * config.validation_fraction), seed)
    else:
        rest, chosen = group_folds(groups, part, parts, seed)
    taken = len(np.unique(groups[chosen]))
    what = f"{len(chosen):,} of {total:,} training examples, {taken:,} of {number:,} groups"
    return Split(rest, chosen, f"{what}: {_option(config)}, {seeded}")


def _option(config: TrainConfig) -> str:
    return f"--validation-fraction {config.validation_fraction:g}" if config.fold is None else f"--fold {config.fold}"


def _split_of_blocks(train: Examples, config: TrainConfig) -> Split | None:
    """The same of an order by blocks: whole blocks, so that each is read for one of both."""
    total, block = len(train), layout_of(config, train.x, train.y, train.weights, train.as_stored).block
    if config.validation_last is not None:
        cut = total - config.validation_last
        words = f"the last {config.validation_last:,} of {total:,} training examples"
        rest = BlockIndices(np.arange(-(-cut // block)), block, cut)
        return Split(rest, np.arange(cut, total), words, by_blocks=True) if cut > 0 else None
    blocks, (seed, seeded) = -(-total // block), _seed(config)
    if config.fold is None:
        others, chosen = block_split(blocks, round(blocks * config.validation_fraction), seed)
    else:
        part, parts = parse_fold(config.fold, "fold")
        if parts > blocks:
            return None
        others, chosen = fold_rows(blocks, part, parts, seed)
    if not len(chosen) or not len(others):
        return None
    validation, how = BlockIndices(chosen, block, total), f"{_option(config)}, {seeded}"
    words = (
        f"{len(chosen):,} of {blocks:,} blocks of {block:,}, {len(validation):,} of {total:,} training examples: {how}"
    )
    return Split(BlockIndices(others, block, total), validation, words, by_blocks=True)


def _seed(config: TrainConfig) -> tuple[int, str]:
    """The seed of the split, and what it is in words."""
    option, seed = ("seed", config.seed) if config.split_seed is None else ("split-seed", config.split_seed)
    return seed, f"--{option} {seed}"


def parts_of(rows: Rows) -> Iterator[Array]:
    """The rows in parts, for an array may stay in its file."""
    for start in range(0, len(rows), _TOGETHER):
        yield rows[start : start + _TOGETHER]


def _counts(train: Examples, rows: Rows, classes: int | None, loss: str) -> Array | None:
    """How many of these examples are of each class, None where targets are values."""
    found = np.zeros(0, np.int64)
    for part in parts_of(rows):
        labels = labels_of(train.y[part], classes, loss)
        if labels is None:
            return None
        counts = np.bincount(labels, minlength=len(found))
        counts[: len(found)] += found
        found = counts
    return found


def checked_split(
    train: Examples, classes: int | None, config: TrainConfig, groups: Array | None = None
) -> Split | None:
    """`split_of`. Raises ConfigurationError where nothing, or nothing of a class, is left to train on."""
    if groups is not None and len(groups) != len(train):
        raise DataError(
            f"group: expected {len(train)} entries, one an example, got {len(groups)}; make both equally long"
        )
    if groups is not None and (config.shuffle_buffer is not None or config.validation_last is not None):
        other = "shuffle_buffer" if config.shuffle_buffer is not None else "validation_last"
        raise ConfigurationError(f"group: whole groups can't be split off with {other}; give validation data instead")
    total, split, last = len(train), split_of(train, classes, config, groups), config.validation_last
    if split is None and last is not None:
        raise ConfigurationError(
            f"validation_last: expected fewer than the {total} training examples, got {config.validation_last}"
        )
    if split is None and groups is not None:
        raise ConfigurationError(
            f"group: the training examples are of {len(np.unique(groups)):,} groups, too few for {_option(config)}; "
            "give fewer parts, or validation data"
        )
    if split is None and config.shuffle_buffer is not None:
        block = layout_of(config, train.x, train.y, train.weights, train.as_stored).block
        raise ConfigurationError(
            f"{_option(config)}: with shuffle_buffer whole blocks are split off, and "
            f"{total:,} examples are {-(-total // block):,} of {block:,}; give a smaller order_block, another part, "
            "validation data, or 0 for no validation"
        )
    if split is None and config.fold is not None:
        raise ConfigurationError(
            f"fold {config.fold}: expected at most as many parts as examples, {total:,}; give fewer"
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
            option = "validation_fraction" if config.fold is None else "fold"
            remedy = "split off fewer of them, or none (0), or give validation data"
        raise ConfigurationError(
            f"{option}: leaves no examples of class {', '.join(map(str, missing[:10]))} to train on; {remedy}"
        )
    return split
