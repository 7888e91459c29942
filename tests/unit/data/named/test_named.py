"""The registered data sets: one contract for all, then what each is known for."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.named import digits as digits_module
from distsgd.data.named.cifar10 import TEST, TRAIN
from distsgd.data.named.datasets import DATASETS, check_arrays, load_mnist, make_moons, open_dataset, read_array
from distsgd.data.sources.base import ARRAY_NAMES

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
REAL = Path(__file__).resolve().parents[5] / "shared" / "data"


def idx_bytes(array: Array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def contents(seed: int = 0) -> dict[str, Array]:
    words = np.random.Philox(seed).random_raw
    images = [(words(n * 20) % 256).astype(np.uint8).reshape(n, 4, 5) for n in (30, 20)]
    labels = [(np.arange(n) % 10).astype(np.uint8) for n in (30, 20)]
    return dict(zip(FILES, (images[0], labels[0], images[1], labels[1]), strict=True))


def write_files(folder: Path, packed: bool = True, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in contents(seed).items():
        content = idx_bytes(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("mnist", "fashion-mnist")):
        write_files(folder / name, seed=seed)
    for number, name in enumerate((*TRAIN, *TEST)):
        records = (np.random.Philox(number).random_raw(20 * 3073) % 256).astype(np.uint8).reshape(20, 3073)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return str(folder)


@pytest.mark.parametrize("name", DATASETS)
def test_contract(name: str, data_dir: str) -> None:
    source = open_dataset(name, data_dir=data_dir, download=False)
    assert source.name == name
    assert set(source.arrays) <= set(ARRAY_NAMES)
    assert {"x_train", "y_train"} <= set(source.arrays)
    copy = pickle.loads(pickle.dumps(source))
    for key, array_source in source.arrays.items():
        found = read_array(array_source)
        assert (found.shape, found.dtype) == (array_source.shape, array_source.dtype)
        assert array_source.nbytes == found.nbytes
        out = np.empty_like(found)
        copy.arrays[key].read_into(out)
        np.testing.assert_array_equal(out, found, strict=True)
    for split in ("train", "test"):
        if f"x_{split}" in source.arrays:
            x, y = (read_array(source.arrays[f"{kind}_{split}"]) for kind in "xy")
            assert check_arrays(name, x, y, num_classes=source.num_classes) == source.num_classes
            assert np.abs(x / source.scale).max() < 5
            assert (y.dtype == np.int64) == (name != "xor")
            assert x.ndim >= 2


def test_digits_are_the_published_ones() -> None:
    source = open_dataset("digits")
    x, y = read_array(source.arrays["x_train"]), read_array(source.arrays["y_train"])
    assert x.shape == (1797, 8, 8)
    assert (x.min(), x.max(), source.scale) == (0, 16, 16.0)
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    found = hashlib.sha256(x.tobytes() + y.astype(np.uint8).tobytes()).hexdigest()
    assert found == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert "10.24432/C50P49" in str(digits_module.__doc__)  # its licence wants it named where it is
    assert "x_test" not in source.arrays


def test_xor() -> None:
    source = open_dataset("xor")
    x, y = read_array(source.arrays["x_train"]), read_array(source.arrays["y_train"])
    assert x.tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert y.tolist() == [[float(int(a) ^ int(b))] for a, b, _ in x]
    assert y.dtype == np.float32


@pytest.mark.parametrize("count", [300, 301, 2])
def test_moons_without_noise_lie_on_two_half_circles(count: int) -> None:
    x, y = make_moons(count, noise=0.0, seed=3)
    assert x.shape == (count, 2)
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert np.bincount(y).tolist() == [count // 2, count - count // 2]
    outer, inner = x[y == 0], x[y == 1]
    np.testing.assert_allclose(np.hypot(outer[:, 0], outer[:, 1]), 1, atol=2e-6)
    np.testing.assert_allclose(np.hypot(inner[:, 0] - 1, inner[:, 1] - 0.5), 1, atol=2e-6)
    assert outer[:, 1].min() >= 0
    assert inner[:, 1].max() <= 0.5
    angles = np.sort(np.arctan2(outer[:, 1], outer[:, 0]))
    np.testing.assert_allclose(angles, np.linspace(0, np.pi, count // 2), atol=1e-3)


def test_moons_are_a_function_of_the_seed() -> None:
    first, again, other = (read_array(open_dataset("moons", seed=s).arrays["x_train"]) for s in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert len(first) == 300
    x, y = make_moons(20_000, noise=0.2, seed=5)
    distance = np.hypot(x[y == 0, 0], x[y == 0, 1]) - 1
    assert abs(distance.std() - 0.2) < 0.01
    assert np.array_equal(x * 2**20, np.rint(x * 2**20))
    assert not np.array_equal(y, np.sort(y))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["mnist", "."])
def test_mnist_files(tmp_path: Path, packed: bool, place: str) -> None:
    write_files(tmp_path / place, packed)
    source = open_dataset("mnist", data_dir=str(tmp_path), download=False)
    for key, array in zip(("x_train", "y_train", "x_test", "y_test"), contents().values(), strict=True):
        np.testing.assert_array_equal(read_array(source.arrays[key]), array)
    assert (source.scale, source.num_classes) == (255.0, 10)
    assert isinstance(source.arrays["x_train"].mapped(), np.memmap) == (not packed)


def test_the_two_mnists_are_not_confused(tmp_path: Path) -> None:
    write_files(tmp_path / "data")
    write_files(tmp_path / "my-fashion")
    for name, folder in (("fashion-mnist", "data"), ("mnist", "my-fashion")):
        with pytest.raises(DataError, match="not found"):
            open_dataset(name, data_dir=str(tmp_path / folder), download=False)
    assert open_dataset("fashion-mnist", data_dir=str(tmp_path / "my-fashion"), download=False)


def test_damaged_mnist(tmp_path: Path) -> None:
    write_files(tmp_path / "mnist")
    labels = tmp_path / "mnist" / f"{FILES[1]}.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(29, np.uint8))))
    with pytest.raises(DataError, match="expected 30 entries, one an example, got 29"):
        open_dataset("mnist", data_dir=str(tmp_path))
    labels.write_bytes((tmp_path / "mnist" / f"{FILES[0]}.gz").read_bytes())
    with pytest.raises(DataError, match="in 1 dimensions"):
        open_dataset("mnist", data_dir=str(tmp_path))


def test_missing_mnist_names_folder_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError) as caught:
        open_dataset("mnist", download=False)
    assert str(tmp_path / "distsgd" / "mnist") in str(caught.value)
    assert all(name in str(caught.value) for name in FILES)
    write_files(tmp_path / "distsgd" / "mnist")
    assert len(open_dataset("mnist", download=False).arrays) == 4


def test_load_mnist(data_dir: str) -> None:
    expected = list(contents().values())
    (x, y), (x_test, y_test) = load_mnist(data_dir=data_dir)
    assert x.shape == (30, 20)
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    np.testing.assert_array_equal(x, expected[0].reshape(30, 20).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(y, expected[1])
    assert (len(x_test), len(y_test)) == (20, 20)
    (x, y), _ = load_mnist(normalize=False, flatten=False, one_hot=True, data_dir=data_dir)
    assert (x.shape, y.shape) == ((30, 1, 4, 5), (30, 10))
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x[:, 0], expected[0])
    np.testing.assert_array_equal(y.argmax(1), expected[1])
    assert (y.sum(1) == 1).all()


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="the real MNIST files are not beside this checkout")
def test_the_real_mnist() -> None:
    source = open_dataset("mnist", data_dir=str(REAL), download=False)
    assert {key: array.shape for key, array in source.arrays.items()} == {
        "x_train": (60_000, 28, 28),
        "y_train": (60_000,),
        "x_test": (10_000, 28, 28),
        "y_test": (10_000,),
    }
    labels = read_array(source.arrays["y_train"])
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean = read_array(source.arrays["x_train"]).mean() / source.scale
    assert round(float(mean), 4) == 0.1307  # as widely used to normalize


def test_unknown_names_are_suggested() -> None:
    for name, hint in (
        ("mnits", "did you mean mnist?"),
        ("Fashion_MNIST", "did you mean fashion-mnist?"),
        ("cifar10", "cifar-10"),
    ):
        with pytest.raises(DataError) as caught:
            open_dataset(name)
        assert hint in str(caught.value)
    with pytest.raises(
        DataError, match="digits, mnist, fashion-mnist, cifar-10, xor, moons or a file, got 'zzz'; name one"
    ):
        open_dataset("zzz")
