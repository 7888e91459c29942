"""Whether a model computes the same bits twice, and on all ranks: the promise holds for those that do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.components import components_inside, is_own
from distsgd.core.device import to_host
from distsgd.core.errors import DistsgdError
from distsgd.core.layout import Layout, Views
from distsgd.nn.objective import Objective
from distsgd.parallel import Communicator
from distsgd.training.minibatch import IndexedMinibatch
from distsgd.training.step import TrainingStep
from distsgd.training.steps import StepOrder

if TYPE_CHECKING:
    from distsgd.training.trainer import Trainer


_REMEDY = "make all that it does a function of its parameters, the batch and batch.random_words"


def check_repeatable(communicator: Communicator, trainer: Trainer) -> str | None:
    """Why the bits of this run may not be the same on any number of ranks; None where nothing speaks against it.

    Each rank computes its first microbatch twice, and the environments of all ranks are compared. It costs one more
    microbatch an attempt, for the first one computes what later ones find ready. Collective.
    """
    objective = trainer.step.objective
    mine = communicator.everywhere(lambda: (_computed_twice(trainer), dict(objective.environment())))
    communicator.everywhere(lambda: _check_single(trainer))
    everyone = communicator.allgather_object(mine)
    different = [rank for rank, (repeats, _) in enumerate(everyone) if not repeats]
    found = [_of_environment([environment for _, environment in everyone])]
    if different:
        name = _name_of(objective)
        remedy = getattr(objective, "how_to_repeat", _REMEDY)
        found.insert(
            0,
            f"{name} isn't repeatable: rank {different[0]} has computed its first microbatch twice, with different "
            f"bits; {remedy}",
        )
    reasons = [reason for reason in found if reason]
    if not reasons:
        return None
    return f"the same bits on any number of ranks are not to be expected: {'; and '.join(reasons)}"


def _computed_twice(trainer: Trainer) -> bool:
    """Whether the first microbatch of each of this rank's workers has the same loss, gradient and statistics twice.

    An error is left to the step, which reports it with its place.
    """
    step, number = trainer.step, trainer.progress.step
    epoch, indices = number // trainer.sampler.steps_per_epoch, trainer.sampler.minibatch(number)
    minibatch = step.minibatch(StepOrder(number, epoch, indices, 0.0, 0))
    workers, state = step.workers.that_may_call(step.objective), step.statistics.for_model()
    found: list[list[str]] = [[] for _ in range(workers.count)]

    def run(worker: int) -> None:
        with np.errstate(all="ignore"), suppress(Exception, SystemExit):
            found[worker].append(_computed(step, minibatch, worker, state))

    for _ in range(2):
        workers.run(run)
    return all(len(set(digests)) <= 1 for digests in found)


def _check_single(trainer: Trainer) -> None:
    """Computes one example where an epoch's last minibatch has one: a model that normalizes may refuse it, and then
    does before the epoch."""
    step, sampler, number = trainer.step, trainer.sampler, trainer.progress.step
    left = sampler.num_examples % sampler.batch_size
    is_single = left == 1 and not (sampler.drop_last or sampler.replacement)
    if not is_single or not step.objective.statistics_shapes():
        return
    epoch, indices = number // sampler.steps_per_epoch, sampler.minibatch(number)[:1]
    minibatch, state = step.minibatch(StepOrder(number, epoch, indices, 0.0, 0)), step.statistics.for_model()
    try:
        with np.errstate(all="ignore"):
            for worker in range(len(step.reduction.worker_spans)):
                _computed(step, minibatch, worker, state)
    except DistsgdError:
        raise
    except Exception:
        return  # the step reports it, with its place


def _computed(step: TrainingStep, minibatch: IndexedMinibatch, worker: int, state: Views) -> str:
    """A digest of what a worker computes of its first microbatch; its gradients are scratch memory here."""
    (first, last), bounds = step.reduction.worker_spans[worker], minibatch.bounds
    microbatch = next((k for k in range(first, last) if bounds[k] < bounds[k + 1]), None)
    if microbatch is None:
        return "nothing"
    row = next(row for node, row in step.reduction.rows.items() if first <= node[0] and node[1] <= last)
    row[...] = 0.0
    reported = Layout.of(step.objective.statistics_shapes())
    statistics = reported.views(np.zeros(reported.size))
    rows = minibatch.gather(bounds[microbatch], bounds[microbatch + 1], None)
    batch = minibatch.batch(rows, microbatch, state, statistics)
    params, grads = step.layout.views(step.reduction.params).read_only(), step.layout.views(row)
    loss_sum, count = step.objective.loss_and_grad(params, grads, batch)
    found = hashlib.sha256(np.array([float(loss_sum), float(count)]).tobytes())
    found.update(np.ascontiguousarray(to_host(row)).view(np.uint8).data)
    found.update(statistics.flat.tobytes())
    row[...] = 0.0
    return found.hexdigest()


def _of_environment(environments: list[Mapping[str, str]]) -> str | None:
    """A rank's own doubt, or a sentence about the first thing in which a rank differs from rank 0."""
    doubt = next((one["doubt"] for one in environments if "doubt" in one), None)
    if doubt is not None:
        return doubt
    for rank, environment in enumerate(environments):
        for key in sorted(environment.keys() | environments[0].keys()):
            mine, first = environment.get(key, "unknown"), environments[0].get(key, "unknown")
            if mine != first:
                return f"{key} is {first} on rank 0 and {mine} on rank {rank}; make all ranks alike"
    return None


def _name_of(objective: Objective) -> str:
    """The name of the first thing in it that isn't distsgd's own."""
    for one in components_inside(objective):
        functions = one.user_functions()
        if functions:
            return str(getattr(functions[0], "__name__", type(functions[0]).__name__))
        if not is_own(one) and not type(one).__module__.startswith("distsgd."):
            return type(one).__name__
    return type(objective).__name__
