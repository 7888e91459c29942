"""What is measured of the training examples: ranges, and the means and spreads that standardize them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.examples import Examples, Signature
from distsgd.data.features import Ranges, Standardization, range_of
from distsgd.data.targets import sampled_rows
from distsgd.run.config import TrainConfig


def measured(
    signature: Signature, train: Examples, config: TrainConfig, progressed: Callable[[], object]
) -> tuple[Signature, list[str]]:
    """(the signature with the range of the training inputs, and what standardizes them, lines to print). On rank 0.

    progressed   called while many examples are read
    """
    inputs = targets = None
    notes: list[str] = []

    def standardization(name: str, array: Array) -> Standardization:
        if config.shuffle_buffer is None:
            return Standardization.of(array, train.indices)
        return _by_blocks(name, array, train, config, notes, progressed)

    if config.standardize:
        if config.scale is not None:
            raise ConfigurationError("scale: would change nothing beside standardize; leave one of them out")
        inputs = standardization("inputs", train.x)
    if config.standardize_targets:
        check_values(signature.num_classes is None and "cross-entropy" not in config.loss)
        if config.output_activation != "linear":
            raise ConfigurationError(
                "standardize_targets: gives the targets the mean 0 and the spread 1, which the outputs of a "
                f"{config.output_activation} can't reach; leave one of them out"
            )
        targets = standardization("targets", train.y)
    mean: tuple[float, ...] = ()
    if signature.num_classes is None and not (train.as_stored and (train.y.ndim > 2 or train.y.dtype.kind != "f")):
        mean = (targets or standardization("targets", train.y)).mean
    if train.as_stored:  # what is unusual of tokens or of several inputs isn't known
        return replace(signature, inputs=inputs, targets=targets, target_mean=mean), notes
    looked_at = sampled(train, config).x
    found = replace(
        signature,
        inputs=inputs,
        targets=targets,
        range=range_of(looked_at),
        target_mean=mean,
        features=Ranges.of(looked_at),
    )
    return found, notes


def sampled(part: Examples, config: TrainConfig) -> Examples:
    """Those that are looked at: all, and with --shuffle-buffer runs of rows, wherever the rows are."""
    if config.shuffle_buffer is None:
        return part
    rows = sampled_rows(len(part.x))
    return replace(part, x=part.x[rows], y=part.y[rows], weights=None, indices=None)


def _by_blocks(
    name: str, array: Array, train: Examples, config: TrainConfig, notes: list[str], progressed: Callable[[], object]
) -> Standardization:
    """The means and spreads of the training examples, block by block in the order of the data. Those of arrays that
    stay in files are kept for the next start."""
    from distsgd.data.scan import Moments, kept_moments
    from distsgd.run.data.ordering import layout_of

    block = layout_of(config, train.x, train.y, train.weights, train.as_stored).block
    positions = np.arange(0, len(train), block)
    starts = train.row_indices(positions)
    stops = starts + np.minimum(block, len(train) - positions)
    runs = list(zip(starts.tolist(), stops.tolist(), strict=True))
    if not isinstance(array, np.ndarray):  # it stays in its file
        about = (name, array.files, array.shape, str(array.dtype), config.x, config.y, config.weights, config.axis)
        moments, note = kept_moments(array, runs, (*about, config.missing), progressed)
        notes += [note] if note else []
    else:
        moments = Moments.of(array, runs, progressed)
    return moments.standardization(name)


def check_values(are_values: bool) -> None:
    """Raises ConfigurationError where targets that are to be standardized are no values."""
    if not are_values:
        raise ConfigurationError("standardize_targets: the targets are classes and not values; leave it out")
