"""What a model's outputs stand for: the one place that says how outputs and targets become labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import CheckpointError

Kind: TypeAlias = Literal["classification", "multilabel", "regression"]
Answer: TypeAlias = Literal["logit", "probability", "score"]


@final
@dataclass(frozen=True)
class Task:
    """What is learned. Metrics, evaluation, predictions and pictures ask it, so that all say the same.

    Parameters
    ----------
    kind
        "classification": one of several classes; "multilabel": several yes-or-no answers at once; "regression": values.
    num_classes
        The number of classes, or of answers; 0 of a regression.
    names
        The names of the classes in the order of the labels, where they are known.
    answer
        What a single output is that tells class 1 from class 0, and each output of several answers: a "logit", whose
        prediction is its sigmoid; a "probability"; or a "score", class 1 above 0, which is its own prediction.
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
        """The labels of predictions (n, k).

        Returns
        -------
        Array or None
            Of classes, int64 (n,), -1 where a prediction is NaN; of several answers, 0 or 1 (n, k); None of values.
        """
        if self.kind == "classification":
            return predicted_classes(predictions.T, self.prediction_threshold)
        if self.kind == "multilabel":
            return (predictions > self.prediction_threshold).astype(np.int64)
        return None

    def to_document(self) -> dict[str, Any]:
        """The entries of a checkpoint's document."""
        return asdict(self) | {"names": list(self.names)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Task:
        """From a document's entries. Raises CheckpointError where one is missing or wrong."""
        kind, classes, names, answer = (document.get(key) for key in ("kind", "num_classes", "names", "answer"))
        right = (
            kind in get_args(Kind)
            and answer in get_args(Answer)
            and type(classes) is int
            and (classes > 0) == (kind != "regression")
            and type(names) is list
            and len(names) in (0, classes)
            and all(type(name) is str for name in names)
        )
        if not right:
            raise CheckpointError(f"the checkpoint's task is {document!r}, which is none; it was not written whole")
        return cls(kind, classes, tuple(names), answer)  # type: ignore[arg-type]


def predicted_classes(outputs: Array, threshold: float = 0.0) -> Array:
    """Predicted classes (n,), int64, of outputs (K, n): the first of the largest; -1 where an output is NaN.

    With one output, class 1 where it is above `threshold`, else class 0.
    """
    if len(outputs) == 1:
        return np.where(np.isnan(outputs[0]), -1, (outputs[0] > threshold).astype(np.int64))
    largest = outputs.argmax(axis=0)
    # argmax takes a NaN for the largest, so one look at what it found is enough.
    found = outputs[largest, np.arange(len(largest))]
    return np.where(np.isnan(found), -1, largest)


def true_classes(y: Array) -> Array:
    """Labels (n,), int64: `y` itself, or the most probable class of probabilities (K, n); of one row, whether > 0.5."""
    if y.ndim == 1:
        return y.astype(np.int64, copy=False)
    classes: Array = (y[0] > 0.5).astype(np.int64) if len(y) == 1 else y.argmax(axis=0)
    return classes
