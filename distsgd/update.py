"""The second half of a step: each rank sums, divides, penalizes, clips and updates the elements that it owns.

Everything is elementwise but the norm, a float64 sum over fixed blocks, so no bit depends on who owns what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distsgd.communication.exchange import BLOCK, Exchange
from distsgd.communication.tree import part, scratch_levels
from distsgd.device import Array
from distsgd.layout import Layout
from distsgd.optimizers import Optimizer
from distsgd.regularization import Regularization, Segment
from distsgd.workers import Workers

_TOGETHER = 2 * BLOCK
"""Elements updated in one go: enough that NumPy's cost for a call doesn't show, and still in the second-level cache
with the parameters, the optimizer's state and the temporaries."""


@dataclass(frozen=True)
class _Stretch:
    """Elements of this rank that are updated together, cut into segments that are treated alike."""

    span: slice
    segments: tuple[Segment, ...]


class SliceUpdate:
    """Updates this rank's elements; its workers share them."""

    def __init__(
        self,
        optimizer: Optimizer,
        regularization: Regularization,
        exchange: Exchange,
        workers: Workers,
        layout: Layout,
        clip_norm: float | None,
    ) -> None:
        self.optimizer, self.regularization, self.exchange, self.workers = optimizer, regularization, exchange, workers
        self.clip_norm = clip_norm
        penalizing = bool(regularization.l1 or regularization.l2 or optimizer.weight_decay)
        self._stretches = _cut(exchange.owned, regularization.segments(layout, penalizing))
        self._norms = np.zeros(exchange.partition.blocks)
        self._measure_norm = False
        self.finite = True
        dtype, levels = exchange.params.dtype, scratch_levels(exchange.partition.lanes)
        # The update's two rows, the gradient, and the tree's.
        self._scratch = [np.empty((3 + levels, _TOGETHER), dtype) for _ in range(workers.count)]
        self._zeros = np.zeros(_TOGETHER, dtype)
        self._kept = np.empty(exchange.owned.stop - exchange.owned.start if clip_norm is not None else 0, dtype)

    def run(self, bounds: tuple[int, ...], count: int, scalars: tuple[float, ...], want_norm: bool) -> float | None:
        """One update with the gradients gathered; the gradient's norm where it is asked for or clipped by.

        bounds   the lanes' bounds
        count    examples of the minibatch
        scalars  what the optimizer needs to know of this step
        """
        self._measure_norm = want_norm or self.clip_norm is not None
        if self.clip_norm is None:

            def update(stretch: _Stretch, worker: int) -> None:
                self._apply(stretch, worker, self._total(stretch, worker, bounds, count), scalars)

            self._on_all(update)
            return self._norm() if want_norm else None

        def keep(stretch: _Stretch, worker: int) -> None:
            self._of(stretch)[:] = self._total(stretch, worker, bounds, count)

        self._on_all(keep)
        norm = self._norm()
        factor = min(1.0, self.clip_norm / (norm + 1e-6))  # as PyTorch's clip_grad_norm_

        def clip(stretch: _Stretch, worker: int) -> None:
            np.multiply(self._of(stretch), factor, out=self._of(stretch))
            self._apply(stretch, worker, self._of(stretch), scalars)

        self._on_all(clip)
        return norm

    def _on_all(self, function: Callable[[_Stretch, int], None]) -> None:
        def run(worker: int) -> None:
            first, last = part(len(self._stretches), self.workers.count, worker)
            with np.errstate(all="ignore"):
                for stretch in self._stretches[first:last]:
                    function(stretch, worker)

        self.workers.run(run)

    def _of(self, stretch: _Stretch) -> Array:
        start = self.exchange.owned.start
        return self._kept[stretch.span.start - start : stretch.span.stop - start]

    def _total(self, stretch: _Stretch, worker: int, bounds: tuple[int, ...], count: int) -> Array:
        """The gradient of the mean loss and the penalties, in this worker's scratch memory."""
        span, scratch = stretch.span, self._scratch[worker]
        total = scratch[2, : span.stop - span.start]
        np.divide(self.exchange.total(bounds, span, scratch[3:]), float(count), out=total)
        for segment in stretch.segments:
            inside = slice(segment.start - span.start, segment.stop - span.start)
            if segment.frozen:
                total[inside] = 0.0
            elif segment.penalized:
                self.regularization.add_gradient(self.exchange.params[segment.start : segment.stop], total[inside])
        # 0 times NaN or infinity is NaN: a product with zeros finds both at a tenth of what a look at each would cost.
        if np.dot(total, self._zeros[: total.size]) != 0.0:
            self.finite = False
        if self._measure_norm:
            for start in range(span.start, span.stop, BLOCK):
                block = total[start - span.start : start - span.start + BLOCK]
                self._norms[start // BLOCK] = np.sum(np.square(block, dtype=np.float64))
        return total

    def _apply(self, stretch: _Stretch, worker: int, total: Array, scalars: tuple[float, ...]) -> None:
        if not self.finite:
            return  # the parameters stay as they are; all ranks are told with the next exchange
        params, begin = self.exchange.params, stretch.span.start
        for segment in stretch.segments:
            if segment.frozen:
                continue
            self.optimizer.update(
                params[segment.start : segment.stop],
                total[segment.start - begin : segment.stop - begin],
                self.exchange.slots(segment.start, segment.stop),
                scalars,
                self.optimizer.weight_decay if segment.penalized else 0.0,
                self._scratch[worker][:2],
            )

    def _norm(self) -> float:
        """The global norm of the last gradient, from the blocks' float64 sums in block order. Collective."""
        partition = self.exchange.partition
        counts = [len(partition.blocks_of(rank)) for rank in range(partition.ranks)]
        self.exchange.communicator.allgather_slices(self._norms, counts)
        return math.sqrt(math.fsum(self._norms))


def _cut(owned: slice, segments: Sequence[Segment]) -> list[_Stretch]:
    """The owned elements in stretches, with the segments inside each."""
    stretches = []
    for start in range(owned.start, owned.stop, _TOGETHER):
        stop = min(start + _TOGETHER, owned.stop)
        inside = [
            replace(segment, start=max(segment.start, start), stop=min(segment.stop, stop))
            for segment in segments
            if segment.start < stop and start < segment.stop
        ]
        stretches.append(_Stretch(slice(start, stop), tuple(inside)))
    return stretches
