"""Tables of Arrow in fit, predict and evaluate: columns by name, class names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import distsgd
from distsgd.core.errors import ConfigurationError, DataError

N = 120
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 30, "hidden": (4,), "standardize": True}


def people() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age": rng.normal(50, 10, N),
            "colour": rng.choice(["red", "green"], N),
            "job": rng.choice(["cook", "pilot", "baker"], N),
            "price": rng.random(N),
        }
    )


def lacking() -> pa.Table:
    return people().set_column(0, "age", pa.array([None, *people()["age"].to_pylist()[1:]], pa.float64()))


def test_a_frame_is_the_same_as_its_numbers(tmp_path: Path) -> None:
    table = people()
    found = distsgd.fit("mlp", table, y="job", out=tmp_path / "run", **OPTIONS)
    is_red = np.array([one == "red" for one in table["colour"].to_pylist()])
    x = np.stack([table["age"].to_numpy(), ~is_red, is_red, table["price"].to_numpy()], axis=1)
    names = ("baker", "cook", "pilot")
    y = np.array([names.index(one) for one in table["job"].to_pylist()])
    numbers = distsgd.fit("mlp", x, y, **OPTIONS)
    assert found.summary["parameters_sha256"] == numbers.summary["parameters_sha256"]
    assert found.task.names == names

    model = distsgd.load(tmp_path / "run")
    turned = table.select(["price", "job", "colour", "age"])
    np.testing.assert_array_equal(model.predict(turned), numbers.predict(x))
    assert model.labels(turned).tolist() == [names[k] for k in numbers.labels(x)]
    assert model.evaluate(turned, None) == model.evaluate(turned, "job") == numbers.evaluate(x, y)
    assert model.evaluate(turned, turned["job"]) == numbers.evaluate(x, y)
    np.testing.assert_array_equal(model.predict(x), numbers.predict(x))
    both = distsgd.load([tmp_path / "run", tmp_path / "run"])
    assert both.evaluate(turned, None)["accuracy"] == numbers.evaluate(x, y)["accuracy"]


def test_validation_examples_have_the_columns_of_training() -> None:
    table = people()
    turned = table.select(["price", "job", "colour", "age"])
    first = distsgd.fit("mlp", table, y="job", validation=table, **OPTIONS)
    second = distsgd.fit("mlp", table, y="job", validation=(turned, "job"), **OPTIONS)
    assert first.history[-1]["validation_loss"] == second.history[-1]["validation_loss"]


def test_targets_beside_a_frame_may_be_text() -> None:
    table = people()
    found = distsgd.fit("mlp", table.select(["age", "price"]), table["job"], **OPTIONS)
    assert found.task.names == ("baker", "cook", "pilot")
    assert set(found.labels(table)) <= set(found.task.names)
    named = distsgd.fit("mlp", table.select(["age"]), table["job"], classes=("pilot", "cook", "baker"), **OPTIONS)
    assert named.task.names == ("pilot", "cook", "baker")


@pytest.mark.parametrize("missing", ["mean", "zero"])
def test_what_stands_for_missing_values_is_kept(tmp_path: Path, missing: str) -> None:
    table = lacking()
    distsgd.fit("mlp", table, y="price", missing=missing, out=tmp_path / "run", **OPTIONS)
    ages = table["age"].drop_null().to_numpy()
    filled = table.set_column(0, "age", table["age"].fill_null(ages.mean() if missing == "mean" else 0.0))
    model = distsgd.load(tmp_path / "run")
    np.testing.assert_allclose(model.predict(table.slice(0, 1)), model.predict(filled.slice(0, 1)), rtol=1e-6)


def test_examples_that_lack_a_value_are_dropped_in_training_alone() -> None:
    table = lacking()
    found = distsgd.fit("mlp", table, y="price", missing="drop", **OPTIONS)
    expected = distsgd.fit("mlp", table.slice(1), y="price", **OPTIONS)
    assert found.summary["parameters_sha256"] == expected.summary["parameters_sha256"]
    with pytest.raises(DataError, match="predict: x: column age, row 0 is missing; fill it in"):
        found.predict(table)


def test_what_a_frame_does_not_say_is_refused() -> None:
    table = people()
    model = distsgd.fit("mlp", table.select(["age", "price"]), y="price", **OPTIONS)
    x = np.zeros((4, 2))
    refused: list[tuple[Any, type[Exception], str]] = [
        (lambda: distsgd.fit("mlp", table, y="jop", **OPTIONS), ConfigurationError, "did you mean job"),
        (lambda: distsgd.fit("mlp", table, **OPTIONS), ConfigurationError, "which column is the target"),
        (lambda: distsgd.fit("mlp", lacking(), y="job", **OPTIONS), DataError, "column age, row 0 is missing"),
        (lambda: model.predict(table.select(["price"])), DataError, "there is no age"),
        (lambda: model.predict(x[:, :0]), DataError, "the model takes examples of shape"),
        (lambda: model.evaluate(table, table["job"]), DataError, "holds text"),
        (lambda: model.evaluate(table.select(["age"]), None), ConfigurationError, "trained on the target price"),
    ]
    for call, error, text in refused:
        with pytest.raises(error, match=text):
            call()
