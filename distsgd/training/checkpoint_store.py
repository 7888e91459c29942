"""Where a run's checkpoints are kept, and how the ranks save and go back together."""

from __future__ import annotations

import time
from typing import Protocol, final

from distsgd.core.checkpoint import Checkpoint
from distsgd.parallel import Communicator
from distsgd.training.callbacks import Hooks
from distsgd.training.early_stopping import StoppingRule
from distsgd.training.non_finite import NonFinite
from distsgd.training.state import Progress, restore, take
from distsgd.training.step import TrainingStep

PATIENCE = 30.0
"""Seconds for which a checkpoint waits until the one before it is written."""


class CheckpointStore(Protocol):
    """Keeps the checkpoints of a run. Rank 0 alone calls it, and it must not communicate.

    The checkpoints that it is given are copies, which do not change later: it may write them while training continues.
    """

    def busy(self, patience: float) -> bool:
        """Whether a checkpoint is still being written, for which this waits up to `patience` seconds."""

    def save(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        """Saves the state that the run resumes from, and its best model so far; a final one before this returns."""

    def go_back(self, step: int) -> Checkpoint | None:
        """The newest checkpoint from no later than `step`, from which the run continues; None where there is none."""


@final
class Checkpoints:
    """Saves the state of a run in rank 0's store, and brings it back on all ranks.

    store   None for a run that keeps no checkpoints
    began   when the last checkpoint began, or the attempt
    """

    def __init__(
        self,
        communicator: Communicator,
        step: TrainingStep,
        rule: StoppingRule | None,
        store: CheckpointStore | None,
        hooks: Hooks,
    ) -> None:
        self.communicator, self.step, self.rule, self.store = communicator, step, rule, store
        self._hooks = hooks
        self.began = time.monotonic()

    def is_idle(self, patience: float = 0.0) -> bool:
        """Whether rank 0's store can take a checkpoint, for which this waits up to `patience` seconds."""
        store = self.store
        if store is None:
            return True
        return self._hooks.attempt(lambda: not store.busy(patience), False, "saving a checkpoint")

    def prepare(self, final: bool) -> tuple[bool, bool]:
        """(whether the last update was finite on all ranks, whether the store can take a checkpoint). Collective."""
        self.began = time.monotonic()
        ready = self.communicator.allgather_object((self.step.finite, final or self.is_idle(PATIENCE)))
        return all(finite for finite, _ in ready), ready[0][1]

    def save(self, progress: Progress, final: bool) -> None:
        """Saves the run as it is. Collective.

        The ranks have made their update, and can't make the next one before rank 0 takes part in it: what rank 0
        copies here holds still, while the others are at their next gradients already. The final one is written when
        this returns, others in the background.
        """
        slots = self.step.reduction.gather_slots()

        def save() -> None:
            assert slots is not None, "rank 0 has gathered them"
            whole, best = take(self.step, progress, self.rule, slots)
            if self.store is not None:
                self.store.save(whole, best, progress.step, final)

        if final:
            self.communicator.on_root(save)
        else:
            self._hooks.attempt(save, None, "saving a checkpoint")

    def go_back(self, found: NonFinite, step: int) -> Progress:
        """The state of the newest checkpoint from no later than `step`, in place on all ranks. Collective."""
        found_checkpoint: list[Checkpoint] = []

        def find() -> None:
            checkpoint = None if self.store is None else self.store.go_back(step)
            if checkpoint is None:
                raise found.error("there is no checkpoint to go back to")
            found_checkpoint.append(checkpoint)

        self.communicator.on_root(find)
        self.step.reset()
        return self.restore(found_checkpoint[0] if found_checkpoint else None)

    def restore(self, checkpoint: Checkpoint | None) -> Progress:
        """Rank 0's checkpoint (None elsewhere), in place on all ranks. Collective."""
        return restore(self.communicator, self.step, self.rule, checkpoint)
