"""What a DataParallel does with its ranks: it gives batches, makes steps, measures, saves and continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import ConfigurationError
from distsgd.core.status_table import Phase
from distsgd.data.sampling import ORDER_BY_SORT, Sampler
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.parallel.tree import part
from distsgd.run.compared.agreement import agreed
from distsgd.run.compared.identity import Identity
from distsgd.run.own_loop.batches import ExampleSet, GlobalBatch, RowLoader, Stream, microbatch
from distsgd.run.own_loop.calls import Calls, Operation
from distsgd.run.own_loop.function import OwnLossAndGrad
from distsgd.run.own_loop.functions import Functions
from distsgd.run.own_loop.settings import Settings, begun, schedule_for
from distsgd.run.own_loop.state import refuse_other, save_into, saved_in, whole_run
from distsgd.training.callbacks import Hooks
from distsgd.training.checkpoint_store import Checkpoints
from distsgd.training.evaluator import CHUNK, Scores
from distsgd.training.non_finite import UPDATE
from distsgd.training.run_state import Metadata, RunState
from distsgd.training.steps import NOTHING, StepOrder

_ADVICE = (
    "no update was made, and a loop that catches this NonFiniteError continues without the batch; a smaller learning "
    "rate or clip_norm may help, or the data may hold extreme values"
)
_ADVICE_ON_UPDATES = "a smaller learning rate or clip_norm may help; continue from a checkpoint"


@final
class Loop:
    """The state of one DataParallel, and its operations, each of which is collective.

    progress    where it stands between two batches
    """

    def __init__(self, communicator: Communicator, settings: Settings) -> None:
        self._ranks, self._settings = communicator, settings
        self._function, self.trains, number = begun(communicator, settings)
        self._calls = Calls(communicator, self.trains, number)
        self.progress = RunState()
        self._stream: Stream | None = None
        self._sampler: Sampler | None = None
        self._schedule: Schedule | None = None
        self._steps_here = 0
        self._own_folders: set[Path] = set()
        self._functions = Functions()

    def batches(self, x: Any, y: Any, weights: Any, given: Mapping[str, Any]) -> Iterator[GlobalBatch]:
        """Compares what ranks give, and what was given before; then the batches one after the other."""
        self._calls.meet(Operation.BATCHES, self.progress.step)

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
            self._check_stream(stream)
            return stream, identity

        stream = agreed(self._ranks, "batches", look)
        self._take_up(stream)
        return self._go(stream)

    def _check_stream(self, stream: Stream) -> None:
        """Raises ConfigurationError where this isn't what was begun."""
        known = self.progress.metadata
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
        if self._steps_here and self.progress.step >= steps:
            raise ConfigurationError(
                f"batches: all {stream.epochs} epochs are made; epochs counts from the beginning: give a larger number"
            )

    def _take_up(self, stream: Stream) -> None:
        settings, examples = self._settings, stream.examples
        self._stream = stream
        order = None
        if stream.shuffle and len(examples) >= ORDER_BY_SORT:
            from distsgd.data.orders import KeyedOrder

            order = KeyedOrder(len(examples), stream.seed)
        self._sampler = Sampler(len(examples), stream.batch_size, stream.seed, stream.shuffle, order=order)
        self._schedule = schedule_for(settings, stream.epochs)
        self._function.examples = examples
        self.trains.loader = self.trains.gradients.loader = RowLoader(
            settings.placeholder(len(examples)), self._function, self.trains.loader.dtype, settings.seed
        )
        config = {**settings.document(), **stream.settings()}
        self.progress.metadata = Metadata(config, float(stream.epochs), contents=stream.contents)

    def _go(self, stream: Stream) -> Iterator[GlobalBatch]:
        sampler = self._sampler
        assert sampler is not None
        while self._stream is stream and self.progress.step < stream.epochs * sampler.steps_per_epoch:
            step = self.progress.step
            batch = GlobalBatch(stream.examples, sampler.minibatch(step), step // sampler.steps_per_epoch, step, stream)
            yield batch
            if self._stream is stream and not batch.is_made and self.progress.step == step:
                self.progress.step += 1
        if self._stream is not stream:
            raise ConfigurationError("batches: another call of batches has begun since; go through one at a time")

    def step(self, function: OwnLossAndGrad, batch: GlobalBatch) -> float:
        """Makes a step, and returns the batch's mean loss."""
        problem = self._why_no_step(function, batch)
        number = batch.step if isinstance(batch, GlobalBatch) else self.progress.step
        if self._functions.is_new(function):
            self._calls.meet(Operation.NEW_FUNCTION, number, problem)
            parts = agreed(self._ranks, "step", lambda: self._functions.described(function))
            self._functions.compare(function, parts)
        self._calls.meet_in_step(number, problem)
        return self._make(function, batch)

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
        if batch.is_made or batch.step != self.progress.step:
            made = (
                "has had its step" if batch.is_made else f"is not the one that is due, number {self.progress.step + 1}"
            )
            return ConfigurationError(f"step: batch number {batch.step + 1} {made}; take each batch as it comes")
        return None

    def _make(self, function: OwnLossAndGrad, batch: GlobalBatch) -> float:
        step, progress, per_epoch = self.trains, self.progress, self._sampler
        assert per_epoch is not None
        assert self._schedule is not None
        self._ranks.heartbeat.set_phase(Phase.STEP, batch.step + 1)
        self._function.begin(function)
        rate = self._schedule.learning_rate(step.optimizer.learning_rate, batch.step, per_epoch.steps_per_epoch)
        order = StepOrder(batch.step, batch.epoch, batch.indices, rate, progress.updates)
        result = step.run(order, NOTHING)
        if result.problem is not None:
            raise result.problem.error(_ADVICE_ON_UPDATES if result.problem.what == UPDATE else _ADVICE)
        batch.is_made = True
        progress.step += 1
        progress.updates += 1
        self._steps_here += 1
        return result.loss_sum / result.count

    def mean(self, function: Callable[..., Any], x: Any, y: Any) -> float:
        """The mean of what a function returns for each example."""
        self._calls.meet(Operation.MEAN, self.progress.step)
        ranks = self._ranks
        examples = ranks.everywhere(lambda: ExampleSet.of(x, y, None, "mean"))
        ranks.heartbeat.set_phase(Phase.VALIDATION, self.progress.step)
        count = len(examples)
        if any(other != count for other in ranks.allgather_object(count)):
            raise ConfigurationError("mean: ranks give different numbers of examples; give all ranks the same")
        chunks = range(*part(-(-count // CHUNK), ranks.size, ranks.rank))
        own = ranks.everywhere(lambda: [self._sum(function, examples, chunk) for chunk in chunks])
        total = 0.0
        for of_rank in ranks.gather_object(own) or ():
            for number in of_rank:
                total += number
        return ranks.broadcast_object(total / count)

    def _sum(self, function: Callable[..., Any], examples: ExampleSet, chunk: int) -> float:
        rows = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(examples)))
        values = np.asarray(function(self.trains.params.read_only(), microbatch(examples, rows)))
        if values.shape != rows.shape or values.dtype.kind not in "biuf":
            raise ConfigurationError(
                f"mean: the function must return one number for each example, shape ({len(rows)},), got "
                f"{values.dtype} of shape {values.shape}"
            )
        self._ranks.heartbeat.progressed()
        return float(np.sum(values, dtype=np.float64))

    def capture(self) -> dict[str, Any]:
        """All that training continues from, on all ranks."""
        self._calls.meet(Operation.STATE_DICT, self.progress.step)
        whole = whole_run(self._checkpoints(), self._with_document())
        found = None if whole is None else {**whole.arrays, "document": whole.document}
        return self._ranks.broadcast_object(found or {})

    def load(self, state: Any, check_function: bool) -> None:
        """Continues from what `capture` has returned."""
        self._calls.meet(Operation.LOAD, self.progress.step)

        def look() -> Checkpoint:
            if not isinstance(state, Mapping) or not isinstance(state.get("document"), dict):
                raise ConfigurationError("load_state_dict: expected what state_dict returns")
            arrays = {name: array for name, array in state.items() if name != "document"}
            return Checkpoint(arrays, dict(state["document"]))

        self._restore(self._ranks.everywhere(look), "load_state_dict", check_function)

    def save(self, path: Path) -> None:
        """Writes a checkpoint into the folder at `path`."""
        self._calls.meet(Operation.SAVE, self.progress.step)
        step = self.progress.step
        self._ranks.heartbeat.set_phase(Phase.CHECKPOINT, step)
        whole = whole_run(self._checkpoints(), self._with_document())
        self._ranks.on_root(lambda: save_into(path, whole, step, own=path in self._own_folders))
        self._own_folders.add(path)

    def resume(self, path: Path, check_function: bool) -> bool:
        """Continues from the newest checkpoint in the folder, where there is one."""
        self._calls.meet(Operation.RESUME, self.progress.step)
        found: list[Checkpoint] = []

        def look() -> bool:
            checkpoint = saved_in(path)
            found.extend([] if checkpoint is None else [checkpoint])
            return checkpoint is not None

        there = self._ranks.on_root(look)
        if there:
            self._restore(found[0] if found else None, str(path), check_function)
        self._own_folders.add(path)
        return there

    def _restore(self, checkpoint: Checkpoint | None, name: str, check_function: bool) -> None:
        self._ranks.on_root(lambda: refuse_other(checkpoint, self._with_document().metadata, name))
        self.trains.reset()
        self.progress = self._checkpoints().restore(checkpoint)
        self._stream, self._steps_here = None, 0
        compares = self._ranks.broadcast_object(check_function)
        self._functions = Functions(self.progress.metadata.identity if compares else None)

    def _with_document(self) -> RunState:
        """Where this stands, with the settings also before the first batch."""
        metadata = self.progress.metadata
        metadata = replace(
            metadata, config=metadata.config or self._settings.document(), identity=self._functions.document()
        )
        return replace(self.progress, metadata=metadata)

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(
            self._ranks, Scores(self.trains, {}), None, None, Hooks(self._ranks, (), lambda: self.progress.step)
        )

    def close(self) -> None:
        """Frees what the steps hold."""
        self.trains.close()
        self.trains.workers.close()
