"""Data sets that a program has opened, in every place that takes examples: the results of their arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv

import distsgd
from distsgd import ConfigurationError, DataError, fit, open_dataset
from distsgd.core.device import Array
from distsgd.run.data import streamed

N = 400
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 50, "hidden": (4,)}


def numbers(seed: int, rows: int = N) -> tuple[Array, Array]:
    x = np.random.default_rng(seed).standard_normal((rows, 6))
    return x, x[:, :3].argmax(axis=1)


def opened(path: Path, x: Array, y: Array, **more: Array) -> Any:
    np.savez(path, x=x, y=y, **more)
    return open_dataset(path)


def outcome(result: Any) -> Any:
    records = [{key: value for key, value in one.items() if key != "run"} for one in result.history]
    return result.summary["parameters_sha256"], records


def people(seed: int, rows: int = N) -> pa.Table:
    rng = np.random.default_rng(seed)
    ages = rng.normal(50, 10, rows)
    return pa.table(
        {
            "age": pa.array([None if k % 9 == 3 else age for k, age in enumerate(ages.tolist())]),
            "colour": rng.choice(["red", "green"] if seed else ["blue", "red", "green"], rows),
            "site": rng.integers(0, 12, rows),
            "w": rng.random(rows) + 0.5,
            "job": rng.choice(["cook", "pilot"], rows),
        }
    )


def written(path: Path, table: pa.Table) -> Path:
    csv.write_csv(table, path)
    return path


@pytest.mark.parametrize("more", [{}, {"shuffle_buffer": "10KB"}, {"standardize": True}], ids=str)
@pytest.mark.parametrize("train", ["arrays", "opened"])
def test_further_sets(train: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay in their files with a shuffle buffer, where they are large."""
    monkeypatch.setattr(streamed, "SMALL", 0)
    (x, y), (xv, yv), (xt, yt) = numbers(0), numbers(1, 150), numbers(2, 90)
    expected = fit("mlp", x, y, validation=(xv, yv), test=(xt, yt), **OPTIONS, **more)
    given = (x, y) if train == "arrays" else opened(tmp_path / "train.npz", x, y)
    validation, test = opened(tmp_path / "v.npz", xv, yv), opened(tmp_path / "t.npz", xt, yt)
    found = fit("mlp", given, validation=validation, test=test, **OPTIONS, **more)
    assert outcome(found) == outcome(expected)
    assert found.summary["test_loss"] == expected.summary["test_loss"]


def test_a_split_of_that_name_is_what_is_taken(tmp_path: Path) -> None:
    (x, y), (xv, yv) = numbers(0), numbers(1, 150)
    both = opened(tmp_path / "both.npz", x, y, x_validation=xv, y_validation=yv)
    expected = fit("mlp", x, y, validation=(xv, yv), **OPTIONS)
    assert outcome(fit("mlp", x, y, validation=both, **OPTIONS)) == outcome(expected)


@pytest.mark.parametrize("kind", ["frame", "opened"])
def test_further_tables_have_the_columns_of_training(kind: str, tmp_path: Path) -> None:
    """Columns in another order, fewer texts, and the fill values of training; as the command line reads files."""
    table, other = people(0).drop_columns(["site", "w"]), people(1, 150).drop_columns(["site", "w"])
    turned = written(tmp_path / "v.csv", other.select(["job", "colour", "age"]))
    expected = fit("mlp", table, y="job", validation=other, missing="mean", **OPTIONS)
    if kind == "frame":
        found = fit("mlp", table, y="job", validation=open_dataset(turned, y="job"), missing="mean", **OPTIONS)
    else:
        source = open_dataset(written(tmp_path / "t.csv", table), y="job", missing="mean")
        found = fit("mlp", source, validation=open_dataset(turned, y="job"), **OPTIONS)
    assert outcome(found) == outcome(expected)

    source = open_dataset(turned, y="job")
    assert found.evaluate(source) == expected.evaluate(other, "job")
    np.testing.assert_array_equal(found.predict(source), expected.predict(other))


@pytest.mark.parametrize("kind", ["frame", "opened"])
def test_weights_and_groups_by_the_names_of_columns(kind: str, tmp_path: Path) -> None:
    table, other = people(0), people(1, 150)
    sites, weights = table["site"].to_numpy(), table["w"].to_numpy()
    plain = table.drop_columns(["site", "w"])
    more: dict[str, Any] = OPTIONS | {"missing": "zero"}
    grouped = fit("mlp", plain, y="job", weights=weights, group=sites, fold="1/3", **more)
    validated = fit("mlp", plain, y="job", weights=weights, validation=(other, "job", "w"), **more)
    given: tuple[Any, Any] = (table, "job")
    if kind == "opened":
        given = open_dataset(written(tmp_path / "t.csv", table), y="job"), None
    found = fit("mlp", *given, weights="w", group="site", fold="1/3", **more)
    assert found.validation_rows is not None
    assert set(sites[found.validation_rows]).isdisjoint(np.delete(sites, found.validation_rows))
    assert outcome(found) == outcome(grouped)

    further = other if kind == "frame" else open_dataset(written(tmp_path / "v.csv", other), y="job")
    x = table.drop_columns(["site"]) if kind == "frame" else open_dataset(tmp_path / "t.csv", y="job", x="age,colour")
    found = fit("mlp", x, given[1], weights="w", validation=further, **more)
    assert outcome(found) == outcome(validated)


