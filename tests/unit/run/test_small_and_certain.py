"""Inputs that people give: each takes effect as it is meant, or is refused with the remedy."""

from __future__ import annotations

import gzip
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import build_schedule, fit, load_mnist
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.run.config_file import read_toml

RNG = np.random.default_rng(1)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class Sparse:
    """As SciPy's matrices look."""

    nnz, shape = 3, (40, 3)

    def toarray(self) -> Any:
        return X


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (Sparse(), Y, "train x: expected an array, got Sparse; .*data.toarray"),
        ({"a": X[:, 0]}, Y, "got dict; stack its columns: np.column_stack"),
        ((row for row in X), Y, "got generator; make it a list"),
        (X, {1, 2}, "train y: expected an array, got set"),
        (X, np.where(Y, "yes", "no"), r"train y holds text, .* np.unique\(y, return_inverse=True\)"),
        (X, list(np.where(Y, "yes", "no").astype(object)), "train y holds text"),
        ([[1.0, 2.0], [3.0]] * 20, Y, "give rows of one length"),
        (X, np.eye(2, dtype=np.int64)[Y], r"y.argmax\(axis=1\) of one-hot rows.*y.astype\(float\)"),
        (X.astype(object), Y, r"train x is an array of Python objects, .*array.astype\(float\)"),
        (np.where(X > 2, None, X), Y, "of Python objects, such as NoneType; replace or remove"),
        ([[10**30, 1]] * 40, Y, "train x is an array of Python objects"),
        (np.full((40, 3), Decimal(1)), Y, "of Python objects, such as Decimal"),
        (np.full((40, 3), "a"), Y, r"train x holds text, .* x.astype\(float\) reads numbers"),
        (X + 1j, Y, "train x: expected integers or floats .*, got dtype complex"),
        (X, 7 - 9 * Y, r"np.unique\(y, return_inverse=True\)\); values are floats"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_the_remedy(x: Any, y: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit("softmax", (x, y), epochs=1)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ma.masked_greater(X, 0), "predict: x is an array of which .* values are masked"),
        (X + 1j, "predict: x: expected integers or floats"),
        (np.full((4, 3), "a"), "predict: x holds text"),
        ({"a": X[:, 0]}, "predict: x: expected an array, got dict; stack its columns"),
        (Sparse(), "predict: x: expected an array, got Sparse; .*data.toarray"),
        (3.0, "predict: x must be an array of examples"),
        ([[1.0, 2.0, 3.0], [3.0]], "give rows of one length"),
        (X.astype(object), "predict: x is an array of Python objects"),
    ],
)
def test_what_is_no_array_of_numbers_is_not_predicted_from(x: Any, words: str) -> None:
    result = fit("softmax", (X, Y), epochs=1)
    with pytest.raises(DataError, match=words):
        result.predict(x)


def test_predictions_of_no_examples_have_a_shape(tmp_path: Path) -> None:
    result = fit("softmax", (X, Y), epochs=1, out=str(tmp_path / "run"))
    assert result.predict([]).shape == result.predict(X[:0]).shape == (0, 2)
    np.savez(tmp_path / "none.npz", x=X[:0])
    np.save(tmp_path / "none.npy", X[:0])
    for name in ("none.npz", "none.npy"):
        line = [sys.executable, "-m", "distsgd.predict", "run", name, "-o", "o.npz"]
        subprocess.run(line, cwd=tmp_path, check=True, timeout=60)
        with np.load(tmp_path / "o.npz") as found:
            assert (found["predictions"].shape, found["labels"].shape) == ((0, 2), (0,))


def test_minibatches_too_small_to_normalize_over_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="a single example has no spread; set batch_size 8 or more"):
        fit("mlp", (X, Y), batch_norm=True, batch_size=1, epochs=1)
    fit("mlp", (X, Y), batch_norm=True, batch_size=2, epochs=1)
    assert "normalizes over minibatches of 2 examples, which are too few" in capsys.readouterr().err
    fit("mlp", (X, Y), batch_norm=True, batch_size=8, epochs=1)
    assert "too few" not in capsys.readouterr().err


@pytest.mark.parametrize("decay_epochs", [0.1, 0.3, 0.7, 1.1, 2.2, 3.3])
def test_a_staircase_drops_exactly_at_its_step(decay_epochs: float) -> None:
    schedule = build_schedule("step", factor=0.5, decay_epochs=decay_epochs)
    drop = round(decay_epochs * 100)
    rates = [schedule.multiplier(step, 100) for step in (drop - 1, drop, 2 * drop - 1, 2 * drop)]
    assert rates == [1.0, 0.5, 0.5, 0.25]


def test_r2_of_values_far_from_zero() -> None:
    """Whose mean is 10⁶ times their spread and more, against the same values moved to zero."""
    values = RNG.normal(size=400)
    x = np.column_stack([values, RNG.normal(size=400)])
    near, far = (
        fit(
            "mlp",
            (x, values + shift),
            dtype="float64",
            standardize_targets=True,
            epochs=60,
            validation_fraction=0.1,
            seed=2,
        )
        for shift in (0.0, 1e7)
    )
    assert far.summary["validation_r2"] == pytest.approx(near.summary["validation_r2"], abs=1e-6)
    assert near.summary["validation_r2"] > 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_predictions_of_what_is_no_number_are_refused(bad: float, tmp_path: Path) -> None:
    result = fit("softmax", (X, Y), epochs=1, out=str(tmp_path / "run"))
    x = X.astype(np.float64)
    x[7, 1] = bad
    with pytest.raises(DataError, match=r"predict: x: expected .*, example 7 holds"):
        result.predict(x)
    np.savez(tmp_path / "n.npz", x=x, y=Y)
    for line in (["predict", "run", "n.npz", "-o", "o.npz"], ["evaluate", "run", "--dataset", "n.npz"]):
        done = subprocess.run(
            [sys.executable, "-m", f"distsgd.{line[0]}", *line[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert "example 7 holds" in done.stderr


def test_predictions_of_no_examples(tmp_path: Path) -> None:
    result = fit("softmax", (X, Y), epochs=1, out=str(tmp_path / "run"))
    assert result.predict(X[:0]).shape == (0, 2)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("\ufeffseed = 7\n", encoding="utf-8")
    assert read_toml(tmp_path / "run.toml").seed == 7


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fit("softmax", (X, Y), epochs=1, out="~/run")
    assert (tmp_path / "run" / "summary.json").is_file()


def test_mnist_under_its_other_names(tmp_path: Path) -> None:
    for name, array in (
        ("train-images.idx3-ubyte", np.arange(5 * 28 * 28).reshape(5, 28, 28) % 256),
        ("train-labels.idx1-ubyte", np.arange(5)),
        ("t10k-images.idx3-ubyte", np.zeros((2, 28, 28))),
        ("t10k-labels-idx1-ubyte.gz", np.array([3, 4])),
    ):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
        content = header + array.astype(np.uint8).tobytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (x, y), (_, t) = load_mnist(data_dir=str(tmp_path), normalize=False)
    assert (x.shape, y.tolist(), t.tolist()) == ((5, 784), [0, 1, 2, 3, 4], [3, 4])
