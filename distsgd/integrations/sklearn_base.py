"""What both estimators of `distsgd.integrations.sklearn` share: the parameters, the call of `fit`, what it leaves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.exceptions import DTypePromotionError
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data

from distsgd import Array, DistsgdError, Loss
from distsgd.integrations.sklearn_parameters import check_parameters
from distsgd.integrations.sklearn_refusals import (
    AsWarnings,
    as_scikit_learns,
    checks,
    fit_as_prepared,
    in_joblib_thread,
    one_at_a_time,
    rank_and_size,
    warnings_of_one,
)
from distsgd.integrations.sklearn_training import (
    StopAtPlateau,
    batch_size_of,
    columns_without_numbers,
    model_of,
    options_of_model,
    other_options,
    penalty_of,
    seed_of,
    weights_of,
)
from distsgd.nn import Objective
from distsgd.optim import Optimizer


class Distributed(BaseEstimator):
    """What both estimators share: the parameters, and the call of `fit`."""

    _of_validation = ""
    """The metric of a record that `validation_scores_` lists."""

    def __init__(
        self,
        model: Any = "mlp",
        *,
        hidden: Any = (100,),
        activation: str = "relu",
        loss: str | Loss = "auto",
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        max_iter: int = 200,
        tol: float = 1e-4,
        n_iter_no_change: float = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: Any = None,
        microbatches: int = 4,
        dtype: str = "auto",
        verbose: bool = False,
        communicator: Any = None,
        fit_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.hidden = hidden
        self.activation = activation
        self.loss = loss
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.random_state = random_state
        self.microbatches = microbatches
        self.dtype = dtype
        self.verbose = verbose
        self.communicator = communicator
        self.fit_options = fit_options

    def _train(
        self, X: Any, y: Any, sample_weight: Any, *, again: bool, classes: Any = None, once: bool = False
    ) -> Self:
        """Trains; `again` continues from the present parameters where there are any, `once` makes one epoch."""
        communicator = "self" if in_joblib_thread() else self.communicator
        rank, size = rank_and_size(communicator)
        before = self.model_ if again and hasattr(self, "model_") else None

        def prepare() -> dict[str, Any]:
            with checks(size):
                check_parameters(self.get_params(deep=False))
                if once:
                    self._check_once()
                x, targets, weights, outputs, options = self._examples(X, y, sample_weight, classes, before)
            model = model_of(self.model, x.shape[1:], outputs)
            with checks(size):
                options |= {"epochs": 1 if once else self.max_iter}
                return self._arguments(model, x, targets, weights, before, options, watched=not once)

        with warnings_of_one(rank), one_at_a_time(self.model):
            result = fit_as_prepared(prepare, communicator, size)
            losses = self._keep(result, before)
            if not once and not self.early_stopping and not StopAtPlateau(self.tol, self.n_iter_no_change).ends(losses):
                text = f"the training loss hasn't converged in {len(losses)} epochs; max_iter= takes more"
                warnings.warn(text, ConvergenceWarning, stacklevel=3)
        return self

    def _check_once(self) -> None:
        """Raises ValueError for a parameter that partial_fit can't respect."""
        if self.early_stopping:
            raise ValueError("early_stopping: partial_fit makes one epoch, which nothing stops; leave it out")

    def _examples(self, X: Any, y: Any, sample_weight: Any, classes: Any, before: Any) -> tuple[Any, ...]:
        """(inputs, targets, weights or None, the number of outputs, options of `fit` that go with the targets)."""
        x, y = self._numbers(X, y, reset=before is None, multi_output=True, y_numeric=self._numeric)
        y = y.toarray() if issparse(y) else y
        weights = self._weights(sample_weight, y)
        targets, outputs, options = self._targets(y, classes, new=before is None)
        if weights is not None and not weights.all():
            x, targets, weights = (array[weights > 0] for array in (x, targets, weights))
        return x, targets, weights, outputs, options

    def _arguments(
        self, model: Any, x: Array, targets: Array, weights: Array | None, before: Any, options: dict[str, Any], *,
        watched: bool,
    ) -> dict[str, Any]:  # fmt: skip
        """What `fit` is called with; `watched`: training ends where the training loss no longer improves."""
        x = self._as_inputs(x, model, new=before is None)
        options |= {"seed": seed_of(self.random_state)}
        validation: tuple[Any, ...] | None = None
        if self.early_stopping:
            x, targets, weights, *held_out = self._split(x, targets, weights, options["seed"])
            validation = tuple(held_out)
        mean_weight = 1.0 if weights is None else float(weights.mean())
        options |= self._options(model, len(x), mean_weight)
        callbacks = [*options.pop("callbacks", ()), AsWarnings()]
        if watched and not self.early_stopping:
            callbacks.append(StopAtPlateau(self.tol, self.n_iter_no_change))
        return {
            "model": model,
            "x": x,
            "y": targets,
            "weights": None if weights is None else weights / mean_weight,
            "validation": validation,
            "params": None if before is None else {**before.params, **before.state},
            "optimizer": self.optimizer,
            "callbacks": callbacks,
            **options,
        }

    def _numbers(self, *arrays: Any, **how: Any) -> Any:
        """The arrays as scikit-learn checks them. Raises ValueError, with the names of columns that aren't numbers."""
        try:
            checked = validate_data(self, *arrays, dtype="numeric", allow_nd=True, **how)
            x, *others = checked if len(arrays) > 1 else (checked,)
            x = x.astype(np.float64) if x.dtype == object else x  # a table's categories
        except (ValueError, TypeError) as error:
            names = columns_without_numbers(arrays[0])
            if not names or not ("could not convert" in str(error) or isinstance(error, DTypePromotionError)):
                raise
            what = f"in the column {names[0]}" if len(names) == 1 else f"in the columns {', '.join(names)}"
            remedy = "encode them first, such as by OneHotEncoder in a ColumnTransformer"
            raise ValueError(f"X: expected numbers, got other values {what}; {remedy}") from None
        return (x, *others) if others else x

    def _targets(self, y: Array, classes: Any, *, new: bool) -> tuple[Array, int, dict[str, Any]]:
        """(targets as `fit` takes them, the number of outputs, options of `fit` that go with them)."""
        raise NotImplementedError

    def _weights(self, sample_weight: Any, y: Array) -> Array | None:
        """The weights of the examples, or None."""
        return weights_of(sample_weight, len(y))

    def _options(self, model: Any, examples: int, mean_weight: float) -> dict[str, Any]:
        """Keywords of `fit`, but those that depend on targets."""
        size = batch_size_of(self.batch_size, examples)
        options: dict[str, Any] = options_of_model(self.model, self.hidden, self.activation)
        options |= penalty_of(self.alpha, size * mean_weight, model)
        options |= {"batch_size": size, "microbatches": self.microbatches}
        options |= {"dtype": self._dtype.name, "quiet": not self.verbose}
        if self.learning_rate is not None:
            options["lr"] = self.learning_rate
        if self.early_stopping:
            patience = 0 if np.isinf(self.n_iter_no_change) else self.n_iter_no_change
            options |= {"early_stopping": "epochs", "patience": patience, "min_delta": self.tol}
        return options | other_options(self.fit_options, self.get_params(deep=False))

    def _as_inputs(self, x: Array, model: Any, *, new: bool) -> Array:
        """The inputs in the dtype of the parameters; integers stay where the model takes them as they are."""
        if new:
            objective = isinstance(model, Objective)
            chosen = "float32" if objective or x.dtype == np.float32 else "float64"
            self._dtype = np.dtype(chosen if self.dtype == "auto" else self.dtype)
            self._as_stored = objective and getattr(model, "inputs_as_stored", False)
        return x if self._as_stored else x.astype(self._dtype, copy=False)

    def _split(self, x: Array, targets: Array, weights: Array | None, seed: int) -> list[Any]:
        """(x, targets, weights) to train on, then (x, targets) to validate with; of classes as many of each."""
        arrays = [x, targets] if weights is None else [x, targets, weights]
        stratify = targets if targets.dtype.kind == "i" else None
        parts = train_test_split(
            *arrays, test_size=self.validation_fraction, random_state=seed % 2**32, stratify=stratify
        )
        train, validation = parts[::2], parts[1::2]
        return [*train, *[None] * (3 - len(train)), *validation[:2]]

    def _keep(self, result: Any, before: Any) -> list[float]:
        """Stores what training returned, in attributes as MLPClassifier has them; returns the losses of its epochs."""
        steps = max(result.summary["steps"] // max(result.summary["epochs"], 1), 1)
        epochs = [record for record in result.history if record["step"] % steps == 0]
        losses = [record["train_loss"] for record in epochs]
        scores = [record[self._of_validation] for record in epochs if self._of_validation in record]
        self.loss_curve_: list[float] = [*(self.loss_curve_ if before is not None else ()), *losses]
        self.model_, self.n_iter_, self.loss_ = result, len(epochs), self.loss_curve_[-1]
        self.best_loss_ = None if self.early_stopping else min(self.loss_curve_)
        self.validation_scores_ = scores if self.early_stopping else None
        self.best_validation_score_ = max(scores) if self.early_stopping and scores else None
        return losses

    def _of_model(self, method: str, X: Any) -> Any:
        """What a method of the model returns for examples, checked as those of `fit`."""
        check_is_fitted(self, "model_")
        x = self._numbers(X, reset=False)
        try:
            return getattr(self.model_, method)(x if self._as_stored else x.astype(self._dtype, copy=False))
        except DistsgdError as error:
            raise as_scikit_learns(error) from None

    def __sklearn_clone__(self) -> Self:
        """A clone trains on the same ranks: a communicator of mpi4py can't be copied as other parameters are."""
        cloned: Self = BaseEstimator.__sklearn_clone__(copy.copy(self))
        cloned.communicator = self.communicator
        return cloned

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # of copies, too
        return state if isinstance(self.communicator, str | None) else {**state, "communicator": None}
