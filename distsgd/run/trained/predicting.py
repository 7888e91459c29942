"""The predictions of trained models for examples of any number: round by round, shared by the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from distsgd.core.device import Array
from distsgd.data.checks import check_rows, stays_in_files
from distsgd.data.loader import Loader
from distsgd.parallel import Communicator
from distsgd.run.trained.stored_model import StoredModel
from distsgd.training.evaluator import CHUNK, predict_all

_CHUNKS = 16
"""Chunks of examples of a rank in a round."""
_LOOKED_AT, _PLACES = 512, 8
"""Rows of each of so many evenly spread places that are looked at for unusual inputs that stay in files."""

Part: TypeAlias = tuple[Array, Array | None]
"""Predictions (n, k), and how far the members of an ensemble differ."""


@dataclass(frozen=True)
class Predictor:
    """Predicts with one trained model, or the mean of several.

    Parameters
    ----------
    models
        The models.
    x
        Inputs (n, …), in memory or in files.
    name
        What messages call the inputs.
    """

    models: Sequence[StoredModel]
    x: Array
    name: str

    def doubts(self) -> Iterator[str]:
        """A sentence for each model whose training inputs lay elsewhere."""
        rows = looked_at(self.x)
        for one in self.models:
            if doubt := one.signature.doubt(rows):
                yield doubt

    def run(self, communicator: Communicator, append: Callable[[int, Part], None]) -> None:
        """Calls `append` on rank 0 with the first row of some examples, and their predictions, in order. Collective.

        Each rank gets whole chunks, so that predictions are the same on any number of them.
        """
        total, together = len(self.x), _CHUNKS * CHUNK
        loaders = [self._loader(one) for one in self.models]
        for start in range(0, max(total, 1), together * communicator.size):
            first = min(start + together * communicator.rank, total)
            rows = range(first, min(first + together, total))
            alone = not total and communicator.is_root  # of no examples too: predictions have a number of outputs
            mine = communicator.everywhere(partial(self._predict, loaders, rows) if rows or alone else lambda: None)
            communicator.on_root(partial(_append, append, start, communicator.gather_object(mine)))

    def _loader(self, model: StoredModel) -> Loader:
        check = check_rows(self.name, np.dtype(model.config.dtype))
        return model.loader(replace(model.signature.examples(self.x), check=check))

    def _predict(self, loaders: Sequence[Loader], rows: range) -> Part:
        some = np.arange(rows.start, rows.stop)
        found = [
            predict_all(replace(loader, examples=loader.examples.subset(some)), one.params, one.state)
            for one, loader in zip(self.models, loaders, strict=True)
        ]
        return (found[0], None) if len(found) == 1 else mean_and_spread(found)


def _append(append: Callable[[int, Part], None], start: int, parts: Sequence[Part | None] | None) -> None:
    for one in parts or ():
        if one is not None:
            append(start, one)
            start += len(one[0])


@contextmanager
def in_use(x: Array) -> Iterator[None]:
    """Closes, when the block ends, the file of inputs that stay there."""
    try:
        yield
    finally:
        if stays_in_files(x):
            x.close()  # type: ignore[attr-defined]


def looked_at(x: Array) -> Array:
    """The rows that are looked at for unusual inputs: all of those in memory."""
    if not stays_in_files(x) or len(x) <= _LOOKED_AT * _PLACES:
        return x if not stays_in_files(x) else x[:]
    starts = [(len(x) - _LOOKED_AT) * place // (_PLACES - 1) for place in range(_PLACES)]
    return np.concatenate([x[start : start + _LOOKED_AT] for start in starts])


def mean_and_spread(predictions: Iterable[Array]) -> tuple[Array, Array]:
    """The mean and the standard deviation over predictions of the same shape, in their order, in float64."""
    found = [np.asarray(one, np.float64) for one in predictions]
    mean = sum(found[1:], found[0]) / len(found)
    deviations = [np.square(one - mean) for one in found]
    return mean, np.sqrt(sum(deviations[1:], deviations[0]) / len(found))
