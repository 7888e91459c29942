"""Scores of a whole set of examples: sums over fixed chunks, added in chunk order on rank 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np

from distsgd.core.device import CPU, Array, in_host_memory, to_host
from distsgd.core.errors import DataError, users_code
from distsgd.core.layout import Views
from distsgd.data.checks import is_mapped
from distsgd.data.loader import Loader
from distsgd.nn.batch import Batch
from distsgd.parallel import Communicator
from distsgd.parallel.thread_pool import Workers
from distsgd.parallel.tree import part
from distsgd.training.metrics.base import Metric, Value, checked_sums, checked_value
from distsgd.training.step import TrainingStep

if TYPE_CHECKING:
    from distsgd.core.files import FileStamp

CHUNK = 512
"""Examples scored together. Fixed, so that chunks, and with them the bits of every metric, are the same on any number
of ranks."""


_Part: TypeAlias = tuple[Array, list[tuple[Array, Array]]]


@dataclass
class Evaluator:
    """Scores one set of examples with a model's parameters; the ranks share the chunks."""

    communicator: Communicator
    loader: Loader
    metrics: Sequence[Metric]
    workers: Workers
    on_root_alone: bool = False
    files: Sequence[FileStamp] = ()
    """Those of the run's data that are mapped; one that has changed is a DataError."""

    @cached_property
    def _sums_of(self) -> list[tuple[Metric, slice]]:
        """Each metric with its place in a chunk's sums, after the loss and the examples."""
        ends = list(accumulate((metric.width() for metric in self.metrics), initial=2))
        return [(metric, slice(*place)) for metric, place in zip(self.metrics, pairwise(ends), strict=True)]

    def run(self, params: Views, state: Views, scratch: Sequence[Views]) -> dict[str, Value]:
        """{"loss": …, and each metric}, on every rank. Collective. `scratch` is one gradient buffer a worker."""
        params, state = params.read_only(), state.read_only()  # ranks may share them
        own = self.communicator.everywhere(lambda: self._own_sums(params, state, scratch))
        parts = self.communicator.gather_object(own)
        return self.communicator.on_root(lambda: self._values(parts or []))

    def _own_sums(self, params: Views, state: Views, scratch: Sequence[Views]) -> _Part:
        """(chunks of this rank, 2 + widths of the metrics) float64, and what metrics gather of each chunk."""
        for file in self.files:
            file.check()
        chunks = -(-len(self.loader.examples) // CHUNK)
        rank, size = self.communicator.rank, self.communicator.size
        first, last = (0, chunks if rank == 0 else 0) if self.on_root_alone else part(chunks, size, rank)
        sums = np.zeros((last - first, 2 + sum(metric.width() for metric in self.metrics)))
        kept: list[tuple[Array, Array] | None] = [None] * len(sums)
        workers = self.workers.that_may_call(self.loader.objective, *self.metrics)
        zeroes = not self.loader.objective.overwrites_gradients()  # gradients are scratch memory here

        def run(worker: int) -> None:
            begin, end = part(last - first, workers.count, worker)
            with np.errstate(all="ignore"):
                for index in range(begin, end):
                    if zeroes:
                        scratch[worker].flat[...] = 0.0
                    kept[index] = self._score_chunk(first + index, sums[index], params, state, scratch[worker])

        with users_code(f"scoring failed on rank {rank}"):
            workers.run(run)
        return sums, [one for one in kept if one is not None]

    def _score_chunk(
        self, chunk: int, sums: Array, params: Views, state: Views, scratch: Views
    ) -> tuple[Array, Array] | None:
        """Writes the chunk's sums, and returns copies of its outputs and targets where a metric gathers them."""
        indices = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.loader.examples)))
        batch = self.loader.batch(indices, state)
        loss_sum, count, outputs = self.loader.objective.score(params, scratch, batch)
        self.communicator.heartbeat.progressed()
        sums[:2] = float(loss_sum), count
        if outputs is not None:
            outputs, y = to_host(outputs), to_host(batch.y)
            if (standardized := self.loader.examples.targets) is not None:
                outputs, y = standardized.undo(outputs), standardized.undo(y)
            elif y.ndim == 2 and y.dtype.kind == "f":
                y = self._as_stored(batch, y)
            for metric, place in self._sums_of:
                sums[place] = checked_sums(metric, metric.sums(outputs, y))
            if any(metric.gathers for metric in self.metrics):
                return np.array(outputs), np.array(y)
        return None

    def _as_stored(self, batch: Batch, y: Array) -> Array:
        """Values (K, n) as the data set holds them, where the model's dtype has rounded them: scores are of the user's
        values."""
        stored, device = self.loader.examples.y, self.loader.device
        if stored.dtype == y.dtype:
            return y
        place = device if device.holds(stored) else CPU
        found: Array = to_host(place.take(stored, place.put(batch.indices))).reshape(len(batch.indices), -1).T
        return found.astype(np.float64) if np.array_equal(found.astype(y.dtype), y) else y

    def _values(self, parts: Sequence[_Part]) -> dict[str, Value]:
        """Each value, on rank 0."""
        total = np.zeros(2 + sum(metric.width() for metric in self.metrics))
        for sums, _ in parts:
            for chunk in sums:
                total += chunk
        values: dict[str, Value] = {"loss": float(total[0] / total[1]) if total[1] else math.nan}
        kept = [one for _, chunks in parts for one in chunks]
        whole = tuple(np.concatenate(arrays, axis=-1) for arrays in zip(*kept, strict=True)) if kept else None
        for metric, place in self._sums_of:
            if not metric.gathers:
                value = metric.value(total[place])
            else:
                value = math.nan if whole is None else metric.of_set(*whole)
            values[metric.name] = checked_value(metric, value)
        return values


