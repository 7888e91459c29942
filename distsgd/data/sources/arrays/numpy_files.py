"""NumPy's own files as a data set: .npz, a pair of .npy, or a folder of .npy."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from math import prod

from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.files import FileStamp
from distsgd.data.sources.arrays.named_arrays import Roles, data_source, used_names
from distsgd.data.sources.arrays.npy import NpySource, npz_keys, open_npz
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.streams import stamps


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a file or folder; DataError where it can't be one.

    - `.npz` with x and y, optionally weights; or x_train, y_train, …, x_validation, y_validation, x_test, y_test
    - a folder of `.npy` files of these names
    - `x.npy` or `NAME_x.npy`, with `y.npy` or `NAME_y.npy` beside it

    Which arrays of `.npz` and of a folder are which, `options` may say. Without targets: `.npz` with x (or x_test), or
    any `.npy`; there may be no examples in it.
    """
    if where.lower().endswith(".npy") and not os.path.isdir(where):
        return _open_single(where, options)
    if os.path.isdir(where):
        found = _open_named(where, [*_names_in(where)], options, lambda names: _open_members(where, names))
        return found if options.listed or options.x or options.y else _with_columns(where, found)
    return _open_named(where, npz_keys(where), options, lambda names: dict(open_npz(where, names)))


def _open_named(
    where: str,
    names: list[str],
    options: ReadOptions,
    open_all: Callable[[Collection[str]], Mapping[str, ArraySource]],
) -> DataSource:
    """The data set of a file or folder with arrays of these names."""

    def files(found: Roles) -> tuple[FileStamp, ...]:
        if not os.path.isdir(where):
            return stamps([where])
        there = _names_in(where)
        return stamps(os.path.join(where, there[name]) for name in used_names(found))

    return data_source(where, names, options, lambda found: open_all(used_names(found)), files)


def _with_columns(where: str, found: DataSource) -> DataSource:
    """With what `distsgd data --write` has written beside the arrays."""
    from distsgd.data.sources.written import check_about, read_about

    about = read_about(where)
    if about is None:
        return found
    check_about(where, about, prod(found.arrays["x_train"].shape[1:]))
    if "y_train" not in found.arrays:  # inputs to predict
        return found
    columns = about["columns"] if found.columns is None else found.columns
    return replace(found, **{**about, "columns": columns})


def _names_in(folder: str) -> dict[str, str]:
    """The arrays in a folder, sorted, and the names of their files."""
    try:
        files = sorted(name for name in os.listdir(folder) if name.lower().endswith(".npy"))
    except OSError as problem:
        raise DataError(f"{folder}: expected a readable folder ({problem.strerror}); check its permissions") from None
    found = {name[: -len(".npy")]: name for name in files}
    if len(found) < len(files):
        raise DataError(f"{folder}: expected one file of each array, {', '.join(files[:8])} has two; remove one")
    return dict(sorted(found.items()))


def _open_members(folder: str, names: Iterable[str]) -> dict[str, ArraySource]:
    there = _names_in(folder)
    return {name: NpySource.open(os.path.join(folder, there[name])) for name in names}


def _open_single(x_path: str, options: ReadOptions) -> DataSource:
    """One .npy file: the inputs alone, or with y.npy and weights.npy beside it."""
    for option in ("x", "y", "weights"):
        if getattr(options, option):
            raise ConfigurationError(
                f"{option}: says which arrays of a .npz file or a folder are used, and {x_path} is one array; leave it "
                "out, or name its folder"
            )
    paths = {"x": x_path}
    folder, file = os.path.split(x_path)
    stem, ending = os.path.splitext(file)
    if options.targets and stem != "x" and not stem.endswith("_x"):
        raise DataError(
            f"{x_path}: expected x.npy or NAME_x.npy, with y.npy or NAME_y.npy beside it, or a folder of .npy files; "
            "rename it, or name its folder"
        )
    for kind in ("y", "weights") if options.targets else ():
        path = os.path.join(folder, f"{stem[:-1]}{kind}{ending}")
        if kind == "y" or os.path.exists(path):
            paths[kind] = path
    if (columns := options.columns) is not None:  # of a model that knows its inputs by name: here they have none
        options = replace(options, columns=replace(columns, inputs=("x",), target=("y",)))
    return data_source(
        x_path,
        list(paths),
        options,
        lambda found: {name: NpySource.open(paths[name]) for name in used_names(found)},
        lambda found: stamps(paths.values()),
    )
