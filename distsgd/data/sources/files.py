"""Data sets in the user's own files: .npz, a pair of .npy, a folder of .npy, or a pickle of three pairs."""

from __future__ import annotations

import os
from dataclasses import replace

from distsgd.core.errors import DataError
from distsgd.data.sources.assemble import ACCEPTED, assemble, check_names, inputs, unused_names
from distsgd.data.sources.base import ArraySource, DataSource
from distsgd.data.sources.npy import NpySource, npz_keys, open_npz
from distsgd.data.sources.streams import absolute

SUFFIXES = (".npz", ".npy", ".pkl.gz", ".pkl")


def looks_like_path(text: str) -> bool:
    """Whether this means a file or folder, not a name."""
    return os.sep in text or text.endswith(SUFFIXES) or os.path.exists(text)


def open_path(path: str | os.PathLike[str]) -> DataSource:
    """The data set in a file or folder, described by its headers; DataError where it can't be one.

    - `.npz` with x and y, optionally weights; or x_train, y_train, …, x_validation, y_validation, x_test, y_test
    - a folder of `.npy` files of these names
    - `x.npy` or `NAME_x.npy`, with `y.npy` or `NAME_y.npy` beside it
    - `.pkl.gz`: three pairs (x, y) of arrays, as mnist.pkl.gz
    """
    where = absolute(path)
    if os.path.isdir(where):
        return _open_folder(where)
    if not os.path.exists(where):
        raise DataError(f"{where}: expected a data file or folder, there is none; check the path")
    if where.endswith(".npz"):
        names = npz_keys(where)
        check_names(where, names)
        return replace(assemble(where, open_npz(where, ACCEPTED)), unused=tuple(unused_names(names)))
    if where.endswith(".npy"):
        return _open_pair(where)
    if where.endswith((".pkl.gz", ".pkl")):
        from distsgd.data.sources.pickled import open_pickle

        return open_pickle(where)
    raise DataError(f"{where}: expected a folder or a file ending in {', '.join(SUFFIXES)}; save it with numpy.savez")


def _open_folder(where: str) -> DataSource:
    try:
        names = sorted(name[: -len(".npy")] for name in os.listdir(where) if name.endswith(".npy"))
    except OSError as problem:
        raise DataError(f"{where}: expected a readable folder ({problem.strerror}); check its permissions") from None
    check_names(where, names)
    sources = {n: NpySource.open(os.path.join(where, f"{n}.npy")) for n in names if n in ACCEPTED}
    return replace(assemble(where, sources), unused=tuple(unused_names(names)))


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
    return assemble(x_path, sources)


def open_inputs(path: str | os.PathLike[str]) -> ArraySource:
    """The inputs x alone, from `.npz` with x (or x_test) or from any `.npy`; there may be no examples in it.

    Raises DataError where there is no such array.
    """
    where = absolute(path)
    if where.endswith(".npy"):
        return inputs(where, NpySource.open(where), least=0)
    if not where.endswith(".npz"):
        raise DataError(f"{where}: expected a .npz file with x, or a .npy file; save it with numpy.savez")
    found = open_npz(where, ("x", "x_test"))
    if not found:
        raise DataError(f"{where}: expected an array x, got {', '.join(npz_keys(where)) or 'none'}; name it x")
    return inputs(where, found["x"] if "x" in found else found["x_test"], least=0)
