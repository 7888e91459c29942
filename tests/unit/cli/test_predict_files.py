"""distsgd predict and evaluate of files of any size, into each kind of file, on any number of ranks."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.cli.evaluate import evaluate
from distsgd.cli.predict import predict
from distsgd.core.errors import ConfigurationError, DataError, RunFolderError
from distsgd.parallel.serial import SerialCommunicator
from tests.parallel.launch import module
from tests.threads import run_on_threads

RNG = np.random.default_rng(8)
SMALL = RNG.normal(size=(4000, 90)).astype(np.float32)
LARGE = np.repeat(SMALL, 25, axis=0)
"""36 MB, so that it isn't kept in memory."""
MEDIUM = 30_000
LABELS = (LARGE[:, 0] > 0).astype(np.int64)
N = 1500
WORDS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("predict")
    options: dict[str, Any] = {"epochs": 2, "classes": ("no", "yes"), "batch_size": 64}
    distsgd.fit("softmax", SMALL, LABELS[::25], out=str(folder / "run"), **options)
    for name, count in (("large", len(LARGE)), ("medium", MEDIUM)):
        np.savez_compressed(folder / f"{name}.npz", x=LARGE[:count], y=LABELS[:count], code=np.arange(count))
    bad = LARGE.copy()
    bad[60_007, 3] = bad[90_000, 4] = np.nan
    np.savez_compressed(folder / "bad.npz", x=bad)
    columns: dict[str, Any] = {
        "age": [None if k == 7 else k / 7 for k in range(N)], "colour": [WORDS[k % 3] for k in range(N)],
        "key": np.arange(N) * 3, "name": [None if k == 3 else f"n,{k}" for k in range(N)],
        "y": [["cat", "dog"][k % 2] for k in range(N)],
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=400)
    line = ["--dataset", "t.parquet", "--x", "age", "colour", "--missing", "mean", "--model", "softmax", "--epochs", 2]
    done = module(None, "train", folder, *line, "--out", "table", "--quiet")
    assert done.status == 0, done.text
    return folder


def predicted(size: int, *words: str) -> bytes:
    """Predicts on so many ranks; the content of the file."""
    run_on_threads(size, lambda communicator: predict(communicator, list(words)))
    found = Path(words[words.index("-o") + 1])
    content = found.read_bytes()
    found.unlink()
    return content


def test_inputs_that_stay_in_their_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the predictions of the whole array in memory."""
    monkeypatch.chdir(folder)
    content = predicted(1, "run", "large.npz", "-o", "out.npz", "--keep", "code")
    assert predicted(3, "run", "large.npz", "-o", "out.npz", "--keep", "code") == content
    Path("again.npz").write_bytes(content)
    found, expected = np.load("again.npz"), distsgd.load("run").predict(LARGE)
    assert set(found) == {"predictions", "labels", "names", "code"}
    np.testing.assert_array_equal(found["predictions"], expected, strict=True)
    assert (found["labels"] == expected.argmax(axis=1)).all()
    assert (found["code"] == np.arange(len(LARGE))).all()


def test_memory_does_not_grow_with_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    monkeypatch.chdir(folder)
    rows = 600_000
    with h5py.File("zeros.h5", "w") as file:  # chunks that are not written take no space
        x = file.create_dataset("x", (rows, 90), np.float32, chunks=(1000, 90), compression="gzip")
        size = x.size * 4
    tracemalloc.start()
    predict(SerialCommunicator(), ["run", "zeros.h5", "-o", "zeros.npz"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2
    assert np.load("zeros.npz")["predictions"].shape == (rows, 2)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_of_predictions(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes on any number of ranks; numbers are equal after reading."""
    monkeypatch.chdir(folder)
    words = ["run", "medium.npz", "-o", f"out.{kind}", "--keep", "code"]
    content, path = predicted(1, *words), Path(f"again.{kind}")
    assert predicted(3, *words) == content
    path.write_bytes(content)
    expected, table = distsgd.load("run").predict(LARGE[:MEDIUM]), columns_of(path)
    assert list(table) == ["code", "label", "prediction_no", "prediction_yes"]
    for k, name in enumerate(("no", "yes")):
        np.testing.assert_array_equal(np.array(table[f"prediction_{name}"], np.float32), expected[:, k])
    assert list(table["label"]) == [("no", "yes")[k] for k in expected.argmax(axis=1)]
    assert list(map(int, table["code"])) == list(range(MEDIUM))