def predict_all(loader: Loader, params: Views, state: Views) -> Array:
    """The model's predictions for all examples of the loader, (n, outputs), chunk by chunk.

    In the units of the targets, float64, where these were standardized.
    """
    total = len(loader.examples)
    params, state = params.read_only(), state.read_only()
    parts = []
    for start in range(0, max(total, 1), CHUNK):  # of no examples too: the outputs have a number
        batch = loader.batch(np.arange(start, min(start + CHUNK, total)), state)
        predicted = to_host(loader.objective.predict(params, batch))
        if loader.examples.targets is not None:
            predicted = loader.examples.targets.undo(predicted)
        parts.append(
            np.array(np.moveaxis(predicted, -1, 0), order="C")
        )  # a copy: a user's function may return one array in each call
    return np.concatenate(parts)


def _mapped(loaders: Sequence[Loader]) -> list[FileStamp]:
    """The files that the examples of these are mapped from."""
    sets = [loader.examples for loader in loaders]
    given = [array for one in sets for array in (one.x, one.y, one.weights) if array is not None]
    given = [array for array in given if in_host_memory(array)]
    if not any(map(is_mapped, given)):
        return []
    from distsgd.core.files import mapped_files

    try:
        return mapped_files(given)
    except OSError as error:
        raise DataError(f"could not look at the data: {error}; leave the files as they are, and start again") from None


@final
class Scores:
    """Scores a step's parameters between two steps, when its rows of gradients are idle: they are scratch memory here.

    evaluators   by the set's name in records: `train_full`, `validation`, `test`; each may be missing
    in_memory    says what is wrong where arrays in memory have changed: it reads all of them
    """

    def __init__(self, step: TrainingStep, evaluators: Mapping[str, Evaluator]) -> None:
        loaders = [step.loader, *(evaluator.loader for evaluator in evaluators.values())]
        files = step.reduction.communicator.everywhere(lambda: _mapped(loaders))
        self.step, self.files = step, files
        self.in_memory: Callable[[], DataError | None] = lambda: None
        self.evaluators = {name: replace(evaluator, files=files) for name, evaluator in evaluators.items()}

    def _scratch(self) -> list[Views]:
        """An array of the parameters' length for each worker."""
        rows = list(self.step.reduction.rows.values())
        rows += [np.zeros_like(self.step.reduction.params) for _ in range(self.step.workers.count - len(rows))]
        return [self.step.layout.views(row) for row in rows]

    def changed_data(self, final: bool) -> DataError | None:
        """That the data have changed since the attempt began, None where all are as they were; arrays in memory are
        looked at in the end alone."""
        try:
            for file in self.files:
                file.check()
        except DataError as error:
            return error
        return self.in_memory() if final else None

    def of(self, name: str, metrics: Sequence[Metric] | None = None) -> dict[str, Value]:
        """{name_loss: …, and each metric}, by other metrics where they are given; empty where the set is missing.
        Collective."""
        evaluator = self.evaluators.get(name)
        if evaluator is None:
            return {}
        if metrics is not None:
            evaluator = replace(evaluator, metrics=metrics)
        values = evaluator.run(self.step.params, self.step.statistics.for_model(), self._scratch())
        return {f"{name}_{key}": value for key, value in values.items()}
