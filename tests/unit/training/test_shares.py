"""--shares: the same bits whatever ranks compute, and fewer microbatches for a rank that is slower, on thread ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.random import normal
from distsgd.data.sampling import microbatch_bounds
from distsgd.nn import Dense, Layer, Sequential
from distsgd.parallel import Communicator
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from distsgd.training import shares as balancing
from distsgd.training.callbacks import Callback
from distsgd.training.shares import REFUSED_FOR, SharesRule
from tests.threads import run_on_threads

X = normal((480, 12), 1, "x").astype(np.float32)
Y = np.argmax(X[:, :5], axis=1).astype(np.int64)
BOUNDS = microbatch_bounds(160, 16)
EVERYTHING: dict[str, Any] = {
    "hidden": (300, 70),
    "batch_norm": True,
    "dropout": 0.1,
    "optimizer": "lamb",
    "clip_norm": 0.5,
    "l2": 1e-3,
    "on_non_finite": "skip",
    "train_metrics": "full",
}


def without_run(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "run"}


def trained(hosts: str, model: Any = "mlp", **options: Any) -> list[Result]:
    """What each of the thread ranks on these hosts returns."""
    options = {"epochs": 2, "batch_size": 130, "microbatches": 16, "threads": 1, **options}

    def rank(communicator: Communicator) -> Result:
        return fit(model, X, Y, communicator=communicator, **options)

    return run_on_threads(len(hosts), rank, tuple(hosts))


@pytest.mark.parametrize(
    ("hosts", "shares"),
    [("a", "16"), ("aa", "11,5"), ("aa", "1,15"), ("aaa", "1,13,2"), ("aab", "7,8,1"), ("abbb", "3,1,1,11")],
)
def test_given_shares_have_the_same_bits(hosts: str, shares: str) -> None:
    """Batch statistics leave some microbatches empty here, and one of 90 examples ends each epoch."""
    (expected,) = trained("a", **EVERYTHING)
    for more in ({}, {"communication": "mpi"}, {"threads": 2}):
        for one in trained(hosts, shares=shares, **EVERYTHING, **more):
            assert without_run(one.summary) == without_run(expected.summary)
            assert [*map(without_run, one.history)] == [*map(without_run, expected.history)]
            assert one.summary["run"]["shares"] == [int(number) for number in shares.split(",")]
    assert "shares" not in expected.summary["run"]


OF_THREAD = threading.local()
"""What a rank that is a thread sleeps for each microbatch: `seconds`, called with the step from 0."""


@dataclass(frozen=True)
class Late(Layer):
    """Computes nothing, and takes its rank's time for it."""

    def output_shape(self, shape: Any) -> Any:
        return shape

    def forward(self, params: Any, x: Array, batch: Any, path: str) -> Any:
        if batch.training:
            time.sleep(OF_THREAD.seconds(batch.step))
        return x, lambda dy, grads: dy


class Notes(Callback):
    """Keeps what rank 0 is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_note(self, text: str) -> bool:
        self.texts.append(text)
        return True


def balanced(hosts: str, seconds: Callable[[int, int], float], **options: Any) -> tuple[Result, list[str]]:
    """(what rank 0 returns of a run with --shares auto, its notes), with ranks that sleep for so many seconds in each
    microbatch, by rank and step."""
    notes, model = Notes(), Sequential([Late(), Dense(12, 5)])

    def rank(communicator: Communicator) -> Result:
        OF_THREAD.seconds = lambda step: seconds(communicator.rank, step)
        common = {"batch_size": 240, "microbatches": 16, "threads": 1, "callbacks": [notes], "validation_fraction": 0}
        return fit(model, X, Y, communicator=communicator, shares="auto", **common, **options)

    found = run_on_threads(len(hosts), rank, tuple(hosts))
    for one in found[1:]:
        assert one.summary == found[0].summary
    return found[0], notes.texts


def plain(**options: Any) -> Result:
    """The same run on one rank that sleeps never, with the shares that a run has by default."""
    OF_THREAD.seconds = lambda step: 0.0
    common = {"batch_size": 240, "microbatches": 16, "validation_fraction": 0}
    return fit(Sequential([Late(), Dense(12, 5)]), X, Y, communicator="self", **common, **options)


@pytest.mark.parametrize(
    ("hosts", "options"),
    [("aa", {}), ("aaa", {"communication": "mpi"}), ("ab", {}), ("aabb", {"optimizer": "adam"})],
)
def test_a_slow_rank_gets_fewer(hosts: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 takes four times as long as others: it gets fewer microbatches, in the middle of the run, and no bit
    changes."""
    monkeypatch.setattr(balancing, "LEAST_SECONDS", 0.1)
    found, notes = balanced(hosts, lambda rank, step: 0.004 if rank == 1 else 0.001, epochs=40, **options)
    expected = plain(epochs=40, **options)
    assert without_run(found.summary) == without_run(expected.summary)
    assert [*map(without_run, found.history)] == [*map(without_run, expected.history)]
    shares = [record["run"]["shares"] for record in found.history]
    equal = 16 // len(hosts)
    assert shares[0][1] == equal
    assert shares[-1] == found.summary["run"]["shares"]
    assert shares[-1][1] <= equal // 2 + 1
    assert all(sum(one) == 16 for one in shares)
    assert any("note: from step 26 on ranks compute" in note for note in notes)


