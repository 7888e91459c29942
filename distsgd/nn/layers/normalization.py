"""Batch normalization per microbatch, with running statistics that are combined over microbatches and kept as state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape, array_module
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Views
from distsgd.core.ranges import number_in
from distsgd.nn.batch import Batch
from distsgd.nn.layers.activation import Activation, relu
from distsgd.nn.layers.base import Backward, Layer, StatefulLayer, join

Sample: TypeAlias = tuple[Any, Array, Array]
"""(count, mean, M2), M2 being the sum of squared differences from the mean."""


def combine(first: Sample, second: Sample) -> Sample:
    """Two samples together, in float64.

    δ := mean_b - mean_a; mean := mean_a + δ n_b/n; M2 := M2_a + M2_b + δ² n_a n_b/n, with n := n_a + n_b.
    A sample with count 0 is skipped. Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", Stanford STAN-CS-79-773, 1979.
    """
    if second[0] == 0:
        return first
    if first[0] == 0:
        return second
    return _combined(first, second)


def _combined(first: Sample, second: Sample) -> Sample:
    """The same of samples that aren't empty; counts may be arrays that broadcast with the others."""
    (count_a, mean_a, m2_a), (count_b, mean_b, m2_b) = first, second
    count = count_a + count_b
    delta = mean_b - mean_a
    mean = mean_a + delta * (count_b / count)
    m2 = m2_a + m2_b + np.square(delta) * (count_a * count_b / count)
    return count, mean, m2


def update_running(running: Array, value: Array, momentum: float) -> None:
    """In place: running := running + momentum (value - running), computed in float64. PyTorch's convention."""
    wide = running.astype(np.float64)
    running[...] = wide + momentum * (value - wide)


@dataclass(frozen=True)
class BatchNormalization(StatefulLayer):
    """y := scale (x - mean) / √(variance + epsilon) + shift, for each feature (the first axis of x).

    In training, mean and biased variance are those of the microbatch ("ghost" batch normalization), so the result
    depends on `microbatches`, never on the number of ranks; a microbatch with one value a feature gives y = shift. In
    evaluation they are the running ones in `batch.state`. A minibatch with one value a feature doesn't move these.

    With dx̂ := dy scale and x̂ the normalized x, in training
    dx := (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / √(variance + epsilon), dscale := Σ dy x̂, dshift := Σ dy.

    Parameters
    ----------
    features : int
        The length of x's first axis.
    momentum : float, default 0.1
        By which running statistics move towards a minibatch's, from 0 to 1.
    epsilon : float, default 1e-05
        Added to the variance, above 0.

    References
    ----------
    .. [1] Ioffe & Szegedy, "Batch normalization", ICML 2015.
    .. [2] Hoffer, Hubara & Soudry, "Train longer, generalize better", NeurIPS 2017 (statistics of a microbatch).
    """

    features: int
    momentum: float = 0.1
    epsilon: float = 1e-5

    kind: ClassVar[str] = "batchnorm"

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ConfigurationError(f"batch normalization: expected at least one feature, got {self.features}")
        number_in("[0, 1]", "batch normalization momentum", self.momentum)
        number_in("(0, inf)", "batch normalization epsilon", self.epsilon)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {"scale": (self.features,), "shift": (self.features,)}

    def state_shapes(self) -> Mapping[str, Shape]:
        return {"running_mean": (self.features,), "running_variance": (self.features,)}

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return {"count": (), "mean": (self.features,), "m2": (self.features,)}

    def initialize(self, params: Views, seed: int, path: str) -> None:
        params["scale"][...] = 1.0
        params["shift"][...] = 0.0

    def initialize_state(self, state: Views) -> None:
        state["running_mean"][...] = 0.0
        state["running_variance"][...] = 1.0

    def combine_statistics(self, first: Views, second: Views) -> None:
        count, mean, m2 = combine(_statistics(first), _statistics(second))
        first["count"][...], first["mean"][...], first["m2"][...] = count, mean, m2

    def combine_pairs(self, first: Views, second: Views) -> None:
        if not (first["count"].all() and second["count"].all()):
            super().combine_pairs(first, second)
            return
        samples = [(views["count"][:, np.newaxis], views["mean"], views["m2"]) for views in (first, second)]
        count, first["mean"][...], first["m2"][...] = _combined(*samples)
        first["count"][...] = count[:, 0]

    def update_state(self, state: Views, statistics: Views) -> None:
        count, mean, m2 = _statistics(statistics)
        if count < 2:
            return  # one value has no variance, and its zero would draw the running one away from the data's
        update_running(state["running_mean"], mean, self.momentum)
        update_running(state["running_variance"], m2 / (count - 1.0), self.momentum)

    def output_shape(self, shape: Shape) -> Shape:
        if not shape or shape[0] != self.features:
            raise ConfigurationError(
                f"batch normalization: expected examples with {self.features} features first, got shape {shape}"
            )
        return shape

    def fused(self, following: Layer) -> Layer | None:
        own = type(self) is BatchNormalization and following == Activation("relu")  # a subclass may compute another
        return RectifiedNormalization(self) if own else None

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        xp, kernels = array_module(x), kernels_for(x)
        rows, scale, shift = xp.ascontiguousarray(x).reshape(self.features, -1), params["scale"], params["shift"]
        if batch.training:
            y, mean, m2, inverse = kernels.normalize(rows, scale, shift, self.epsilon)
            self.report(batch, path, (rows.shape[1], mean, m2))
        else:
            mean, variance = (values.astype(x.dtype, copy=False) for values in self._running(batch, path))
            inverse = 1.0 / np.sqrt(variance + self.epsilon)
            y = kernels.transform(rows, mean, scale * inverse, shift)
        input_gradient = kernels.normalize_backward if batch.training else kernels.transform_backward

        def backward(dy: Array, grads: Views) -> Array:
            dy_rows = xp.ascontiguousarray(dy).reshape(rows.shape)
            dx: Array = input_gradient(rows, mean, inverse, scale, dy_rows, grads["scale"], grads["shift"])
            return dx.reshape(dy.shape)

        return y.reshape(x.shape), backward

    def report(self, batch: Batch, path: str, sample: Sample) -> None:
        """Writes a microbatch's statistics where they are wanted.

        Parameters
        ----------
        batch, path
            See `Layer.forward`.
        sample : tuple
            (count, mean, M2).
        """
        if join(path, "count") in batch.statistics:
            for name, value in zip(("count", "mean", "m2"), sample, strict=True):
                batch.statistics[join(path, name)][...] = value

    def _running(self, batch: Batch, path: str) -> tuple[Array, Array]:
        """Running mean and variance. Raises ConfigurationError where there are none."""
        try:
            return batch.state[join(path, "running_mean")], batch.state[join(path, "running_variance")]
        except KeyError as missing:
            raise ConfigurationError(
                f"batch normalization: evaluation needs the running statistics, but batch.state has no {missing}; "
                "pass the state of the model"
            ) from None


