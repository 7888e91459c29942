"""One microbatch's part of a minibatch, and everything that a computation on it may depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distsgd.core.device import CPU, Array, Device
from distsgd.core.random import Stream, stream, words_of

_NO_ARRAYS: Mapping[str, Array] = {}


@dataclass(slots=True)
class Batch:
    """The examples of one microbatch. Arrays inside a model are batch-last: `x` is (features…, n).

    The arrays are the step's, which uses their memory again: copy what has to outlive the call.

    x           inputs (…, n), the transposed view of C-ordered rows, in the parameters' dtype
    y           targets: labels (n,) int64, or values (outputs, n)
    weights     sample weights (n,), or None
    indices     which rows of the data these are, (n,)
    state       running statistics of the model (read only)
    clock       epoch and step in the memory of a GPU, where it records this step to make others like it
    statistics  float64 views where this microbatch's batch statistics go, by name, for training alone
    """

    x: Array
    y: Array
    indices: Array
    weights: Array | None = None
    epoch: int = 0
    step: int = 0
    microbatch: int = 0
    seed: int = 0
    training: bool = False
    state: Mapping[str, Array] = field(default_factory=lambda: _NO_ARRAYS)
    statistics: Mapping[str, Array] = field(default_factory=lambda: _NO_ARRAYS)
    device: Device = CPU
    clock: Array | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def random_words(self, count: int, purpose: str) -> Array:
        """`count` random uint64 words, a function of (seed, purpose, epoch, step, microbatch) alone."""
        return words_of(self.random_stream(purpose), count)

    def random_stream(self, purpose: str) -> Stream:
        """Where these words begin, for kernels that make them where they are used."""
        return stream(self.seed, purpose, self.epoch, self.step, self.microbatch)._replace(clock=self.clock)
