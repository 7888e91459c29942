"""Optimizers whose learning rate is another one in each layer, by the norms of its weights and of their step.

An update has two passes over a layer's elements with the norms of the whole layer in between, which ranks gather:
`direct`, `trust_ratio`, `follow`. Symbols: w params, g gradient, η learning rate, λ weight decay; |·| is the Euclidean
norm over one array of parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from distsgd.core.device import Array
from distsgd.core.kernels import kernels_for
from distsgd.optim.optimizers import Moments, Optimizer, Scalars, Slots


class LayerwiseOptimizer(Optimizer):
    """The base class: η is multiplied by the trust ratio of each array of parameters with two or more dimensions.

    Biases and normalization, all arrays of fewer dimensions, have the ratio 1. A subclass overrides `trust_ratio`,
    `step`, and where it needs them `direct` and `follow`.
    """

    def direct(
        self, params: Array, grads: Array, state: Slots, scalars: Scalars, weight_decay: float, scratch: Array
    ) -> None:
        """The first pass over a block: turns grads into the direction whose norm `trust_ratio` takes; here it is g.

        Parameters
        ----------
        params, grads, state, scalars, weight_decay, scratch
            Those of `update`; params must stay as they are.
        """

    @abstractmethod
    def trust_ratio(self, params_norm: float, direction_norm: float, weight_decay: float) -> float:
        """The factor of η for one array of parameters.

        Parameters
        ----------
        params_norm, direction_norm : float
            |w| before the update, and the norm of what `direct` has made of its gradient; neither is 0.
        weight_decay : float
            λ of this array, 0.0 where it is masked out.

        Returns
        -------
        float
            The trust ratio.
        """

    def follow(
        self, params: Array, grads: Array, state: Slots, scalars: Scalars, weight_decay: float, scratch: Array
    ) -> None:
        """The second pass over a block: updates params; here it is weight decay and `step`.

        Parameters
        ----------
        params, grads, state
            Those of `update`, after `direct`.
        scalars : tuple of float
            Those of the step, with η times the trust ratio first.
        weight_decay, scratch
            Those of `update`.
        """
        super().update(params, grads, state, scalars, weight_decay, scratch)

    def update(
        self, params: Array, grads: Array, state: Slots, scalars: Scalars, weight_decay: float, scratch: Array
    ) -> None:
        """Both passes with the trust ratio 1; see `Optimizer.update`."""
        self.direct(params, grads, state, scalars, weight_decay, scratch)
        self.follow(params, grads, state, scalars, weight_decay, scratch)


@final
@dataclass(frozen=True)
class LARS(LayerwiseOptimizer):
    """v := μv + ηr (g + λw);  w := w - v, from v = 0, with the trust ratio r := c |w| / (|g| + λ|w|) of each layer.

    Where |w| or |g| is 0, r is 1, and so it is for biases and normalization. The velocity holds the learning rate, as
    in the paper. A gradient changes the weights of a layer by the part ηc of their norm, and a bias b by ηg: so η is
    what `Momentum` would have, and c what makes ηc the wanted part. The paper has c = 0.001 and η up to 30, and adapts
    biases; here such an η needs a network without them.

    Parameters
    ----------
    learning_rate, momentum, trust_coefficient, weight_decay : float
        η, μ, c and λ.

    References
    ----------
    .. [1] You, Gitman & Ginsburg, "Large batch training of convolutional networks", 2017, algorithm 1.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    trust_coefficient: float = 0.1
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def trust_ratio(self, params_norm: float, direction_norm: float, weight_decay: float) -> float:
        return self.trust_coefficient * params_norm / (direction_norm + weight_decay * params_norm)

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels = kernels_for(params)
        kernels.scale(grads, scalars[0])
        kernels.momentum(params, grads, state[0], 1.0, self.momentum, 0.0)


@final
@dataclass(frozen=True)
class LAMB(Moments, LayerwiseOptimizer):
    """u := m̂ / (√v̂ + ε) + λw;  w := w - ηr u, with the trust ratio r := |w| / |u| of each layer.

    m̂ and v̂ are `Adam`'s, with the correction of bias. Where |w| or |u| is 0, r is 1, and so it is for biases and
    normalization. The paper's φ is the identity: r has no bounds.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, weight_decay : float
        η, β₁, β₂, ε and λ.

    References
    ----------
    .. [1] You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020, algorithm 2.
    """

    epsilon: float = 1e-6

    def scalars(self, learning_rate: float, updates: int) -> Scalars:
        """(η, step size, ε), the last two those of Adam for η = 1."""
        return float(learning_rate), *super().scalars(1.0, updates)[1:]

    def direct(
        self, params: Array, grads: Array, state: Slots, scalars: Scalars, weight_decay: float, scratch: Array
    ) -> None:
        """Updates m and v, and turns grads into u."""
        kernels, (_, step_size, epsilon) = kernels_for(params), scalars
        adam, spare = scratch[0, : len(params)], scratch[1, : len(params)]
        adam[:] = 0.0  # less a step of -m̂ / (√v̂ + ε)
        kernels.adam(adam, grads, state[0], state[1], -step_size, self.beta1, self.beta2, epsilon, spare)
        grads[:] = adam
        if weight_decay != 0.0:
            kernels.add_scaled(grads, params, weight_decay, spare)

    def trust_ratio(self, params_norm: float, direction_norm: float, weight_decay: float) -> float:
        return params_norm / direction_norm

    def follow(
        self, params: Array, grads: Array, state: Slots, scalars: Scalars, weight_decay: float, scratch: Array
    ) -> None:
        """Steps along u, which holds weight decay already."""
        self.step(params, grads, state, scalars, scratch[0, : len(params)])

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels_for(params).sgd(params, grads, scalars[0])
