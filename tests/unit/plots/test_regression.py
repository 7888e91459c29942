"""The picture of predicted and true values, by what it says and how it grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.plots.canvas import style
from distsgd.plots.regression import MOST_OUTPUTS, Regression, draw_regression

pytest.importorskip("matplotlib")


def found(outputs: int, *, bars: bool = False) -> Regression:
    true = np.random.default_rng(0).standard_normal((40, outputs))
    predicted = true + 0.5
    if not bars:
        return Regression("test", true, predicted)
    return Regression("test", true, predicted, predicted - 0.1, predicted + np.where(true > 0, 0.1, -0.6), 0.8)


@pytest.mark.parametrize("outputs", [1, 3, MOST_OUTPUTS + 2])
def test_a_row_for_each_output(outputs: int) -> None:
    with style():
        figure = draw_regression(found(outputs))
    assert len(figure.axes) == 2 * min(outputs, MOST_OUTPUTS)
    heading = " ".join(figure.get_suptitle().split())
    assert heading.startswith("Predictions for 40 test examples")
    assert (f"the first {MOST_OUTPUTS} of {outputs} outputs" in heading) == (outputs > MOST_OUTPUTS)
    assert "root mean square 0.5" in figure.axes[1].get_title(loc="left")
    offsets = np.asarray(figure.axes[1].collections[0].get_offsets())
    np.testing.assert_allclose(offsets[:, 1], -0.5)


def test_the_heading_says_how_many_values_lie_in_their_intervals() -> None:
    with style():
        figure = draw_regression(found(1, bars=True))
    assert "0.0 % of values in 80 % intervals" in " ".join(figure.get_suptitle().split())


def test_numbers_that_are_not_finite_are_drawn_around() -> None:
    with style():
        draw_regression(Regression("validation", np.ones((3, 1)), np.array([[np.nan], [np.inf], [1.0]])))


@pytest.mark.parametrize("loss", ["gaussian", pytest.param("quantile", marks=pytest.mark.long)])
def test_a_run_with_intervals_is_drawn(tmp_path: Path, loss: str) -> None:
    x = np.random.default_rng(0).standard_normal((80, 3)).astype(np.float32)
    options = {"epochs": 1, "hidden": (4,), "loss": loss, "standardize_targets": True, "validation_fraction": 0.5}
    result = distsgd.fit("mlp", x, 100 + 5 * x[:, :2], out=str(tmp_path / "run"), plot=True, **options)
    assert (tmp_path / "run" / "plots" / "regression.png").stat().st_size > 10_000
    lower, upper = result.predict_interval(x, 0.9)
    assert (lower <= result.predict(x)).all()
    assert (result.predict(x) <= upper).all()
    assert 70 < lower.mean() < 100 < upper.mean() < 130  # in the targets' own units
