"""What is measured of the training examples: ranges, and the means and spreads that standardize them."""

from __future__ import annotations

from dataclasses import replace

from distsgd.core.errors import ConfigurationError
from distsgd.data.examples import Examples, Signature
from distsgd.data.features import Ranges, Standardization, range_of
from distsgd.run.config import TrainConfig


def measured(signature: Signature, train: Examples, config: TrainConfig) -> Signature:
    """With the range of the training inputs, and what standardizes them. On rank 0."""
    inputs = targets = None
    if config.standardize:
        if config.scale is not None:
            raise ConfigurationError("scale: would change nothing beside standardize; leave one of them out")
        inputs = Standardization.of(train.x, train.indices)
    if config.standardize_targets:
        check_values(signature.num_classes is None and "cross-entropy" not in config.loss)
        if config.output_activation != "linear":
            raise ConfigurationError(
                "standardize_targets: gives the targets the mean 0 and the spread 1, which the outputs of a "
                f"{config.output_activation} can't reach; leave one of them out"
            )
        targets = Standardization.of(train.y, train.indices)
    mean: tuple[float, ...] = ()
    if signature.num_classes is None and not (train.as_stored and (train.y.ndim > 2 or train.y.dtype.kind != "f")):
        mean = (targets or Standardization.of(train.y, train.indices)).mean
    if train.as_stored:  # what is unusual of tokens or of several inputs isn't known
        return replace(signature, inputs=inputs, targets=targets, target_mean=mean)
    return replace(
        signature,
        inputs=inputs,
        targets=targets,
        range=range_of(train.x),
        target_mean=mean,
        features=Ranges.of(train.x),
    )


def check_values(are_values: bool) -> None:
    """Raises ConfigurationError where targets that are to be standardized are no values."""
    if not are_values:
        raise ConfigurationError("standardize_targets: the targets are classes and not values; leave it out")
