"""How the trainer takes steps, one at a time or several in flight: what they are made of, and what it learns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple, Protocol

from distsgd.core.device import Array
from distsgd.core.layout import Layout, Views
from distsgd.data.loader import Loader
from distsgd.nn.objective import Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.regularization import Regularization
from distsgd.parallel.reduction import GradientReduction
from distsgd.parallel.thread_pool import Workers
from distsgd.training.non_finite import NonFinite


class Flag(IntFlag):
    """What a rank reports with a step; the report of one rank is enough."""

    FAILED = 1
    STOP = 2
    CHECKPOINT = 4
    NON_FINITE = 8
    SHARES = 16


NOTHING = Flag(0)
"""What ranks nearly always report. Kept: an enum's value takes a microsecond to make, and a small step a hundred."""


@dataclass
class StepParts:
    """The model, what updates it, and where its numbers lie. The reduction owns parameters, state and rows.

    running  the running statistics
    guarded  look at each microbatch's gradient before the update, so that all ranks can skip a minibatch, and at the
             updated parameters. Without, a gradient that isn't finite is found by the ranks whose elements it spoils,
             in an update that others make.
    """

    objective: Objective
    optimizer: Optimizer
    regularization: Regularization
    reduction: GradientReduction
    workers: Workers
    loader: Loader
    layout: Layout
    running: Views
    clip_norm: float | None = None
    guarded: bool = False


class StepOrder(NamedTuple):
    """What one step is made of.

    step     its number, from 0
    indices  the minibatch
    updates  made before it: `step`, without those whose minibatch was skipped
    """

    step: int
    epoch: int
    indices: Array
    learning_rate: float
    updates: int


@dataclass(slots=True)
class StepResult:
    """What every rank knows after a step.

    problem   why there was no update: of this minibatch, or of the one before, whose update came out wrong
    """

    loss_sum: float
    count: int
    flags: Flag
    gradient_norm: float | None
    problem: NonFinite | None = None


class Steps(Protocol):
    """Begins steps and returns the results of those that have ended, in order."""

    @property
    def in_flight(self) -> int:
        """Steps that have begun and whose results have not been read."""

    def advance(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> list[StepResult]:
        """Begins a step; returns the results of the steps that have ended since.

        flags      what this rank reports
        want_norm  whether the result needs the gradient's norm
        skip       why this minibatch is skipped; the reduction takes place all the same
        wait       end all steps, this one included, on all ranks; a step whose norm is wanted, or that is skipped, does
                   so

        A result with a problem is the last one, and the steps begun after it have no effect.
        """

    def close(self) -> None:
        """Frees what the steps hold, and the communicator of the reduction."""
