"""Which arrays of a file are inputs, targets and weights: what options say, against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.named.datasets import open_dataset, read_array
from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.converted import open_rows
from distsgd.data.sources.registry import open_inputs
from tests.cases import first_of
from tests.parallel.launch import module

N = 30
RNG = np.random.default_rng(3)
ARRAYS: dict[str, Any] = {
    "p1": RNG.normal(size=N).astype(np.float32), "p2": np.arange(N, dtype=np.int16), "p3": RNG.random((N, 3)) < 0.5,
    "wide": RNG.normal(size=(N, 2)), "big": np.arange(N) * 10**9, "bytes": np.arange(N).astype(np.uint8),
    "label": np.arange(N) % 3, "price": RNG.normal(size=N), "w": RNG.random(N), "image": RNG.random((N, 2, 2)),
    "a,b": RNG.normal(size=(N, 1)), "short": np.zeros(N - 1), "x": RNG.normal(size=(N, 2)), "y": np.arange(N) % 2,
    "weights": np.full(N, 2.0), "x_test": np.ones((2, 2)), "y_test": np.ones(2, np.int64), "[1]": np.ones(N),
}  # fmt: skip


def beside(*names: str, dtype: type[np.generic] = np.float32) -> Any:
    return np.concatenate([ARRAYS[name].reshape(N, -1).astype(dtype) for name in names], axis=1)


RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns side by side": ({"x": ("p1", "p2", "p3"), "y": "label"}, {
        "x_train": beside("p1", "p2", "p3"), "y_train": ARRAYS["label"], "weights_train": ARRAYS["weights"]}),
    "a pattern, in the order of the file": ({"x": "p[0-9]", "y": "label"}, {"x_train": beside("p1", "p2", "p3")}),
    "words with commas": ({"x": "p2, p1", "y": "label"}, {"x_train": beside("p2", "p1")}),
    "a name with a comma": ({"x": "a,b", "y": "label"}, {"x_train": ARRAYS["a,b"]}),
    "a name with brackets": ({"x": ("[1]", "p1"), "y": "label"}, {"x_train": beside("[1]", "p1", dtype=np.float64)}),
    "twice the same": ({"x": ("p1", "p[0-9]"), "y": "label"}, {"x_train": beside("p1", "p2", "p3")}),
    "what is a target is not an input": ({"x": "p*", "y": "price"}, {
        "x_train": beside("p1", "p2", "p3"), "y_train": ARRAYS["price"]}),
    "float64 where one needs it": ({"x": ("p1", "wide"), "y": "label"}, {
        "x_train": beside("p1", "wide", dtype=np.float64)}),
    "whole numbers of 64 bits": ({"x": ("p1", "big"), "y": "label"}, {
        "x_train": beside("p1", "big", dtype=np.float64)}),
    "bytes are no pixels": ({"x": ("bytes", "p1"), "y": "label"}, {"x_train": beside("bytes", "p1")}),
    "one array keeps its shape": ({"x": "image", "y": "label"}, {"x_train": ARRAYS["image"]}),
    "one number an example": ({"x": "price", "y": "label"}, {"x_train": ARRAYS["price"][:, None]}),
    "several values": ({"x": "p1", "y": ("price", "wide")}, {"y_train": beside("price", "wide", dtype=np.float64)}),
    "targets alone": ({"y": "label"}, {"x_train": ARRAYS["x"], "y_train": ARRAYS["label"]}),
    "inputs alone": ({"x": "wide"}, {"x_train": ARRAYS["wide"], "y_train": ARRAYS["y"]}),
    "weights alone": ({"weights": "w"}, {
        "x_train": ARRAYS["x"], "weights_train": ARRAYS["w"], "x_test": ARRAYS["x_test"]}),
}  # fmt: skip
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such name": ({"x": "pp1"}, r"no array is named 'pp1' \(--x\); did you mean p1\?"),
    "nothing near": ({"y": "zzzz"}, r"no array is named 'zzzz' \(--y\); it has p1, p2, .* and 10 more"),
    "no match": ({"x": "q*"}, r"--x 'q\*': no array matches; it has"),
    "a target among the inputs": ({"x": ("p1", "label"), "y": "label"}, "--x and --y both name 'label'"),
    "other lengths": ({"x": ("p1", "short")}, "p1 has 30 examples, short has 29"),
    "images side by side": ({"x": ("p1", "image")}, r"image: expected one or several numbers an example"),
    "an empty word": ({"x": "p1,"}, r"no array is named ''"),
}


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "d.npz", **arrays)
    return str(folder / "d.npz")


@pytest.mark.parametrize("form", ["npz", "folder"])
@pytest.mark.parametrize("name", RIGHT)
def test_options_say_which_arrays_are_used(tmp_path: Path, name: str, form: str) -> None:
    options, expected = RIGHT[name]
    path = saved(tmp_path, **ARRAYS)
    if form == "folder":
        if "pattern" in name or "twice" in name:
            return  # the order of a folder is that of the alphabet
        path = str(tmp_path / "arrays")
        (tmp_path / "arrays").mkdir()
        for one, array in ARRAYS.items():
            np.save(tmp_path / "arrays" / f"{one}.npy", array)
    found = open_dataset(path, **options)
    for role, array in expected.items():
        read = read_array(found.arrays[role])
        np.testing.assert_array_equal(read, array)
        assert read.dtype == (array.dtype if array.dtype.kind == "f" else np.int64)
    x = found.arrays["x_train"]
    with open_rows({"a": x}) as rows:
        runs = [(0, 2), (5, 9), (N - 1, N)]
        out = np.zeros((7, *x.shape[1:]), x.dtype)
        rows.read(runs, {"a": out})
    np.testing.assert_array_equal(out, expected.get("x_train", beside("p1"))[[0, 1, 5, 6, 7, 8, N - 1]])


@pytest.mark.parametrize("name", WRONG)
def test_wrong_names_give_one_sentence(tmp_path: Path, name: str) -> None:
    options, message = WRONG[name]
    path = saved(tmp_path, **ARRAYS)
    with pytest.raises((ConfigurationError, DataError), match=message) as caught:
        open_dataset(path, **options)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_named_has_to_be_there(tmp_path: Path) -> None:
    path = saved(tmp_path, a=ARRAYS["wide"], b=ARRAYS["label"])
    with pytest.raises(ConfigurationError, match=r"which arrays are the targets\? it has a, b; give --y NAME"):
        open_dataset(path, x="a")
    with pytest.raises(ConfigurationError, match=r"which arrays are the inputs\? it has a, b; give --x NAME"):
        open_dataset(path, y="b")
    assert open_dataset(path, x="all", y="b").arrays["x_train"].shape == (N, 2)


def test_whole_numbers_that_floats_do_not_hold_are_refused(tmp_path: Path) -> None:
    numbers = np.arange(N)
    numbers[7] = 2**53 + 1
    source = open_dataset(saved(tmp_path, a=numbers, b=ARRAYS["p1"], y=ARRAYS["y"]), x=("a", "b"))
    with pytest.raises(DataError, match=r"a, example 7: expected whole numbers of at most 2\*\*53"):
        read_array(source.arrays["x_train"])


@pytest.mark.parametrize("name", ["digits", "xor"])
def test_a_named_data_set_takes_no_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^x: would change nothing for the data set {name}; leave it out"):
        open_dataset(name, x="a")


def test_a_single_array_takes_no_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ARRAYS["x"])
    with pytest.raises(ConfigurationError, match=r"^y: says which arrays .*x\.npy is one array"):
        open_dataset(str(tmp_path / "x.npy"), y="a")
    with pytest.raises(ConfigurationError, match=r"^x: says which arrays .*x\.npy is one array"):
        open_inputs(tmp_path / "x.npy", ReadOptions(x=("a",)))


def test_inputs_to_predict_need_no_targets(tmp_path: Path) -> None:
    path = saved(tmp_path, p1=ARRAYS["p1"], p2=ARRAYS["p2"], label=ARRAYS["label"])
    asked = ReadOptions(x=("all",), y=("label", "absent"))
    np.testing.assert_array_equal(read_array(open_inputs(path, asked)), beside("p1", "p2"))
    with pytest.raises(DataError, match="expected an array x, got p1, p2, label; name it x, or give --x NAME"):
        open_inputs(path)


@pytest.mark.long
def test_commands_take_the_names_that_training_took(tmp_path: Path) -> None:
    """Training on named arrays gives the model of the same arrays as x and y; evaluate and predict know the names."""
    other = {"a": ARRAYS["p1"], "b": ARRAYS["p2"], "label": ARRAYS["label"], "w": ARRAYS["w"]}
    saved(tmp_path, **other)
    np.savez(tmp_path / "plain.npz", x=beside("p1", "p2"), y=ARRAYS["label"], weights=ARRAYS["w"])
    options = ["--model", "softmax", "--epochs", 2, "--quiet", "--validation-fraction", 0]
    named = [*options, "--dataset", "d.npz", "--x", "a", "b", "--y", "label", "--weights", "w", "--out", "named"]
    for line in (named, [*options, "--dataset", "plain.npz", "--out", "plain"]):
        assert module(None, "train", tmp_path, *line).status == 0
    hashes = {json.loads((tmp_path / run / "summary.json").read_text())["parameters_sha256"] for run in
              ("named", "plain")}  # fmt: skip
    assert len(hashes) == 1
    scores = [
        json.loads(module(None, "evaluate", tmp_path, "named", "--dataset", *line).out)["loss"]
        for line in (["d.npz"], ["plain.npz", "--x", "x", "--y", "y", "--weights", "weights"])
    ]
    assert scores[0] == scores[1]
    for given, out in ((["d.npz"], "1.npz"), (["plain.npz", "--x", "x"], "2.npz")):
        assert module(None, "predict", tmp_path, "named", *given, "-o", out).status == 0
    expected = distsgd.load(tmp_path / "plain").predict(beside("p1", "p2"))
    for out in ("1.npz", "2.npz"):
        np.testing.assert_array_equal(np.load(tmp_path / out)["predictions"], expected)


@pytest.mark.parametrize("form", first_of(["npz", "npy"]))
def test_what_stands_for_missing_values_is_kept(tmp_path: Path, form: str) -> None:
    """The mean of the training file, in evaluate and predict of other files, too."""
    x = ARRAYS["wide"].astype(np.float32)
    x[3, 0] = x[4, 1] = np.nan
    mean = np.nanmean(x.astype(np.float64), axis=0)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=ARRAYS["label"], x_test=x[2:9], y_test=ARRAYS["label"][2:9])
    line = ["--model", "softmax", "--epochs", 1, "--quiet", "--dataset", "d.npz", "--out", "run"]
    assert "example 3 holds nan" in module(None, "train", tmp_path, *line).err
    assert module(None, "train", tmp_path, *line, "--missing", "mean").status == 0
    given = "x.npy" if form == "npy" else "new.npz"
    np.save(tmp_path / "x.npy", x[2:9])
    np.savez(tmp_path / "new.npz", x=x[2:9])
    assert module(None, "predict", tmp_path, "run", given, "-o", "out.npz").status == 0
    filled = np.where(np.isnan(x[2:9]), mean.astype(np.float32), x[2:9])
    expected = distsgd.load(tmp_path / "run").predict(filled)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["predictions"], expected)
    scores = json.loads(module(None, "evaluate", tmp_path, "run", "--dataset", "d.npz").out)
    assert (scores["split"], scores["examples"]) == ("test", 7)
    assert scores["loss"] == distsgd.load(tmp_path / "run").evaluate(filled, ARRAYS["label"][2:9])["loss"]
