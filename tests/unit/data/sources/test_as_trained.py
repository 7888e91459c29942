"""What a later file gives a trained model: the arrays of the names that it was trained on, in any order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.cli.main import main
from distsgd.data.sources.base import ReadOptions, read_array
from distsgd.data.sources.registry import open_inputs

_N = 120
_X = np.random.default_rng(3).normal(size=(_N, 2))
_T = (_X[:, 0] > 0.3).astype(np.int64)
_IN_FILE = {"a1": _X[:, 0], "a2": _X[:, 1], "t1": _T}
_OTHER = {"key": np.arange(_N), "t1": _T, "a2": _X[:, 1], "a1": _X[:, 0]}


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["distsgd", *words])
    return main()


def _write(path: str, arrays: dict[str, np.ndarray]) -> None:
    if path.endswith(".npz"):
        np.savez(path, **arrays)
        return
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", track_order=True) as file:
        for name, values in arrays.items():
            file[name] = values


@pytest.mark.parametrize("ending", [".npz", ".h5"])
@pytest.mark.parametrize("words", ["a*", "all"])
def test_another_file_has_its_arrays_in_another_order(
    ending: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions, scores and a validation set go by names; a list of files, too."""
    monkeypatch.chdir(tmp_path)
    for name, arrays in (("p", _IN_FILE), ("s", _OTHER)):
        _write(f"{name}{ending}", arrays)
    alone = {name: one for name, one in _OTHER.items() if name != "t1"}
    _write(f"r{ending}", alone)
    for name, part, rows in (("u", _IN_FILE, slice(0, 60)), ("v", dict(reversed(_IN_FILE.items())), slice(60, None))):
        _write(f"{name}{ending}", {key: one[rows] for key, one in part.items()})
    options = ("--x", words, "--y", "t*", "--epochs", "1", "--batch-size", "16", "--model", "softmax", "--quiet")
    summaries = []
    for out, data, validation in (
        ("one", f"p{ending}", f"s{ending}"),
        ("two", f"u{ending},v{ending}", f"p{ending}"),
    ):
        more = ("--validation", validation, "--out", out)
        assert _run(monkeypatch, "train", "--dataset", data, *options, *more) == 0
        summaries.append(json.loads(Path(out, "summary.json").read_text()))
    assert summaries[0]["validation_loss"] == summaries[1]["validation_loss"]
    assert summaries[0]["parameters_sha256"] == summaries[1]["parameters_sha256"]
    expected = distsgd.load("one").predict(_X)
    for name in "psr":
        assert _run(monkeypatch, "predict", "one", f"{name}{ending}", "-o", f"{name}-out.npz") == 0
        np.testing.assert_array_equal(np.load(f"{name}-out.npz")["predictions"], expected)
    assert _run(monkeypatch, "predict", "one", f"r{ending}", "-o", "kept.npz", "--keep", "key", "--x", words) == (
        0 if words == "a*" else 2  # all is all that isn't the target, and the model takes two
    )


def test_an_input_of_another_width_is_refused(tmp_path: Path) -> None:
    """Where the sum of the widths is the same."""
    np.savez(tmp_path / "p.npz", a1=_X, a2=_X[:, 0], y=_T)
    np.savez(tmp_path / "q.npz", a1=_X[:, 0], a2=_X, y=_T)
    columns = distsgd.open_dataset(str(tmp_path / "p.npz"), x="a*").columns
    assert columns is not None
    assert columns.inputs == ("a1", "a2")
    assert columns.width == 3
    with pytest.raises(distsgd.DataError, match="a1: expected 2 numbers an example"):
        distsgd.open_dataset([tmp_path / "p.npz", tmp_path / "q.npz"], x="a*")


def test_files_of_which_one_has_more_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", a1=_X[:, 0], y=_T)
    np.savez(tmp_path / "q.npz", a1=_X[:, 0], a2=_X[:, 1], y=_T)
    with pytest.raises(distsgd.DataError, match=r"q\.npz: expected the arrays a1, as in .*p\.npz, got a1, a2"):
        distsgd.open_dataset([tmp_path / "p.npz", tmp_path / "q.npz"], x="all")


def test_all_leaves_out_the_weights(tmp_path: Path) -> None:
    """An array of the name weights has the weights, and is no input unless --x names it."""
    np.savez(tmp_path / "w.npz", x=_X, y=_T, weights=_T + 1.0)
    found = distsgd.open_dataset(str(tmp_path / "w.npz"), x="all", y="y")
    assert {name: one.shape for name, one in found.arrays.items()} == {
        "x_train": (_N, 2), "y_train": (_N,), "weights_train": (_N,),
    }  # fmt: skip
    named = distsgd.open_dataset(str(tmp_path / "w.npz"), x=["x", "weights"], y="y")
    assert named.arrays["x_train"].shape == (_N, 3)
    assert "weights_train" not in named.arrays


def test_a_model_that_keeps_no_names_leaves_out_targets_by_their_pattern(tmp_path: Path) -> None:
    """As checkpoints of before do, of which the options alone are known."""
    np.savez(tmp_path / "p.npz", weights=_T + 1.0, **_IN_FILE)
    asked = ReadOptions(x=("all",), y=("t*",), targets=False)
    np.testing.assert_array_equal(read_array(open_inputs(tmp_path / "p.npz", asked)), _X)
