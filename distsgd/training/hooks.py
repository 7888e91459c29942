"""Calls the callbacks on rank 0, and raises their errors on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import DistsgdError, users_code
from distsgd.parallel import Communicator
from distsgd.training.callbacks import Callback


class Hooks:
    """The callbacks of a run, which are rank 0's.

    error   an error at a point where the other ranks don't wait: the next step reports it to them
    """

    def __init__(self, communicator: Communicator, callbacks: Sequence[Callback], step: Callable[[], int]) -> None:
        self.communicator, self.callbacks = communicator, callbacks
        self.error: DistsgdError | None = None
        self._step = step

    def call(self, hook: Callable[[Callback], object]) -> None:
        """Calls a hook of each callback, on rank 0. Raises DistsgdError, whatever they raise."""
        with users_code(f"a callback failed at step {self._step()}"):
            for callback in self.callbacks:
                hook(callback)

    def call_together(self, hook: Callable[[Callback], object]) -> None:
        """The same on rank 0, and all ranks wait, and raise what is raised. Collective."""
        self.communicator.on_root(lambda: self.call(hook))

    def attempt(self, function: Callable[[], object]) -> None:
        """Runs function() on rank 0 alone; keeps a DistsgdError for the next step."""
        if self.communicator.is_root:
            try:
                function()
            except DistsgdError as error:
                self.error = error

    def raise_error(self) -> None:
        """Raises on all ranks what was kept. Collective."""

        def raise_kept() -> None:
            if self.error is not None:
                raise self.error

        self.communicator.on_root(raise_kept)

    def writer_is_idle(self, patience: float) -> bool:
        """Whether no checkpoint is being written any more, for which this waits up to `patience` seconds."""
        waiting: list[bool] = []
        self.attempt(lambda: self.call(lambda callback: waiting.append(callback.busy(patience))))
        return self.error is None and not any(waiting)

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint of this run, on rank 0; None where no callback saves any."""
        found: list[Checkpoint | None] = []
        self.call(lambda callback: found.append(callback.newest_checkpoint(self._step())))
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)
