"""LIBSVM's text against scikit-learn's meaning of it, written out; and lines that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import ReadOptions, read_array
from distsgd.data.sources.converted import open_rows
from distsgd.data.sources.registry import open_path

TEXT = b"# made by hand\n+1 1:0.5 4:-2e1 # the first\n-1 2:3\n\n-1\n+1 1:1 2:2 3:3\n"
X = np.array([[0.5, 0, 0, -20], [0, 3, 0, 0], [0, 0, 0, 0], [1, 2, 3, 0]], np.float32)


def test_values_and_labels(tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_bytes(TEXT)
    found = open_path(tmp_path / "a.svm")
    np.testing.assert_array_equal(read_array(found.arrays["x_train"]), X, strict=True)
    np.testing.assert_array_equal(read_array(found.arrays["y_train"]), [1, 0, 0, 1])
    assert found.class_names == ("-1", "1")
    (tmp_path / "b.svm").write_bytes(b"2 1:1\n1 2:7\n")
    later = open_path(tmp_path / "b.svm", ReadOptions(columns=found.columns))
    np.testing.assert_array_equal(read_array(later.arrays["x_train"]), [[1, 0, 0, 0], [0, 7, 0, 0]])
    with pytest.raises(ConfigurationError, match=r"has classes by name \(-1, 1, …\), and squared-error takes values"):
        distsgd.fit("softmax", found, epochs=1, batch_size=2, loss="squared-error")


@pytest.mark.parametrize(
    ("files", "y", "names"),
    [
        (("1", "1 2 3"), [0, 0, 1, 2], ("1", "2", "3")),
        (("1 2", "3"), [0, 1, 2], ("1", "2", "3")),
        (("0 1", "1 2"), [0, 1, 1, 2], ()),
        (("0 2", "1"), [0, 2, 1], ()),
        (("1", "-1 1"), [1, 0, 1], ("-1", "1")),
        (("0 1", "0.5"), [0, 1, 0.5], ()),
        (("1 2", "7"), [1, 2, 7], ()),
    ],
)
def test_classes_are_those_of_all_files(
    files: tuple[str, ...], y: list[float], names: tuple[str, ...], tmp_path: Path
) -> None:
    """As they are where all lines are in one file."""
    lines = [[f"{label} 1:2\n" for label in one.split()] for one in files]
    for number, part in enumerate(lines):
        (tmp_path / f"{number}.svm").write_text("".join(part))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "all.svm").write_text("".join(map("".join, lines)))
    for found in (open_path(tmp_path), open_path(tmp_path / "one" / "all.svm")):
        assert found.class_names == names
        np.testing.assert_array_equal(read_array(found.arrays["y_train"]), y)
        assert (found.arrays["y_train"].dtype == np.int64) == all(value % 1 == 0 and value < 5 for value in y)


def test_several_files_have_the_features_of_the_widest(tmp_path: Path) -> None:
    for number, line in enumerate(("+1 2:5\n-1\n", "-1 1:1 4:2\n+1 1:3\n")):
        (tmp_path / f"{number}.svm").write_text(line)
    found = open_path(tmp_path)
    expected = np.array([[0, 5, 0, 0], [0, 0, 0, 0], [1, 0, 0, 2], [3, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(read_array(found.arrays["x_train"]), expected, strict=True)
    np.testing.assert_array_equal(read_array(found.arrays["y_train"]), [1, 0, 0, 1])
    assert found.columns is not None
    assert len(found.columns.features) == 4


@pytest.mark.parametrize(
    ("labels", "y", "names"),
    [
        ("0 1 2", [0, 1, 2], ()), ("1 2 3", [0, 1, 2], ("1", "2", "3")), ("0.5 1 2", [0.5, 1, 2], ()),
        ("3 9 40", [3.0, 9.0, 40.0], ()),
    ],
)  # fmt: skip
def test_kinds_of_labels(tmp_path: Path, labels: str, y: list[float], names: tuple[str, ...]) -> None:
    (tmp_path / "a.svm").write_text("".join(f"{label} 1:1\n" for label in labels.split()))
    found = open_path(tmp_path / "a.svm")
    np.testing.assert_array_equal(read_array(found.arrays["y_train"]), np.array(y), strict=True)
    assert found.class_names == names


def test_rows_of_a_long_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 9, (5000, 6)).astype(np.float32)
    lines = (f"{k % 2} " + " ".join(f"{j + 1}:{v:g}" for j, v in enumerate(row)) for k, row in enumerate(values))
    (tmp_path / "a.svm").write_text("# head\n" + "\n".join(lines))
    x = open_path(tmp_path / "a.svm").arrays["x_train"]
    runs = [(0, 3), (1020, 1030), (2048, 2049), (4990, 5000)]
    out = np.empty((24, 6), np.float32)
    with open_rows({"x": x}) as rows:
        for _ in range(2):
            rows.read(runs, {"x": out})
            np.testing.assert_array_equal(out, np.concatenate([values[a:b] for a, b in runs]))
    (tmp_path / "a.svm").write_text("0 1:1\n")
    with pytest.raises(DataError, match="leave the file as it is while it is in use"):
        open_rows({"x": x})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2:1 2:3", r"line 1: expected indices from 1 that rise, got 2 after 2"),
        ("1 0:1", "expected index:value with an index from 1 to 2"),
        ("1 99999999:1", r"from 1 to 2\*\*24, got '99999999:1'"),
        ("1 qid:3 1:1", "got 'qid:3'"),
        ("1,2 1:1", "line 1: expected a label, got '1,2'"),
        ("1 1:nan", "expected a value, got 'nan'"),
        ("1 1:", "expected a value, got ''"),
        ("", "at least one example"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.svm").write_text(text)
    with pytest.raises(DataError, match=message):
        read_array(open_path(tmp_path / "a.svm").arrays["x_train"])
