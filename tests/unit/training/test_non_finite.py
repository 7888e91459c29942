"""What is done about NaN and infinity: an update is made by all ranks or by none, and replays are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import ConfigurationError, NonFiniteError
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.data.sampling import Sampler
from distsgd.nn.batch import Batch
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import BLOCK
from distsgd.run.config import TrainConfig
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from distsgd.training.callbacks import Callback
from distsgd.training.non_finite import IN_A_ROW, UPDATE, NonFinite, NonFinitePolicy, Reaction
from tests.threads import run_on_threads

X = normal((48, 5), 1, "x")
Y = (X @ normal((5,), 1, "true weights") + 0.3)[:, np.newaxis]
START = {"w": normal((1, 5), 2, "w"), "unused": np.zeros(2 * BLOCK)}  # so many elements that ranks own different ones
BATCH, STEPS = 8, 18  # three epochs
WAYS: list[tuple[int, str]] = [
    (1, "shared"), (2, "shared"), (3, "shared"), (4, "shared"), (3, "mpi"),
]  # fmt: skip


@dataclass
class Bad:
    """Which steps (from 1) have numbers that aren't finite: of the machine, as it were, and not of the model, so that
    a run with another one continues."""

    steps: dict[int, str] = field(compare=False)


def model(steps: dict[int, str], microbatch: int = 2) -> Any:
    """A linear model whose numbers aren't finite in these steps."""
    bad = Bad(steps)

    def linear(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        error = params["w"] @ batch.x - batch.y
        grads["w"][...] = error @ batch.x.T
        grads["unused"][...] = 0.0
        loss, what = 0.5 * float(np.sum(np.square(error))), bad.steps.get(batch.step + 1)
        if what is None or (batch.microbatch != microbatch and what != "sum"):
            return loss, len(batch)
        if what == "sum":  # each microbatch's gradient is finite, and the sum of all isn't
            grads["w"][...] = 1e308
        elif what == "gradient":
            grads["unused"][-1] = np.inf  # the last rank's
        return (float(what) if what in ("nan", "inf", "-inf") else loss), len(batch)

    return linear


def train(
    out: Path | None, bad: dict[int, str], policy: str, size: int = 1, kind: str = "shared", **options: Any
) -> Result:
    settings = {
        "validation_fraction": 0.0, "dtype": "float64", "batch_size": BATCH, "optimizer": distsgd.Adam(0.1),
        "epochs": 3, "communication": kind, "on_non_finite": policy, "out": None if out is None else str(out),
        **options,
    }  # fmt: skip

    def run(communicator: Communicator) -> Result:
        return fit(model(bad), (X, Y), params=START, communicator=communicator, **settings)

    return run_on_threads(size, run)[0]


def without(bad: Sequence[int]) -> Any:
    """w after all minibatches but these, by Adam as its authors wrote it down."""
    w, m, v, updates = START["w"][0].copy(), np.zeros(5), np.zeros(5), 0
    sampler = Sampler(len(X), BATCH)
    for step in range(STEPS):
        if step + 1 in bad:
            continue
        chosen = sampler.minibatch(step)
        g = (X[chosen] @ w - Y[chosen, 0]) @ X[chosen] / BATCH
        updates += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.square(g)
        w = w - 0.1 * (m / (1 - 0.9**updates)) / (np.sqrt(v / (1 - 0.999**updates)) + 1e-8)
    return w


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "run"} for line in lines]


def reported(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result.summary.items() if key != "run"}


BAD = {1: "nan", 5: "gradient", 6: "inf", 7: "-inf", 13: "gradient", 18: "gradient"}


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_minibatches_are_skipped(tmp_path: Path, policy: str) -> None:
    found: list[tuple[Any, list[dict[str, Any]], list[int]]] = []
    for number, (size, kind) in enumerate(WAYS):
        out = tmp_path / str(number)
        result = train(out, BAD, policy, size, kind, checkpoint_every="4")
        np.testing.assert_allclose(result.params["w"][0], without(list(BAD)), rtol=1e-9)
        found.append((reported(result), records(out), [record["step"] for record in result.history]))
    assert all(one == found[0] for one in found[1:])
    printed = {record["step"]: record["skipped"] for record in found[0][1] if "skipped" in record}
    assert {step: one["what"].split()[1] for step, one in printed.items()} == {
        step: "gradient" if what == "gradient" else "loss" for step, what in BAD.items()
    }
    assert all(one["microbatches"] == [2, 3] for one in printed.values())
    assert printed[5]["examples"] == Sampler(len(X), BATCH).minibatch(4)[4:6].tolist()
    assert len({record["step"] for record in found[0][1]}) == len(found[0][1]), "one record a step"