def test_the_other_rank_becomes_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares follow; and a minibatch that is left out changes nothing."""
    monkeypatch.setattr(balancing, "LEAST_SECONDS", 0.1)

    def seconds(rank: int, step: int) -> float:
        return 0.002 if rank == (step < 100) else 0.0005

    found, _ = balanced("aa", seconds, max_steps=250, epochs=200, on_non_finite="skip")
    shares = [record["run"]["shares"] for record in found.history]
    assert shares[40][0] > 8 > shares[40][1]
    assert shares[-1][0] < 8 < shares[-1][1]
    assert (
        found.summary["parameters_sha256"]
        == (plain(max_steps=250, epochs=200, on_non_finite="skip").summary["parameters_sha256"])
    )


def test_one_rank_says_that_nothing_changes() -> None:
    found, notes = balanced("a", lambda rank, step: 0.0, epochs=1)
    assert notes == ["note: shares auto changes nothing here, for one rank computes all microbatches"]
    assert found.summary["run"]["shares"] == [16]


def test_rule_changes_what_gains() -> None:
    """From times by hand: rank 1 takes twice as long for each microbatch."""
    rule = SharesRule(BOUNDS)
    assert rule.decide((8, 8), (8.0, 16.0), 17.0) == (11, 5)
    assert rule.decide((11, 5), (11.0, 10.0), 12.0) == (11, 5)
    assert rule.decide((11, 5), (11.0, 9.0), 12.0) == (11, 5), "10, 6 would take nearly as long"


def test_rule_follows() -> None:
    """Rank 1 is no longer slow, and earlier times count less and less."""
    rule, shares = SharesRule(BOUNDS), (11, 5)
    assert rule.decide((8, 8), (8.0, 16.0), 17.0) == shares
    for _ in range(8):
        shares = rule.decide(shares, (shares[0], shares[1]), max(shares) + 1.0)
    assert shares in ((8, 8), (9, 7))


def test_rule_does_not_go_to_and_fro() -> None:
    """As seen: a rank with half of a core took 4.8 ms a microbatch for 6 of them, 4 for 5 and 3.1 for 4."""
    rule, shares, seen = SharesRule(BOUNDS), (8, 8), []
    for _ in range(30):
        seconds = (2.0 * shares[0], shares[1] * {8: 7.0, 7: 6.0, 6: 4.8, 5: 4.0, 4: 3.1, 3: 2.5}[shares[1]])
        shares = rule.decide(shares, seconds, max(seconds) + 2.0)
        seen.append(shares)
    assert len(set(seen[-20:])) == 1, seen
    assert shares in ((10, 6), (11, 5))


def test_rule_leaves_what_gains_little() -> None:
    assert SharesRule(BOUNDS).decide((8, 8), (8.0, 8.5), 9.0) == (8, 8)
    assert SharesRule(BOUNDS).decide((8, 8), (8.0, 16.0), 200.0) == (8, 8), "gradients are little of this step"


def test_rule_takes_back_what_made_messages_longer() -> None:
    rule = SharesRule(BOUNDS)
    assert rule.decide((8, 8), (8.0, 16.0), 17.0) == (11, 5)
    assert rule.decide((11, 5), (11.0, 10.0), 20.0) == (8, 8), "gradients have saved 5, and the rest has grown by 8"
    for _ in range(REFUSED_FOR - 1):
        assert rule.decide((8, 8), (8.0, 16.0), 17.0) == (8, 8)
    assert rule.decide((8, 8), (8.0, 16.0), 17.0) == (11, 5), "it is tried again later"


def test_rule_keeps_a_change_while_the_machine_becomes_slower() -> None:
    rule = SharesRule(BOUNDS)
    assert rule.decide((8, 8), (8.0, 16.0), 17.0) == (11, 5)
    assert rule.decide((11, 5), (22.0, 20.0), 24.0) == (11, 5), "8, 8 would take 32 now"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what memory is shared is read from /proc")
@pytest.mark.parametrize("communication", ["shared", "mpi"])
def test_rows_of_earlier_shares_are_freed(communication: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares that change after every seventh step, with a validation in between: shared memory doesn't grow, and
    nothing else changes."""
    monkeypatch.setattr(balancing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(balancing, "LEAST_STEPS", 6)
    shared: list[int] = []

    def decide(rule: SharesRule, shares: tuple[int, ...], *measured: Any) -> tuple[int, ...]:
        shared.append(Path("/proc/self/maps").read_text().count("memfd:distsgd"))
        return (shares[0] % 13 + 1, 15 - shares[0] % 13)

    monkeypatch.setattr(SharesRule, "decide", decide)
    options: dict[str, Any] = {"epochs": 12, "batch_norm": True, "clip_norm": 1.0, "callbacks": [Notes()]}
    found = trained("aa", shares="auto", communication=communication, **options)
    assert len(shared) > 4
    assert max(shared) <= shared[0], shared
    (expected,) = trained("a", **options)
    for one in found:
        assert without_run(one.summary) == without_run(expected.summary)
