"""Sets that stay in their files in training: the results of arrays in memory, with everything that is computed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import ConfigurationError, DataError, fit, open_dataset
from distsgd.core.device import Array
from distsgd.run.data import streamed

ROWS = 3001
USUAL: dict[str, Any] = {"epochs": 2, "batch_size": 64, "hidden": (8,), "shuffle_buffer": "40KB"}


@pytest.fixture(autouse=True)
def nothing_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets, weights and validation sets stay in files, too, and what is kept is the test's."""
    monkeypatch.setattr(streamed, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def numbers(rows: int = ROWS, seed: int = 0, dtype: str = "float64") -> tuple[Array, Array, Array]:
    draws = np.random.default_rng(seed)
    x = (draws.standard_normal((rows, 6)) * [1, 2, 3, 9, 1, 1e-2] + 1).astype(dtype)
    return x, x[:, :3].argmax(axis=1), draws.random(rows) + 0.5


def npz(path: Path, **arrays: Array) -> str:
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def outcome(result: Any) -> Any:
    records = [{key: value for key, value in one.items() if key != "run"} for one in result.history]
    return result.summary["parameters_sha256"], records


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "standardized": {"standardize": True, "validation_fraction": 0.2, "train_metrics": "full", "metrics": ["f1_macro"]},
    "no shuffle": {"shuffle": False, "validation_last": 500, "order_block": 17},
    "float64": {"dtype": "float64", "drop_last": True},
    "scaled": {"scale": 3.0, "validation_fraction": 0.2},
}


@pytest.mark.parametrize("case", CASES)
def test_files_and_arrays_give_the_same_bits(case: str, tmp_path: Path) -> None:
    x, y, weights = numbers()
    source = open_dataset(npz(tmp_path / "d.npz", x=x, y=y, weights=weights))
    options = USUAL | CASES[case]
    assert outcome(fit("mlp", source, **options)) == outcome(fit("mlp", x, y, weights=weights, **options))


def test_validation_and_test_sets_and_values(tmp_path: Path) -> None:
    x, _, _ = numbers()
    values = np.stack([x[:, 0] * x[:, 1], x[:, 3]], axis=1)
    parts = {"train": slice(0, 2000), "validation": slice(2000, 2600), "test": slice(2600, ROWS)}
    arrays = {
        f"{kind}_{name}": array[rows] for name, rows in parts.items() for kind, array in (("x", x), ("y", values))
    }
    source = open_dataset(npz(tmp_path / "d.npz", **arrays))
    options = USUAL | {"standardize": True, "standardize_targets": True, "learning_rate": 0.01}
    given = {name: (x[parts[name]], values[parts[name]]) for name in ("validation", "test")}
    expected = fit("mlp", x[:2000], values[:2000], **given, **options)
    found = fit("mlp", source, **options)
    assert outcome(found) == outcome(expected)
    assert found.summary["test_loss"] == expected.summary["test_loss"]
    np.testing.assert_array_equal(found.predict(x[:50]), expected.predict(x[:50]))


def test_images_as_bytes_are_augmented_alike(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 255, (2000, 1, 8, 8)).astype(np.uint8), draws.integers(0, 3, 2000)
    source = open_dataset(npz(tmp_path / "d.npz", x=x, y=y))
    for more in ({}, {"standardize": True}):
        options = USUAL | {"augment": ("shift", "1", "flip"), "shuffle_buffer": "200KB", **more}
        assert outcome(fit("mlp", source, **options)) == outcome(fit("mlp", x, y, **options))


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.h5", "folder"])
def test_formats(name: str, tmp_path: Path) -> None:
    x, y, _ = numbers()
    path, more = tmp_path / name, dict[str, Any]()
    if name == "folder":
        path.mkdir()
        for part, rows in enumerate((slice(0, 1100), slice(1100, 1200), slice(1200, ROWS))):
            np.savez(path / f"part-{part}.npz", x=x[rows], y=y[rows])
    elif name == "d.h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=x, chunks=(90, 6), compression="gzip", shuffle=True)
            file["y"] = y
    else:
        more = {"y": "label"}
        columns = {f"c{number}": x[:, number] for number in range(6)} | {"label": y}
        if name == "d.csv":
            with path.open("w", newline="") as text:
                writer = csv.writer(text)
                writer.writerow(columns)
                writer.writerows(zip(*(array.tolist() for array in columns.values()), strict=True))
        else:
            parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
            parquet.write_table(arrow.table(columns), path, row_group_size=200)
    options = USUAL | {"standardize": True, "validation_fraction": 0.2}
    assert outcome(fit("mlp", open_dataset(path, **more), **options)) == outcome(fit("mlp", x, y, **options))


def test_what_cant_be_read_in_blocks_is_refused(tmp_path: Path) -> None:
    x, y, _ = numbers()
    np.savez_compressed(tmp_path / "d.npz", x=x, y=y)
    with pytest.raises(ConfigurationError, match=r"d\.npz: train examples .* can't be read in blocks"):
        fit("mlp", open_dataset(tmp_path / "d.npz"), **USUAL)


def test_numbers_that_are_wrong_are_named_as_they_are_read(tmp_path: Path) -> None:
    x, y, weights = numbers()
    for name, row, value, reported in (
        ("x", 2500, np.inf, "inputs: expected finite numbers, example 2500 holds inf"),
        ("x", 2, 1e300, "inputs: expected numbers that float32 can hold, example 2 holds 1e\\+300"),
        ("weights", 1999, -1.0, "weights: expected none below 0, example 1999 has -1.0"),
        ("y", 2999, -4, "expected labels from 0 to .*, example 2999 has -4"),
    ):
        arrays = {"x": x.copy(), "y": y.copy(), "weights": weights.copy()}
        arrays[name][row] = value
        with pytest.raises(DataError, match=reported):
            fit("mlp", open_dataset(npz(tmp_path / "d.npz", **arrays)), **USUAL)


def test_a_class_without_training_examples_is_named_and_a_single_one_refused(tmp_path: Path) -> None:
    x, y, _ = numbers()
    with pytest.raises(DataError, match="labels of a single class, 0: there is nothing"):
        fit("mlp", open_dataset(npz(tmp_path / "a.npz", x=x, y=np.zeros_like(y))), classes=(), **USUAL)
    y[:2000], y[2000:] = y[:2000] % 2, 2
    with pytest.raises(ConfigurationError, match="leaves no examples of class 2 to train on"):
        fit("mlp", open_dataset(npz(tmp_path / "b.npz", x=x, y=y)), validation_last=1001, **USUAL)


def test_a_program_finds_the_arrays_as_they_were(tmp_path: Path) -> None:
    """Readers end with fit, and nothing keeps the file open."""
    x, y, _ = numbers()
    path = Path(npz(tmp_path / "d.npz", x=x, y=y))
    result = fit("mlp", open_dataset(path), **USUAL)
    path.unlink()
    loaded = result.predict(x[:5])
    assert loaded.shape[0] == 5
    assert isinstance(distsgd.rank(), int)
