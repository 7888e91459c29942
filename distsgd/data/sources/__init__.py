"""Data sets: they describe and read; communication/ places each array once per node.

A new data set is one file with a function of OpenOptions, and one line in DATASETS.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from distsgd.core.errors import DataError
from distsgd.data.sources.base import ArraySource, DataSource, OpenOptions, read_array
from distsgd.data.sources.checks import check_arrays
from distsgd.data.sources.cifar10 import CIFAR_10
from distsgd.data.sources.digits import open_digits
from distsgd.data.sources.files import looks_like_path, open_inputs, open_path
from distsgd.data.sources.generated import make_moons, open_moons, open_xor
from distsgd.data.sources.mnist import FASHION_MNIST, MNIST, load_mnist

__all__ = [
    "DATASETS", "ArraySource", "DataSource", "OpenOptions", "check_arrays", "load_mnist", "make_moons",
    "open_dataset", "open_inputs", "read_array",
]  # fmt: skip

DATASETS: dict[str, Callable[[OpenOptions], DataSource]] = {
    "digits": open_digits,
    "mnist": MNIST.open,
    "fashion-mnist": FASHION_MNIST.open,
    "cifar-10": CIFAR_10.open,
    "xor": open_xor,
    "moons": open_moons,
}


def open_dataset(name_or_path: str, *, data_dir: str | None = None, seed: int = 0, download: bool = True) -> DataSource:
    """The data set of this name, or in this file or folder (files.open_path says which); reads headers alone.

    data_dir  where files of named data sets are, or are downloaded to; None: the user's cache folder
    seed      of generated points

    Raises DataError where there is none of this name, or its files are missing or damaged.
    """
    opener = DATASETS.get(name_or_path)
    if opener is not None:
        return opener(OpenOptions(data_dir, seed, download))
    if looks_like_path(name_or_path):
        return open_path(name_or_path)
    close = get_close_matches(name_or_path.lower().replace("_", "-"), DATASETS, n=1)
    hint = f"did you mean {close[0]}?" if close else "name one of these, or a path"
    raise DataError(f"data set: expected one of {', '.join(DATASETS)} or a file, got {name_or_path!r}; {hint}")
