"""Compares what every rank has for itself and should have alike: a processor or a memory that errs is named."""

from __future__ import annotations

import hashlib
from collections import Counter

from distsgd.device import to_host
from distsgd.errors import ReplicaError
from distsgd.snapshot import Progress
from distsgd.step import TrainingStep


def compare_replicas(step: TrainingStep, progress: Progress, learning_rate: float) -> None:
    """Raises ReplicaError on all ranks where one differs from the others. Collective.

    Compared are sha256 of the parameters, where ranks have copies of their own; of the running statistics; and of
    where the rank stands: step, loss so far, learning rate, minibatches left out.
    """
    communicator = step.exchange.communicator
    if communicator.size == 1:
        return
    everyone = communicator.allgather_object(_digests(step, progress, learning_rate))
    said = [tuple(digests.values()) for digests in everyone]
    most, _ = Counter(said).most_common(1)[0]  # of equally many, what the lowest rank says
    odd = [rank for rank, digests in enumerate(said) if digests != most]
    if not odd:
        return
    named = " and ".join(f"rank {rank} on {communicator.hosts[rank]}" for rank in odd)
    right = [rank for rank in range(communicator.size) if rank not in odd]
    others = (
        f"rank {right[0]} on {communicator.hosts[right[0]]}" if len(right) == 1 else f"the other {len(right)} ranks"
    )
    what = " and ".join(name for name in everyone[0] if everyone[odd[0]][name] != everyone[right[0]][name])
    raise ReplicaError(
        f"{named}: {what} after step {progress.step} differ from those of {others}; a processor or memory may be "
        "faulty: leave that host out, and the same command goes on from the last checkpoint"
    )


def _digests(step: TrainingStep, progress: Progress, learning_rate: float) -> dict[str, str]:
    place = repr((progress.step, progress.loss_sum, progress.count, learning_rate, sorted(progress.left_out)))
    contents: dict[str, bytes | memoryview] = {
        "running statistics": step.running.flat.data,
        "place in training": place.encode(),
    }
    if step.exchange.replicated:
        contents = {"parameters": to_host(step.exchange.params).data, **contents}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
