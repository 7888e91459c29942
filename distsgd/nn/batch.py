"""One microbatch of a minibatch, and everything that a computation on it may depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distsgd.core.device import CPU, Array, Device
from distsgd.core.random import Stream, stream, words_of


@dataclass(slots=True)
class Batch:
    """The examples of one microbatch.

    Arrays inside a model are batch-last: `x` is (features…, n). They are views of memory that the next step uses again:
    copy what has to outlive the call.

    Parameters
    ----------
    x : array
        Inputs (…, n) in the parameters' dtype, the transposed view of C-ordered rows.
    y : array
        Targets: labels (n,) int64, or values (outputs, n).
    indices : array
        The rows of the data that the examples come from, (n,).
    weights : array, optional
        Sample weights (n,), or None.
    epoch, step, microbatch, seed : int, default 0
        What random numbers may depend on.
    training : bool, default False
        Whether this is a training step; else the batch is evaluated.
    state : mapping of str to array, optional
        Running statistics of the model, by name; read only.
    statistics : mapping of str to array, optional
        In training, float64 views by name, into which layers write this microbatch's statistics.
    device : Device, optional
        Where the arrays are.
    clock : array, optional
        Epoch and step in the device's memory, where the device records this step to replay it; else None.
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
    state: Mapping[str, Array] = field(default_factory=dict)
    statistics: Mapping[str, Array] = field(default_factory=dict)
    device: Device = CPU
    clock: Array | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def random_words(self, count: int, purpose: str) -> Array:
        """Random words, a function of (seed, purpose, epoch, step, microbatch) alone.

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
        """
        return words_of(self.random_stream(purpose), count)

    def random_stream(self, purpose: str) -> Stream:
        """The stream of `random_words`, for kernels that generate words where they are used.

        Parameters
        ----------
        purpose : str
            A name for what they are used for.

        Returns
        -------
        Stream
            Philox's key and counter.
        """
        return stream(self.seed, purpose, self.epoch, self.step, self.microbatch)._replace(clock=self.clock)
