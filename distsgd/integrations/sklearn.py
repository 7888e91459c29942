"""Estimators of scikit-learn that distsgd trains, on all ranks of an MPI job or in this process alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from distsgd import Array, Loss
from distsgd.integrations.sklearn_base import Distributed
from distsgd.integrations.sklearn_parameters import documented
from distsgd.optim import Optimizer

__all__ = ["DistributedClassifier", "DistributedRegressor"]


@documented(
    network="MLPClassifier",
    loss="Of one label an example softmax-cross-entropy, of several binary-cross-entropy.",
    split=", with as many of each class",
)
class DistributedClassifier(ClassifierMixin, Distributed):
    """A neural network for classes or for several yes-or-no answers, trained by distsgd.

    Under mpirun every rank makes the same calls, and all get the same bits as one process alone.

    Parameters
    ----------
    {parameters}
    class_weight : dict or "balanced", optional
        Weights of classes by label, which multiply the weights of the examples.

    Attributes
    ----------
    model_ : Result
        What `fit` returned: `predict`, `params`, `history`, `summary`, `save`.
    classes_ : array
        The labels in the order of `predict_proba`'s columns.
    loss_, best_loss_ : float
        The last training loss, and the lowest; `best_loss_` is None with `early_stopping`.
    loss_curve_ : list of float
        The training loss of each epoch, also of the fits before where training continued.
    n_iter_ : int
        The epochs of the last fit.
    validation_scores_, best_validation_score_ : list of float, float
        The accuracy after each epoch, of several answers the part that is right, and the best, with `early_stopping`;
        else None.
    n_features_in_, feature_names_in_
        As in every estimator.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> estimator = DistributedClassifier(hidden=(20,), learning_rate=0.1).fit(x, y)
    >>> estimator.score(x, y) > 0.95
    True
    """

    _numeric = False

    # fmt: off
    def __init__(
        self, model: Any = "mlp", *,
        hidden: Any = (100,), activation: str = "relu", loss: str | Loss = "auto",
        optimizer: str | Optimizer = "adam", learning_rate: float | None = None, alpha: float = 1e-4,
        batch_size: int | str = "auto", max_iter: int = 200, tol: float = 1e-4, n_iter_no_change: float = 10,
        early_stopping: bool = False, validation_fraction: float = 0.1, warm_start: bool = False,
        class_weight: Any = None, random_state: Any = None, microbatches: int = 4, dtype: str = "auto",
        verbose: bool = False, communicator: Any = None, fit_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, hidden=hidden, activation=activation, loss=loss, optimizer=optimizer, learning_rate=learning_rate,
            alpha=alpha, batch_size=batch_size, max_iter=max_iter, tol=tol, n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping, validation_fraction=validation_fraction, warm_start=warm_start,
            random_state=random_state, microbatches=microbatches, dtype=dtype, verbose=verbose,
            communicator=communicator, fit_options=fit_options,
        )
        self.class_weight = class_weight
    # fmt: on

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train. Under mpirun collective over the ranks.

        Parameters
        ----------
        X : array-like
            Examples (n, …), dense.
        y : array-like
            Labels (n,) of any type, or 0 and 1 (n, k) of several answers.
        sample_weight : array-like, optional
            Weights (n,); the loss is their weighted mean, and examples of weight 0 are skipped.

        Returns
        -------
        DistributedClassifier
            Itself.
        """
        return self._train(X, y, sample_weight, again=self.warm_start)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train for one epoch of these examples, from the parameters that there are.

        The optimizer begins anew in each call: Adam's moments, momentum and a schedule's time start from zero, where
        scikit-learn's networks keep them. "sgd" has nothing to lose, and large calls lose less than small ones.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array-like, optional
            All labels that any call will have. The first call needs it where its own `y` doesn't have all; later calls
            may repeat it.

        Returns
        -------
        DistributedClassifier
            Itself.
        """
        return self._train(X, y, sample_weight, again=True, once=True, classes=classes)

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class.

        Parameters
        ----------
        X : array-like
            Examples (n, …).

        Returns
        -------
        array
            (n, classes) in the order of `classes_`; of several answers, of each one's 1.
        """
        found: Array = self._of_model("predict_proba", X)
        return found

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithm of `predict_proba`.

        Parameters
        ----------
        X : array-like
            Examples (n, …).

        Returns
        -------
        array
            (n, classes).
        """
        with np.errstate(divide="ignore"):
            logarithms: Array = np.log(self.predict_proba(X))
        return logarithms

    def predict(self, X: Any) -> Array:
        """The most probable class; of several answers, those that are more probable than not.

        Parameters
        ----------
        X : array-like
            Examples (n, …).

        Returns
        -------
        array
            Labels (n,), or 0 and 1 (n, k).
        """
        found: Array = self._of_model("labels", X)
        return found if self._several else self.classes_[found]

    def _check_once(self) -> None:
        super()._check_once()
        if isinstance(self.class_weight, str):
            raise ValueError("class_weight='balanced' knows no later examples; give partial_fit weights by label")

    def _targets(self, y: Array, classes: Any, *, new: bool) -> tuple[Array, int, dict[str, Any]]:
        if new:
            check_classification_targets(y)
            kind = type_of_target(y, input_name="y")
            if kind == "multiclass-multioutput":
                expected = "labels (n,), or 0 and 1 (n, k)"
                raise ValueError(f"y: expected {expected}, got several labels of more than two classes")
            self._several = kind == "multilabel-indicator"
            self._of_validation = "validation_label_accuracy" if self._several else "validation_accuracy"
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes: expected {self.classes_}, as in the first call, got {np.unique(classes)}")
        return self._answers(y, new) if self._several else self._labels(column_or_1d(y, warn=True), classes, new)

    def _answers(self, y: Array, new: bool) -> tuple[Array, int, dict[str, Any]]:
        """Of several answers, 0 and 1 in a column for each."""
        if new:
            self.classes_ = np.arange(y.shape[1])
        if y.shape[1:] != self.classes_.shape:
            raise ValueError(f"y: expected 0 and 1 in {len(self.classes_)} columns, as before, got shape {y.shape}")
        loss = "binary-cross-entropy" if self.loss == "auto" else self.loss
        return y.astype(np.float64), len(self.classes_), {"loss": loss}

    def _labels(self, labels: Array, classes: Any, new: bool) -> tuple[Array, int, dict[str, Any]]:
        """Of one label an example."""
        if new:
            self.classes_ = np.unique(labels if classes is None else classes)
            if len(self.classes_) < 2:
                raise ValueError(f"y: expected labels of at least two classes, got one class alone, {self.classes_[0]}")
        if len(unknown := np.setdiff1d(labels, self.classes_)):
            raise ValueError(f"y: expected labels among the classes {self.classes_}, got {unknown}, which are new")
        targets = LabelEncoder().fit(self.classes_).transform(labels)
        return targets, len(self.classes_), {"loss": self.loss, "classes": (str(len(self.classes_)),)}

    def _weights(self, sample_weight: Any, y: Array) -> Array | None:
        weights = super()._weights(sample_weight, y)
        if self.class_weight is None:
            return weights
        by_class: Array = compute_sample_weight(self.class_weight, y)
        return by_class if weights is None else weights * by_class

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@documented(network="MLPRegressor", loss="squared-error is half of the squared error, as in MLPRegressor.", split="")
class DistributedRegressor(RegressorMixin, Distributed):
    """A neural network for one value or several, trained by distsgd.

    Under mpirun every rank makes the same calls, and all get the same bits as one process alone.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    model_ : Result
        What `fit` returned: `predict`, `params`, `history`, `summary`, `save`.
    loss_, best_loss_ : float
        The last training loss, and the lowest; `best_loss_` is None with `early_stopping`.
    loss_curve_ : list of float
        The training loss of each epoch, also of the fits before where training continued.
    n_iter_ : int
        The epochs of the last fit.
    validation_scores_, best_validation_score_ : list of float, float
        R² after each epoch, and the best, with `early_stopping`; else None.
    n_features_in_, feature_names_in_
        As in every estimator.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> x, y = make_regression(n_features=5, random_state=0)
    >>> estimator = DistributedRegressor(hidden=(20,), learning_rate=0.1, early_stopping=True).fit(x, y)
    >>> estimator.score(x, y) > 0.9
    True
    """

    _numeric = True
    _of_validation = "validation_r2"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train. Under mpirun collective over the ranks.

        Parameters
        ----------
        X : array-like
            Examples (n, …), dense.
        y : array-like
            Values (n,) or (n, k).
        sample_weight : array-like, optional
            Weights (n,); the loss is their weighted mean, and examples of weight 0 are skipped.

        Returns
        -------
        DistributedRegressor
            Itself.
        """
        return self._train(X, y, sample_weight, again=self.warm_start)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch of these examples, from the parameters that there are.

        The optimizer begins anew in each call: Adam's moments, momentum and a schedule's time start from zero, where
        scikit-learn's networks keep them. "sgd" has nothing to lose, and large calls lose less than small ones.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        DistributedRegressor
            Itself.
        """
        return self._train(X, y, sample_weight, again=True, once=True)

    def predict(self, X: Any) -> Array:
        """The predicted values.

        Parameters
        ----------
        X : array-like
            Examples (n, …).

        Returns
        -------
        array
            (n,), or (n, k) where `y` had k columns.
        """
        values: Array = self._of_model("predict", X)
        return values[:, 0] if self._flat else values

    def _targets(self, y: Array, classes: Any, *, new: bool) -> tuple[Array, int, dict[str, Any]]:
        targets = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if new:
            self._flat = targets.ndim == 1
        targets = targets if targets.dtype == np.float32 else targets.astype(np.float64, copy=False)
        return targets, 1 if targets.ndim == 1 else targets.shape[1], {"loss": self.loss}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
