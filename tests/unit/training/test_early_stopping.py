"""The epochs rule against a brute-force count, the patience rule against the loop it stands for."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Task
from distsgd.training.early_stopping import EpochsRule, PatienceRule, StoppingRule, monitor_mode
from distsgd.training.metrics import METRICS, UserMetric, standard_metrics

# Few different values, so that ties and NaN come up.
values = st.one_of(st.integers(0, 12).map(lambda n: n / 8), st.floats(0, 2), st.just(math.nan), st.just(math.inf))


def run_epochs(rule: EpochsRule, sequence: list[float], every: int = 10) -> int | None:
    """The number of validations made before the rule stops the run; None where it doesn't."""
    for k, value in enumerate(sequence, start=1):
        rule.validated(k * every, value)
        stop = rule.stop_step()
        if stop is not None:
            assert stop == k * every
            return k
    return None


def test_stops_after_patience_validations_without_improvement() -> None:
    rule = EpochsRule(patience=2)
    assert run_epochs(rule, [1.0, 0.5, 0.6, 0.4, 0.4, 0.4, 0.1]) == 6
    assert (rule.best, rule.best_step) == (0.4, 40)


def test_says_what_improved() -> None:
    rule = EpochsRule(patience=5)
    printed = [
        (math.nan, False),
        (1.0, True),
        (1.0, False),
        (0.9, True),
        (math.inf, False),
        (-math.inf, False),
        (0.8, True),
    ]
    for step, (value, improved) in enumerate(printed):
        assert rule.validated(step, value) is improved


def test_min_delta_has_to_be_exceeded() -> None:
    rule = EpochsRule(patience=9, min_delta=0.25)
    assert [rule.validated(k, v) for k, v in enumerate([1.0, 0.75, 0.5, 0.25, 0.0])] == [True, False, True, False, True]


def test_patience_zero_never_stops() -> None:
    assert run_epochs(EpochsRule(patience=0), [1.0] * 1000) is None


@given(st.lists(values, max_size=40), st.integers(1, 4), st.sampled_from([0.0, 0.1]))
def test_epochs_rule_against_brute_force(sequence: list[float], patience: int, min_delta: float) -> None:
    best_at: list[int] = []
    expected = None
    for k, value in enumerate(sequence):
        if math.isfinite(value) and (not best_at or value < sequence[best_at[-1]] - min_delta):
            best_at.append(k)
        if k - (best_at[-1] if best_at else -1) >= patience:
            expected = k + 1
            break
    rule, mirrored = EpochsRule(patience, min_delta), EpochsRule(patience, min_delta, mode="max")
    assert run_epochs(rule, sequence) == expected
    assert run_epochs(mirrored, [-value for value in sequence]) == expected
    if best_at:
        assert (rule.best, rule.best_step) == (sequence[best_at[-1]], 10 * best_at[-1] + 10)
        assert (mirrored.best, mirrored.best_step) == (-sequence[best_at[-1]], 10 * best_at[-1] + 10)
    else:
        assert (rule.best, rule.best_step) == (None, None)


