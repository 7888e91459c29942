"""Scores of the parameters in place, on the sets of examples of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np

from distsgd.training.evaluator import Evaluator
from distsgd.training.metrics import Metric, Value
from distsgd.training.step import TrainingStep


@final
class Scores:
    """Scores a step's parameters between two steps, when its rows of gradients are idle: they are scratch memory here.

    evaluators   by the set's name in records: `train_full`, `validation`, `test`; each may be missing
    """

    def __init__(self, step: TrainingStep, evaluators: Mapping[str, Evaluator]) -> None:
        self.step, self.evaluators = step, evaluators
        rows = list(step.reduction.rows.values())
        rows += [np.zeros_like(step.reduction.params) for _ in range(step.workers.count - len(rows))]
        self._scratch = [step.layout.views(row) for row in rows]

    def of(self, name: str, metrics: Sequence[Metric] | None = None) -> dict[str, Value]:
        """{name_loss: …, and each metric}, by other metrics where they are given; empty where the set is missing.
        Collective."""
        evaluator = self.evaluators.get(name)
        if evaluator is None:
            return {}
        if metrics is not None:
            evaluator = replace(evaluator, metrics=metrics)
        values = evaluator.run(self.step.params, self.step.statistics.for_model(), self._scratch)
        return {f"{name}_{key}": value for key, value in values.items()}
