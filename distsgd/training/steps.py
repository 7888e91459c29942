"""How the trainer takes steps: one at a time, or several in flight."""

from __future__ import annotations

from typing import Protocol

from distsgd.training.non_finite import NonFinite
from distsgd.training.step import Flag, StepOrder, StepResult, TrainingStep


class Steps(Protocol):
    """Begins steps and returns the results of those that have ended, in order."""

    @property
    def in_flight(self) -> int:
        """Steps that have begun and whose results have not been read."""

    def advance(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> list[StepResult]:
        """Begins a step, as `TrainingStep.run` makes one; returns the results of the steps that have ended since.

        wait   end all steps, this one included, on all ranks; a step whose norm is wanted, or that is skipped, does so

        A result with a problem is the last one, and the steps begun after it have no effect.
        """

    def close(self) -> None:
        """Frees what the steps hold, and the communicator of the reduction."""


class DirectSteps:
    """Each step ends before `advance` returns."""

    in_flight = 0

    def __init__(self, step: TrainingStep) -> None:
        self._step = step

    def advance(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> list[StepResult]:
        """Makes this step."""
        return [self._step.run(order, flags, want_norm, skip)]

    def close(self) -> None:
        """Closes the transport of the reduction."""
        self._step.reduction.transport.close()
