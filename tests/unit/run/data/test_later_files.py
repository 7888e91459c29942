"""Validation files, and files to score, are read by the classes of the training file: they may hold some alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distsgd.core.errors import DataError
from distsgd.data.examples import Examples
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.config import TrainConfig
from distsgd.run.data.loading import Data, load_data

RNG = np.random.default_rng(3)


def loaded(dataset: Path, validation: Path, **options: Any) -> Data:
    return load_data(SerialCommunicator(), TrainConfig(dataset=str(dataset), validation=str(validation), **options))


def labels(part: Examples | None) -> list[Any]:
    assert part is not None
    return np.asarray(part.y).tolist()


def libsvm(path: Path, targets: list[Any]) -> Path:
    path.write_text("".join(f"{one} 1:{value}\n" for one, value in zip(targets, RNG.random(len(targets)), strict=True)))
    return path


@pytest.mark.parametrize(
    ("training", "later", "expected"),
    [
        ([-1, 1, 1, -1], [1, 1], [1, 1]),
        ([-1, 1, 1, -1], [-1], [0]),
        ([1, 2, 3, 1], [3, 2], [2, 1]),
        ([0, 1, 2, 0], [2, 1], [2, 1]),
        ([0.5, 2, 3, 1], [2, 1], [2.0, 1.0]),
    ],
)
def test_labels_of_libsvm(tmp_path: Path, training: list[Any], later: list[Any], expected: list[Any]) -> None:
    found = loaded(libsvm(tmp_path / "a.svm", training), libsvm(tmp_path / "b.svm", later))
    assert labels(found.validation) == expected


@pytest.mark.parametrize(
    ("training", "later", "message"),
    [
        ([-1, 1, 1, -1], [0, 1], "the label 0 is none of the 2 classes"),
        ([0, 1, 2, 0], [-1, 1], "expected labels, which are 0, 1, …, as in training, got -1"),
    ],
)
def test_other_labels_of_libsvm(tmp_path: Path, training: list[Any], later: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded(libsvm(tmp_path / "a.svm", training), libsvm(tmp_path / "b.svm", later))


def test_texts_of_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,site,y\n1,n,cook\n2,s,baker\n3,w,pilot\n4,n,cook\n5,s,baker\n6,w,pilot\n")
    (tmp_path / "b.csv").write_text("y,site,a\npilot,w,1.5\ncook,n,2.5\n")
    found = loaded(tmp_path / "a.csv", tmp_path / "b.csv")
    assert labels(found.validation) == [2, 1]
    assert found.validation is not None
    np.testing.assert_array_equal(found.validation.x, [[1.5, 0, 0, 1], [2.5, 1, 0, 0]])
    (tmp_path / "c.csv").write_text("a,site,y\n1,n,0\n2,s,1\n3,w,1\n4,n,0\n")
    with pytest.raises(DataError, match="column y holds text, and the model was trained on targets that are numbers"):
        loaded(tmp_path / "c.csv", tmp_path / "b.csv")


def images(folder: Path, *classes: str) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(RNG.integers(0, 256, (3, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_classes_of_images(tmp_path: Path) -> None:
    first = images(tmp_path / "a", "circle", "line", "square")
    assert labels(loaded(first, images(tmp_path / "b", "line", "square")).validation) == [1, 1, 2, 2]
    for number, others in enumerate((("line", "triangle"), ("star", "triangle"))):
        with pytest.raises(DataError, match=r"triangle|star"):
            loaded(first, images(tmp_path / f"c{number}", *others))
    ordered = loaded(first, tmp_path / "b", classes=("square", "line", "circle"))
    assert labels(ordered.train) == [0, 0, 1, 1, 2, 2]
    assert ordered.train.x[0].tolist() == np.asarray(Image.open(first / "square" / "0.png")).tolist()
    assert labels(ordered.validation) == [0, 0, 1, 1]
