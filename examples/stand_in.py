"""Files of MNIST's form without MNIST: the package's own 8x8 digits, drawn on 28x28, for tests that have no network.

They are other images: what is learned from them says that a configuration works, and nothing about its accuracy.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

import distsgd
from distsgd.data import read_array

TRAINING = 1_500
"""Of the 1,797 digits; the others are the test set."""


def write(folder: Path) -> Path:
    """Leaves the four files in folder/mnist, and returns `folder`, for --data-dir."""
    where = folder / "mnist"
    where.mkdir(parents=True, exist_ok=True)
    source = distsgd.open_dataset("digits").arrays
    small, labels = read_array(source["x_train"]), read_array(source["y_train"])
    images = np.kron(small.reshape(-1, 8, 8), np.ones((1, 3, 3), np.uint8)) * 15  # 16 grey levels, 0 to 240
    images = np.pad(images.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    for name, part in (("train", slice(TRAINING)), ("t10k", slice(TRAINING, None))):
        _write_idx(where / f"{name}-images-idx3-ubyte.gz", images[part])
        _write_idx(where / f"{name}-labels-idx1-ubyte.gz", labels[part].astype(np.uint8))
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), compresslevel=1, mtime=0))
