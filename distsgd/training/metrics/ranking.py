"""Metrics of how scores order the examples, exact: of all scores, on rank 0, in O(n log n)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.nn.task import Task, true_classes
from distsgd.training.metrics.base import GatheringMetric, Metric, Value


@dataclass(frozen=True)
class RankingMetric(GatheringMetric):
    """A metric of scores and which examples are positive: of class 1 of two, else the mean over one class against the
    others for all classes, or over all answers. A class that all examples are of, or none, has no score and is left
    out; NaN where there is no score at all, or an output is NaN.

    It gathers all outputs on rank 0: 4 or 8 bytes an output, and about ten times 8 bytes an example while it sorts.

    Parameters
    ----------
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    softmax : bool, optional
        Whether several outputs are logits, whose softmax, in float64, is the score. By default fit takes the task's.
    """

    mode = "max"
    kinds = ("classification", "multilabel")
    answers: bool | None = None
    softmax: bool | None = None

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(
            self,
            answers=task.kind == "multilabel" if self.answers is None else self.answers,
            softmax=task.answer == "logit" if self.softmax is None else self.softmax,
        )

    def binary(self, scores: Array, positive: Array) -> float:
        """The value of one class.

        Parameters
        ----------
        scores : array
            float64 (n,).
        positive : array
            Which examples are of the class, (n,): some are, and some aren't.

        Returns
        -------
        float
            From 0 to 1.
        """
        raise NotImplementedError

    def of_set(self, outputs: Array, y: Array) -> Value:
        """The mean over the classes."""
        if np.isnan(outputs).any():
            return math.nan
        found = [
            self.binary(scores, positive)
            for scores, positive in self._columns(outputs, y)
            if positive.any() and not positive.all()
        ]
        return math.fsum(found) / len(found) if found else math.nan

    def _columns(self, outputs: Array, y: Array) -> Iterator[tuple[Array, Array]]:
        scores = outputs.astype(np.float64)
        if self.answers:
            yield from zip(scores, y > 0.5, strict=True)
            return
        labels = true_classes(y)
        if len(scores) <= 2:
            # The difference orders as the softmax does, without the ties that rounding makes near 0 and 1.
            yield scores[0] if len(scores) == 1 else scores[1] - (scores[0] if self.softmax else 0.0), labels == 1
            return
        if self.softmax:
            scores = np.exp(scores - scores.max(axis=0))
            scores /= scores.sum(axis=0)
        yield from ((row, labels == label) for label, row in enumerate(scores))


@final
@dataclass(frozen=True)
class RocAuc(RankingMetric):
    """The area under the receiver operating characteristic: the part of all pairs of a positive and a negative example
    in which the positive one has the larger score; a tie counts a half.

    scikit-learn's roc_auc_score, with multi_class="ovr" and average="macro" where there are several classes.

    Parameters
    ----------
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    softmax : bool, optional
        Whether several outputs are logits, whose softmax, in float64, is the score. By default fit takes the task's.

    References
    ----------
    .. [1] Hanley, McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
       Radiology 143 (1982).
    """

    name = "roc_auc"

    def binary(self, scores: Array, positive: Array) -> float:
        _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        twice_the_rank = 2 * ends - counts + 1  # the mean rank of equal scores, in whole numbers
        total, yes = len(scores), int(np.count_nonzero(positive))
        ranks = int(twice_the_rank[place[positive]].sum())
        return (ranks - yes * (yes + 1)) / (2 * yes * (total - yes))


@final
@dataclass(frozen=True)
class AveragePrecision(RankingMetric):
    """Σ (R_i - R_(i-1)) P_i over the distinct scores from the largest: P_i and R_i are precision and recall of the
    examples with this score or a larger one.

    scikit-learn's average_precision_score, with average="macro" where there are several classes.

    Parameters
    ----------
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    softmax : bool, optional
        Whether several outputs are logits, whose softmax, in float64, is the score. By default fit takes the task's.

    References
    ----------
    .. [1] Zhu, "Recall, precision and average precision", University of Waterloo (2004).
    """

    name = "average_precision"

    def binary(self, scores: Array, positive: Array) -> float:
        _, place, counts = np.unique(-scores, return_inverse=True, return_counts=True)
        hits = np.bincount(place[positive], minlength=len(counts))
        precision = np.cumsum(hits) / np.cumsum(counts)
        return math.fsum((precision * hits).tolist()) / int(hits.sum())
