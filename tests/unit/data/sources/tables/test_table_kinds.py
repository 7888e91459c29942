"""What a column is, whatever holds the table: weights, whole numbers of several files, numbers with marks."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.cli.main import main
from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.look import look_at

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
_N = 90
_RNG = np.random.default_rng(5)
_FRAME = pd.DataFrame(_RNG.normal(size=(_N, 2)), columns=["a", "b"]).assign(
    weights=_RNG.integers(1, 4, _N), y=_RNG.integers(0, 2, _N)
)


def _sha(given: Any, **options: Any) -> Any:
    known = {"epochs": 1, "batch_size": 16, "early_stopping": "none"}
    return distsgd.fit("softmax", given, **known, **options).summary["parameters_sha256"]


def test_a_column_of_weights_weights_in_all_tables(tmp_path: Path) -> None:
    """Frames, Arrow and CSV give the same bits, and other ones than weights of 1."""
    _FRAME.to_csv(tmp_path / "t.csv", index=False)
    found = {
        "pandas": _sha(_FRAME, y="y"),
        "arrow": _sha(pa.Table.from_pandas(_FRAME), y="y"),
        "csv": _sha(distsgd.open_dataset(str(tmp_path / "t.csv"))),
        "array": _sha((_FRAME[["a", "b"]].to_numpy(), _FRAME["y"].to_numpy(), _FRAME["weights"].to_numpy(float))),
    }
    assert len(set(found.values())) == 1, found
    assert found["array"] != _sha(_FRAME.drop(columns="weights"), y="y")


def test_a_validation_table_has_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an array of weights in a file of arrays does."""
    table, arrays = tmp_path / "t.parquet", tmp_path / "t.npz"
    _FRAME.to_parquet(table)
    np.savez(arrays, x=_FRAME[["a", "b"]].to_numpy(), y=_FRAME["y"], weights=_FRAME["weights"].to_numpy(float))
    monkeypatch.chdir(tmp_path)
    losses = {}
    for path in (table.name, arrays.name):
        options = ["--dataset", path, "--validation", path, "--epochs", "1", "--batch-size", "16", "--model", "softmax"]
        monkeypatch.setattr("sys.argv", ["distsgd", "train", *options, "--quiet", "--out", f"run-{path}"])
        assert main() == 0
        losses[path] = json.loads(Path(f"run-{path}", "summary.json").read_text())["validation_loss"]
    assert losses[table.name] == losses[arrays.name]


def test_a_target_of_decimals_is_told_what_to_give() -> None:
    """That it is the target is no remedy."""
    table = pa.table({"a": [1.0, 2.0], "y": [Decimal(1), Decimal(2)]})
    with pytest.raises(distsgd.DataError, match="holds decimal numbers; give floats, or name another target with --y"):
        distsgd.fit("softmax", table, y="y")


def test_whole_numbers_of_several_widths_stay_whole(tmp_path: Path) -> None:
    """Labels stay labels, and a key that no float holds is refused in whatever file it is."""
    half = _FRAME.drop(columns="weights")
    half.iloc[:45].astype({"y": "int32"}).to_parquet(tmp_path / "1.parquet")
    half.iloc[45:].to_parquet(tmp_path / "2.parquet")
    found = distsgd.open_dataset(str(tmp_path))
    assert found.arrays["y_train"].dtype == np.int64
    np.testing.assert_array_equal(distsgd.data.read_array(found.arrays["y_train"]), half["y"])
    for small in ("int32", "float64"):
        half.iloc[:45].assign(key=np.arange(45, dtype=small)).to_parquet(tmp_path / "1.parquet")
        half.iloc[45:].assign(key=np.arange(45) + 2**53 + 1).to_parquet(tmp_path / "2.parquet")
        with pytest.raises(distsgd.DataError, match=r"column key, row \d+: expected whole numbers below 2\*\*53"):
            distsgd.data.read_array(distsgd.open_dataset(str(tmp_path)).arrays["x_train"])


@pytest.mark.parametrize(
    "texts", [["1,234", "12"], ["1%", "3.5 %"], ["$1,200.50", "$3"], ["1,5", "2"], ["1.234,5", "2,0"]]
)
def test_numbers_with_marks_are_refused(texts: list[str], tmp_path: Path) -> None:
    """They would be texts, a feature each, without a word."""
    frame = _FRAME.assign(c=[texts[k % 2] for k in range(_N)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(distsgd.DataError, match="column c: expected numbers or text, got numbers with marks"):
        distsgd.open_dataset(str(tmp_path / "t.csv"))
    assert distsgd.open_dataset(str(tmp_path / "t.csv"), x=["a", "b"]).arrays["x_train"].shape == (_N, 2)
    with pytest.raises(distsgd.DataError, match="name another target with --y"):
        distsgd.open_dataset(str(tmp_path / "t.csv"), x=["a", "b"], y="c")
    assert "got numbers with marks" in look_at(str(tmp_path / "t.csv"), ReadOptions()).problem


@pytest.mark.parametrize("texts", [["1", "2"], ["1,234", "many"], ["k1,2", "k3"], ["2020-01", "3"], ["10-20", "20-30"]])
def test_texts_that_are_no_numbers_stay_texts(texts: list[str]) -> None:
    frame = _FRAME.drop(columns="weights").assign(c=pd.Categorical([texts[k % 2] for k in range(_N)]))
    result = distsgd.fit("softmax", frame, y="y", epochs=1, batch_size=16)
    assert 4 in max((one.shape for one in result.params.values()), key=len), "two features of text beside two numbers"
