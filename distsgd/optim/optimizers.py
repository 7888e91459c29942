"""Optimizers: frozen hyper-parameters, and an in-place update of one block of the flat buffers.

An optimizer owns no arrays. Rank 0 computes a step's `scalars` and broadcasts them; then each rank calls `update` on
the blocks of its own slice. Symbols: w params, g gradient, η learning rate, λ weight decay, t updates made so far.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

from distsgd.core.components import Component
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.ranges import check_fields

Slots: TypeAlias = tuple[Array, ...]
"""A block of each state buffer."""
Scalars: TypeAlias = tuple[float, ...]
"""What depends on the step, η first."""

_INTERVALS = {
    "learning_rate": "[0, inf)",
    "momentum": "[0, 1)",
    "dampening": "[0, 1)",
    "alpha": "[0, 1)",
    "beta1": "[0, 1)",
    "beta2": "[0, 1)",
    "epsilon": "(0, inf)",
    "trust_coefficient": "(0, inf)",
    "weight_decay": "[0, inf)",
}
"""Where hyper-parameters of these names lie; an optimizer checks its other ones itself."""


class Optimizer(Component, ABC):
    """The base class: a frozen dataclass of Python floats, `learning_rate` first and `weight_decay` last.

    A subclass overrides `step`, and `slots` and `scalars` where it needs them. Weight decay is coupled,
    g := g + λw before anything else (as in PyTorch), unless the class is `decoupled`.

    Raises
    ------
    ConfigurationError
        Where a hyper-parameter that has a usual name, such as `momentum`, isn't a number in its usual range.

    Examples
    --------
    >>> import numpy as np
    >>> params, grads, scratch = np.ones(2), np.array([1.0, -2.0]), np.empty((2, 2))
    >>> optimizer = SGD(0.1)
    >>> optimizer.update(params, grads, (), optimizer.scalars(0.1, updates=1), 0.0, scratch)
    >>> params.tolist()
    [0.9, 1.2]
    """

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the state buffers, in the order in which `update` takes them; each has the layout of the parameters, and
    begins as zeros."""

    decoupled: ClassVar[bool] = False
    """Whether weight decay bypasses the gradient, w := (1 - ηλ) w."""

    learning_rate: float
    """η before any schedule."""

    weight_decay: float
    """λ of the parameters that decay."""

    def __post_init__(self) -> None:
        if not (hasattr(self, "learning_rate") and hasattr(self, "weight_decay")):
            raise ConfigurationError(f"{type(self).__name__}: expected the fields learning_rate and weight_decay")
        check_fields(self, _INTERVALS)

    def scalars(self, learning_rate: float, updates: int) -> Scalars:
        """All that depends on the step, computed once and broadcast.

        Parameters
        ----------
        learning_rate : float
            η of this step, after the schedule.
        updates : int
            t, the number of updates, this one too.

        Returns
        -------
        Scalars
            Python floats, η first.
        """
        return (float(learning_rate),)

    def update(
        self, params: Array, grads: Array, state: Slots, scalars: Scalars, weight_decay: float, scratch: Array
    ) -> None:
        """Makes one step on one block, in place; the cut into blocks doesn't change the result's bits.

        Parameters
        ----------
        params, grads : array
            Contiguous blocks (n,) of one dtype. params is updated, grads may be overwritten.
        state : tuple of array
            The same block of each slot's buffer, updated.
        scalars : tuple of float
            What `scalars` returned for this step.
        weight_decay : float
            λ of this block, 0.0 where it is masked out.
        scratch : array
            Memory (2, m) with m >= n, of the same dtype.
        """
        spare = scratch[0, : len(params)]
        if weight_decay != 0.0:
            if self.decoupled:
                kernels_for(params).scale(params, 1.0 - scalars[0] * weight_decay)
            else:
                kernels_for(params).add_scaled(grads, params, weight_decay, spare)
        self.step(params, grads, state, scalars, spare)

    @abstractmethod
    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        """The step after weight decay, in place and elementwise: see `update`.

        Parameters
        ----------
        params, grads, state, scalars
            Those of `update`; grads may be overwritten.
        spare : array
            A scratch block (n,), its values undefined.
        """


@final
@dataclass(frozen=True)
class SGD(Optimizer):
    """w := w - ηg.

    Parameters
    ----------
    learning_rate : float, default 0.1
        η.
    weight_decay : float, default 0.0
        λ.

    References
    ----------
    .. [1] Robbins & Monro, "A stochastic approximation method", 1951.
    """

    learning_rate: float = 0.1
    weight_decay: float = 0.0

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels_for(params).sgd(params, grads, scalars[0])


