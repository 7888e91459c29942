"""MNIST's files, read alike by all that are raced on it, and what they are asked for."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

_FILES = {
    "x_train": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "y_train": ("train-labels-idx1-ubyte", (60_000,)),
    "x_test": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "y_test": ("t10k-labels-idx1-ubyte", (10_000,)),
}


def folder(data_dir: Path | None) -> tuple[Path | None, str]:
    """(the folder of the files, "") or (None, why there is none)."""
    if data_dir is None:
        return None, "give --data-dir, a folder that holds mnist/"
    for where in (data_dir / "mnist", data_dir):
        if all((where / f"{name}.gz").is_file() for name, _ in _FILES.values()):
            return where, ""
    return None, f"MNIST's .gz files are not in {data_dir}"


def load(where: str) -> dict[str, Any]:
    """The four arrays, uint8; labels int64."""
    import numpy as np

    found = {}
    for key, (name, shape) in _FILES.items():
        with gzip.open(Path(where) / f"{name}.gz") as file:
            values = np.frombuffer(file.read(), np.uint8)[4 + 4 * len(shape) :]
        found[key] = values.reshape(shape) if key.startswith("x") else values.astype(np.int64)
    return found
