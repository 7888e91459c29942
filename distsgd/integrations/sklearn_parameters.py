"""The parameters that both estimators of scikit-learn have: what they mean, and which values they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from distsgd import ConfigurationError

T = TypeVar("T")

PARAMETERS = """
model : str, Layer, Objective or callable, default "mlp"
    A name, a list of layers such as "dense 64, relu, dropout 0.5, dense", a layer, a TorchModel or JaxModel, or a
    function `(example_shape, outputs)` that builds one. An objective is copied for each fit, and so remains as it is;
    its initial values are those of each fit.
hidden : int or sequence of int, default (100,)
    The units of the hidden layers of "mlp".
activation : str, default "relu"
    The activation of the hidden layers of "mlp".
loss : str or Loss, default "auto"
    {loss}
optimizer : str, class or Optimizer, default "adam"
    Such as "momentum" or `distsgd.Adam(1e-3)`.
learning_rate : float, optional
    Default: the optimizer's own.
alpha : float, default 1e-4
    The penalty of the squares of all weights, as in {network}; biases have none.
batch_size : int or str, default "auto"
    Examples of a minibatch, over all ranks together; "auto" for min(200, examples), "full" for all.
max_iter : int, default 200
    The most epochs.
tol : float, default 1e-4
    Training ends when the training loss, or the validation score, has not improved by it for `n_iter_no_change` epochs.
n_iter_no_change : int, default 10
    See `tol`.
early_stopping : bool, default False
    Splits off examples to validate with, and takes the epoch that validates best.
validation_fraction : float, default 0.1
    The part that `early_stopping` splits off{split}.
warm_start : bool, default False
    `fit` continues from the parameters that it has; the optimizer begins anew.
random_state : int, RandomState or None, default None
    The seed of initial values, order and split. None is seed 0, so that all ranks have the same; another result takes
    another number. A RandomState is drawn from once in each fit.
microbatches : int, default 4
    The most ranks that can train. The result depends on it, and on the number of ranks never.
dtype : str, default "auto"
    Of parameters and arithmetic: "float32", "float64", or "auto", the inputs' own; float32 for an objective.
verbose : bool, default False
    Prints what `fit` prints with quiet=False.
communicator : mpi4py communicator or "self", optional
    The ranks that train together; "self" for this process alone. Default: all ranks. In a process or a thread that
    joblib has started, as a search with `n_jobs` does, each fit trains alone, with the same bits. A pickled estimator
    has none of mpi4py's.
fit_options : mapping, optional
    Any other option of `distsgd.fit`, such as {{"schedule": "cosine", "clip_norm": 1.0}}.
"""


def documented(**texts: str) -> Callable[[type[T]], type[T]]:
    """Decorates a class whose docstring has `{parameters}` where these belong."""

    def fill(kind: type[T]) -> type[T]:
        if kind.__doc__ is not None:  # as with python -OO
            text = inspect.cleandoc(kind.__doc__)
            kind.__doc__ = text.replace("{parameters}", PARAMETERS.strip().format(**texts))
        return kind

    return fill


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_) and int(value) >= least


def _is_number(value: Any) -> bool:
    """Whether it is a number, at least 0."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and float(value) >= 0


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "activation": ("'sigmoid', as distsgd calls it", lambda value: value != "logistic"),
    "learning_rate": (
        "a number, at least 0, or None; a schedule goes into fit_options={'schedule': name}",
        lambda value: value is None or _is_number(value),
    ),
    "alpha": ("a number, at least 0", _is_number),
    "batch_size": (
        "a whole number, at least 1, 'auto' or 'full'",
        lambda value: value in ("auto", "full") if isinstance(value, str) else _is_whole(value, 1),
    ),
    "max_iter": ("a whole number, at least 1", lambda value: _is_whole(value, 1)),
    "tol": ("a number, at least 0", _is_number),
    "n_iter_no_change": (
        "a whole number, at least 1, or infinity",
        lambda value: _is_whole(value, 1) or (isinstance(value, float) and value == np.inf),
    ),
    "validation_fraction": ("a number between 0 and 1", lambda value: _is_number(value) and 0 < value < 1),
    "early_stopping": ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    "warm_start": ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    "verbose": ("True, False or a number", lambda value: isinstance(value, bool | np.bool_ | Real)),
    "class_weight": (
        "weights by label, 'balanced' or None",
        lambda value: value == "balanced" if isinstance(value, str) else value is None or isinstance(value, Mapping),
    ),
}
"""What is expected of a parameter, and whether a value is that. `fit` checks the other parameters."""


def check_parameters(given: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for a parameter that `fit` doesn't check, or would report by another name."""
    for name, (expected, is_right) in _RULES.items():
        if name in given and not is_right(given[name]):
            raise ConfigurationError(f"{name}: expected {expected}, got {given[name]!r}")
