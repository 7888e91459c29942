"""distsgd data: what it prints of a file, and the folder that it writes of it."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import DataError, RunFolderError
from distsgd.data import open_dataset, read_array
from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.look import look_at
from distsgd.data.sources.written import write_folder
from tests.parallel.launch import Done, run_command

N = 50
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 3)).astype(np.float32)
LABELS = np.arange(N) % 3
WORDS = ["red", "green", "blue"]


def data(folder: Path, *arguments: object) -> Done:
    """distsgd data ARGUMENTS, in `folder`."""
    import sys

    return run_command(None, [sys.executable, "-m", "distsgd", "data", *map(str, arguments)], folder)


def parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    age = [None if k == 7 else float(k) for k in range(N)]
    columns = {"age": age, "colour": [WORDS[k % 3] for k in range(N)], "y": [["no", "yes"][k % 2] for k in range(N)]}
    pq.write_table(pa.table(columns | {"w": np.ones(N)}), folder / "t.parquet")
    return folder / "t.parquet"


def cells(out: str, name: str) -> list[str]:
    """The cells of a column's line."""
    (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
    return re.split(r"\s{2,}", line.strip())


def test_a_file_of_arrays(tmp_path: Path) -> None:
    x = X.copy()
    x[[3, 9], 1] = np.nan
    np.savez_compressed(tmp_path / "d.npz", a=x, b=LABELS, n=np.arange(N) * 7, s=np.array(["text"]))
    done = data(tmp_path, "d.npz", "--x", "a", "--y", "b")
    assert done.status == 0, done.text
    assert cells(done.out, "a") == ["a", "float32 (3,)", "2", f"{np.nanmin(x):.4g} to {np.nanmax(x):.4g}"]
    assert cells(done.out, "b")[2:] == ["-", "0: 17, 1: 17, 2: 16"]
    assert cells(done.out, "n")[3] == f"0 to {(N - 1) * 7}, {N} different"
    assert "s.npy: expected integers or floats" in " ".join(done.out.split())
    assert "--missing mean, zero or drop" in " ".join(done.out.split())
    (command,) = [line.split(maxsplit=1)[1] for line in done.out.splitlines() if line.startswith("command ")]
    assert command == "distsgd train --dataset d.npz --x a --y b"
    unknown = data(tmp_path, "d.npz")
    assert unknown.status == 0, unknown.text
    assert "with --x and --y which they are" in " ".join(unknown.out.split())
    assert "command " not in unknown.out


def test_a_table(tmp_path: Path) -> None:
    parquet(tmp_path)
    done = data(tmp_path, "t.parquet", "--weights", "w", "--missing", "mean")
    assert done.status == 0, done.text
    assert cells(done.out, "age") == ["age", "float64", "1", "0 to 49"]
    assert cells(done.out, "colour")[1:] == ["text", "-", "blue: 16, green: 17, red: 17"]
    assert "age, colour: 50 examples of 4 numbers, float64" in done.out
    assert "command    distsgd train --dataset t.parquet --weights w --missing mean\n" in done.out


def test_a_data_set_with_a_name(tmp_path: Path) -> None:
    done = data(tmp_path, "digits")
    assert done.status == 0, done.text
    assert cells(done.out, "x_train")[1:] == ["uint8 (8, 8)", "-", "0 to 16"]
    assert data(tmp_path, "digits", "--x", "a").err.startswith("distsgd: error: x: would change nothing")


WRONG = {
    "none.npz": "there is none; check the path", "d.txt": "expected a folder or a file ending in",
    "bad.npz": "expected a .npz file",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    if name != "none.npz":
        (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match=WRONG[name]):
        look_at(str(tmp_path / name), ReadOptions())


def test_looking_keeps_no_array_in_memory(tmp_path: Path) -> None:
    """Of .npy, and of a packed .npz, whose arrays are unpacked block by block."""
    block = RNG.integers(0, 200, 20_000).astype(np.int64)
    large = np.resize(block, (60_000, 100))
    np.savez_compressed(tmp_path / "d.npz", x=large, y=np.arange(60_000) % 5)
    np.save(tmp_path / "x.npy", large)
    np.save(tmp_path / "y.npy", np.arange(60_000) % 5)
    size, expected = large.nbytes, (int(large.min()), int(large.max()))
    del large
    for name in ("d.npz", "x.npy"):
        tracemalloc.start()
        look = look_at(str(tmp_path / name), ReadOptions())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (look.columns[0].low, look.columns[0].high) == expected
        assert look.columns[1].counts == {str(k): 12_000 for k in range(5)}
        assert peak < size / 2


@pytest.mark.parametrize("form", ["table", "splits", "digits"])
def test_a_folder_that_is_written_is_the_same_data_set(tmp_path: Path, form: str) -> None:
    options: dict[str, Any] = {}
    name = "digits"
    if form == "table":
        name, options = str(parquet(tmp_path)), {"weights": "w", "missing": "mean"}
    if form == "splits":
        name = str(tmp_path / "d.npz")
        np.savez_compressed(name, x_train=X, y_train=LABELS, x_test=X[:9], y_test=LABELS[:9])
    words = [word for option, value in options.items() for word in (f"--{option}", value)]
    assert data(tmp_path, name, *words, "--write", "copy").status == 0
    source, copy = open_dataset(name, **options), open_dataset(str(tmp_path / "copy"))
    assert copy.arrays.keys() == source.arrays.keys()
    for key, one in source.arrays.items():
        np.testing.assert_array_equal(read_array(copy.arrays[key]), read_array(one), strict=True)
    assert (copy.columns, copy.class_names, copy.scale) == (source.columns, source.class_names, source.scale)
    assert copy.num_classes == source.num_classes
    hashes = {distsgd.fit("softmax", one, epochs=1, seed=1).summary["parameters_sha256"] for one in (source, copy)}
    assert len(hashes) == 1
    assert [path.name for path in tmp_path.glob(".*.part")] == []


def test_a_model_of_the_folder_takes_the_table(tmp_path: Path) -> None:
    """columns.json keeps the names: texts of a later table have the places that they had."""
    from tests.parallel.launch import module

    table = parquet(tmp_path)
    assert data(tmp_path, table, "--missing", "zero", "--write", "copy").status == 0
    line = ["--dataset", "copy", "--model", "softmax", "--epochs", 2, "--quiet", "--out", "run"]
    assert module(None, "train", tmp_path, *line).status == 0
    losses = [
        json.loads(module(None, "evaluate", tmp_path, "run", "--dataset", one, "--split", "all").out)["loss"]
        for one in ("copy", "t.parquet")
    ]
    assert losses[0] == losses[1]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=RNG.normal(size=(400, 50)), y=np.arange(400) % 3)
    source = open_dataset(str(tmp_path / "d.npz"))
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[:5000] + b"????????" + whole[5008:])
    with pytest.raises(DataError):
        write_folder(source, str(tmp_path / "copy"))
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(RunFolderError, match="expected a new or an empty folder, it holds something"):
        write_folder(source, str(tmp_path / "full"))


DAMAGED = {
    "no JSON": ("{", "reading it failed"), "other values": ('{"columns": null}', "reading it failed"),
    "a scale of 0": ('{"columns": null, "class_names": [], "num_classes": null, "scale": 0.0}', "other types"),
    "columns of nothing": ('{"columns": {}, "class_names": [], "num_classes": null, "scale": 1.0}', "are none"),
    "other features": (json.dumps({"columns": {
        "inputs": ["a"], "categories": {}, "widths": {}, "fill": [], "missing": "refuse", "target": ["y"],
    }, "class_names": [], "num_classes": None, "scale": 1.0}), "is of 1 features, x has 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_columns_are_refused(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", LABELS)
    (tmp_path / "columns.json").write_text(DAMAGED[name][0])
    with pytest.raises(DataError, match=DAMAGED[name][1]) as caught:
        open_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