def test_both_ways_give_the_same_bits(tmp_path: Path) -> None:
    skipped, back = (train(tmp_path / policy, BAD, policy, 3) for policy in ("skip", "rollback"))
    assert reported(skipped) == reported(back)
    assert records(tmp_path / "skip") == records(tmp_path / "rollback")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_stops_and_continues_leaves_out_the_same(tmp_path: Path, policy: str) -> None:
    whole = reported(train(tmp_path / "whole", BAD, policy))
    for stop in (1, 4, 5, 6, 7, 12, 13, 17, 18):
        train(tmp_path / "run", BAD, policy, 1 + stop % 4, ("shared", "mpi")[stop % 2], max_steps=stop)
    assert reported(train(tmp_path / "run", BAD, policy, 2)) == whole
    assert records(tmp_path / "run") == records(tmp_path / "whole")


@pytest.mark.parametrize("checkpoint_every", ["1", "3", "7", "1000"])
def test_how_far_it_goes_back_makes_no_difference(tmp_path: Path, checkpoint_every: str) -> None:
    result = train(tmp_path / "run", BAD, "rollback", 2, checkpoint_every=checkpoint_every)
    assert reported(result) == reported(train(None, BAD, "skip"))


def test_killed_after_a_rollback(tmp_path: Path) -> None:
    """Before any checkpoint says what is to be skipped, the run is ended by an error; it finds out again."""

    class Fail(Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            if step == 14:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"checkpoint_every": "10"}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", BAD, "rollback", callbacks=[Fail()], **options)
    result = train(tmp_path / "run", BAD, "rollback", 3, **options)
    assert reported(result) == reported(train(None, BAD, "skip"))


def test_with_validation_batch_normalization_and_momentum(tmp_path: Path) -> None:
    """The best parameters, the rule's state, the running statistics and an epoch's mean go back, too."""
    images, labels = normal((90, 6), 3, "x").astype(np.float32), np.arange(90) % 3

    def run(communicator: Communicator, policy: str, out: Path) -> dict[str, Any]:
        x = images.copy()
        x[40] = 3e38  # overflows in the first product: the loss is NaN wherever it is met
        options = {
            "epochs": 4,
            "batch_size": 24,
            "hidden": (7,),
            "batch_norm": True,
            "validation": (x[:20], labels[:20]),
        }
        result = fit(
            "mlp", (x[20:], labels[20:]), communicator=communicator, on_non_finite=policy, out=str(out),
            checkpoint_every="3", **options,
        )  # fmt: skip
        return reported(result) | {name: array.tobytes() for name, array in result.state.items()}

    found = [
        run_on_threads(size, lambda c, policy=policy, size=size: run(c, policy, tmp_path / f"{policy}-{size}"))[0]
        for policy in ("skip", "rollback")
        for size in (1, 3)
    ]
    assert all(one == found[0] for one in found[1:])
    skipped = [record for record in records(tmp_path / "rollback-3") if "skipped" in record]
    assert len(skipped) == 4, "the example is met once an epoch"
    assert records(tmp_path / "rollback-3") == records(tmp_path / "skip-1")


@pytest.mark.parametrize(("size", "kind"), WAYS)
def test_an_update_that_was_made_is_undone(tmp_path: Path, size: int, kind: str) -> None:
    """The gradients are finite and their sum isn't: ranks that own nothing of it have made their updates."""
    for step in (2, 4, STEPS):  # the last is found at the end, 4 as the checkpoint is due
        result = train(tmp_path / str(step), {step: "sum"}, "rollback", size, kind, checkpoint_every="4")
        np.testing.assert_allclose(result.params["w"][0], without([step]), rtol=1e-9)
        (record,) = [record for record in records(tmp_path / str(step)) if "skipped" in record]
        assert record["skipped"] == {"step": step, "what": UPDATE, "microbatches": None, "examples": []}
        with pytest.raises(NonFiniteError, match=rf"the update is not finite.* at step {step}; .*rollback could"):
            train(None, {step: "sum"}, "skip", size, kind)


