"""NumPy's own files as a data set: .npz, a pair of .npy, or a folder of .npy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from distsgd.core.errors import DataError
from distsgd.data.sources.assemble import ACCEPTED, assemble, check_names, inputs, unused_names
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.npy import NpySource, npz_keys, open_npz
from distsgd.data.sources.streams import stamps


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a file or folder; DataError where it can't be one.

    - `.npz` with x and y, optionally weights; or x_train, y_train, …, x_validation, y_validation, x_test, y_test
    - a folder of `.npy` files of these names
    - `x.npy` or `NAME_x.npy`, with `y.npy` or `NAME_y.npy` beside it

    Without targets: `.npz` with x (or x_test), or any `.npy`; there may be no examples in it.
    """
    if not options.targets:
        return _open_inputs(where)
    if os.path.isdir(where):
        return _open_folder(where)
    if where.endswith(".npy"):
        return _open_pair(where)
    names = npz_keys(where)
    check_names(where, names)
    return _described(where, open_npz(where, ACCEPTED), [where], names)


def _described(where: str, arrays: Mapping[str, ArraySource], paths: Iterable[str], names: list[str]) -> DataSource:
    return replace(assemble(where, arrays), unused=tuple(unused_names(names)), files=stamps(paths))


def _open_folder(where: str) -> DataSource:
    try:
        names = sorted(name[: -len(".npy")] for name in os.listdir(where) if name.endswith(".npy"))
    except OSError as problem:
        raise DataError(f"{where}: expected a readable folder ({problem.strerror}); check its permissions") from None
    check_names(where, names)
    sources = {name: NpySource.open(os.path.join(where, f"{name}.npy")) for name in names if name in ACCEPTED}
    return _described(where, sources, [source.path for source in sources.values()], names)


def _open_pair(x_path: str) -> DataSource:
    folder, file = os.path.split(x_path)
    stem = file[: -len(".npy")]
    if stem != "x" and not stem.endswith("_x"):
        raise DataError(
            f"{x_path}: expected x.npy or NAME_x.npy, with y.npy or NAME_y.npy beside it, or a folder of .npy files; "
            "rename it, or name its folder"
        )
    prefix = stem[:-1]
    sources = {"x": NpySource.open(x_path)}
    for kind in ("y", "weights"):
        path = os.path.join(folder, f"{prefix}{kind}.npy")
        if kind == "y" or os.path.exists(path):
            sources[kind] = NpySource.open(path)
    return _described(x_path, sources, [source.path for source in sources.values()], [])


def _open_inputs(where: str) -> DataSource:
    if where.endswith(".npy"):
        x: ArraySource = NpySource.open(where)
    elif not where.endswith(".npz"):
        raise DataError(f"{where}: expected a .npz file with x, or a .npy file; save it with numpy.savez")
    else:
        found = open_npz(where, ("x", "x_test"))
        if not found:
            raise DataError(f"{where}: expected an array x, got {', '.join(npz_keys(where)) or 'none'}; name it x")
        x = found["x"] if "x" in found else found["x_test"]
    return DataSource(where, {"x_train": inputs(where, x, least=0)}, files=stamps([where]))
