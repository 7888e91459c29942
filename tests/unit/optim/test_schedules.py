"""Schedules against closed forms written out here, and their common behaviour over the registry."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.optim.schedules import SCHEDULES, Cosine, InverseTime, Schedule, Step, Warmup, build_schedule

every_schedule = pytest.mark.parametrize("name", list(SCHEDULES))
PER_EPOCH = 8


def rate(schedule: Schedule, epoch: float, base: float = 0.5) -> float:
    return schedule.learning_rate(base, int(epoch * PER_EPOCH), PER_EPOCH)


@pytest.mark.parametrize(
    ("name", "options", "closed_form"),
    [
        ("constant", {}, lambda e: 0.5),
        ("inverse-time", {"decay_rate": 0.3}, lambda e: 0.5 / (1 + 0.3 * e)),
        ("inverse-time", {"decay_rate": 0.3, "staircase": True}, lambda e: 0.5 / (1 + 0.3 * int(e))),
        (
            "inverse-time",
            {"decay_rate": 0.3, "staircase": True, "decay_epochs": 4},
            lambda e: 0.5 / (1 + 0.3 * (int(e) // 4)),
        ),
        ("inverse-sqrt", {"decay_rate": 2.0}, lambda e: 0.5 / (1 + 2 * e) ** 0.5),
        ("step", {"factor": 0.5, "decay_epochs": 3}, lambda e: 0.5 * 0.5 ** (int(e) // 3)),
        ("exponential", {"factor": 0.95}, lambda e: 0.5 * math.exp(e * math.log(0.95))),
        ("exponential", {"factor": 0.9, "decay_epochs": 2}, lambda e: 0.5 * math.exp(e / 2 * math.log(0.9))),
        ("exponential", {"factor": 0.95, "staircase": True}, lambda e: 0.5 * 0.95 ** int(e)),
        ("cosine", {"epochs": 10}, lambda e: 0.5 * math.cos(math.pi * min(e, 10) / 20) ** 2),
    ],
)
def test_closed_forms(name: str, options: dict[str, Any], closed_form: Any) -> None:
    schedule = build_schedule(name, **options)
    for step in range(15 * PER_EPOCH):
        expected = closed_form(step / PER_EPOCH)
        assert schedule.learning_rate(0.5, step, PER_EPOCH) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_values_worked_out_by_hand() -> None:
    assert [rate(InverseTime(1.0), e) for e in (0, 1, 3)] == [0.5, 0.25, 0.125]
    assert [rate(Step(0.5, 2), e) for e in (0, 1.875, 2, 4)] == [0.5, 0.5, 0.25, 0.125]
    assert [rate(Cosine(4), e) for e in (0, 2, 4, 9)] == pytest.approx([0.5, 0.25, 0.0, 0.0], abs=1e-16)


@every_schedule
def test_starts_at_the_base_and_never_rises(name: str) -> None:
    schedule = build_schedule(name, epochs=5)
    rates = [schedule.learning_rate(0.5, step, PER_EPOCH) for step in range(20 * PER_EPOCH)]
    assert all(type(value) is float for value in rates)
    assert rates[0] == 0.5
    assert all(0 <= later <= earlier for earlier, later in pairwise(rates))


@every_schedule
def test_warm_up_is_a_ramp_times_the_schedule(name: str) -> None:
    plain, warm = build_schedule(name, epochs=5), build_schedule(name, epochs=5, warmup_steps=10)
    for step in range(40):
        expected = plain.learning_rate(0.5, step, PER_EPOCH) * min(step + 1, 10) / 10
        assert warm.learning_rate(0.5, step, PER_EPOCH) == pytest.approx(expected, rel=1e-12)
    assert warm.learning_rate(0.5, 9, PER_EPOCH) == plain.learning_rate(0.5, 9, PER_EPOCH)


def test_no_warm_up_by_default() -> None:
    assert build_schedule("constant").learning_rate(0.25, 0, PER_EPOCH) == 0.25
    assert isinstance(build_schedule("constant", warmup_steps=1), Warmup)


@given(st.integers(1, 10_000), st.integers(1, 100), st.integers(1, 1000))
def test_stairs_begin_exactly_at_the_epoch(steps_per_epoch: int, decay_epochs: int, stair: int) -> None:
    schedule = Step(0.5, decay_epochs)
    first = steps_per_epoch * decay_epochs * stair
    assert schedule.multiplier(first - 1, steps_per_epoch) == 0.5 ** (stair - 1)
    assert schedule.multiplier(first, steps_per_epoch) == 0.5**stair


@every_schedule
def test_very_late_steps_are_finite(name: str) -> None:
    value = build_schedule(name, epochs=5).learning_rate(1.0, 10**12, 1)
    assert 0 <= value <= 1


def test_settings_that_a_schedule_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="schedule constant: has no decay_rate"):
        build_schedule("constant", decay_rate=0.1)
    with pytest.raises(ConfigurationError, match="schedule step: has no staircase"):
        build_schedule("step", staircase=True)
    with pytest.raises(ConfigurationError, match="schedule cosine: needs its horizon"):
        build_schedule("cosine")
    with pytest.raises(ConfigurationError, match="expected one of constant, inverse-time"):
        build_schedule("linear")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inverse-time", {"decay_rate": -1.0}),
        ("inverse-sqrt", {"decay_rate": math.nan}),
        ("step", {"factor": 0.0}),
        ("step", {"decay_epochs": 0}),
        ("exponential", {"factor": 1.5}),
        ("exponential", {"decay_epochs": "few"}),
        ("cosine", {"epochs": math.inf}),
        ("constant", {"warmup_steps": -3}),
        ("constant", {"warmup_steps": 2.5}),
    ],
)
def test_bad_values_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        build_schedule(name, **options)


@pytest.mark.parametrize("name", ["inverse-time", "inverse-sqrt", "step", "exponential"])
@pytest.mark.parametrize("staircase", [False, True])
def test_times_beyond_all_floats_are_late(name: str, staircase: bool) -> None:
    """A unit of time so short that whole numbers of them are no floats."""
    given: dict[str, Any] = {"staircase": staircase} if name != "step" else {}
    fast = build_schedule(name, decay_epochs=1e-308, **given)
    assert fast.learning_rate(0.5, 0, 100) == 0.5
    assert 0 <= fast.learning_rate(0.5, 10**9, 1) < 1e-100
    if name.startswith("inverse"):
        assert build_schedule(name, decay_epochs=1e-308, decay_rate=0.0, **given).learning_rate(0.5, 10**9, 1) == 0.5
