"""distsgd.DataParallel: a training loop of the user's own, data-parallel with the bits and checkpoints of `fit`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

import numpy as np

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DistsgdError
from distsgd.core.runtime import single_threaded_blas
from distsgd.core.status_table import Phase
from distsgd.data.sampling import Sampler
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import release
from distsgd.parallel.tree import part
from distsgd.run.agreement import agreed
from distsgd.run.caller import guest_call, ranks_for
from distsgd.run.data_parallel_batches import ExampleSet, GlobalBatch, MicroBatch, Stream, microbatch
from distsgd.run.data_parallel_function import OwnLossAndGrad, Reduction
from distsgd.run.data_parallel_settings import Settings, begun, schedule_for
from distsgd.run.data_parallel_state import Operation, meet, refuse_other, save_into, saved_in, whole_run
from distsgd.run.identity import Identity
from distsgd.training.callbacks import Hooks
from distsgd.training.checkpoint_store import Checkpoints
from distsgd.training.evaluator import CHUNK, Scores
from distsgd.training.run_state import Metadata, RunState
from distsgd.training.steps import NOTHING, StepOrder

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

        def begin() -> None:
            self._settings = agreed(
                self._ranks, "DataParallel",
                lambda: Settings.of(params, optimizer, reduction, schedule, communicator, check_reduction, options),
            )  # fmt: skip
            self._function, self._step, self._number = begun(self._ranks, self._settings)

        try:
            guest_call(self._ranks, begin)
        except BaseException as error:
            self._finalizer()
            if isinstance(error, DistsgdError):
                release(self._ranks)
            raise
        self._progress = RunState()
        self._stream: Stream | None = None
        self._sampler: Sampler | None = None
        self._schedule: Schedule | None = None
        self._steps_here = 0
        self._own_folders: set[Path] = set()

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name: read-only views, which each step updates."""
        return dict(self._step.params.read_only())

    @property
    def steps(self) -> int:
        """The batches so far, those without a step included."""
        return self._progress.step

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
        given = {"batch_size": batch_size, "epochs": epochs, "seed": self._settings.seed if seed is None else seed,
                 "shuffle": shuffle}  # fmt: skip

        def look() -> tuple[Stream, Identity]:
            identity = Identity()
            examples = ExampleSet.of(x, y, weights, "batches")
            if examples.weights is not None and self._settings.reduction == "mean":
                raise ConfigurationError(
                    "batches: weights need reduction='sum': a mean that is divided by the weights of its microbatch "
                    "counts each microbatch alike; return sums of weighted losses"
                )
            stream = Stream.checked(examples, examples.add_to(identity), **given)
            for name, value in given.items():
                identity.say(name, str(value))
            identity.say("steps", str(self._progress.step))
            self._check_stream(stream)
            return stream, identity

        def begin() -> Stream:
            self._meet(Operation.BATCHES)
            return agreed(self._ranks, "batches", look)

        stream = self._call(begin)
        self._take_up(stream)
        return self._go(stream)

    def _check_stream(self, stream: Stream) -> None:
        """Raises ConfigurationError where this isn't what was begun."""
        known = self._progress.metadata
        then, now = known.config or {}, stream.settings()
        differing = [name for name in now if name in then and then[name] != now[name]]
        if known.contents is not None and known.contents != stream.contents:
            differing.append("the data")
        if differing:
            name = differing[0]
            what = f"{name} was {then[name]}, is now {now[name]}" if name in now else "the data are other ones"
            raise ConfigurationError(
                f"batches: {what}; one DataParallel trains on one set of examples in one order: give it the same, "
                "measure others with mean, or make another DataParallel from params"
            )
        horizon = known.schedule_epochs
        if horizon is not None and horizon != stream.epochs and self._settings.schedule_has_horizon:
            raise ConfigurationError(
                f"batches: the schedule {self._settings.schedule} was made for {horizon:g} epochs, got "
                f"{stream.epochs}; give it as distsgd.build_schedule(name, epochs=…)"
            )
        steps = stream.epochs * -(-len(stream.examples) // stream.batch_size)
        if self._steps_here and self._progress.step >= steps:
            raise ConfigurationError(
                f"batches: all {stream.epochs} epochs are made; epochs counts from the beginning: give a larger number"
            )

    def _take_up(self, stream: Stream) -> None:
        settings, examples = self._settings, stream.examples
        self._stream = stream
        self._sampler = Sampler(len(examples), stream.batch_size, stream.seed, stream.shuffle)
        self._schedule = schedule_for(settings, stream.epochs)
        self._function.examples = examples
        self._step.loader = self._step.gradients.loader = replace(
            self._step.loader, examples=settings.placeholder(len(examples))
        )
        config = {**settings.document(), **stream.settings()}
        self._progress.metadata = Metadata(config, float(stream.epochs), contents=stream.contents)

    def _go(self, stream: Stream) -> Iterator[GlobalBatch]:
        sampler = self._sampler
        assert sampler is not None
        while self._stream is stream and self._progress.step < stream.epochs * sampler.steps_per_epoch:
            step = self._progress.step
            batch = GlobalBatch(stream.examples, sampler.minibatch(step), step // sampler.steps_per_epoch, step, stream)
            yield batch
            if self._stream is stream and not batch.is_made and self._progress.step == step:
                self._progress.step += 1
        if self._stream is not stream:
            raise ConfigurationError("batches: another call of batches has begun since; go through one at a time")

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

        def make() -> float:
            self._meet(Operation.STEP, self._why_no_step(loss_and_grad, batch), batch)
            return self._make(loss_and_grad, batch)

        return self._call(make)

    def _why_no_step(self, function: Any, batch: Any) -> ConfigurationError | None:
        if not callable(function):
            return ConfigurationError(
                f"step: expected a function (params, microbatch), got {type(function).__name__}; the batch comes second"
            )
        if not isinstance(batch, GlobalBatch):
            return ConfigurationError(
                f"step: expected a batch that batches(…) of this DataParallel gives, got {type(batch).__name__}"
            )
        if batch.stream is not self._stream:
            return ConfigurationError("step: this batch is of another DataParallel, or of an earlier call of batches")
        if batch.is_made or batch.step != self._progress.step:
            made = "has had its step" if batch.is_made else f"is not the one that is due, number {self.steps + 1}"
            return ConfigurationError(f"step: batch number {batch.step + 1} {made}; take each batch as it comes")
        return None

    def _make(self, function: OwnLossAndGrad, batch: GlobalBatch) -> float:
        step, progress, per_epoch = self._step, self._progress, self._sampler
        assert per_epoch is not None
        assert self._schedule is not None
        self._ranks.heartbeat.set_phase(Phase.STEP, batch.step + 1)
        self._function.function = function
        rate = self._schedule.learning_rate(step.optimizer.learning_rate, batch.step, per_epoch.steps_per_epoch)
        order = StepOrder(batch.step, batch.epoch, batch.indices, rate, progress.updates)
        result = step.run(order, NOTHING)
        if result.problem is not None:
            raise result.problem.error()
        batch.is_made = True
        progress.step += 1
        progress.updates += 1
        self._steps_here += 1
        return result.loss_sum / result.count

    def mean(self, function: Callable[[Mapping[str, Array], MicroBatch], Any], x: Any, y: Any = None) -> float:
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

        def look() -> ExampleSet:
            return ExampleSet.of(x, y, None, "mean")

        def measure() -> float:
            self._meet(Operation.MEAN)
            examples = self._ranks.everywhere(look)
            self._ranks.heartbeat.set_phase(Phase.VALIDATION, self.steps)
            count, ranks = len(examples), self._ranks
            if any(other != count for other in ranks.allgather_object(count)):
                raise ConfigurationError("mean: ranks give different numbers of examples; give all ranks the same")
            first, last = part(-(-count // CHUNK), ranks.size, ranks.rank)
            sums = ranks.gather_object(
                ranks.everywhere(lambda: [self._sum(function, examples, k) for k in range(first, last)])
            )
            total = 0.0
            for number in (number for of_rank in sums or () for number in of_rank):
                total += number
            return ranks.broadcast_object(total / count)

        return self._call(measure)

    def _sum(self, function: Callable[..., Any], examples: ExampleSet, chunk: int) -> float:
        rows = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(examples)))
        values = np.asarray(function(self._step.params.read_only(), microbatch(examples, rows)))
        if values.shape != rows.shape or values.dtype.kind not in "biuf":
            raise ConfigurationError(
                f"mean: the function must return one number for each example, shape ({len(rows)},), got "
                f"{values.dtype} of shape {values.shape}"
            )
        self._ranks.heartbeat.progressed()
        return float(np.sum(values, dtype=np.float64))

    def state_dict(self) -> dict[str, Any]:
        """All that training continues from: copies of arrays, by name, and `document`. The same on all ranks.
        Collective."""

        def capture() -> dict[str, Any]:
            self._meet(Operation.STATE_DICT)
            whole = whole_run(self._checkpoints(), self._with_document())
            found = None if whole is None else {**whole.arrays, "document": whole.document}
            return self._ranks.broadcast_object(found or {})

        return self._call(capture)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` has returned, with the same settings. Collective; rank 0's is used."""

        def look() -> Checkpoint:
            if not isinstance(state, Mapping) or not isinstance(state.get("document"), dict):
                raise ConfigurationError("load_state_dict: expected what state_dict returns")
            arrays = {name: array for name, array in state.items() if name != "document"}
            return Checkpoint(arrays, dict(state["document"]))

        def load() -> None:
            self._meet(Operation.LOAD)
            self._restore(self._ranks.everywhere(look), "load_state_dict")

        self._call(load)

    def save(self, folder: str | Path) -> None:
        """Writes a checkpoint into a folder: completely, or not at all. The newest three stay. Collective.

        Raises
        ------
        RunFolderError
            Where the folder holds checkpoints that this object neither wrote nor resumed from.
        """
        path = Path(folder).expanduser().absolute()

        def save() -> None:
            self._meet(Operation.SAVE)
            self._ranks.heartbeat.set_phase(Phase.CHECKPOINT, self.steps)
            whole = whole_run(self._checkpoints(), self._with_document())
            self._ranks.on_root(lambda: save_into(path, whole, self.steps, own=path in self._own_folders))
            self._own_folders.add(path)

        self._call(save)

    def resume(self, folder: str | Path) -> bool:
        """Continues from the newest checkpoint in a folder; False where there is none. Collective.

        Raises
        ------
        RunFolderError
            For a checkpoint of other settings.
        CheckpointError
            Where no checkpoint is whole.
        """
        path = Path(folder).expanduser().absolute()

        def resume() -> bool:
            self._meet(Operation.RESUME)
            found: list[Checkpoint] = []

            def look() -> bool:
                checkpoint = saved_in(path)
                found.extend([] if checkpoint is None else [checkpoint])
                return checkpoint is not None

            there = self._ranks.on_root(look)
            if there:
                self._restore(found[0] if found else None, str(folder))
            self._own_folders.add(path)
            return there

        return self._call(resume)

    def _restore(self, checkpoint: Checkpoint | None, name: str) -> None:
        self._ranks.on_root(lambda: refuse_other(checkpoint, self._with_document().metadata, name))
        self._step.reset()
        self._progress = self._checkpoints().restore(checkpoint)
        self._stream, self._steps_here = None, 0

    def _with_document(self) -> RunState:
        """Where this stands, with the settings also before the first batch."""
        metadata = self._progress.metadata
        return replace(self._progress, metadata=replace(metadata, config=metadata.config or self._settings.document()))

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self._ranks, Scores(self._step, {}), None, None, Hooks(self._ranks, (), lambda: self.steps))

    def close(self) -> None:
        """Gives back the group of ranks and BLAS's threads; nothing but the parameters is left. Collective."""
        if self._finalizer.alive:
            self._step.close()
            self._step.workers.close()
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

    def _meet(self, operation: Operation, problem: ConfigurationError | None = None, batch: Any = None) -> None:
        number = batch.step if isinstance(batch, GlobalBatch) else self._progress.step
        meet(self._ranks, operation, number, self._number, problem)

    def _call(self, function: Callable[[], T]) -> T:
        """function() with these ranks, which wait for each other in it. Collective."""
        if not self._finalizer.alive:
            raise ConfigurationError("this DataParallel is closed; make another one from its params")
        try:
            return guest_call(self._ranks, function)
        finally:
            self._ranks.heartbeat.set_phase(Phase.OUTSIDE, self._progress.step)
