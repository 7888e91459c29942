"""Losses of values whose outputs say how far the values spread: prediction intervals come of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from statistics import NormalDist

import numpy as np

from distsgd.core.device import Array, Shape, constants
from distsgd.core.errors import ConfigurationError
from distsgd.core.ranges import number_in
from distsgd.nn.losses.base import check_values
from distsgd.nn.losses.regression import ValueLoss


@dataclass(frozen=True)
class Gaussian(ValueLoss):
    """loss := ½ Σₖ s + (m - t)² exp(-s) of 2k outputs: k means m, then k logarithms s of the variances.

    The gradient is (m - t) exp(-s) for m, ½ (1 - (m - t)² exp(-s)) for s. The negative log-likelihood of a normal
    distribution without ½ log 2π, as PyTorch's GaussianNLLLoss has it, which takes the variance itself. The prediction
    is the mean; an interval has the normal distribution's quantiles.

    References
    ----------
    .. [1] Nix, Weigend, "Estimating the mean and variance of the target probability distribution", ICNN 1994.

    Examples
    --------
    >>> Gaussian().per_example(np.array([[1.0], [0.0]]), np.array([[3.0]])).tolist()
    [2.0]
    >>> lower, upper = Gaussian().interval(np.array([[1.0], [0.0]]), 0.95)
    >>> lower.round(2).tolist(), upper.round(2).tolist()
    ([[-0.96]], [[2.96]])
    """

    usual_coverage = 0.9

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return 2 * prod(target_shape)

    def point(self, outputs: Array) -> Array:
        return outputs[: len(outputs) // 2]

    def interval(self, outputs: Array, coverage: float) -> tuple[Array, Array]:
        """The mean, and as many standard deviations to both sides as the coverage takes."""
        number_in("(0, 1)", "coverage", coverage)
        k = len(outputs) // 2
        spread: Array = np.exp(0.5 * outputs[k:])
        spread *= NormalDist().inv_cdf(0.5 + 0.5 * coverage)
        return outputs[:k] - spread, outputs[:k] + spread

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        k = len(outputs) // 2
        mean, log_variance = outputs[:k], outputs[k:]
        check_values("gaussian", mean if len(outputs) == 2 * k else outputs, y)
        difference: Array = mean - y
        precise: Array = np.exp(-log_variance)  # 1 / variance
        precise *= difference
        squares = precise * difference
        losses = np.add.reduce(squares + log_variance, axis=0)
        losses *= 0.5
        if not want_grad:
            return losses, None
        grad = np.empty_like(outputs)
        grad[:k] = precise
        grad[k:] = 0.5 - 0.5 * squares
        return losses, grad


@dataclass(frozen=True)
class Quantile(ValueLoss):
    """loss := Σ over quantiles τ and values of τ max(t - z, 0) + (1 - τ) max(z - t, 0), of q·k outputs z.

    The first k outputs are those of the first quantile, and so on. The gradient is -τ below the target, 1 - τ above
    it, and 0 where both are equal. Nothing in training keeps the quantiles of one value in order: predictions and
    intervals sort them, which can only bring them nearer to the true ones [2]_. The prediction is the quantile that is
    nearest to the median, the lower of two.

    Parameters
    ----------
    quantiles : tuple of float, default (0.05, 0.5, 0.95)
        The τ, above 0 and below 1, in rising order.

    References
    ----------
    .. [1] Koenker, Bassett, "Regression quantiles", Econometrica 46 (1978).
    .. [2] Chernozhukov, Fernández-Val, Galichon, "Quantile and probability curves without crossing", Econometrica 78
       (2010).

    Examples
    --------
    >>> loss = Quantile((0.25, 0.75))
    >>> loss.per_example(np.array([[0.0], [4.0]]), np.array([[2.0]])).tolist()
    [1.0]
    >>> loss.interval(np.array([[4.0], [0.0]]), 0.5)
    (array([[0.]]), array([[4.]]))
    """

    quantiles: tuple[float, ...] = (0.05, 0.5, 0.95)

    def __post_init__(self) -> None:
        for one in self.quantiles:
            number_in("(0, 1)", "quantiles", one)
        if not self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ConfigurationError(f"quantiles: expected different ones in rising order, got {self.quantiles!r}")

    @property
    def usual_coverage(self) -> float | None:  # type: ignore[override]
        """That of the widest pair of quantiles that leaves out as much above as below; None where there is none."""
        pairs = [1.0 - 2.0 * low for low in self.quantiles if low < 0.5 and self._place(1.0 - low) is not None]
        return max(pairs, default=None)

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return len(self.quantiles) * prod(target_shape)

    def point(self, outputs: Array) -> Array:
        nearest = min(range(len(self.quantiles)), key=lambda place: abs(self.quantiles[place] - 0.5))
        found: Array = self._sorted(outputs)[nearest]
        return found

    def interval(self, outputs: Array, coverage: float) -> tuple[Array, Array]:
        """The two quantiles with equal probabilities on both sides of them, which must be among the trained ones."""
        number_in("(0, 1)", "coverage", coverage)
        ends = 0.5 - 0.5 * coverage, 0.5 + 0.5 * coverage
        places = [self._place(end) for end in ends]
        if places[0] is None or places[1] is None:
            raise ConfigurationError(
                f"coverage {coverage:g}: takes the quantiles {ends[0]:g} and {ends[1]:g}, the model has "
                f"{', '.join(f'{one:g}' for one in self.quantiles)}; ask for a coverage of two of them, or train these"
            )
        found = self._sorted(outputs)
        return found[places[0]], found[places[1]]

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        q = len(self.quantiles)
        z = self._apart(outputs) if len(outputs) % q == 0 else outputs[None]
        check_values("quantile", z[0], y)
        below = constants(outputs, tuple(map(float, self.quantiles)))[:, None, None]
        above = 1.0 - below
        difference: Array = z - y
        losses = np.maximum(above * difference, -below * difference)
        losses = np.add.reduce(losses.reshape(outputs.shape), axis=0)
        if not want_grad:
            return losses, None
        grad = above * (difference > 0)
        grad -= below * (difference < 0)
        return losses, grad.reshape(outputs.shape)

    def _place(self, quantile: float) -> int | None:
        near = [place for place, one in enumerate(self.quantiles) if abs(one - quantile) < 1e-9]
        return near[0] if near else None

    def _sorted(self, outputs: Array) -> Array:
        """(quantiles, k, n)."""
        found: Array = np.sort(self._apart(outputs), axis=0)
        return found

    def _apart(self, outputs: Array) -> Array:
        q = len(self.quantiles)
        return outputs.reshape(q, len(outputs) // q, *outputs.shape[1:])