def columns_of(path: Path) -> dict[str, list[Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        found = pq.read_table(path)
        return {name: found[name].to_pylist() for name in found.column_names}
    with open(path, encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    return {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}


def test_scores_of_a_large_file_are_those_of_its_arrays(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    run_on_threads(3, lambda communicator: evaluate(communicator, ["run", "--dataset", "large.npz"]))
    found = json.loads(capsys.readouterr().out)
    expected = distsgd.load("run").evaluate(LARGE, LABELS)
    assert {name: found[name] for name in ("loss", "accuracy")} == {
        name: expected[name] for name in ("loss", "accuracy")
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_kept_beside_predictions(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["table", "t.parquet", "-o", f"kept.{kind}", "--keep", "key,name", "a*"]
    content = predicted(2, *words)
    assert predicted(1, *words) == content
    Path(f"kept.{kind}").write_bytes(content)
    found = columns_of(Path(f"kept.{kind}"))
    assert list(found) == ["key", "name", "age", "label", "prediction_cat", "prediction_dog"]
    empty = "" if kind == "csv" else None
    assert found["name"][2:5] == ["n,2", empty, "n,4"]
    assert [*map(int, found["key"])] == [k * 3 for k in range(N)]
    assert found["age"][7] == empty
    assert [float(value) for k, value in enumerate(found["age"]) if k != 7] == [k / 7 for k in range(N) if k != 7]
    mean = np.mean([k / 7 for k in range(N) if k != 7])
    x = np.array([[mean if k == 7 else k / 7, *(WORDS[k % 3] == word for word in sorted(WORDS))] for k in range(N)])
    expected = distsgd.load("table").predict(x)
    np.testing.assert_allclose(np.array(found["prediction_dog"], np.float64), expected[:, 1], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
def test_nothing_is_written_of_a_file_that_is_wrong(
    folder: Path, tmp_path: Path, size: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = str(folder / "bad.npz")
    Path(f"out.{kind}").write_text("what was there")
    with pytest.raises(DataError, match=r"bad\.npz: inputs: expected finite numbers, example 60007 holds nan"):
        run_on_threads(size, lambda c: predict(c, [str(folder / "run"), bad, "-o", f"out.{kind}"]))
    assert [path.name for path in tmp_path.iterdir()] == [f"out.{kind}"]
    assert Path(f"out.{kind}").read_text() == "what was there"


REFUSED = {
    "text into .npz": (["table", "t.parquet", "-o", "o.npz", "--keep", "name"], "name holds text, which"),
    "no such column": (["table", "t.parquet", "-o", "o.csv", "--keep", "nam"], "no column is named 'nam'.*name"),
    "no such array": (["run", "medium.npz", "-o", "o.csv", "--keep", "z*"], "no array matches"),
    "an array of another length": (["run", "other.npz", "-o", "o.csv", "--keep", "b"], r"b has shape \(3,\)"),
    "a name of ours": (["run", "other.npz", "-o", "o.csv", "--keep", "label"], "'label' is what a column of the pred"),
    "nowhere": (["run", "medium.npz", "-o", "no/o.csv"], "could not write .*choose another place with -o"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if name in ("an array of another length", "a name of ours"):
        np.savez("other.npz", x=SMALL[:5], b=np.ones(3), label=np.ones(5))
    words, message = REFUSED[name]
    with pytest.raises((ConfigurationError, RunFolderError), match=message):
        predict(SerialCommunicator(), words)
    assert not Path(words[3]).exists()
    assert not list(Path().glob(".*.part"))