def tutorial_loop(
    sequence: list[float], batches: int, epochs: int, patience: float, increase: float, threshold: float
) -> tuple[int, float, int | None]:
    """Nested epochs and minibatches with patience: (minibatches trained on, best value, iteration of the best)."""
    every = max(1, min(batches, int(patience) // 2))
    measured = iter(sequence)
    lowest, lowest_at = math.inf, None
    trained = 0
    for epoch in range(epochs):
        for minibatch in range(batches):
            iteration = epoch * batches + minibatch
            trained += 1
            if (iteration + 1) % every == 0:
                value = next(measured, math.nan)
                if value < lowest:
                    if value < lowest * threshold:
                        patience = max(patience, iteration * increase)
                    lowest, lowest_at = value, iteration
            if patience <= iteration:
                return trained, lowest, lowest_at
    return trained, lowest, lowest_at


def run_patience(rule: PatienceRule, sequence: list[float], batches: int, steps: int) -> int:
    """The flat loop a trainer runs; the steps made."""
    every, measured = rule.validation_frequency(batches), iter(sequence)
    for step in range(1, steps + 1):
        if step % every == 0:
            rule.validated(step, next(measured, math.nan))
        if step >= rule.stop_step():
            return step
    return steps


@given(
    st.lists(values, max_size=60),
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(1, 40),
    st.sampled_from([1, 2, 1.5, 3]),
    st.sampled_from([0.995, 0.5, 1.0]),
)
def test_patience_rule_against_the_nested_loop(
    sequence: list[float], batches: int, epochs: int, patience: int, increase: float, threshold: float
) -> None:
    trained, lowest, lowest_at = tutorial_loop(sequence, batches, epochs, patience, increase, threshold)
    rule = PatienceRule(patience, increase, threshold)
    assert run_patience(rule, sequence, batches, batches * epochs) == trained
    assert rule.best == (None if lowest_at is None else lowest)
    assert rule.best_step == (None if lowest_at is None else lowest_at + 1)


def test_patience_rule_by_hand() -> None:
    rule = PatienceRule(patience=10)
    assert (rule.validation_frequency(100), rule.validation_frequency(3), rule.stop_step()) == (5, 3, 11)
    assert rule.validated(5, 1.0)
    assert rule.stop_step() == 11  # 4 · 2 = 8 is less than 10
    assert rule.validated(10, 0.999)
    assert rule.stop_step() == 11  # better, but not below 0.995
    assert rule.validated(11, 0.5)
    assert rule.stop_step() == 21  # 10 · 2 = 20
    assert not rule.validated(20, 0.5)
    assert not rule.validated(20, math.nan)
    assert not rule.validated(20, -math.inf)
    assert (rule.best, rule.best_step, rule.stop_step()) == (0.5, 11, 21)
    assert rule.validation_frequency(100) == 5  # of the first patience, not the grown one


def test_patience_of_one_has_a_validation_at_every_step() -> None:
    assert PatienceRule(1).validation_frequency(100) == 1


@given(
    st.lists(values, max_size=30), st.integers(0, 30), st.sampled_from([EpochsRule, PatienceRule]), st.integers(1, 6)
)
def test_restored_rule_continues_as_if_never_stopped(sequence: list[float], cut: int, kind: Any, patience: int) -> None:
    through, first, second = kind(patience), kind(patience), kind(patience)
    for k, value in enumerate(sequence):
        if k == cut:
            second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        resumed = first if k < cut else second
        assert resumed.validated(k + 1, value) == through.validated(k + 1, value)
        assert resumed.stop_step() == through.stop_step()
        assert (resumed.best, resumed.best_step) == (through.best, through.best_step)
        assert resumed.state() == through.state()


def test_resuming_with_other_settings() -> None:
    exhausted = EpochsRule(2)
    assert run_epochs(exhausted, [1.0, 2.0, 2.0]) == 3
    longer = EpochsRule(3)
    longer.restore(exhausted.state())
    assert longer.stop_step() is None
    longer.validated(40, 2.0)
    assert (longer.stop_step(), longer.best_step) == (40, 10)

    grown = PatienceRule(10)
    grown.validated(50, 1.0)
    for patience, stop in ((5, 99), (10, 99), (200, 201)):
        other = PatienceRule(patience)
        other.restore(grown.state())
        assert (other.stop_step(), other.best) == (stop, 1.0)


def test_resuming_with_the_other_rule_keeps_the_best() -> None:
    epochs, patience = EpochsRule(3), PatienceRule(10)
    epochs.validated(7, 0.5)
    patience.restore(epochs.state())
    assert (patience.best, patience.best_step, patience.stop_step()) == (0.5, 7, 11)
    fresh: StoppingRule = EpochsRule(1)
    fresh.restore(patience.state())
    assert (fresh.best, fresh.stop_step()) == (0.5, None)


def test_monitor_mode_agrees_with_the_metrics() -> None:
    for metric in (
        *standard_metrics(Task("classification", 10), 10, top_k=5),
        *standard_metrics(Task("regression"), 2),
    ):
        assert monitor_mode(f"validation_{metric.name}") == metric.mode
    tasks = (Task("classification", 10), 10), (Task("classification", 2), 1), (Task("regression"), 2)
    for name, (task, outputs) in product(METRICS, tasks):
        try:
            metric = METRICS[name](task, outputs, ())
        except ConfigurationError:
            continue  # of another task
        if metric.suits(task, outputs) and metric.is_number:
            assert monitor_mode(f"test_{name}") == monitor_mode(name) == metric.mode
    assert monitor_mode("validation_loss") == "min"
    with pytest.raises(ConfigurationError, match="monitor 'validation_gain': expected a name that ends in one of loss"):
        monitor_mode("validation_" + UserMetric("gain", lambda outputs, y: y).name)
