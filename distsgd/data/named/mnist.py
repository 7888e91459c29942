"""MNIST and Fashion-MNIST: four IDX files each, from a folder of the user's or from a mirror.

Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits, 1998. CC BY-SA 3.0
H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms.
arXiv:1708.07747, 2017. MIT
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distsgd.core.device import Array
from distsgd.core.files import cache_folder
from distsgd.data.sources.arrays.idx import IdxSource
from distsgd.data.sources.assemble import assemble
from distsgd.data.sources.base import DataSource, OpenOptions, read_array

_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class IdxDataset:
    """Ten classes in four IDX files.

    url        the folder of the .gz files; the variable DISTSGD_<NAME>_URL of the environment goes before it
    checksums  by file name without .gz: accepted MD5s, of the .gz file or of its content
    limit      bytes of a file at most, packed or not; the largest has 47,040,016
    """

    name: str
    url: str
    checksums: Mapping[str, Collection[str]] = field(repr=False)
    limit: int = 48_000_000

    def open(self, options: OpenOptions) -> DataSource:
        """The data set; files that are missing are downloaded into `data_dir`/`name` where `options` allow it."""
        from distsgd.data.named.download import fetch

        root = cache_folder(options.data_dir)
        missing = [file for file in _FILES.values() if self._find(root, file) is None]
        if missing:
            files = {f"{file}.gz": self.checksums[file] for file in missing}
            wanted = f"{', '.join(missing)} (or each with .gz)"
            fetch(self.name, self.url, files, wanted, root / self.name, options.download, self.limit)
        arrays = {
            key: IdxSource.open(self._find(root, file) or root / self.name / file, 3 if key.startswith("x") else 1)
            for key, file in _FILES.items()
        }
        return replace(assemble(self.name, arrays), scale=255.0, num_classes=10)

    def _find(self, root: Path, file: str) -> Path | None:
        folders = [root / self.name]
        # Both data sets use the same file names: a folder that is called fashion doesn't hold MNIST, and vice versa.
        if ("fashion" in root.name.lower()) == ("fashion" in self.name):
            folders.append(root)
        names = (f"{file}.gz", file, file.replace("-idx", ".idx"))  # the last as some archives have it
        found = (folder / name for folder in folders for name in names)
        return next((path for path in found if path.is_file()), None)


MNIST = IdxDataset(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    {
        "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    },
)
FASHION_MNIST = IdxDataset(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d",),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe",),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79",),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310",),
    },
)


def load_mnist(
    normalize: bool = True, flatten: bool = True, one_hot: bool = False, data_dir: str | None = None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """MNIST as arrays of this process's own, for scripts that follow a book.

    Parameters
    ----------
    normalize : bool, default True
        x as float32 from 0 to 1, else uint8 from 0 to 255.
    flatten : bool, default True
        x of shape (n, 784), else (n, 1, 28, 28).
    one_hot : bool, default False
        y as float32 (n, 10) of zeros and a one, else int64 labels (n,).
    data_dir : str, optional
        The folder of the files, and of downloads; None for the user's cache folder.

    Returns
    -------
    tuple
        ((x_train, y_train), (x_test, y_test)), 60,000 and 10,000 examples.

    Raises
    ------
    DataError
        Where the files are missing and can't be downloaded, or are damaged.
    """
    source = MNIST.open(OpenOptions(data_dir=data_dir))
    parts = {}
    for key, array_source in source.arrays.items():
        array = read_array(array_source)
        if key.startswith("y"):
            parts[key] = np.eye(10, dtype=np.float32)[array] if one_hot else array
            continue
        array = array.reshape((len(array), -1) if flatten else (len(array), 1, *array.shape[1:]))
        parts[key] = array / np.float32(255) if normalize else array
    return (parts["x_train"], parts["y_train"]), (parts["x_test"], parts["y_test"])
