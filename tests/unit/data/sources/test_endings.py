"""Which file is of which format, by its ending, and what is said of others."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.cli.main import main

_X = np.random.default_rng(1).normal(size=(60, 3))
_Y = np.arange(60) % 2


def test_endings_in_capitals(tmp_path: Path) -> None:
    """As other systems write them: each file gives what the one of small letters does."""
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pyarrow")
    np.savetxt(tmp_path / "t.csv", np.column_stack([_X, _Y]), delimiter=",", header="a,b,c,y", comments="", fmt="%.17g")
    (tmp_path / "t.csv").rename(tmp_path / "DATA.CSV")
    np.savez(tmp_path / "t.npz", x=_X, y=_Y)
    (tmp_path / "t.npz").rename(tmp_path / "T.NPZ")
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, one in (("x", _X), ("y", _Y)):
        np.save(folder / f"{name}.npy", one)
        (folder / f"{name}.npy").rename(folder / f"{name}.NPY")
    for path in ("DATA.CSV", "T.NPZ", "arrays", "arrays/x.NPY"):
        found = distsgd.open_dataset(str(tmp_path / path))
        np.testing.assert_array_equal(distsgd.data.read_array(found.arrays["x_train"]), _X)
        np.testing.assert_array_equal(distsgd.data.read_array(found.arrays["y_train"]), _Y)
    for number in range(4):
        path = tmp_path / "images" / ("cat" if number < 2 else "dog") / f"{number}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(path, format="JPEG")
    assert distsgd.open_dataset(str(tmp_path / "images")).arrays["x_train"].shape == (4, 2, 2)


@pytest.mark.parametrize("name", ["t.xlsx", "t.txt", "t.jsonl", "t"])
def test_another_ending_says_what_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(distsgd.DataError, match=r"\.csv.*\.parquet.*export a table as CSV or Parquet"):
        distsgd.open_dataset(str(tmp_path / name))


def test_names_with_spaces_stand_in_quotes(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **{"net income": _X, "age": _Y})
    with pytest.raises(distsgd.ConfigurationError, match="it has 'net income', age"):
        distsgd.open_dataset(str(tmp_path / "t.npz"), x="*z*")


def test_paths_of_images_are_kept_beside_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        path = Path("images", "cat" if number % 2 else "dog", f"{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), 10 * number, np.uint8)).save(path)
    for words in (
        ("train", "--dataset", "images", "--epochs", "1", "--batch-size", "4", "--model", "softmax", "--out", "run"),
        ("predict", "run", "images", "-o", "found.csv", "--keep", "name"),
    ):
        monkeypatch.setattr("sys.argv", ["distsgd", *words])
        assert main() == 0
    rows = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == sorted(
        str(path.relative_to("images")) for path in Path("images").rglob("*.png")
    )
    monkeypatch.setattr("sys.argv", ["distsgd", "predict", "run", "images", "-o", "f.csv", "--keep", "path"])
    assert main() == 2


def test_more_parts_than_examples_are_refused(tmp_path: Path) -> None:
    """Some parts would be empty, whichever is asked for."""
    with pytest.raises(distsgd.ConfigurationError, match="fold 1/500: expected at most as many parts as examples, 60"):
        distsgd.fit("softmax", _X, _Y, epochs=1, batch_size=8, fold="1/500")
    with pytest.raises(distsgd.ConfigurationError, match="of 6 groups, too few for --fold 1/7"):
        distsgd.fit("softmax", _X, _Y, epochs=1, batch_size=8, fold="1/7", group=np.arange(60) % 6)
