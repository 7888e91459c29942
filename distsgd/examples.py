"""Examples in memory, and the lanes gathered from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distsgd.batch import Batch
from distsgd.device import Array, Shape
from distsgd.errors import DataError
from distsgd.layout import Views
from distsgd.objective import Objective


@dataclass(frozen=True)
class Signature:
    """What a model has to fit: the shape of one example and of its target, () for a label or a single value.

    num_classes is None where targets aren't integer labels; inputs are divided by scale.
    """

    example_shape: Shape
    target_shape: Shape
    num_classes: int | None
    scale: float = 1.0


@dataclass(frozen=True)
class Examples:
    """Inputs x (n, …), targets y (n,) or (n, outputs), and which of them count.

    indices   the examples that belong to this set, in order; None for all
    weights   sample weights (n,), or None
    scale     inputs are divided by it as they are gathered, so that bytes stay bytes in memory
    """

    x: Array
    y: Array
    weights: Array | None = None
    scale: float = 1.0
    indices: Array | None = None

    def __len__(self) -> int:
        return len(self.x) if self.indices is None else len(self.indices)

    def subset(self, indices: Array) -> Examples:
        """These of the examples, without copying any."""
        inside = indices if self.indices is None else self.indices[indices]
        return Examples(self.x, self.y, self.weights, self.scale, inside)


@dataclass(frozen=True)
class Feeder:
    """Gathers lanes of examples as an objective takes them; without `with_targets`, inputs alone."""

    examples: Examples
    objective: Objective
    dtype: np.dtype
    seed: int
    with_targets: bool = True

    def check(self) -> None:
        """Raises DataError where the examples don't fit the objective's input."""
        shape, features = self.objective.input_shape, int(np.prod(self.examples.x.shape[1:]))
        if shape is not None and int(np.prod(shape)) != features:
            raise DataError(
                f"the model takes examples of shape {shape}, {int(np.prod(shape))} numbers each, but the data has "
                f"{self.examples.x.shape[1:]}, {features} numbers each"
            )

    def batch(
        self,
        indices: Array,
        state: Views,
        *,
        step: int = 0,
        epoch: int = 0,
        lane: int = 0,
        statistics: Views | None = None,
    ) -> Batch:
        """The batch of these examples; a training batch where `statistics` says where its statistics go.

        Inputs are gathered as C-ordered rows and handed over transposed on every path, for the memory order of an
        operand is part of what GEMM computes.
        """
        examples = self.examples
        inside = indices if examples.indices is None else examples.indices[indices]
        rows = np.take(examples.x, inside, axis=0)
        if examples.scale != 1.0:
            rows = np.divide(rows, examples.scale, dtype=self.dtype)
        elif rows.dtype != self.dtype:
            rows = rows.astype(self.dtype)
        x = rows.reshape(len(inside), -1).T
        if self.objective.input_shape is not None:
            x = x.reshape(*self.objective.input_shape, len(inside))
        weights = examples.weights
        batch = Batch(
            x=x,
            y=self._targets(inside),
            indices=inside,
            weights=None if weights is None else np.take(weights, inside).astype(self.dtype),
            epoch=epoch,
            step=step,
            lane=lane,
            seed=self.seed,
            training=statistics is not None,
            state=state,
        )
        if statistics is not None:
            batch.statistics = statistics
        return batch

    def _targets(self, inside: Array) -> Array:
        if not self.with_targets:
            return np.empty(0, self.dtype)
        return self.objective.targets(np.take(self.examples.y, inside, axis=0), self.dtype)
