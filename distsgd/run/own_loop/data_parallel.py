"""distsgd.DataParallel: a training loop of the user's own, data-parallel with the bits and checkpoints of `fit`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

from distsgd.core.errors import ConfigurationError, DistsgdError
from distsgd.core.runtime import single_threaded_blas
from distsgd.core.status_table import Phase
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import release
from distsgd.run.caller import guest_call, ranks_for
from distsgd.run.compared.agreement import agreed
from distsgd.run.compared.identity import Identity
from distsgd.run.own_loop.batches import GlobalBatch
from distsgd.run.own_loop.function import ExampleFunction, OwnLossAndGrad, Reduction
from distsgd.run.own_loop.loop import Loop
from distsgd.run.own_loop.settings import Settings

T = TypeVar("T")


@final
class DataParallel:
    """Trains in a loop of your own. Every rank runs the same program, and each step is shared out among the ranks.

    Parameters, losses and checkpoints have the same bits on any number of ranks, and those of `fit` with the same
    function and options. BLAS has one thread in the whole process until `close`.

    Parameters
    ----------
    params : mapping of str to array
        The initial parameters by name; they are copied.
    optimizer : Optimizer, class or str, default "sgd"
        Such as `distsgd.Adam(1e-3)`, or a class or a name with `lr`.
    reduction : {"sum", "mean"}
        What your function returns over a microbatch's examples. The first step computes one microbatch with each
        example twice, and refuses a declaration that is wrong. A penalty goes with means; see Notes.
    microbatches : int, optional
        Parts of each batch, shared out among at most as many ranks; another number gives other bits. By default that
        of `fit`.
    lr : float, optional
        The learning rate of an optimizer that is given as a class or by name.
    communicator : mpi4py communicator or "self", optional
        As in `fit`.
    clip_norm : float, optional
        The norm that the gradient of the global batch is clipped to.
    schedule : Schedule or str, optional
        Of the learning rate. One by name with a horizon takes the `epochs` of `batches`.
    seed : int, default 0
        Of the order of examples and of `random_words`.
    dtype : str or dtype, optional
        float32 or float64; by default that of the parameters.
    stall_timeout : str, default "120s"
        How long ranks wait for one that is missing; see docs/reliability.md.
    check_reduction : bool, default True
        False where your function is right and its loss neither doubles nor stays.

    Raises
    ------
    ConfigurationError, DataError
        With one sentence, on all ranks, also where one of them alone is wrong.

    Notes
    -----
    With `reduction="mean"` the gradient of a microbatch of n examples counts n times, and the sum over all is divided
    by the number of examples. So the mean over the batch comes out, and a penalty that each microbatch's loss has comes
    out once.

    Examples
    --------
    >>> import numpy as np, distsgd
    >>> def loss_and_grad(params, batch):
    ...     error = batch.x @ params["w"] - batch.y
    ...     return 0.5 * np.mean(error**2), {"w": batch.x.T @ error / len(batch)}
    >>> x = np.eye(4)
    >>> dp = distsgd.DataParallel({"w": np.zeros(4)}, distsgd.SGD(0.5), reduction="mean")
    >>> losses = [dp.step(loss_and_grad, batch) for batch in dp.batches(x, x[0] * 2.0, batch_size=4, epochs=2)]
    >>> losses[1] < losses[0], dp.params["w"].shape
    (True, (4,))
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        optimizer: Optimizer | type[Optimizer] | str = "sgd",
        *,
        reduction: Reduction,
        microbatches: int | None = None,
        lr: float | None = None,
        communicator: Any | None = None,
        clip_norm: float | None = None,
        schedule: Schedule | str | None = None,
        seed: int = 0,
        dtype: Any = None,
        stall_timeout: str = "120s",
        check_reduction: bool = True,
    ) -> None:
        options = {"microbatches": microbatches, "lr": lr, "clip_norm": clip_norm, "seed": seed, "dtype": dtype,
                   "stall_timeout": stall_timeout}  # fmt: skip
        self._ranks = ranks_for(communicator, stall_timeout)
        self._closing = ExitStack()
        self._closing.enter_context(single_threaded_blas())
        self._finalizer = weakref.finalize(self, self._closing.close)

        def begin() -> Loop:
            def look() -> tuple[Settings, Identity]:
                return Settings.of(params, optimizer, reduction, schedule, communicator, check_reduction, options)

            settings = agreed(self._ranks, "DataParallel", look)
            self._seed = settings.seed
            return Loop(self._ranks, settings)

        try:
            self._loop = guest_call(self._ranks, begin)
        except BaseException as error:
            self._finalizer()
            if isinstance(error, DistsgdError):
                release(self._ranks)
            raise

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name: read-only views, which each step updates."""
        return dict(self._loop.trains.params.read_only())

    @property
    def steps(self) -> int:
        """The batches so far, those without a step included."""
        return self._loop.progress.step

    def batches(
        self,
        x: Any,
        y: Any = None,
        *,
        weights: Any = None,
        batch_size: int,
        epochs: int,
        seed: int | None = None,
        shuffle: bool = True,
    ) -> Iterator[GlobalBatch]:
        """The global batches of these examples, from the first one that is still to be made. Collective.

        After `resume` it continues where the checkpoint is. `epochs` counts from the beginning: a second call needs
        more of them, and the same examples and settings. A batch for which no step is made is skipped.

        Parameters
        ----------
        x : array, or mapping of str to array
            Inputs (n, …), used where they lie: leave them as they are.
        y, weights : array, optional
            Targets (n, …) and sample weights (n,). Weights are passed on to your function, and need sums.
        batch_size, epochs : int
            Examples of a global batch, and how often each example comes.
        seed : int, optional
            Of the order; by default that of this object.
        shuffle : bool, default True
            False keeps the order of the data.

        Returns
        -------
        iterator of batches
            Each with `x`, `y`, `weights`, `indices`, `epoch` and `step`, the examples along the first axis.

        Raises
        ------
        ConfigurationError, DataError
            For other examples or settings than before, for all epochs made, and where ranks differ.
        """
        given = {"batch_size": batch_size, "epochs": epochs, "seed": self._seed if seed is None else seed,
                 "shuffle": shuffle}  # fmt: skip
        return self._call(lambda: self._loop.batches(x, y, weights, given))

    def step(self, loss_and_grad: OwnLossAndGrad, batch: GlobalBatch) -> float:
        """Makes one step with the batch that `batches` has given last. Collective.

        Parameters
        ----------
        loss_and_grad : function
            `(params, microbatch) -> (loss, gradients by name)`; `microbatch` has `x`, `y`, `weights`, `indices` and
            `random_words`, and len() of it is the number of its examples.
        batch : GlobalBatch
            As it came.

        Returns
        -------
        float
            The mean loss over the global batch, before the update; the same on all ranks.

        Raises
        ------
        ConfigurationError
            For a batch that isn't this object's or has had its step, for what a function may not return, and where
            ranks make different calls.
        NonFiniteError
            For a loss or a gradient that isn't finite; no update is made.
        Exception
            What your function raises, on all ranks.
        """

        return self._call(lambda: self._loop.step(loss_and_grad, batch))

    def mean(self, function: ExampleFunction, x: Any, y: Any = None) -> float:
        """The mean of a number for each example, over all ranks; the same bits on any number of ranks. Collective.

        Parameters
        ----------
        function : function
            `(params, batch) -> (n,)`: one number for each example of a chunk, such as
            `(scores(params, batch.x).argmax(1) == batch.y)`.
        x, y : arrays
            Any examples (n, …).

        Returns
        -------
        float
            Float64 sums over fixed chunks of 512 examples, added in their order, divided by n.
        """

        return self._call(lambda: self._loop.mean(function, x, y))

    def state_dict(self) -> dict[str, Any]:
        """Captures all that training continues from. Collective.

        Returns
        -------
        dict
            Copies of arrays, by name, and `document`; the same on all ranks.
        """

        return self._call(self._loop.capture)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` has returned, with the same settings. Collective; rank 0's is used.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        RunFolderError
            For one of other settings.
        """

        self._call(lambda: self._loop.load(state))

    def save(self, folder: str | Path) -> None:
        """Writes a checkpoint into a folder: completely, or not at all. The newest three stay. Collective.

        Parameters
        ----------
        folder : path
            The folder; it is made where it isn't there.

        Raises
        ------
        RunFolderError
            Where the folder holds checkpoints that this object neither wrote nor resumed from.
        """
        self._call(lambda: self._loop.save(Path(folder).expanduser().absolute()))

    def resume(self, folder: str | Path) -> bool:
        """Continues from the newest checkpoint in a folder. Collective.

        Parameters
        ----------
        folder : path
            Where `save` has written, on any number of ranks.

        Returns
        -------
        bool
            Whether there was a checkpoint.

        Raises
        ------
        RunFolderError
            For a checkpoint of other settings.
        CheckpointError
            Where no checkpoint is whole.
        """
        return self._call(lambda: self._loop.resume(Path(folder).expanduser().absolute()))

    def close(self) -> None:
        """Gives back the group of ranks and BLAS's threads; nothing but the parameters is left. Collective."""
        if self._finalizer.alive:
            self._loop.close()
            release(self._ranks)
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # it may be of this rank alone, and what is collective would wait
            self._finalizer()

    def _call(self, function: Callable[[], T]) -> T:
        """function() with these ranks, which wait for each other in it. Collective."""
        if not self._finalizer.alive:
            raise ConfigurationError("this DataParallel is closed; make another one from its params")
        try:
            return guest_call(self._ranks, function)
        finally:
            self._ranks.heartbeat.set_phase(Phase.OUTSIDE, self.steps)