@final
@dataclass(frozen=True)
class Momentum(Optimizer):
    """v := μv + (1 - dampening) g;  w := w - ηv, from v = 0.

    The velocity holds no learning rate, as in PyTorch. Many tutorials write v := μv - ηg;  w := w + v. The two are the
    same while η is constant, their v being -η times this one. When η changes, the tutorials' velocity keeps each
    gradient at the η of its own step, and this one applies the new η to the whole velocity at once, so that a drop of
    the learning rate takes effect in the very next step.

    dampening = μ gives the exponentially averaged form v := μv + (1 - μ) g. Dampening applies from the first step on,
    v = (1 - dampening) g; PyTorch skips it there and starts from v = g.

    Parameters
    ----------
    learning_rate, momentum, dampening, weight_decay : float
        η, μ, the dampening and λ.

    References
    ----------
    .. [1] Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """

    learning_rate: float = 0.05
    momentum: float = 0.9
    dampening: float = 0.0
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels_for(params).momentum(params, grads, state[0], scalars[0], self.momentum, self.dampening)


@final
@dataclass(frozen=True)
class Nesterov(Optimizer):
    """v := μv + g;  w := w - η(g + μv), from v = 0.

    In the form of Sutskever et al., written as in PyTorch: w is the point at which the gradient is taken, so nothing
    has to be shifted before or after a step.

    Parameters
    ----------
    learning_rate, momentum, weight_decay : float
        η, μ and λ.

    References
    ----------
    .. [1] Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k²)", 1983.
    .. [2] Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels_for(params).nesterov(params, grads, state[0], scalars[0], self.momentum, spare)


@final
@dataclass(frozen=True)
class Adagrad(Optimizer):
    """s := s + g²;  w := w - ηg / (√s + ε), from s = 0.

    Parameters
    ----------
    learning_rate, epsilon, weight_decay : float
        η, ε and λ.

    References
    ----------
    .. [1] Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
       2011.
    """

    learning_rate: float = 1e-2
    epsilon: float = 1e-10
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square_sum",)

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels_for(params).adagrad(params, grads, state[0], scalars[0], self.epsilon, spare)


@final
@dataclass(frozen=True)
class RMSprop(Optimizer):
    """s := alpha s + (1 - alpha) g²;  w := w - ηg / (√s + ε), from s = 0; ε outside the root, as in PyTorch.

    Parameters
    ----------
    learning_rate, alpha, epsilon, weight_decay : float
        η, alpha, ε and λ.

    References
    ----------
    .. [1] Tieleman & Hinton, "Lecture 6.5, rmsprop", Coursera, 2012.
    """

    learning_rate: float = 1e-3
    alpha: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square_mean",)

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        kernels_for(params).rmsprop(params, grads, state[0], scalars[0], self.alpha, self.epsilon, spare)


@dataclass(frozen=True)
class Moments(Optimizer):
    """What Adam and AdamW have in common: all but weight decay.

    The state holds the sums M := m / (1 - β₁) and V := v / (1 - β₂), which take two multiplications fewer a step. Then
    m̂ = M (1 - β₁) / (1 - β₁ᵗ) and √v̂ = r √V with r := √((1 - β₂) / (1 - β₂ᵗ)), and m̂ / (√v̂ + ε) is expanded by 1 /
    r.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def scalars(self, learning_rate: float, updates: int) -> Scalars:
        """(η, step size, ε), the last two as `kernels.cpu.adam` takes them: η (1 - β₁) / ((1 - β₁ᵗ) r) and ε / r."""
        root = math.sqrt((1.0 - self.beta2) / (1.0 - self.beta2**updates))
        step_size = float(learning_rate) * (1.0 - self.beta1) / ((1.0 - self.beta1**updates) * root)
        return float(learning_rate), step_size, self.epsilon / root

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        _, step_size, epsilon = scalars
        kernels_for(params).adam(params, grads, state[0], state[1], step_size, self.beta1, self.beta2, epsilon, spare)


@final
@dataclass(frozen=True)
class Adam(Moments):
    """m := β₁m + (1 - β₁) g;  v := β₂v + (1 - β₂) g²;  w := w - η m̂ / (√v̂ + ε), from m = v = 0.

    m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ).

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, weight_decay : float
        η, β₁, β₂, ε and λ.

    References
    ----------
    .. [1] Kingma & Ba, "Adam: a method for stochastic optimization", 2015.
    """


@final
@dataclass(frozen=True)
class AdamW(Moments):
    """Adam with decoupled weight decay: w := (1 - ηλ) w, then Adam's step with the plain gradient.

    λ is 0.01 by default, as in PyTorch; no other optimizer has a default but 0.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, weight_decay : float
        η, β₁, β₂, ε and λ.

    References
    ----------
    .. [1] Loshchilov & Hutter, "Decoupled weight decay regularization", 2019.
    """

    weight_decay: float = 1e-2

    decoupled: ClassVar[bool] = True