def test_a_name_beside_arrays(tmp_path: Path) -> None:
    x, y = numbers(0)
    with pytest.raises(ConfigurationError, match="group: 'site' is the name of a column, and x is no frame"):
        fit("mlp", x, y, group="site", fold="1/3", **OPTIONS)
    with pytest.raises(ConfigurationError, match="weights: digits has no columns with names"):
        fit("mlp", open_dataset("digits"), weights="w", **OPTIONS)
    with pytest.raises(ConfigurationError, match=r"weights: expected the name of a column of .*, got ndarray"):
        fit("mlp", opened(tmp_path / "d.npz", x, y), weights=np.ones(N), **OPTIONS)


def test_sets_that_dont_belong_together(tmp_path: Path) -> None:
    x, y = numbers(0)
    path = tmp_path / "v.npz"
    np.savez(path, x=x, y=y)
    named = open_dataset(path, classes=("a", "b", "c"))
    with pytest.raises(DataError, match="expected the classes without names, got a, b, c"):
        fit("mlp", x, y, validation=named, **OPTIONS)
    with pytest.raises(ConfigurationError, match=r"expected missing='refuse', as .*, got 'mean'"):
        fit("mlp", x, y, validation=open_dataset(path, missing="mean"), **OPTIONS)
    with pytest.raises(ConfigurationError, match="validation_last: would change nothing beside validation data"):
        fit("mlp", open_dataset(path), validation=open_dataset(path), validation_last=9, **OPTIONS)
    with pytest.raises(DataError, match="validation examples have shape"):
        fit("mlp", x[:, :4], y, validation=open_dataset(path), **OPTIONS)


def test_evaluate_and_predict(tmp_path: Path) -> None:
    (x, y), (xt, yt) = numbers(0), numbers(1, 150)
    result = fit("mlp", x, y, validation_fraction=0.2, out=tmp_path / "run", **OPTIONS)
    source, several = opened(tmp_path / "d.npz", x, y), opened(tmp_path / "s.npz", x, y, x_test=xt, y_test=yt)
    rows = result.validation_rows
    for model in (result, distsgd.load(tmp_path / "run")):
        assert model.evaluate(source, split="all") == result.evaluate(x, y)
        assert model.evaluate(source, split="validation") == result.evaluate(x[rows], y[rows])
        assert model.evaluate(source) == result.evaluate(x[rows], y[rows])
        assert model.evaluate(several) == result.evaluate(xt, yt)
        np.testing.assert_array_equal(model.predict(source), result.predict(x))
        np.testing.assert_array_equal(model.labels(source), result.labels(x))
        with pytest.raises(ConfigurationError, match="has the parts train and test"):
            model.predict(several)
        with pytest.raises(ConfigurationError, match="split: is for a data set of open_dataset"):
            model.evaluate(x, y, split="all")
    both = distsgd.load([tmp_path / "run", tmp_path / "run"])
    np.testing.assert_array_equal(both.predict(source), result.predict(x))
    with pytest.raises(ConfigurationError, match="an ensemble takes arrays or a frame, got an opened data set"):
        both.evaluate(source, None)


def test_missing_values_of_arrays(tmp_path: Path) -> None:
    """The results of a file with the same holes, and the same values for later ones."""
    (x, y), (xv, yv) = numbers(0), numbers(1, 150)
    for array in (x, xv):
        array[::7, 2] = np.nan
    np.savez(tmp_path / "d.npz", x=x, y=y, x_validation=xv, y_validation=yv)
    for missing in ("mean", "zero", "drop"):
        more: dict[str, Any] = OPTIONS | {"missing": missing}
        found = fit("mlp", x, y, validation=(xv, yv), out=tmp_path / missing, **more)
        source = fit("mlp", open_dataset(tmp_path / "d.npz", missing=missing), **OPTIONS)  # type: ignore[arg-type]
        assert outcome(found) == outcome(source)
        assert np.isnan(x[::7, 2]).all()
        model = distsgd.load(tmp_path / missing)
        assert model.evaluate(xv, yv)["loss"] == found.summary["validation_loss"]
        if missing == "drop":
            with pytest.raises(DataError, match="nan"):  # it was the data set that left them out, not the training
                source.evaluate(xv, yv)
            with pytest.raises(DataError, match="nan"):
                model.predict(xv)
            continue
        assert model.evaluate(xv, yv) == source.evaluate(xv, yv)
        filled = np.where(np.isnan(xv), np.nanmean(x, axis=0) if missing == "mean" else 0, xv)
        np.testing.assert_allclose(model.predict(xv), found.predict(filled), rtol=1e-6)
        np.testing.assert_array_equal(model.predict(xv), source.predict(xv))


def test_groups_of_examples_that_are_dropped() -> None:
    x, y = numbers(0)
    x[::7, 2] = np.nan
    groups = np.arange(N) // 10
    kept = np.arange(N) % 7 > 0
    found = fit("mlp", x, y, group=groups, fold="1/3", missing="drop", **OPTIONS)
    assert outcome(found) == outcome(fit("mlp", x[kept], y[kept], group=groups[kept], fold="1/3", **OPTIONS))


def test_missing_targets_are_not_filled_in() -> None:
    x, _ = numbers(0)
    values = x[:, :1].copy()
    values[5] = np.nan
    with pytest.raises(DataError, match="targets"):
        fit("mlp", x, values, missing="mean", **OPTIONS)
