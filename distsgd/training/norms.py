"""Norms over ranks: float64 sums of squares over fixed pieces of the flat buffer, and updates that depend on them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.kernels.squares import parts_of
from distsgd.core.layout import Layout
from distsgd.optim.layerwise import LayerwiseOptimizer
from distsgd.optim.optimizers import Optimizer, Scalars
from distsgd.optim.regularization import Segment
from distsgd.parallel.reduction import BLOCK, GradientReduction
from distsgd.parallel.tree import Span

GRADIENT, PARAMS, DIRECTION = range(3)
"""Quantities whose squares are summed; those of the gradient alone, where no layer's norms are needed."""


@final
class SquareSums:
    """Σ x² of each piece, measured by the rank that owns it and gathered by all.

    Pieces end at block edges and at `edges`. Those that several ranks own are measured in parts, which `parts_of`
    names, and joined as one rank adds them up; so the sums don't depend on the number of ranks. A piece's sum stands
    at its first part, and 0 at the others.
    """

    def __init__(self, reduction: GradientReduction, edges: Sequence[int] = (), quantities: int = 1) -> None:
        partition, self._allgather = reduction.partition, reduction.allgather_on_host
        spans = [partition.spans_of(rank) for rank in range(partition.ranks)]
        cuts = {span.start for of_rank in spans for span in of_rank} - {partition.elements}
        pieces = sorted({*range(0, partition.elements, BLOCK), *edges})
        self.starts, joins = _divided(pieces, partition.elements, sorted(cuts))
        assert cuts <= set(self.starts), "a rank owns parts of sums"
        places = [(self.first(left) * quantities, self.first(right) * quantities) for left, right in joins]
        self._joins = [(left + which, right + which) for left, right in places for which in range(quantities)]
        self._sums = np.zeros((len(self.starts), quantities))
        # Its numbers cost less one by one than the array's.
        self._flat = cast("memoryview[float]", self._sums.reshape(-1).data)
        self._runs: dict[Span, list[Span]] = {}
        owned = [[piece for span in of_rank for piece in self._pieces_of(span)] for of_rank in spans]
        self._by_rank = np.concatenate(owned).astype(np.intp)
        self._counts = [len(pieces) * quantities for pieces in owned]

    def _pieces_of(self, span: slice) -> range:
        """Those that begin in the span."""
        return range(self.first(span.start), self.first(span.stop))

    def first(self, element: int) -> int:
        """The first piece that begins at this element or after it."""
        return bisect_left(self.starts, element)

    def measure(self, values: Array, start: int, quantity: int = GRADIENT) -> None:
        """Measures whole pieces of this rank, the first of which begins at element `start`."""
        runs = self._runs.get((start, len(values)))
        if runs is None:
            runs = self._runs[start, len(values)] = self._whole_blocks(start, start + len(values))
        for first, last in runs:
            end = self.starts[last] if last < len(self.starts) else start + len(values)
            part = values[self.starts[first] - start : end - start]
            self._sums[first:last, quantity] = to_host(kernels_for(part).block_squares(part, BLOCK))

    def _whole_blocks(self, start: int, stop: int) -> list[Span]:
        """The pieces of these elements in runs [first, last): whole blocks together, each other piece alone."""
        runs: list[Span] = []
        for piece in range(self.first(start), self.first(stop)):
            if runs and self.starts[piece] % BLOCK == 0 and self.starts[runs[-1][0]] % BLOCK == 0:
                runs[-1] = runs[-1][0], piece + 1
            else:
                runs.append((piece, piece + 1))
        return runs

    def gather(self) -> None:
        """Makes the sums of all ranks visible here. Collective."""
        found = self._sums[self._by_rank]
        self._allgather(found.reshape(-1), self._counts)
        self._sums[self._by_rank] = found
        for left, right in self._joins:
            self._flat[left] += self._flat[right]
            self._flat[right] = 0.0

    def norm(self, quantity: int = GRADIENT, first: int = 0, stop: int | None = None) -> float:
        """The norm over pieces [first, stop), all by default, from the sums of the last `gather`."""
        return math.sqrt(math.fsum(self._sums[first:stop, quantity]))


def _divided(pieces: Sequence[int], elements: int, cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
    """(the first elements of all parts, which additions join them): see `parts_of`."""
    starts, joins = set(pieces), list[Span]()
    for piece in sorted({bisect_right(pieces, cut) - 1 for cut in cuts if cut not in starts}):
        stop = pieces[piece + 1] if piece + 1 < len(pieces) else elements
        parts, additions = parts_of(pieces[piece], stop, cuts)
        starts.update(parts)
        joins += additions
    return sorted(starts), joins


@dataclass(frozen=True)
class Layer:
    """An array of parameters that has a learning rate of its own: its pieces [first, stop), and weight decay."""

    first: int
    stop: int
    weight_decay: float


@final
class LayerNorms:
    """What an optimizer by layers needs of the layers' norms; `segments` has one for each array of parameters."""

    def __init__(
        self, optimizer: LayerwiseOptimizer, sums: SquareSums, layout: Layout, segments: Sequence[Segment]
    ) -> None:
        self.optimizer, self._sums = optimizer, sums
        self._layers: dict[int, Layer] = {}
        for shape, segment in zip(layout.shapes, segments, strict=True):
            if len(shape) >= 2 and not segment.frozen:
                decay = optimizer.weight_decay if segment.penalized else 0.0
                self._layers[segment.start] = Layer(sums.first(segment.start), sums.first(segment.stop), decay)
        if not self._layers:
            raise ConfigurationError(
                f"optimizer {type(optimizer).__name__}: expected parameters of two or more dimensions to train, for it "
                "scales the steps of those alone, and the model has none; choose an optimizer such as adam or momentum"
            )

    def measure(self, segment: int, start: int, params: Array, direction: Array) -> None:
        """Measures a slice of the segment that begins at element `segment`, where that is a layer; see SquareSums."""
        if segment in self._layers:
            self._sums.measure(params, start, PARAMS)
            self._sums.measure(direction, start, DIRECTION)

    def scalars(self, scalars: Scalars) -> dict[int, Scalars]:
        """The step's scalars with the learning rate of each layer first, by the layer's first element."""
        return {start: (scalars[0] * self._ratio(layer), *scalars[1:]) for start, layer in self._layers.items()}

    def _ratio(self, layer: Layer) -> float:
        """The layer's trust ratio; 1 where a norm is 0, and NaN where one isn't finite."""
        params, direction = (self._sums.norm(what, layer.first, layer.stop) for what in (PARAMS, DIRECTION))
        if not (math.isfinite(params) and math.isfinite(direction)):
            return math.nan  # that stops the run or skips the minibatch, on the rank that sees the elements
        if params == 0.0 or direction == 0.0:
            return 1.0
        return self.optimizer.trust_ratio(params, direction, layer.weight_decay)


def norms_of(
    optimizer: Optimizer, reduction: GradientReduction, layout: Layout, segments: Sequence[Segment]
) -> tuple[SquareSums, LayerNorms | None]:
    """(the sums of squares that updates need, what an optimizer by layers needs; None for another one)."""
    if not isinstance(optimizer, LayerwiseOptimizer):
        return SquareSums(reduction), None
    sums = SquareSums(reduction, [segment.start for segment in segments], quantities=3)
    return sums, LayerNorms(optimizer, sums, layout, segments)
