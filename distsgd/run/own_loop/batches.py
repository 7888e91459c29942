"""What a loop of the user's own works on: examples as they are stored, and its batches, with the examples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.layout import Views
from distsgd.core.random import stream, words_of
from distsgd.data.checks import as_array
from distsgd.data.loader import GatheredBatch, Loader
from distsgd.nn.batch import Batch
from distsgd.run.compared.digests import array_text, digest
from distsgd.run.compared.identity import Identity


@dataclass(frozen=True)
class ExampleSet:
    """Examples along the first axis of each array; x may be arrays by name."""

    x: Array | dict[str, Array]
    y: Array | None = None
    weights: Array | None = None

    @classmethod
    def of(cls, x: Any, y: Any, weights: Any, caller: str) -> ExampleSet:
        """Raises DataError for what is no examples; `caller` begins the sentence."""
        found: Array | dict[str, Array]
        if isinstance(x, Mapping):
            found = {str(name): as_array(one, f"x {name}", caller) for name, one in x.items()}
        else:
            found = as_array(x, "x", caller)
        rest = {"y": y, "weights": weights}
        others = {name: None if one is None else as_array(one, name, caller) for name, one in rest.items()}
        made = cls(found, others["y"], others["weights"])
        arrays = made.arrays()
        if not arrays or any(one.ndim == 0 for one in arrays.values()):
            raise DataError(f"{caller}: expected arrays of examples, (n, …); give x at least")
        lengths = {name: len(one) for name, one in arrays.items()}
        if len(set(lengths.values())) > 1 or not len(made):
            texts = ", ".join(f"{length} in {name}" for name, length in lengths.items())
            raise DataError(f"{caller}: expected as many examples in each array, at least one, got {texts}")
        if made.weights is not None and made.weights.ndim != 1:
            raise DataError(f"{caller}: weights: expected one an example, shape (n,), got {made.weights.shape}")
        return made

    def arrays(self) -> dict[str, Array]:
        """By name: `x`, or `x NAME` of several."""
        named = {f"x {name}": one for name, one in self.x.items()} if isinstance(self.x, dict) else {"x": self.x}
        rest = {"y": self.y, "weights": self.weights}
        return named | {name: one for name, one in rest.items() if one is not None}

    def __len__(self) -> int:
        return len(next(iter(self.arrays().values())))

    def add_to(self, identity: Identity) -> str:
        """Describes the arrays for a comparison of ranks; returns their fingerprint. Reads all of them."""
        texts = {name: array_text(one) for name, one in self.arrays().items()}
        for name, text in texts.items():
            identity.say(name, text)
        return digest("\0".join(f"{name}\0{text}" for name, text in texts.items()))

    def rows_of_x(self, rows: Array) -> Any:
        """Copies of these rows of x."""
        if isinstance(self.x, dict):
            return {name: one.take(rows, axis=0) for name, one in self.x.items()}
        return self.x.take(rows, axis=0)


@dataclass
class MicroBatch:
    """The examples of one microbatch, or of a chunk that is scored: what a function of the user's own gets.

    Parameters
    ----------
    x : array, or dict of str to array
        Inputs (n, …), copies of the rows as they are stored.
    y : array or None
        Targets (n, …).
    weights : array or None
        Sample weights (n,), as they were given.
    indices : array
        The rows of the data that the examples are, (n,).
    epoch, step, microbatch, seed : int
        What random numbers may depend on.
    """

    x: Any
    y: Array | None
    weights: Array | None
    indices: Array
    epoch: int = 0
    step: int = 0
    microbatch: int = 0
    seed: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def random_words(self, count: int, purpose: str) -> Array:
        """Random words, the same on any number of ranks, such as for a dropout mask.

        Parameters
        ----------
        count : int
            How many.
        purpose : str
            A name for what they are used for; other names give unrelated words.

        Returns
        -------
        array
            uint64 (count,).

        Examples
        --------
        >>> batch = MicroBatch(np.zeros((2, 3)), None, None, np.arange(2))
        >>> (batch.random_words(6, "dropout").reshape(2, 3) < 0.5 * 2**64).shape
        (2, 3)
        """
        return words_of(stream(self.seed, purpose, self.epoch, self.step, self.microbatch), count)


@final
class DoubledMicroBatch(MicroBatch):
    """A microbatch with each example twice, the second time after all others, and with the same random words."""

    def random_words(self, count: int, purpose: str) -> Array:
        half = super().random_words(-(-count // 2), purpose)
        return np.concatenate([half, half])[:count]


def microbatch(examples: ExampleSet, rows: Array, kind: type[MicroBatch] = MicroBatch, **numbers: int) -> MicroBatch:
    """The microbatch of these rows."""
    y = None if examples.y is None else examples.y.take(rows, axis=0)
    weights = None if examples.weights is None else examples.weights.take(rows)
    return kind(examples.rows_of_x(rows), y, weights, rows, **numbers)


@cache
def _no_inputs() -> Array:
    return np.empty((0, 0))


@final
class RowLoader(Loader):
    """Gathers nothing but the rows' numbers: a function of the user's own gets its arrays as they are stored."""

    def gather(
        self, positions: Array, epoch: int | None = None, buffer: Array | None = None, row_indices: Array | None = None
    ) -> GatheredBatch:
        return GatheredBatch(_no_inputs(), _no_inputs(), None, positions)

    def batch(
        self,
        chosen: Array | GatheredBatch,
        state: Views,
        *,
        step: int = 0,
        epoch: int = 0,
        microbatch: int = 0,
        statistics: Views | None = None,
        clock: Array | None = None,
    ) -> Batch:
        rows = chosen.row_indices if isinstance(chosen, GatheredBatch) else chosen
        return Batch(_no_inputs(), _no_inputs(), rows, None, epoch, step, microbatch, self.seed)


@final
class GlobalBatch:
    """The global minibatch of one step, to be given to `DataParallel.step`, which shares it out.

    Its arrays are copied when they are asked for, and read-only: a change of them would not reach the step.
    """

    def __init__(self, examples: ExampleSet, indices: Array, epoch: int, step: int, stream: object) -> None:
        self._examples, self.indices, self.epoch, self.step, self.stream = examples, indices, epoch, step, stream
        self.is_made = False
        self._found: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"<the batch of step {self.step + 1}, of {len(self)} examples>"

    @property
    def x(self) -> Any:
        """Inputs (n, …), or such arrays by name."""
        return self._once("x", lambda: self._examples.rows_of_x(self.indices))

    @property
    def y(self) -> Any:
        """Targets (n, …), or None."""
        y = self._examples.y
        return self._once("y", lambda: None if y is None else y.take(self.indices, axis=0))

    @property
    def weights(self) -> Any:
        """Sample weights (n,), or None."""
        weights = self._examples.weights
        return self._once("weights", lambda: None if weights is None else weights.take(self.indices))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._found:
            found = self._found[name] = make()
            for array in found.values() if isinstance(found, dict) else () if found is None else (found,):
                array.flags.writeable = False
        return self._found[name]


@dataclass(frozen=True, eq=False)
class Stream:
    """What one call of `batches` has asked for."""

    examples: ExampleSet
    contents: str
    batch_size: int
    epochs: int
    seed: int
    shuffle: bool

    def settings(self) -> dict[str, Any]:
        """What a later call, and a run that resumes, have to give alike."""
        return {"examples": len(self.examples), "batch_size": self.batch_size, "order_seed": self.seed,
                "shuffle": self.shuffle}  # fmt: skip

    @classmethod
    def checked(cls, examples: ExampleSet, contents: str, **numbers: Any) -> Stream:
        """Raises ConfigurationError for numbers that are none."""
        for name in ("batch_size", "epochs"):
            value = numbers[name]
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ConfigurationError(f"batches: {name}: expected a whole number from 1, got {value!r}")
            numbers[name] = int(value)
        seed, shuffle = numbers["seed"], numbers["shuffle"]
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ConfigurationError(f"batches: seed: expected a whole number from 0, got {seed!r}")
        if not isinstance(shuffle, bool | np.bool_):
            raise ConfigurationError(f"batches: shuffle: expected True or False, got {shuffle!r}")
        return cls(examples, contents, numbers["batch_size"], numbers["epochs"], int(seed), bool(shuffle))
