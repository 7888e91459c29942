"""Users' own files: what is understood, and one sentence for what isn't."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.errors import DataError
from distsgd.data.named.datasets import open_dataset, read_array

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2], np.uint8)
W = np.array([1, 0, 2, 1, 1, 1])


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def test_npz_with_x_y_weights(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(open_dataset(saved(tmp_path, x=X, y=Y, weights=W, names=np.array(["a"])))))
    assert (source.scale, source.num_classes) == (1.0, None)
    assert list(source.arrays) == ["x_train", "y_train", "weights_train"]
    np.testing.assert_array_equal(read_array(source.arrays["x_train"]), X, strict=True)
    np.testing.assert_array_equal(read_array(source.arrays["y_train"]), Y.astype(np.int64), strict=True)
    np.testing.assert_array_equal(read_array(source.arrays["weights_train"]), W.astype(np.float64), strict=True)


def test_npz_with_all_parts(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"x_train": X, "y_train": Y, "x_validation": X[:2], "y_validation": Y[:2]}
    parts |= {"x_test": X[:3], "y_test": Y[:3]}
    source = open_dataset(saved(tmp_path, **parts))
    assert {k: a.shape for k, a in source.arrays.items()} == {k: a.shape for k, a in parts.items()}


@pytest.mark.parametrize(
    ("y", "shape", "dtype"),
    [
        (Y, (6,), np.int64),
        (Y.reshape(6, 1).astype(np.int32), (6,), np.int64),
        (Y > 0, (6,), np.int64),
        (Y.astype(">i2"), (6,), np.int64),
        (Y.astype("f8"), (6,), np.float64),
        (np.zeros((6, 3), np.float32), (6, 3), np.float32),
        (np.zeros((6, 1), ">f4"), (6, 1), np.float32),
    ],
)
def test_targets(tmp_path: Path, y: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    source = open_dataset(saved(tmp_path, x=X, y=y))
    found = source.arrays["y_train"]
    assert found.shape == shape
    assert found.dtype == dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(read_array(found), y.reshape(shape).astype(dtype), strict=True)


def test_scale_is_255_for_uint8_alone(tmp_path: Path) -> None:
    for dtype, scale in ((np.uint8, 255.0), (np.int16, 1.0), (np.float64, 1.0), (np.bool_, 1.0)):
        source = open_dataset(saved(tmp_path, x=X.astype(dtype), y=Y))
        assert source.scale == scale
        np.testing.assert_array_equal(read_array(source.arrays["x_train"]), X.astype(dtype))


def test_folder_and_pairs_of_npy_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("", "flowers_"):
        np.save(tmp_path / f"{prefix}x.npy", X)
        np.save(tmp_path / f"{prefix}y.npy", Y)
    np.save(tmp_path / "flowers_weights.npy", W)
    monkeypatch.chdir(tmp_path)
    for path, more in (
        ("x.npy", []),
        ("flowers_x.npy", ["weights_train"]),
        (".", []),
        (f"..{os.sep}{tmp_path.name}", []),
    ):
        source = open_dataset(path)
        assert list(source.arrays) == ["x_train", "y_train", *more]
        assert os.path.isabs(source.name)
        assert isinstance(source.arrays["x_train"].mapped(), np.memmap)
        np.testing.assert_array_equal(read_array(source.arrays["x_train"]), X)


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no names": ({"arr_0": X, "arr_1": Y}, "expected the arrays x and y, got arr_0, arr_1"),
    "no y": ({"x": X}, "add y_train"),
    "no x": ({"y": Y}, "add x_train"),
    "half a validation": ({"x": X, "y": Y, "x_validation": X}, "add y_validation"),
    "x_val": ({"x": X, "y": Y, "x_val": X}, "got 'x_val'"),
    "twice": ({"x": X, "y": Y, "x_train": X}, "expected x or x_train, got both"),
    "lengths": ({"x": X, "y": Y[:5]}, "expected 6 entries, one an example, got 5"),
    "weights": ({"x": X, "y": Y, "weights": W[:5]}, "weights_train: expected 6 entries"),
    "wide weights": ({"x": X, "y": Y, "weights": np.ones((6, 2))}, "one weight an example"),
    "one number": ({"x": X, "y": np.array(1)}, "a single number"),
    "vector": ({"x": X[:, 0], "y": Y}, "reshape it, say to"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "at least one example"),
    "complex": ({"x": X.astype(complex), "y": Y}, "got dtype complex128"),
    "text": ({"x": X, "y": Y.astype(str)}, "got dtype <U3"),
    "integer one-hot": ({"x": X, "y": np.zeros((6, 3), int)}, r"labels of shape \(n,\), got \(6, 3\)"),
    "3-D targets": ({"x": X, "y": np.zeros((6, 1, 1))}, r"\(n,\) or \(n, outputs\)"),
    "test features": ({"x": X, "y": Y, "x_test": X[:, :3], "y_test": Y}, r"x_test has \(3,\)"),
    "test pixels": ({"x": X, "y": Y, "x_test": X.astype(np.uint8), "y_test": Y}, "x_test has uint8"),
    "test targets": ({"x": X, "y": Y, "x_test": X, "y_test": Y.astype(float)}, "y_test has float64"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz_gives_one_sentence(tmp_path: Path, name: str) -> None:
    arrays, message = BAD_NPZ[name]
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([[{"a": 1}]], dtype=object), y=Y)
    with pytest.raises(DataError, match="got dtype object"):
        open_dataset(path)


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is none; check the path"):
        open_dataset(str(tmp_path / "none.npz"))
    (tmp_path / "a.txt").write_text("1,2\n")
    with pytest.raises(DataError, match=r"ending in \.npz, \.npy"):
        open_dataset(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="got none; give them"):
        open_dataset(str(tmp_path))
    np.save(tmp_path / "photos.npy", X)
    with pytest.raises(DataError, match=r"x\.npy or NAME_x\.npy"):
        open_dataset(str(tmp_path / "photos.npy"))
    np.save(tmp_path / "a_x.npy", X)
    with pytest.raises(DataError, match=r"a_y\.npy: expected a file, found none"):
        open_dataset(str(tmp_path / "a_x.npy"))
    np.save(tmp_path / "x_val.npy", X)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match="got 'x_val'"):
        open_dataset(str(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path, x=X, y=Y)
    os.chmod(path, 0)
    with pytest.raises(DataError, match="access is denied"):
        open_dataset(path)
