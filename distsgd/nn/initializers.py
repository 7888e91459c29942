"""Initial values of parameters, as a function of (shape, seed, purpose).

The variance rules keep the size of activations and gradients about equal from layer to layer.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from math import prod, sqrt
from typing import Protocol

import numpy as np

from distsgd.core import random
from distsgd.core.components import wrong_name
from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.ranges import number_in


class Initializer(Protocol):
    """A function that gives initial values: equal for equal arguments, unrelated for different ones.

    Examples
    --------
    Any function or frozen dataclass of this form is one:

    >>> def small(shape, seed, purpose):
    ...     return 0.01 * random.normal(shape, seed, purpose)
    >>> small((2, 3), 0, "initialize dense1.weight").shape
    (2, 3)
    """

    def __call__(self, shape: Shape, seed: int, purpose: str, /) -> Array:
        """The values of one parameter.

        Parameters
        ----------
        shape : tuple of int
            The parameter's shape; of weights (fan_out, fan_in) or (filters, channels, height, width).
        seed : int
            The run's seed.
        purpose : str
            The parameter's name in words, by which its random numbers differ from other parameters'.

        Returns
        -------
        array
            Values (shape), float64.
        """


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (fan_out, fan_in, *kernel): each position of a kernel counts as one more input.

    Raises ConfigurationError for fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ConfigurationError(
            f"a variance-scaled initializer needs a weight of shape (fan_out, fan_in, …), got {shape}; "
            "use zeros, constant, normal or uniform for it"
        )
    positions = prod(shape[2:])
    return shape[1] * positions, shape[0] * positions


@dataclass(frozen=True)
class Zeros:
    """Every value 0: for biases, and for the weights of a model without hidden layers.

    Examples
    --------
    >>> Zeros()((2,), 0, "initialize dense1.bias").tolist()
    [0.0, 0.0]
    """

    def __call__(self, shape: Shape, seed: int, purpose: str) -> Array:
        return np.zeros(shape)


@dataclass(frozen=True)
class Constant:
    """Every value the same.

    Parameters
    ----------
    value : float
        The value, finite.
    """

    value: float

    def __post_init__(self) -> None:
        number_in("(-inf, inf)", "constant value", self.value)

    def __call__(self, shape: Shape, seed: int, purpose: str) -> Array:
        return np.full(shape, float(self.value))


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0 and standard deviation σ.

    Parameters
    ----------
    sigma : float
        σ, at least 0.
    """

    sigma: float

    def __post_init__(self) -> None:
        number_in("[0, inf)", "normal sigma", self.sigma)

    def __call__(self, shape: Shape, seed: int, purpose: str) -> Array:
        return self.sigma * random.normal(shape, seed, purpose)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high).

    Parameters
    ----------
    low, high : float
        The interval, low at most high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        number_in("(-inf, inf)", "uniform low", self.low)
        number_in("(-inf, inf)", "uniform high", self.high)
        if self.low > self.high:
            raise ConfigurationError(f"uniform: expected low at most high, got {self.low!r} and {self.high!r}")

    def __call__(self, shape: Shape, seed: int, purpose: str) -> Array:
        return self.low + (self.high - self.low) * random.uniform(shape, seed, purpose)


@dataclass(frozen=True)
class _Scaled(ABC):
    """Values of mean zero, normal or uniform, whose variance a rule gives by the shape."""

    gain: float = 1.0
    distribution: str = "normal"

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        number_in("[0, inf)", f"{name} gain", self.gain)
        if self.distribution not in ("normal", "uniform"):
            raise ConfigurationError(f"{name} distribution: expected normal or uniform, got {self.distribution!r}")

    @abstractmethod
    def variance(self, shape: Shape) -> float:
        """Of each value."""

    def __call__(self, shape: Shape, seed: int, purpose: str) -> Array:
        if self.distribution == "normal":
            return sqrt(self.variance(shape)) * random.normal(shape, seed, purpose)
        # Uniform on [-a, a), which has variance a²/3.
        return sqrt(3.0 * self.variance(shape)) * (2.0 * random.uniform(shape, seed, purpose) - 1.0)


