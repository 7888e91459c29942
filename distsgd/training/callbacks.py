"""Callbacks, which watch the training loop on rank 0."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, final

from distsgd.core.errors import DistsgdError, users_code, users_error
from distsgd.core.output import say
from distsgd.parallel import Communicator

T = TypeVar("T")


@final
class RunView:
    """What a callback reads of the run, and the one thing that it does to it: `stop`.

    Parameters
    ----------
    steps_done : function
        Returns the number of steps that have ended.
    steps_per_epoch : int
        How many steps make an epoch.
    last_step : int
        The step that the limits end the run at.
    stop : function
        Ends the run after the current step.

    Attributes
    ----------
    steps_per_epoch : int
        How many steps make an epoch.
    last_step : int
        The step that the limits end the run at.
    """

    __slots__ = ("_steps_done", "_stop", "last_step", "steps_per_epoch")

    def __init__(
        self, steps_done: Callable[[], int], steps_per_epoch: int, last_step: int, stop: Callable[[], None]
    ) -> None:
        self._steps_done, self._stop = steps_done, stop
        self.steps_per_epoch, self.last_step = steps_per_epoch, last_step

    @property
    def steps_done(self) -> int:
        """Steps that have ended."""
        return self._steps_done()

    @property
    def epoch(self) -> int:
        """Epochs that have ended."""
        return self._steps_done() // self.steps_per_epoch

    def stop(self) -> None:
        """Ends the run after the current step, with a checkpoint. Any thread may call it."""
        self._stop()


class Callback:
    """Hooks of the training loop: subclass it and override what you need. Rank 0 alone calls them.

    A hook must not communicate. To end training in order, keep the `run` of `on_start` and call `run.stop()`. An
    exception in a hook ends the run on all ranks, and `fit` raises it there.

    Examples
    --------
    >>> class Losses(Callback):
    ...     def __init__(self):
    ...         self.losses = []
    ...
    ...     def on_step(self, step, loss, examples):
    ...         self.losses.append(loss)
    """

    def on_start(self, run: RunView) -> None:
        """Called before the first step of this attempt.

        Parameters
        ----------
        run : RunView
            The run, for as long as it lasts.
        """

    def on_step(self, step: int, loss: float, examples: int) -> None:
        """Called after every step.

        Parameters
        ----------
        step : int
            The step's number, from 1.
        loss : float
            The mean loss of its minibatch.
        examples : int
            The number of examples in it.
        """

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Called with each record of metrics.jsonl: at an epoch's end, at a validation, every log_every steps.

        Parameters
        ----------
        record : mapping
            What the line says: `epoch`, `step`, `train_loss`, and what was measured. Not to be changed.
        """

    def on_rollback(self, step: int) -> None:
        """Called after the run has returned to an earlier step: later steps follow again, without one minibatch.

        Parameters
        ----------
        step : int
            The step that the run has returned to.
        """

    def on_note(self, text: str) -> bool:
        """Called with each note or warning about the data, the model or the result, some of them before `on_start`.

        Parameters
        ----------
        text : str
            The line, which begins with `note:` or `warning:`.

        Returns
        -------
        bool
            Whether the callback takes the note, such as for a log of its own: then it is not printed.
        """
        return False

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Called after the last step of this attempt.

        Parameters
        ----------
        summary : mapping
            The contents of summary.json. Not to be changed.
        """

    def close(self) -> None:
        """Called last, also when the attempt has failed."""


class History(Callback):
    """Keeps the records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def on_rollback(self, step: int) -> None:
        self.records[:] = [record for record in self.records if record["step"] <= step]


def pass_notes(communicator: Communicator, callbacks: Sequence[Callback], notes: Sequence[str]) -> None:
    """Passes notes to the callbacks, which are rank 0's, and prints what none of them takes. Collective.

    Raises DistsgdError on all ranks where a callback fails.
    """

    def call() -> None:
        with users_code("a callback failed with a note"):
            for note in notes:
                taken = [callback.on_note(note) for callback in callbacks]  # all of them see it
                if not any(taken):
                    say(note, sys.stderr)

    communicator.on_root(call)


@final
class Hooks:
    """Calls the callbacks of a run, which are rank 0's, and raises their errors on all ranks.

    error   an error at a point where the other ranks don't wait: the next step reports it to them
    """

    def __init__(self, communicator: Communicator, callbacks: Sequence[Callback], step: Callable[[], int]) -> None:
        self.communicator, self.callbacks = communicator, callbacks
        self.error: DistsgdError | None = None
        self._step = step

    def call(self, hook: Callable[[Callback], object]) -> None:
        """Calls a hook of each callback, on rank 0, and all ranks wait. Raises DistsgdError on all of them.
        Collective."""

        def call() -> None:
            with users_code(f"a callback failed at step {self._step()}"):
                for callback in self.callbacks:
                    hook(callback)

        self.communicator.on_root(call)

    def call_alone(self, hook: Callable[[Callback], object]) -> None:
        """Calls a hook of each callback, on rank 0, for which no other rank waits."""
        if self.callbacks:
            self.attempt(lambda: [hook(callback) for callback in self.callbacks], None)

    def attempt(self, function: Callable[[], T], otherwise: T, what: str = "a callback") -> T:
        """function() on rank 0 alone; `otherwise` on other ranks, and where it fails: the error is kept, and nothing is
        called until all ranks know of it."""
        if self.communicator.is_root and self.error is None:
            try:
                return function()
            except DistsgdError as error:
                self.error = error
            except BaseException as error:
                self.error = users_error(error, f"{what} failed at step {self._step()}")
        return otherwise

    def raise_error(self) -> None:
        """Raises on all ranks what was kept. Collective."""
        error = self.communicator.broadcast_object(self.error)
        if error is not None:
            raise error