@pytest.mark.parametrize("size", [1, 3])
def test_parameters_that_become_infinite_are_undone(tmp_path: Path, size: int) -> None:

    def huge(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        grads["w"][...] = -3e307 if batch.step in (6, 7) else 0.0  # by 4.0 in all; the largest number is 1.8e308
        return 1.0, len(batch)

    def run(communicator: Communicator) -> Result:
        return fit(
            huge, (X, Y), params={"w": np.zeros(3)}, communicator=communicator, out=str(tmp_path), batch_size=4,
            optimizer=distsgd.SGD(4.0), validation_fraction=0.0, epochs=1, dtype="float64", on_non_finite="rollback",
        )  # fmt: skip

    result = run_on_threads(size, run)[0]
    assert result.params["w"].tolist() == [1.2e308] * 3, "the first of the two was made, the second left out"
    assert [record["step"] for record in records(tmp_path) if "skipped" in record] == [8]


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_in_a_row(tmp_path: Path, policy: str) -> None:
    nine = dict.fromkeys(range(3, 3 + IN_A_ROW - 1), "nan")
    result = train(tmp_path / "nine", nine, policy, 2)
    np.testing.assert_allclose(result.params["w"][0], without(list(nine)), rtol=1e-9)
    with pytest.raises(
        NonFiniteError, match=rf"^{IN_A_ROW} minibatches in a row.*loss is nan at step 12, microbatch 2 \("
    ):
        train(tmp_path / "ten", {**nine, 12: "nan"}, policy, 2)
    with pytest.raises(NonFiniteError, match="in a row"):  # and after a resume as well
        train(tmp_path / "ten", {**nine, 12: "nan"}, policy, 3)


def test_what_is_skipped_is_in_the_checkpoint(tmp_path: Path) -> None:
    """A run that continues under another policy keeps to it: what was bad is not asked again."""
    train(tmp_path / "run", {5: "nan"}, "skip", max_steps=9)
    result = train(tmp_path / "run", {}, "stop")
    np.testing.assert_allclose(result.params["w"][0], without([5]), rtol=1e-9)


def test_a_run_that_stopped_continues_with_skip(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 9, microbatch 2"):
        train(tmp_path / "run", {9: "nan"}, "stop", 2, checkpoint_every="5")
    result = train(tmp_path / "run", {9: "nan"}, "skip", 3)
    np.testing.assert_allclose(result.params["w"][0], without([9]), rtol=1e-9)


def test_a_whole_epoch_is_skipped(tmp_path: Path) -> None:
    bad = dict.fromkeys(range(7, 13), "nan")
    result = train(tmp_path / "run", bad, "skip", 2)
    np.testing.assert_allclose(result.params["w"][0], without(list(bad)), rtol=1e-9)
    losses = {record["step"]: record["train_loss"] for record in records(tmp_path / "run")}
    assert losses[12] is None
    assert losses[18] is not None


@pytest.mark.parametrize(
    ("size", "microbatches"), [(1, "microbatches 2 to 3"), (2, "microbatch 2"), (4, "microbatch 2")]
)
def test_the_gradients_microbatches_are_named(size: int, microbatches: str) -> None:
    """As narrowly as the remaining sums allow when it is found."""
    examples = Sampler(len(X), BATCH).minibatch(2)[4 : 8 if microbatches.startswith("microbatches") else 6]
    with pytest.raises(NonFiniteError) as caught:
        train(None, {3: "gradient"}, "stop", size)
    named = ", ".join(map(str, examples))
    assert f"the gradient is not finite at step 3, {microbatches} (examples {named}); the loss is finite" in str(
        caught.value
    )


def test_callbacks_see_steps_without_examples() -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[int, bool, int]] = []

        def on_step(self, step: int, loss: float, examples: int) -> None:
            self.seen.append((step, bool(np.isnan(loss)), examples))

    watch = Watch()
    train(None, {2: "nan"}, "skip", callbacks=[watch], max_steps=3)
    assert watch.seen == [(1, False, 8), (2, True, 0), (3, False, 8)]


def test_rollback_without_a_folder() -> None:
    with pytest.raises(ConfigurationError, match="rollback needs checkpoints"):
        train(None, {}, "rollback")
    with pytest.raises(ConfigurationError, match="on_non_finite: expected one of stop, skip, rollback"):
        TrainConfig(on_non_finite="retry")


def test_policy_is_no_part_of_a_runs_identity() -> None:
    assert TrainConfig(on_non_finite="skip").name() == TrainConfig().name()


def test_many_examples_are_cut_short() -> None:
    assert "(examples 0, 1, 2, 3, 4, 5, 6, 7 …)" in str(NonFinite(3, "the loss is nan", (1, 2), tuple(range(9))))
    assert "(examples 5, 7)" in str(NonFinite(3, "the loss is nan", (1, 2), (5, 7)))


def test_records_come_back() -> None:
    for found in (NonFinite(3, "the loss is nan", (1, 2), (5, 7)), NonFinite(4, UPDATE)):
        assert NonFinite.of(json.loads(json.dumps(found.record()))) == found


def test_rows_are_counted_in_both_directions() -> None:
    found = NonFinite(10, UPDATE)
    around = {step: found for step in range(1, 20) if step != 10}
    near = {step: found for step in range(5, 14) if step != 10}
    assert NonFinitePolicy("rollback").decide(found, near, 9) is Reaction.ROLL_BACK
    assert NonFinitePolicy("skip").decide(found, near, 9) is Reaction.SKIP
    with pytest.raises(NonFiniteError, match="in a row"):
        NonFinitePolicy("rollback").decide(found, around, 9)
