"""The optimizers by name, and the rule that scales a learning rate with the batch size."""

from __future__ import annotations

from distsgd.core.components import build
from distsgd.core.errors import ConfigurationError
from distsgd.optim.layerwise import LAMB, LARS
from distsgd.optim.optimizers import SGD, Adagrad, Adam, AdamW, Momentum, Nesterov, Optimizer, RMSprop

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "lars": LARS,
    "lamb": LAMB,
}


def build_optimizer(name: str, **hyper_parameters: float | None) -> Optimizer:
    """The optimizer called `name`; hyper-parameters that are None keep its defaults.

    Raises
    ------
    ConfigurationError
        For an unknown name, a hyper-parameter that the optimizer doesn't have, or a bad value.

    Examples
    --------
    >>> build_optimizer("momentum", momentum=0.8, learning_rate=None)
    Momentum(learning_rate=0.05, momentum=0.8, dampening=0.0, weight_decay=0.0)
    """
    return build("optimizer", OPTIMIZERS, name, hyper_parameters)


def linear_scaling(learning_rate: float, batch_size: int, base_batch_size: int) -> float:
    """η B / B₀: the learning rate for a batch of B examples where η suits B₀.

    Parameters
    ----------
    learning_rate : float
        η, which suits `base_batch_size`.
    batch_size, base_batch_size : int
        B and B₀, in examples, from 1.

    Returns
    -------
    float
        The learning rate for B examples.

    Raises
    ------
    ConfigurationError
        For a batch size below 1.

    References
    ----------
    .. [1] Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, who add a warm-up to it.

    Examples
    --------
    >>> linear_scaling(0.1, batch_size=1024, base_batch_size=256)
    0.4
    """
    if batch_size < 1 or base_batch_size < 1:
        raise ConfigurationError(f"linear scaling: batch sizes must be at least 1, got {batch_size}, {base_batch_size}")
    return float(learning_rate) * batch_size / base_batch_size
