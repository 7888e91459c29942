"""Examples in memory, and the microbatches gathered from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from distsgd.core.device import CPU, Array, Device, Shape, array_module, is_on_host
from distsgd.core.errors import DataError
from distsgd.core.layout import Views
from distsgd.data.augmentation import Augmentation, example_words, move
from distsgd.data.sampling import index_dtype
from distsgd.nn.batch import Batch
from distsgd.nn.objective import Objective


@dataclass(frozen=True)
class Signature:
    """What a model has to fit: the shape of one example and of its target, () for a label or a single value.

    num_classes is None where targets aren't integer labels; inputs are divided by scale.
    """

    example_shape: Shape
    target_shape: Shape
    num_classes: int | None
    scale: float = 1.0

    def check_axes(self, shape: Shape) -> None:
        """Raises DataError where examples of this shape have their axes in another order; flat ones may come.

        As many numbers as the model takes don't make them the right ones: images may have their channels last.
        """
        known, got = ([length for length in one if length != 1] for one in (self.example_shape, shape))
        if len(known) > 1 and len(got) > 1 and known != got:
            raise DataError(
                f"the model was trained on examples of shape {self.example_shape}, the data has {shape}; put the axes "
                "in the same order"
            )


@dataclass(frozen=True)
class Examples:
    """Inputs x (n, …), targets y (n,) or (n, outputs), and which of them count.

    indices   the numbers of the examples that belong to this set, in order; None for all
    weights   sample weights (n,), or None
    scale     inputs are divided by it as they are gathered, so that bytes stay bytes in memory
    shifts    (down, right) in pixels: x holds images, each of which is as many examples, made as they are gathered;
              number k n + i is row i moved by shifts[k]
    """

    x: Array
    y: Array
    weights: Array | None = None
    scale: float = 1.0
    indices: Array | None = None
    shifts: tuple[tuple[int, int], ...] = ((0, 0),)

    def __len__(self) -> int:
        return self.capacity if self.indices is None else len(self.indices)

    @property
    def capacity(self) -> int:
        """How many numbers there are for examples, of this set or not."""
        return len(self.x) * len(self.shifts)

    def numbers(self, indices: Array) -> Array:
        """The numbers of these of the examples, which are from 0 to below `capacity`."""
        return indices if self.indices is None else self.indices[indices]

    def rows(self, indices: Array) -> Array:
        """The rows of x and y that these of the examples are made from."""
        numbers = self.numbers(indices)
        return numbers if len(self.shifts) == 1 else numbers % len(self.x)

    def subset(self, indices: Array) -> Examples:
        """These of the examples, without copying any."""
        return replace(self, indices=self.numbers(indices))

    def expanded(self, shifts: tuple[tuple[int, int], ...]) -> Examples:
        """Each example once for each of these shifts, without copying any: first all moved by the first, and so on."""
        dtype = index_dtype(len(self.x) * len(shifts))
        rows = np.arange(len(self.x), dtype=dtype) if self.indices is None else self.indices.astype(dtype)
        numbers = np.concatenate([rows + len(self.x) * k for k in range(len(shifts))])
        return replace(self, indices=numbers, shifts=shifts)


@dataclass(slots=True)
class GatheredBatch:
    """Gathered examples: inputs (n, features) in the model's dtype, stored targets, weights, and which they are."""

    x: Array
    y: Array
    weights: Array | None
    indices: Array

    def on(self, device: Device) -> GatheredBatch:
        """A copy on a device; the numbers stay with the host."""
        weights = None if self.weights is None else device.put(self.weights)
        return GatheredBatch(device.put(self.x), device.put(self.y), weights, self.indices)

    def part(self, start: int, stop: int) -> GatheredBatch:
        """Some of them in a row, without a copy."""
        weights = None if self.weights is None else self.weights[start:stop]
        return GatheredBatch(self.x[start:stop], self.y[start:stop], weights, self.indices[start:stop])


