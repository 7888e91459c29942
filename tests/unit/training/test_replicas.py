"""A rank that holds other numbers than the others is found and named; nothing is compared where there is one of all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.core.errors import ReplicaError
from distsgd.core.random import normal
from distsgd.parallel import Communicator
from distsgd.parallel.message_reduction import MessageReduction
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from distsgd.training.callbacks import Callback
from distsgd.training.running_statistics import RunningStatistics
from tests.threads import run_on_threads
from tests.trainers import keep_trainers

X = normal((64, 6), 1, "x").astype(np.float32)
LABELS = np.arange(64) % 3


def train(size: int, hosts: Any = None, **options: Any) -> list[Any]:
    settings = {"hidden": (5,), "epochs": 4, "batch_size": 8, "check_replicas": 4, "communication": "auto", **options}

    def run(communicator: Communicator) -> Result | str:
        try:
            return fit("mlp", (X, LABELS), communicator=communicator, **settings)
        except ReplicaError as error:
            return str(error)

    return run_on_threads(size, run, hosts)


def corrupt(monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, ...], step: int) -> None:
    """One bit of one parameter, of these ranks' own copies, after this step."""
    all_gather, calls = MessageReduction.all_gather, dict.fromkeys(wrong, 0)

    def all_gather_and_err(self: MessageReduction) -> None:
        all_gather(self)
        rank = self.communicator.rank
        if rank in calls:
            calls[rank] += 1
            if calls[rank] == step:
                self.params.view(np.uint32)[7] ^= 1

    monkeypatch.setattr(MessageReduction, "all_gather", all_gather_and_err)


@pytest.mark.parametrize("wrong", range(4))
def test_one_of_four(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    corrupt(monkeypatch, (wrong,), 8)
    hosts = ("a", "b", "c", "d")
    reported = train(4, hosts)
    assert len(set(reported)) == 1, "all ranks leave with the same words"
    assert reported[0] == (
        f"rank {wrong} on {hosts[wrong]}: parameters after step 8 differ from those of 3 other ranks; a processor "
        "or memory may be faulty: leave that host out, and the same command continues from the last checkpoint"
    )


def test_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """No one can say which of the two is right."""
    corrupt(monkeypatch, (0,), 4)
    assert "rank 1 on b: parameters after step 4 differ from those of rank 0 on a;" in train(2, ("a", "b"))[0]


def test_two_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, (1, 2), 4)
    reported = train(4, ("a", "b", "c", "d"))[0]
    assert reported.startswith(
        "rank 1 on b and rank 2 on c: parameters after step 4 differ from those of 2 other ranks"
    )


def test_replicas_are_counted_and_not_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, (0,), 4)  # which shares its replica with the other four of its host
    reported = train(8, "aaaaabbc", microbatches=8)[0]
    assert reported.startswith("rank 0 on a: parameters after step 4 differ from those of 2 other ranks")


def test_between_two_looks_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, (1,), 6)
    results = train(2, ("a", "b"))
    # Its next gradient was wrong, the same for all; the parameters were published anew.
    assert all(isinstance(result, Result) for result in results)


def test_never(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, (1,), 4)
    assert all(isinstance(result, Result) for result in train(2, ("a", "b"), check_replicas=0))


@pytest.mark.parametrize("kind", ["shared", "mpi"])
def test_running_statistics_are_each_ranks_own(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    update, trainers = RunningStatistics.update, keep_trainers(monkeypatch)

    def update_and_err(self: RunningStatistics, records: Any, bounds: Any) -> None:
        update(self, records, bounds)
        if any(trainer.communicator.rank == 2 for trainer in trainers if trainer.step.statistics is self):
            self.running.flat[0] += 1

    monkeypatch.setattr(RunningStatistics, "update", update_and_err)
    reported = train(3, communication=kind, batch_norm=True, batch_size=24)[0]
    assert ": running statistics after step 4 differ from those of 2 other ranks" in reported
    assert reported.startswith("rank 2 on ")


def test_where_a_rank_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks in shared memory have one set of parameters; a rank that believes itself elsewhere is still found."""

    class Reset(Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            if step == 7:
                (root,) = (trainer for trainer in trainers if trainer.communicator.is_root)
                root.progress.loss_sum += 1.0

    trainers = keep_trainers(monkeypatch)
    reported = train(3, callbacks=[Reset()])[0]
    assert reported.startswith("rank 0 on ")
    assert ": place in training after step 8 differ" in reported


@pytest.mark.parametrize("kind", ["shared", "mpi"])
@pytest.mark.parametrize("size", [1, 3])
def test_undisturbed(size: int, kind: str) -> None:
    found = [train(size, communication=kind, check_replicas=every, batch_norm=True, batch_size=24) for every in (0, 1)]
    assert len({result.summary["parameters_sha256"] for results in found for result in results}) == 1