@dataclass(frozen=True)
class RectifiedNormalization(Layer):
    """Batch normalization and the ReLU after it: the same bits, in fewer passes over memory, in training on a CPU."""

    normalization: BatchNormalization

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.normalization.parameter_shapes()

    def initialize(self, params: Views, seed: int, path: str) -> None:
        self.normalization.initialize(params, seed, path)

    def output_shape(self, shape: Shape) -> Shape:
        return self.normalization.output_shape(shape)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        kernels, xp, own = kernels_for(x), array_module(x), self.normalization
        if not (kernels.FUSES and batch.training):
            return self._one_after_the_other(params, x, batch, path)
        rows, scale = xp.ascontiguousarray(x).reshape(own.features, -1), params["scale"]
        y, mean, m2, inverse = kernels.normalize(rows, scale, params["shift"], own.epsilon, rectify=True)
        own.report(batch, path, (rows.shape[1], mean, m2))

        def backward(dy: Array, grads: Views) -> Array:
            dy_rows, dscale, dshift = xp.ascontiguousarray(dy).reshape(rows.shape), grads["scale"], grads["shift"]
            dx: Array = kernels.normalize_backward(rows, mean, inverse, scale, dy_rows, dscale, dshift, y)
            return dx.reshape(dy.shape)

        return y.reshape(x.shape), backward

    def _one_after_the_other(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        inside, normalization_backward = self.normalization.forward(params, x, batch, path)
        y, relu_backward = relu(inside)

        def backward(dy: Array, grads: Views) -> Array | None:
            d_inside = relu_backward(dy, grads)
            assert d_inside is not None, "ReLU knows its gradient"
            return normalization_backward(d_inside, grads)

        return y, backward


def _statistics(views: Views) -> tuple[float, Array, Array]:
    return float(views["count"]), views["mean"], views["m2"]