@dataclass(frozen=True)
class Glorot(_Scaled):
    """variance := gain² · 2 / (fan_in + fan_out), for tanh and sigmoid units (for a sigmoid, a gain of 4 is usual).

    Parameters
    ----------
    gain : float, default 1.0
        Factor of the standard deviation.
    distribution : str, default "uniform"
        `uniform` or `normal`.

    References
    ----------
    .. [1] Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
    """

    distribution: str = "uniform"

    def variance(self, shape: Shape) -> float:
        """See the class."""
        return self.gain * self.gain * 2.0 / sum(fans(shape))


@dataclass(frozen=True)
class He(_Scaled):
    """variance := gain² · 2 / fan_in, for units that pass about half of their inputs: ReLU and its relatives.

    Parameters
    ----------
    gain : float, default 1.0
        Factor of the standard deviation.
    distribution : str, default "normal"
        `uniform` or `normal`.

    References
    ----------
    .. [1] He, Zhang, Ren & Sun, "Delving deep into rectifiers", ICCV 2015.
    """

    def variance(self, shape: Shape) -> float:
        """See the class."""
        return self.gain * self.gain * 2.0 / fans(shape)[0]


@dataclass(frozen=True)
class LeCun(_Scaled):
    """variance := gain² / fan_in.

    Parameters
    ----------
    gain : float, default 1.0
        Factor of the standard deviation.
    distribution : str, default "normal"
        `uniform` or `normal`.

    References
    ----------
    .. [1] LeCun, Bottou, Orr & Müller, "Efficient BackProp", in Neural Networks: Tricks of the Trade, 1998.
    """

    def variance(self, shape: Shape) -> float:
        """See the class."""
        return self.gain * self.gain / fans(shape)[0]


# The distribution is bound by keyword, so that the text form takes the gain alone.
INITIALIZERS: Mapping[str, Callable[..., Initializer]] = {
    "zeros": Zeros,
    "constant": Constant,
    "normal": Normal,
    "uniform": Uniform,
    "glorot": partial(Glorot, distribution="uniform"),
    "he": partial(He, distribution="normal"),
    "lecun": partial(LeCun, distribution="normal"),
    **{
        f"{name}-{distribution}": partial(kind, distribution=distribution)
        for name, kind in (("glorot", Glorot), ("he", He), ("lecun", LeCun))
        for distribution in ("uniform", "normal")
    },
}


def parse_initializer(text: str) -> Initializer:
    """The initializer that `text` names: `he`, `glorot(4)`, `uniform(-0.1, 0.1)`.

    The numbers in brackets are the fields in order: the gain of glorot, he and lecun, the sigma of normal, …

    Raises
    ------
    ConfigurationError
        For any other text.

    Examples
    --------
    >>> parse_initializer("uniform(-0.1, 0.1)")
    Uniform(low=-0.1, high=0.1)
    """
    match = re.fullmatch(r"([\w-]+)\s*(?:\(([^()]*)\))?", text.strip())
    name = match[1].lower().replace("_", "-") if match else ""
    if match is None or name not in INITIALIZERS:
        others = ", with numbers in brackets where it takes any, such as glorot(4)"
        raise wrong_name("initializer", text, INITIALIZERS, others)
    inside = (match[2] or "").strip()
    factory = INITIALIZERS[name]
    fields = [p.name for p in signature(factory).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    try:
        values = [float(word) for word in inside.split(",")] if inside else []
        signature(factory).bind(*values)
    except (TypeError, ValueError):
        wanted = f"{name}({', '.join(fields)})" if fields else f"{name} without brackets"
        raise ConfigurationError(f"initializer: expected {wanted} with numbers, got {text!r}") from None
    return factory(*values)
