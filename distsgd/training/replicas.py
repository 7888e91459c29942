"""Compares what every rank has for itself and should have alike: a processor or a memory that errs is named."""

from __future__ import annotations

import hashlib
from collections import Counter

from distsgd.core.device import to_host
from distsgd.core.errors import ReplicaError
from distsgd.training.run_state import RunState
from distsgd.training.step import TrainingStep


def compare_replicas(step: TrainingStep, progress: RunState, learning_rate: float) -> None:
    """Raises ReplicaError on all ranks where one differs from the others. Collective.

    Compared are sha256 of the parameters, as one rank of each replica has them; of the running statistics; and of
    where the rank stands: step, loss so far, learning rate, skipped minibatches. Most are right; of equally many,
    those with the lowest rank.
    """
    communicator = step.reduction.communicator
    if communicator.size == 1:
        return
    everyone = communicator.allgather_object(_digests(step, progress, learning_rate))
    differing, odd, asked = [], set[int](), set[int]()
    for name in everyone[0]:
        given = {rank: digests[name] for rank, digests in enumerate(everyone) if digests[name]}
        right = next((digest for digest, _ in Counter(given.values()).most_common(1)), None)
        wrong = {rank for rank, digest in given.items() if digest != right}
        if wrong:
            differing.append(name)
            odd |= wrong
            asked |= set(given)
    if not odd:
        return
    named = " and ".join(f"rank {rank} on {communicator.hosts[rank]}" for rank in sorted(odd))
    others = sorted(asked - odd)
    rest = f"rank {others[0]} on {communicator.hosts[others[0]]}" if len(others) == 1 else f"{len(others)} other ranks"
    raise ReplicaError(
        f"{named}: {' and '.join(differing)} after step {progress.step} differ from those of {rest}; a processor or "
        "memory may be faulty: leave that host out, and the same command continues from the last checkpoint"
    )


def _digests(step: TrainingStep, progress: RunState, learning_rate: float) -> dict[str, str | None]:
    """By what is compared; None where another rank speaks for this one."""
    place = repr((progress.step, progress.loss_sum, progress.count, learning_rate, sorted(progress.skipped)))
    contents: dict[str, bytes | memoryview | None] = {
        "parameters": to_host(step.reduction.params).data if step.reduction.speaks_for_replica else None,
        "running statistics": step.running.flat.data,
        "place in training": place.encode(),
    }
    return {
        name: None if content is None else hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
