"""Intervals in which values lie, by a loss that says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn.losses.base import Loss
from distsgd.nn.objective import Objective, Supervised


def bounds(objective: Objective, coverage: float) -> tuple[Objective, Objective]:
    """Two objectives, of which one predicts where the values' interval begins, and the other where it ends.

    Raises ConfigurationError where there is no such interval.
    """
    if not isinstance(coverage, int | float) or not 0 < coverage < 1:
        raise ConfigurationError(f"predict_interval: expected a coverage between 0 and 1, got {coverage!r}")
    if not isinstance(objective, Supervised):
        raise ConfigurationError(
            "predict_interval: needs a model of layers with a loss that has intervals, such as quantile or gaussian"
        )
    lower, upper = (replace(objective, loss=_Bound(objective.loss, float(coverage), side)) for side in (0, 1))
    return lower, upper


@final
@dataclass(frozen=True)
class _Bound(Loss):
    """A loss whose predictions are one end of the interval."""

    inner: Loss
    probability: float
    side: int

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return self.inner.output_size(target_shape, num_classes)

    def targets(self, rows: Array, dtype: np.dtype[np.generic]) -> Array:
        return self.inner.targets(rows, dtype)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        return self.inner.value_and_grad(outputs, y, want_grad)

    def predict(self, outputs: Array) -> Array:
        found = self.inner.interval(outputs, self.probability)
        if found is None:
            raise ConfigurationError(
                f"predict_interval: the loss {type(self.inner).__name__} has no intervals; train with a loss that has, "
                "such as quantile or gaussian"
            )
        return found[self.side]
