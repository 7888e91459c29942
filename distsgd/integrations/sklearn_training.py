"""What the estimators of `distsgd.integrations.sklearn` need to call `fit`: seeds, weights, models, when to stop."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from sklearn.utils import check_array, check_random_state

from distsgd import Array, Callback, ConfigurationError, Layer, RunView
from distsgd.nn import Objective

_LARGEST_SEED = 2**31 - 1
PARAMETER_OF = {
    "epochs": "max_iter",
    "lr": "learning_rate",
    "l2": "alpha",
    "patience": "n_iter_no_change",
    "min_delta": "tol",
    "seed": "random_state",
    "quiet": "verbose",
    "classes": "partial_fit(classes=)",
    "params": "warm_start",
    "weights": "fit(sample_weight=)",
    "class_weights": "class_weight",
    "validation": "early_stopping",
}
"""Keywords of `fit`, and the parameter of an estimator that says the same; other parameters have the same name."""


class StopAtPlateau(Callback):
    """Ends the run after more than `patience` epochs in turn without a training loss that is lower by `tol`.

    It is called on rank 0 alone, with numbers that are the same on any number of ranks.
    """

    def __init__(self, tol: float, patience: float) -> None:
        self.tol, self.patience = tol, patience
        self.best, self.without = np.inf, 0

    def on_start(self, run: RunView) -> None:
        self.run = run

    def on_record(self, record: Mapping[str, Any]) -> None:
        if record["step"] % self.run.steps_per_epoch == 0 and self.ends([record["train_loss"]]):  # others: of log_every
            self.run.stop()

    def ends(self, losses: Iterable[float]) -> bool:
        """Whether these losses of further epochs end the run."""
        for loss in losses:
            self.without = self.without + 1 if loss > self.best - self.tol else 0
            self.best = min(self.best, loss)
        return self.without > self.patience


def seed_of(random_state: Any) -> int:
    """The seed of a fit: 0 for None, for all ranks need the same; a generator is drawn from once."""
    if random_state is None:
        return 0
    if isinstance(random_state, int | np.integer):
        check_random_state(random_state)  # raises ValueError for one that can't be a seed
        return int(random_state)
    return int(check_random_state(random_state).randint(_LARGEST_SEED))


def weights_of(sample_weight: Any, examples: int) -> Array | None:
    """The weights of the examples, float64, or None. A number stands for as many equal weights."""
    if sample_weight is None:
        return None
    if np.isscalar(sample_weight):
        sample_weight = np.full(examples, sample_weight)
    weights: Array = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weights.shape != (examples,):
        raise ValueError(f"sample_weight: expected shape ({examples},), one weight an example, got {weights.shape}")
    if weights.min() < 0 or not weights.any():
        raise ValueError("sample_weight: expected no weight below zero and not all of them zero")
    return weights


def batch_size_of(batch_size: int | str, examples: int) -> int:
    """A minibatch's examples: at most all, and 200 for `auto`, as in scikit-learn."""
    if isinstance(batch_size, str):
        return min(200, examples) if batch_size == "auto" else examples
    return min(batch_size, examples)


def model_of(model: Any, example_shape: tuple[int, ...], outputs: int) -> Layer | Objective | str:
    """The model that is trained: a copy of an objective, which may hold arrays; what a function builds; or itself."""
    if isinstance(model, str | Layer):
        return model
    if isinstance(model, Objective):
        return copy.deepcopy(model)
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    if module is not None and isinstance(model, module):
        raise ConfigurationError(
            "model: a module of PyTorch has no loss; give TorchModel(module, loss), of distsgd.integrations.torch"
        )
    if not callable(model):
        raise ConfigurationError(
            f"model: expected a name, a list of layers such as 'dense 64, relu, dense', a Layer, an Objective such as "
            f"a TorchModel, or a function (example_shape, outputs) that builds one, got {type(model).__name__}"
        )
    build: Callable[[tuple[int, ...], int], Any] = model
    built = build(example_shape, outputs)
    if not isinstance(built, Layer | Objective):
        raise ConfigurationError(
            f"model: the function must return a Layer or an Objective such as a TorchModel, got {type(built).__name__}"
        )
    return built


def options_of_model(model: Any, hidden: Any, activation: str) -> dict[str, Any]:
    """`hidden` and `activation` as options of `mlp`. Raises ConfigurationError where they would be ignored."""
    units = tuple(np.atleast_1d(hidden).tolist())
    if model == "mlp":
        return {"hidden": units, "activation": activation}
    for name, value, default in (("hidden", units, (100,)), ("activation", activation, "relu")):
        if value != default:
            raise ConfigurationError(f"{name}: would change nothing, for it is an option of mlp; put it into the model")
    return {}


def penalty_of(alpha: float, weight: float, model: Layer | Objective | str) -> dict[str, float]:
    """scikit-learn's `alpha`: a minibatch whose weights add up to `weight` has the penalty alpha / (2 weight) Σw²."""
    matrices = isinstance(model, str) or any(len(shape) > 1 for shape in model.parameter_shapes().values())
    return {"l2": alpha / (2 * weight)} if alpha and matrices else {}


def columns_without_numbers(x: Any) -> list[str]:
    """The names of a table's columns that aren't of numbers."""
    kinds = getattr(x, "dtypes", None)
    if kinds is None or not hasattr(kinds, "items"):
        return []
    return [str(name) for name, kind in kinds.items() if getattr(kind, "kind", "O") not in "biuf"]


def other_options(given: Any, parameters: Collection[str]) -> dict[str, Any]:
    """`fit_options`. Raises ValueError for one that is a parameter of the estimator."""
    if not isinstance(given, Mapping | None):
        raise ConfigurationError(f"fit_options: expected options by name, got {given!r}")
    options = dict(given or {})
    for name in options:
        own = PARAMETER_OF.get(name, name if name in parameters else None)
        if own is not None:
            raise ValueError(f"fit_options: {name} is the estimator's {own}; give it there")
    return options
