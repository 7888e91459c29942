"""The second half of a step: each rank sums, divides, penalizes, clips and updates the elements that it owns.

Everything is elementwise but the norm, a float64 sum over fixed blocks, so no bit depends on who owns what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Layout
from distsgd.gpu.graphs import StepInputs
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.regularization import Regularization, Segment
from distsgd.parallel.reduction import BLOCK, Exchange, stretches
from distsgd.parallel.thread_pool import Workers
from distsgd.parallel.tree import Span, TreeSum, part, scratch_levels
from distsgd.training.non_finite import all_finite

_STRETCHES_OF_THREADS = 4
"""So many in one go with several threads. Each call into NumPy may end in waiting for the interpreter, which costs more
than the cache gains: two threads with the shorter stretches take longer than one."""


@dataclass(frozen=True)
class _Piece:
    """Elements of a stretch that are treated alike, with views of all that their update touches."""

    params: Array
    total: Array
    slots: tuple[Array, ...]
    penalized: bool
    frozen: bool


@dataclass(frozen=True)
class _Stretch:
    """Elements of this rank that are updated together. Views are cut once, not in every step.

    total   the gradient of the mean loss and the penalties; in the worker's scratch memory, unless it has to be kept
    tree    scratch memory of the tree's sum
    spare   scratch memory of the optimizer, (2, n)
    sums    how to sum the lanes, by the lanes' bounds
    """

    span: slice
    total: Array
    tree: Sequence[Array]
    spare: Array
    pieces: tuple[_Piece, ...]
    sums: dict[tuple[int, ...], TreeSum] = field(default_factory=dict)


class SliceUpdate:
    """Updates this rank's elements; its workers share them.

    finite    whether all gradients were finite in every update so far, on this rank's elements; where `guarded`, the
              updated parameters, too
    suspects  nodes of the tree whose sums weren't finite when that was first seen
    """

    def __init__(
        self,
        optimizer: Optimizer,
        regularization: Regularization,
        exchange: Exchange,
        workers: Workers,
        layout: Layout,
        clip_norm: float | None,
        guarded: bool = False,
    ) -> None:
        workers = workers.that_may_call(optimizer)
        self.optimizer, self.regularization, self.exchange, self.workers = optimizer, regularization, exchange, workers
        self.clip_norm, self.guarded = clip_norm, guarded
        self.finite = True
        self.suspects: set[Span] = set()
        self._norms = np.zeros(exchange.partition.blocks)
        self._measure_norm = False
        penalizing = bool(regularization.l1 or regularization.l2 or optimizer.weight_decay)
        segments = regularization.segments(layout, penalizing)
        self._length = exchange.plan.stretch * (1 if workers.count == 1 else _STRETCHES_OF_THREADS)
        spans = list(stretches(exchange.owned, self._length))
        self._stretches = [
            self._prepare(spans[slice(*part(len(spans), workers.count, worker))], segments)
            for worker in range(workers.count)
        ]

    def _prepare(self, spans: Sequence[slice], segments: Sequence[Segment]) -> list[_Stretch]:
        """One worker's stretches, which share its scratch memory."""
        params, xp = self.exchange.params, self.exchange.plan.device.xp
        levels = scratch_levels(self.exchange.partition.lanes, self.exchange.plan.device.is_cpu)
        scratch = xp.empty((3 + levels, self._length), params.dtype)
        prepared = []
        for span in spans:
            count = span.stop - span.start
            total = scratch[2, :count] if self.clip_norm is None else xp.empty(count, params.dtype)
            pieces = []
            for segment in segments:
                start, stop = max(segment.start, span.start), min(segment.stop, span.stop)
                if start < stop:
                    inside = total[start - span.start : stop - span.start]
                    slots = self.exchange.slots(start, stop)
                    pieces.append(_Piece(params[start:stop], inside, slots, segment.penalized, segment.frozen))
            prepared.append(_Stretch(span, total, list(scratch[3:]), scratch[:2], tuple(pieces)))
        return prepared

    def launch(self, bounds: tuple[int, ...], count: int, inputs: StepInputs) -> None:
        """One update on a GPU without a look at any number: what isn't finite is `trouble`, which ends all updates."""
        self._measure_norm = False
        communicator, kernels = self.exchange.communicator, kernels_for(self.exchange.params)
        own = inputs.trouble[communicator.rank : communicator.rank + 1]
        for stretch in self._stretches[0]:
            self._total(stretch, bounds, count, looks=False)
            kernels.find_trouble(stretch.total, own)
        kernels.find_trouble_in_losses(self.exchange.records, own, self.exchange.params)
        communicator.allgather_slices(inputs.trouble, [1] * communicator.size)
        kernels.hold_after_trouble(inputs.trouble, inputs.scalars, self.exchange.params)
        for stretch in self._stretches[0]:
            self._apply(stretch, tuple(inputs.scalars))

    def run(self, bounds: tuple[int, ...], count: int, scalars: tuple[float, ...], want_norm: bool) -> float | None:
        """One update with the gradients gathered; the gradient's norm where it is asked for or clipped by.

        bounds   the lanes' bounds
        count    examples of the minibatch, times the gradients' loss scale
        scalars  what the optimizer needs to know of this step
        """
        self._measure_norm = want_norm or self.clip_norm is not None
        if self.clip_norm is None:

            def update(stretch: _Stretch) -> None:
                self._total(stretch, bounds, count)
                self._apply(stretch, scalars)

            self._on_all(update)
            return self._norm() if want_norm else None

        self._on_all(lambda stretch: self._total(stretch, bounds, count))
        norm = self._norm()
        factor = min(1.0, self.clip_norm / (norm + 1e-6))  # as PyTorch's clip_grad_norm_

        def clip(stretch: _Stretch) -> None:
            np.multiply(stretch.total, factor, out=stretch.total)
            self._apply(stretch, scalars)

        self._on_all(clip)
        return norm

    def _on_all(self, function: Callable[[_Stretch], None]) -> None:
        def run(worker: int) -> None:
            with np.errstate(all="ignore"):
                for stretch in self._stretches[worker]:
                    function(stretch)

        self.workers.run(run)

    def _total(self, stretch: _Stretch, bounds: tuple[int, ...], count: int, looks: bool = True) -> None:
        """Puts the gradient of the mean loss and the penalties into the stretch's total."""
        lanes = stretch.sums.get(bounds)
        if lanes is None:
            lanes = stretch.sums[bounds] = self.exchange.total(bounds, stretch.span, stretch.tree)
        total = lanes.divided(float(count), stretch.total)
        for piece in stretch.pieces:
            if piece.frozen:
                piece.total[:] = 0.0
            elif piece.penalized:
                self.regularization.add_gradient(piece.params, piece.total)
        if looks and not all_finite(total):
            self.finite = False
            self.suspects |= self.exchange.not_finite(bounds, stretch.span)
        if self._measure_norm:
            squares, first = kernels_for(total).block_squares(total, BLOCK), stretch.span.start // BLOCK
            self._norms[first : first + len(squares)] = to_host(squares)

    def _apply(self, stretch: _Stretch, scalars: tuple[Any, ...]) -> None:
        if not self.finite:
            return  # from here on; all ranks are told with the next exchange, and none of it is saved
        update, weight_decay = self.optimizer.update, self.optimizer.weight_decay
        for piece in stretch.pieces:
            if not piece.frozen:
                decay = weight_decay if piece.penalized else 0.0
                update(piece.params, piece.total, piece.slots, scalars, decay, stretch.spare)
        if self.guarded and not all_finite(self.exchange.params[stretch.span]):
            self.finite = False

    def _norm(self) -> float:
        """The global norm of the last gradient, from the blocks' float64 sums in block order. Collective."""
        partition = self.exchange.partition
        counts = [len(partition.blocks_of(rank)) for rank in range(partition.ranks)]
        self.exchange.communicator.allgather_slices(self._norms, counts)
        return math.sqrt(math.fsum(self._norms))
