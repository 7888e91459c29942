"""A data set written to a folder of .npy files, in blocks, and what its arrays don't say: columns.json beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from distsgd.core.device import Shape
from distsgd.core.errors import CheckpointError, DataError, RunFolderError
from distsgd.core.files import expanded, folder_beside, read_regular
from distsgd.data.columns import Columns
from distsgd.data.sources.base import ARRAY_NAMES, ArraySource, DataSource, rows_in
from distsgd.data.sources.converted import blocks_of

ABOUT = "columns.json"
"""The file of the folder that says what columns and classes the arrays are of."""
_WINDOW = 64 << 20
"""Bytes of all arrays of a split that are in memory at once."""
_LIMIT = 256 << 20
"""Bytes of columns.json."""


def write_folder(source: DataSource, folder: str, progressed: Callable[[], object] = lambda: None) -> Path:
    """Writes a data set to a folder that is not there yet, or empty; whole or not at all.

    Parameters
    ----------
    source : DataSource
        What is written, as `open_dataset` returns it.
    folder : str
        The path. `x.npy` and `y.npy`, or `x_train.npy` and so on where there are several splits, are in it after, and
        `columns.json`.
    progressed : callable
        Called after each block.

    Raises
    ------
    RunFolderError
        Where there is something in that folder, or it can't be written.
    """
    path = expanded(folder)
    there = os.path.lexists(path)
    try:
        if there and (not path.is_dir() or any(path.iterdir())):
            raise RunFolderError(f"{path}: expected a new or an empty folder, it holds something; name another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_beside(path) as part:
            _write(source, part, progressed)
            if there:
                path.rmdir()
            part.rename(path)
    except OSError as error:
        raise RunFolderError(f"could not write {path}: {error.strerror or error}; choose another place") from None
    return path


def _write(source: DataSource, folder: Path, progressed: Callable[[], object]) -> None:
    arrays = {key: one for key, one in source.arrays.items() if key in ARRAY_NAMES}
    single = all(key.endswith("_train") for key in arrays)
    for split in dict.fromkeys(key.partition("_")[2] for key in arrays):
        group = {key: one for key, one in arrays.items() if key.endswith(f"_{split}")}
        names = {key: key.removesuffix("_train") if single else key for key in group}
        _write_together(group, {key: folder / f"{name}.npy" for key, name in names.items()}, progressed)
    about = {
        "version": 1,
        "columns": None if source.columns is None else source.columns.to_document(),
        "class_names": list(source.class_names),
        "num_classes": source.num_classes,
        "scale": source.scale,
    }
    with open(folder / ABOUT, "w", encoding="utf-8") as stream:
        json.dump(about, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())


def _write_together(
    arrays: Mapping[str, ArraySource], paths: Mapping[str, Path], progressed: Callable[[], object]
) -> None:
    """Arrays of one length, window by window."""
    with ExitStack() as opening:
        streams = {key: opening.enter_context(open(path, "xb")) for key, path in paths.items()}
        for key, one in arrays.items():
            npy_header(streams[key], one.shape, one.dtype)
        for _, blocks in blocks_of(arrays, rows_in(_WINDOW, arrays)):
            for key, block in blocks.items():
                streams[key].write(block.reshape(-1).view(np.uint8).data)
            progressed()
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())


def npy_header(stream: IO[bytes], shape: Shape, dtype: np.dtype[Any]) -> None:
    """Writes the header of a .npy file, whose data follow in C order."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def read_about(folder: str) -> dict[str, Any] | None:
    """What columns.json in a folder says, as the fields of a `DataSource`; None where there is none. Raises DataError
    where it is damaged."""
    path = Path(folder) / ABOUT
    if not os.path.lexists(path):
        return None
    try:
        found = json.loads(read_regular(path, _LIMIT))
        columns = found["columns"]
        names, classes, scale = found["class_names"], found["num_classes"], found["scale"]
        right = (
            type(names) is list
            and all(type(name) is str for name in names)
            and len(names) <= 1_000_000
            and (classes is None or (type(classes) is int and 0 < classes <= 1_000_000))
            and type(scale) is float
            and 0 < scale < float("inf")
        )
        if not right:
            raise ValueError("values of other types")
        known = None if columns is None else Columns.from_document(columns)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError) as error:
        raise DataError(
            f"{path}: expected what distsgd data --write has written, reading it failed ({error}); write the folder "
            "again, or remove the file"
        ) from None
    return {"columns": known, "class_names": tuple(names), "num_classes": classes, "scale": scale}


def check_about(folder: str, about: Mapping[str, Any], features: int) -> None:
    """Raises DataError where columns.json is of other inputs."""
    columns = about["columns"]
    if columns is not None and columns.width != features:
        raise DataError(
            f"{folder}: {ABOUT} is of {columns.width} features, x has {features}; write the folder again, or "
            f"remove {ABOUT}"
        )
