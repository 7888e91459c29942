"""The data sets by name, and the opening of any file.

A new data set is one file with a function of OpenOptions, and one line in DATASETS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from distsgd.core.components import check_name, suggestion, wrong_name
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.checks import check_arrays
from distsgd.data.columns import Missing
from distsgd.data.named.digits import open_digits
from distsgd.data.named.generated import make_moons, open_moons, open_xor
from distsgd.data.named.mnist import FASHION_MNIST, MNIST, load_mnist
from distsgd.data.sources.base import ArraySource, DataSource, Opened, OpenOptions, ReadOptions, read_array
from distsgd.data.sources.registry import check_taken, files_of, looks_like_path, open_inputs, open_path, open_paths
from distsgd.data.sources.streams import absolute

__all__ = [
    "DATASETS", "ArraySource", "DataSource", "OpenOptions", "check_arrays", "load_mnist", "make_moons",
    "open_dataset", "open_inputs", "read_array",
]  # fmt: skip


def open_cifar10(options: OpenOptions) -> DataSource:
    """CIFAR-10; what reads its archives and pickles is imported only for it."""
    from distsgd.data.named.cifar10 import CIFAR_10

    return CIFAR_10.open(options)


DATASETS: dict[str, Callable[[OpenOptions], DataSource]] = {
    "digits": open_digits,
    "mnist": MNIST.open,
    "fashion-mnist": FASHION_MNIST.open,
    "cifar-10": open_cifar10,
    "xor": open_xor,
    "moons": open_moons,
}


def open_dataset(
    name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    data_dir: str | None = None,
    seed: int = 0,
    download: bool = True,
    x: str | Sequence[str] = (),
    y: str | Sequence[str] = (),
    weights: str | None = None,
    axis: int | str = 0,
    missing: Missing = "refuse",
    classes: Sequence[str] = (),
) -> DataSource:
    """The data set of this name, or in this file or folder; reads headers alone.

    Parameters
    ----------
    name_or_path : str, path, or sequence of paths
        A name in DATASETS, or a path: a file or folder of one of the formats, a pattern such as `part-*.h5`, or a
        folder of files. Several files of one format are one data set: those of a sequence in its order, others sorted.
    data_dir : str, optional
        The folder of the named data sets' files, and of downloads; None for the user's cache folder.
    seed : int, default 0
        The seed of generated points.
    download : bool, default True
        Whether missing files are downloaded.
    x, y : str or sequence of str
        The file's arrays that are inputs and targets: names, patterns such as `pixel*`, or `all` for all but the
        others. Several inputs stand side by side, several targets are values. By default the array x, and the array y.
    weights : str, optional
        The array of sample weights; by default the array weights, where there is one.
    axis : int or str, default 0
        The axis of the examples in the file's arrays, by its number or its name.
    missing : str, default "refuse"
        What is done with values that are missing, null or NaN: refuse; mean or zero to stand for them; or drop, which
        leaves their examples out.
    classes : sequence of str
        The names of the classes in the order of their labels; of a table, the texts or numbers that targets are.

    Returns
    -------
    DataSource
        Names, shapes and types of the arrays, and how to read them (`read_array`).

    Raises
    ------
    DataError
        Where there is no data set of this name, or its files are missing or damaged.
    ConfigurationError
        Where the file has no array of these names, or the data set takes none.

    Examples
    --------
    >>> open_dataset("digits").arrays["x_train"].shape
    (1797, 8, 8)
    """
    check_name("missing", missing, get_args(Missing))
    named = tuple(classes)
    asked = ReadOptions(_names(x), _names(y), weights, axis=str(axis), missing=missing, classes=named)
    found = open_with(name_or_path, OpenOptions(data_dir, seed, download), asked)
    if not isinstance(name_or_path, str) or name_or_path not in DATASETS:
        found = replace(found, opened=Opened(_paths(name_or_path), asked))
    return _with_names(found, named)


def _with_names(found: DataSource, named: tuple[str, ...]) -> DataSource:
    """The data set with these names of its classes, where it has none. Raises ConfigurationError for other targets."""
    if not named or found.class_names:
        return found
    if found.arrays["y_train"].dtype.kind == "f" or found.num_classes not in (None, len(named)):
        what = "values" if found.num_classes is None else f"{found.num_classes} classes"
        raise ConfigurationError(f"classes: {len(named)} are named, the targets of {found.name} are {what}")
    return replace(found, num_classes=len(named), class_names=named)


def reopened(source: DataSource, **asked: Any) -> DataSource | None:
    """The data set that `open_dataset` has opened, with something else asked of its files; None of one with a name."""
    if source.opened is None:
        return None
    paths, options = source.opened.paths, replace(source.opened.options, **asked)
    found = open_path(paths[0], options) if len(paths) == 1 else open_paths(paths, options)
    if source.class_names and not found.class_names:  # of arrays, whose file has no names
        found = replace(found, num_classes=source.num_classes, class_names=source.class_names)
    return replace(found, name=source.name, opened=Opened(paths, options))


def _paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """The absolute paths of all files that this means: the folder in which a program is may change."""
    if isinstance(given, str | os.PathLike):
        return tuple(files_of(given)) or (absolute(given),)
    return tuple(absolute(path) for path in given)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def open_with(
    name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], options: OpenOptions, asked: ReadOptions
) -> DataSource:
    """`open_dataset` with what a data set that has a name may depend on, and what is asked of a file."""
    if isinstance(name_or_path, os.PathLike):
        return open_path(name_or_path, asked)
    if not isinstance(name_or_path, str):
        return open_paths(name_or_path, asked)
    opener = DATASETS.get(name_or_path)
    if opener is not None:
        check_taken(f"the data set {name_or_path}", asked)
        return opener(options)
    if looks_like_path(name_or_path):
        return open_path(name_or_path, asked)
    hint = "" if suggestion(name_or_path, DATASETS) else "; name one of these, or a path"
    raise DataError(f"{wrong_name('data set', name_or_path, DATASETS, ' or a file')}{hint}")
