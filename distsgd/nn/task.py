"""What a model's outputs stand for: the one place that says how outputs and targets become labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import CheckpointError, ConfigurationError

Kind: TypeAlias = Literal["classification", "multilabel", "regression", "other"]
Answer: TypeAlias = Literal["logit", "probability", "score"]


@final
@dataclass(frozen=True)
class Task:
    """What is learned. Metrics, evaluation, predictions and pictures ask it, so that all say the same.

    Parameters
    ----------
    kind : str
        "classification": one of several classes; "multilabel": several yes-or-no answers at once; "regression": values;
        "other": what a loss of the user's own takes, where there isn't one output for each class or value.
    num_classes : int, default 0
        The number of classes, or of answers; 0 of values.
    names : tuple of str, optional
        The names of the classes in the order of the labels, where they are known.
    answer : str, default "logit"
        What the single output of two classes is, and each output of several answers: a "logit", whose prediction is its
        sigmoid; a "probability"; or a "score", class 1 above 0, which is its own prediction.
    """

    kind: Kind
    num_classes: int = 0
    names: tuple[str, ...] = ()
    answer: Answer = "logit"

    @property
    def output_threshold(self) -> float:
        """Where class 1 begins in a single output."""
        return 0.5 if self.answer == "probability" else 0.0

    @property
    def prediction_threshold(self) -> float:
        """Where class 1 begins in a single prediction."""
        return 0.0 if self.answer == "score" else 0.5

    def labels(self, predictions: Array) -> Array | None:
        """The labels that predictions stand for.

        Parameters
        ----------
        predictions : array
            As `predict` returns them, (n, k).

        Returns
        -------
        Array or None
            Of classes, int64 (n,), -1 where a prediction is NaN; of several answers, 0 or 1 (n, k); None of values.

        Raises
        ------
        ConfigurationError
            Where there are other outputs than classes or answers.
        """
        self.check_outputs(predictions.shape[1])
        if self.kind == "classification":
            return predicted_classes(predictions.T, self.prediction_threshold)
        if self.kind == "multilabel":
            return (predictions > self.prediction_threshold).astype(np.int64)
        return None

    def check_outputs(self, outputs: int) -> None:
        """Raises ConfigurationError where a model's outputs can't be labels of this task.

        Parameters
        ----------
        outputs : int
            How many the model puts out for one example.
        """
        single = self.kind == "classification" and self.num_classes <= 2
        allowed = (self.num_classes, 1) if single else (self.num_classes,)
        if self.kind in ("classification", "multilabel") and outputs not in allowed:
            what = "answers" if self.kind == "multilabel" else "classes"
            expected = f"{self.num_classes}, or one alone" if single else f"{self.num_classes}"
            raise ConfigurationError(
                f"the targets have {self.num_classes} {what}, the model has {outputs} outputs; give it {expected}, or "
                "say with --classes how many there are"
            )

    def to_document(self) -> dict[str, Any]:
        """The entries of a checkpoint's document.

        Returns
        -------
        dict
            For JSON.
        """
        return asdict(self) | {"names": list(self.names)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Task:
        """From a document's entries.

        Parameters
        ----------
        document : mapping
            As `to_document` returns it.

        Returns
        -------
        Task
            The task.

        Raises
        ------
        CheckpointError
            Where an entry is missing or wrong.
        """
        kind, classes, names, answer = (document.get(key) for key in ("kind", "num_classes", "names", "answer"))
        right = (
            kind in get_args(Kind)
            and answer in get_args(Answer)
            and type(classes) is int
            and (classes > 0) == (kind in ("classification", "multilabel"))
            and type(names) is list
            and len(names) in (0, classes)
            and all(type(name) is str for name in names)
        )
        if not right:
            raise CheckpointError(f"the checkpoint's task is {document!r}, which is none; it was not written whole")
        return cls(kind, classes, tuple(names), answer)  # type: ignore[arg-type]


def predicted_classes(outputs: Array, threshold: float = 0.0) -> Array:
    """The class that each example's outputs say: the first of the largest.

    With one output, class 1 where it is above the threshold, else class 0.

    Parameters
    ----------
    outputs : array
        The model's outputs (K, n).
    threshold : float, default 0.0
        Where class 1 begins, if there is one output.

    Returns
    -------
    array
        Classes (n,), int64; -1 where an output is NaN.
    """
    if len(outputs) == 1:
        return np.where(np.isnan(outputs[0]), -1, (outputs[0] > threshold).astype(np.int64))
    largest = outputs.argmax(axis=0)
    # argmax takes a NaN for the largest, so one look at what it found is enough.
    found = outputs[largest, np.arange(len(largest))]
    return np.where(np.isnan(found), -1, largest)


def true_classes(y: Array) -> Array:
    """The class of each example's target.

    Parameters
    ----------
    y : array
        Labels (n,), or class probabilities (K, n), of which one row is the probability of class 1.

    Returns
    -------
    array
        Labels (n,), int64: `y` itself, or the most probable class; of one row, whether it is above 0.5.
    """
    if y.ndim == 1:
        return y.astype(np.int64, copy=False)
    classes: Array = (y[0] > 0.5).astype(np.int64) if len(y) == 1 else y.argmax(axis=0)
    return classes
