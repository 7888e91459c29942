"""Which parameters a run keeps: ties of what is watched, against a reference that looks at all validations at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd import Dense, Sequential, SoftmaxCrossEntropy, fit
from distsgd.data.named.generated import make_moons
from distsgd.nn import Supervised
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.trained.trained_model import Result
from distsgd.training.early_stopping import EpochsRule, PatienceRule
from distsgd.training.run_state import RunState
from distsgd.training.selection import Selection

# Few different values, so that most validations tie.
errors = st.one_of(st.integers(0, 3).map(lambda n: n / 4), st.just(math.nan), st.just(math.inf))
losses = st.one_of(st.integers(0, 5).map(lambda n: n / 8), st.just(math.inf))
EVERY = 10
"""Steps from one validation to the next."""


def judge(selection: Selection, state: RunState, error: float, loss: float) -> None:
    """One validation, as the trainer makes it."""
    record: dict[str, Any] = {"step": state.step + EVERY, "epoch": 0}
    record |= {"validation_error": error, "validation_loss": loss}
    state.step = record["step"]
    if selection.judge(SerialCommunicator(), state, record):
        state.best = record


def run(rule: Any, validations: list[tuple[float, float]], cut: int | None = None) -> tuple[int | None, int | None]:
    """(the best validation's number, that of the one that ended the run), stopped and resumed before number `cut`."""
    selection, state = Selection(rule(), "validation_error"), RunState()
    for number, (error, loss) in enumerate(validations):
        if number == cut:
            state.rule = selection.rule.state() if selection.rule else None
            state = RunState.from_document(json.loads(json.dumps(state.to_document())))
            selection = Selection(rule(), "validation_error")
            assert selection.rule is not None
            assert state.rule is not None
            selection.rule.restore(state.rule)
        judge(selection, state, error, loss)
        if selection.stop_step is not None and selection.stop_step <= state.step:
            return best_of(state), number
    return best_of(state), None


def best_of(state: RunState) -> int | None:
    return None if state.best is None else state.best["step"] // EVERY - 1


@given(st.lists(st.tuples(errors, losses), max_size=25), st.integers(1, 5), st.integers(0, 25))
def test_ties_are_broken_by_the_loss_and_do_not_extend_patience(
    validations: list[tuple[float, float]], patience: int, cut: int
) -> None:
    """The end is a function of the errors alone; the best is the lowest (error, loss) until then, the first of
    several."""
    end = None
    for number in range(patience - 1, len(validations)):
        seen = [error if math.isfinite(error) else math.inf for error, _ in validations[: number + 1]]
        since = number - seen.index(min(seen)) if math.isfinite(min(seen)) else number + 1
        if since >= patience:
            end = number
            break
    until = validations if end is None else validations[: end + 1]
    finite = [(error, loss, number) for number, (error, loss) in enumerate(until) if math.isfinite(error)]
    expected = (min(finite)[2] if finite else None, end)
    assert run(lambda: EpochsRule(patience), validations) == expected
    assert run(lambda: EpochsRule(patience), validations, cut) == expected


@given(st.lists(st.tuples(errors, losses), max_size=25), st.integers(1, 60), st.integers(0, 25))
def test_under_the_patience_rule_ties_change_the_best_alone(
    validations: list[tuple[float, float]], patience: int, cut: int
) -> None:
    found = run(lambda: PatienceRule(patience), validations)
    assert run(lambda: PatienceRule(patience), validations, cut) == found
    assert run(lambda: PatienceRule(patience), [(error, 0.0) for error, _ in validations])[1] == found[1]
    until = validations if found[1] is None else validations[: found[1] + 1]
    finite = [(error, loss, number) for number, (error, loss) in enumerate(until) if math.isfinite(error)]
    assert found[0] == (min(finite)[2] if finite else None)


def test_within_min_delta_nothing_ties() -> None:
    """What counts as no improvement doesn't become one by its loss; an equal value with a lower loss does."""
    validations = [(0.5, 0.5), (0.45, 0.1), (0.5, 0.4), (0.5, 0.4), (0.5, math.nan)]
    assert run(lambda: EpochsRule(0, min_delta=0.1), validations) == (2, None)
    assert run(lambda: EpochsRule(4, min_delta=0.1), validations) == (2, 4)


X, Y = make_moons(60, noise=0.3, seed=4)


def train(out: Path | None = None, **options: Any) -> Result:
    more = {} if out is None else {"out": str(out)}
    return fit("mlp", (X, Y), hidden=(8,), epochs=12, batch_size=16, validation_fraction=0.3, **more, **options)


def best_epoch(result: Result, *by: str) -> int:
    """By a look at all records."""
    found: int = min(result.history, key=lambda record: [record[f"validation_{name}"] for name in by])["epoch"]
    return found


def test_a_run_returns_the_lowest_loss_of_equal_errors(tmp_path: Path) -> None:
    whole = train()
    assert best_epoch(whole, "error") != best_epoch(whole, "error", "loss") == whole.summary["best_epoch"], "a tie"
    assert best_epoch(whole, "error") == train(ties="first").summary["best_epoch"], "--ties first"
    for steps in (4, 13, 26):  # at the end of an epoch, and within
        train(tmp_path / "run", max_steps=steps)
    again = train(tmp_path / "run")
    assert again.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert again.summary["best_epoch"] == whole.summary["best_epoch"]


@pytest.mark.parametrize("as_option", [True, False])
def test_with_class_weights_the_loss_decides(as_option: bool) -> None:
    """Whether an option of the named model says them, or the loss of one's own."""
    weights = (1.0, 5.0)
    if as_option:
        result = train(class_weights=weights, loss="softmax-cross-entropy")
    else:
        model = Supervised(Sequential([Dense(2, 2)]), SoftmaxCrossEntropy(class_weights=weights), (2,))
        result = fit(model, (X, Y), epochs=12, batch_size=16, validation_fraction=0.3)
    assert best_epoch(result, "loss") == result.summary["best_epoch"]
    losses = [record["validation_loss"] for record in result.history]
    marked = [record.get("best", False) for record in result.history]
    assert marked == [loss < min(losses[:number], default=np.inf) for number, loss in enumerate(losses)]