@dataclass(frozen=True)
class Loader:
    """Gathers microbatches of examples as an objective takes them; without `with_targets`, inputs alone.

    augmentation   what is done to the images of training batches, and to no others
    device         where batches are computed with; the examples lie there, or in the host's memory
    """

    examples: Examples
    objective: Objective
    dtype: np.dtype
    seed: int
    with_targets: bool = True
    augmentation: Augmentation | None = None
    device: Device = CPU

    def check(self) -> None:
        """Raises DataError where the examples don't fit the objective's input."""
        shape, features = self.objective.input_shape, int(np.prod(self.examples.x.shape[1:]))
        if shape is not None and int(np.prod(shape)) != features:
            raise DataError(
                f"the model takes examples of shape {shape}, {int(np.prod(shape))} numbers each, but the data has "
                f"{self.examples.x.shape[1:]}, {features} numbers each"
            )

    def gather(
        self, indices: Array, epoch: int | None = None, buffer: Array | None = None, numbers: Array | None = None
    ) -> GatheredBatch:
        """These examples, copied out of the data set in the model's dtype; augmented, for training in this epoch.

        `buffer`, at least (n, features) in the model's dtype, takes the inputs where it is given: memory that was used
        before is faster than new. `numbers` has the rows of the data set where these lie on a device already.
        Inputs are C-ordered rows on every path, and handed over transposed, for the memory order of an operand is part
        of what GEMM computes.
        """
        if not is_on_host(self.examples.x):
            inside = self.examples.rows(indices)
            return self._take(indices, inside, self.device.put(inside) if numbers is None else numbers, None, buffer)
        rows = self.gather_here(indices, epoch, buffer)
        return rows if self.device.is_cpu else rows.on(self.device)

    def gather_here(self, indices: Array, epoch: int | None = None, buffer: Array | None = None) -> GatheredBatch:
        """The same of examples in the host's memory, in the host's memory."""
        inside = self.examples.rows(indices)
        # Without "clip" NumPy takes into memory of its own first, in case an index is wrong.
        return self._take(indices, inside, inside, epoch, buffer, mode="clip")

    def _take(
        self, indices: Array, inside: Array, there: Array, epoch: int | None, buffer: Array | None, **how: str
    ) -> GatheredBatch:
        """The examples in rows `inside` of the data set, which are `there` where the data set lies."""
        examples = self.examples
        shape = (len(inside), *examples.x.shape[1:])
        out = None if buffer is None else buffer[: len(inside)].reshape(shape)
        as_it_is = examples.scale == 1.0 and examples.x.dtype == self.dtype
        x = examples.x.take(there, axis=0, out=out if as_it_is else None, **how)  # type: ignore[call-overload]
        self._change(x, examples.numbers(indices), epoch)
        if examples.scale != 1.0:
            x = np.divide(x, examples.scale, out=out, dtype=self.dtype)
        elif x.dtype != self.dtype:
            x = x.astype(self.dtype)
        y = examples.y.take(there, axis=0) if self.with_targets else array_module(x).empty(len(inside), self.dtype)
        weights = None if examples.weights is None else examples.weights.take(there).astype(self.dtype)
        return GatheredBatch(x.reshape(len(inside), math.prod(x.shape[1:])), y, weights, inside)

    def buffer(self, count: int) -> Array:
        """Memory for `gather`, of `count` examples."""
        shape = (count, math.prod(self.examples.x.shape[1:]))
        if is_on_host(self.examples.x):
            return self.device.host_buffer(shape, self.dtype)
        return self.device.xp.empty(shape, self.dtype)  # type: ignore[no-any-return]

    def _change(self, x: Array, numbers: Array, epoch: int | None) -> None:
        """In place, makes of gathered rows x the examples with these numbers, and augments them."""
        examples = self.examples
        if len(examples.shifts) > 1:
            down, right = np.array(examples.shifts)[numbers // len(examples.x)].T
            move(x, down, right, int(np.abs(examples.shifts).max()))
        if epoch is not None and self.augmentation is not None:
            self.augmentation.apply(x, example_words(examples.capacity, self.seed, epoch)[numbers])

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
        """The batch of these examples, by indices or gathered already.

        It is a training batch where `statistics` says where its statistics go.
        """
        training = statistics is not None
        rows = chosen if isinstance(chosen, GatheredBatch) else self.gather(chosen, epoch if training else None)
        x, shape = self.device.aligned(rows.x).T, self.objective.input_shape
        if shape is not None and len(shape) > 1:
            x = x.reshape(*shape, len(rows.indices))
        return Batch(
            x=x,
            y=self.objective.targets(rows.y, self.dtype) if self.with_targets else rows.y,
            indices=rows.indices,
            weights=rows.weights,
            epoch=epoch,
            step=step,
            microbatch=microbatch,
            seed=self.seed,
            training=training,
            state=state,
            statistics={} if statistics is None else statistics,
            device=self.device,
            clock=clock,
        )
