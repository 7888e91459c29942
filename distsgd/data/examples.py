"""Examples in memory: arrays, and which of their rows count as examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.core.random import index_dtype
from distsgd.data.features import Ranges, Standardization, other_units

if TYPE_CHECKING:
    from distsgd.data.columns import Columns
    from distsgd.data.splits import BlockIndices


@dataclass(frozen=True)
class Signature:
    """What a model has to fit.

    Parameters
    ----------
    example_shape, target_shape
        The shapes of one example and of its target; () for a label or a single value.
    num_classes
        The number of classes of integer labels, None for other targets.
    scale
        Inputs are divided by it.
    inputs, targets
        How inputs and targets are standardized, where they are.
    range
        The least and the greatest of the training inputs that were looked at.
    target_mean
        Of the training targets, where they are values.
    features
        The ranges of each feature of the training inputs.
    columns
        Which columns of a table the inputs and targets are, where they come from one.
    class_names
        The names of the classes in the order of the labels, where the data have them.
    """

    example_shape: Shape
    target_shape: Shape
    num_classes: int | None
    scale: float = 1.0
    inputs: Standardization | None = None
    targets: Standardization | None = None
    range: tuple[float, float] | None = None
    target_mean: tuple[float, ...] = ()
    features: Ranges | None = None
    columns: Columns | None = None
    class_names: tuple[str, ...] = ()

    def examples(self, x: Array, y: Array | None = None, weights: Array | None = None) -> Examples:
        """Examples that are scaled and standardized as those of training were."""
        return Examples(x, x if y is None else y, weights, self.scale, inputs=self.inputs, targets=self.targets)

    def doubt(self, x: Array) -> str | None:
        """A sentence about inputs that lie elsewhere than those of training, None where there is nothing to say."""
        return None if self.range is None or not len(x) else other_units(x, self.range, self.features)

    def other_units(self, theirs: Signature) -> list[str]:
        """Sentences about units in which parameters took numbers, and in which they don't any more."""
        found = []
        for what, then, now in (("inputs", theirs.inputs, self.inputs), ("targets", theirs.targets, self.targets)):
            if (then is None) != (now is None):
                before, after = ("as they were", "standardized") if then is None else ("standardized", "as they are")
                found.append(f"its parameters took {what} {before}, this run takes them {after}")
            elif then != now:
                found.append(f"its parameters took {what} standardized by other means and spreads than this run's")
        if theirs.inputs is None and self.inputs is None and theirs.scale != self.scale:
            found.append(f"its parameters took inputs divided by {theirs.scale:g}, this run divides by {self.scale:g}")
        return found

    def check_axes(self, shape: Shape) -> None:
        """Raises DataError where examples of this shape have their axes in another order; flat ones are accepted.

        The right number of values is not enough: images may have their channels last.
        """
        known, got = ([length for length in one if length != 1] for one in (self.example_shape, shape))
        if len(known) > 1 and len(got) > 1 and known != got:
            raise DataError(
                f"the model was trained on examples of shape {self.example_shape}, the data has {shape}; put the axes "
                "in the same order"
            )


@dataclass(frozen=True)
class Examples:
    """Inputs and targets in memory, and which of them belong to this set.

    Three indices name an example: its position in the set, its example index, and the row of x and y it is made from.
    Without shifts, example and row index are equal.

    Parameters
    ----------
    x, y
        Inputs (n, …), and targets (n,) or (n, outputs).
    weights
        Sample weights (n,), or None.
    scale
        Inputs are divided by it when they are gathered, so that bytes stay bytes in memory.
    indices
        Example indices of this set, in order; None for all. An array, or `BlockIndices`.
    shifts
        (down, right) in pixels. With several, x holds images and each row is one example per shift, made when it is
        gathered: example index k n + i is row i moved by shifts[k].
    inputs, targets
        How both are standardized when they are gathered, instead of scaled; None for not at all.
    as_stored
        Whether a model takes them as they are stored: inputs may be integers that stay integers, or a structured array,
        and targets may have any shape.
    check
        Called with gathered inputs, as they are stored, and their rows, where the inputs are checked as they are first
        read and not at the start; raises DataError. Several threads may call it.

    Examples
    --------
    >>> examples = Examples(np.zeros((5, 2)), np.arange(5)).subset(np.array([1, 3, 4]))
    >>> len(examples), examples.capacity, examples.row_indices(np.array([0, 2])).tolist()
    (3, 5, [1, 4])
    """

    x: Array
    y: Array
    weights: Array | None = None
    scale: float = 1.0
    indices: Array | BlockIndices | None = None
    shifts: tuple[tuple[int, int], ...] = ((0, 0),)
    inputs: Standardization | None = None
    targets: Standardization | None = None
    as_stored: bool = False
    check: Callable[[Array, Array], None] | None = None

    def __len__(self) -> int:
        return self.capacity if self.indices is None else len(self.indices)

    @property
    def capacity(self) -> int:
        """The number of example indices, in this set or not."""
        return len(self.x) * len(self.shifts)

    def example_indices(self, positions: Array) -> Array:
        """Example indices of these positions in the set, from 0 to below `capacity`."""
        return positions if self.indices is None else self.indices[positions]

    def row_indices(self, positions: Array) -> Array:
        """Rows of x and y that the examples at these positions are made from."""
        examples = self.example_indices(positions)
        return examples if len(self.shifts) == 1 else examples % len(self.x)

    def subset(self, positions: Array | BlockIndices) -> Examples:
        """The set of the examples at these positions, without copying any."""
        return replace(self, indices=positions if self.indices is None else self.indices[positions[:]])

    def expanded(self, shifts: tuple[tuple[int, int], ...]) -> Examples:
        """Each example once for each of these shifts, without copying any: first all moved by the first, and so on."""
        dtype = index_dtype(len(self.x) * len(shifts))
        rows = np.arange(len(self.x), dtype=dtype) if self.indices is None else self.indices[:].astype(dtype)
        indices = np.concatenate([rows + len(self.x) * k for k in range(len(shifts))])
        return replace(self, indices=indices, shifts=shifts)


def packed(arrays: Mapping[str, Array]) -> Array:
    """Several inputs as one structured array (n,), one field an input. Raises DataError where their lengths differ.

    Its fields are aligned, and the bytes between them zero, so that equal inputs have equal bytes.

    Examples
    --------
    >>> both = packed({"tokens": np.ones((4, 7), np.int32), "length": np.arange(4)})
    >>> both.shape, both["tokens"].shape
    ((4,), (4, 7))
    """
    lengths = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise DataError(f"inputs: expected arrays of one length, one entry an example, got {lengths}; make them alike")
    fields = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    found = np.zeros(next(iter(lengths.values())), np.dtype(fields, align=True))
    for name, array in arrays.items():
        found[name] = array
    return found
